// ptx.h: instructions without a CUDA C++ intrinsic: asynchronous copies into shared memory, ldmatrix, mma.sync,
// paired conversions and the fast power of two. The only file with PTX; beside each instruction is its meaning in C,
// which a host compiler uses (the emulator, dev/emu). Must not know the kernels that use them.
//
// Lanes of a warp are numbered 4g + c, g = 0..7, c = 0..3: a fragment holds two neighbouring columns 2c, 2c+1 of row
// g.
#ifndef LLMC_CUDA_PTX_H
#define LLMC_CUDA_PTX_H

#include "llmc/cuda/gpu.h"

// ---- asynchronous copies, global to shared memory; done when ptx_copy_wait returns ----
// 16 bytes, both addresses aligned to 16; zeros if !valid: `from` is then not read and may be any address.
static __device__ __forceinline__ void ptx_copy16(void *shared, const void *from, bool valid) {
#if defined(__CUDACC__)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"((unsigned)__cvta_generic_to_shared(shared)),
                 "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
#else
    emu_async_copy(shared, from, 16, valid ? 16 : 0);
#endif
}
static __device__ __forceinline__ void ptx_copy4(void *shared, const void *from, bool valid) {
#if defined(__CUDACC__)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"((unsigned)__cvta_generic_to_shared(shared)),
                 "l"(from), "r"(valid ? 4 : 0)
                 : "memory");
#else
    emu_async_copy(shared, from, 4, valid ? 4 : 0);
#endif
}
// Waits for all copies issued by this thread; a barrier makes those of other threads visible.
static __device__ __forceinline__ void ptx_copy_wait(void) {
#if defined(__CUDACC__)
    asm volatile("cp.async.wait_all;\n" ::: "memory");
#else
    emu_async_wait_all();
#endif
}

// ---- a load that may race with atomics on the same word: returns some value that the word had ----
static __device__ __forceinline__ uint32_t ptx_load_relaxed(const uint32_t *from) {
#if defined(__CUDACC__)
    uint32_t value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];\n" : "=r"(value) : "l"(from) : "memory");
    return value;
#else
    return __atomic_load_n(from, __ATOMIC_RELAXED);
#endif
}

// ---- ldmatrix: four 8x8 matrices of 16-bit elements; lane l gives the address of row l%8 (16 bytes) of matrix l/8
// ---- to[i] = elements (g; 2c, 2c+1) of matrix i, or, transposed, (2c, 2c+1; g).
#if !defined(__CUDACC__)
typedef struct {
    uint16_t row[8];
    uint32_t result[4];
} PtxLoad;
template <bool TRANSPOSED>
static inline void ptx_ldmatrix_run(void *lanes[WARP]) {
    for (int lane = 0; lane < WARP; ++lane) {
        PtxLoad *to = (PtxLoad *)lanes[lane];
        int g = lane / 4, c = lane % 4;
        for (int i = 0; i < 4; ++i) {
            uint32_t pair[2];
            for (int x = 0; x < 2; ++x) {
                int row = TRANSPOSED ? 2 * c + x : g, column = TRANSPOSED ? g : 2 * c + x;
                pair[x] = ((const PtxLoad *)lanes[8 * i + row])->row[column];
            }
            to->result[i] = pair[0] | pair[1] << 16;
        }
    }
}
#endif
template <bool TRANSPOSED>
static __device__ __forceinline__ void ptx_ldmatrix(uint32_t (&to)[4], const bf16 *row) {
#if defined(__CUDACC__)
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
#else
    // Each lane reads its own row, so that a bad address is reported for that lane.
    PtxLoad load;
    *(Pack<uint16_t, 8> *)load.row = *(const Pack<uint16_t, 8> *)(const void *)row;
    emu_warp_collective(&load, ptx_ldmatrix_run<TRANSPOSED>);
    for (int i = 0; i < 4; ++i) to[i] = load.result[i];
#endif
}

// ---- mma.sync m16n8k16: sum(16,8) += a(16,16) b(16,8), bf16 in, fp32 sums ----
// sum[0..1] = (g; 2c, 2c+1), sum[2..3] = (g+8; ...); a[0] = (g; 2c..), a[1] = (g+8; 2c..), a[2] = (g; 2c+8..),
// a[3] = (g+8; 2c+8..); b0 = (2c, 2c+1; g), b1 = (2c+8, 2c+9; g).
#if !defined(__CUDACC__)
typedef struct {
    float *sum;
    const uint32_t *a;
    uint32_t b[2];
} PtxMma;
static inline float ptx_half(uint32_t pair, int which) {
    return __uint_as_float(which == 0 ? pair << 16 : pair & 0xffff0000u);
}
static inline void ptx_mma_run(void *lanes[WARP]) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < WARP; ++lane) {
        const PtxMma *from = (const PtxMma *)lanes[lane];
        int g = lane / 4, c = lane % 4;
        for (int i = 0; i < 4; ++i)
            for (int x = 0; x < 2; ++x) a[g + i % 2 * 8][2 * c + i / 2 * 8 + x] = ptx_half(from->a[i], x);
        for (int i = 0; i < 2; ++i)
            for (int x = 0; x < 2; ++x) b[2 * c + i * 8 + x][g] = ptx_half(from->b[i], x);
    }
    float sum[16][8] = {};
    for (int m = 0; m < 16; ++m)
        for (int k = 0; k < 16; ++k)
            for (int n = 0; n < 8; ++n) sum[m][n] += a[m][k] * b[k][n];
    for (int lane = 0; lane < WARP; ++lane)
        for (int i = 0; i < 4; ++i)
            ((PtxMma *)lanes[lane])->sum[i] += sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}
#endif
static __device__ __forceinline__ void ptx_mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(__CUDACC__)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    PtxMma mma = {sum, a, {b0, b1}};
    emu_warp_collective(&mma, ptx_mma_run);
#endif
}

// ---- two fp32 rounded to bf16, low in the lower half ----
static __device__ __forceinline__ uint32_t ptx_bf16_pair(float low, float high) {
#if defined(__CUDACC__)
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(low)) |
           (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(high)) << 16;
#endif
}

// ---- 2^x within 2 units of round-off of fp32; 2^-inf = 0; results below 2^-126 are 0 ----
static __device__ __forceinline__ float ptx_exp2(float x) {
#if defined(__CUDACC__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
#else
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
#endif
}

#endif
