// bench.h: functions shared by the parts of the bench program.
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include "llmc/base/option_table.h"

// The option table of a part; options are --name value.
#define BENCH_OPTIONS(rows, text) \
    { OPTION_ROWS(rows), OPTIONS_DASHES, .program = "bench", .about = (text) }

// Sorts values in place.
double bench_median(double *values, int count);
// The q-quantile of sorted values, interpolated between neighbours.
double bench_quantile(const double *sorted, int count, double q);

// The values of --device and related options; attention NULL: auto. On an error the caller exits.
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
