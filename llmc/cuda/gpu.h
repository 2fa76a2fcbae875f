// gpu.h: the prelude of every .cu file: the CUDA headers, kernel launches, shared memory, packs of 16 bytes and the
// reductions that all kernels share. Under nvcc it is CUDA; under a host C++ compiler the same source runs on the
// emulator (dev/emu), which supplies the device's features. Must not know backends or models.
//
// Rules that keep a .cu file working on both:
//   * kernels are launched through gpu_launch (GPU_LAUNCH in backend_cuda.h), never with <<<>>>;
//   * shared memory is declared with SHARED_ARRAY or SHARED_DYNAMIC, at the top of the kernel, outside any branch;
//   * PTX is written in ptx.h only, each instruction beside its meaning in C;
//   * every lane named in a warp operation's mask takes part in it; no kernel relies on lanes running in lockstep.
#ifndef LLMC_CUDA_GPU_H
#define LLMC_CUDA_GPU_H

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

// A fixed-size array shared by the threads of a block: SHARED_ARRAY(float, partial, 32); Uninitialized.
#define SHARED_ARRAY(type, name, count) __shared__ __align__(16) type name[count]
// The block's dynamic shared memory (the launch's smem_bytes), as a pointer to `type`. One use a kernel.
#define SHARED_DYNAMIC(type, name)                                       \
    extern __shared__ __align__(128) unsigned char gpu_dynamic_shared[]; \
    type *name = reinterpret_cast<type *>(gpu_dynamic_shared)

// Launches kernel(args...) on grid x block threads with smem_bytes of dynamic shared memory, in the order of
// `stream`. Arguments are converted to the kernel's parameter types. Returns the launch's status; later failures are
// reported by synchronizing calls.
template <class... Params, class... Args>
static inline cudaError_t gpu_launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem_bytes,
                                     cudaStream_t stream, Args... args) {
    static_assert(sizeof...(Params) == sizeof...(Args), "one argument for each parameter of the kernel");
    if (smem_bytes > (size_t)48 * 1024) {
        cudaError_t status = cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  (int)smem_bytes);
        if (status != cudaSuccess) return status;
    }
    auto call = [&](Params... converted) {
        void *pointers[sizeof...(Params) + 1] = {(void *)&converted...};
        return cudaLaunchKernel((const void *)kernel, grid, block, pointers, smem_bytes, stream);
    };
    return call(static_cast<Params>(args)...);
}
#else
#include "emu_device.h"  // dev/emu: the same names for a host compiler
#endif

#define WARP 32
#define FULL_MASK 0xffffffffu

typedef __nv_bfloat16 bf16;

// ---- conversions: arithmetic is fp32, storage fp32 or bf16, rounded to nearest even ----
static __host__ __device__ __forceinline__ float to_float(float x) { return x; }
static __host__ __device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
template <class T>
__host__ __device__ __forceinline__ T from_float(float x);
template <>
__host__ __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__host__ __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

// ---- packs: W elements moved by one instruction, 16 bytes if alignment allows, else one by one ----
// A kernel is a template over W: PACK<T> where every row starts on 16 bytes (width % PACK<T> == 0 and gpu_aligned
// pointers), 1 otherwise, so that any shape works and the shapes of real models are fast.
template <class T>
constexpr int PACK = 16 / (int)sizeof(T);

