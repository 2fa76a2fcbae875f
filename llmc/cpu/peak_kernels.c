// peak_kernels.c: measures the peak multiply-add rate, the reference for matmuls: independent accumulators in
// registers, no loads.
#include <stdio.h>

#include <omp.h>

#include "llmc/cpu/isa.h"
#include "llmc/cpu/kernels.h"
#include "llmc/cpu/simd.h"

// Twelve chains hide the latency of two four-cycle units. They are twelve variables, not an array, so that the
// compiler keeps them in registers.
#define PEAK_CHAINS 12
#define PEAK_INNER 20000
#define PEAK_TRIALS 64
#define PEAK_EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

// Keeps the compiler from folding or reordering a chain.
#if defined(__x86_64__)
#define PEAK_PIN(v) __asm__ volatile("" : "+x"(v))
#elif defined(__aarch64__)
#define PEAK_PIN(v) __asm__ volatile("" : "+w"(v))
#else
#define PEAK_PIN(v) __asm__ volatile("" : "+m"(v))
#endif

static float peak_fp32_burst(void) {
    vf x = vf_set(1.0000001f), y = vf_set(1e-7f);
#define PEAK_START(c) vf sum##c = vf_set((float)(c));
#define PEAK_STEP(c)         \
    sum##c = sum##c * x + y; \
    PEAK_PIN(sum##c);
#define PEAK_ADD(c) total += sum##c;
    PEAK_EACH(PEAK_START)
    for (int64_t i = 0; i < PEAK_INNER; ++i) {
        PEAK_EACH(PEAK_STEP)
    }
    vf total = vf_set(0.0f);
    PEAK_EACH(PEAK_ADD)
    return vf_sum(total);
}
#if defined(__AVX512BF16__)
static float peak_bf16_burst(void) {
    __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f80), y = (__m512bh)_mm512_set1_epi16(0x3400);
#define PEAK_START_BF16(c) __m512 sum##c = _mm512_set1_ps((float)(c));
#define PEAK_STEP_BF16(c)                    \
    sum##c = _mm512_dpbf16_ps(sum##c, x, y); \
    PEAK_PIN(sum##c);
#define PEAK_ADD_BF16(c) total = _mm512_add_ps(total, sum##c);
    PEAK_EACH(PEAK_START_BF16)
    for (int64_t i = 0; i < PEAK_INNER; ++i) {
        PEAK_EACH(PEAK_STEP_BF16)
    }
    __m512 total = _mm512_setzero_ps();
    PEAK_EACH(PEAK_ADD_BF16)
    return _mm512_reduce_add_ps(total);
}
#endif

// Every thread times its own bursts while the others run theirs and keeps the best: interference can only slow a
// burst down, and a barrier between bursts would measure the scheduler.
static double measure_peak(Backend *be, DType dtype) {
    double flops_each = (double)PEAK_CHAINS * PEAK_INNER * VF_LANES * 2;
    float (*burst)(void) = peak_fp32_burst;
#if defined(__AVX512BF16__)
    if (dtype == DTYPE_BF16) {
        burst = peak_bf16_burst;
        flops_each *= 2;
    }
#else
    (void)dtype;
#endif
    double rate = 0;
    float sink = 0;
#pragma omp parallel reduction(+ : rate, sink)
    {
        double best = 1e30;
        for (int trial = 0; trial < PEAK_TRIALS; ++trial) {
            double start = now_seconds();
            sink += burst();
            double seconds = now_seconds() - start;
            best = seconds < best ? seconds : best;
        }
        rate += flops_each / best;
    }
    snprintf(be->peak_source, sizeof be->peak_source, "measured");
    CHECK(sink == sink, "sink=%f", (double)sink);
    return rate;
}

void ISA_NAME(peak_register)(Backend *be) { be->measure_peak = measure_peak; }
