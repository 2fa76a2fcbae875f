// optim.cu: gradient norm and clipping, AdamW, and Muon's elementwise steps; matmul computes Muon's products. Nothing
// waits for the host: norm, clip scale and the decision to skip a step stay on the device. Must not know models or
// ranks.
//
// All is memory-bound. Bytes read + written per element: norm 4; AdamW 16 + 12 in fp32,
// 16 + 14 with masters and bf16 copies, 14 + 10 with bf16 alone; Muon in bf16 8 + 6, then 4 + 2, then 6 + 6 with
// masters or 4 + 2 without.
#include "llmc/cuda/backend_cuda.h"
#include "llmc/cuda/workspace.h"
#include "llmc/backend/op_check.h"
#include "llmc/base/rng_philox.h"

#define THREADS 256

// ---- sums of squares ----
// In double, so that nothing overflows and the clip scale equals the CPU's: one conversion and one multiply-add per
// element, which GPUs with 1/64 of their rate in double (Ada) just manage at memory speed. Two stages: the number of
// blocks, hence the bits of the sum, depends on the shape alone.
static int sum_blocks(int64_t elems, int most) {
    return (int)min_i64(max_i64(div_up(elems, SUM_BLOCK_ELEMS), 1), most);
}

// partial[matrix * blocks + block], `elems` elements and `blocks` blocks per matrix. A thread has the same elements
// whether they are moved together or one by one.
template <class T, bool PACKED>
__global__ __launch_bounds__(THREADS) void sum_squares_kernel(double *partial, const T *x, int64_t elems,
                                                              int blocks) {
    SHARED_ARRAY(double, warp_partial, WARP);
    const int IN_FLIGHT = 4, W = PACK<T>;
    x += (int64_t)(blockIdx.x / (unsigned)blocks) * elems;
    int64_t stride = (int64_t)blocks * THREADS * W;
    int64_t i = ((int64_t)(blockIdx.x % (unsigned)blocks) * THREADS + (int64_t)threadIdx.x) * W;
    double sum[IN_FLIGHT] = {0, 0, 0, 0};
    for (; i + (IN_FLIGHT - 1) * stride + W <= elems; i += IN_FLIGHT * stride) {
        Pack<T, W> packs[IN_FLIGHT];
        for (int k = 0; k < IN_FLIGHT; ++k) {
            if constexpr (PACKED) packs[k] = pack_load<T, W>(x + i + k * stride);
            else
                for (int w = 0; w < W; ++w) packs[k].v[w] = x[i + k * stride + w];
        }
        for (int k = 0; k < IN_FLIGHT; ++k)
            for (int w = 0; w < W; ++w) {
                double value = (double)to_float(packs[k].v[w]);
                sum[k] = fma(value, value, sum[k]);
            }
    }
    for (; i < elems; i += stride)
        for (int w = 0; w < W && i + w < elems; ++w) {
            double value = (double)to_float(x[i + w]);
            sum[0] = fma(value, value, sum[0]);
        }
    double total = block_sum((sum[0] + sum[1]) + (sum[2] + sum[3]), warp_partial);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}
// The second stage: the sum of `blocks` partial sums, for every thread of a block.
static __device__ __forceinline__ double sum_partials(const double *partial, int blocks, double *warp_partial) {
    double sum = 0;
    for (int i = (int)threadIdx.x; i < blocks; i += THREADS) sum += partial[i];
    return block_sum(sum, warp_partial);
}

template <class T>
static void sum_squares(Backend *be, double *partial, const T *x, int64_t matrices, int64_t elems, int blocks) {
    dim3 grid((unsigned)(matrices * blocks));
    // Every matrix is aligned to 16 bytes.
    bool packed = gpu_aligned(x) && (matrices == 1 || elems % PACK<T> == 0);
    if (packed) GPU_LAUNCH(be, (sum_squares_kernel<T, true>), grid, dim3(THREADS), 0, partial, x, elems, blocks);
    else GPU_LAUNCH(be, (sum_squares_kernel<T, false>), grid, dim3(THREADS), 0, partial, x, elems, blocks);
}

