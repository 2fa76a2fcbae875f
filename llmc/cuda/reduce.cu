// reduce.cu: sums over rows: bias gradients, the second stage of all parameter gradients (partials.h) and the
// weighted loss; sums of hashes over elements. Must not know models.
#include "llmc/cuda/partials.h"
#include "llmc/base/hash_element.h"
#include "llmc/backend/op_check.h"

// ---- second stage ----
#define PARTIALS_WARPS 16

// 32 columns per block; warp w adds the rows w, w + 16, ...; the warps' sums are added in order. The partial rows were
// just written and are in L2: a few microseconds.
static __global__ void __launch_bounds__(PARTIALS_WARPS *WARP)
    partials_sum_kernel(float *a, float *b, const float *__restrict__ partials, int64_t a_width, int64_t width,
                        int blocks, bool accumulate) {
    SHARED_ARRAY(float, sums, PARTIALS_WARPS *WARP);
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    int64_t column = (int64_t)blockIdx.x * WARP + lane;
    float sum = 0;
    if (column < width) {
#pragma unroll 8
        for (int i = warp; i < blocks; i += PARTIALS_WARPS) sum += partials[i * width + column];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp != 0 || column >= width) return;
    float total = 0;
    for (int w = 0; w < PARTIALS_WARPS; ++w) total += sums[w * WARP + lane];
    float *out = column < a_width ? a + column : b + (column - a_width);
    *out = accumulate ? *out + total : total;
}

void cuda_partials_sum(Backend *be, float *a, int64_t a_width, float *b, int64_t b_width, const float *partials,
                       int64_t blocks, bool accumulate) {
    int64_t width = a_width + b_width;
    if (width == 0) return;
    GPU_LAUNCH(be, partials_sum_kernel, dim3((unsigned)div_up(width, WARP)), dim3(PARTIALS_WARPS * WARP), 0, a, b,
               partials, a_width, width, (int)blocks, accumulate);
}

// ---- bias gradients ----
#define BIAS_WARPS 8
#define BIAS_FLIGHT 4  // rows in flight per warp
// Fewest rows per block of threads.
#define BIAS_MIN_ROWS 32

// A warp reads W*32 neighbouring columns of every eighth row of the block's rows, several rows in flight. Bound: N*C
// elements read once.
template <class T, int W>
static __global__ void __launch_bounds__(BIAS_WARPS *WARP)
    bias_backward_kernel(float *partials, const T *__restrict__ dout, int64_t N, int64_t C) {
    SHARED_ARRAY(float, sums, BIAS_WARPS *WARP *W);
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    int64_t first_column = (int64_t)blockIdx.y * WARP * W, column = first_column + lane * W;
    int64_t first = partials_first_row(N, blockIdx.x), end = partials_first_row(N, blockIdx.x + 1);
    float sum[W] = {};
    for (int64_t row = first + warp; column < C && row < end; row += BIAS_FLIGHT * BIAS_WARPS) {
        Pack<T, W> d[BIAS_FLIGHT] = {};
#pragma unroll
        for (int k = 0; k < BIAS_FLIGHT; ++k)
            if (row + k * BIAS_WARPS < end) d[k] = pack_load<T, W>(dout + (row + k * BIAS_WARPS) * C + column);
#pragma unroll
        for (int k = 0; k < BIAS_FLIGHT; ++k) {
            float x[W];
            pack_to_floats<W>(x, d[k]);
#pragma unroll
            for (int i = 0; i < W; ++i) sum[i] += x[i];
        }
    }
#pragma unroll
    for (int i = 0; i < W; ++i) sums[(warp * W + i) * WARP + lane] = sum[i];
    __syncthreads();
    // Thread c finishes column c: element c % W of lane c / W.
    int c = (int)threadIdx.x;
    if (c >= WARP * W || first_column + c >= C) return;
    float total = 0;
    for (int w = 0; w < BIAS_WARPS; ++w) total += sums[(w * W + c % W) * WARP + c / W];
    partials[(int64_t)blockIdx.x * C + first_column + c] = total;
}

template <class T, int W>
static void bias_backward_launch(Backend *be, float *partials, Tensor dout, int64_t blocks) {
    int64_t N = dout.dim[0], C = dout.dim[1];
    GPU_LAUNCH(be, (bias_backward_kernel<T, W>), dim3((unsigned)blocks, (unsigned)div_up(C, WARP * W)),
               dim3(BIAS_WARPS * WARP), 0, partials, (const T *)dout.data, N, C);
}
template <class T>
static void bias_backward_any(Backend *be, float *partials, Tensor dout, int64_t blocks) {
    if (dout.dim[1] % PACK<T> == 0 && gpu_aligned(dout.data))
        bias_backward_launch<T, PACK<T>>(be, partials, dout, blocks);
    else bias_backward_launch<T, 1>(be, partials, dout, blocks);
}

static void bias_backward(Backend *be, Tensor dbias, Tensor dout, bool accumulate) {
    op_check_bias_backward(dbias, dout);
    int64_t N = dout.dim[0], C = dout.dim[1], blocks = partials_blocks(N, BIAS_MIN_ROWS);
    float *partials = (float *)cuda_scratch(be, to_size(max_i64(blocks, 1) * C) * sizeof(float));
    if (blocks > 0 && dout.dtype == DTYPE_F32) bias_backward_any<float>(be, partials, dout, blocks);
    if (blocks > 0 && dout.dtype == DTYPE_BF16) bias_backward_any<bf16>(be, partials, dout, blocks);
    cuda_partials_sum(be, (float *)dbias.data, C, NULL, 0, partials, blocks, accumulate);
}

