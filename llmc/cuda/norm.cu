// norm.cu: LayerNorm and RMSNorm over the last dimension, forward and backward. Must not know models.
//
// row_threads threads (whole warps) process a row and keep it in registers, PER packs each, so that it is read from
// memory once. Rows too wide for the registers are read again by the *_wide kernels, which work for any shape.
#include "llmc/cuda/absmax.h"
#include "llmc/cuda/partials.h"
#include "llmc/backend/op_check.h"

#define NORM_MAX_THREADS 1024
#define NORM_WIDE_THREADS 512

// The sum of x over the threads of a row, which are `row_warps` neighbouring warps. `partial` (32 numbers, shared)
// must not be used again before the block's next barrier: calls alternate between two of them.
static __device__ __forceinline__ float row_sum(float x, int row_warps, float *partial) {
    x = warp_sum(x);
    if (row_warps == 1) return x;
    int warp = (int)threadIdx.x / WARP;
    if (threadIdx.x % WARP == 0) partial[warp] = x;
    __syncthreads();
    int first = warp / row_warps * row_warps;
    float sum = 0;
    for (int w = 0; w < row_warps; ++w) sum += partial[first + w];
    return sum;
}

// ---- forward ----
// The variance is taken around the mean in a second pass over the registers: E[x^2] - mean^2 would cancel. mean_out
// is NULL for RMSNorm, bias may be NULL. ADDS: the residual, which may be out, is added. Bound: x (and residual) read
// and out written once, 2 (3) * N*C elements; weight and bias come from L1. most: the record of out's largest
// magnitude, or NULL.
template <class T, int W, int PER, bool ADDS>
static __global__ void __launch_bounds__(NORM_MAX_THREADS)
    norm_forward_kernel(T *out, float *mean_out, float *rstd_out, const T *__restrict__ x,
                        const T *__restrict__ weight, const T *__restrict__ bias, const T *residual, uint32_t *most,
                        int64_t N, int C, int row_threads, float eps) {
    SHARED_ARRAY(float, partial, 2 * WARP);
    int thread = (int)threadIdx.x % row_threads, row_warps = row_threads / WARP, packs = C / W;
    int64_t row = (int64_t)blockIdx.x * (blockDim.x / (unsigned)row_threads) + threadIdx.x / (unsigned)row_threads;
    if (row >= N) return;  // whole warps exit together: if a row spans warps, the block has one row
    x += row * C;
    out += row * C;
    if (ADDS) residual += row * C;
    Pack<T, W> xs[PER] = {}, added[ADDS ? PER : 1] = {};  // a thread reads its part of residual before it writes out
    float sum = 0, squares = 0, mean = 0;
#pragma unroll
    for (int k = 0; k < PER; ++k)
        if (thread + k * row_threads < packs) xs[k] = pack_load_once<T, W>(x + (thread + k * row_threads) * W);
    if constexpr (ADDS) {
#pragma unroll
        for (int k = 0; k < PER; ++k)
            if (thread + k * row_threads < packs)
                added[k] = pack_load_once<T, W>(residual + (thread + k * row_threads) * W);
    }
    if (mean_out != NULL) {
#pragma unroll
        for (int k = 0; k < PER; ++k) {
            float v[W];
            pack_to_floats<W>(v, xs[k]);
#pragma unroll
            for (int i = 0; i < W; ++i) sum += v[i];  // 0 beyond the row
        }
        mean = row_sum(sum, row_warps, partial) / (float)C;
    }
#pragma unroll
    for (int k = 0; k < PER; ++k) {
        if (thread + k * row_threads >= packs) continue;
        float v[W];
        pack_to_floats<W>(v, xs[k]);
#pragma unroll
        for (int i = 0; i < W; ++i) squares += (v[i] - mean) * (v[i] - mean);
    }
    float rstd = rsqrtf(row_sum(squares, row_warps, partial + WARP) / (float)C + eps);
    if (thread == 0) rstd_out[row] = rstd;
    if (thread == 0 && mean_out != NULL) mean_out[row] = mean;
    uint32_t largest = 0;
#pragma unroll
    for (int k = 0; k < PER; ++k) {
        int at = (thread + k * row_threads) * W;
        if (at >= C) continue;
        float v[W], w[W], b[W] = {}, r[W] = {};
        pack_to_floats<W>(v, xs[k]);
        if constexpr (ADDS) pack_to_floats<W>(r, added[k]);
        pack_to_floats<W>(w, pack_load<T, W>(weight + at));
        if (bias != NULL) pack_to_floats<W>(b, pack_load<T, W>(bias + at));
#pragma unroll
        for (int i = 0; i < W; ++i) {
            v[i] = (v[i] - mean) * rstd * w[i] + b[i];
            if constexpr (ADDS) v[i] += r[i];
            largest = absmax_add(largest, v[i]);
        }
        pack_store<T, W>(out + at, pack_from_floats<T, W>(v));
    }
    absmax_record<T>(most, largest);
}

