#!/bin/bash
# test_gpu_check.sh: scripts/gpu_check.sh without a GPU: every stage at tiny shapes on the CPU and the emulated GPU, and a
# report in every case: a broken build, no driver, no time, an interruption.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh
# Other tests run the same programs under sanitizers.
if grep -q fsanitize=address "$BUILD/flags" 2>/dev/null; then
    skip_all gpu_check 'the ordinary build tests the script'
fi
gpu_check="scripts/gpu_check.sh --build $BUILD --python none"
report=$work/report.md
says() { # TEXT...: lines of the report
    local line
    for line; do
        if grep -qE -- "$line" "$report"; then continue; fi
        echo "    expected \"$line\" in the report:"
        head -n 40 "$report" | sed 's/^/    /'
        return 1
    done
}

check help expect 0 'Exit status' scripts/gpu_check.sh --help
check dry_run expect 0 'kernels: Kernels, up to' $gpu_check --dry-run --skip build
check unknown_option expect 2 "unknown option '--bugdet'" $gpu_check --bugdet 5
check bad_device expect 2 'expected cuda, cudaemu or cpu' $gpu_check --device tpu
check bad_budget expect 2 'expected seconds' $gpu_check --budget soon
check bad_llmc expect 2 'train_gpt2.cu' $gpu_check --llmc "$work"
check bad_text expect 2 'expected a readable file' $gpu_check --text "$work/absent"

printf 'a line of text, and then another one\n%.0s' {1..400} >"$work/text"
quick() { expect 0 'report: ' $gpu_check --quick --device cpu --skip build --text "$work/text" --budget 300 --out "$report"; }
check every_stage_on_the_cpu quick
check report_names_commit_and_host says '^\| commit \| [0-9a-f]+' '^\| host \| ' '^\| date \| 20' 'Not measured on a GPU'
check report_has_results says 'ok: test_ops_norm' 'fp32, as on the CPU: 8 steps' 'resumed at step 4 of 8: the same losses' \
    'recompute=block: the same' '^\| tiny-llama \| bf16 \| [0-9]+' 'kernels measured, correct before and after' '^Nothing failed'
check report_says_what_is_left_out says '- build: requested' 'PyTorch: not requested' 'llm\.c: no source tree given' 'compute-sanitizer needs a real GPU' 'ranks: NCCL needs GPUs'
check kernel_times_beside_it grep -q '"op":"norm forward"' "$work/report.ops.json"

# A substitute for llm.c's trainer: checks its arguments and prints llm.c's output, with the losses shifted by \$1.
fake_llmc() {
    mkdir -p "$work/llmc"
    : >"$work/llmc/train_gpt2.cu"
    cat >"$work/llmc/train_gpt2cu" <<'STOP'
#!/bin/bash
while [ $# -gt 1 ]; do
    case $1 in -e) model=$2 ;; -i) tokens=$2 ;; -b) rows=$2 ;; -t) length=$2 ;; -d) batch=$2 ;; esac
    shift 2
done
magic() { od -An -td4 -N8 "$1" | tr -s ' '; }
[ "$(magic "$model")" = ' 20240326 5' ] && [ "$(magic "$tokens")" = ' 20240520 1' ] && [ "$rows $length $batch" = '2 32 128' ] || exit 1
echo 'val loss 9.0'
awk -v off=OFF 'BEGIN {for (i = 1; i <= 8; ++i)
    printf "step %4d/8 | loss %7.6f (+nanz)| norm 0.3000 (+nanz)| lr 1.00e-04 | %.2f ms | 40.0%% bf16 MFU | 99 tok/s\n", i,
        4.87565 - 0.008 * (i - 1) + off, i < 3 ? 500 : 128}'
STOP
    sed -i "s/OFF/$1/" "$work/llmc/train_gpt2cu"
    chmod +x "$work/llmc/train_gpt2cu"
}
beside_llmc() { # STATUS OFF
    fake_llmc "$2" && expect "$1" 'report: ' $gpu_check --quick --device cpu --skip build,ops,train,kernels --llmc "$work/llmc" --out "$report"
}
check llmc_beside_us beside_llmc 0 0.001
check llmc_is_in_the_table says 'the first steps are those of llm\.c, to 0\.001' '\| 1000 \([0-9.]+x\) \|$'
check llmc_with_other_losses beside_llmc 1 0.1
check llmc_with_other_losses_is_reported says 'FAILED.*the first steps are those of llm\.c, to 0\.1'

