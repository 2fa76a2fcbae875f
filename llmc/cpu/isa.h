// isa.h: one source, several instruction sets. Every file llmc/cpu/*_kernels.c is compiled once per level with
// -DISA=<level> and that level's -m flags; ISA_NAME gives the copies' functions distinct names, and backend_cpu.c
// selects one level's table at run time.
#ifndef LLMC_CPU_ISA_H
#define LLMC_CPU_ISA_H

#ifndef ISA
#define ISA generic
#endif
#define ISA_PASTE_(name, isa) name##_##isa
#define ISA_PASTE(name, isa) ISA_PASTE_(name, isa)
#define ISA_NAME(name) ISA_PASTE(name, ISA)

#endif
