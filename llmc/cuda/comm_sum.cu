// comm_sum.cu: the kernels of the NCCL group: rounding data that is sent as bf16, and adding the ranks' contributions
// in the fixed binary tree of comm.h, which NCCL's own reductions do not provide. comm_nccl.cu launches them on its
// own stream.
//
// All are memory-bound; their data is not reused soon.
#include "llmc/cuda/comm_nccl.h"

#define COMM_THREADS 256
// Contributions of W elements that a thread loads at a time: the lowest levels of the tree, in registers.
template <int W>
constexpr int COMM_LEAVES = W == 8 ? 4 : 8;
// Levels above them.
#define COMM_LEVELS 13
#define COMM_MOST_RANKS (4 << COMM_LEVELS)

static __device__ __forceinline__ int64_t comm_pack(void) { return (int64_t)blockIdx.x * COMM_THREADS + threadIdx.x; }
static dim3 comm_grid(int64_t packs) { return dim3((unsigned)div_up(packs, COMM_THREADS)); }

// ---- rounding: reads 4, writes 2 bytes per element ----

template <int W>
static __global__ void __launch_bounds__(COMM_THREADS) comm_round_kernel(bf16 *out, const float *in, int64_t packs) {
    if (comm_pack() >= packs) return;
    float v[W];
    pack_to_floats<W>(v, pack_load_once<float, W>(in + comm_pack() * W));
    pack_store_once<bf16, W>(out + comm_pack() * W, pack_from_floats<bf16, W>(v));
}

cudaError_t comm_round(bf16 *out, const float *in, int64_t elems, cudaStream_t stream) {
    if (elems == 0) return cudaSuccess;
    if (gpu_aligned(out) && gpu_aligned(in) && elems % PACK<float> == 0)
        return gpu_launch((comm_round_kernel<PACK<float>>), comm_grid(elems / PACK<float>), dim3(COMM_THREADS), 0,
                          stream, out, in, elems / PACK<float>);
    return gpu_launch((comm_round_kernel<1>), comm_grid(elems), dim3(COMM_THREADS), 0, stream, out, in, elems);
}

// ---- the sum: (world + 1) * 4 bytes per element in fp32 ----

static __device__ __forceinline__ float comm_widen(float x) { return x; }
static __device__ __forceinline__ float comm_widen(bf16 x) { return __bfloat162float(x); }
static __device__ __forceinline__ double comm_widen(double x) { return x; }

// Sums the existing ones of the contributions first .. first + LEAVES - 1 in v[0]. All loads are issued before the
// sums.
template <class S, class T, int W, int LEAVES>
static __device__ __forceinline__ void comm_sum_leaves(S (&v)[LEAVES][W], const T *own, const T *received,
                                                       int64_t stride, int rank, int world, int first) {
    Pack<T, W> leaf[LEAVES];
#pragma unroll
    for (int i = 0; i < LEAVES; ++i) {
        int from = first + i;
        if (from < world)
            leaf[i] = pack_load_once<T, W>(from == rank ? own : received + (from - (from > rank)) * stride);
    }
#pragma unroll
    for (int i = 0; i < LEAVES; ++i)
        if (first + i < world)
#pragma unroll
            for (int k = 0; k < W; ++k) v[i][k] = comm_widen(leaf[i].v[k]);
#pragma unroll
    for (int step = 1; step < LEAVES; step *= 2)
#pragma unroll
        for (int i = 0; i < LEAVES; i += 2 * step)
            if (first + i + step < world)
#pragma unroll
                for (int k = 0; k < W; ++k) v[i][k] += v[i + step][k];
}

