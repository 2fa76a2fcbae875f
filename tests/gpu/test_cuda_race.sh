#!/bin/bash
# Every operation of the CUDA backend on the emulated GPU's race build: two threads that access the same memory without a
# barrier in between fail the test. The tests are the CPU backend's own, in one order of threads: the order does not
# affect what is found.
set -u
cd "$(dirname "$0")/../.." || exit 1
build=${1:-build}
if [ ! -e "$build/emu_race/libllmc_cudaemu.so" ]; then
    # With sanitizers there is no race build; the ordinary build runs this test.
    grep -q fsanitize=address "$build/emu/flags" 2>/dev/null && why='the ordinary build tests it'
    why=${why:-the CUDA headers or clang++ were not found (make config)}
    printf '[ RUN      ] cuda_race\n%s is not built: %s\n[  SKIPPED ] cuda_race\n' \
        "$build/emu_race/libllmc_cudaemu.so" "$why"
    exit 0
fi
export TOKAMAK_PLUGIN_DIR=$build/emu_race TOKAMAK_EMU_ORDER=reverse
TOKAMAK_CUDA_DEVICE=cudaemu exec bash tests/gpu/test_cuda_ops.sh "$build" \
    test_ops_{embedding,loss,norm,optim,pointwise,reduce,rope} test_attention test_gemm
