#!/bin/bash
# test_faults.sh: fault injection in runs of several real processes: ranks that are killed, stopped, signalled, out of disk
# space or data, started twice or with fewer than before. After each fault the run resumes and ends with the losses of an
# undisturbed run, to the last bit: with deterministic=lanes 1, 2 and 4 ranks compute the same.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh
. tests/faults/ranks.sh
need_mpi faults
trap 'ranks_end; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
fault_io=$work/fault_io.so fault_mpi=$work/fault_mpi.so
fault_library fault_io && fault_library fault_mpi mpicc || exit 1
ranks_data || exit 1
seed=${SEED:-$(($(date +%s) % 32768))}
RANDOM=$seed
echo "SEED=$seed repeats the random choices"

# Cases wait more than they compute, so several run at once: `beside NAME COMMAND...` begins one (its random choices must be
# made before); `collect` reports all cases in order.
AT_ONCE=${AT_ONCE:-3}
begun=()
beside() {
    local name=$1
    shift
    while [ "$(jobs -rp | wc -l)" -ge "$AT_ONCE" ]; do sleep 0.05; done
    begun+=("$name")
    (
        trap - EXIT
        "$@" >"$work/case.$name" 2>&1
        echo $? >"$work/case.$name.status"
    ) &
}
case_result() {
    cat "$work/case.$1"
    return "$(cat "$work/case.$1.status" 2>/dev/null || echo 1)"
}
collect() {
    local name
    wait
    for name in "${begun[@]}"; do check "$name" case_result "$name"; done
}

# With sanitizers, where a start takes seconds, only one case of each kind, since the others run the same code; and with two
# ranks, since gcc 12's leak checker crashes with four.
all=1
[ -z "$sanitizer" ] || all=

straight() { run straight 1 && ended straight 0 && same_losses straight straight; }
check straight straight
same_at() { run "straight$1" "$1" && ended "straight$1" 0 && same_losses "straight$1" straight; }
check two_ranks_same_losses same_at 2
[ -z "$all" ] || check four_ranks_same_losses same_at 4

# The longest cases first. For 50 kills: tests/faults/soak.sh 50
[ -z "$all" ] || beside soak_of_eight_kills env SEED=$RANDOM tests/faults/soak.sh 8 "$BUILD"

# resumes NAME NP [key=value...]: the run resumes to its end and has the losses of the undisturbed run.
resumes() { run "$@" && ended "$1" 0 && said "$1" "resumed.*step_" && same_losses "$1" straight; }

# ---- ranks that die ----
# mpirun does not end the other ranks (LEFT_ALONE), so they must detect the failure by themselves.
killed() { # NAME NP RANK STEP
    local name=$1 step=$4 pid
    echo "    kills rank $3 of $2 after step $step"
    LEFT_ALONE=1 start "$name" "$2"
    wait_saved "$name" $step && pid=$(rank_pid "$name" "$3") && kill -9 "$pid" || return 1
    run_end "$name"
    others_failed "$name" "$2" "$3" && said "$name" "rank $3 \(.*pid $pid\)" && resumes "$name" "$2"
}
beside one_of_two_is_killed killed k2 2 1 $((save_every + 5 + RANDOM % 80))
[ -z "$all" ] || beside one_of_four_is_killed killed k4 4 3 $((save_every + 5 + RANDOM % 80))
[ -z "$all" ] || beside the_first_rank_is_killed killed k0 2 0 $((save_every + 5 + RANDOM % 80))
# The default: mpirun ends the other ranks too.
killed_plainly() {
    start plain 2
    wait_saved plain 50 && kill -9 "$(rank_pid plain 1)" || return 1
    run_end plain
    failed plain && resumes plain 4
}
[ -z "$all" ] || beside killed_under_plain_mpirun killed_plainly

