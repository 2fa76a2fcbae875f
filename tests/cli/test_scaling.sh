#!/bin/bash
# test_scaling.sh: docs/scaling.md and its picture match the program's output, and the script that compares them detects a difference.
. "$(dirname "$0")/../support/lib.sh"
check "the document is what the program prints" dev/scaling.sh check "$BUILD"

plan() { "$BUILD/train_gpt" plan model=gpt2:124M dtype=bf16 seq_len=1024 batch_rows=4 steps=1 "$@"; }
exact_and_predicted() {
    plan world=8 gpu=h100 zero=2 >"$work/out" && grep -q '^rank 7 of 8, zero=2' "$work/out" &&
        grep -q '^predicted on h100' "$work/out" && [ "$(grep -c '^ *[0-9]* .* x[0-9]* ' "$work/out")" -eq 4 ]
}
check "plan world=8: a rank's bytes and four rows" exact_and_predicted
on_cpu() { plan device=cpu world=2 >"$work/out" && grep -q '^predicted on cpu' "$work/out"; }
check "a prediction for a CPU device" on_cpu
check "an unknown machine is an error" expect 2 'gpu: expected one of h100' plan world=8 gpu=h1000
check "too many ranks are an error" expect 2 'world: expected a whole number from 1 to 65536' plan world=65537
check "lanes for a world size without lanes" expect 1 'deterministic=lanes: expected' plan world=12 gpu=h100 deterministic=lanes

# Ranks send the predicted bytes, except sums of losses and norms, and the gathers at the end of a run.
sends() { # RANKS key=value...
    local ranks=$1 predicted sent
    shift
    local model=(model=gpt2:d4 vocab=512 seq_len=32 batch_rows=1 batch_tokens=256 "$@")
    predicted=$("$BUILD/train_gpt" plan device=cpu steps=1 world="$ranks" "${model[@]}" | sed -n 's/^a rank sends \([0-9.]*\) MiB.*/\1/p')
    rm -rf "$work/out"
    OMP_NUM_THREADS=1 timeout -k 5 100 "${mpi[@]}" -np "$ranks" "$BUILD/train_gpt" train out_dir="$work/out" device=cpu \
        threads=1 train="$work/data/train_*.bin" val= steps=12 val_every=0 save_every=0 compare_every=0 \
        progress_bar=false "${model[@]}" </dev/null >"$work/log" 2>&1 || { tail -n 3 "$work/log"; return 1; }
    sent=$(sed -n 's/.*hidden; \([0-9.]*\) MiB sent per step and rank.*/\1/p' "$work/log")
    awk -v p="$predicted" -v s="$sent" 'BEGIN { ok = p > 0 && s > 0 && s / p > 0.98 && s / p < 1.02
        if (!ok) print "    predicted " p " MiB, sent " s; exit !ok }'
}
why=$(mpi_missing)
if [ -z "$why" ]; then
    head -c 30000 /dev/urandom | base64 >"$work/text.txt"
    shards - 0
    rm -f "$work/data/tokenizer.json" # otherwise the run ends with a sample, which gathers the weights again
    for zero in 0 1 2 3; do check "2 ranks send what was predicted, zero=$zero" sends 2 zero=$zero; done
    check "3 ranks, bf16 gradients" sends 3 zero=1 reduce_dtype=bf16
    check "2 ranks, lanes" sends 2 zero=0 deterministic=lanes
else
    skip "ranks send what was predicted" "$why"
fi
finish
