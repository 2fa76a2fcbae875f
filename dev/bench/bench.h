// bench.h: what the parts of the bench program share.
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include "llmc/common.h"

// "--name value" options; exactly one of text and count is set.
typedef struct {
    const char *name;
    const char **text;
    int64_t *count;
    const char *help;
} BenchOption;
// -1 to go on, else the exit code after --help or an error.
int bench_parse(const BenchOption *options, const char *usage, int argc, char **argv);

// Sorts its argument.
double bench_median(double *values, int count);

int bench_step_main(int argc, char **argv);
int bench_ops_main(int argc, char **argv);

#endif
