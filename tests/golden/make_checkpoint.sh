#!/bin/bash
# make_checkpoint.sh: writes tests/golden/checkpoint_vN: tiny runs with everything that resuming them needs, and what a resumed one must
# end with. Run once, by the build whose files are to stay readable; what it wrote is never made again (tests/golden/README.md).
#     tests/golden/make_checkpoint.sh BUILD DIR
# DIR/NAME/ holds run.conf, the shards and tokenizer (data/), the run as it was after step 4 (run/), and of the same run at step 8 its
# hash chain and metrics (expected_hashes.jsonl, expected_metrics) and the hash of its weights (expected_weights).
set -eu
if [ $# -ne 2 ] || [ "$1" = --help ]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    echo "example: tests/golden/make_checkpoint.sh build tests/golden/checkpoint_v2"
    exit 2
fi
build=$(realpath "$1")
mkdir "$2"
cd "$2"
common="train = data/train_*.bin
val = data/val_*.bin
out_dir = run
device = cpu
cpu_isa = generic
threads = 1
layers = 2
channels = 8
max_seq_len = 32
seq_len = 16
batch_rows = 2
batch_tokens = 64
schedule = linear
warmup_steps = 2
lr = 3e-3
steps = 8
val_every = 4
val_tokens = 256
save_every = 4
keep_last = 0
hash_every = 1
sample_tokens = 4
progress_bar = false"

words() { # COUNT
    awk -v count="$1" 'BEGIN {srand(7); split("the of and to in that he shall unto for his lord king day son house people land came said", w, " ")
        for (i = 0; i < count; ++i) printf "%s%s", w[1 + int(rand() * rand() * 20)], i % 11 == 10 ? ".\n" : " "}'
}
# NAME: makes the run in NAME/, whose run.conf and data are there.
make() {
    cd "$1"
    "$build/train_gpt" train run.conf >/dev/null 2>&1
    cp run/hashes.jsonl expected_hashes.jsonl
    grep -aE '"(loss|val_loss)":' run/metrics.jsonl | grep -oE '"step":[0-9]+|"(loss|val_loss|grad_norm)":[-0-9.e+]+' >expected_metrics
    sed -n '/"model.safetensors"/,/}/s/.*"xxh3_128":[^"]*"\([0-9a-f]*\)".*/\1/p' run/step_00000008/MANIFEST.json >expected_weights
    # As it was after step 4: later lines are cut off when it is resumed.
    rm -r run/step_00000008 run/events.* run/loss.svg run/.lock
    cd ..
}

mkdir gpt2_fp32_adamw qwen3_bf16_muon
words 600 >text.txt
"$build/prep" tokenize --tokenizer bytes --out gpt2_fp32_adamw/data --val-fraction 0.1 text.txt >/dev/null 2>&1
{
    echo "model = gpt2:d2"
    echo "heads = 2"
    echo "ffn = 32"
    echo "$common"
} >gpt2_fp32_adamw/run.conf
make gpt2_fp32_adamw

# Ids below 64, in shards of version 2 that name their vocabulary, without a tokenizer.
mkdir qwen3_bf16_muon/data
shard() { # COUNT FIRST: ids of a repeating tune with noise
    awk -v count="$1" -v at="$2" '
        function put(value, bytes) {for (; bytes > 0; --bytes) {printf "\\x%02x", value % 256; value = int(value / 256)}}
        BEGIN {put(20240520, 4); put(2, 4); put(count, 4); put(0, 4); put(2, 4); put(64, 4); put(63, 4); for (i = 7; i < 256; ++i) put(0, 4)
            srand(at); for (i = 0; i < count; ++i) put(i % 50 == 0 ? 63 : rand() < 0.2 ? int(rand() * 63) : (at + i * i) % 61, 2)}'
}
printf '%b' "$(shard 1500 3)" >qwen3_bf16_muon/data/train_000000.bin
printf '%b' "$(shard 400 11)" >qwen3_bf16_muon/data/val_000000.bin
{
    echo "model = qwen3:0.6B"
    echo "heads = 2"
    echo "kv_heads = 1"
    echo "head_size = 8"
    echo "ffn = 32"
    echo "vocab = 64"
    echo "optimizer = muon"
    echo "dtype = bf16"
    echo "deterministic = lanes"
    echo "$common"
} >qwen3_bf16_muon/run.conf
make qwen3_bf16_muon
rm text.txt