template <class T, int W>
struct alignas(sizeof(T) * W) Pack {
    T v[W];
};
template <class T, int W>
__device__ __forceinline__ Pack<T, W> pack_load(const T *from) {
    return *reinterpret_cast<const Pack<T, W> *>(from);
}
template <class T, int W>
__device__ __forceinline__ void pack_store(T *to, const Pack<T, W> &pack) {
    *reinterpret_cast<Pack<T, W> *>(to) = pack;
}
// The same for data that is not reused soon: it is evicted from the caches first.
template <class T, int W>
__device__ __forceinline__ Pack<T, W> pack_load_once(const T *from) {
#if defined(__CUDACC__)
    if constexpr (sizeof(Pack<T, W>) == 16) {
        Pack<T, W> pack;
        *reinterpret_cast<uint4 *>(&pack) = __ldcs(reinterpret_cast<const uint4 *>(from));
        return pack;
    }
#endif
    return pack_load<T, W>(from);
}
template <class T, int W>
__device__ __forceinline__ void pack_store_once(T *to, const Pack<T, W> &pack) {
#if defined(__CUDACC__)
    if constexpr (sizeof(Pack<T, W>) == 16) {
        __stcs(reinterpret_cast<uint4 *>(to), *reinterpret_cast<const uint4 *>(&pack));
        return;
    }
#endif
    pack_store<T, W>(to, pack);
}
// A pack as fp32 numbers and back. Two bf16 share a register: a shift or a mask makes each an fp32, one instruction
// takes both back.
template <int W>
__device__ __forceinline__ void pack_to_floats(float (&to)[W], const Pack<float, W> &pack) {
#pragma unroll
    for (int i = 0; i < W; ++i) to[i] = pack.v[i];
}
template <int W>
__device__ __forceinline__ void pack_to_floats(float (&to)[W], const Pack<bf16, W> &pack) {
    if constexpr (W % 2 == 0) {
        uint32_t pairs[W / 2];
        memcpy(pairs, &pack, sizeof pairs);
#pragma unroll
        for (int i = 0; i < W / 2; ++i) {
            to[2 * i] = __uint_as_float(pairs[i] << 16);
            to[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
        }
    } else {
#pragma unroll
        for (int i = 0; i < W; ++i) to[i] = to_float(pack.v[i]);
    }
}
template <class T, int W>
__device__ __forceinline__ Pack<T, W> pack_from_floats(const float (&from)[W]) {
    Pack<T, W> pack;
    if constexpr (sizeof(T) == sizeof(bf16) && W % 2 == 0) {
        __nv_bfloat162 pairs[W / 2];
#pragma unroll
        for (int i = 0; i < W / 2; ++i) pairs[i] = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
        memcpy(&pack, pairs, sizeof pack);
    } else {
#pragma unroll
        for (int i = 0; i < W; ++i) pack.v[i] = from_float<T>(from[i]);
    }
    return pack;
}
// W numbers in fp32, whatever W is: the sums and tables beside a pack of W elements of T.
template <int W>
__device__ __forceinline__ void floats_load(float (&to)[W], const float *from) {
    constexpr int STEP = W % 4 == 0 ? 4 : 1;
#pragma unroll
    for (int i = 0; i < W; i += STEP) {
        Pack<float, STEP> part = pack_load<float, STEP>(from + i);
#pragma unroll
        for (int k = 0; k < STEP; ++k) to[i + k] = part.v[k];
    }
}
template <int W>
__device__ __forceinline__ void floats_store(float *to, const float (&from)[W]) {
    constexpr int STEP = W % 4 == 0 ? 4 : 1;
#pragma unroll
    for (int i = 0; i < W; i += STEP) {
        Pack<float, STEP> part;
#pragma unroll
        for (int k = 0; k < STEP; ++k) part.v[k] = from[i + k];
        pack_store<float, STEP>(to + i, part);
    }
}
static inline bool gpu_aligned(const void *pointer) { return ((uintptr_t)pointer & 15) == 0; }

// ---- reductions in a fixed order: the same bits in every run ----
// Every lane receives the result.
static __device__ __forceinline__ float warp_sum(float x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(FULL_MASK, x, distance);
    return x;
}
static __device__ __forceinline__ double warp_sum(double x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(FULL_MASK, x, distance);
    return x;
}
static __device__ __forceinline__ float warp_max(float x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, distance));
    return x;
}
// Over a block of whole warps, at most 1024 threads; every thread receives the result. `partial` is shared memory of
// 32 elements, reusable after the function returns.
template <class T>
__device__ __forceinline__ T block_sum(T x, T *partial) {
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, warps = (int)blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    T sum = warp_sum(lane < warps ? partial[lane] : (T)0);
    __syncthreads();
    return sum;
}
static __device__ __forceinline__ float block_max(float x, float *partial) {
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, warps = (int)blockDim.x / WARP;
    x = warp_max(x);
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    float most = warp_max(lane < warps ? partial[lane] : -INFINITY);
    __syncthreads();
    return most;
}

#endif