# fault_mpi: at the n-th message that rank 1 sends; a step of two ranks sends about 290.
killed_in_reduce() {
    FAULT_PRELOAD=$fault_mpi FAULT_RANK=1 FAULT_AT=$2 FAULT_KIND=kill LEFT_ALONE=1 run "$1" 2
    others_failed "$1" 2 1 && said "$1" "rank 1 \(.*pid [0-9]+\).*#[0-9]+" && resumes "$1" 2
}
[ -z "$all" ] || beside killed_in_a_reduction killed_in_reduce reduce $((17000 + RANDOM % 300))

# A rank dies at the n-th file operation of a checkpoint: the previous checkpoint, or this one, must be complete.
killed_in_checkpoint() {
    local place rank at newest
    for place in ${all:+1:1 0:4} 1:2 0:1 0:9; do
        rank=${place%:*} at=${place#*:}
        rm -rf "$work/torn"
        FAULT_PRELOAD=$fault_io FAULT_RANK=$rank FAULT_PATH=torn/.tmp-step_00000060 FAULT_AT=$at FAULT_KIND=kill run torn 2
        failed torn || { echo "    rank $rank, operation $at"; return 1; }
        newest=$(newest_checkpoint torn)
        case $newest in *step_00000040 | *step_00000060) ;; *) echo "    rank $rank, operation $at: the newest is $newest"; return 1 ;; esac
        "$train_gpt" ckpt verify "$newest" >/dev/null && resumes torn 2 || { echo "    rank $rank, operation $at"; return 1; }
    done
}
beside killed_in_a_checkpoint killed_in_checkpoint

# ---- ranks that hang ----
stopped() { # NAME NP RANK
    local name=$1 pid began
    start "$name" "$2" comm_timeout=4
    wait_saved "$name" 50 && pid=$(rank_pid "$name" "$3") && kill -STOP "$pid" || return 1
    began=$SECONDS
    run_end "$name"
    [ $((SECONDS - began)) -le 30 ] || { echo "    noticed only after $((SECONDS - began)) s"; return 1; }
    # The message names rank, pid, collective and sequence number.
    failed "$name" && said "$name" "rank $3 \(.*pid $pid\).*\".+\" #[0-9]+" && resumes "$name" "$2"
}
beside one_rank_is_stopped stopped s1 2 1
[ -z "$all" ] || beside the_first_rank_is_stopped stopped s0 4 0
stopped_in_reduce() {
    FAULT_PRELOAD=$fault_mpi FAULT_RANK=1 FAULT_AT=17500 FAULT_KIND=stop run "$1" 2 comm_timeout=4
    failed "$1" && said "$1" "rank 1 \(.*pid [0-9]+\).*\".+\" #[0-9]+" && resumes "$1" 2
}
[ -z "$all" ] || beside stopped_in_a_reduction stopped_in_reduce hang

# ---- signals ----
told() { # NAME NP RANK SIGNAL: all ranks agree on a step, save it and exit with 75
    start "$1" "$2" save_every=1000
    wait_step "$1" 50 && kill "-$4" "$(rank_pid "$1" "$3")" || return 1
    run_end "$1"
    ended "$1" 75 && "$train_gpt" ckpt verify "$(newest_checkpoint "$1")" >/dev/null && resumes "$1" "$2" save_every=1000
}
[ -z "$all" ] || beside sigterm_to_one_rank told t1 2 1 TERM
beside sigusr1_to_one_rank told u1 2 1 USR1
[ -z "$all" ] || beside sigusr1_to_one_of_four told u4 4 2 USR1
[ -z "$all" ] || beside sigusr1_to_the_first_rank told u0 2 0 USR1
beside sigterm_to_a_single_process told t 1 0 TERM

