#!/bin/bash
# docs/scaling.md and its picture are what the program prints, and the script that compares them can tell.
. "$(dirname "$0")/lib.sh"
check "the document is what the program prints" dev/scaling.sh check "$BUILD"

plan() { "$BUILD/train_gpt" plan model=gpt2:124M dtype=bf16 seq_len=1024 batch_rows=4 steps=1 "$@"; }
exact_and_predicted() {
    plan world=8 gpu=h100 zero=2 >"$work/out" && grep -q '^rank 7 of 8, zero=2' "$work/out" &&
        grep -q '^predicted on h100' "$work/out" && [ "$(grep -c '^ *[0-9]* .* x[0-9]* ' "$work/out")" -eq 4 ]
}
check "plan world=8: a rank's bytes and four rows" exact_and_predicted
on_cpu() { plan device=cpu world=2 >"$work/out" && grep -q '^predicted on cpu' "$work/out"; }
check "a CPU's prediction where the device is one" on_cpu
check "an unknown machine is refused" expect 2 'gpu: expected one of h100' plan world=8 gpu=h1000
check "too many ranks are refused" expect 2 'world: expected a whole number from 1 to 65536' plan world=65537
check "lanes for a world that has none" expect 1 'deterministic=lanes: expected' plan world=12 gpu=h100 deterministic=lanes
finish
