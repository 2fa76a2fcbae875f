#!/bin/sh
# Training steps on this CPU beside those of other programs, interleaved in one run: ours, peer, ours, peer ...
# Called by `make bench-cpu`. Ours needs nothing but the build; peers run where they are found. A busy machine shows
# in the table's `spread`: run this on a quiet one. Raw results: $BUILD/bench_cpu.jsonl. Settings (environment):
#   SHAPES, DTYPES   what to run (default: all three shapes, fp32 and bf16)
#   ROUNDS, STEPS    rounds of everything, timed steps of each program in a round (default 3 and 5)
#   THREADS          default: all cores
#   PEER_PYTHON      Pythons whose PyTorch is a peer, separated by spaces (default: python3; -: none)
#   PEER_OPTIONS     options for peer_pytorch.py; a `;` separates settings to try, of which the best counts (default:
#                    as it is, compiled, and with attention scores written out; --: as it is, alone)
#   PEER_TIMEOUT     seconds after which a peer's run is given up (default 300)
#   LLMC, LLMC_T256, LLMC_SMALL
#                    llm.c's train_gpt2, built in its own tree and started in the directory where it lies, which holds
#                    the model and the tokens that it reads: LLMC as it is (B=4 T=64), the others changed: to T=256,
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
    else echo "no PyTorch in $python: it is left out (set PEER_PYTHON)"; fi
done

# Adds one run's JSON line to the results; a peer that fails is reported and left out.
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

# llm.c prints "step 3: train loss 10.9 (took 4900.1 ms)" and would go on for 41 steps: it ends when the pipe closes.
# Its step 0 pays for the first touch of every page and is left out.
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