# ---- disks ----
disk_full() { # NAME on_save_error: rank 1 has no room for the third checkpoint
    FAULT_PRELOAD=$fault_io FAULT_RANK=1 FAULT_PATH=step_00000060 FAULT_AT=1 FAULT_KIND=enospc FAULT_FOREVER=1 run "$1" 2 on_save_error="$2"
    said "$1" "No space left" && [ ! -e "$work/$1/step_00000060" ] || return 1
    if [ "$2" = continue ]; then ended "$1" 0 && same_losses "$1" straight; else ended "$1" 1 && resumes "$1" 2; fi
}
[ -z "$all" ] || beside disk_full_on_one_rank_goes_on disk_full full continue
beside disk_full_on_one_rank_stops disk_full full_stop stop
read_only() {
    FAULT_PRELOAD=$fault_io FAULT_RANK=1 FAULT_PATH=ro/ FAULT_KIND=erofs run ro 2 on_save_error=stop
    ended ro 1 && said ro "Read-only file system" && run ro 2 && ended ro 0 && same_losses ro straight
}
[ -z "$all" ] || beside read_only_directory_on_one_rank read_only
corrupted() {
    cp -r "$work/straight2" "$work/bad" && rm -rf "$work/bad/step_00000120" || return 1
    local file
    file=$(find "$work/bad/step_00000100" -name 'optimizer*' | sort | tail -n 1)
    printf 'x' | dd of="$file" bs=1 seek=$(($(stat -c %s "$file") - 50)) conv=notrunc 2>/dev/null
    run bad 2 && ended bad 0 && said bad "step_00000100" && said bad "resumed.*step_00000080" && same_losses bad straight
}
beside corrupted_checkpoint_is_passed_over corrupted

# ---- data ----
cut_shard() { # the last rows vanish during the run: the first rank that needs them ends the run for all, after a checkpoint
    cp -r "$work/data" "$work/shards.cut"
    start cut 2 train="$work/shards.cut/train_*.bin" save_every=1000
    wait_step cut 40 && truncate -s -800 "$work/shards.cut/train_000000.bin" || return 1
    run_end cut
    ended cut 1 && said cut "train_000000.bin.*truncated while in use" && "$train_gpt" ckpt verify "$(newest_checkpoint cut)" >/dev/null || return 1
    resumes cut 2
}
beside shard_is_cut_in_mid_run cut_shard
vanished_shard() { # a shard removed during the run stays readable (it is open); a missing shard at the start is an error
    cp -r "$work/data" "$work/shards.gone"
    start gone 2 train="$work/shards.gone/train_*.bin"
    wait_saved gone 40 && rm "$work/shards.gone/train_000000.bin" && kill -9 "$(rank_pid gone 1)" || return 1
    run_end gone
    run gone 2 train="$work/shards.gone/train_*.bin"
    ended gone 1 && said gone "shards.gone/train_.*found no file" && resumes gone 2
}
[ -z "$all" ] || beside shard_vanishes vanished_shard

# ---- launchers ----
twice() { # the first run is stopped while the second starts, so that it cannot end before
    start first 2 && wait_step first 20 || return 1
    local held
    held=$(rank_pid first 0)
    kill -STOP "$held"
    run_pid[second]=
    timeout 60 mpirun -np 2 "$train_gpt" train out_dir="$work/first" "${options[@]}" </dev/null >"$work/second.log" 2>&1
    status=$?
    kill -CONT "$held"
    failed second && said second "first: another run is using this directory.*pid $held" || return 1
    run_end first
    ended first 0 && same_losses first straight
}
[ -z "$all" ] || beside second_run_in_a_directory_is_refused twice

# 4, then 2, then 3 ranks, which lanes do not support: sums in another order, so the losses agree up to rounding, which
# grows to about 1e-5 in 120 steps of fp32 at this learning rate.
fewer() {
    start fewer 4 deterministic=run && wait_saved fewer 45 && kill -9 "$(rank_pid fewer 2)" || return 1
    run_end fewer
    start fewer 2 deterministic=run && wait_saved fewer 85 && kill -9 "$(rank_pid fewer 0)" || return 1
    run_end fewer
    run fewer 3 deterministic=run && ended fewer 0 && same_losses fewer straight 3e-4
}
[ -z "$all" ] || beside restarted_with_other_numbers_of_ranks fewer

collect
finish