static __global__ __launch_bounds__(THREADS) void sum_squares_finish_kernel(double *out, const double *partial,
                                                                            int blocks) {
    SHARED_ARRAY(double, warp_partial, WARP);
    double sum = sum_partials(partial, blocks, warp_partial);
    if (threadIdx.x == 0) *out = sum;
}
static void cuda_sum_squares(Backend *be, Tensor out, Tensor x) {
    op_check_sum_squares(out, x);
    int64_t elems = tensor_elems(x);
    int blocks = sum_blocks(elems, CUDA_NORM_BLOCKS);
    double *partial = (double *)cuda_scratch(be, to_size(blocks) * sizeof(double));
    sum_squares(be, partial, (const float *)x.data, 1, elems, blocks);
    GPU_LAUNCH(be, sum_squares_finish_kernel, dim3(1), dim3(THREADS), 0, (double *)out.data, partial, blocks);
}

// The sum of sums (count), added in order by one thread; the others load the numbers into `staged`, shared memory of
// THREADS elements.
static __device__ __forceinline__ double sum_in_order(const double *sums, int64_t count, double *staged) {
    double sum = 0;
    for (int64_t first = 0; first < count; first += THREADS) {
        int64_t left = count - first < THREADS ? count - first : THREADS;
        if ((int64_t)threadIdx.x < left) staged[threadIdx.x] = sums[first + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0)
            for (int64_t i = 0; i < left; ++i) sum += staged[i];
        __syncthreads();
    }
    return sum;
}
static __global__ __launch_bounds__(THREADS) void grad_clip_kernel(GradStats *stats, const double *sums,
                                                                   int64_t count, const double *loss_sums,
                                                                   int64_t loss_count, ClipArgs args) {
    SHARED_ARRAY(double, staged, THREADS);
    double sum = sum_in_order(sums, count, staged), norm = sqrt(sum), max_norm = (double)args.max_norm;
    double loss = loss_sums == NULL ? 0 : sum_in_order(loss_sums, loss_count, staged) * args.loss_scale;
    if (threadIdx.x != 0) return;
    SkipReason skip = !isfinite((float)norm) || !isfinite(loss) ? SKIP_NOT_FINITE
                      : norm > args.skip_norm                  ? SKIP_NORM
                      : loss > args.skip_loss                  ? SKIP_LOSS
                                                               : SKIP_NOT;
    float scale = max_norm > 0 && norm > max_norm ? (float)(max_norm / norm) : 1.0f;
    stats->sum_squares = sum;
    stats->norm = (float)norm;
    stats->scale = skip == SKIP_NOT ? scale : 0.0f;
    stats->skip = (int32_t)skip;
    stats->pad = 0;
}
static void cuda_grad_clip(Backend *be, GradStats *stats, Tensor sums, Tensor loss_sums, ClipArgs args) {
    op_check_grad_clip(stats, sums, loss_sums);
    GPU_LAUNCH(be, grad_clip_kernel, dim3(1), dim3(THREADS), 0, stats, (const double *)sums.data, sums.dim[0],
               (const double *)loss_sums.data, loss_sums.dim[0], args);
}

