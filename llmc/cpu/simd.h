// simd.h: the vector type of the CPU kernels: `vf`, VF_LANES floats wide, by GCC/Clang vector
// extensions, so that the same source compiles to AVX-512, AVX2, SSE or NEON. Only loads of bf16, exponentials
// and horizontal sums need more than operators.
//
// Accuracy, checked by tests/cpu/test_simd.c and, at every level, tests/backend/test_ops_*.c: vf_exp is within 1.5e-7
// relative up to 88.72, underflows gradually below -87 and overflows to infinity; vf_tanh is within 4e-7 relative.
// Both keep NaN.
#ifndef LLMC_CPU_SIMD_H
#define LLMC_CPU_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "llmc/backend/tensor.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#define VF_LANES 16
#elif defined(__AVX2__)
#include <immintrin.h>
#define VF_LANES 8
#else
#define VF_LANES 4
#endif

typedef float vf __attribute__((vector_size(VF_LANES * 4), may_alias));
typedef int32_t vi __attribute__((vector_size(VF_LANES * 4), may_alias));
typedef uint32_t vu __attribute__((vector_size(VF_LANES * 4), may_alias));
typedef uint16_t vh __attribute__((vector_size(VF_LANES * 2), may_alias));

#define SIMD_INLINE static inline __attribute__((always_inline, unused))

SIMD_INLINE vf vf_set(float x) { return x - (vf){0}; }
SIMD_INLINE vf vf_load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
SIMD_INLINE void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }

// bf16 <-> fp32, round to nearest even (NaN stays NaN).
SIMD_INLINE vf vf_load_bf16(const uint16_t *p) {
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}
SIMD_INLINE void vf_store_bf16(uint16_t *p, vf v) {
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
    __m256bh packed = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &packed, 32);
#else
    vu bits = (vu)v;
    vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    vu nan = (vu)(v != v);
    rounded = (rounded & ~nan) | (((bits >> 16) | 0x40u) & nan);
    vh h = __builtin_convertvector(rounded, vh);
    memcpy(p, &h, sizeof h);
#endif
}
// First `count` lanes only (count < VF_LANES); the rest read as 0.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
SIMD_INLINE __mmask16 vf_mask(int64_t count) { return (__mmask16)((1u << count) - 1u); }
SIMD_INLINE vf vf_load_part(const float *p, int64_t count) { return (vf)_mm512_maskz_loadu_ps(vf_mask(count), p); }
SIMD_INLINE void vf_store_part(float *p, vf v, int64_t count) { _mm512_mask_storeu_ps(p, vf_mask(count), (__m512)v); }
SIMD_INLINE vf vf_load_bf16_part(const uint16_t *p, int64_t count) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(vf_mask(count), p));
    return (vf)_mm512_slli_epi32(wide, 16);
}
#else
SIMD_INLINE vf vf_load_part(const float *p, int64_t count) {
    float lanes[VF_LANES] = {0};
    for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
    return vf_load(lanes);
}
SIMD_INLINE void vf_store_part(float *p, vf v, int64_t count) {
    for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}
