#!/bin/bash
# test_gpu_check.sh: scripts/gpu_check.sh where there is no GPU: every stage at tiny shapes on the CPU and the emulated GPU, and
# a report whatever happens: a broken build, no driver, no time, an interruption.
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/lib.sh
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

check help expect 0 'Exit code' scripts/gpu_check.sh --help
check dry_run expect 0 'kernels: Kernels, up to' $gpu_check --dry-run --skip build
check unknown_option expect 2 "unknown option '--bugdet'" $gpu_check --bugdet 5
check bad_device expect 2 'expected cuda, cudaemu or cpu' $gpu_check --device tpu
check bad_budget expect 2 'expected seconds' $gpu_check --budget soon
check bad_llmc expect 2 'train_gpt2.cu' $gpu_check --llmc "$work"
check bad_text expect 2 'cannot be read' $gpu_check --text "$work/absent"

printf 'a line of text, and then another one\n%.0s' {1..400} >"$work/text"
quick() { expect 0 'report: ' $gpu_check --quick --device cpu --skip build --text "$work/text" --budget 300 --out "$report"; }
check every_stage_on_the_cpu quick
check report_names_commit_and_host says '^\| commit \| [0-9a-f]+' '^\| host \| ' '^\| date \| 20' 'Not a GPU'
check report_has_results says 'ok: test_ops_norm' 'fp32, as on the CPU: 8 steps' 'resumed at step 4 of 8: the same losses' \
    'recompute=block: the same' '^\| tiny-llama \| bf16 \| [0-9]+' 'kernels measured, right before and after' '^Nothing failed'
check report_says_what_is_left_out says '- build: asked for' 'PyTorch: not wanted' 'llm\.c: no tree was named' 'compute-sanitizer looks at'
check kernel_times_beside_it grep -q '"op":"norm forward"' "$work/report.ops.json"

if [ -e "$BUILD/libllmc_cudaemu.so" ]; then
    emulated() { expect 0 'report: ' $gpu_check --quick --device cudaemu --skip build,train --budget 300 --out "$report"; }
    check stages_on_the_emulated_gpu emulated
    check emulated_report says 'ok: test_ops_norm' '^\| tiny-gpt2 \| bf16 \| [0-9]+' 'kernels measured, right'
else
    echo '[ RUN      ] stages_on_the_emulated_gpu'
    echo "$BUILD/libllmc_cudaemu.so is not built"
    echo '[  SKIPPED ] stages_on_the_emulated_gpu'
fi

broken() { expect 1 'FAILED: .*train_gpt is not there' $gpu_check --quick --device cpu --skip build --build "$work/nowhere" --out "$report"; }
check broken_build broken
check broken_build_is_reported says '\*\*failed\*\*' '- train: .*/train_gpt is not there'
no_time() { expect 0 'report: ' $gpu_check --quick --device cpu --budget 1 --out "$report"; }
check no_time no_time
check no_time_is_reported says 'no time left of --budget 1'
interrupted() {
    # A process of its own group: what a terminal's Ctrl-C reaches is the script and what it runs.
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
