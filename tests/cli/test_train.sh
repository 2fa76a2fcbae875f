#!/bin/bash
# test_train.sh: the program as a user runs it: a run that is killed, stopped, out of disk space or resumed ends with the same bits as
# an uninterrupted one. Whole checkpoint files are compared.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh

fault_library fault_io || exit 1
check tokenize shards 12000

# run DIR [key=value...]: with several micro-batches per step.
run() { tiny_run "$1" batch_rows=4 batch_tokens=256 steps=24 val_every=8 val_tokens=2048 save_every=6 "${@:2}"; }
files="model.safetensors optimizer.safetensors config.json tokenizer.json"
same_checkpoint() {
    local file
    for file in $files; do
        cmp "$1/$file" "$2/$file" || return 1
    done
}
# Step losses and held-out losses, without the times.
losses() { grep -o '"step":[0-9]*,.*"loss":[-0-9.e+]*' "$1/metrics.jsonl" | sed 's/"tokens_per_second.*"loss"/"loss"/'; }

straight() { run "$work/$1" "${@:2}" >"$work/$1.log" 2>&1 || { tail -n 5 "$work/$1.log"; return 1; }; }

# NAME OPTIONS...: kill -9 after the metrics show step 15, then resume; equals the straight run.
kill_and_resume() {
    local name=$1 pid
    shift
    straight "$name" "$@" || return 1
    run "$work/$name-killed" "$@" >"$work/killed.log" 2>&1 &
    pid=$!
    for _ in $(seq 2000); do
        grep -q '"step":15\b' "$work/$name-killed/metrics.jsonl" 2>/dev/null && break
        kill -0 $pid 2>/dev/null || break
        sleep 0.005
    done
    pkill -9 -P $pid 2>/dev/null
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    [ ! -d "$work/$name-killed/step_00000024" ] || echo "    note: the run finished before the kill"
    run "$work/$name-killed" "$@" >"$work/killed.log" 2>&1 || { tail -n 5 "$work/killed.log"; return 1; }
    same_checkpoint "$work/$name/step_00000024" "$work/$name-killed/step_00000024" || return 1
    losses "$work/$name" >"$work/a" && losses "$work/$name-killed" >"$work/b"
    [ -s "$work/a" ] && cmp "$work/a" "$work/b"
}
check resume_after_kill_fp32 kill_and_resume fp32
check resume_after_kill_bf16 kill_and_resume bf16 dtype=bf16
check resume_after_kill_no_masters kill_and_resume no-masters dtype=bf16 master_weights=false
check resume_after_kill_muon kill_and_resume muon optimizer=muon dtype=bf16

# Killed at every n-th file operation of the second checkpoint's write; the resumed run must end with the same bits.
kill_in_checkpoint() {
    local at dir=$work/torn operations=0
    for at in 1 2 3 5 8 12 16 20 24; do
        rm -rf "$dir"
        (export FAULT_PATH=step_00000012 FAULT_AT=$at FAULT_KIND=kill
         LD_PRELOAD=$preload run "$dir") >"$work/torn.log" 2>&1
        [ -d "$dir/step_00000024" ] && break # fewer operations than that
        operations=$at
        [ -d "$dir/step_00000006" ] || { echo "    killed at operation $at: the previous checkpoint is gone"; return 1; }
        run "$dir" >"$work/torn.log" 2>&1 || { tail -n 5 "$work/torn.log"; return 1; }
        same_checkpoint "$work/fp32/step_00000024" "$dir/step_00000024" || { echo "    killed at operation $at"; return 1; }
    done
    [ $operations -ge 5 ] || { echo "    killed at $operations operations only"; return 1; }
}
check resume_after_kill_in_checkpoint kill_in_checkpoint

