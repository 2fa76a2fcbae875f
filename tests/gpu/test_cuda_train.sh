#!/bin/bash
# test_cuda_train.sh: the program on the emulated GPU (TOKAMAK_CUDA_DEVICE=cuda: on a real one): the same training as on
# the CPU within stated tolerances; recomputation, captured graphs and resume, bit for bit; errors of drivers, memory and
# devices end with one clear sentence and exit code 1.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh
export XDG_CACHE_HOME=$work/cache  # measured choices of matmul algorithms
device=${TOKAMAK_CUDA_DEVICE:-cudaemu}
[ -e "$BUILD/libllmc_$device.so" ] ||
    skip_all cuda_train "$BUILD/libllmc_$device.so is not built: the CUDA headers were not found (make config)"
check tokenize shards 9000

gpt2="model=gpt2:d2 channels=32 heads=2 head_size=16 ffn=64"
llama="model=llama:d2 channels=32 heads=4 kv_heads=2 head_size=16 ffn=48"
# run DIR DEVICE [key=value...]: ten steps of a tiny model, two micro-batches a step.
run() {
    local dir=$1 device=$2
    shift 2
    "$train_gpt" train out_dir="$dir" device="$device" train="$train" val="$val" max_seq_len=32 seq_len=32 batch_rows=2 \
        batch_tokens=128 steps=10 warmup_steps=2 lr=3e-3 val_every=0 val_tokens=512 save_every=5 keep_last=0 \
        sample_tokens=1 progress_bar=false "$@"
}
straight() {
    local name=$1
    shift
    run "$work/$name" "$@" >"$work/$name.log" 2>&1 || { tail -n 5 "$work/$name.log" | sed 's/^/    /'; return 1; }
}
curve() { sed -n 's/.*"step":\([0-9]*\),.*"loss":\([-0-9.e+]*\),.*"grad_norm":\([-0-9.e+]*\).*/\1 \2 \3/p' "$1/metrics.jsonl"; }
# near A B TOLERANCE: the largest relative difference of losses and gradient norms, step by step.
near() {
    paste -d' ' <(curve "$work/$1") <(curve "$work/$2") | awk -v most="$3" '
        function off(a, b) { return b == 0 ? 1 : (a > b ? a - b : b - a) / (b > 0 ? b : -b) }
        NF != 6 || $1 != $4 {bad = 1}
        {loss = off($2, $5) > loss ? off($2, $5) : loss; norm = off($3, $6) > norm ? off($3, $6) : norm; ++n}
        END {printf "    %d steps, largest difference: loss %.2g, gradient norm %.2g (%g and ten times that allowed)\n", n, loss, norm, most
            exit !(n == 10 && !bad && loss <= most && norm <= 10 * most)}'
}
same_bits() { # A B: weights, moments and losses
    local file
    for file in model.safetensors optimizer.safetensors; do
        cmp "$work/$1/step_00000010/$file" "$work/$2/step_00000010/$file" || return 1
    done
    cmp <(curve "$work/$1") <(curve "$work/$2")
}

# Differences come from the order of sums (fp32) or from the places of bf16 rounding, and grow over ten steps.
cpu_and_gpu() { straight "$1-cpu" cpu "${@:3}" && straight "$1-gpu" "$device" "${@:3}" && near "$1-gpu" "$1-cpu" "$2"; }
check gpt2_fp32_as_on_the_cpu cpu_and_gpu gpt2 2e-6 $gpt2
check llama_fp32_as_on_the_cpu cpu_and_gpu llama 2e-6 $llama
check gpt2_bf16_as_on_the_cpu cpu_and_gpu gpt2-bf16 1e-3 $gpt2 dtype=bf16
check llama_bf16_as_on_the_cpu cpu_and_gpu llama-bf16 1e-3 $llama dtype=bf16
check muon_bf16_as_on_the_cpu cpu_and_gpu muon 1e-3 $llama dtype=bf16 optimizer=muon
check no_masters_as_on_the_cpu cpu_and_gpu no-masters 1e-3 $llama dtype=bf16 master_weights=false optimizer=muon
check qwen3_fp32_as_on_the_cpu cpu_and_gpu qwen3 2e-6 $llama qk_norm=true logit_softcap=15 window=20

