#!/bin/bash
# Transfers beside the computation, in each order of the emulated GPU's streams: work runs as late as its waits allow,
# immediately, or ahead of work that it does not wait for. A missing wait must be found (test_transfers.c).
set -u
cd "$(dirname "$0")/../.." || exit 1
failures=0
for streams in lazy eager overtake; do
    TOKAMAK_CUDA_DEVICE=cudaemu TOKAMAK_EMU_STREAMS=$streams bash tests/gpu/test_cuda_ops.sh "${1:-build}" test_transfers ||
        failures=1
done
exit $failures