disk_full() {
    local dir=$work/full
    (export FAULT_PATH=step_00000012 FAULT_AT=3 FAULT_KIND=enospc FAULT_FOREVER=1
     LD_PRELOAD=$preload run "$dir" on_save_error="$1") >"$work/full.log" 2>&1
    status=$?
    grep -q "No space left" "$work/full.log" || { tail -n 5 "$work/full.log"; return 1; }
    [ ! -d "$dir/step_00000012" ] && "$train_gpt" ckpt verify "$dir/step_00000006" >/dev/null || return 1
    if [ "$1" = stop ]; then
        [ $status -eq 1 ] && [ ! -d "$dir/step_00000024" ] || return 1
        run "$dir" >/dev/null 2>&1 || return 1
    else
        [ $status -eq 0 ] || return 1
    fi
    same_checkpoint "$work/fp32/step_00000024" "$dir/step_00000024" || return 1
    rm -rf "$dir"
}
check disk_full_goes_on disk_full continue
check disk_full_stops disk_full stop

terminated() {
    local dir=$work/term pid
    rm -rf "$dir"
    # Background jobs of a script ignore SIGINT by default.
    (trap - INT; run "$dir" steps=2000) >"$work/term.log" 2>&1 &
    pid=$!
    for _ in $(seq 2000); do
        grep -q '"step":3\b' "$dir/metrics.jsonl" 2>/dev/null && break
        sleep 0.005
    done
    pkill "-$1" -P $pid 2>/dev/null || kill "-$1" $pid
    wait $pid
    status=$?
    [ $status -eq "$2" ] && grep -q "stopping after step" "$work/term.log" || { echo "    status $status"; tail -n 3 "$work/term.log"; return 1; }
    newest=$(ls -d "$dir"/step_* | tail -n 1)
    "$train_gpt" ckpt verify "$newest" >/dev/null
}
check interrupt_saves_and_exits_0 terminated INT 0
check sigterm_saves_and_asks_to_be_requeued terminated TERM 75
check sigusr1_saves_and_asks_to_be_requeued terminated USR1 75

same_bits() {
    straight "$1" "${@:3}" && for file in model.safetensors optimizer.safetensors; do
        cmp "$work/$2/step_00000024/$file" "$work/$1/step_00000024/$file" || return 1
    done
}
check one_thread_same_bits same_bits one-thread fp32 threads=1
check three_threads_same_bits same_bits three-threads bf16 dtype=bf16 threads=3
check recompute_same_bits same_bits recompute fp32 recompute=block
check recompute_same_bits_bf16 same_bits recompute-bf16 bf16 dtype=bf16 recompute=block

# A shorter run that is then extended equals the straight one if its schedule does.
check constant_schedule straight const schedule=constant
extended() {
    straight longer schedule=constant steps=12 && straight longer schedule=constant && same_checkpoint "$work/const/step_00000024" "$work/longer/step_00000024"
}
check extended_run extended

damaged() {
    cp -r "$work/fp32" "$work/damaged" && rm -rf "$work/damaged/step_00000024"
    printf 'x' | dd of="$work/damaged/step_00000018/model.safetensors" bs=1 seek=5000 conv=notrunc 2>/dev/null
    run "$work/damaged" >"$work/damaged.log" 2>&1 || { tail -n 3 "$work/damaged.log"; return 1; }
    grep -q "step_00000018" "$work/damaged.log" && grep -q "resumed.*step_00000012" "$work/damaged.log" &&
        same_checkpoint "$work/fp32/step_00000024" "$work/damaged/step_00000024"
}
check damaged_checkpoint_is_passed_over damaged

