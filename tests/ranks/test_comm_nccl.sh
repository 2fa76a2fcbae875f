#!/bin/bash
# The NCCL group: tests/ranks/mpi/comm_nccl_ranks.c on emulated GPUs, whose NCCL (dev/emu/emu_nccl.cpp) communicates over MPI,
# in all orders of streams. TOKAMAK_CUDA_DEVICE=cuda: one rank on a real GPU with the real NCCL.
#     tests/ranks/test_comm_nccl.sh [BUILD]
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh
export OMP_NUM_THREADS=1
device=${TOKAMAK_CUDA_DEVICE:-cudaemu}
export TOKAMAK_TEST_DEVICE=$device TOKAMAK_EMU_NCCL_TIMEOUT=40
program=$BUILD/tests/comm_nccl_ranks

if [ ! -e "$BUILD/libllmc_$device.so" ]; then
    skip comm_nccl "$BUILD/libllmc_$device.so is not built: the CUDA headers were not found (make config)"
    exit 0
fi
if [ "$device" = cudaemu ] && [ ! -e "$BUILD/libnccl_emu.so" ]; then
    skip comm_nccl "$BUILD/libnccl_emu.so is not built: nccl.h or MPI was not found (make config)"
    exit 0
fi

alone() { expect 0 'passed on 1 rank' timeout -k 5 60 "$program" "$1"; } # TEST
for name in open operations steps queue status; do check "one_rank_$name" alone $name; done
if [ "$device" != cudaemu ]; then finish; exit; fi
check one_rank_planted alone planted

launch=(mpirun)
# Open MPI needs explicit options to run more ranks than cores, and to run as root.
if mpirun --version 2>&1 | grep -q 'Open MPI'; then
    launch+=(--oversubscribe)
    [ "$(id -u)" -ne 0 ] || launch+=(--allow-run-as-root)
fi
started=0
# ranks STATUS TEXT N TEST [NAME=VALUE...]
ranks() {
    local status=$1 text=$2 n=$3 name=$4
    shift 4
    started=$((started + 1))
    mkdir -p "$work/meet$started"
    # The leak checker runs with one rank only, without MPI: MPI leaks, and unloads the code that would name its leaks.
    expect "$status" "$text" env ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0" TOKAMAK_TEST_DIR="$work/meet$started" \
        "$@" timeout -k 5 60 "${launch[@]}" -np "$n" \
        "$program" "$name"
}
fine() { ranks 0 "passed on $1 rank" "$@"; } # N TEST [NAME=VALUE...]
fails() { ranks 1 "$@"; }                    # TEXT N TEST [NAME=VALUE...]
aborts() { ranks 134 "$@"; }

if ! command -v mpirun >/dev/null; then
    skip several_ranks 'mpirun is not found (scripts/setup.sh --mpi)'
else
    for n in 2 3 4; do check "operations_on_$n" fine $n operations; done
    for order in lazy eager overtake; do
        for n in 2 4; do check "steps_on_${n}_$order" fine $n steps TOKAMAK_EMU_STREAMS=$order; done
        check "queue_on_3_$order" fine 3 queue TOKAMAK_EMU_STREAMS=$order
    done
    check operations_on_3_overtaking fine 3 operations TOKAMAK_EMU_STREAMS=overtake
    check planted_faults_on_2 fine 2 planted
    check status_of_a_rank_that_waits fine 3 status

    # Failures.
    check a_failing_call fails 'NCCL|ncclAllReduce for "of failure" #3 on rank 1 of 2: unhandled system error' 2 failure \
        TOKAMAK_EMU_NCCL_FAIL=call@3
    check a_failure_on_the_way fails 'a collective for "of failure" #2 on rank [01] of 2: remote process exited' 2 failure \
        TOKAMAK_EMU_NCCL_FAIL=async@2
    check different_collectives aborts 'the ranks call different collectives: here .* ncclBroadcast of (32|64)' 2 mismatch
    check no_partner aborts 'rank 0 of 2: ncclRecv of 64 elements of type 7, peer 1 has waited for rank 1 for 1 s' 2 partner \
        TOKAMAK_EMU_NCCL_TIMEOUT=1
    check too_little_scratch aborts '"big" needs [0-9]+ bytes of scratch, the group was given' 2 scratch
    versions() {
        mkdir -p "$work/versions"
        TOKAMAK_TEST_DIR=$work/versions expect 1 'rank 1 has NCCL 2\.20\.5, rank 0 has 2\.[0-9.]+: install the same' \
            timeout -k 5 60 "${launch[@]}" -np 1 "$program" open : -np 1 env TOKAMAK_EMU_NCCL_VERSION=22005 "$program" open
    }
    check different_versions versions
    if [ -e "$BUILD/emu_race/libnccl_emu.so" ]; then
        check no_races fine 2 operations TOKAMAK_PLUGIN_DIR="$BUILD/emu_race"
        check no_races_in_steps fine 4 steps TOKAMAK_PLUGIN_DIR="$BUILD/emu_race"
    fi
fi
one_fails() { # STATUS TEXT TEST [NAME=VALUE...]
    local status=$1 text=$2 name=$3
    shift 3
    expect "$status" "$text" env "$@" timeout -k 5 60 "$program" "$name"
}
check never_in_a_graph one_fails 134 'collective "in a graph" inside a captured sequence' captured
check an_old_library one_fails 1 'NCCL 2\.10\.0 is too old: 2\.13\.4 or newer is needed' open TOKAMAK_EMU_NCCL_VERSION=21000
check a_failing_device one_fails 0 'cudaErrorECCUncorrectable' failure TOKAMAK_EMU_FAIL=cudaErrorECCUncorrectable@9
mkdir "$work/lonely" && ln -s "$PWD/$BUILD/libllmc_cudaemu.so" "$work/lonely"
check no_library one_fails 1 'NCCL, which several GPUs need, cannot be opened .*lonely/libnccl_emu\.so' open \
    TOKAMAK_PLUGIN_DIR="$work/lonely"
finish
