#!/bin/bash
# Transfers beside the computation, in each order that CUDA allows of the emulated GPU's streams: work as late as its
# waits allow, at once, or ahead of what it does not wait for. A missing wait must be found (test_transfers.c).
set -u
cd "$(dirname "$0")/../.." || exit 1
failures=0
for streams in lazy eager overtake; do
    TOKAMAK_CUDA_DEVICE=cudaemu TOKAMAK_EMU_STREAMS=$streams bash tests/gpu/test_cuda_ops.sh "${1:-build}" test_transfers ||
        failures=1
done
exit $failures
