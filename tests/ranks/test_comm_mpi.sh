#!/bin/bash
# The MPI group on real processes: tests/ranks/mpi/comm_ranks.c under mpirun. Skips where mpirun or the plug-in is missing.
. "$(dirname "$0")/../support/lib.sh"
export OMP_NUM_THREADS=1

need_mpi comm_mpi

launch=(mpirun)
# Open MPI needs explicit options to run more ranks than cores, and to run as root.
if mpirun --version 2>&1 | grep -q 'Open MPI'; then
    launch+=(--oversubscribe)
    [ "$(id -u)" -ne 0 ] || launch+=(--allow-run-as-root)
fi
# ranks N TEST: all ranks pass, and the group has N ranks.
ranks() {
    expect 0 "mpi: .*, $1 rank" timeout -k 5 120 "${launch[@]}" -np "$1" "$BUILD/tests/comm_ranks" "$2"
}
for n in 1 2 3 4; do check "operations on $n ranks" ranks $n operations; done
for n in 2 3; do check "small pieces on $n ranks" ranks $n pieces; done
for n in 1 2 4; do check "many operations on $n ranks" ranks $n queue; done
check "status of a rank that waits" ranks 3 status
check "two groups" ranks 3 groups
check "an error of MPI is kept" ranks 2 failure

# Without shared access to each other's memory, pieces are copied through shared buffers.
no_single_copy() { OMPI_MCA_btl_vader_single_copy_mechanism=none ranks 2 operations; }
check "without single copies" no_single_copy
over_tcp() { OMPI_MCA_btl=tcp,self ranks 3 operations; }
check "over TCP" over_tcp

if [ -x "$BUILD/bench" ]; then
    check "the benchmark" expect 0 '^all_reduce of 0.1 MiB with concurrent matmuls' timeout -k 5 120 "${launch[@]}" -np 2 \
        "$BUILD/bench" comm --smallest 8 --largest 64Ki
fi

# The checks themselves can fail.
check "another contribution is found" \
    expect 1 '8 of 8 sums' timeout -k 5 120 "${launch[@]}" -np 3 "$BUILD/tests/comm_ranks" wrong

no_plugin() {
    mkdir -p "$work/empty"
    TOKAMAK_PLUGIN_DIR=$work/empty expect 1 "the plug-in $work/empty/libllmc_mpi.so is not there.*scripts/setup.sh --mpi" \
        "$BUILD/tests/comm_ranks" operations
}
check "a missing plug-in is named" no_plugin
bad_plugin() {
    mkdir -p "$work/bad"
    echo garbage >"$work/bad/libllmc_mpi.so"
    TOKAMAK_PLUGIN_DIR=$work/bad expect 1 "cannot open $work/bad/libllmc_mpi.so" "$BUILD/tests/comm_ranks" operations
}
check "a plug-in that cannot be opened is named" bad_plugin
finish
