// cpu_memory.h: the CPU backend's memory: blocks, filling and copying them on all threads, and each thread's scratch
// (cpu_scratch, in kernels.h). backend.h states the contracts. Must not know operations.
#ifndef LLMC_CPU_MEMORY_H
#define LLMC_CPU_MEMORY_H

#include "llmc/cpu/kernels.h"

#define CPU_MAX_THREADS 512

void *cpu_alloc(Backend *be, size_t bytes, Error *err);
void cpu_free(Backend *be, void *pointer, size_t bytes);
void cpu_zero(Backend *be, void *pointer, size_t bytes);
void cpu_copy(Backend *be, void *to, const void *from, size_t bytes);
size_t cpu_memory_free(Backend *be);

// The struct behind be->impl: the scratch of every thread, empty at first.
void *cpu_state_new(void);
void cpu_state_free(void *state);

#endif