// x *= 1 / (norm + eps), NORMALIZE_ELEMS elements per block, matrix_blocks blocks per matrix.
#define NORMALIZE_ELEMS 8192
template <class T, int W>
__global__ __launch_bounds__(THREADS) void frobenius_normalize_kernel(T *x, const double *partial, int64_t elems,
                                                                      int partials, int matrix_blocks, float eps) {
    SHARED_ARRAY(double, warp_partial, WARP);
    int64_t matrix = blockIdx.x / (unsigned)matrix_blocks, block = blockIdx.x % (unsigned)matrix_blocks;
    double norm = sqrt(sum_partials(partial + matrix * partials, partials, warp_partial));
    float factor = (float)(1.0 / (norm + (double)eps));
    x += matrix * elems;
    int64_t end = (block + 1) * NORMALIZE_ELEMS < elems ? (block + 1) * NORMALIZE_ELEMS : elems;
    for (int64_t i = block * NORMALIZE_ELEMS + (int64_t)threadIdx.x * W; i < end; i += THREADS * W) {
        Pack<T, W> pack = pack_load<T, W>(x + i);
        for (int w = 0; w < W; ++w) pack.v[w] = from_float<T>(to_float(pack.v[w]) * factor);
        pack_store(x + i, pack);
    }
}
template <class T>
static void frobenius_normalize(Backend *be, T *x, int64_t matrices, int64_t elems, float eps) {
    int partials = sum_blocks(elems, CUDA_MATRIX_BLOCKS);
    int matrix_blocks = (int)div_up(elems, NORMALIZE_ELEMS);
    double *partial = (double *)cuda_scratch(be, to_size(matrices * partials) * sizeof(double));
    sum_squares(be, partial, (const T *)x, matrices, elems, partials);
    dim3 grid((unsigned)(matrices * matrix_blocks));
    bool packed = gpu_aligned(x) && elems % PACK<T> == 0;
    if (packed)
        GPU_LAUNCH(be, (frobenius_normalize_kernel<T, PACK<T>>), grid, dim3(THREADS), 0, x, partial, elems, partials,
                   matrix_blocks, eps);
    else
        GPU_LAUNCH(be, (frobenius_normalize_kernel<T, 1>), grid, dim3(THREADS), 0, x, partial, elems, partials,
                   matrix_blocks, eps);
}
static void cuda_frobenius_normalize(Backend *be, Tensor x, float eps) {
    op_check_act("x", x);
    CHECK(x.ndim == 3, "x has %d dimensions, expected 3", x.ndim);
    int64_t elems = x.dim[1] * x.dim[2];
    if (x.dim[0] == 0 || elems == 0) return;
    if (x.dtype == DTYPE_F32) frobenius_normalize(be, (float *)x.data, x.dim[0], elems, eps);
    else frobenius_normalize(be, (bf16 *)x.data, x.dim[0], elems, eps);
}

// ---- lists of tensors ----
// One launch updates many tensors: the list is a kernel parameter, so that no memory must outlive the call, and each
// block finds its tensor in it. Every driver accepts 4 KiB of parameters (more needs CUDA 12.1 in driver and
// toolkit); a longer list takes more launches, each of which still moves tens of megabytes in a model of any size.
typedef struct {
    float *master;
    bf16 *weight;
    const float *grad;
    float *m, *v;
    int64_t elems, first_elem;
    float rate, decay;  // value -= rate * update + decay * value
    int32_t first_block;
    int32_t index;  // in the caller's list
    bool packed;    // every array, x included, may be moved four elements at a time
} OptimRow;
#define LIST_ROWS 48
typedef struct {
    int64_t count;
    OptimRow row[LIST_ROWS];
} OptimRows;
static_assert(sizeof(OptimRows) + 128 <= 4096, "the parameters of a kernel are at most 4 KiB");

// A thread moves 4 elements at a time (16 bytes of fp32, 8 of bf16), a block BLOCK_ELEMS. With 1000 or more threads
// on each SM and 4 loads each, over 50 KB are in flight: more than bandwidth times latency of HBM3 (about 20 KB).
#define WIDTH 4
#define BLOCK_ELEMS (4 * THREADS * WIDTH)