eval_equals_training() {
    local inside outside
    inside=$(grep '"step":24,' "$work/fp32/metrics.jsonl" | grep -o '"bits_per_byte":[0-9.e-]*' | cut -d: -f2 | tail -n 1)
    outside=$("$train_gpt" eval ckpt="$work/fp32/step_00000024" data="$val" seq_len=32 batch_rows=4 tokens=2048 | grep -o '[0-9.]* bits per byte' | cut -d' ' -f1)
    awk -v a="$inside" -v b="$outside" 'BEGIN {exit !(a > 0 && (a - b < 2e-6) && (b - a < 2e-6))}' ||
        { echo "    in training $inside, from the checkpoint $outside"; return 1; }
}
check eval_equals_training eval_equals_training
check sample_is_repeatable bash -c "a=\$('$train_gpt' sample ckpt='$work/fp32/step_00000024' prompt=the tokens=20 seed=3) &&
    [ \"\$a\" = \"\$('$train_gpt' sample ckpt='$work/fp32/step_00000024' prompt=the tokens=20 seed=3)\" ] && [ \${#a} -gt 10 ]"
from_checkpoint() {
    local dir=$work/from
    "$train_gpt" train out_dir="$dir" train="$train" init_from="$work/fp32/step_00000024" seq_len=32 batch_rows=4 batch_tokens=128 \
        steps=1 lr=0 muon_lr=0 val_every=0 save_every=0 >"$work/from.log" 2>&1 || { tail -n 3 "$work/from.log"; return 1; }
    # A step with learning rate 0 does not change the imported weights.
    cmp "$dir/step_00000001/model.safetensors" "$work/fp32/step_00000024/model.safetensors"
}
check init_from_checkpoint from_checkpoint
# Two sources, two phases with different row length, mixture and trainable tensors, doc_mask in one source; killed in the second
# phase.
awk 'BEGIN {for (i = 0; i < 3000; ++i) printf "%d plus %d is %d\n", i % 37, i % 11, i % 37 + i % 11}' >"$work/sums.txt"
"$prep" tokenize --tokenizer bytes --out "$work/sums" --docs line --val-fraction 0.1 "$work/sums.txt" >/dev/null 2>&1
cat >"$work/phases.conf" <<EOF
model = gpt2:d2
channels = 48
heads = 3
max_seq_len = 64
batch_rows = 2
lr = 2e-3
schedule = wsd
val_every = 5
val_tokens = 1k
save_every = 4
keep_last = 0
[source text]
train = $train
val = $val
[source sums]
train = $work/sums/train_*.bin
val = $work/sums/val_*.bin
weight = 0.25
doc_mask = true
[phase main]
steps = 10
seq_len = 32
batch_tokens = 256
[phase late]
steps = 10
seq_len = 64
batch_tokens = 512
weight.sums = 3
trainable = block.*,norm_f.*
EOF
phases() {
    local run="$train_gpt train $work/phases.conf sample_tokens=4"
    $run out_dir="$work/p" >"$work/p.log" 2>&1 || { tail -n 3 "$work/p.log"; return 1; }
    (export FAULT_PATH=step_00000016 FAULT_AT=2 FAULT_KIND=kill
     LD_PRELOAD=$preload $run out_dir="$work/q") >"$work/q.log" 2>&1
    [ -d "$work/q/step_00000012" ] && [ ! -d "$work/q/step_00000016" ] || return 1
    $run out_dir="$work/q" >"$work/q.log" 2>&1 || { tail -n 3 "$work/q.log"; return 1; }
    same_checkpoint "$work/p/step_00000020" "$work/q/step_00000020" || return 1
    for source in text sums mean; do
        grep -q "\"step\":20,.*\"source\":\"$source\"" "$work/p/metrics.jsonl" || { echo "    no held-out loss of $source"; return 1; }
    done
    # Tensors that the second phase does not train keep their values from the first.
    "$train_gpt" sample ckpt="$work/p/step_00000020" prompt="1 plus" tokens=4 >/dev/null || return 1
    grep -q '"phase":"late"' "$work/p/metrics.jsonl"
}
check sources_and_phases phases
resolved() {
    "$train_gpt" train "$work/phases.conf" --print-config >"$work/resolved.conf" &&
        "$train_gpt" train "$work/resolved.conf" --print-config | cmp - "$work/resolved.conf"
}
check resolved_config_reads_back resolved
finish
