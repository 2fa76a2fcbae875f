// simd.h: the vector type that the CPU kernels are written in: `vf`, VF_LANES floats wide, by GCC/Clang vector
// extensions, so that the same source compiles to AVX-512, AVX2, SSE or NEON. Only loads of bf16, exponentials
// and horizontal sums need more than operators.
//
// Accuracy: vf_exp has relative error below 2e-7 on [-87, 88] (Cephes polynomial), clamps below to 0 and keeps NaN.
#ifndef LLMC_CPU_SIMD_H
#define LLMC_CPU_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "llmc/tensor.h"

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

// Sums in a fixed tree order.
SIMD_INLINE float vf_sum(vf v) {
    float lanes[VF_LANES];
    vf_store(lanes, v);
    for (int width = VF_LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}
SIMD_INLINE float vf_hmax(vf v) {
    float lanes[VF_LANES];
    vf_store(lanes, v);
    float best = lanes[0];
    for (int i = 1; i < VF_LANES; ++i) best = lanes[i] > best ? lanes[i] : best;
    return best;
}

// exp(x) = 2^n e^r with |r| <= ln2/2; polynomial of Cephes expf.
SIMD_INLINE vf vf_exp(vf x) {
    vf clamped = vf_min(vf_max(x, vf_set(-87.33654f)), vf_set(88.72283f));
    vf scaled = clamped * 1.44269504f;
    // Round to nearest by adding and subtracting 1.5 * 2^23.
    vf shifted = scaled + 12582912.0f;
    vf n = shifted - 12582912.0f;
    vf r = clamped - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vf p = vf_set(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    // 2^n in two halves: n reaches 128 at the upper end, where a single exponent field would overflow.
    vi whole = __builtin_convertvector(n, vi);
    vi half = whole >> 1;
    vf a = (vf)((half + 127) << 23);
    vf b = (vf)((whole - half + 127) << 23);
    vf y = p * a * b;
    y = vf_select(x < -87.33654f, vf_set(0.0f), y);
    y = vf_select(x > 88.72283f, vf_set(INFINITY), y);
    return vf_select(x == x, y, x);
}
SIMD_INLINE vf vf_sigmoid(vf x) { return 1.0f / (1.0f + vf_exp(-x)); }
SIMD_INLINE vf vf_tanh(vf x) { return 2.0f * vf_sigmoid(2.0f * x) - 1.0f; }

// Activation rows of either dtype: one kernel body serves both through these two.
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
