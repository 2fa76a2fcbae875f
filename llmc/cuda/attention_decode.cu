// attention_decode.cu: attention of a few new positions against a cache of keys and values, and appending to the
// cache, for sampling. Many positions at once, such as a prompt, use attention_forward.cu's tiles instead. Must not
// know tensors.
//
// A block computes one head of one position: it processes 256 keys at a time with an online softmax. Bound by the
// bytes of K and V (2*keys*HS elements per head) or, with one sequence and few heads, by the latency of this loop.
#include "llmc/cuda/attention_tile.h"

#define DECODE_THREADS 256

// The dot product of the query in shared memory with one key.
template <class T, int W>
__device__ __forceinline__ float decode_dot(const float *q, const T *k, int HS) {
    float sum = 0.0f;
#pragma unroll 4
    for (int column = 0; column < HS; column += W) {
        Pack<T, W> pack = pack_load<T, W>(k + column);
#pragma unroll
        for (int x = 0; x < W; ++x) sum = fmaf(q[column + x], to_float(pack.v[x]), sum);
    }
    return sum;
}

// Grid (NH, queries). A thread computes one key's score, then W columns of the output over every parts-th key.
template <class T, int W>
__global__ void __launch_bounds__(DECODE_THREADS) attention_decode_kernel(AttentionProblem p) {
    SHARED_ARRAY(float, q, ATTENTION_LARGEST_HS);
    SHARED_ARRAY(float, weights, DECODE_THREADS);
    SHARED_ARRAY(float, partial, WARP);
    SHARED_ARRAY(float, sums, DECODE_THREADS *W);
    int h = (int)blockIdx.x, i = (int)blockIdx.y, t = (int)threadIdx.x;
    const T *query = (const T *)p.q + (int64_t)i * p.q_stride + h * p.HS;
    const T *k = (const T *)p.k + h / p.group * p.HS, *v = (const T *)p.v + h / p.group * p.HS;
    for (int column = t; column < p.HS; column += DECODE_THREADS)
        q[column] = to_float(query[column]) * p.scale * ATTENTION_LOG2E;
    __syncthreads();

    int chunks = p.HS / W, parts = DECODE_THREADS / chunks, part = t / chunks, column = t % chunks * W;
    int end = p.first + i + 1, begin = max(0, end - p.window);
    float top = -INFINITY, sum = 0.0f, out[W];
    for (int x = 0; x < W; ++x) out[x] = 0.0f;
    for (int j0 = begin; j0 < end; j0 += DECODE_THREADS) {
        int keys = min(DECODE_THREADS, end - j0);
        float score = t < keys ? decode_dot<T, W>(q, k + (int64_t)(j0 + t) * p.kv_stride, p.HS) : -INFINITY;
        float most = fmaxf(top, block_max(score, partial));
        float rescale = ptx_exp2(top - most), weight = ptx_exp2(score - most);
        top = most;
        weights[t] = weight;
        sum = fmaf(sum, rescale, block_sum(weight, partial));
        for (int x = 0; x < W; ++x) out[x] *= rescale;
#pragma unroll 4
        for (int j = part; part < parts && j < keys; j += parts) {
            Pack<T, W> pack = pack_load<T, W>(v + (int64_t)(j0 + j) * p.kv_stride + column);
#pragma unroll
            for (int x = 0; x < W; ++x) out[x] = fmaf(weights[j], to_float(pack.v[x]), out[x]);
        }
    }
    if (part < parts)
        for (int x = 0; x < W; ++x) sums[part * p.HS + column + x] = out[x];
    __syncthreads();
    for (int x = t; x < p.HS; x += DECODE_THREADS) {
        float total = 0.0f;
        for (int from = 0; from < parts; ++from) total += sums[from * p.HS + x];
        ((T *)p.out)[(int64_t)i * p.out_stride + h * p.HS + x] = from_float<T>(total / sum);
    }
}

// Rows start, start+1, ... of both caches = the key and value parts of qkv's rows.
template <class T, int W>
__global__ void __launch_bounds__(DECODE_THREADS)
    attention_append_kernel(T *k_cache, T *v_cache, const T *k, const T *v, int64_t rows, int64_t width,
                            int64_t qkv_stride) {
    int64_t x = ((int64_t)blockIdx.x * DECODE_THREADS + threadIdx.x) * W;
    if (x >= rows * width) return;
    int64_t from = x / width * qkv_stride + x % width;
    pack_store(k_cache + x, pack_load<T, W>(k + from));
    pack_store(v_cache + x, pack_load<T, W>(v + from));
}

template <class T, int W>
static void decode_launch(Backend *be, const AttentionProblem *p) {
    GPU_LAUNCH(be, (attention_decode_kernel<T, W>), dim3((unsigned)p->NH, (unsigned)p->queries), dim3(DECODE_THREADS),
               0, *p);
}
template <class T, int W>
static void append_launch(Backend *be, const AttentionAppend *a) {
    int64_t packs = a->rows * a->width / W;
    GPU_LAUNCH(be, (attention_append_kernel<T, W>), dim3((unsigned)to_i32(div_up(packs, DECODE_THREADS))),
               dim3(DECODE_THREADS), 0, (T *)a->k_to, (T *)a->v_to, (const T *)a->k, (const T *)a->v, a->rows,
               a->width, a->stride);
}

void attention_append_run(Backend *be, const AttentionAppend *append) {
    if (append->dtype == DTYPE_BF16 && append->aligned) append_launch<bf16, PACK<bf16>>(be, append);
    else if (append->dtype == DTYPE_BF16) append_launch<bf16, 1>(be, append);
    else if (append->aligned) append_launch<float, PACK<float>>(be, append);
    else append_launch<float, 1>(be, append);
}
void attention_decode_run(Backend *be, const AttentionProblem *problem) {
    if (problem->dtype == DTYPE_BF16 && problem->aligned) decode_launch<bf16, PACK<bf16>>(be, problem);
    else if (problem->dtype == DTYPE_BF16) decode_launch<bf16, 1>(be, problem);
    else if (problem->aligned) decode_launch<float, PACK<float>>(be, problem);
    else decode_launch<float, 1>(be, problem);
}
