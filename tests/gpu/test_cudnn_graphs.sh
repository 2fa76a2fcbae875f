#!/bin/bash
# The attention graphs of training, checked by cuDNN without a GPU (see tests/gpu/cudnn/graphs.cpp). cuDNN must load a
# driver library: the toolkit's stub is copied under the driver's name into a temporary directory.
#     tests/gpu/test_cudnn_graphs.sh BUILD -v     prints what computes each case;  CUDNN_LIB=DIR: another cuDNN
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh

skip() {
    printf '[ RUN      ] cudnn_graphs\n%s\n[  SKIPPED ] cudnn_graphs\n' "$1"
    exit 0
}
eval "$(scripts/find_cuda.sh --make | sed -n "s/^\(CUDA_[A-Z_]*\) := \(.*\)/\1='\2'/p")"
[ -n "$CUDA_INCLUDE" ] || skip 'the CUDA toolkit is absent'
[ -n "$CUDA_HAS_CUDNN" ] || skip 'cudnn.h is absent'
libraries=${CUDNN_LIB:+$CUDNN_LIB }$CUDA_LIB_DIRS
stub= cudnn=
for dir in $libraries; do
    [ -n "$stub" ] || [ ! -e "$dir/stubs/libcuda.so" ] || stub=$dir/stubs/libcuda.so
    [ -n "$cudnn" ] || [ ! -e "$dir/libcudnn.so.9" ] || cudnn=$dir
done
[ -n "$stub" ] || skip "the toolkit's stub libcuda.so is absent"
[ -n "$cudnn" ] || skip 'libcudnn.so.9 is absent'
[ -e "$BUILD/libllmc.a" ] || skip "$BUILD/libllmc.a is absent: make first"

cp "$stub" "$work/libcuda.so.1" || exit 1
includes= sanitize=
for dir in $CUDA_INCLUDE; do includes+=" -isystem $dir"; done
nm "$BUILD/libllmc.a" 2>/dev/null | grep -q __asan_ && sanitize=-fsanitize=address,undefined
# shellcheck disable=SC2086
g++ -std=c++17 -O1 -g -Wall -Wextra -Wshadow -Werror $sanitize -I. $includes -o "$work/graphs" \
    -x c++ llmc/cuda/cudnn_sdpa.cu tests/gpu/cudnn/graphs.cpp -x none "$BUILD/libllmc.a" -ldl -lm -fopenmp || exit 1
LD_LIBRARY_PATH=$work:${libraries// /:}:${LD_LIBRARY_PATH:-} "$work/graphs" "${2:-}"