// ---- weighted loss ----
#define WEIGHTED_THREADS 256
#define WEIGHTED_ELEMS (WEIGHTED_THREADS * 8)  // per block at a time

// partials[block] = the block's share of sum(weights * nll). Reads 2*N floats, which is little.
static __global__ void __launch_bounds__(WEIGHTED_THREADS)
    weighted_sum_kernel(double *partials, const float *__restrict__ nll, const float *__restrict__ weights,
                        int64_t N) {
    SHARED_ARRAY(double, shared, WARP);
    double sum = 0;
#pragma unroll 8
    for (int64_t i = (int64_t)blockIdx.x * WEIGHTED_THREADS + threadIdx.x; i < N;
         i += (int64_t)gridDim.x * WEIGHTED_THREADS)
        sum += (double)weights[i] * (double)nll[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}
static __global__ void __launch_bounds__(CUDA_ROW_BLOCKS)
    weighted_sum_finish_kernel(double *out, const double *partials, int blocks, bool accumulate) {
    SHARED_ARRAY(double, shared, WARP);
    double sum = block_sum((int)threadIdx.x < blocks ? partials[threadIdx.x] : 0.0, shared);
    if (threadIdx.x == 0) *out = accumulate ? *out + sum : sum;
}

static void weighted_sum(Backend *be, Tensor out, Tensor nll, Tensor weights, bool accumulate) {
    int64_t N = tensor_elems(nll);
    op_check_weighted_sum(out, nll, weights);
    int64_t blocks = partials_blocks(N, WEIGHTED_ELEMS);
    double *partials = (double *)cuda_scratch(be, CUDA_ROW_BLOCKS * sizeof(double));
    if (blocks > 0)
        GPU_LAUNCH(be, weighted_sum_kernel, dim3((unsigned)blocks), dim3(WEIGHTED_THREADS), 0, partials,
                   (const float *)nll.data, (const float *)weights.data, N);
    GPU_LAUNCH(be, weighted_sum_finish_kernel, dim3(1), dim3(CUDA_ROW_BLOCKS), 0, (double *)out.data, partials,
               (int)blocks, accumulate);
}

// ---- hashes ----
#define HASH_THREADS 256
#define HASH_MAX_BLOCKS 2048
#define HASH_FLIGHT 4  // packs in flight per thread

static __device__ __forceinline__ uint32_t bits_of(float x) { return __float_as_uint(x); }
static __device__ __forceinline__ uint32_t bits_of(bf16 x) { return __bfloat16_as_ushort(x); }

// *out += the block's share. Sums mod 2^64 are the same in any order, so atomics are safe. Bound: one read; two 64-bit
// products per element take about the same time.
template <class T, int W>
__global__ void __launch_bounds__(HASH_THREADS)
    hash_sum_kernel(unsigned long long *out, const T *__restrict__ x, int64_t elems, uint64_t first_elem) {
    SHARED_ARRAY(unsigned long long, shared, WARP);
    int64_t stride = (int64_t)gridDim.x * HASH_THREADS * W;
    int64_t i = ((int64_t)blockIdx.x * HASH_THREADS + (int64_t)threadIdx.x) * W;
    uint64_t sum = 0;
    for (; i + (HASH_FLIGHT - 1) * stride + W <= elems; i += HASH_FLIGHT * stride) {
        Pack<T, W> packs[HASH_FLIGHT];
#pragma unroll
        for (int k = 0; k < HASH_FLIGHT; ++k) packs[k] = pack_load<T, W>(x + i + k * stride);
#pragma unroll
        for (int k = 0; k < HASH_FLIGHT; ++k) {
            uint64_t place = (first_elem + (uint64_t)(i + k * stride)) * HASH_PLACE;
#pragma unroll
            for (int w = 0; w < W; ++w, place += HASH_PLACE) sum += hash_at_place(place, bits_of(packs[k].v[w]));
        }
    }
    for (; i < elems; i += stride)
        for (int w = 0; w < W && i + w < elems; ++w)
            sum += hash_element(first_elem + (uint64_t)(i + w), bits_of(x[i + w]));
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(FULL_MASK, (unsigned long long)sum, distance);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    unsigned long long total = 0;
    for (int warp = 0; warp < HASH_THREADS / WARP; ++warp) total += shared[warp];
    atomicAdd(out, total);
}

template <class T>
static void hash_sum_any(Backend *be, uint64_t *out, Tensor x, int64_t first_elem) {
    int64_t elems = tensor_elems(x);
    dim3 grid((unsigned)min_i64(div_up(elems, HASH_THREADS * PACK<T>), HASH_MAX_BLOCKS));
    if (gpu_aligned(x.data))
        GPU_LAUNCH(be, (hash_sum_kernel<T, PACK<T>>), grid, dim3(HASH_THREADS), 0, (unsigned long long *)out,
                   (const T *)x.data, elems, (uint64_t)first_elem);
    else
        GPU_LAUNCH(be, (hash_sum_kernel<T, 1>), grid, dim3(HASH_THREADS), 0, (unsigned long long *)out,
                   (const T *)x.data, elems, (uint64_t)first_elem);
}
static void hash_sum(Backend *be, uint64_t *out, Tensor x, int64_t first_elem, bool accumulate) {
    op_check_hash_sum(out, x, first_elem);
    if (!accumulate) be->zero(be, out, sizeof *out);
    if (tensor_elems(x) == 0) return;
    if (x.dtype == DTYPE_F32) hash_sum_any<float>(be, out, x, first_elem);
    else hash_sum_any<bf16>(be, out, x, first_elem);
}

void reduce_register_cuda(Backend *be) {
    be->bias_backward = bias_backward;
    be->weighted_sum = weighted_sum;
    be->hash_sum = hash_sum;
}
