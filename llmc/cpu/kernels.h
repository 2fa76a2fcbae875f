// kernels.h: the kernel files of the CPU backend, one row each. Each llmc/cpu/<name>_kernels.c defines
// void ISA_NAME(<name>_register)(Backend *be), which sets the function pointers that it implements; the file is
// compiled once per instruction-set level (isa.h) and backend_cpu.c calls the set of the level it chose.
#ifndef LLMC_CPU_KERNELS_H
#define LLMC_CPU_KERNELS_H

#include "llmc/backend.h"

#define CPU_KERNEL_FILES(X, isa) \
    X(attention, isa) \
    X(peak, isa)

#define CPU_DECLARE_REGISTER(name, isa) void name##_register_##isa(Backend *be);
CPU_KERNEL_FILES(CPU_DECLARE_REGISTER, generic)
#if defined(__x86_64__)
CPU_KERNEL_FILES(CPU_DECLARE_REGISTER, avx2)
CPU_KERNEL_FILES(CPU_DECLARE_REGISTER, avx512)
CPU_KERNEL_FILES(CPU_DECLARE_REGISTER, avx512bf16)
#endif

// Scratch memory of the calling thread, at least `bytes`, 64-byte aligned, kept between calls and counted by
// cpu_scratch_bytes(). The first step of a run grows it; later steps reuse it. Contents are not kept.
void *cpu_scratch(Backend *be, int thread, size_t bytes);
// What the scratch of all threads takes now.
size_t cpu_scratch_bytes(const Backend *be);

#endif
