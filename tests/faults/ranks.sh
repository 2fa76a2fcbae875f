# ranks.sh: runs of several real processes for fault injection, for test_faults.sh, soak.sh and test_slurm.sh. Sourced after
# tests/support/lib.sh, whose $work and $train_gpt it uses. Every process started here has a mark in its environment, by
# which rank_pid finds it and ranks_end ends it.
#     ranks_data             the shards; $options are the options of the run that all cases share
#     start NAME NP [key=value...]   begins the run $work/NAME in the background
#     run_end NAME           waits for its end; its exit status is in $status, its output in $work/NAME.log
#     run NAME NP [key=value...]     both
#     wait_step NAME STEP    waits until metrics.jsonl has the step; fails if the run ends before
#     wait_saved NAME STEP   the same, and until a checkpoint exists (it is written while training continues)
#     rank_pid NAME RANK     the process id of a rank
#     losses NAME            every step's loss and the held-out losses, without times
# In the environment of start:
#     FAULT_RANK=R FAULT_PRELOAD=FILE FAULT_...   rank R is preloaded with fault_io or fault_mpi, which reads the rest
#     LEFT_ALONE=1           mpirun does not end the other ranks when one fails; exit statuses are then in $work/NAME.status.R,
#                            since mpirun itself returns 0
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
    OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1 OMP_WAIT_POLICY=passive
MARK=tokamak-test-$$-$RANDOM
steps=${steps:-120} save_every=${save_every:-20}
# Time limits of a run and of half a run, also on a busy machine.
RUN_SECONDS=${RUN_SECONDS:-240} WAIT_SECONDS=$((${RUN_SECONDS:-240} / 2))
declare -A run_pid


ranks_data() {
    shards 12000 || return 1
    options=("${tiny[@]}" batch_rows=1 batch_tokens=512 steps="$steps" val_every=30 val_tokens=1024 save_every="$save_every"
        sample_tokens=4 threads=1 device=cpu deterministic=lanes comm_timeout=60)
}

# Started instead of a rank: preloads the fault in the chosen rank, then executes the program, or records its exit status.
rank_wrapper() {
    cat >"$work/rank.sh" <<'EOF'
#!/bin/bash
rank=${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-0}}
if [ -n "${FAULT_RANK:-}" ] && [ "$rank" = "$FAULT_RANK" ]; then export LD_PRELOAD=$FAULT_PRELOAD; fi
if [ -z "$STATUS_FILES" ]; then exec "$@"; fi
"$@"
echo $? >"$STATUS_FILES.$rank"
EOF
    chmod +x "$work/rank.sh"
}

start() {
    local name=$1 np=$2 alone=()
    shift 2
    [ -x "$work/rank.sh" ] || rank_wrapper
    rm -f "$work/$name".status.*
    [ -z "${LEFT_ALONE:-}" ] || alone=(--enable-recovery)
    # The mark differs between runs, so that one run's ranks are not taken for another's.
    # In a subshell, so that the shell's message about a killed launcher goes to the log.
    (
        TOKAMAK_TEST=$MARK.$name FAULT_PRELOAD=${sanitizer:+$sanitizer:}${FAULT_PRELOAD:-} \
            STATUS_FILES=${LEFT_ALONE:+$work/$name.status} timeout -k 5 "$RUN_SECONDS" mpirun "${alone[@]}" -np "$np" \
            "$work/rank.sh" "$train_gpt" train out_dir="$work/$name" "${options[@]}" "$@"
        exit $?
    ) </dev/null >"$work/$name.log" 2>&1 &
    run_pid[$name]=$!
}
run_end() {
    wait "${run_pid[$1]}" 2>/dev/null
    status=$?
    # The ranks of a killed launcher keep running.
    marked_kill "$1"
    [ $status -ne 124 ] || echo "    $1 was stopped after $RUN_SECONDS s"
}
run() { start "$@" && run_end "$1"; }