# Inputs of products have 4 significant bits and gradients 3; measured: 2e-4 in the loss, 1.5e-3 in the norm.
fp8_near_bf16() { straight fp8 "$device" $llama dtype=bf16 fp8=true && near fp8 llama-bf16-gpu 2e-3; }
variant() { straight "$1" "$device" "${@:3}" && same_bits "$1" "$2"; } # NAME LIKE OPTIONS...
check graphs_off_same_bits variant no-graphs llama-bf16-gpu $llama dtype=bf16 graphs=false
check recompute_norm_act_same_bits variant norm-act llama-gpu $llama recompute=norm_act
check recompute_block_same_bits variant block llama-bf16-gpu $llama dtype=bf16 recompute=block

if [ "$device" = cudaemu ]; then
    # Work runs as late as its waits allow, immediately, or ahead of work that it does not wait for: a missing wait would
    # change the result.
    streams() { TOKAMAK_EMU_STREAMS=$1 variant "streams-$1" llama-bf16-gpu $llama dtype=bf16; }
    check eager_streams_same_bits streams eager
    check overtaking_streams_same_bits streams overtake
    # Each step's checkpoint is downloaded while the next step is computed. It must hold the bits of its own step: those
    # of a synchronous checkpoint.
    same_checkpoints() { # A B
        local step file
        for step in 01 02 03 04 05 06 07 08 09 10; do
            for file in model.safetensors optimizer.safetensors; do
                cmp "$work/$1/step_000000$step/$file" "$work/$2/step_000000$step/$file" || return 1
            done
        done
    }
    saves() { # STREAMS
        TOKAMAK_EMU_STREAMS=$1 variant "saves-$1" llama-bf16-gpu $llama dtype=bf16 save_every=1 && same_checkpoints "saves-$1" waits
    }
    waits() { variant waits llama-bf16-gpu $llama dtype=bf16 save_every=1 async_save=false; }
    check checkpoints_in_training_pauses waits
    check lazy_checkpoints_same_bits saves lazy
    check eager_checkpoints_same_bits saves eager
    check overtaking_checkpoints_same_bits saves overtake
fi

if [ "$device" = cudaemu ] || nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | awk '{exit !($1 >= 8.9)}'; then
    check fp8_near_bf16 fp8_near_bf16
    gpt2_fp8() { straight gpt2-fp8 "$device" $gpt2 dtype=bf16 fp8=true && near gpt2-fp8 gpt2-bf16-gpu 2e-3; }
    check gpt2_fp8_near_bf16 gpt2_fp8
    check fp8_graphs_off_same_bits variant fp8-no-graphs fp8 $llama dtype=bf16 fp8=true graphs=false
    check fp8_recompute_same_bits variant fp8-block fp8 $llama dtype=bf16 fp8=true recompute=block
fi

resumed() {
    straight stopped "$device" $llama dtype=bf16 && rm -rf "$work/stopped/step_00000010" &&
        straight stopped "$device" $llama dtype=bf16 && grep -q 'resumed' "$work/stopped.log" && same_bits stopped llama-bf16-gpu
}
check resume_same_bits resumed
# Resumes from checkpoints that were copied while the next step was computed.
resumed_beside() {
    local step
    for step in 03 04 05 06 07 08 09 10; do rm -rf "$work/saves-overtake/step_000000$step"; done
    TOKAMAK_EMU_STREAMS=overtake straight saves-overtake "$device" $llama dtype=bf16 save_every=1 &&
        grep -q 'resumed' "$work/saves-overtake.log" && same_bits saves-overtake llama-bf16-gpu && same_checkpoints saves-overtake waits
}
[ "$device" != cudaemu ] || check resume_of_copied_checkpoint_same_bits resumed_beside

says_which_attention() { grep -q '^attention: own kernels' "$work/llama-gpu.log"; }
check attention_is_named says_which_attention

