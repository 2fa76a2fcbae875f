#!/bin/sh
# quickstart.sh: from a fresh Debian machine to a trained language model: installs missing packages, builds, gets text, trains
# a tokenizer, writes shards, trains for at most 90 seconds, evaluates and samples. Also `make quickstart`.
#     scripts/quickstart.sh [key=value ...]      TEXT=file: your own text instead of the King James Bible
#                                                OUT=dir: directory of the run (default runs/quickstart)
set -eu
cd "$(dirname "$0")/.."

case "${1:-}" in -h | --help)
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    echo
    echo "example"
    echo "  TEXT=~/notes.txt OUT=runs/notes scripts/quickstart.sh train_seconds=300"
    exit 0 ;;
esac

OUT=${OUT:-runs/quickstart}
DATA=data/work/quickstart
TEXT=${TEXT:-}
BUILD=${BUILD:-build}
VOCAB=${VOCAB:-2048}

say() { printf '\n== %s\n' "$*"; }

scripts/setup.sh
say "building"
${MAKE:-make} --no-print-directory -j"$(nproc)" all

mkdir -p "$DATA"
if [ -z "$TEXT" ]; then
    TEXT=$DATA/kjv.txt
    say "text: the King James Bible, from Debian's bible-kjv"
    bible -f "Gen1:1-Rev22:21" >"$TEXT"
elif [ ! -r "$TEXT" ]; then
    echo "quickstart.sh: TEXT=$TEXT: expected a readable file" >&2
    exit 1
fi

# The last tenth is held out: neither the tokenizer nor the model is trained on it.
bytes=$(wc -c <"$TEXT")
seen=$((bytes / 10 * 9))
echo "$TEXT: $bytes bytes, the last $((bytes - seen)) held out"

say "tokenizer: byte-level BPE, $VOCAB tokens"
head -c "$seen" "$TEXT" | "$BUILD/prep" train-tokenizer --vocab "$VOCAB" --out "$DATA/tokenizer" -

say "shards"
"$BUILD/prep" tokenize --tokenizer "$DATA/tokenizer" --out "$DATA/shards" --val-fraction 0.1 --overwrite "$TEXT"

# bf16 is faster if the CPU has bf16 instructions.
DTYPE=fp32
if grep -q avx512_bf16 /proc/cpuinfo; then DTYPE=bf16; fi

say "training for at most 90 seconds"
rm -rf "$OUT"
"$BUILD/train_gpt" train scripts/quickstart.conf out_dir="$OUT" dtype="$DTYPE" \
    train="$DATA/shards/train_*.bin" val="$DATA/shards/val_*.bin" "$@"

say "evaluating the checkpoint on the whole held-out tenth"
CKPT=$(ls -d "$OUT"/step_* | tail -n 1)
"$BUILD/train_gpt" eval ckpt="$CKPT" data="$DATA/shards/val_*.bin" seq_len=128

say "samples"
"$BUILD/train_gpt" sample ckpt="$CKPT" prompt="And the LORD said unto" tokens=120 samples=2