// One block per row; x is read three times, from L2 after the first.
template <class T, bool ADDS>
static __global__ void __launch_bounds__(NORM_WIDE_THREADS, 1)
    norm_forward_wide_kernel(T *out, float *mean_out, float *rstd_out, const T *__restrict__ x,
                             const T *__restrict__ weight, const T *__restrict__ bias, const T *residual, int C,
                             float eps) {
    SHARED_ARRAY(float, partial, 2 * WARP);
    int thread = (int)threadIdx.x, row_warps = NORM_WIDE_THREADS / WARP;
    int64_t row = blockIdx.x;
    x += row * C;
    out += row * C;
    float sum = 0, squares = 0, mean = 0;
    if (mean_out != NULL) {
        for (int c = thread; c < C; c += NORM_WIDE_THREADS) sum += to_float(x[c]);
        mean = row_sum(sum, row_warps, partial) / (float)C;
    }
    for (int c = thread; c < C; c += NORM_WIDE_THREADS) squares += (to_float(x[c]) - mean) * (to_float(x[c]) - mean);
    float rstd = rsqrtf(row_sum(squares, row_warps, partial + WARP) / (float)C + eps);
    if (thread == 0) rstd_out[row] = rstd;
    if (thread == 0 && mean_out != NULL) mean_out[row] = mean;
    for (int c = thread; c < C; c += NORM_WIDE_THREADS) {
        float y = (to_float(x[c]) - mean) * rstd * to_float(weight[c]);
        if (bias != NULL) y += to_float(bias[c]);
        if (ADDS) y += to_float(residual[row * C + c]);
        out[c] = from_float<T>(y);
    }
}

typedef struct {
    Tensor out, mean, rstd, x, weight, bias, residual;
    float eps;
} NormForward;

template <class T, int W, int PER, bool ADDS>
static void norm_forward_launch(Backend *be, const NormForward *n, int row_threads, int rows_each) {
    int64_t N = n->x.dim[0];
    uint32_t *most = absmax_begin(be, n->out);
    GPU_LAUNCH(be, (norm_forward_kernel<T, W, PER, ADDS>), dim3((unsigned)div_up(N, rows_each)),
               dim3((unsigned)(row_threads * rows_each)), 0, (T *)n->out.data, (float *)n->mean.data,
               (float *)n->rstd.data, (const T *)n->x.data, (const T *)n->weight.data, (const T *)n->bias.data,
               (const T *)n->residual.data, most, N, to_i32(n->x.dim[1]), row_threads, n->eps);
    absmax_end(be, n->out, most);
}
// Few warps per row: more rows are in flight at once, and up to 4 packs per lane need no barrier.
template <class T, int W, bool ADDS>
static bool norm_forward_any(Backend *be, const NormForward *n) {
    int64_t packs = n->x.dim[1] / W, row_threads = round_up(div_up(packs, 4), WARP);
    if (row_threads > NORM_MAX_THREADS) return false;
    int rows_each = row_threads == WARP ? 8 : 1;
    if (W > 1 && packs <= WARP) norm_forward_launch<T, W, W == 1 ? 4 : 1, ADDS>(be, n, WARP, rows_each);
    else if (W > 1 && packs <= 2 * WARP) norm_forward_launch<T, W, W == 1 ? 4 : 2, ADDS>(be, n, WARP, rows_each);
    else norm_forward_launch<T, W, 4, ADDS>(be, n, (int)row_threads, rows_each);
    return true;
}
template <class T, bool ADDS>
static void norm_forward_dtype(Backend *be, const NormForward *n) {
    int64_t N = n->x.dim[0], C = n->x.dim[1];
    bool vector = C % PACK<T> == 0 && gpu_aligned(n->x.data) && gpu_aligned(n->out.data) &&
                  gpu_aligned(n->weight.data) && gpu_aligned(n->bias.data) && gpu_aligned(n->residual.data);
    if (vector ? norm_forward_any<T, PACK<T>, ADDS>(be, n) : norm_forward_any<T, 1, ADDS>(be, n)) return;
    GPU_LAUNCH(be, (norm_forward_wide_kernel<T, ADDS>), dim3((unsigned)N), dim3(NORM_WIDE_THREADS), 0,
               (T *)n->out.data, (float *)n->mean.data, (float *)n->rstd.data, (const T *)n->x.data,
               (const T *)n->weight.data, (const T *)n->bias.data, (const T *)n->residual.data, to_i32(C), n->eps);
}

