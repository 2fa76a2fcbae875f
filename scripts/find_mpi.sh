#!/bin/bash
# Looks for MPI: mpicc on the PATH (Open MPI, MPICH and their relatives), else pkg-config's mpi-c, ompi-c or mpich.
#     scripts/find_mpi.sh             prints what it found (`make config`)
#     scripts/find_mpi.sh --make      prints it as variables of the Makefile
# MPICC=PROGRAM names a compiler wrapper. Example:
#     MPICC=/opt/openmpi/bin/mpicc make config
set -u
case ${1:-} in
'' | --make) ;;
--help | -h)
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
*)
    echo "scripts/find_mpi.sh: unknown option '$1': expected --make or --help" >&2
    exit 2
    ;;
esac

wrapper=$(command -v "${MPICC:-mpicc}" 2>/dev/null) || wrapper=
if [ -n "${MPICC:-}" ] && [ -z "$wrapper" ]; then
    echo "scripts/find_mpi.sh: MPICC=$MPICC is not a program" >&2
    exit 1
fi
package=
if [ -z "$wrapper" ]; then
    for name in mpi-c ompi-c mpich mpi; do
        pkg-config --exists "$name" 2>/dev/null && package=$name && break
    done
fi

if [ "${1:-}" = --make ]; then
    echo "MPI_WRAPPER := $wrapper"
    echo "MPI_CFLAGS := $([ -n "$package" ] && pkg-config --cflags "$package")"
    echo "MPI_LIBS := $([ -n "$package" ] && pkg-config --libs "$package")"
    exit 0
fi

version=
launcher=$(command -v mpirun 2>/dev/null) && version=$("$launcher" --version 2>/dev/null | head -n 1)
row() { printf '  %-10s %s\n' "$1" "$2"; }
if [ -n "$wrapper" ]; then
    row MPI "$wrapper${version:+ ($version)}"
elif [ -n "$package" ]; then
    row MPI "pkg-config $package $(pkg-config --modversion "$package")${version:+ ($version)}"
else
    row MPI 'not found: no MPI plug-in is built, CPUs train with one rank (scripts/setup.sh --mpi installs Open MPI)'
fi
exit 0
