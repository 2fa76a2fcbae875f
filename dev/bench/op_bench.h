// op_bench.h: shared by the parts of `bench op`: the result of one case, the machine's peaks, the report.
#ifndef BENCH_OP_BENCH_H
#define BENCH_OP_BENCH_H

#include <cjson/cJSON.h>

#include "dev/cases/cases.h"

// Seconds of one call.
typedef struct {
    double p10, median, p90;
    int samples, calls;  // a sample is the mean over `calls` consecutive calls
} OpTiming;

// The machine's peaks, measured in this run; 0: not measured.
typedef struct {
    double copy;             // bytes/s, read plus written, of the faster of Backend.copy and Backend.cast
    double fp32, bf16, fp8;  // FLOP/s
    double dense_bf16;       // GPU: from its data sheet
    char source[160], dense_source[96];
} OpPeaks;

typedef struct {
    const OpCase *c;
    bool ran;  // false: why says why not
    char why[200];
    double flops, bytes;
    OpTiming cold, warm;  // warm.samples == 0: the operands are larger than any cache
    OpCheck check;        // the worse of before and after
    bool repeatable;      // the same bits before and after
    char choice[160];     // Backend.attention_choice after an attention
    double roofline;      // seconds that the slower of memory and arithmetic needs at least
    bool by_memory;       // whether memory is the slower one
} OpResult;

// Measures one case. False: the device failed (its error is in result->why) and the backend must be closed.
bool op_measure(OpResult *result, OpCall *call, Backend *be, const OpScale *scale, int samples, const OpPeaks *peaks);
void op_measure_peaks(OpPeaks *peaks, Backend *be, const OpScale *scale, bool fp32, bool bf16);

// ---- report ----

void op_print_heading(const OpPeaks *peaks, bool with_peer);
void op_print_result(const OpResult *result, const cJSON *peer_rows);
// The report as JSON; the caller deletes it.
cJSON *op_report(const OpResult *results, int count, const OpPeaks *peaks, const char *backend, const char *device,
                 const OpScale *scale);
bool op_report_write(const cJSON *report, const char *path, Error *err);
// Prints the cases that are slower than in `old` beyond the noise of both, or missing; returns their number, or -1
// with err if the two cannot be compared.
int op_report_against(const cJSON *report, const cJSON *old, Error *err);

#endif