# The processes of a run (without a name: of all runs), mpirun included.
marked() {
    local file
    for file in $(grep -lzsE "^TOKAMAK_TEST=$MARK\.${1:-.*}\$" /proc/[0-9]*/environ 2>/dev/null); do
        file=${file#/proc/}
        echo "${file%/environ}"
    done
}
# Repeats until no process is left: a launcher may be about to start more.
marked_kill() {
    local pids
    while pids=$(marked "${1:-}") && [ -n "$pids" ]; do
        # shellcheck disable=SC2086
        kill -9 $pids 2>/dev/null
        sleep 0.02
    done
}
ranks_end() { marked_kill; }

rank_pid() {
    local pid
    for pid in $(marked "$1"); do
        grep -qzxE "(OMPI_COMM_WORLD_RANK|PMIX_RANK)=$2" "/proc/$pid/environ" 2>/dev/null || continue
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = train_gpt ] && echo "$pid" && return 0
    done
    return 1
}
wait_for() { # NAME WHAT COMMAND...
    local end=$((SECONDS + WAIT_SECONDS)) name=$1 what=$2
    shift 2
    until "$@"; do
        kill -0 "${run_pid[$name]}" 2>/dev/null || { echo "    $name ended before $what"; return 1; }
        [ $SECONDS -lt $end ] || { echo "    $name: no $what in $WAIT_SECONDS s"; return 1; }
        sleep 0.01
    done
}
has_step() { grep -q "\"step\":$2,.*\"loss\"" "$work/$1/metrics.jsonl" 2>/dev/null; }
has_checkpoint() { [ -n "$(newest_checkpoint "$1")" ]; }
wait_step() { wait_for "$1" "step $2" has_step "$1" "$2"; }
wait_saved() { wait_step "$1" "$2" && wait_for "$1" "a checkpoint" has_checkpoint "$1"; }

losses() {
    sed -nE 's/.*"step":([0-9]+),.*"(loss|val_loss)":([-0-9.e+]+).*/\1 \2 \3/p' "$work/$1/metrics.jsonl"
}
# same_losses NAME REFERENCE [TOLERANCE]: the same steps with the same losses, to the last bit or within a relative tolerance.
same_losses() {
    local a=$work/$1.losses b=$work/$1.$2.losses
    losses "$1" >"$a"
    losses "$2" >"$b"
    [ "$(grep -c ' loss ' "$a")" -ge "$steps" ] || { echo "    $1 has $(wc -l <"$a") losses"; return 1; }
    if [ $# -lt 3 ]; then
        cmp "$a" "$b" && return 0
        diff "$a" "$b" | head -n 4 | sed 's/^/    /'
        return 1
    fi
    paste -d' ' "$a" "$b" | awk -v most="$3" '
        $1 != $4 || $2 != $5 {print "    other lines: " $0; bad = 1; exit}
        {d = ($3 - $6) / $6; if (d < 0) d = -d; if (!(d <= most)) {print "    differs by " d ": " $0; bad = 1; exit}}
        END {exit bad}'
}
# The last lines of its output, without mpirun's usual messages.
log_end() {
    grep -vE '^(-+|Primary job .*|a non-zero exit code.*|mpirun detected .*|the job to be terminated.*|  (Process name|Exit code):.*|)$' \
        "$work/$1.log" | tail -n 10 | cut -c1-300 | sed 's/^/    /'
}
# said NAME TEXT: the run printed TEXT (an extended regular expression).
said() {
    grep -qE -- "$2" "$work/$1.log" && return 0
    echo "    expected \"$2\" in the output of $1, which ends:"
    log_end "$1"
    return 1
}
# others_failed NAME NP RANK: with LEFT_ALONE, all other ranks detected the failure by themselves and exited with status 1.
others_failed() {
    local r
    for r in $(seq 0 $(($2 - 1))); do
        [ "$r" -eq "$3" ] || [ "$(cat "$work/$1.status.$r" 2>/dev/null)" = 1 ] && continue
        echo "    expected rank $r of $1 to end with status 1, found $(cat "$work/$1.status.$r" 2>/dev/null || echo none); the output ends:"
        log_end "$1"
        return 1
    done
}
# ended NAME STATUS: it ended with this exit status.
ended() {
    [ "$status" -eq "$2" ] && return 0
    echo "    $1: expected exit status $2, found $status; its output ends:"
    log_end "$1"
    return 1
}
failed() {
    [ "$status" -ne 0 ] && [ "$status" -ne 75 ] && [ "$status" -ne 124 ] && return 0
    echo "    $1: expected a failure, found exit status $status; its output ends:"
    log_end "$1"
    return 1
}
newest_checkpoint() { find "$work/$1" -maxdepth 1 -name 'step_[0-9]*' 2>/dev/null | sort | tail -n 1; }
