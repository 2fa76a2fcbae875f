// loss.cu: softmax cross-entropy with its gradient in place. The logits are the largest tensor of a step: a row is
// read from memory once and written once. Must not know models.
#include "llmc/cuda/backend_cuda.h"
#include "llmc/cuda/ptx.h"
#include "llmc/backend/op_check.h"

#define LOSS_MAX_THREADS 1024
#define LOSS_PACKS 4  // in flight per thread in the first pass
// Up to this size of a row, two blocks share an SM's memory and one reads while the other writes.
#define LOSS_HALF_SM_BYTES ((size_t)112 << 10)
// Shared memory that a block uses besides the row.
#define LOSS_OTHER_BYTES ((size_t)1 << 10)
#define LOG2_E 1.4426950408889634f

// exp(x - shift). For bf16 results one multiply-add and the hardware's exponential, a few 2^-24 |x| off; for fp32 the
// library's, exact to two units down to denormals.
template <class T>
static __device__ __forceinline__ float exp_shifted(float x, float shift);
template <>
__device__ __forceinline__ float exp_shifted<float>(float x, float shift) {
    return expf(x - shift);
}
template <>
__device__ __forceinline__ float exp_shifted<bf16>(float x, float shift) {
    return ptx_exp2(fmaf(x, LOG2_E, -shift * LOG2_E));
}
// A logit as input of the softmax: capped to (-cap, cap), or unchanged for cap 0. For bf16 an absolute error of
// 2^-23 cap is accurate enough: tanh(u) = 1 - 2 / (1 + exp(2u)).
template <class T, bool CAPPED>
static __device__ __forceinline__ float capped_logit(float x, float cap) {
    if (!CAPPED) return x;
    if (sizeof(T) == sizeof(float)) return cap * tanhf(x / cap);
    return cap - __fdividef(2.0f * cap, 1.0f + ptx_exp2(x * (2.0f * LOG2_E / cap)));
}

// The sum of exp(logit - top) over the logits seen so far, top being the largest of them.
struct OnlineSoftmax {
    float top, sum;
};
// Adds W logits; top ignores NaN, the exponentials carry it into the sum.
template <class T, int W>
static __device__ __forceinline__ void softmax_take(OnlineSoftmax *s, const float (&x)[W]) {
    float most = x[0];
#pragma unroll
    for (int i = 1; i < W; ++i) most = fmaxf(most, x[i]);
    if (most > s->top) {
        s->sum *= exp_shifted<T>(s->top, most);
        s->top = most;
    }
    float shift = s->top == -INFINITY ? 0.0f : s->top;
#pragma unroll
    for (int i = 0; i < W; ++i) s->sum += exp_shifted<T>(x[i], shift);
}

// A block's row.
template <class T, int W>
struct LossRow {
    T *logits;
    Pack<T, W> *cache;  // shared memory: the row's first packs, each used by one thread only
    int cached_packs, V, Vp, target;
    float cap;
};

// The thread's share of the softmax's sum; the part of the row that fits is cached.
template <class T, int W, bool CAPPED>
static __device__ __forceinline__ OnlineSoftmax loss_row_read(const LossRow<T, W> &r) {
    int threads = (int)blockDim.x, live = (r.V + W - 1) / W;
    OnlineSoftmax s = {-INFINITY, 0.0f};
    for (int first = (int)threadIdx.x; first < live; first += LOSS_PACKS * threads) {
        Pack<T, W> x[LOSS_PACKS] = {};
#pragma unroll
        for (int k = 0; k < LOSS_PACKS; ++k)
            if (first + k * threads < live) x[k] = pack_load<T, W>(r.logits + (int64_t)(first + k * threads) * W);
#pragma unroll
        for (int k = 0; k < LOSS_PACKS; ++k) {
            int p = first + k * threads;
            if (p >= live) continue;
            if (p < r.cached_packs) r.cache[p] = x[k];
            float v[W];
            pack_to_floats<W>(v, x[k]);
#pragma unroll
            for (int i = 0; i < W; ++i) v[i] = capped_logit<T, CAPPED>(v[i], r.cap);
            if ((p + 1) * W > r.V)  // the padding after the vocabulary
#pragma unroll
                for (int i = 0; i < W; ++i) v[i] = p * W + i < r.V ? v[i] : -INFINITY;
            softmax_take<T, W>(&s, v);
        }
    }
    return s;
}

// d(scale nll)/d(logit) = scale (softmax - [v is the target]) (1 - tanh^2 where capped)
template <class T, int W, bool CAPPED>
static __device__ __forceinline__ void loss_row_write(const LossRow<T, W> &r, OnlineSoftmax s, float scale) {
    float factor = scale / s.sum;
#pragma unroll 2
    for (int p = (int)threadIdx.x; p < r.Vp / W; p += (int)blockDim.x) {
        Pack<T, W> x;
        if (p < r.cached_packs && p * W < r.V) x = r.cache[p];
        else x = pack_load<T, W>(r.logits + (int64_t)p * W);
        float v[W], d[W];
        pack_to_floats<W>(v, x);
#pragma unroll
        for (int i = 0; i < W; ++i) {
            v[i] = capped_logit<T, CAPPED>(v[i], r.cap);
            d[i] = exp_shifted<T>(v[i], s.top) * factor;
        }
        if (p == r.target / W)
#pragma unroll
            for (int i = 0; i < W; ++i) d[i] -= i == r.target % W ? scale : 0.0f;
#pragma unroll
        for (int i = 0; i < W; ++i)
            if (CAPPED) d[i] *= 1.0f - v[i] / r.cap * (v[i] / r.cap);
        if ((p + 1) * W > r.V)
#pragma unroll
            for (int i = 0; i < W; ++i) d[i] = p * W + i < r.V ? d[i] : 0.0f;
        pack_store_once<T, W>(r.logits + (int64_t)p * W, pack_from_floats<T, W>(d));
    }
}

