// op_measure.c: measures the time of an operation. A sample is long enough for the host's clock: one call on a CPU; on
// an asynchronous device some milliseconds of calls and one wait. Cold: calls rotate over copies of all operands that
// together exceed any cache. Warm: always the same copy.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/bench.h"
#include "dev/bench/op_bench.h"

// A shorter sample would measure the clock (CPU) or the start and end of work on a device (some 10 us).
#define CPU_SAMPLE_SECONDS 50e-6
#define DEVICE_SAMPLE_SECONDS 4e-3
#define MIN_SAMPLES 5
#define MAX_CALLS 20000

static void issue(const OpCall *call, int set) { call->c->kind->run(call->be, call->c, call->t[set]); }

// Seconds of `calls` consecutive calls, by the device's clock if it has one; negative: the device failed.
static double time_calls(const OpCall *call, int *set, bool cold, int calls, Error *err) {
    Backend *be = call->be;
    Ticket from = be->mark(be);
    double start = now_seconds();
    for (int i = 0; i < calls; ++i) {
        issue(call, *set);
        if (cold) *set = (*set + 1) % call->sets;
    }
    Ticket to = be->mark(be);
    if (!be->synchronize(be, err)) return -1;
    double seconds = now_seconds() - start, device_ms = be->elapsed_ms(be, from, to);
    return device_ms > 0 ? device_ms * 1e-3 : seconds;
}

static bool time_case(OpTiming *out, const OpCall *call, bool cold, const OpScale *scale, int samples, Error *err) {
    double wanted = call->be->threads > 0 ? CPU_SAMPLE_SECONDS : DEVICE_SAMPLE_SECONDS;
    int set = 0, calls = 1;
    // Warm-up: all copies once, or as long as a sample takes; then choose the calls of a sample.
    double seconds = time_calls(call, &set, cold, 1, err), spent = seconds;
    for (int i = 1; i < call->sets && seconds >= 0 && spent < wanted; ++i)
        spent += seconds = time_calls(call, &set, cold, 1, err);
    while (seconds >= 0 && seconds < 0.7 * wanted && calls < MAX_CALLS) {
        calls = (int)fmin(MAX_CALLS, ceil(calls * fmin(wanted / fmax(seconds, 1e-9), 50)));
        seconds = time_calls(call, &set, cold, calls, err);
    }
    if (seconds < 0) return false;
    int count = (int)fmin(samples, fmax(MIN_SAMPLES, scale->case_seconds / fmax(seconds, 1e-9)));
    double *each = xcalloc((size_t)count, sizeof *each);
    for (int i = 0; i < count && seconds >= 0; ++i)
        each[i] = seconds = time_calls(call, &set, cold, calls, err) / calls;
    if (seconds >= 0) {
        *out = (OpTiming){.median = bench_median(each, count), .samples = count, .calls = calls};
        out->p10 = bench_quantile(each, count, 0.1);
        out->p90 = bench_quantile(each, count, 0.9);
    }
    free(each);
    return seconds >= 0;
}

// Refills set 0, runs the operation, checks the outputs; *hash: of the outputs.
static bool run_and_check(OpResult *result, OpCall *call, uint64_t *hash, Error *err) {
    op_call_reset(call);
    issue(call, 0);
    if (!call->be->synchronize(call->be, err)) return false;
    OpCheck check = {.ok = true};
    op_check_outputs(call, &check, false);
    *hash = op_call_hash(call);
    bool ok = result->check.ok && check.ok;
    if (!(check.worst <= result->check.worst)) result->check = check;
    result->check.ok = ok;
    return true;
}

static bool measure_open_case(OpResult *result, OpCall *call, const OpScale *scale, int samples, Error *err) {
    uint64_t first, second, after;
    result->check = (OpCheck){.ok = true};
    if (!run_and_check(result, call, &first, err)) return false;
    op_call_reset(call);
    issue(call, 0);
    if (!call->be->synchronize(call->be, err)) return false;
    second = op_call_hash(call);
    if (!time_case(&result->cold, call, true, scale, samples, err)) return false;
    bool fits = call->set_bytes <= scale->rotation_bytes / 8;
    if (fits && !time_case(&result->warm, call, false, scale, samples, err)) return false;
    if (!run_and_check(result, call, &after, err)) return false;
    result->repeatable = first == second && first == after;
    return true;
}

static double peak_of(const OpPeaks *peaks, const OpCase *c) {
    if (c->kind->fp8) return peaks->fp8;
    return c->dtype == DTYPE_BF16 ? peaks->bf16 : peaks->fp32;
}

