// emu_device.h: device features that a host compiler lacks: thread indices, shared memory, barriers, shuffles,
// intrinsics, and gpu_launch. llmc/cuda/gpu.h includes it, after the CUDA headers, when nvcc is not the compiler, so
// that kernels compile unchanged. emu_exec implements how they run, emu_runtime when they run.
//
// For ptx.h: the C meaning of a warp instruction packs a lane's operands in a struct and passes its address to
// emu_warp_collective; the last lane to arrive computes all 32 results through the 32 addresses. cp.async is
// emu_async_copy, emu_async_commit and emu_async_wait. See emu_exec.h.
#ifndef EMU_DEVICE_H
#define EMU_DEVICE_H

#include "emu_exec.h"
#include "emu_runtime.h"

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <tuple>
#include <type_traits>

#undef __launch_bounds__
#define __launch_bounds__(...)

// Variables, not macros: NVIDIA's headers use these names for parameters. One set per host thread.
#define EMU_THREAD_LOCAL extern __thread __attribute__((tls_model("initial-exec")))
EMU_THREAD_LOCAL uint3 threadIdx, blockIdx;
EMU_THREAD_LOCAL dim3 blockDim, gridDim;

// A reference to an array on the heap, the same for all threads of the block: sizeof gives the array's size, and
// AddressSanitizer its end. The key is one variable for each declaration and instance.
#define SHARED_ARRAY(type, name, count)      \
    static const char emu_key_of_##name = 0; \
    type(&name)[count] =                     \
        *reinterpret_cast<type(*)[count]>(emu_shared(&emu_key_of_##name, #name, sizeof(type[count]), alignof(type)))
#define SHARED_DYNAMIC(type, name) type *name = static_cast<type *>(emu_shared_dynamic())

// ---- launches ----
// A macro for the kernel's name; otherwise gpu.h's gpu_launch.
#define gpu_launch(kernel, ...) emu_launch(#kernel, kernel, __VA_ARGS__)

template <class... Params>
struct EmuCall {
    void (*kernel)(Params...);
    std::tuple<Params...> arguments;
    static void run(const void *pointer) {
        const EmuCall *call = static_cast<const EmuCall *>(pointer);
        std::apply(call->kernel, call->arguments);
    }
};
template <class... Params, class... Args>
static inline cudaError_t emu_launch(const char *name, void (*kernel)(Params...), dim3 grid, dim3 block,
                                     size_t smem_bytes, cudaStream_t stream, Args... args) {
    static_assert(sizeof...(Params) == sizeof...(Args), "one argument for each parameter of the kernel");
    cudaError_t status = emu_check_launch(grid, block);
    if (status == cudaSuccess && smem_bytes > EMU_SHARED_DEFAULT_BYTES)
        status =
            cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem_bytes);
    if (status != cudaSuccess) return emu_set_error(status);
    EmuCall<Params...> call = {kernel, std::tuple<Params...>(static_cast<Params>(args)...)};
    return emu_enqueue(stream, name, [=]() {
        EmuLaunch launch = {name, grid, block, smem_bytes, EmuCall<Params...>::run, &call, sizeof call};
        emu_run(&launch);
        return cudaSuccess;
    });
}

// ---- barriers and warp operations ----
static inline void __syncthreads() { emu_syncthreads(); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { emu_syncwarp(mask); }
// Blocks run sequentially and the compiler keeps the order of a lane's accesses.
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}

template <class T>
static inline T emu_shuffle_value(unsigned mask, T value, enum EmuShuffle kind, int operand, int width) {
    static_assert(std::is_trivially_copyable<T>::value && (sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8),
                  "a shuffle moves 2, 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, (const void *)&value, sizeof(T));
    bits = emu_shuffle(mask, bits, kind, operand, width);
    memcpy((void *)&value, &bits, sizeof(T));
    return value;
}
template <class T>
static inline T __shfl_sync(unsigned mask, T value, int lane, int width = EMU_LANES) {
    return emu_shuffle_value(mask, value, EMU_SHUFFLE_INDEX, lane, width);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = EMU_LANES) {
    return emu_shuffle_value(mask, value, EMU_SHUFFLE_UP, (int)distance, width);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = EMU_LANES) {
    return emu_shuffle_value(mask, value, EMU_SHUFFLE_DOWN, (int)distance, width);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = EMU_LANES) {
    return emu_shuffle_value(mask, value, EMU_SHUFFLE_XOR, lanes, width);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) { return emu_ballot(mask, predicate != 0); }
static inline int __any_sync(unsigned mask, int predicate) { return emu_ballot(mask, predicate != 0) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return emu_ballot(mask, predicate != 0) == mask; }

// ---- loads and stores with a cache hint ----
#define EMU_LOAD(name)                                                     \
    template <class T>                                                     \
    static inline T name(const T *from) {                                  \
        static_assert(sizeof(T) <= 16, "a thread loads at most 16 bytes"); \
        return *from;                                                      \
    }
#define EMU_STORE(name)                                                        \
    template <class T>                                                         \
    static inline void name(T *to, typename std::common_type<T>::type value) { \
        static_assert(sizeof(T) <= 16, "a thread stores at most 16 bytes");    \
        *to = value;                                                           \
    }
EMU_LOAD(__ldg)
EMU_LOAD(__ldca)
EMU_LOAD(__ldcg)
EMU_LOAD(__ldcs)
EMU_LOAD(__ldlu)
EMU_LOAD(__ldcv)
EMU_STORE(__stwb)
EMU_STORE(__stcg)
EMU_STORE(__stcs)
EMU_STORE(__stwt)

// ---- atomics: integers only; a sum of floats would depend on the order ----
// The race build recognizes the builtins as atomic accesses; threads switch only in barriers and warp operations.
template <class T>
static inline T emu_atomic_set(T *address, T old, T value) {
    __atomic_store_n(address, value, __ATOMIC_RELAXED);
    return old;
}
#define EMU_ATOMICS(T)                                                                                              \
    static inline T atomicAdd(T *address, T value) { return __atomic_fetch_add(address, value, __ATOMIC_RELAXED); } \
    static inline T atomicExch(T *address, T value) {                                                               \
        return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);                                               \
    }                                                                                                               \
    static inline T atomicCAS(T *address, T compare, T value) {                                                     \
        T old = __atomic_load_n(address, __ATOMIC_RELAXED);                                                         \
        return emu_atomic_set(address, old, old == compare ? value : old);                                          \
    }                                                                                                               \
    static inline T atomicMax(T *address, T value) {                                                                \
        T old = __atomic_load_n(address, __ATOMIC_RELAXED);                                                         \
        return emu_atomic_set(address, old, old > value ? old : value);                                             \
    }                                                                                                               \
    static inline T atomicMin(T *address, T value) {                                                                \
        T old = __atomic_load_n(address, __ATOMIC_RELAXED);                                                         \
        return emu_atomic_set(address, old, old < value ? old : value);                                             \
    }                                                                                                               \
    static inline T atomicOr(T *address, T value) { return __atomic_fetch_or(address, value, __ATOMIC_RELAXED); }   \
    static inline T atomicAnd(T *address, T value) { return __atomic_fetch_and(address, value, __ATOMIC_RELAXED); }
EMU_ATOMICS(int)
EMU_ATOMICS(unsigned)
EMU_ATOMICS(unsigned long long)

// ---- arithmetic ----
template <class To, class From>
static inline To emu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
static inline int __float_as_int(float x) { return emu_bits<int>(x); }
static inline float __int_as_float(int x) { return emu_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emu_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emu_bits<double>(x); }

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
// Macros: glibc has functions of these names in its headers.
#define __expf(x) expf(x)
#define __exp2f(x) exp2f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fsub_rn(float x, float y) { return x - y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }

static inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)(((uint64_t)x * y) >> 32); }
static inline int __mulhi(int x, int y) { return (int)(((int64_t)x * y) >> 32); }
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)(((unsigned __int128)x * y) >> 64);
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
static inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; bit++) reversed |= ((x >> bit) & 1u) << (31 - bit);
    return reversed;
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    uint64_t bytes = ((uint64_t)y << 32) | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned select = (selector >> (4 * i)) & 0xf, byte = (unsigned)(bytes >> (8 * (select & 7))) & 0xff;
        if (select & 8) byte = (byte & 0x80) ? 0xff : 0;  // its sign, eight times
        result |= byte << (8 * i);
    }
    return result;
}

#define EMU_MIN_MAX(T)                                      \
    static inline T min(T x, T y) { return x < y ? x : y; } \
    static inline T max(T x, T y) { return x > y ? x : y; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
static inline float min(float x, float y) { return fminf(x, y); }
static inline float max(float x, float y) { return fmaxf(x, y); }
static inline double min(double x, double y) { return fmin(x, y); }
static inline double max(double x, double y) { return fmax(x, y); }

#endif
