// kernels.h: llmc/cpu is the CPU backend: kernels in C over vector extensions, for several instruction sets. This
// table lists its kernel files. Each <name>_kernels.c is compiled once per level (isa.h) and defines void
// ISA_NAME(<name>_register)(Backend *be), which sets the function pointers that it implements; backend_cpu.c calls
// those of one level. Must not know models, training or ranks.
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
// Current scratch size of all threads.
size_t cpu_scratch_bytes(const Backend *be);

#endif
