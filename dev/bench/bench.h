// bench.h: what the parts of the bench program share.
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include "llmc/base/option_table.h"

// The option table of a part; --name value.
#define BENCH_OPTIONS(rows, text) \
    { OPTION_ROWS(rows), OPTIONS_DASHES, .program = "bench", .about = (text) }

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
