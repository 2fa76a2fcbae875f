// op_bench.h: what the parts of `bench op` share: the result of one case, the machine's peaks, the report.
#ifndef BENCH_OP_BENCH_H
#define BENCH_OP_BENCH_H

#include <cjson/cJSON.h>

#include "dev/cases/cases.h"

// Seconds of one call.
typedef struct {
    double p10, median, p90;
    int samples, calls;  // each sample is the mean of so many calls in a row
} OpTiming;

// What this machine does at best, measured in this run; 0: not measured.
typedef struct {
    double copy;             // bytes/s, read plus written, of the faster of Backend.copy and Backend.cast
    double fp32, bf16, fp8;  // FLOP/s
    double dense_bf16;       // GPU: of its data sheet
    char source[160], dense_source[96];
} OpPeaks;

typedef struct {
    const OpCase *c;
    bool ran;  // false: why says what was in the way
    char why[200];
    double flops, bytes;
    OpTiming cold, warm;  // warm.samples == 0: the operands are larger than any cache
    OpCheck check;        // the worse of before and after
    bool repeatable;      // the same bits before and after
    char choice[160];     // Backend.attention_choice after an attention
    double roofline;      // seconds that the slower of memory and arithmetic needs at least
    bool by_memory;       // which of the two
} OpResult;

// Measures one case; an Error of the device ends up in result->why, and then returns false: the backend is to be
// closed.
bool op_measure(OpResult *result, OpCall *call, Backend *be, const OpScale *scale, int samples, const OpPeaks *peaks);
void op_measure_peaks(OpPeaks *peaks, Backend *be, const OpScale *scale, bool fp32, bool bf16);

// ---- report ----

void op_print_heading(const OpPeaks *peaks, bool with_peer);
void op_print_result(const OpResult *result, const cJSON *peer_rows);
// The report as JSON; the caller deletes it.
cJSON *op_report(const OpResult *results, int count, const OpPeaks *peaks, const char *backend, const char *device,
                 const OpScale *scale);
bool op_report_write(const cJSON *report, const char *path, Error *err);
// Prints what is slower than in `old` beyond the noise of both, or is missing; returns how many, or -1 with err when
// the two cannot be compared.
int op_report_against(const cJSON *report, const cJSON *old, Error *err);

#endif
