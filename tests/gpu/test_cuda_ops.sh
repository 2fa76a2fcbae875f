#!/bin/bash
# Every operation of the CUDA backend, and the model over it, on the emulated GPU: the CPU backend's own tests, run again
# with TOKAMAK_TEST_DEVICE=cudaemu. Each case runs in three orders of a block's threads and must give the same bits.
#     tests/gpu/test_cuda_ops.sh [BUILD [PROGRAM...]]      TOKAMAK_CUDA_DEVICE=cuda: on a real GPU instead
set -u
cd "$(dirname "$0")/../.." || exit 1
build=${1:-build}
device=${TOKAMAK_CUDA_DEVICE:-cudaemu}
programs=(test_ops_embedding test_ops_loss test_ops_norm test_ops_optim test_ops_pointwise test_ops_reduce test_ops_rope
    test_attention test_gemm test_model)
[ $# -lt 2 ] || programs=("${@:2}")
if [ ! -e "$build/libllmc_$device.so" ]; then
    echo '[ RUN      ] cuda_ops'
    echo "$build/libllmc_$device.so is not built: the CUDA headers were not found (make config)"
    echo '[  SKIPPED ] cuda_ops'
    exit 0
fi
failures=0
mkdir -p "$build/test-logs"
for program in "${programs[@]}"; do
    log=$build/test-logs/$program.$device.log
    TOKAMAK_TEST_DEVICE=$device timeout -k 10 600 "$build/tests/$program" >"$log" 2>&1
    status=$?
    # One report for all programs, without cmocka's totals.
    awk '/^\[=+\].*test\(s\) run/{exit} /^\[=+\]/{next} {print}' "$log"
    if [ $status -ne 0 ]; then
        failures=$((failures + 1))
        # Report a program that ended without a failed case.
        grep -q '^\[  FAILED  \]' "$log" || printf '[ RUN      ] %s\nstatus %d\n[  FAILED  ] %s\n' $program $status $program
    fi
done
exit $((failures > 0))
