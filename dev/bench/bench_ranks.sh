#!/bin/bash
# The cost of several ranks on this machine, as ratios within one run. Run it with `make bench-ranks`, on an idle machine; needs
# mpirun. Runs are interleaved over rounds, and medians count. Raw results: $BUILD/bench_ranks.jsonl.
#   1. R ranks of one thread each, compared with one rank of R threads, GPT-2 124M: tokens/s, and the share of
#      communication that is hidden behind the computation
#   2. zero=0..3: peak memory of a rank, compared with the plan
#   3. deterministic=lanes compared with run, on one and on R ranks: the cost of equal bits for every world size
# Settings (environment):
#   RANKS, ROUNDS, STEPS   default 2, 3, 4 (steps of a run; the first is not counted)
#   MODEL, SEQ_LEN, ROWS, BATCH_TOKENS   default gpt2:124M, 256, 4, 4096
#   DTYPE                  default fp32
#   PARTS                  parts to run, default "speed memory lanes"
# Example: ROUNDS=1 PARTS=memory MODEL=gpt2:d4 make bench-ranks
set -u
cd "$(dirname "$0")/../.." || exit 1
BUILD=${BUILD:-build} RANKS=${RANKS:-2} ROUNDS=${ROUNDS:-3} STEPS=${STEPS:-4}
MODEL=${MODEL:-gpt2:124M} SEQ_LEN=${SEQ_LEN:-256} ROWS=${ROWS:-4} BATCH_TOKENS=${BATCH_TOKENS:-4096}
DTYPE=${DTYPE:-fp32} PARTS=${PARTS:-speed memory lanes}
RESULTS=$BUILD/bench_ranks.jsonl
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-active}
[ -x "$BUILD/train_gpt" ] || { echo "bench_ranks.sh: $BUILD/train_gpt is missing: run make first" >&2; exit 1; }
command -v mpirun >/dev/null && [ -e "$BUILD/libllmc_mpi.so" ] || {
    echo "bench_ranks.sh: expected mpirun and $BUILD/libllmc_mpi.so: run scripts/setup.sh --mpi, then make" >&2
    exit 1
}
# A run saves its model at its end: into memory if possible, so that disks are not measured.
work=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$RESULTS"
mpi=(mpirun --bind-to none)
[ "$(id -u)" -ne 0 ] || mpi+=(--allow-run-as-root)
[ "$(nproc)" -ge "$RANKS" ] || mpi+=(--oversubscribe)

# Random tokens: the work does not depend on them.
head -c 400000 /dev/urandom | base64 >"$work/text.txt"
"$BUILD/prep" tokenize --tokenizer bytes --out "$work/data" "$work/text.txt" >/dev/null 2>&1 || exit 1

# train NAME RANKS THREADS [key=value...]: writes $work/NAME.log and $work/NAME/metrics.jsonl
train() {
    local name=$1 ranks=$2 threads=$3 launcher=()
    shift 3
    rm -rf "${work:?}/$name"
    [ "$ranks" -eq 1 ] || launcher=("${mpi[@]}" -np "$ranks")
    if ! OMP_NUM_THREADS=$threads "${launcher[@]}" "$BUILD/train_gpt" train out_dir="$work/$name" device=cpu \
        threads="$threads" train="$work/data/train_*.bin" val= model="$MODEL" vocab=50257 dtype="$DTYPE" \
        seq_len="$SEQ_LEN" batch_rows="$ROWS" batch_tokens="$BATCH_TOKENS" steps="$STEPS" val_every=0 save_every=0 \
        compare_every=0 sample_tokens=1 progress_bar=false "$@" >"$work/$name.log" 2>&1; then
        tail -n 5 "$work/$name.log" >&2
        echo "bench_ranks.sh: the run failed, see above" >&2
        exit 1
    fi
}
# Median of a metric over all steps but the first.
median_of() { # NAME KEY
    grep -o "\"$2\":[0-9.e+-]*" "$work/$1/metrics.jsonl" | cut -d: -f2 | tail -n +2 | sort -g |
        awk '{x[NR] = $1} END {print NR ? (NR % 2 ? x[(NR + 1) / 2] : (x[NR / 2] + x[NR / 2 + 1]) / 2) : 0}'
}
record() { # WHAT NAME ROUND
    local speed comm exposed
    speed=$(median_of "$2" tokens_per_second) comm=$(median_of "$2" comm_ms) exposed=$(median_of "$2" comm_exposed_ms)
    printf '{"what":"%s","round":%d,"tokens_per_second":%s,"comm_ms":%s,"comm_exposed_ms":%s,"step_ms":%s}\n' "$1" "$3" \
        "$speed" "$comm" "$exposed" "$(median_of "$2" step_ms)" >>"$RESULTS"
    printf '  round %d  %-28s %8.1f tokens/s  communication %7.1f ms, %3.0f %% hidden\n' "$3" "$1" "$speed" "$comm" \
        "$(awk -v b="$comm" -v e="$exposed" 'BEGIN {print (b > 0 ? 100 * (1 - e / b) : 100)}')"
}
ratio() { # WHAT AGAINST: of medians over rounds
    awk -v a="\"$1\"" -v b="\"$2\"" '
        function median(list, n,  i, j, t) {
            for (i = 2; i <= n; ++i) for (j = i; j > 1 && list[j] < list[j - 1]; --j) { t = list[j]; list[j] = list[j - 1]; list[j - 1] = t }
            return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
        }
        {match($0, /"what":"[^"]*"/); what = substr($0, RSTART + 7, RLENGTH - 7)
         match($0, /"tokens_per_second":[0-9.e+-]*/); speed = substr($0, RSTART + 20, RLENGTH - 20) + 0
         if (what == a) x[++n] = speed; if (what == b) y[++m] = speed}
        END {printf "%s / %s = %.3f (medians of %d rounds: %.1f and %.1f tokens/s)\n", a, b, median(x, n) / median(y, m), n, median(x, n), median(y, m)}' "$RESULTS"
}

case $PARTS in *speed*)
    echo "speed: $MODEL $DTYPE, $BATCH_TOKENS tokens a step in micro-batches of $ROWS x $SEQ_LEN"
    for round in $(seq "$ROUNDS"); do
        train one 1 "$RANKS"
        record "1 rank, $RANKS threads" one "$round"
        for zero in 0 1 2 3; do
            train "many$zero" "$RANKS" 1 zero=$zero
            record "$RANKS ranks, zero=$zero" "many$zero" "$round"
        done
    done
    for zero in 0 1 2 3; do ratio "$RANKS ranks, zero=$zero" "1 rank, $RANKS threads"; done
    ;;
esac
case $PARTS in *memory*)
    echo "memory: peak of a rank compared with its plan, $RANKS ranks"
    for zero in 0 1 2 3; do
        train "memory$zero" "$RANKS" 1 zero=$zero steps=2
        echo "  zero=$zero  $(grep '^memory   rank' "$work/memory$zero.log" | sed 's/^memory *//')"
    done
    ;;
esac
case $PARTS in *lanes*)
    echo "lanes: deterministic=lanes compared with run"
    for round in $(seq "$ROUNDS"); do
        for how in run lanes; do
            train "one-$how" 1 "$RANKS" deterministic=$how
            record "1 rank, $how" "one-$how" "$round"
            train "many-$how" "$RANKS" 1 deterministic=$how
            record "$RANKS ranks, $how" "many-$how" "$round"
        done
    done
    ratio "1 rank, lanes" "1 rank, run"
    ratio "$RANKS ranks, lanes" "$RANKS ranks, run"
    ;;
esac
echo "raw results: $RESULTS"