static bool is_packed(const OptimTensor *t, Tensor x) {
    return gpu_aligned(t->master) && gpu_aligned(t->grad) && gpu_aligned(t->m) && gpu_aligned(t->v) &&
           ((uintptr_t)t->weight & 7) == 0 && t->first_elem % WIDTH == 0 &&
           (tensor_is_none(x) || (gpu_aligned(x.data) && t->elems % WIDTH == 0));
}
// The next rows of a list, starting at *next; returns their blocks, 0 at the end.
static int rows_next(OptimRows *rows, int64_t *next, const OptimTensor *tensors, int64_t count, Tensor x,
                     double correction) {
    int blocks = 0;
    rows->count = 0;
    for (; *next < count && rows->count < LIST_ROWS; ++*next) {
        const OptimTensor *t = &tensors[*next];
        if (t->elems == 0) continue;
        OptimRow *row = &rows->row[rows->count++];
        row->master = t->master;
        row->weight = (bf16 *)t->weight;
        row->grad = t->grad;
        row->m = t->m;
        row->v = t->v;
        row->elems = t->elems;
        row->first_elem = t->first_elem;
        row->rate = (float)((double)t->lr / correction);
        row->decay = t->lr * t->weight_decay;
        row->first_block = blocks;
        row->index = (int32_t)*next;
        row->packed = is_packed(t, x);
        int64_t total = blocks + div_up(t->elems, BLOCK_ELEMS);
        CHECK(total <= INT32_MAX, "a list of %lld blocks", (long long)total);
        blocks = (int)total;
    }
    return blocks;
}

// A block's share of the work.
static __device__ __forceinline__ const OptimRow &row_of_block(const OptimRows &rows) {
    int low = 0, high = (int)rows.count - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (rows.row[middle].first_block <= (int)blockIdx.x) low = middle;
        else high = middle - 1;
    }
    return rows.row[low];
}
// Calls at<W>(row, i, ...) for all elements i of this block's share, by WIDTH where the row is packed.
#define FOR_BLOCK_ELEMS(row, at, ...)                                                                         \
    do {                                                                                                      \
        int64_t first_ = (int64_t)((int)blockIdx.x - (row).first_block) * BLOCK_ELEMS;                         \
        int64_t end_ = first_ + BLOCK_ELEMS < (row).elems ? first_ + BLOCK_ELEMS : (row).elems;                \
        for (int64_t i_ = first_ + (int64_t)threadIdx.x * WIDTH; i_ < end_; i_ += THREADS * WIDTH) {           \
            if ((row).packed && i_ + WIDTH <= end_) at<WIDTH>(row, i_, __VA_ARGS__);                           \
            else                                                                                              \
                for (int64_t k_ = i_; k_ < i_ + WIDTH && k_ < end_; ++k_) at<1>(row, k_, __VA_ARGS__);         \
        }                                                                                                     \
    } while (0)

template <int W>
__device__ __forceinline__ Pack<float, W> value_load(const OptimRow &row, int64_t i) {
    if (row.master != NULL) return pack_load<float, W>(row.master + i);
    Pack<bf16, W> narrow = pack_load<bf16, W>(row.weight + i);
    Pack<float, W> value;
    for (int w = 0; w < W; ++w) value.v[w] = to_float(narrow.v[w]);
    return value;
}

typedef struct {
    uint64_t seed, stream;
} Rounding;

