#!/bin/bash
# Looks for the CUDA toolkit, cuBLASLt, cuDNN and NCCL in the usual places and in pip's wheels.
#     scripts/find_cuda.sh            prints what it found (`make config`)
#     scripts/find_cuda.sh --make     prints it as variables of the Makefile
# CUDA_HOME=DIR (or CUDA_PATH) names a toolkit; CUDNN_HOME and NCCL_HOME likewise. Example:
#     CUDA_HOME=/opt/cuda-12.8 make config
set -u
case ${1:-} in
'' | --make) ;;
--help | -h)
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
*)
    echo "scripts/find_cuda.sh: unknown option '$1': expected --make or --help" >&2
    exit 2
    ;;
esac

shopt -s nullglob
# Directories that may have include/ and lib/, in order of preference: named ones, the nvcc on the PATH, usual places, wheels.
roots=()
add_root() { [ -n "$1" ] && [ -d "$1" ] && roots+=("$(cd "$1" && pwd -P)"); }
add_root "${CUDA_HOME:-}"
add_root "${CUDA_PATH:-}"
add_root "${CUDNN_HOME:-}"
add_root "${NCCL_HOME:-}"
on_path=$(command -v nvcc 2>/dev/null)
# nvcc on the PATH may be a wrapper script: a dry run shows the directory of the real nvcc.
if [ -n "$on_path" ]; then
    top=$("$on_path" --dryrun -x cu -c /dev/null -o /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p' | head -n 1)
    add_root "$top"
    add_root "$(dirname "$(readlink -f "$on_path")")/.."
fi
for dir in /usr/local/cuda /usr/local/cuda-* /opt/cuda /opt/cuda-* /usr/lib/cuda /usr; do add_root "$dir"; done
for site in "$(dirname "$0")/../.cuda" ${VIRTUAL_ENV:+"$VIRTUAL_ENV"/lib/python3*/site-packages} "$HOME"/.local/lib/python3*/site-packages \
    /usr/local/lib/python3*/*-packages /usr/lib/python3*/*-packages; do
    # The wheels of setup.sh --cuda, then pip's directories.
    for wheel in "$site"/nvidia/*; do add_root "$wheel"; done
done

# The first root in which one of the given relative paths exists.
find_in_roots() {
    local root path
    for root in "${roots[@]}"; do
        for path in "$@"; do
            for match in "$root"/$path; do
                [ -e "$match" ] || continue
                echo "$match"
                return 0
            done
        done
    done
    return 1
}
libs='lib64 lib lib/x86_64-linux-gnu lib/aarch64-linux-gnu targets/x86_64-linux/lib'
find_library() {
    local dir paths=()
    for dir in $libs; do paths+=("$dir/$1"); done
    find_in_roots "${paths[@]}"
}
# nvcc itself rather than a wrapper: bin/nvcc of a root.
nvcc=$(find_in_roots bin/nvcc nvcc/bin/nvcc) || nvcc=$on_path
runtime_header=$(find_in_roots include/cuda_runtime_api.h) || runtime_header=
cublas_header=$(find_in_roots include/cublasLt.h) || cublas_header=
cudnn_header=$(find_in_roots include/cudnn.h) || cudnn_header=
nccl_header=$(find_in_roots include/nccl.h) || nccl_header=
cudart=$(find_library libcudart_static.a) || cudart=
cublas=$(find_library 'libcublasLt.so*') || cublas=
cudnn=$(find_library 'libcudnn.so*') || cudnn=
nccl=$(find_library 'libnccl.so*') || nccl=
version() { [ -n "$1" ] && sed -n "s/^#define $2 *\([0-9]*\).*/\1/p" "$1" | head -n 1; }
cuda_version=$(version "$runtime_header" CUDART_VERSION)

if [ "${1:-}" = --make ]; then
    includes=
    for header in "$runtime_header" "$cublas_header" "$cudnn_header" "$nccl_header"; do
        [ -n "$header" ] || continue
        case " $includes " in *" $(dirname "$header") "*) ;; *) includes="$includes $(dirname "$header")" ;; esac
    done
    dirs=
    for library in "$cudart" "$cublas" "$cudnn" "$nccl"; do
        [ -n "$library" ] || continue
        case " $dirs " in *" $(dirname "$library") "*) ;; *) dirs="$dirs $(dirname "$library")" ;; esac
    done
    # The device code needs the compiler, the runtime and cuBLASLt; the emulator needs only the headers.
    echo "NVCC := $([ -n "$runtime_header" ] && [ -n "$cudart" ] && [ -n "$cublas" ] && echo "$nvcc")"
    echo "CUDA_INCLUDE := $([ -n "$runtime_header" ] && [ -n "$cublas_header" ] && echo "${includes# }")"
    echo "CUDA_LIB_DIRS := ${dirs# }"
    echo "CUDA_CUBLASLT := $cublas"
    echo "CUDA_HAS_CUDNN := $([ -n "$cudnn_header" ] && echo 1)"
    exit 0
fi

row() { printf '  %-10s %s\n' "$1" "$2"; }
dotted() { [ -n "$1" ] && echo "$(($1 / 1000)).$(($1 % 1000 / 10))"; }
[ -n "$nvcc" ] && row nvcc "$nvcc ($("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p'))" ||
    row nvcc 'not found: no CUDA plug-in is built (install the CUDA toolkit, or set CUDA_HOME)'
[ -n "$runtime_header" ] && row headers "$(dirname "$runtime_header") (CUDA $(dotted "$cuda_version"))" ||
    row headers 'not found: neither the plug-in nor the emulator is built'
[ -n "$cudart" ] && row cudart "$cudart" || row cudart 'libcudart_static.a not found'
[ -n "$cublas" ] && row cuBLASLt "$cublas" || row cuBLASLt 'not found: no CUDA plug-in is built'
if [ -n "$cudnn" ] && [ -n "$cudnn_header" ]; then
    numbers=$(dirname "$cudnn_header")/cudnn_version.h
    row cuDNN "$cudnn ($(version "$numbers" CUDNN_MAJOR).$(version "$numbers" CUDNN_MINOR).$(version "$numbers" CUDNN_PATCHLEVEL))"
else
    row cuDNN 'not found: the built-in attention kernels are used'
fi
if [ -n "$nccl" ]; then
    row NCCL "$nccl ($(version "$nccl_header" NCCL_MAJOR).$(version "$nccl_header" NCCL_MINOR).$(version "$nccl_header" NCCL_PATCH))"
else
    row NCCL 'not found'
fi
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv,noheader 2>&1 | while read -r line; do row GPU "$line"; done
else
    row GPU 'no driver here (nvidia-smi is absent): device=auto uses the CPU'
fi
exit 0
