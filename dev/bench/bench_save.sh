#!/bin/bash
# The cost of a checkpoint: the copy that training waits for, and the slowdown of the steps during its writing compared with the
# other steps of the same run. Run it with `make bench-save`, on an idle machine; ranks need mpirun. Medians count.
# Settings (environment):
#   RANKS                  list of rank counts, default "1 2"; the ranks share the cores
#   STEPS, SAVE_EVERY      default 24, 8
#   MODEL, SEQ_LEN, ROWS, BATCH_TOKENS   default gpt2:124M, 256, 4, 2048
#   DTYPE, ZERO            default fp32, 1
#   OUT                    directory of the checkpoints, default a temporary one
# Example: RANKS=1 MODEL=gpt2:d6 STEPS=40 make bench-save
set -u
cd "$(dirname "$0")/../.." || exit 1
BUILD=${BUILD:-build} RANKS=${RANKS:-1 2} STEPS=${STEPS:-24} SAVE_EVERY=${SAVE_EVERY:-8}
MODEL=${MODEL:-gpt2:124M} SEQ_LEN=${SEQ_LEN:-256} ROWS=${ROWS:-4} BATCH_TOKENS=${BATCH_TOKENS:-2048}
DTYPE=${DTYPE:-fp32} ZERO=${ZERO:-1}
[ -x "$BUILD/train_gpt" ] || { echo "bench_save.sh: $BUILD/train_gpt is missing: run make first" >&2; exit 1; }
work=$(mktemp -d ${OUT:+-p "$OUT"})
trap 'rm -rf "$work"' EXIT
mpi=(mpirun --bind-to none --oversubscribe)
[ "$(id -u)" -ne 0 ] || mpi+=(--allow-run-as-root)
head -c 400000 /dev/urandom | base64 >"$work/text.txt"
"$BUILD/prep" tokenize --tokenizer bytes --out "$work/data" "$work/text.txt" >/dev/null 2>&1 || exit 1
rm "$work/data/tokenizer.json"  # then nothing is sampled

measure() { # RANKS async_save
    local launcher=() threads=$(($(nproc) / $1))
    [ "$1" -eq 1 ] || launcher=("${mpi[@]}" -np "$1")
    rm -rf "$work/run"
    "${launcher[@]}" "$BUILD/train_gpt" train out_dir="$work/run" device=cpu threads=$((threads > 0 ? threads : 1)) \
        train="$work/data/train_*.bin" val= model="$MODEL" vocab=50257 dtype="$DTYPE" zero="$ZERO" seq_len="$SEQ_LEN" \
        batch_rows="$ROWS" batch_tokens="$BATCH_TOKENS" steps="$STEPS" save_every="$SAVE_EVERY" keep_last=2 val_every=0 \
        sample_tokens=1 progress_bar=false async_save="$2" >"$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; exit 1; }
    # Steps between the saved one and the line that reports it ran during the writing. The first step and those right before a
    # save, which are waited for, are not counted.
    awk -v every="$SAVE_EVERY" -v what="$1 rank(s), async_save=$2" '
        function median(x, n,   i, j, t) {
            for (i = 2; i <= n; ++i) for (j = i; j > 1 && x[j] < x[j - 1]; --j) {t = x[j]; x[j] = x[j - 1]; x[j - 1] = t}
            return n == 0 ? 0 : n % 2 ? x[(n + 1) / 2] : (x[n / 2] + x[n / 2 + 1]) / 2
        }
        /"loss":/ && /"step_ms":/ {
            match($0, /"step":[0-9]+/); step = substr($0, RSTART + 7, RLENGTH - 7) + 0
            match($0, /"step_ms":[0-9.e+-]+/); ms = substr($0, RSTART + 10, RLENGTH - 10) + 0
            if (step > 1 && step % every != 0) {if (writing) beside[++b] = ms; else alone[++a] = ms}
            if (step % every == 0) writing = 1
        }
        /"event":"saved/ {
            writing = 0; ++saves
            if (match($0, /copied in [0-9.]+/)) copied[++c] = substr($0, RSTART + 10, RLENGTH - 10) + 0
            if (match($0, /(written )?in [0-9.]+ s( beside|")/)) {t = substr($0, RSTART, RLENGTH); gsub(/[^0-9.]/, "", t); written[++w] = t + 0}
        }
        END {
            if (a == 0 || saves == 0) {print what ": no steps or no checkpoints to measure"; exit 1}
            step = median(alone, a)
            printf "%s: step %.0f ms (%d), during writing %.0f ms (%d): %+.1f %%; copied in %.2f s, written in %.1f s (%d)\n", what,
                step, a, median(beside, b), b, b == 0 ? 0 : 100 * (median(beside, b) / step - 1), median(copied, c), median(written, w), saves
        }' "$work/run/metrics.jsonl"
}
for ranks in $RANKS; do
    measure "$ranks" true
    measure "$ranks" false
done