SIMD_INLINE vf vf_load_bf16_part(const uint16_t *p, int64_t count) {
    uint16_t lanes[VF_LANES] = {0};
    for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
    return vf_load_bf16(lanes);
}
#endif
SIMD_INLINE void vf_store_bf16_part(uint16_t *p, vf v, int64_t count) {
    uint16_t lanes[VF_LANES];
    vf_store_bf16(lanes, v);
    for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

// mask lanes are all-ones or zero: a where set, else b.
SIMD_INLINE vf vf_select(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
// b where either is NaN.
#if defined(__AVX512F__)
SIMD_INLINE vf vf_max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
SIMD_INLINE vf vf_min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
SIMD_INLINE vf vf_sqrt(vf v) { return (vf)_mm512_sqrt_ps((__m512)v); }
#elif defined(__AVX2__)
SIMD_INLINE vf vf_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
SIMD_INLINE vf vf_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
SIMD_INLINE vf vf_sqrt(vf v) { return (vf)_mm256_sqrt_ps((__m256)v); }
#else
SIMD_INLINE vf vf_max(vf a, vf b) { return vf_select(a > b, a, b); }
SIMD_INLINE vf vf_min(vf a, vf b) { return vf_select(a < b, a, b); }
SIMD_INLINE vf vf_sqrt(vf v) {
    for (int i = 0; i < VF_LANES; ++i) v[i] = sqrtf(v[i]);
    return v;
}
#endif

// Sums in a fixed tree order: the upper half onto the lower, until one lane is left.
#if defined(__AVX2__)
SIMD_INLINE float vf_sum(vf v) {
#if defined(__AVX512F__)
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
    __m256 eight = (__m256)v;
#endif
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
#else
SIMD_INLINE float vf_sum(vf v) {
    float lanes[VF_LANES];
    vf_store(lanes, v);
    for (int width = VF_LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}
#endif
SIMD_INLINE float vf_hmax(vf v) {
    float lanes[VF_LANES];
    vf_store(lanes, v);
    float best = lanes[0];
    for (int i = 1; i < VF_LANES; ++i) best = lanes[i] > best ? lanes[i] : best;
    return best;
}

// exp(x) = 2^n e^r with n = round(x / ln 2), |r| <= ln2/2; minimax polynomial for e^r (error 3e-9) whose first two
// coefficients are exactly 1. At the bounds the result is already 0 or infinity.
SIMD_INLINE vf vf_exp(vf x) {
    vf bounded = vf_min(vf_set(89.0f), vf_max(vf_set(-104.0f), x));  // this order keeps NaN
    // Adding 1.5 * 2^23 rounds to the nearest integer, which is then in the low bits.
    vf shifted = bounded * 1.44269504f + 12582912.0f;
    vf n = shifted - 12582912.0f;
    vf r = bounded - n * 0.693359375f;  // ln 2 in two parts, the first with few enough bits for an exact product
    r = r + n * 2.12194440e-4f;
    vf p = vf_set(1.38146127e-3f);
    p = p * r + 8.36871009e-3f;
    p = p * r + 4.16683874e-2f;
    p = p * r + 1.66665207e-1f;
    p = p * r + 4.99999935e-1f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    // 2^n in two factors: n exceeds the range of one exponent field at both ends.
    vi whole = (vi)shifted - 0x4b400000, half = whole >> 1;
    return p * (vf)((half + 127) << 23) * (vf)((whole - half + 127) << 23);
#endif
}
SIMD_INLINE vf vf_sigmoid(vf x) { return 1.0f / (1.0f + vf_exp(-x)); }
// x P(x^2) / Q(x^2), a rational minimax approximation (error 2.1e-8); beyond 9.02 the result is 1 in fp32.
SIMD_INLINE vf vf_tanh(vf x) {
    x = vf_min(vf_set(9.02f), vf_max(vf_set(-9.02f), x));
    vf t = x * x;
    vf p = vf_set(1.33190744e-8f);
    p = p * t + 2.05834820e-5f;
    p = p * t + 3.49403455e-3f;
    p = p * t + 1.33797179e-1f;
    p = p * t + 1.0f;
    vf q = vf_set(7.76202017e-7f);
    q = q * t + 3.28309286e-4f;
    q = q * t + 2.58710731e-2f;
    q = q * t + 4.67130331e-1f;
    q = q * t + 1.0f;
    return x * p / q;
}

// GELU in its tanh form is x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3): no cancellation for negative x.
#define GELU_SCALE 0.7978845608f
#define GELU_CUBE 0.044715f
SIMD_INLINE vf vf_gelu(vf x) { return x * vf_sigmoid(2.0f * GELU_SCALE * (x + GELU_CUBE * x * x * x)); }
SIMD_INLINE vf vf_gelu_derivative(vf x) {
    vf s = vf_sigmoid(2.0f * GELU_SCALE * (x + GELU_CUBE * x * x * x));
    return s + x * s * (1.0f - s) * (2.0f * GELU_SCALE) * (1.0f + 3.0f * GELU_CUBE * x * x);
}

// Loads and stores of activation rows: one kernel body serves both dtypes through these two.
SIMD_INLINE vf vf_load_as(const void *base, int64_t index, DType dtype) {
    return dtype == DTYPE_F32 ? vf_load((const float *)base + index) : vf_load_bf16((const uint16_t *)base + index);
}
SIMD_INLINE void vf_store_as(void *base, int64_t index, vf v, DType dtype) {
    if (dtype == DTYPE_F32)
        vf_store((float *)base + index, v);
    else
        vf_store_bf16((uint16_t *)base + index, v);
}
SIMD_INLINE vf vf_load_part_as(const void *base, int64_t index, DType dtype, int64_t count) {
    return dtype == DTYPE_F32 ? vf_load_part((const float *)base + index, count)
                              : vf_load_bf16_part((const uint16_t *)base + index, count);
}
SIMD_INLINE void vf_store_part_as(void *base, int64_t index, vf v, DType dtype, int64_t count) {
    if (dtype == DTYPE_F32)
        vf_store_part((float *)base + index, v, count);
    else
        vf_store_bf16_part((uint16_t *)base + index, v, count);
}
// The body of every loop over elements: the next min(left, VF_LANES) lanes, whole vectors and the tail alike.
SIMD_INLINE vf vf_load_some(const void *base, int64_t index, int64_t left, DType dtype) {
    return left >= VF_LANES ? vf_load_as(base, index, dtype) : vf_load_part_as(base, index, dtype, left);
}
SIMD_INLINE void vf_store_some(void *base, int64_t index, vf v, int64_t left, DType dtype) {
    if (left >= VF_LANES)
        vf_store_as(base, index, v, dtype);
    else
        vf_store_part_as(base, index, v, dtype, left);
}

#endif
