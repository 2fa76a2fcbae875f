// rope.cu: the q and k heads between their projection and attention: RMS norm of each head (QK-norm, optional), then
// rotary position embedding (Su et al., "RoFormer"; optional). v heads are copied unchanged. Must not know models.
//
// `lanes` neighbouring lanes, a power of two, process a head. A lane has PER pairs of packs: W elements of the first
// half of the head and the W elements half a head further, which are rotated together. PER and W are (1, 16 bytes)
// for the head sizes of common models and (16, one element) for all others.
#include "llmc/cuda/partials.h"
#include "llmc/backend/op_check.h"

#define QK_THREADS 256
#define QK_SCALAR_PER (OP_MAX_HEAD_SIZE / 2 / WARP)

// A call, common to both directions. Angles come from tables: no sines are computed.
typedef struct {
    int64_t N;
    int NH, NKV, HS;
    int first_half;          // elements of a head's first half; of an odd head size the larger half
    int heads;               // per row: q and k, and v if it must be copied
    int lanes;               // per head
    const float *cos, *sin;  // NULL: no rotation
    const int32_t *positions;
    int64_t P;
    float eps;
} QkShape;

template <int W, int PER>
struct QkHead {
    float a[PER][W], b[PER][W];  // first and second half
};

// A lane's part of the head at x; elements beyond the head are 0.
template <class T, int W, int PER>
static __device__ __forceinline__ QkHead<W, PER> head_load(const T *x, const QkShape &s, int lane) {
    QkHead<W, PER> h = {};
#pragma unroll
    for (int k = 0; k < PER; ++k) {
        int i = (lane + k * s.lanes) * W;
        Pack<T, W> a = {}, b = {};
        if (i < s.first_half) a = pack_load<T, W>(x + i);
        if (i < s.HS - s.first_half) b = pack_load<T, W>(x + s.first_half + i);
        pack_to_floats<W>(h.a[k], a);
        pack_to_floats<W>(h.b[k], b);
    }
    return h;
}
template <class T, int W, int PER>
static __device__ __forceinline__ void head_store(T *x, const QkHead<W, PER> &h, const QkShape &s, int lane) {
#pragma unroll
    for (int k = 0; k < PER; ++k) {
        int i = (lane + k * s.lanes) * W;
        if (i < s.first_half) pack_store<T, W>(x + i, pack_from_floats<T, W>(h.a[k]));
        if (i < s.HS - s.first_half) pack_store<T, W>(x + s.first_half + i, pack_from_floats<T, W>(h.b[k]));
    }
}
// (a, b) -> (a cos - b sin, b cos + a sin); direction -1 is the inverse (the transpose). A position outside the tables
// never becomes an address: it makes the head NaN.
template <int W, int PER>
static __device__ __forceinline__ void head_rotate(QkHead<W, PER> *h, const QkShape &s, int64_t row, float direction,
                                                   int lane) {
    if (s.cos == NULL) return;
    int64_t position = s.positions[row];
    bool bad = position < 0 || position >= s.P;
    if (bad) position = 0;
#pragma unroll
    for (int k = 0; k < PER; ++k) {
        int i = (lane + k * s.lanes) * W;
        if (i >= s.first_half) continue;
        float c[W], sn[W];
        floats_load<W>(c, s.cos + position * s.first_half + i);
        floats_load<W>(sn, s.sin + position * s.first_half + i);
#pragma unroll
        for (int w = 0; w < W; ++w) {
            float a = h->a[k][w], b = h->b[k][w], turn = bad ? NAN : direction * sn[w];
            h->a[k][w] = a * c[w] - b * turn;
            h->b[k][w] = b * c[w] + a * turn;
        }
    }
}
// Over the lanes of a head; every lane receives the sum. Every lane of the warp takes part.
static __device__ __forceinline__ float head_sum(float x, int lanes) {
    for (int distance = lanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(FULL_MASK, x, distance);
    return x;
}

// ---- forward, and the backward of a rotation alone (direction -1) ----
// Bound: the heads read and written once, 2*N*QKV elements (v only where it is not in place); the tables' rows,
// shared by the heads of a row, come from L1.
template <class T, int W, int PER, bool NORM>
static __global__ void __launch_bounds__(QK_THREADS)
    qk_forward_kernel(T *out, float *rstd_out, const T *in, const T *__restrict__ q_weight,
                      const T *__restrict__ k_weight, QkShape s, float direction) {
    int lane = (int)threadIdx.x % s.lanes;
    unsigned item = (blockIdx.x * QK_THREADS + threadIdx.x) / (unsigned)s.lanes;
    int64_t row = item / (unsigned)s.heads;
    int head = (int)(item % (unsigned)s.heads);
    bool real = row < s.N, rotated = head < s.NH + s.NKV;
    int64_t at = row * (s.NH + 2 * s.NKV) * s.HS + (int64_t)head * s.HS;
    QkHead<W, PER> h = {};
    if (real) h = head_load<T, W, PER>(in + at, s, lane);
    if (NORM) {
        float squares = 0;
#pragma unroll
        for (int k = 0; k < PER; ++k)
#pragma unroll
            for (int w = 0; w < W; ++w) squares += h.a[k][w] * h.a[k][w] + h.b[k][w] * h.b[k][w];
        float rstd = rsqrtf(head_sum(squares, s.lanes) / (float)s.HS + s.eps);
        if (real && rotated) {
            if (lane == 0) rstd_out[row * (s.NH + s.NKV) + head] = rstd;
            QkHead<W, PER> weight = head_load<T, W, PER>(head < s.NH ? q_weight : k_weight, s, lane);
#pragma unroll
            for (int k = 0; k < PER; ++k)
#pragma unroll
                for (int w = 0; w < W; ++w) {
                    h.a[k][w] *= rstd * weight.a[k][w];
                    h.b[k][w] *= rstd * weight.b[k][w];
                }
        }
    }
    if (!real) return;
    if (rotated) head_rotate<W, PER>(&h, s, row, direction, lane);
    head_store<T, W, PER>(out + at, h, s, lane);
}

// ---- backward through QK-norm ----
// dy, the gradient rotated back, is that of y = xhat weight, xhat = x rstd:
// dx = rstd (dy weight - xhat avg(dy weight xhat)), dweight += dy xhat.

// Adds the sums of the block's lanes over their heads and writes them to `out` (HS). `shared`: 2*W floats per thread.
template <int W, int PER>
static __device__ __forceinline__ void heads_sum(float *out, QkHead<W, PER> *sum, const QkShape &s, float *shared) {
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, warps = (int)blockDim.x / WARP;
    int width = s.lanes * W;  // of one half in one iteration
#pragma unroll
    for (int k = 0; k < PER; ++k) {
        // The heads of a warp, then the warps.
        for (int distance = s.lanes; distance < WARP; distance *= 2)
#pragma unroll
            for (int w = 0; w < W; ++w) {
                sum->a[k][w] += __shfl_xor_sync(FULL_MASK, sum->a[k][w], distance);
                sum->b[k][w] += __shfl_xor_sync(FULL_MASK, sum->b[k][w], distance);
            }
        if (lane < s.lanes)
#pragma unroll
            for (int w = 0; w < W; ++w) {
                shared[warp * 2 * width + lane * W + w] = sum->a[k][w];
                shared[warp * 2 * width + width + lane * W + w] = sum->b[k][w];
            }
        __syncthreads();
        for (int i = (int)threadIdx.x; i < 2 * width; i += (int)blockDim.x) {
            int in_half = k * width + i % width, half_elems = i < width ? s.first_half : s.HS - s.first_half;
            float total = 0;
            for (int v = 0; v < warps; ++v) total += shared[v * 2 * width + i];
            if (in_half < half_elems) out[(i < width ? 0 : s.first_half) + in_half] = total;
        }
        __syncthreads();
    }
}

// The q heads of the block's rows, then the k heads, then v if it must be copied. A lane has the same columns of
// every head that it processes, and sums the gradients of their weights in registers. Bound: dout and in read, din
// written: 3*N*(NH+NKV)*HS elements and v's copy.
template <class T, int W, int PER>
static __global__ void __launch_bounds__(QK_THREADS, PER == 1 ? 2 : 1)
    qk_backward_kernel(T *din, float *partials, const T *dout, const T *__restrict__ in,
                       const float *__restrict__ rstd, const T *__restrict__ q_weight, const T *__restrict__ k_weight,
                       QkShape s) {
    SHARED_ARRAY(float, shared, QK_THREADS * 2 * W);
    int lane = (int)threadIdx.x % s.lanes, group = (int)threadIdx.x / s.lanes, groups = (int)blockDim.x / s.lanes;
    int64_t first = partials_first_row(s.N, blockIdx.x), rows = partials_first_row(s.N, blockIdx.x + 1) - first;
    for (int kind = 0; kind < 3; ++kind) {
        int first_head = kind == 0 ? 0 : kind == 1 ? s.NH : s.NH + s.NKV;
        int heads = min(kind == 0 ? s.NH : s.NKV, s.heads - first_head);
        QkHead<W, PER> sum = {};
        for (int64_t turn = 0; turn < rows * heads; turn += groups) {
            int64_t item = turn + group, row = first + item / max(heads, 1);
            int head = first_head + (int)(item % max(heads, 1));
            bool real = item < rows * heads;
            int64_t at = row * (s.NH + 2 * s.NKV) * s.HS + (int64_t)head * s.HS;
            QkHead<W, PER> dy = {}, x = {};
            if (real) dy = head_load<T, W, PER>(dout + at, s, lane);
            if (kind < 2) {
                QkHead<W, PER> weight = head_load<T, W, PER>(kind == 0 ? q_weight : k_weight, s, lane);
                float row_rstd = 0, dot = 0;
                if (real) {
                    x = head_load<T, W, PER>(in + at, s, lane);
                    row_rstd = rstd[row * (s.NH + s.NKV) + head];
                    head_rotate<W, PER>(&dy, s, row, -1.0f, lane);
                }
#pragma unroll
                for (int k = 0; k < PER; ++k)
#pragma unroll
                    for (int w = 0; w < W; ++w) {
                        x.a[k][w] *= row_rstd;
                        x.b[k][w] *= row_rstd;
                        sum.a[k][w] += dy.a[k][w] * x.a[k][w];
                        sum.b[k][w] += dy.b[k][w] * x.b[k][w];
                        dy.a[k][w] *= weight.a[k][w];
                        dy.b[k][w] *= weight.b[k][w];
                        dot += dy.a[k][w] * x.a[k][w] + dy.b[k][w] * x.b[k][w];
                    }
                float average = head_sum(dot, s.lanes) / (float)s.HS;
#pragma unroll
                for (int k = 0; k < PER; ++k)
#pragma unroll
                    for (int w = 0; w < W; ++w) {
                        dy.a[k][w] = row_rstd * (dy.a[k][w] - x.a[k][w] * average);
                        dy.b[k][w] = row_rstd * (dy.b[k][w] - x.b[k][w] * average);
                    }
            }
            if (real) head_store<T, W, PER>(din + at, dy, s, lane);
        }
        if (kind < 2) heads_sum<W, PER>(partials + ((int64_t)blockIdx.x * 2 + kind) * s.HS, &sum, s, shared);
    }
}

// ---- host ----
typedef struct {
    Tensor out, rstd, in;
    const QkArgs *args;
    QkShape shape;
    float direction;
    // Backward through QK-norm, where out is din:
    Tensor dout, dq_weight, dk_weight;
    bool accumulate_dw;
} QkCall;

static QkShape qk_shape(Tensor out, Tensor in, Tensor positions, const QkArgs *args) {
    QkShape s = {};
    s.N = in.dim[0];
    s.NH = to_i32(args->NH);
    s.NKV = to_i32(args->NKV);
    s.HS = to_i32(args->HS);
    s.first_half = (s.HS + 1) / 2;
    s.heads = s.NH + (out.data != in.data ? 2 : 1) * s.NKV;
    if (args->use_rope) {
        s.cos = (const float *)args->cos.data;
        s.sin = (const float *)args->sin.data;
        s.positions = (const int32_t *)positions.data;
        s.P = args->cos.dim[0];
    }
    s.eps = args->eps;
    return s;
}
static int qk_lanes(const QkShape *s, int width) {
    int packs = (s->first_half + width - 1) / width, lanes = 1;
    while (lanes < packs && lanes < WARP) lanes *= 2;
    return lanes;
}

template <class T, int W, int PER, bool NORM>
static void qk_forward_launch(Backend *be, const QkCall *c) {
    QkShape s = c->shape;
    s.lanes = qk_lanes(&s, W);
    int64_t threads = s.N * s.heads * s.lanes;
    CHECK(threads < (int64_t)1 << 31, "N=%lld, %d heads of %d", (long long)s.N, s.heads, s.HS);
    GPU_LAUNCH(be, (qk_forward_kernel<T, W, PER, NORM>), dim3((unsigned)div_up(threads, QK_THREADS)),
               dim3(QK_THREADS), 0, (T *)c->out.data, (float *)c->rstd.data, (const T *)c->in.data,
               (const T *)c->args->q_weight.data, (const T *)c->args->k_weight.data, s, c->direction);
}
template <class T, int W, int PER>
static void qk_backward_launch(Backend *be, const QkCall *c) {
    QkShape s = c->shape;
    s.lanes = qk_lanes(&s, W);
    // The number of rows whose q heads a block processes at once.
    int64_t blocks = partials_blocks(s.N, div_up(QK_THREADS / s.lanes, s.NH));
    float *partials = (float *)cuda_scratch(be, to_size(max_i64(blocks, 1) * 2 * s.HS) * sizeof(float));
    if (blocks > 0)
        GPU_LAUNCH(be, (qk_backward_kernel<T, W, PER>), dim3((unsigned)blocks), dim3(QK_THREADS), 0, (T *)c->out.data,
                   partials, (const T *)c->dout.data, (const T *)c->in.data, (const float *)c->rstd.data,
                   (const T *)c->args->q_weight.data, (const T *)c->args->k_weight.data, s);
    cuda_partials_sum(be, (float *)c->dq_weight.data, s.HS, (float *)c->dk_weight.data, s.HS, partials, blocks,
                      c->accumulate_dw);
}

// Whether each half of a head is whole packs, at most one per lane.
template <class T>
static bool qk_vector(const QkCall *c) {
    int half_head = c->shape.HS / 2;
    return c->shape.HS % (2 * PACK<T>) == 0 && half_head <= WARP * PACK<T> && gpu_aligned(c->out.data) &&
           gpu_aligned(c->in.data) && gpu_aligned(c->dout.data) && gpu_aligned(c->args->q_weight.data) &&
           gpu_aligned(c->args->k_weight.data) && gpu_aligned(c->shape.cos) && gpu_aligned(c->shape.sin);
}
template <class T>
static void qk_forward_any(Backend *be, const QkCall *c) {
    bool norm = !tensor_is_none(c->args->q_weight);
    if (qk_vector<T>(c) && norm) qk_forward_launch<T, PACK<T>, 1, true>(be, c);
    else if (qk_vector<T>(c)) qk_forward_launch<T, PACK<T>, 1, false>(be, c);
    else if (norm) qk_forward_launch<T, 1, QK_SCALAR_PER, true>(be, c);
    else qk_forward_launch<T, 1, QK_SCALAR_PER, false>(be, c);
}
static void qk_turn(Backend *be, const QkCall *c) {
    if (c->shape.N == 0) return;
    if (c->in.dtype == DTYPE_F32) qk_forward_any<float>(be, c);
    else qk_forward_any<bf16>(be, c);
}
template <class T>
static void qk_backward_any(Backend *be, const QkCall *c) {
    if (qk_vector<T>(c)) qk_backward_launch<T, PACK<T>, 1>(be, c);
    else qk_backward_launch<T, 1, QK_SCALAR_PER>(be, c);
}

// Neither norm nor rotation.
static bool qk_copies(Backend *be, Tensor out, Tensor in, const QkArgs *args) {
    if (args->use_rope || !tensor_is_none(args->q_weight)) return false;
    if (out.data != in.data && tensor_elems(in) > 0) be->copy(be, out.data, in.data, tensor_bytes(in));
    return true;
}

static void qk_forward(Backend *be, Tensor out, Tensor rstd, Tensor in, Tensor positions, QkArgs args) {
    op_check_qk_forward(out, rstd, in, positions, &args);
    if (qk_copies(be, out, in, &args)) return;
    QkCall call = {out,  rstd,        in,          &args,       qk_shape(out, in, positions, &args),
                   1.0f, TENSOR_NONE, TENSOR_NONE, TENSOR_NONE, false};
    qk_turn(be, &call);
}

static void qk_backward(Backend *be, Tensor din, Tensor dq_weight, Tensor dk_weight, Tensor dout, Tensor in,
                        Tensor rstd, Tensor positions, bool accumulate_dw, QkArgs args) {
    op_check_qk_backward(din, dq_weight, dk_weight, dout, in, rstd, positions, &args);
    if (qk_copies(be, din, dout, &args)) return;
    QkCall call = {din,   rstd, in,        &args,     qk_shape(din, dout, positions, &args),
                   -1.0f, dout, dq_weight, dk_weight, accumulate_dw};
    if (tensor_is_none(args.q_weight)) {
        call.in = dout;
        qk_turn(be, &call);
    } else if (dout.dtype == DTYPE_F32) {
        qk_backward_any<float>(be, &call);
    } else {
        qk_backward_any<bf16>(be, &call);
    }
}

void rope_register_cuda(Backend *be) {
    be->qk_forward = qk_forward;
    be->qk_backward = qk_backward;
}
