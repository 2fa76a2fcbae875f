#!/bin/bash
# Runs the emulator's own tests (tests/gpu/test_emu_*.cpp), which dev/emu/emu.mk builds if the CUDA headers are found.
# They print cmocka's lines.
BUILD=${1:-build}
unset "${!TOKAMAK_EMU_@}"
status=0
for test in tests/gpu/test_emu_*.cpp; do
    name=$(basename "$test" .cpp)
    if [ ! -x "$BUILD/emu/$name" ]; then
        echo "[ RUN      ] $name"
        echo "the CUDA headers are absent: the emulated CUDA runtime is not built"
        echo "[  SKIPPED ] $name"
        continue
    fi
    # One list of results for all programs: cmocka's summary would end it after the first.
    "$BUILD/emu/$name" 2>&1 | awk '/^\[=+\].*test\(s\) run/{closing = 1} !closing'
    [ "${PIPESTATUS[0]}" -eq 0 ] || status=1
done
exit $status
