#!/bin/bash
# test_errors.sh: bad input gives one clear sentence (what, where, expected, found) and leaves no files behind. Exit status 2 for the
# command line and the run file, 1 for everything else.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh

seq 1 4000 | awk '{print "line " $1 " of a text that is long enough"}' >"$work/text.txt"
check tokenize shards -

bad() { # NAME STATUS TEXT key=value...
    local name=$1 status=$2 text=$3
    shift 3
    check "$name" expect "$status" "$text" "$train_gpt" train out_dir="$work/run" train="$train" model=llama:d1 channels=32 heads=2 \
        kv_heads=2 head_size=16 ffn=32 max_seq_len=32 seq_len=32 batch_rows=2 batch_tokens=64 steps=2 val_every=0 save_every=0 "$@"
}

# ---- the command line and the run file: 2 ----
check no_command expect 2 "train_gpt train" "$train_gpt"
check unknown_command expect 2 'unknown command "trian"' "$train_gpt" trian
check help expect 0 "example" "$train_gpt" train --help
bad unknown_option 2 "learning_rate.*" learning_rate=1
bad trailing_characters 2 "steps.*10x" steps=10x
bad trailing_characters_in_real 2 "lr.*1e-3f" lr=1e-3f
bad out_of_range 2 "beta1.*1.5" beta1=1.5
bad negative_size 2 "layers.*-1" layers=-1
bad zero_size 2 "batch_rows.*0" batch_rows=0
bad unknown_name 2 "adamw.*muon|muon.*adamw" optimizer=sgd
bad heads_do_not_divide 2 "kv_heads|heads.*3|NKV" heads=4 kv_heads=3
printf 'model = gpt2:d1\nlearning = 1\n' >"$work/bad.conf"
check run_file_names_line expect 2 "bad.conf:2.*learning" "$train_gpt" train "$work/bad.conf"
check missing_run_file expect 2 "none.conf" "$train_gpt" train "$work/none.conf"
check sample_without_ckpt expect 2 "ckpt" "$train_gpt" sample
check sample_trailing expect 2 'tokens.*5x' "$train_gpt" sample ckpt=x tokens=5x

# ---- data: 1 ----
bad missing_shard 1 "nowhere.*found no file" train="$work/nowhere*.bin"
head -c 1000 "$train" >"$work/short.bin"
bad truncated_header 1 "short.bin" train="$work/short.bin"
head -c 3000 "$train" >"$work/cut.bin"
bad truncated_shard 1 "cut.bin.*expected.*found" train="$work/cut.bin"
{ cat "$train"; echo more; } >"$work/long.bin"
bad oversized_shard 1 "long.bin.*expected.*found" train="$work/long.bin"
{ printf 'XXXX'; tail -c +5 "$train"; } >"$work/magic.bin"
bad wrong_magic 1 "magic.bin.*20240520" train="$work/magic.bin"
bad vocabulary_below_tokenizer 1 "257 ids.*vocabulary is 50" vocab=50
cp "$train" "$work/alone.bin"
bad token_beyond_vocabulary 1 "alone.bin.*ids below 50, found" train="$work/alone.bin" vocab=50
bad unknown_vocabulary 1 "vocabulary is unknown" train="$work/alone.bin"
bad tokenizer_of_nothing 1 "nothing.json" tokenizer="$work/nothing.json"
bad too_few_tokens 1 "tokens|rows" train="$val" batch_tokens=2000000 steps=1
bad device_cuda 1 "cuda" device=cuda
bad unwritable_directory 1 "/proc/nothing" out_dir=/proc/nothing
check nothing_left_behind test ! -e "$work/run"

# ---- models ----
check no_model expect 1 "nothing_here" "$train_gpt" sample ckpt="$work/nothing_here"
golden=tests/golden/llama_tiny
cp -r "$golden" "$work/m"
model() { # NAME TEXT: the model directory $work/m is refused
    check "$1" expect 1 "$2" "$train_gpt" sample ckpt="$work/m" ids=1 tokens=1
    rm -rf "$work/m"
    cp -r "$golden" "$work/m"
}
head -c 2000 "$golden/model.safetensors" >"$work/m/model.safetensors"
model truncated_safetensors "model.safetensors"
sed -i 's/"vocab_size": 67/"vocab_size": 68/' "$work/m/config.json"
model wrong_shape "67"
sed -i 's/"silu"/"gelu"/' "$work/m/config.json"
model unknown_activation "hidden_act.*gelu"
echo '{' >"$work/m/config.json"
model broken_json "config.json"
rm "$work/m/model.safetensors"
model missing_weights "safetensors"
check sample_golden expect 0 "^1 [0-9]" "$train_gpt" sample ckpt="$golden" ids=1 tokens=3 temperature=0

# ---- runs ----
ok_run() {
    "$train_gpt" train out_dir="$1" train="$train" model=llama:d1 channels=32 heads=2 kv_heads=2 head_size=16 ffn=32 max_seq_len=32 \
        seq_len=32 batch_rows=2 batch_tokens=64 steps=2 val_every=0 save_every=1 sample_tokens=4 "${@:2}" >"$work/log" 2>&1
}
check good_run ok_run "$work/run"
bad resume_never 1 "resume=never" resume=never
bad another_architecture 1 "architecture" channels=64 head_size=32
bad another_optimizer 1 "optimizer" optimizer=muon
printf '{"step": -1}' >"$work/run/step_00000002/state.json"
check damaged_is_passed_over ok_run "$work/run"
check says_so grep -q "step_00000002" "$work/log"
check verify_names_the_file expect 1 "nothing" "$train_gpt" ckpt verify "$work/nothing"
check not_a_number bash -c "'$train_gpt' train out_dir='$work/nan' train='$train' model=llama:d1 channels=32 heads=2 kv_heads=2 \
    head_size=16 ffn=32 max_seq_len=32 seq_len=32 batch_rows=2 batch_tokens=64 steps=400 val_every=0 save_every=0 lr=90 grad_clip=0 warmup_steps=0 \
    schedule=constant max_bad_steps=3 eps=1e-30 weight_decay=100 >'$work/nan.log' 2>&1; [ \$? -eq 1 ] && grep -q 'not finite' '$work/nan.log'"
finish