static void norm_forward(Backend *be, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor weight, Tensor bias,
                         NormArgs args) {
    op_check_norm_forward(out, mean, rstd, x, weight, bias, &args);
    if (x.dim[0] == 0) return;
    NormForward n = {out, mean, rstd, x, weight, bias, args.residual, args.eps};
    bool adds = !tensor_is_none(args.residual), fp32 = x.dtype == DTYPE_F32;
    if (fp32) adds ? norm_forward_dtype<float, true>(be, &n) : norm_forward_dtype<float, false>(be, &n);
    else adds ? norm_forward_dtype<bf16, true>(be, &n) : norm_forward_dtype<bf16, false>(be, &n);
}

// ---- backward ----
// With xhat = (x - mean) rstd and g = dout weight: dx = rstd (g - avg(g) - xhat avg(g xhat)); RMSNorm has no avg(g).
// dweight += dout xhat and dbias += dout.
// Threads of an SM, and of a block at most: registers for PER packs each. Three packs are for rows of three packs per
// lane (C=768 in bf16), which then need neither barriers nor idle lanes.
template <int PER>
constexpr int NORM_BACKWARD_THREADS = PER == 3 ? 384 : 512;

// Sums of two numbers, as row_sum.
static __device__ __forceinline__ float2 row_sum2(float a, float b, int row_warps, float2 *partial) {
    a = warp_sum(a);
    b = warp_sum(b);
    float2 sum = make_float2(a, b);
    if (row_warps == 1) return sum;
    int warp = (int)threadIdx.x / WARP;
    if (threadIdx.x % WARP == 0) partial[warp] = sum;
    __syncthreads();
    int first = warp / row_warps * row_warps;
    sum = partial[first];
    for (int w = 1; w < row_warps; ++w) {
        sum.x += partial[first + w].x;
        sum.y += partial[first + w].y;
    }
    return sum;
}

// A thread's part of one row.
template <class T, int W, int PER>
struct NormRow {
    Pack<T, W> x[PER], dout[PER];
};
// A row outside the block's rows is all zero and adds nothing.
template <class T, int W, int PER>
static __device__ __forceinline__ NormRow<T, W, PER> norm_row_load(const T *dout, const T *x, int row, int end, int C,
                                                                   int thread, int row_threads) {
    NormRow<T, W, PER> r = {};
    if (row >= end) return r;
#pragma unroll
    for (int k = 0; k < PER; ++k) {
        int at = (thread + k * row_threads) * W;
        if (at >= C) continue;
        r.x[k] = pack_load_once<T, W>(x + (int64_t)row * C + at);
        r.dout[k] = pack_load_once<T, W>(dout + (int64_t)row * C + at);
    }
    return r;
}