// W elements at i, rounded by the rule of rng_philox.h. W is 1, or 4 with first_elem a multiple of 4: then they use
// half a block of random bits. The neighbouring thread computes the same block for the other half: about 60 integer
// instructions, of about 800 that an H100 can execute while it moves the 96 bytes of four elements.
template <int W>
__device__ __forceinline__ void stochastic_store(const OptimRow &row, int64_t i, const Pack<float, W> &value,
                                                 Rounding rounding) {
    uint64_t elem = (uint64_t)(row.first_elem + i);
    uint32_t words[4];
    philox_block(rounding.seed, rounding.stream, elem / ROUNDING_BLOCK_ELEMS, words);
    bool upper = elem / 4 % 2 != 0;
    uint32_t word0 = upper ? words[2] : words[0], word1 = upper ? words[3] : words[1];
    Pack<bf16, W> narrow;
    for (int w = 0; w < W; ++w) {
        int place = W == 1 ? (int)(elem % 4) : w;
        uint32_t random16 = (place / 2 == 0 ? word0 : word1) >> (place % 2 * 16) & 0xffffu;
        narrow.v[w] = __ushort_as_bfloat16(bf16_round_stochastic(__float_as_uint(value.v[w]), random16));
    }
    pack_store(row.weight + i, narrow);
}
template <int W>
__device__ __forceinline__ void value_store(const OptimRow &row, int64_t i, const Pack<float, W> &value,
                                            Rounding rounding) {
    if (row.master == NULL) {
        stochastic_store(row, i, value, rounding);
        return;
    }
    pack_store(row.master + i, value);
    if (row.weight == NULL) return;
    Pack<bf16, W> narrow;
    for (int w = 0; w < W; ++w) narrow.v[w] = from_float<bf16>(value.v[w]);
    pack_store(row.weight + i, narrow);
}

// ---- AdamW ----
typedef struct {
    float beta1, beta2, eps;
    float root_v;  // 1 / sqrt(1 - beta2^t)
    Rounding rounding;
} AdamwFactors;

template <int W>
__device__ __forceinline__ void adamw_at(const OptimRow &row, int64_t i, float scale, const AdamwFactors &f) {
    Pack<float, W> grad = pack_load<float, W>(row.grad + i), m = pack_load<float, W>(row.m + i);
    Pack<float, W> v = pack_load<float, W>(row.v + i), value = value_load<W>(row, i);
    for (int w = 0; w < W; ++w) {
        float g = grad.v[w] * scale;
        m.v[w] = f.beta1 * m.v[w] + (1.0f - f.beta1) * g;
        v.v[w] = f.beta2 * v.v[w] + (1.0f - f.beta2) * g * g;
        float update = m.v[w] / (sqrtf(v.v[w]) * f.root_v + f.eps);
        value.v[w] -= row.rate * update + row.decay * value.v[w];
    }
    pack_store(row.m + i, m);
    pack_store(row.v + i, v);
    value_store(row, i, value, f.rounding);
}
static __global__ __launch_bounds__(THREADS) void adamw_kernel(const __grid_constant__ OptimRows rows,
                                                               const GradStats *stats, AdamwFactors factors) {
    if (stats->skip) return;
    const OptimRow row = row_of_block(rows);
    FOR_BLOCK_ELEMS(row, adamw_at, stats->scale, factors);
}
static void cuda_adamw(Backend *be, const OptimTensor *tensors, int64_t count, const GradStats *stats,
                       AdamwArgs args) {
    op_check_optim(tensors, count, args.t);
    double correction1 = 1 - pow((double)args.beta1, (double)args.t);
    double correction2 = 1 - pow((double)args.beta2, (double)args.t);
    AdamwFactors factors = {args.beta1, args.beta2, args.eps, (float)(1 / sqrt(correction2)),
                            {args.seed, rounding_stream(args.t)}};
    OptimRows rows;
    int64_t next = 0;
    for (int blocks; (blocks = rows_next(&rows, &next, tensors, count, TENSOR_NONE, correction1)) > 0;)
        GPU_LAUNCH(be, adamw_kernel, dim3((unsigned)blocks), dim3(THREADS), 0, rows, stats, factors);
}

