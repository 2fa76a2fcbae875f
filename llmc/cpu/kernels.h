// kernels.h: the kernel files of the CPU backend, one row each. Each llmc/cpu/<name>_kernels.c defines
// void ISA_NAME(<name>_register)(Backend *be), which sets the function pointers that it implements; the file is
// compiled once per instruction-set level (isa.h) and backend_cpu.c calls the set of the level it chose.
#ifndef LLMC_CPU_KERNELS_H
#define LLMC_CPU_KERNELS_H

#include "llmc/backend/op_check.h"

#define CPU_KERNEL_FILES(X, isa) \
    X(attention, isa) \
    X(embedding, isa) \
    X(gemm, isa) \
    X(loss, isa) \
    X(norm, isa) \
    X(optim, isa) \
    X(peak, isa) \
    X(pointwise, isa) \
    X(reduce, isa) \
    X(rope, isa)

#define CPU_DECLARE_REGISTER(name, isa) void name##_register_##isa(Backend *be);
CPU_KERNEL_FILES(CPU_DECLARE_REGISTER, generic)
#if defined(__x86_64__)
CPU_KERNEL_FILES(CPU_DECLARE_REGISTER, avx2)
CPU_KERNEL_FILES(CPU_DECLARE_REGISTER, avx512)
CPU_KERNEL_FILES(CPU_DECLARE_REGISTER, avx512bf16)
#endif

// Below this many elements an operation runs on the calling thread: waking the others costs microseconds.
#define CPU_PARALLEL_ELEMS 16384

// Scratch memory of the calling thread, at least `bytes`, 64-byte aligned, kept between calls and counted by
// cpu_scratch_bytes(). The first step of a run grows it; later steps reuse it. Contents are not kept.
void *cpu_scratch(Backend *be, int thread, size_t bytes);
// What the scratch of all threads takes now.
size_t cpu_scratch_bytes(const Backend *be);

#endif