// The threads of a block's row groups hold the same columns: sums them into columns [at, at + W) of `out`. `shared`
// has W numbers per thread. Every thread of the block takes part.
template <int W>
static __device__ __forceinline__ void groups_sum(float *out, const float (&sum)[W], int at, int C, int row_threads,
                                                  float *shared) {
    int threads = (int)blockDim.x, groups = threads / row_threads;
#pragma unroll
    for (int i = 0; i < W; ++i) shared[i * threads + (int)threadIdx.x] = sum[i];
    __syncthreads();
    if ((int)threadIdx.x < row_threads && at < C) {
        float total[W] = {};
        for (int g = 0; g < groups; ++g)
#pragma unroll
            for (int i = 0; i < W; ++i) total[i] += shared[i * threads + g * row_threads + (int)threadIdx.x];
        floats_store<W>(out + at, total);
    }
    __syncthreads();
}

// The row groups of a block process its rows in parallel; the next row is loaded while the current one is summed, and
// the parameters' gradients stay in registers until the end. Bound: x and dout read, dx written (and read first, to
// accumulate) once: 3 (4) * N*C elements; plus partial rows (C or 2*C floats, CUDA_ROW_BLOCKS of them). most: the
// record of dx's largest magnitude, or NULL.
template <class T, int W, int PER>
static __global__ void __launch_bounds__(NORM_BACKWARD_THREADS<PER>, 1)
    norm_backward_kernel(T *dx, float *partials, uint32_t *most, const T *__restrict__ dout, const T *__restrict__ x,
                         const T *__restrict__ weight, const float *__restrict__ mean, const float *__restrict__ rstd,
                         int N, int C, int row_threads, bool want_bias, bool accumulate) {
    SHARED_ARRAY(float2, sums, 2 * WARP);
    SHARED_ARRAY(float, columns, NORM_BACKWARD_THREADS<PER> *W);
    int groups = (int)blockDim.x / row_threads, group = (int)threadIdx.x / row_threads;
    int thread = (int)threadIdx.x % row_threads, row_warps = row_threads / WARP;
    int first = (int)partials_first_row(N, blockIdx.x), end = (int)partials_first_row(N, blockIdx.x + 1);
    float dweight[PER][W] = {}, dbias[PER][W] = {}, share = 1.0f / (float)C;
    int row = first + group;
    uint32_t largest = 0;
    NormRow<T, W, PER> now = norm_row_load<T, W, PER>(dout, x, row, end, C, thread, row_threads);
    for (int turn = 0; first + turn * groups < end; ++turn, row += groups) {
        NormRow<T, W, PER> next = norm_row_load<T, W, PER>(dout, x, row + groups, end, C, thread, row_threads);
        float row_mean = mean != NULL && row < end ? mean[row] : 0.0f, row_rstd = row < end ? rstd[row] : 0.0f;
        float sum_g = 0, sum_gx = 0;
#pragma unroll
        for (int k = 0; k < PER; ++k) {
            int at = (thread + k * row_threads) * W;
            float x_now[W], d[W], w[W] = {};
            pack_to_floats<W>(x_now, now.x[k]);
            pack_to_floats<W>(d, now.dout[k]);
            if (at < C) pack_to_floats<W>(w, pack_load<T, W>(weight + at));
#pragma unroll
            for (int i = 0; i < W; ++i) {
                float xhat = (x_now[i] - row_mean) * row_rstd, g = d[i] * w[i];
                sum_g += g;
                sum_gx += g * xhat;
                dweight[k][i] += d[i] * xhat;
                dbias[k][i] += d[i];
            }
        }
        float2 sum = row_sum2(sum_g, sum_gx, row_warps, sums + turn % 2 * WARP);
        float avg_g = mean != NULL ? sum.x * share : 0.0f, avg_gx = sum.y * share;
#pragma unroll
        for (int k = 0; k < PER; ++k) {
            int at = (thread + k * row_threads) * W;
            if (row >= end || at >= C) continue;
            T *to = dx + (int64_t)row * C + at;
            float x_now[W], d[W], w[W], old[W] = {};
            pack_to_floats<W>(x_now, now.x[k]);
            pack_to_floats<W>(d, now.dout[k]);
            pack_to_floats<W>(w, pack_load<T, W>(weight + at));
            if (accumulate) pack_to_floats<W>(old, pack_load<T, W>(to));
#pragma unroll
            for (int i = 0; i < W; ++i) {
                float xhat = (x_now[i] - row_mean) * row_rstd, g = d[i] * w[i];
                d[i] = old[i] + row_rstd * (g - avg_g - xhat * avg_gx);
                largest = absmax_add(largest, d[i]);
            }
            pack_store<T, W>(to, pack_from_floats<T, W>(d));
        }
        now = next;
    }
    absmax_record<T>(most, largest);
    float *partial = partials + (int64_t)blockIdx.x * (want_bias ? 2 * C : C);
#pragma unroll
    for (int k = 0; k < PER; ++k) {
        int at = (thread + k * row_threads) * W;
        groups_sum<W>(partial, dweight[k], at, C, row_threads, columns);
        if (want_bias) groups_sum<W>(partial + C, dbias[k], at, C, row_threads, columns);
    }
}