bool op_measure(OpResult *result, OpCall *call, Backend *be, const OpScale *scale, int samples,
                const OpPeaks *peaks) {
    const OpCase *c = result->c;
    Error err = {""};
    if (!op_call_open(call, be, c, scale->rotation_bytes, &err)) {
        Error failure = {""};
        op_call_close(call);
        snprintf(result->why, sizeof result->why, "%.199s", err.message);
        return be->synchronize(be, &failure);  // out of memory is no failure of the device
    }
    result->bytes = op_call_bytes(call);
    result->flops = c->kind->flops != NULL ? c->kind->flops(&c->shape) : 0;
    double by_memory = peaks->copy > 0 ? result->bytes / peaks->copy : 0, peak = peak_of(peaks, c);
    double by_arithmetic = peak > 0 ? result->flops / peak : 0;
    result->by_memory = by_memory >= by_arithmetic;
    result->roofline = fmax(by_memory, by_arithmetic);
    result->ran = measure_open_case(result, call, scale, samples, &err);
    if (c->kind->attention != NULL) memcpy(result->choice, be->attention_choice, sizeof result->choice);
    if (!result->ran) snprintf(result->why, sizeof result->why, "%.199s", err.message);
    op_call_close(call);
    return result->ran;
}

// ---- peaks ----

// Best of several runs of the operation of `kind`: a peak is what the machine can reach.
static double best_seconds(OpCall *call, const OpCase *c, Backend *be, Error *err) {
    double best = 0, wanted = be->threads > 0 ? 0 : DEVICE_SAMPLE_SECONDS;
    if (op_call_open(call, be, c, 0, err)) {
        int set = 0, calls = 1;
        double seconds = time_calls(call, &set, true, 1, err);
        if (seconds >= 0) seconds = time_calls(call, &set, true, 1, err);
        if (seconds > 0 && seconds < wanted) calls = (int)fmin(1000, ceil(wanted / seconds));
        for (int i = 0; i < 5 && seconds >= 0; ++i) {
            seconds = time_calls(call, &set, true, calls, err) / calls;
            if (seconds > 0 && (best == 0 || seconds < best)) best = seconds;
        }
    }
    op_call_close(call);
    return best;
}

static void copy_lay_out(OpCall *call) {
    for (int i = 0; i < 2; ++i)
        op_operand(call, i == 0 ? OP_WRITE : OP_READ, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(call->c->shape.dim[0]));
}
static void copy_run(Backend *be, const OpCase *c, const Tensor *t) {
    (void)c;
    be->copy(be, t[0].data, t[1].data, tensor_bytes(t[0]));
}
static void cast_run(Backend *be, const OpCase *c, const Tensor *t) {
    (void)c;
    be->cast(be, t[0], t[1]);
}
static void square_lay_out(OpCall *call) {
    int64_t width = call->c->shape.dim[0];
    for (int i = 0; i < 3; ++i)
        op_operand(call, i == 0 ? OP_WRITE : OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(width, width));
}
static void square_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->matmul(be, t[0], t[1], t[2],
               (MatmulArgs){.trans_b = true, .alpha = 1, .fp8 = c->kind->fp8 ? FP8_FORWARD : FP8_NONE});
}

static double measure_copy(OpCall *call, Backend *be, const OpScale *scale, Error *err) {
    double best = 0;
    for (int way = 0; way < 2; ++way) {
        OpKind kind = {.op = "copy", .lay_out = copy_lay_out, .run = way == 0 ? copy_run : cast_run};
        OpCase c = {&kind, DTYPE_F32, {.dims = 1, .dim = {(int64_t)(scale->copy_bytes / sizeof(float))}}};
        double seconds = best_seconds(call, &c, be, err);
        if (seconds > 0) best = fmax(best, 2 * (double)scale->copy_bytes / seconds);
    }
    return best;
}
static double measure_matmul(OpCall *call, Backend *be, const OpScale *scale, DType dtype, bool fp8, Error *err) {
    double best = 0;
    for (int64_t width = scale->peak_width; width * 2 >= scale->peak_width; width /= 2) {
        OpKind kind = {.op = "matmul peak", .fp8 = fp8, .lay_out = square_lay_out, .run = square_run};
        OpCase c = {&kind, dtype, {.dims = 1, .dim = {width}}};
        double seconds = best_seconds(call, &c, be, err), flops = 2 * (double)width * (double)width * (double)width;
        if (seconds > 0) best = fmax(best, flops / seconds);
    }
    return best;
}

void op_measure_peaks(OpPeaks *peaks, Backend *be, const OpScale *scale, bool fp32, bool bf16) {
    OpCall call = {0};
    Error err = {""};
    *peaks = (OpPeaks){.copy = measure_copy(&call, be, scale, &err)};
    if (be->threads > 0) {  // arithmetic on registers: no matmul can be faster
        if (fp32) peaks->fp32 = be->measure_peak(be, DTYPE_F32);
        if (bf16) peaks->bf16 = be->measure_peak(be, DTYPE_BF16);
        strcpy(peaks->source, "multiply-adds from registers, all threads");
    } else {
        if (fp32) peaks->fp32 = measure_matmul(&call, be, scale, DTYPE_F32, false, &err);
        if (bf16) peaks->bf16 = measure_matmul(&call, be, scale, DTYPE_BF16, false, &err);
        if (bf16 && be->matmul_fp8) peaks->fp8 = measure_matmul(&call, be, scale, DTYPE_BF16, true, &err);
        peaks->dense_bf16 = be->measure_peak(be, DTYPE_BF16);
        memcpy(peaks->dense_source, be->peak_source, sizeof peaks->dense_source);
        strcpy(peaks->source, "square matrix products, the best of several");
    }
    free(call.normals);
}
