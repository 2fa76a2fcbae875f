#!/bin/sh
# Training steps on this CPU compared with other programs, interleaved in one run: ours, peer, ours, peer ... Run it
# with `make bench-cpu`, on an idle machine: a busy one shows as `spread` in the table. Ours needs only the build; peers
# run if they are found. Raw results: $BUILD/bench_cpu.jsonl. Settings (environment):
#   SHAPES, DTYPES   what to run (default: all three shapes, fp32 and bf16)
#   ROUNDS, STEPS    rounds, and timed steps of each program in a round (default 3 and 5)
#   THREADS          default: all cores
#   PEER_PYTHON      Python interpreters whose PyTorch is a peer, separated by spaces (default: python3; -: none)
#   PEER_OPTIONS     options for peer_pytorch.py; `;` separates settings to try, and the best counts (default: no
#                    options, --compile, and --attention manual; --: no options only)
#   PEER_TIMEOUT     time limit of a peer's run in seconds (default 300)
#   LLMC, LLMC_T256, LLMC_SMALL
#                    paths of llm.c's train_gpt2, each built in its own tree and started in its directory, which holds
#                    the model and the tokens that it reads: LLMC unchanged (B=4 T=64), the others changed to T=256,
#                    and to B=8 T=256 with a small model (L=6, NH=6, C=384)
set -eu
cd "$(dirname "$0")/../.."
BUILD=${BUILD:-build}
SHAPES=${SHAPES:-124M-b4-t64 124M-b4-t256 small-b8-t256}
DTYPES=${DTYPES:-fp32 bf16}
ROUNDS=${ROUNDS:-3}
STEPS=${STEPS:-5}
THREADS=${THREADS:-$(nproc)}
PEER_PYTHON=${PEER_PYTHON:-python3}
PEER_OPTIONS=${PEER_OPTIONS:-;--compile;--attention manual}
[ "$PEER_OPTIONS" != -- ] || PEER_OPTIONS=
PEER_TIMEOUT=${PEER_TIMEOUT:-300}
RESULTS=$BUILD/bench_cpu.jsonl

[ -x "$BUILD/bench" ] || { echo "bench_cpu.sh: $BUILD/bench is missing: run make first" >&2; exit 1; }

pythons=
for python in $PEER_PYTHON; do
    [ "$python" = - ] && continue
    if "$python" -c 'import torch' 2>/dev/null; then pythons="$pythons $python"
    else echo "no PyTorch in $python: skipped (set PEER_PYTHON)"; fi
done

# Adds the JSON line of one run to the results; a peer that fails is reported and skipped.
record() {  # who, line
    case $2 in
        '{'*) printf '%s\n' "$2" | sed "s/^{/{\"round\": $round, /" >> "$RESULTS"
              printf '%s\n' "$2" | sed "s/.*\"tok_per_s\": \([0-9.]*\).*/  $1 \1 tokens\/s/" ;;
        *)    echo "  $1 gave no result, see $BUILD/bench_cpu.stderr" >&2 ;;
    esac
}

run_ours() {
    record tokamak "$("$BUILD/bench" step --shape "$shape" --dtype "$dtype" --steps "$STEPS" --threads "$THREADS")"
}

run_pytorch() {  # python
    rest="$PEER_OPTIONS;"
    while [ -n "$rest" ]; do
        options=${rest%%;*}
        rest=${rest#*;}
        # shellcheck disable=SC2086
        line=$(timeout "$PEER_TIMEOUT" "$1" dev/bench/peer_pytorch.py --shape "$shape" --dtype "$dtype" \
                   --steps "$STEPS" --threads "$THREADS" $options 2>> "$BUILD/bench_cpu.stderr" | tail -n 1) || line=
        record "PyTorch${options:+ $options}" "$line"
    done
}

# llm.c prints "step 3: train loss 10.9 (took 4900.1 ms)" and would run 41 steps: it ends when the pipe closes.
# Its step 0 includes the page faults of all memory and is not counted.
run_llmc() {  # program, tokens in a step
    line=$(cd "$(dirname "$1")" &&
        OMP_NUM_THREADS=$THREADS timeout "$PEER_TIMEOUT" stdbuf -oL "./$(basename "$1")" |
        awk -v steps="$STEPS" -v tokens="$2" '/^step [1-9][0-9]*:/ {
            match($0, /took [0-9.]+/)
            printf "%.2f\n", tokens / substr($0, RSTART + 5, RLENGTH - 5) * 1000
            if (++n == steps) exit }' | sort -n | awk -v shape="$shape" -v threads="$THREADS" '
        { v[NR] = $1; list = list (NR > 1 ? ", " : "") $1 }
        END { if (NR == 0) exit
              printf "{\"peer\": \"llm.c\", \"version\": \"train_gpt2.c\", \"shape\": \"%s\", ", shape
              printf "\"dtype\": \"fp32\", \"threads\": %d, \"list\": [%s], ", threads, list
              printf "\"tok_per_s\": %.2f}\n", (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }') || line=
    record llm.c "$line"
}

: > "$RESULTS"
: > "$BUILD/bench_cpu.stderr"
for shape in $SHAPES; do
    for dtype in $DTYPES; do
        round=1
        while [ "$round" -le "$ROUNDS" ]; do
            echo "$shape $dtype, round $round of $ROUNDS"
            run_ours
            for python in $pythons; do run_pytorch "$python"; done
            case $shape-$dtype in
                124M-b4-t64-fp32)   if [ -n "${LLMC:-}" ]; then run_llmc "$LLMC" 256; fi ;;
                124M-b4-t256-fp32)  if [ -n "${LLMC_T256:-}" ]; then run_llmc "$LLMC_T256" 1024; fi ;;
                small-b8-t256-fp32) if [ -n "${LLMC_SMALL:-}" ]; then run_llmc "$LLMC_SMALL" 2048; fi ;;
            esac
            round=$((round + 1))
        done
    done
done
awk -f dev/bench/bench_cpu.awk "$RESULTS"
