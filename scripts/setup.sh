#!/bin/bash
# Installs the packages for building, testing (procps: pkill) and the quickstart (bible-kjv: its text) with apt, as root or
# through sudo. Does nothing, in well under a second, if everything is installed.
#     scripts/setup.sh [--fuzz] [--cuda] [--mpi] [--slurm] [--help]
#         --mpi    also Open MPI, for runs of several processes (libllmc_mpi.so is built if mpicc is found)
#         --slurm  also Slurm and munge, for tests/ranks/test_slurm.sh, which runs a private cluster; no service is set up
#         --fuzz   also clang and its libraries, for `make fuzz` and the emulator's race detector
#         --cuda   also, if no CUDA toolkit is found, NVIDIA's wheels from PyPI, into .cuda (1.5 GB; no root needed)
set -u
packages=(build-essential libcjson-dev libinih-dev libzstd-dev zlib1g-dev libxxhash-dev libcmocka-dev
    bible-kjv bible-kjv-text procps)
cuda=
for word in "$@"; do
    case $word in
    --cuda) cuda=1 ;;
    --mpi) packages+=(libopenmpi-dev openmpi-bin) ;;
    # For srun --mpi=pmix slurmd opens libpmix.so, a name that only the development package has.
    --slurm) packages+=(slurmctld slurmd slurm-client munge libpmix-dev) ;;
    --fuzz) packages+=(clang libclang-rt-dev libomp-dev) ;;
    --help | -h)
        sed -n '2,8s/^# \{0,1\}//p' "$0"
        echo "packages: ${packages[*]}"
        exit 0
        ;;
    *)
        echo "scripts/setup.sh: unknown option '$word': expected --fuzz, --cuda, --mpi, --slurm or --help" >&2
        exit 2
        ;;
    esac
done

# The same wheels that PyTorch uses: compiler, runtime, cuBLASLt, cuDNN, NCCL. The Makefile finds them in .cuda.
install_cuda() {
    scripts/find_cuda.sh --make | grep -q '^NVCC := .' && return 0
    echo "installing NVIDIA's wheels into .cuda"
    local wheels=(nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl) all=() wheel
    for wheel in "${wheels[@]}"; do all+=("$wheel==13.0.*"); done
    python3 -m pip install -q --no-deps --no-compile --upgrade --target .cuda "${all[@]}" 'nvidia-cublas==13.*' \
        'nvidia-cudnn-cu13==9.19.*' nvidia-nccl-cu13 && scripts/find_cuda.sh --make | grep -q '^NVCC := .' && return 0
    echo "scripts/setup.sh: NVIDIA's wheels could not be installed (see above): install the CUDA toolkit by hand" >&2
    return 1
}
cd "$(dirname "$0")/.." || exit 1
if [ -n "$cuda" ] && command -v dpkg-query >/dev/null; then packages+=(python3-pip); fi

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    # Without dpkg the packages cannot be checked; the Makefile looks for the libraries themselves.
    echo "scripts/setup.sh: expected a Debian system: nothing was installed. Install gcc, make and the development" \
        "files of cJSON, inih, zstd, zlib, xxHash and cmocka (on Debian: ${packages[*]})." >&2
    exit 0
fi

missing=()
installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null)
for package in "${packages[@]}"; do
    grep -qx "$package installed" <<<"$installed" || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    [ -z "$cuda" ] || install_cuda || exit 1
    exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "scripts/setup.sh: cannot install ${missing[*]}: expected root or sudo, found neither. Ask an administrator" \
            "to run: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
    # Without a terminal sudo cannot ask for a password.
    [ -t 0 ] || as_root=(sudo -n)
fi

echo "installing ${missing[*]}"
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" </dev/null >>"$log" 2>&1; }
if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; }; then
    tail -n 15 "$log" >&2
    echo "scripts/setup.sh: apt-get could not install ${missing[*]} (its last lines are above). Check the network and" \
        "/etc/apt/sources.list, or install them by hand." >&2
    exit 1
fi
[ -z "$cuda" ] || install_cuda || exit 1