// One block per row. The first pass reads the row, keeps as much of it as fits in shared memory and sums the softmax
// online; the second writes the gradient. The part that does not fit is read again, mostly from L2. Bound: 2*N*Vp
// elements, read and written once; half of it without a gradient. About 16 instructions per element (bf16, no cap),
// less than half of what memory speed allows. loss_scale is NULL if no gradient is needed. A target outside the
// vocabulary makes its row NaN.
template <class T, int W, bool CAPPED>
static __global__ void __launch_bounds__(LOSS_MAX_THREADS)
    cross_entropy_kernel(float *nll, T *logits, const int32_t *__restrict__ targets,
                         const float *__restrict__ weights, const float *__restrict__ loss_scale, int V, int Vp,
                         int cached_packs, float cap) {
    SHARED_ARRAY(float, partial, WARP);
    typedef Pack<T, W> LogitPack;
    SHARED_DYNAMIC(LogitPack, cache);
    int64_t row = blockIdx.x;
    LossRow<T, W> r = {logits + row * Vp, cache, cached_packs, V, Vp, targets[row], cap};
    float weight = weights[row];
    if (weight == 0.0f) {  // whatever its target and logits are
        const float zeros[W] = {};
        if (threadIdx.x == 0) nll[row] = 0;
        for (int p = (int)threadIdx.x; loss_scale != NULL && p < Vp / W; p += (int)blockDim.x)
            pack_store_once<T, W>(r.logits + (int64_t)p * W, pack_from_floats<T, W>(zeros));
        return;
    }
    bool bad = r.target < 0 || r.target >= V;
    float at_target = capped_logit<T, CAPPED>(to_float(r.logits[bad ? 0 : r.target]), cap);
    OnlineSoftmax s = loss_row_read<T, W, CAPPED>(r);
    float top = block_max(s.top, partial);
    if (s.top > -INFINITY) s.sum *= exp_shifted<T>(s.top, top);
    s = {top, block_sum(s.sum, partial)};
    // Logits may be large and their difference small: use double.
    if (threadIdx.x == 0) nll[row] = bad ? NAN : (float)(log((double)s.sum) + (double)s.top - (double)at_target);
    if (loss_scale != NULL) loss_row_write<T, W, CAPPED>(r, s, bad ? NAN : weight * *loss_scale);
}

typedef struct {
    Tensor nll, logits, targets, weights;
    CrossEntropyArgs args;
} LossCall;

template <class T, int W, bool CAPPED>
static void cross_entropy_launch(Backend *be, const LossCall *c) {
    int64_t N = c->logits.dim[0], Vp = c->logits.dim[1], packs = Vp / W;
    size_t row_bytes = to_size(packs) * sizeof(Pack<T, W>), cached_bytes = 0;
    // The number of threads, hence the sum's order, depends on the row alone; caching does not change results.
    int64_t most = row_bytes <= LOSS_HALF_SM_BYTES ? LOSS_MAX_THREADS / 2 : LOSS_MAX_THREADS;
    int64_t threads = min_i64(most, round_up(packs, WARP));
    if (c->args.want_grad) {
        cached_bytes = cuda_state(be)->shared_bytes_limit - LOSS_OTHER_BYTES;
        if (cached_bytes > row_bytes) cached_bytes = row_bytes;
    }
    GPU_LAUNCH(be, (cross_entropy_kernel<T, W, CAPPED>), dim3((unsigned)N), dim3((unsigned)threads), cached_bytes,
               (float *)c->nll.data, (T *)c->logits.data, (const int32_t *)c->targets.data,
               (const float *)c->weights.data, c->args.want_grad ? (const float *)c->args.loss_scale.data : NULL,
               to_i32(c->args.V), to_i32(Vp), (int)(cached_bytes / sizeof(Pack<T, W>)), c->args.softcap);
}
template <class T>
static void cross_entropy_any(Backend *be, const LossCall *c) {
    bool vector = c->logits.dim[1] % PACK<T> == 0 && gpu_aligned(c->logits.data), capped = c->args.softcap > 0;
    if (vector && capped) cross_entropy_launch<T, PACK<T>, true>(be, c);
    else if (vector) cross_entropy_launch<T, PACK<T>, false>(be, c);
    else if (capped) cross_entropy_launch<T, 1, true>(be, c);
    else cross_entropy_launch<T, 1, false>(be, c);
}

static void cross_entropy(Backend *be, Tensor nll, Tensor logits, Tensor targets, Tensor weights,
                          CrossEntropyArgs args) {
    op_check_cross_entropy(nll, logits, targets, weights, &args);
    if (logits.dim[0] == 0) return;
    LossCall call = {nll, logits, targets, weights, args};
    if (logits.dtype == DTYPE_F32) cross_entropy_any<float>(be, &call);
    else cross_entropy_any<bf16>(be, &call);
}

void loss_register_cuda(Backend *be) { be->cross_entropy = cross_entropy; }
