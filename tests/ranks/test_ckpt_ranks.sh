#!/bin/bash
# test_ckpt_ranks.sh: checkpoints that several ranks write while training: any number of ranks and ZeRO stage resumes from any
# other with the same bits; copied and streamed checkpoints are equal; a full disk on one rank, kills at file operations of
# any rank, and a second run on the same directory.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh

need_mpi ranks
# Shared-memory files of killed ranks are removed with $work.
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_vader_backing_directory=$work OMP_WAIT_POLICY=passive

fault_library fault_io || exit 1
# Injects the fault in one rank: BAD_RANK.
cat >"$work/rank.sh" <<'END'
if [ "${OMPI_COMM_WORLD_RANK:-0}" = "${BAD_RANK:-none}" ]; then export LD_PRELOAD=$FAULT_PRELOAD; fi
exec "$@"
END
export FAULT_PRELOAD=$preload

shards 12000 0 || exit 1

# ranks NAME RANKS [key=value...]: six steps of sixteen micro-batches, checkpoints at 3 and 6.
program=(bash "$work/rank.sh")
ranks() { tiny_ranks "$1" "$2" model=llama:d3 batch_rows=1 batch_tokens=512 steps=6 val_every=0 save_every=3 "${@:3}"; }
run() { ranks "$@" || { tail -n 5 "$work/$1.log"; return 1; }; }
same() { "$train_gpt" ckpt diff "$1" "$2" >"$work/diff" 2>&1 || { tail -n 3 "$work/diff"; return 1; }; }
whole() { "$train_gpt" ckpt verify "$1" >"$work/verify" 2>&1 || { cat "$work/verify"; return 1; }; }

# Equal to a run of one rank, to the bit, although ranks and stage change at step 3.
# goes_on REFERENCE RANKS STAGE RANKS STAGE [key=value...]
goes_on() {
    local one=$work/$1/step_00000006
    rm -rf "$work/way"
    run way "$2" zero="$3" deterministic=lanes "${@:6}" && same "$work/way/step_00000006" "$one" && whole "$work/way" || return 1
    rm -rf "$work/way/step_00000006"
    run way "$4" zero="$5" deterministic=lanes "${@:6}" && grep -q "resumed .*step 3" "$work/way.log" || return 1
    same "$work/way/step_00000006" "$one" && whole "$work/way" || return 1
    # Converted to one rank's form, it equals one rank's checkpoint.
    rm -rf "$work/plain" && "$train_gpt" ckpt reshard from="$work/way/step_00000006" to="$work/plain" ranks=1 >/dev/null || return 1
    cmp "$work/plain/model.safetensors" "$one/model.safetensors" && cmp "$work/plain/optimizer.safetensors" "$one/optimizer.safetensors"
}
check one_rank run one 1 deterministic=lanes
check one_rank_to_two_stage_3 goes_on one 1 0 2 3
check four_stage_0_to_one goes_on one 4 0 1 0
check two_stage_1_to_two_stage_2 goes_on one 2 1 2 2
check muon_in_bf16 run muon 1 deterministic=lanes dtype=bf16 optimizer=muon
check muon_two_stage_3_to_four_stage_1 goes_on muon 2 3 4 1 dtype=bf16 optimizer=muon

# Without a copy in memory: the same files, except for the seconds in state.json and hashes that depend on them.
streamed() {
    run copied 3 zero=3 && run streamed 3 zero=3 async_save=false || return 1
    grep -q "copied in .* s, written in .* s beside training" "$work/copied.log" || return 1
    grep -q "saved .*step_00000003 in .* s" "$work/streamed.log" || return 1
    diff -r -x state.json -x MANIFEST.json "$work/copied/step_00000003" "$work/streamed/step_00000003" && whole "$work/streamed"
}
check streamed_is_the_same streamed