// ---- Muon ----
template <int W, class T>
__device__ __forceinline__ void momentum_at(const OptimRow &row, int64_t i, T *x, const GradStats &stats,
                                            const MuonArgs &args) {
    Pack<T, W> update;
    if (stats.skip) {
        for (int w = 0; w < W; ++w) update.v[w] = from_float<T>(0.0f);
        pack_store(x + i, update);
        return;
    }
    Pack<float, W> grad = pack_load<float, W>(row.grad + i), m = pack_load<float, W>(row.m + i);
    for (int w = 0; w < W; ++w) {
        float g = grad.v[w] * stats.scale;
        m.v[w] = args.momentum * m.v[w] + g;
        update.v[w] = from_float<T>(args.nesterov ? g + args.momentum * m.v[w] : m.v[w]);
    }
    pack_store(row.m + i, m);
    pack_store(x + i, update);
}
template <class T>
__global__ __launch_bounds__(THREADS) void muon_momentum_kernel(const __grid_constant__ OptimRows rows, T *x,
                                                                const GradStats *stats, MuonArgs args) {
    const OptimRow row = row_of_block(rows);
    const GradStats now = *stats;
    FOR_BLOCK_ELEMS(row, momentum_at, x + row.index * row.elems, now, args);
}
static void cuda_muon_momentum(Backend *be, Tensor update, const OptimTensor *tensors, int64_t count,
                               const GradStats *stats, MuonArgs args) {
    op_check_optim(tensors, count, args.t);
    op_check_muon("update", update, tensors, count);
    OptimRows rows;
    int64_t next = 0;
    for (int blocks; (blocks = rows_next(&rows, &next, tensors, count, update, 1)) > 0;) {
        dim3 grid((unsigned)blocks);
        if (update.dtype == DTYPE_F32)
            GPU_LAUNCH(be, muon_momentum_kernel<float>, grid, dim3(THREADS), 0, rows, (float *)update.data, stats,
                       args);
        else
            GPU_LAUNCH(be, muon_momentum_kernel<bf16>, grid, dim3(THREADS), 0, rows, (bf16 *)update.data, stats,
                       args);
    }
}

template <int W, class T>
__device__ __forceinline__ void muon_apply_at(const OptimRow &row, int64_t i, const T *x, Rounding rounding) {
    Pack<T, W> update = pack_load<T, W>(x + i);
    Pack<float, W> value = value_load<W>(row, i);
    for (int w = 0; w < W; ++w) value.v[w] -= row.rate * to_float(update.v[w]) + row.decay * value.v[w];
    value_store(row, i, value, rounding);
}
template <class T>
__global__ __launch_bounds__(THREADS) void muon_apply_kernel(const __grid_constant__ OptimRows rows, const T *x,
                                                             const GradStats *stats, Rounding rounding) {
    if (stats->skip) return;
    const OptimRow row = row_of_block(rows);
    FOR_BLOCK_ELEMS(row, muon_apply_at, x + row.index * row.elems, rounding);
}
static void cuda_muon_apply(Backend *be, const OptimTensor *tensors, int64_t count, Tensor x, const GradStats *stats,
                            MuonArgs args) {
    op_check_optim(tensors, count, args.t);
    op_check_muon("x", x, tensors, count);
    Rounding rounding = {args.seed, rounding_stream(args.t)};
    OptimRows rows;
    int64_t next = 0;
    for (int blocks; (blocks = rows_next(&rows, &next, tensors, count, x, 1)) > 0;) {
        dim3 grid((unsigned)blocks);
        if (x.dtype == DTYPE_F32)
            GPU_LAUNCH(be, muon_apply_kernel<float>, grid, dim3(THREADS), 0, rows, (const float *)x.data, stats,
                       rounding);
        else
            GPU_LAUNCH(be, muon_apply_kernel<bf16>, grid, dim3(THREADS), 0, rows, (const bf16 *)x.data, stats,
                       rounding);
    }
}

void optim_register_cuda(Backend *be) {
    be->sum_squares = cuda_sum_squares;
    be->grad_clip = cuda_grad_clip;
    be->adamw = cuda_adamw;
    be->muon_momentum = cuda_muon_momentum;
    be->frobenius_normalize = cuda_frobenius_normalize;
    be->muon_apply = cuda_muon_apply;
}
