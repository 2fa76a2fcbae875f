#!/bin/bash
# The device half of the emulator: tests/gpu/emu/device.cu passes; each fault in tests/gpu/emu/faults.cu is found by the
# means listed here, and nothing is found in its correct twin. $1: the build directory. Prints cmocka's lines.
build=${1:-build}
unset "${!TOKAMAK_EMU_@}"
export ASAN_OPTIONS="detect_stack_use_after_return=0:detect_leaks=0:$ASAN_OPTIONS"
failed=0

# Builds: plain; asan, AddressSanitizer and UBSan (make test-asan); race. Orders of threads and blocks in which the fault
# must be found. Expected output.
#   fault            builds           orders                  what is printed
TABLE='
    barrier          plain,asan       reverse,random          ^wrong result
    barrier          race             forward,reverse,random  race: .* shared memory
    syncwarp         plain,asan       forward,reverse,random  ^wrong result
    syncwarp         race             forward,reverse,random  race: .* shared memory
    async_refill     plain,asan       forward,random          ^wrong result
    async_refill     race             forward,reverse,random  race: .* shared memory
    async_wait       plain,asan,race  forward,reverse,random  ^wrong result.* -?nan
    uninitialised    plain,asan,race  forward,reverse,random  ^wrong result.* -?nan
    shuffle_source   plain,asan,race  forward,reverse         ^wrong result.* -?nan
    event            plain,asan,race  forward                 ^wrong result.* -?nan
    global_race      race             forward,reverse,random  race: .* global memory .* block
    global_read      plain,asan       reverse                 ^wrong result
    global_read      race             forward,reverse,random  race: .* global memory .* block
    atomic           race             forward,reverse,random  race: .* global memory
    global_bounds    plain,race       forward                 illegal address
    global_bounds    asan             forward                 use-after-poison
    shared_bounds    asan             forward                 index 128 out of bounds
    dynamic_bounds   asan             forward                 heap-buffer-overflow
    misaligned       asan             forward                 misaligned address
    host_pointer     race             forward                 illegal address
    diverged_barrier plain,asan,race  forward,reverse,random  __syncthreads, but thread .127,0,0. has exited
    missing_lane     plain,asan,race  forward,reverse,random  __shfl_up_sync .* but thread .70,0,0. has exited
    own_lane         plain,asan,race  forward,reverse,random  lacks the calling lane
    diverged_warp    plain,asan,race  forward,reverse,random  diverged warp
    shared_limit     plain,asan       forward                 may have 49152
    dynamic_limit    plain,asan       forward                 cudaErrorInvalidValue
    block_size       plain,asan       forward                 cudaErrorInvalidConfiguration
    grid_size        plain,asan       forward                 cudaErrorInvalidConfiguration
    empty_grid       plain,asan       forward                 cudaErrorInvalidConfiguration'

check_fault() {  # program, fault, orders, pattern
    local order said status
    for order in ${3//,/ }; do
        said=$(TOKAMAK_EMU_ORDER=$order TOKAMAK_EMU_SEED=3 "$1" "$2" 2>&1)
        status=$?
        if [ $status -eq 0 ] || ! grep -Eq "$4" <<<"$said"; then
            printf 'the fault was not found as expected in %s order: status %d, output: %s\n' "$order" $status "$said"
            return 1
        fi
        said=$(TOKAMAK_EMU_ORDER=$order TOKAMAK_EMU_SEED=3 "$1" "$2" clean 2>&1)
        status=$?
        if [ $status -ne 0 ]; then
            printf 'the sound twin failed in %s order: status %d, output: %s\n' "$order" $status "$said"
            return 1
        fi
    done
}

for directory in "$build/emu" "$build/emu_race"; do
    program=$directory/faults
    if [ ! -x "$program" ]; then
        case $program in
        */emu/*) why='the CUDA headers are absent: the emulator is not built' ;;
        *) # The build with sanitizers has no race build; the ordinary one tests it.
            grep -q fsanitize=address "$build/emu/flags" 2>/dev/null && continue
            why='the CUDA headers or clang++ are absent: the race build is not built' ;;
        esac
        printf '[ RUN      ] %s\n%s\n[  SKIPPED ] %s\n' "$program" "$why" "$program"
        continue
    fi
    # One list of results: cmocka's summary would end it.
    "$directory/device" 2>&1 | awk '/^\[=+\].*test\(s\) run/{closing = 1} !closing'
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
    kind=$("$program" build)
    while read -r fault builds orders pattern; do
        [[ ,$builds, == *,$kind,* ]] || continue
        printf '[ RUN      ] %s, %s\n' "$fault" "$kind"
        if check_fault "$program" "$fault" "$orders" "$pattern"; then
            printf '[       OK ] %s, %s\n' "$fault" "$kind"
        else
            printf '[  FAILED  ] %s, %s\n' "$fault" "$kind"
            failed=1
        fi
    done < <(grep . <<<"$TABLE")
done
exit $failed
