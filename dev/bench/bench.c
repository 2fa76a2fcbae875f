// bench.c: main of the bench program: runs a benchmark by name.
#include "dev/bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/run/device.h"

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}
double bench_median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, compare_doubles);
    return count % 2 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

double bench_quantile(const double *sorted, int count, double q) {
    double at = q * (count - 1);
    int low = (int)at;
    return low + 1 >= count ? sorted[count - 1] : sorted[low] + (at - low) * (sorted[low + 1] - sorted[low]);
}

Backend *bench_device_open(const BenchDevice *choice, Error *err) {
    DeviceChoice device = {.device = choice->device, .threads = (int)choice->threads, .cpu_isa = choice->isa};
    device.plugin.attention = choice->attention != NULL ? choice->attention : "auto";
    device.plugin.graphs = choice->graphs;
    char note[1200];
    Backend *be = device_open(&device, note, sizeof note, err);
    if (note[0] != '\0') fprintf(stderr, "%s\n", note);
    return be;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name, *help;
        int (*run)(int argc, char **argv);
    } PARTS[] = {{"step", "whole training steps at fixed shapes", bench_step_main},
                 {"op", "single operations at the shapes of real models", bench_ops_main},
                 {"comm", "collectives of a group of ranks, under mpirun", bench_comm_main}};
    for (size_t i = 0; argc > 1 && i < sizeof PARTS / sizeof PARTS[0]; ++i)
        if (strcmp(argv[1], PARTS[i].name) == 0) return PARTS[i].run(argc - 1, argv + 1);
    bool help = argc > 1 && is_help_word(argv[1]);
    fprintf(help ? stdout : stderr, "bench: measures the speed of the engine\n\n");
    for (size_t i = 0; i < sizeof PARTS / sizeof PARTS[0]; ++i)
        fprintf(help ? stdout : stderr, "  bench %-8s %s\n", PARTS[i].name, PARTS[i].help);
    return help ? 0 : 2;
}
