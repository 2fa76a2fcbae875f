#!/bin/bash
# Attention by cuDNN on the emulated GPU: the kernels around it (tests/gpu/cudnn/documents.cu), in the ordinary and the
# race build, and everything except NVIDIA's engines (tests/gpu/cudnn/attention.cu with tests/gpu/cudnn/fake_cudnn.cpp).
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh
unset "${!TOKAMAK_EMU_@}"
eval "$(scripts/find_cuda.sh --make | sed -n "s/^\(CUDA_[A-Z_]*\) := \(.*\)/\1='\2'/p")"
flags='-std=c++17 -O1 -g -ffp-contract=off -Wall -Wextra -Wshadow -Werror -Wno-unknown-pragmas'
flags+=' -DTOKAMAK_EMU -I. -Idev/emu'
for dir in $CUDA_INCLUDE; do flags+=" -isystem $dir"; done
nm "$BUILD/libllmc.a" 2>/dev/null | grep -q __asan_ && flags+=' -fsanitize=address,undefined'
libraries="$BUILD/libllmc.a -lcmocka -ldl -lm -fopenmp"

# run NAME KIND COMMAND...: the emulator's build KIND (emu, emu_race) is needed; COMMAND builds $work/program.
run() {
    local name=$1 kind=$2 why=
    shift 2
    objects=$(ls "$BUILD/$kind"/dev/emu/emu_{exec,fiber,runtime*}.o 2>/dev/null)
    [ "$kind" = emu ] || objects+=" $BUILD/$kind/dev/emu/emu_race.o"
    [ -e "$BUILD/$kind/dev/emu/emu_exec.o" ] || why="this build of the emulator is absent ($kind)"
    [ -n "$CUDA_HAS_CUDNN" ] || [ "$name" != attention ] || why='cudnn.h is absent'
    if [ -n "$why" ]; then
        printf '[ RUN      ] cudnn_%s_%s\n%s\n[  SKIPPED ] cudnn_%s_%s\n' "$name" "$kind" "$why" "$name" "$kind"
        return
    fi
    "$@" || exit 1
    # One list of results for all programs: cmocka's summary would end it after the first.
    LD_LIBRARY_PATH=$work:${LD_LIBRARY_PATH:-} "$work/program" 2>&1 |
        awk '/^\[=+\].*test\(s\) run/{closing = 1} !closing'
    [ "${PIPESTATUS[0]}" -eq 0 ] || failures=1
}
# shellcheck disable=SC2086
build_documents() {
    "$@" $flags -x c++ -c -o "$work/documents.o" tests/gpu/cudnn/documents.cu &&
        g++ $flags -o "$work/program" "$work/documents.o" $objects $libraries
}
# Divided into slices at 1.95 MB instead of hundreds.
# shellcheck disable=SC2086
build_attention() {
    local fake="$flags -DTOKAMAK_FAKE_CUDNN -DCUDNN_WORKSPACE_LIMIT_BYTES=1950000"
    g++ $fake -shared -fPIC -o "$work/libcudnn.so.9" tests/gpu/cudnn/fake_cudnn.cpp &&
        g++ $fake -rdynamic -o "$work/program" -x c++ tests/gpu/cudnn/attention.cu llmc/cuda/cudnn_sdpa.cu \
            -x none $objects $libraries
}
run documents emu build_documents g++
[[ $flags == *-fsanitize=address* ]] || run documents emu_race build_documents clang++ -DTOKAMAK_EMU_RACE \
    -fsanitize=thread -mllvm -tsan-instrument-func-entry-exit=0 -mllvm -tsan-handle-cxx-exceptions=0
run attention emu build_attention
[ "$failures" -eq 0 ]