// A block processes one row at a time; x and dout are read twice and the partial row is in L2.
template <class T>
static __global__ void __launch_bounds__(NORM_WIDE_THREADS, 1)
    norm_backward_wide_kernel(T *dx, float *partials, const T *__restrict__ dout, const T *__restrict__ x,
                              const T *__restrict__ weight, const float *__restrict__ mean,
                              const float *__restrict__ rstd, int64_t N, int C, bool want_bias, bool accumulate) {
    SHARED_ARRAY(float2, sums, 2 * WARP);
    int64_t first = partials_first_row(N, blockIdx.x), end = partials_first_row(N, blockIdx.x + 1);
    float *partial = partials + (int64_t)blockIdx.x * (want_bias ? 2 * C : C);
    for (int64_t row = first; row < end; ++row) {
        float row_mean = mean != NULL ? mean[row] : 0.0f, row_rstd = rstd[row], sum_g = 0, sum_gx = 0;
        for (int c = (int)threadIdx.x; c < C; c += NORM_WIDE_THREADS) {
            float d = to_float(dout[row * C + c]), xhat = (to_float(x[row * C + c]) - row_mean) * row_rstd;
            float g = d * to_float(weight[c]);
            sum_g += g;
            sum_gx += g * xhat;
            partial[c] = row == first ? d * xhat : partial[c] + d * xhat;
            if (want_bias) partial[C + c] = row == first ? d : partial[C + c] + d;
        }
        float2 sum = row_sum2(sum_g, sum_gx, NORM_WIDE_THREADS / WARP, sums + row % 2 * WARP);
        float avg_g = mean != NULL ? sum.x / (float)C : 0.0f, avg_gx = sum.y / (float)C;
        for (int c = (int)threadIdx.x; c < C; c += NORM_WIDE_THREADS) {
            float xhat = (to_float(x[row * C + c]) - row_mean) * row_rstd;
            float d = row_rstd * (to_float(dout[row * C + c]) * to_float(weight[c]) - avg_g - xhat * avg_gx);
            dx[row * C + c] = from_float<T>(accumulate ? to_float(dx[row * C + c]) + d : d);
        }
    }
}

typedef struct {
    Tensor dx, dweight, dbias, dout, x, weight, mean, rstd;
    bool accumulate_dx, accumulate_dw;
} NormBackward;

// Launches the kernel and the second stage; the caller sets blocks and the scratch's layout.
static float *norm_partials(Backend *be, const NormBackward *n, int64_t blocks) {
    int64_t width = tensor_is_none(n->dbias) ? n->x.dim[1] : 2 * n->x.dim[1];
    return (float *)cuda_scratch(be, to_size(max_i64(blocks, 1) * width) * sizeof(float));
}
static void norm_finish(Backend *be, const NormBackward *n, const float *partials, int64_t blocks) {
    int64_t C = n->x.dim[1];
    cuda_partials_sum(be, (float *)n->dweight.data, C, (float *)n->dbias.data, tensor_is_none(n->dbias) ? 0 : C,
                      partials, blocks, n->accumulate_dw);
}

