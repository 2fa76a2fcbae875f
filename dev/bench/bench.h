// bench.h: what the parts of the bench program share.
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include "llmc/base/common.h"

// "--name value" options, and "--name" alone for a flag; exactly one of text, count and flag is set.
typedef struct {
    const char *name;
    const char **text;
    int64_t *count;
    const char *help;
    bool *flag;
} BenchOption;
// -1 to go on, else the exit code after --help or an error.
int bench_parse(const BenchOption *options, const char *usage, int argc, char **argv);

// Sorts its argument.
double bench_median(double *values, int count);
// The q-quantile of sorted values, between neighbours where it falls between them.
double bench_quantile(const double *sorted, int count, double q);

// What --device and its companions say; `attention` NULL: auto. Exits are the caller's.
typedef struct {
    const char *device, *isa, *attention;
    int64_t threads;
    bool graphs;
} BenchDevice;
struct Backend;
struct Backend *bench_device_open(const BenchDevice *choice, Error *err);

int bench_step_main(int argc, char **argv);
int bench_ops_main(int argc, char **argv);
int bench_comm_main(int argc, char **argv);

#endif