evaluates() {
    local checkpoint=$work/llama-gpu/step_00000010 one two
    one=$("$train_gpt" eval ckpt="$checkpoint" data="$val" seq_len=32 batch_rows=2 tokens=512 device="$device" 2>&1) || { echo "$one"; return 1; }
    two=$("$train_gpt" eval ckpt="$checkpoint" data="$val" seq_len=32 batch_rows=2 tokens=512 device=cpu 2>&1) || return 1
    # The same loss in all printed digits except the last.
    paste -d' ' <(grep -o 'loss [0-9.]*' <<<"$one") <(grep -o 'loss [0-9.]*' <<<"$two") |
        awk '{d = $2 - $4; if (d < 0) d = -d; ++n; bad += d > 2e-4} END {exit n == 0 || bad > 0}'
}
check eval_as_on_the_cpu evaluates
samples() {
    local checkpoint=$work/llama-gpu/step_00000010
    [ "$("$train_gpt" sample ckpt="$checkpoint" prompt=the tokens=12 top_k=1 device="$device" 2>/dev/null)" = \
        "$("$train_gpt" sample ckpt="$checkpoint" prompt=the tokens=12 top_k=1 device=cpu 2>/dev/null)" ]
}
check sample_as_on_the_cpu samples

# ---- errors ----
fails() { # TEXT ENV... -- OPTIONS...: exit code 1 and one sentence
    local text=$1 settings=()
    shift
    while [ "$1" != -- ]; do settings+=("$1"); shift; done
    shift
    rm -rf "$work/bad"
    expect 1 "$text" env "${settings[@]}" "$train_gpt" train out_dir="$work/bad" train="$train" $llama max_seq_len=32 \
        seq_len=32 batch_rows=2 steps=10 save_every=3 val_every=0 sample_tokens=1 progress_bar=false "$@"
}
if ! ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1'; then
    check no_driver fails 'no NVIDIA driver.*libcuda\.so\.1.*device=cpu' A=1 -- device=cuda
    auto() { expect 0 'device=auto: using the CPU: there is no NVIDIA driver' run "$work/auto" auto $llama; }
    check auto_says_why_it_took_the_cpu auto
fi
check fp8_needs_a_gpu fails 'fp8=true: expected a GPU with 8-bit floats .*, found ' A=1 -- device=cpu dtype=bf16 fp8=true
[ "$device" != cudaemu ] ||
    check fp8_old_gpu fails 'fp8=true: expected a GPU with 8-bit floats .*compute capability 8\.0' TOKAMAK_EMU_CC=80 -- device=cudaemu dtype=bf16 fp8=true
check fp8_widths fails 'fp8=true: expected ffn to be a multiple of 16, found 40' A=1 -- device="$device" dtype=bf16 fp8=true ffn=40
check no_plugin fails 'the plug-in .*nowhere/libllmc_cudaemu\.so is not there: run .make emu' TOKAMAK_PLUGIN_DIR="$work/nowhere" -- device=cudaemu
mkdir "$work/broken" && echo 'not a library' >"$work/broken/libllmc_cudaemu.so"
check broken_plugin fails 'cannot open .*libllmc_cudaemu\.so' TOKAMAK_PLUGIN_DIR="$work/broken" -- device=cudaemu
if [ "$device" = cudaemu ]; then
    check old_driver fails 'driver is too old: it supports CUDA 11\.8, this build needs CUDA [0-9.]+ .*update the driver' \
        TOKAMAK_EMU_DRIVER=11080 -- device=cudaemu
    check no_gpu fails 'there is no GPU' TOKAMAK_EMU_DEVICES=0 -- device=cudaemu
    check old_gpu fails 'compute capability 7\.5; 8\.0 .Ampere. or later' TOKAMAK_EMU_CC=75 -- device=cudaemu
    check out_of_memory fails 'needs [0-9.]+ MiB of memory and [0-9.]+ MiB are free.*what would fit: .*MiB\)' \
        TOKAMAK_EMU_MEMORY_MIB=100 -- device=cudaemu batch_rows=512
    # (Without a cache directory algorithms are not timed, so that the 900th piece of work belongs to a step.)
    # The device fails during the run: the message has the library's text and the last complete checkpoint, which is valid.
    dies() {
        fails "step [0-9]+: the GPU failed: .*$2.*last complete checkpoint is $work/bad/step_0000000[369]" \
            TOKAMAK_EMU_FAIL="$1@900" XDG_CACHE_HOME= HOME= -- device=cudaemu || return 1
        "$train_gpt" ckpt verify "$work"/bad/step_00000003 >/dev/null
    }
    check ecc_error_in_mid_run dies cudaErrorECCUncorrectable 'cudaErrorECCUncorrectable'
    check launch_error_in_mid_run dies cudaErrorLaunchFailure 'cudaErrorLaunchFailure'
fi
finish