// S sums contributions of T. The subtrees of LEAVES ranks are combined as a binary counter carries: level l holds
// the sum of 2^l of them while bit l of their number is set.
template <class S, class T, int W>
static __global__ void __launch_bounds__(COMM_THREADS)
    comm_sum_kernel(S *out, const T *own, const T *received, int64_t stride, int rank, int world, int64_t packs,
                    bool accumulate) {
    if (comm_pack() >= packs) return;
    constexpr int LEAVES = COMM_LEAVES<W>;
    int64_t at = comm_pack() * W;
    S v[LEAVES][W];
    comm_sum_leaves<S, T, W, LEAVES>(v, own + at, received + at, stride, rank, world, 0);
    if (world > LEAVES) {
        S level[COMM_LEVELS + 1][W];
        int subtrees = (world + LEAVES - 1) / LEAVES;
        for (int tree = 0; tree < subtrees; ++tree) {
            if (tree > 0)
                comm_sum_leaves<S, T, W, LEAVES>(v, own + at, received + at, stride, rank, world, tree * LEAVES);
            int l = 0;
            for (; tree >> l & 1; ++l)
#pragma unroll
                for (int k = 0; k < W; ++k) v[0][k] = level[l][k] + v[0][k];
#pragma unroll
            for (int k = 0; k < W; ++k) level[l][k] = v[0][k];
        }
        int lowest = 0;
        while ((subtrees >> lowest & 1) == 0) ++lowest;
#pragma unroll
        for (int k = 0; k < W; ++k) v[0][k] = level[lowest][k];
        for (int l = lowest + 1; subtrees >> l; ++l)
            if (subtrees >> l & 1)
#pragma unroll
                for (int k = 0; k < W; ++k) v[0][k] = level[l][k] + v[0][k];
    }
    constexpr int STEP = W * (int)sizeof(S) > 16 ? 16 / (int)sizeof(S) : W;
#pragma unroll
    for (int k = 0; k < W; k += STEP) {
        Pack<S, STEP> sum;
        if (accumulate) sum = pack_load_once<S, STEP>(out + at + k);
#pragma unroll
        for (int i = 0; i < STEP; ++i) sum.v[i] = accumulate ? sum.v[i] + v[0][k + i] : v[0][k + i];
        pack_store_once<S, STEP>(out + at + k, sum);
    }
}

template <class S, class T>
static cudaError_t sum_any(void *out, CommContributions from, int64_t elems, bool accumulate, cudaStream_t stream) {
    const T *own = (const T *)from.own, *received = (const T *)from.received;
    constexpr int W = PACK<T>;
    if (elems % W == 0 && from.stride % W == 0 && gpu_aligned(out) && gpu_aligned(own) && gpu_aligned(received))
        return gpu_launch((comm_sum_kernel<S, T, W>), comm_grid(elems / W), dim3(COMM_THREADS), 0, stream, (S *)out,
                          own, received, from.stride, from.rank, from.world, elems / W, accumulate);
    return gpu_launch((comm_sum_kernel<S, T, 1>), comm_grid(elems), dim3(COMM_THREADS), 0, stream, (S *)out, own,
                      received, from.stride, from.rank, from.world, elems, accumulate);
}

cudaError_t comm_sum(void *out, CommContributions from, int64_t elems, bool accumulate, cudaStream_t stream) {
    CHECK(from.world >= 1 && from.world <= COMM_MOST_RANKS, "world=%d", from.world);
    if (elems == 0) return cudaSuccess;
    if (from.dtype == DTYPE_F32) return sum_any<float, float>(out, from, elems, accumulate, stream);
    if (from.dtype == DTYPE_BF16) return sum_any<float, bf16>(out, from, elems, accumulate, stream);
    CHECK(from.dtype == DTYPE_F64, "dtype %s", dtype_name(from.dtype));
    return sum_any<double, double>(out, from, elems, accumulate, stream);
}

// ---- progress of the stream ----

static __global__ void comm_mark_kernel(volatile int64_t *word, int64_t value) { *word = value; }

cudaError_t comm_mark(volatile int64_t *word, int64_t value, cudaStream_t stream) {
    return gpu_launch(comm_mark_kernel, dim3(1), dim3(1), 0, stream, word, value);
}