# The goals, from plausible H100 figures.
goals() (
    set -e
    device=cuda gpu='NVIDIA H100 80GB HBM3' section=$work/section FP8_SHAPES='gpt2-1.5B qwen2-1.5B'
    eval "$(sed -n '/^say()/p; /^goal()/p; /^format()/p; /^at_least()/p' scripts/gpu_check.sh)"
    . scripts/gpu_report.sh
    rm -f "$work/goals"
    printf '%s\t%s\t%s\t%s\t%s\t%s\t1, 2\n' gpt2-124M bf16 tokamak 540000 0.5612 2e10 gpt2-124M bf16 PyTorch 500000 '' 3e10 \
        gpt2-1.5B bf16 tokamak 30000 0.5912 6e10 gpt2-1.5B bf16 llm.c 31000 '' '' qwen2-1.5B bf16 tokamak 60000 0.59 6e10 \
        qwen2-1.5B fp8 tokamak 78000 0.6 6e10 >"$work/throughput"
    throughput_goals
    printf '%s\n' '{"cold":{"median":1e-4},"roofline_share":0.91,"bound":"memory"}' \
        '{"cold":{"median":1e-4},"roofline_share":0.8,"bound":"memory"}' '{"cold":{"median":1e-6},"roofline_share":0.1,"bound":"memory"}' \
        '{"cold":{"median":1e-4},"roofline_share":0.1,"bound":"arithmetic"}' >"$work/ops"
    kernel_goals "$work/ops"
    cat >"$work/expected" <<'STOP'
| 124M, bf16: 55 % of dense peak | 56.1 % | yes |
| 1.5B, bf16: 62 % of dense peak | 59.1 % | **no** |
| qwen2-1.5B: fp8 at 1.25x bf16 | 1.30x | yes |
| qwen2-1.5B, bf16: above llmq's published 58700 tokens/s | 60000 | yes |
| qwen2-1.5B, fp8: above llmq's published 72800 tokens/s | 78000 | yes |
| gpt2-124M, bf16: faster than PyTorch (500000 tokens/s) | 540000 | yes |
| gpt2-1.5B, bf16: faster than llm.c (31000 tokens/s) | 30000 | **no** |
| memory-bound kernels at 90 % of the measured copy bandwidth (of those above 20 us) | 1 of 2 | **no** |
STOP
    diff "$work/expected" "$work/goals"
)
check goals goals

if [ -e "$BUILD/libllmc_cudaemu.so" ]; then
    emulated() { expect 0 'report: ' $gpu_check --quick --device cudaemu --skip build,train --budget 300 --out "$report"; }
    check stages_on_the_emulated_gpu emulated
    check emulated_report says 'ok: test_ops_norm' '^\| tiny-gpt2 \| bf16 \| [0-9]+' 'kernels measured, correct'
    if [ -e "$BUILD/libnccl_emu.so" ]; then
        check one_emulated_nccl_rank says '^\| reduce_scatter \+= \| 0\.2 \| [0-9.]+ \|' \
            'ms without ranks, [0-9.]+ ms as one NCCL rank'
    else check no_nccl_is_left_out says 'ranks: NCCL: .*cannot be opened'; fi
else
    skip stages_on_the_emulated_gpu "$BUILD/libllmc_cudaemu.so is not built"
fi

broken() { expect 1 'FAILED: .*train_gpt is not there' $gpu_check --quick --device cpu --skip build --build "$work/nowhere" --out "$report"; }
check broken_build broken
check broken_build_is_reported says '\*\*failed\*\*' '- train: .*/train_gpt is not there'
no_time() { expect 0 'report: ' $gpu_check --quick --device cpu --budget 1 --out "$report"; }
check no_time no_time
check no_time_is_reported says 'no time left of --budget 1'
interrupted() {
    # A process group of its own: like Ctrl-C in a terminal, the signal reaches the script and its children.
    setsid $gpu_check --device cpu --skip build,ops --text "$work/text" --budget 100 --out "$report" >"$work/log" 2>&1 &
    local pid=$!
    rm -f "$report"
    for _ in {1..100}; do
        if grep -q '== train' "$work/log" 2>/dev/null; then break; fi
        sleep 0.1
    done
    kill -TERM -- "-$pid"
    wait $pid
    [ $? -eq 1 ] && says 'Ended early.* by interruption'
}
check interrupted_run_still_reports interrupted
if ! ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1'; then
    no_driver() { expect 1 'FAILED' $gpu_check --quick --skip build,ops --text "$work/text" --budget 60 --out "$report"; }
    check no_driver no_driver
    check no_driver_is_reported says 'no NVIDIA driver|libllmc_cuda.so is not there'
    if ! command -v nvidia-smi >/dev/null; then check no_nvidia_smi says 'nvidia-smi is not installed'; fi
fi
finish