// Row groups of a block: an SM runs two blocks of half the threads, with independent barriers, unless that leaves
// more threads idle.
static int norm_backward_groups(int threads, int row_threads) {
    int one = threads / row_threads, of_two = threads / 2 / row_threads;
    return 2 * of_two >= one ? of_two : one;
}
template <class T, int W, int PER>
static void norm_backward_launch(Backend *be, const NormBackward *n) {
    int64_t N = n->x.dim[0], C = n->x.dim[1];
    int row_threads = (int)round_up(div_up(C / W, PER), WARP),
        groups = norm_backward_groups(NORM_BACKWARD_THREADS<PER>, row_threads);
    int64_t blocks = partials_blocks(N, groups);
    float *partials = norm_partials(be, n, blocks);
    uint32_t *most = absmax_begin(be, n->dx);
    GPU_LAUNCH(be, (norm_backward_kernel<T, W, PER>), dim3((unsigned)blocks), dim3((unsigned)(row_threads * groups)),
               0, (T *)n->dx.data, partials, most, (const T *)n->dout.data, (const T *)n->x.data,
               (const T *)n->weight.data, (const float *)n->mean.data, (const float *)n->rstd.data, to_i32(N),
               to_i32(C), row_threads, !tensor_is_none(n->dbias), n->accumulate_dx);
    norm_finish(be, n, partials, blocks);
    absmax_end(be, n->dx, most);
}
template <class T>
static void norm_backward_wide_launch(Backend *be, const NormBackward *n) {
    int64_t N = n->x.dim[0], blocks = partials_blocks(N, 1);
    float *partials = norm_partials(be, n, blocks);
    GPU_LAUNCH(be, (norm_backward_wide_kernel<T>), dim3((unsigned)blocks), dim3(NORM_WIDE_THREADS), 0,
               (T *)n->dx.data, partials, (const T *)n->dout.data, (const T *)n->x.data, (const T *)n->weight.data,
               (const float *)n->mean.data, (const float *)n->rstd.data, N, to_i32(n->x.dim[1]),
               !tensor_is_none(n->dbias), n->accumulate_dx);
    norm_finish(be, n, partials, blocks);
}
template <class T>
static void norm_backward_dtype(Backend *be, const NormBackward *n) {
    int64_t C = n->x.dim[1];
    bool vector = C % PACK<T> == 0 && gpu_aligned(n->dx.data) && gpu_aligned(n->dout.data) &&
                  gpu_aligned(n->x.data) && gpu_aligned(n->weight.data);
    if (n->x.dim[0] == 0) norm_finish(be, n, norm_partials(be, n, 0), 0);
    else if (vector && C <= WARP * PACK<T>) norm_backward_launch<T, PACK<T>, 1>(be, n);
    else if (vector && C > 2 * WARP * PACK<T> && C <= 3 * WARP * PACK<T>) norm_backward_launch<T, PACK<T>, 3>(be, n);
    else if (vector && C <= 2 * NORM_BACKWARD_THREADS<2> * PACK<T>) norm_backward_launch<T, PACK<T>, 2>(be, n);
    else if (C <= NORM_BACKWARD_THREADS<1>) norm_backward_launch<T, 1, 1>(be, n);
    else norm_backward_wide_launch<T>(be, n);
}

static void norm_backward(Backend *be, Tensor dx, Tensor dweight, Tensor dbias, Tensor dout, Tensor x, Tensor weight,
                          Tensor mean, Tensor rstd, bool accumulate_dx, bool accumulate_dw, NormArgs args) {
    op_check_norm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd, args.kind);
    NormBackward n = {dx, dweight, dbias, dout, x, weight, mean, rstd, accumulate_dx, accumulate_dw};
    if (x.dtype == DTYPE_F32) norm_backward_dtype<float>(be, &n);
    else norm_backward_dtype<bf16>(be, &n);
}

void norm_register_cuda(Backend *be) {
    be->norm_forward = norm_forward;
    be->norm_backward = norm_backward;
}