# On emulated GPUs, where operations run only when waited for: a rank that needs nothing of a gather must still take part.
gpus() {
    local small=(device=cudaemu dtype=bf16 deterministic=lanes channels=32 heads=2 kv_heads=1 ffn=48 seq_len=16 batch_rows=2 batch_tokens=128)
    run gpu 1 "${small[@]}" && run gpus 2 "${small[@]}" zero=3 && same "$work/gpus/step_00000003" "$work/gpu/step_00000003" || return 1
    rm -rf "$work/gpus/step_00000006"
    run gpus 2 "${small[@]}" zero=3 async_save=false && grep -q "resumed .*step 3" "$work/gpus.log" || return 1
    same "$work/gpus/step_00000006" "$work/gpu/step_00000006" && whole "$work/gpus"
}
if [ -e "$BUILD/libllmc_cudaemu.so" ] && [ -e "$BUILD/libnccl_emu.so" ]; then check emulated_gpus gpus
else echo "[ RUN      ] emulated_gpus"; echo "libllmc_cudaemu.so or libnccl_emu.so was not built"; echo "[  SKIPPED ] emulated_gpus"; fi

# ---- one rank's disk ----

# no_room RANK OPERATION [key=value...]: at that operation on the second checkpoint's files.
no_room() {
    local host
    host=$(hostname)
    rm -rf "$work/full"
    BAD_RANK=$1 FAULT_PATH=step_00000003 FAULT_AT=$2 FAULT_KIND=enospc ranks full 2 zero=1 save_every=1 "${@:3}"
    status=$?
    grep -q "NOT SAVED: rank $1 ($host, pid [0-9]*).*step_00000003.*No space left on device" "$work/full.log" &&
        [ "$(grep -c 'NOT SAVED' "$work/full.log")" -eq 1 ] || { tail -n 5 "$work/full.log"; return 1; }
    whole "$work/full" && [ -d "$work/full/step_00000002" ] && [ ! -e "$work/full/step_00000003" ] || return 1
    [ -z "$(ls -d "$work/full"/.tmp-* 2>/dev/null)" ] || { echo "    left: $(ls -A "$work/full")"; return 1; }
}
goes_on_without() { no_room "$@" && [ $status -eq 0 ] && same "$work/full/step_00000006" "$work/undisturbed/step_00000006"; }
stops_for_it() { no_room "$@" on_save_error=stop && [ $status -eq 1 ]; }
check undisturbed run undisturbed 2 zero=1
check disk_full_on_rank_1_in_its_part goes_on_without 1 9
check disk_full_on_rank_0 goes_on_without 0 4
check disk_full_at_the_manifest goes_on_without 0 24
check disk_full_streamed goes_on_without 1 3 async_save=false
check disk_full_stops stops_for_it 1 2

# ---- kills ----

# Rank $1 dies at its n-th file operation of the second checkpoint; the other ranks exit, and the next start resumes.
killed_in_checkpoint() {
    local at hit=0
    for at in $2; do
        rm -rf "$work/torn"
        BAD_RANK=$1 FAULT_PATH=step_00000003 FAULT_AT=$at FAULT_KIND=kill ranks torn 2 zero=1 save_every=1 keep_last=2
        [ $? -ne 0 ] || continue # fewer operations than that
        hit=$((hit + 1))
        whole "$work/torn" || { echo "    killed at operation $at"; return 1; }
        run torn 2 zero=1 save_every=1 keep_last=2 && same "$work/torn/step_00000006" "$work/undisturbed/step_00000006" ||
            { echo "    killed at operation $at"; return 1; }
        [ "$(ls -d "$work/torn"/step_* "$work/torn"/.[dt]* 2>/dev/null | wc -l)" -eq 2 ] || { ls -A "$work/torn"; return 1; }
    done
    [ $hit -ge 2 ] || { echo "    only $hit kills"; return 1; }
}
check kill_rank_1_in_a_checkpoint killed_in_checkpoint 1 "1 8"
check kill_rank_0_in_a_checkpoint killed_in_checkpoint 0 "2 14 24"

# ---- two runs on one directory ----

second_run() {
    rm -rf "$work/shared"
    ranks shared 2 steps=100000 save_every=0 &
    local first=$!
    for _ in $(seq 2000); do
        grep -q '"step":2\b' "$work/shared/metrics.jsonl" 2>/dev/null && break
        sleep 0.01
    done
    mv "$work/shared.log" "$work/first.log"
    expect 1 "another run is using this directory: host $(hostname), pid [0-9]*, since" ranks_here shared 2
    local refused=$?
    for pid in $(pgrep -f "out_dir=$work/shared "); do kill -TERM "$pid" 2>/dev/null; done
    wait $first
    [ $refused -eq 0 ]
}
ranks_here() { ranks "$@"; local status=$?; cat "$work/$1.log"; return $status; }
check second_run_is_refused second_run
finish
