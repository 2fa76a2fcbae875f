#!/bin/bash
# The kernels around cuDNN's attention on the emulated GPU (tests/cudnn/documents.cu), in the ordinary and the race
# build.
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/lib.sh
unset "${!TOKAMAK_EMU_@}"
eval "$(scripts/find_cuda.sh --make | sed -n "s/^\(CUDA_INCLUDE\) := \(.*\)/\1='\2'/p")"
includes=
for dir in $CUDA_INCLUDE; do includes+=" -isystem $dir"; done

# build_and_run KIND COMPILER FLAGS...: KIND is the build's directory, emu or emu_race.
build_and_run() {
    local kind=$1 name=cudnn_documents_$1 objects
    shift
    objects=$(ls "$BUILD/$kind"/dev/emu/emu_{exec,fiber,runtime*}.o 2>/dev/null)
    [ "$kind" = emu ] || objects+=" $BUILD/$kind/dev/emu/emu_race.o"
    if [ -z "$includes" ] || [ ! -e "$BUILD/$kind/dev/emu/emu_exec.o" ] || ! command -v "$1" >/dev/null; then
        printf '[ RUN      ] %s\nthis build of the emulator is absent\n[  SKIPPED ] %s\n' "$name" "$name"
        return
    fi
    # shellcheck disable=SC2086
    "$@" -x c++ -std=c++17 -O1 -g -ffp-contract=off -Wall -Wextra -Wshadow -Werror -DTOKAMAK_EMU -I. -Idev/emu \
        $includes -c -o "$work/documents.o" tests/cudnn/documents.cu || exit 1
    # shellcheck disable=SC2086
    g++ $sanitize -o "$work/documents" "$work/documents.o" $objects "$BUILD/libllmc.a" -lcmocka -ldl -lm -fopenmp ||
        exit 1
    # One list of results for both builds: what cmocka says at the end would close it after the first.
    "$work/documents" 2>&1 | awk '/^\[=+\].*test\(s\) run/{closing = 1} !closing'
    [ "${PIPESTATUS[0]}" -eq 0 ] || failures=1
}
sanitize=
nm "$BUILD/libllmc.a" 2>/dev/null | grep -q __asan_ && sanitize=-fsanitize=address,undefined
# shellcheck disable=SC2086
build_and_run emu g++ $sanitize
[ -n "$sanitize" ] || build_and_run emu_race clang++ -DTOKAMAK_EMU_RACE -fsanitize=thread \
    -mllvm -tsan-instrument-func-entry-exit=0 -mllvm -tsan-handle-cxx-exceptions=0
[ "$failures" -eq 0 ]
