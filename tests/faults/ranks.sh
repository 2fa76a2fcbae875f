# ranks.sh: runs of several real processes to do harm to, for test_faults.sh, soak.sh and test_slurm.sh. Sourced after
# tests/lib.sh, whose $work and $train_gpt it uses. Every process that is started here carries a mark in its environment, by
# which it is found (rank_pid) and, whatever happens, ended (ranks_end).
#     ranks_why              why runs of several ranks cannot be tested here; nothing: they can
#     ranks_data             the shards; $options are the options of the run that all cases share
#     start NAME NP [key=value...]   begins the run $work/NAME in the background
#     run_end NAME           waits for it; its exit status is in $status, its output in $work/NAME.log
#     run NAME NP [key=value...]     both
#     wait_step NAME STEP    until metrics.jsonl has the step; fails when the run ends before, or after 30 s
#     rank_pid NAME RANK     the process id of a rank
#     losses NAME            every step's loss and the held-out losses, without times
# FAULT_RANK=R FAULT_...=...: rank R of the next start is preloaded with $fault, which does what fault_io.c reads from FAULT_*.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
    OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1 OMP_WAIT_POLICY=passive
MARK=tokamak-test-$$-$RANDOM
steps=${steps:-120} save_every=${save_every:-20}
# The longest that any run may take, however busy the machine.
RUN_SECONDS=${RUN_SECONDS:-90}
declare -A run_pid

ranks_why() {
    command -v mpirun >/dev/null || { echo "mpirun is not installed (scripts/setup.sh --mpi)"; return; }
    [ -e "$BUILD/libllmc_mpi.so" ] || echo "$BUILD/libllmc_mpi.so is not built: mpicc was not found (scripts/setup.sh --mpi, then make)"
}

ranks_data() {
    awk 'BEGIN {srand(7); split("the of and to in that he shall unto for his lord king day son house people land came said", w, " ")
        for (i = 0; i < 12000; ++i) printf "%s%s", w[1 + int(rand() * rand() * 20)], i % 11 == 10 ? ".\n" : " "}' >"$work/text.txt"
    "$prep" tokenize --tokenizer bytes --out "$work/data" --val-fraction 0.1 "$work/text.txt" >"$work/prep.log" 2>&1 || return 1
    options=(train="$work/data/train_*.bin" val="$work/data/val_*.bin" model=llama:d2 channels=64 heads=4 kv_heads=2 head_size=16
        ffn=96 max_seq_len=32 seq_len=32 batch_rows=1 batch_tokens=512 steps="$steps" warmup_steps=4 lr=3e-3 val_every=30 val_tokens=1024
        save_every="$save_every" keep_last=0 sample_tokens=4 progress_bar=false threads=1 device=cpu deterministic=lanes comm_timeout=20)
}

# Runs in the place of a rank: preloads the fault where it belongs, then becomes the program.
rank_wrapper() {
    cat >"$work/rank.sh" <<'EOF'
#!/bin/bash
if [ -n "${FAULT_RANK:-}" ] && [ "${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-0}}" = "$FAULT_RANK" ]; then export LD_PRELOAD=$FAULT_PRELOAD; fi
exec "$@"
EOF
    chmod +x "$work/rank.sh"
}

start() {
    local name=$1 np=$2
    shift 2
    [ -x "$work/rank.sh" ] || rank_wrapper
    # The mark differs between runs, so that one run's ranks are not taken for another's.
    TOKAMAK_TEST=$MARK.$name FAULT_PRELOAD=${FAULT_PRELOAD:-${sanitizer:+$sanitizer:}${fault:-}} \
        timeout -k 5 "$RUN_SECONDS" mpirun ${MPIRUN_OPTIONS:-} -np "$np" "$work/rank.sh" "$train_gpt" train out_dir="$work/$name" \
        "${options[@]}" "$@" </dev/null >"$work/$name.log" 2>&1 &
    run_pid[$name]=$!
}
run_end() {
    wait "${run_pid[$1]}" 2>/dev/null
    status=$?
    # A launcher that was killed leaves its ranks.
    marked_kill "$1"
    [ $status -ne 124 ] || echo "    $1 was stopped after $RUN_SECONDS s"
}
run() { start "$@" && run_end "$1"; }

# The processes of a run (or, with no name, of all), mpirun included.
marked() {
    local file
    for file in $(grep -lzsE "^TOKAMAK_TEST=$MARK\.${1:-.*}\$" /proc/[0-9]*/environ 2>/dev/null); do
        file=${file#/proc/}
        echo "${file%/environ}"
    done
}
marked_kill() {
    local pids
    pids=$(marked "${1:-}")
    # shellcheck disable=SC2086
    [ -z "$pids" ] || kill -9 $pids 2>/dev/null
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
wait_step() {
    local end=$((SECONDS + 30))
    until grep -q "\"step\":$2,.*\"loss\"" "$work/$1/metrics.jsonl" 2>/dev/null; do
        kill -0 "${run_pid[$1]}" 2>/dev/null || { echo "    $1 ended before step $2"; return 1; }
        [ $SECONDS -lt $end ] || { echo "    $1 did not reach step $2 in 30 s"; return 1; }
        sleep 0.01
    done
}

losses() {
    sed -nE 's/.*"step":([0-9]+),.*"(loss|val_loss)":([-0-9.e+]+).*/\1 \2 \3/p' "$work/$1/metrics.jsonl"
}
# same_losses NAME REFERENCE [TOLERANCE]: the same steps with the same losses, to the last bit or within a relative tolerance.
same_losses() {
    losses "$1" >"$work/losses.a"
    losses "$2" >"$work/losses.b"
    [ "$(grep -c ' loss ' "$work/losses.a")" -ge "$steps" ] || { echo "    $1 has $(wc -l <"$work/losses.a") losses"; return 1; }
    if [ $# -lt 3 ]; then
        cmp "$work/losses.a" "$work/losses.b" && return 0
        diff "$work/losses.a" "$work/losses.b" | head -n 4 | sed 's/^/    /'
        return 1
    fi
    paste -d' ' "$work/losses.a" "$work/losses.b" | awk -v most="$3" '
        $1 != $4 || $2 != $5 {print "    other lines: " $0; bad = 1; exit}
        {d = ($3 - $6) / $6; if (d < 0) d = -d; if (!(d <= most)) {print "    differs by " d ": " $0; bad = 1; exit}}
        END {exit bad}'
}
# said NAME TEXT: the run printed it (an extended regular expression).
said() {
    grep -qE -- "$2" "$work/$1.log" && return 0
    echo "    expected \"$2\" in the output of $1, which ends:"
    tail -n 8 "$work/$1.log" | cut -c1-300 | sed 's/^/    /'
    return 1
}
# ended NAME STATUS: its exit status.
ended() {
    [ "$status" -eq "$2" ] && return 0
    echo "    $1: expected exit status $2, found $status; its output ends:"
    tail -n 8 "$work/$1.log" | cut -c1-300 | sed 's/^/    /'
    return 1
}
failed() {
    [ "$status" -ne 0 ] && [ "$status" -ne 75 ] && [ "$status" -ne 124 ] && return 0
    echo "    $1: expected a failure, found exit status $status; its output ends:"
    tail -n 8 "$work/$1.log" | cut -c1-300 | sed 's/^/    /'
    return 1
}
newest_checkpoint() { find "$work/$1" -maxdepth 1 -name 'step_[0-9]*' ! -name '*.tmp*' | sort | tail -n 1; }
