// optim_kernels.c: gradient norm and clipping, AdamW, and Muon's elementwise steps (matmul computes its products).
// Every update is one pass over memory: at 124M parameters these operations are memory-bound. Must not know models or
// ranks.
#include "llmc/cpu/isa.h"
#include "llmc/cpu/kernels.h"
#include "llmc/cpu/simd.h"
#include "llmc/base/rng_philox.h"

// ---- norms ----
// A fixed number of chunks, each summed in order in double, then added in order.
#define NORM_CHUNKS 256
// Half a vector of floats fills a whole vector of doubles.
#define HALF (VF_LANES / 2)
typedef double vd __attribute__((vector_size(VF_LANES * 4)));
typedef float vf_half __attribute__((vector_size(VF_LANES * 2), may_alias));

SIMD_INLINE void add_squares(vd sum[2], vf v) {
    vf_half halves[2];
    memcpy(halves, &v, sizeof v);
    for (int k = 0; k < 2; ++k) {
        vd wide = __builtin_convertvector(halves[k], vd);
        sum[k] += wide * wide;
    }
}
// Four parts of the range at once: a single stream of loads does not saturate memory bandwidth.
#define STREAMS 4
SIMD_INLINE double sum_squares_range(const void *x, int64_t first, int64_t end, DType dtype) {
    vd sum[STREAMS][2] = {{{0}}};
    int64_t stride = (end - first) / STREAMS / VF_LANES * VF_LANES, i = first;
    for (; i < first + stride; i += VF_LANES)
        for (int k = 0; k < STREAMS; ++k) add_squares(sum[k], vf_load_as(x, i + k * stride, dtype));
    for (i = first + STREAMS * stride; i < end; i += VF_LANES)
        add_squares(sum[0], vf_load_some(x, i, end - i, dtype));
    vd all = {0};
    for (int k = 0; k < STREAMS; ++k) all += sum[k][0] + sum[k][1];
    double total = 0;
    for (int lane = 0; lane < HALF; ++lane) total += all[lane];
    return total;
}
static double sum_squares(Backend *be, const void *x, int64_t elems, DType dtype) {
    double partial[NORM_CHUNKS];
    (void)be;
#pragma omp parallel for schedule(static) num_threads(be->threads) if (elems > CPU_PARALLEL_ELEMS)
    for (int64_t chunk = 0; chunk < NORM_CHUNKS; ++chunk) {
        int64_t blocks = div_up(elems, VF_LANES);
        int64_t first = blocks * chunk / NORM_CHUNKS * VF_LANES;
        int64_t end = min_i64(blocks * (chunk + 1) / NORM_CHUNKS * VF_LANES, elems);
        partial[chunk] = dtype == DTYPE_F32 ? sum_squares_range(x, first, end, DTYPE_F32)
                                            : sum_squares_range(x, first, end, DTYPE_BF16);
    }
    double total = 0;
    for (int chunk = 0; chunk < NORM_CHUNKS; ++chunk) total += partial[chunk];
    return total;
}

static void sum_squares_flat(Backend *be, Tensor out, Tensor x) {
    op_check_sum_squares(out, x);
    *(double *)out.data = sum_squares(be, x.data, tensor_elems(x), DTYPE_F32);
}

static double sum_in_order(Tensor sums) {
    double sum = 0;
    for (int64_t i = 0; i < sums.dim[0]; ++i) sum += ((const double *)sums.data)[i];
    return sum;
}
static void grad_clip(Backend *be, GradStats *stats, Tensor sums, Tensor loss_sums, ClipArgs args) {
    (void)be;
    op_check_grad_clip(stats, sums, loss_sums);
    double sum = sum_in_order(sums), norm = sqrt(sum), max_norm = (double)args.max_norm;
    double loss = tensor_is_none(loss_sums) ? 0 : sum_in_order(loss_sums) * args.loss_scale;
    SkipReason skip = !isfinite((float)norm) || !isfinite(loss) ? SKIP_NOT_FINITE
                      : norm > args.skip_norm                  ? SKIP_NORM
                      : loss > args.skip_loss                  ? SKIP_LOSS
                                                               : SKIP_NOT;
    float scale = max_norm > 0 && norm > max_norm ? (float)(max_norm / norm) : 1.0f;
    if (skip != SKIP_NOT) scale = 0;
    *stats = (GradStats){.sum_squares = sum, .norm = (float)norm, .scale = scale, .skip = (int32_t)skip};
}

// Each matrix of x (G, r, c).
static void frobenius_normalize(Backend *be, Tensor x, float eps) {
    op_check_act("x", x);
    CHECK(x.ndim == 3, "x has %d dimensions, expected 3", x.ndim);
    for (int64_t g = 0; g < x.dim[0]; ++g) {
        Tensor matrix = tensor_rows(x, g, 1);
        int64_t elems = tensor_elems(matrix);
        float factor = (float)(1.0 / (sqrt(sum_squares(be, matrix.data, elems, x.dtype)) + (double)eps));
#pragma omp parallel for schedule(static) num_threads(be->threads) if (elems > CPU_PARALLEL_ELEMS)
        for (int64_t i = 0; i < elems; i += VF_LANES) {
            int64_t left = elems - i;
            void *data = matrix.data;
            if (x.dtype == DTYPE_F32)
                vf_store_some(data, i, vf_load_some(data, i, left, DTYPE_F32) * factor, left, DTYPE_F32);
            else
                vf_store_some(data, i, vf_load_some(data, i, left, DTYPE_BF16) * factor, left, DTYPE_BF16);
        }
    }
}

// ---- updates ----
// Values common to all tensors of a call.
typedef struct {
    const OptimTensor *tensors;
    int64_t count;
    float grad_scale;
    uint64_t seed, stream;  // of stochastic rounding
    float beta1, beta2, eps, momentum;
    bool nesterov;
    double correction1, correction2;  // 1 - beta^t
    Tensor x;                         // Muon's matrices (count, r, c)
} Update;
// Updates the elements [first, end) of a tensor.
typedef void UpdateBody(const Update *update, int64_t tensor, int64_t first, int64_t end);

#define UPDATE_BLOCK_ELEMS 4096
#define UPDATE_PARALLEL_BLOCKS (CPU_PARALLEL_ELEMS / UPDATE_BLOCK_ELEMS)

// One parallel region for all tensors: part p takes an equal share of the blocks, across tensor boundaries.
static void update_all(Backend *be, const Update *update, UpdateBody *body) {
    int64_t blocks = 0, parts = be->threads;
    for (int64_t i = 0; i < update->count; ++i) blocks += div_up(update->tensors[i].elems, UPDATE_BLOCK_ELEMS);
#pragma omp parallel for schedule(static, 1) num_threads(be->threads) if (blocks > UPDATE_PARALLEL_BLOCKS)
    for (int64_t part = 0; part < parts; ++part) {
        int64_t first_block = blocks * part / parts, end_block = blocks * (part + 1) / parts;
        for (int64_t i = 0, block = 0; i < update->count; ++i) {
            int64_t elems = update->tensors[i].elems;
            int64_t first = max_i64(first_block - block, 0) * UPDATE_BLOCK_ELEMS;
            int64_t end = min_i64((end_block - block) * UPDATE_BLOCK_ELEMS, elems);
            block += div_up(elems, UPDATE_BLOCK_ELEMS);
            if (first < end) body(update, i, first, end);
        }
    }
}

// Random bits are generated for this many elements at a time, in a loop that the compiler vectorizes.
#define ROUNDING_ELEMS 512
#define ROUNDING_BLOCKS (ROUNDING_ELEMS / ROUNDING_BLOCK_ELEMS + 1)
typedef struct {
    uint32_t words[ROUNDING_BLOCKS][4];
} RoundingBits;

// Returns the 16 bits of ROUNDING_ELEMS elements of tensor p, from `first` on: halves of words, the lower first.
static const uint16_t *rounding_bits(RoundingBits *bits, const Update *update, const OptimTensor *p, int64_t first) {
    uint64_t elem = (uint64_t)(p->first_elem + first), block = elem / ROUNDING_BLOCK_ELEMS;
    for (uint64_t b = 0; b < ROUNDING_BLOCKS; ++b)
        philox_block(update->seed, update->stream, block + b, bits->words[b]);
    return (const uint16_t *)bits->words + elem % ROUNDING_BLOCK_ELEMS;
}
// bf16_round_stochastic of all lanes.
SIMD_INLINE void store_stochastic(uint16_t *to, vf v, const uint16_t *random16, int64_t left) {
    vh random;
    memcpy(&random, random16, sizeof random);
    vu bits = (vu)v, nan = (vu)(v != v);
    vu rounded = (bits + __builtin_convertvector(random, vu)) >> 16;
    rounded = (rounded & ~nan) | (((bits >> 16) | 0x40u) & nan);
    vh half = __builtin_convertvector(rounded, vh);
    memcpy(to, &half, left >= VF_LANES ? sizeof half : to_size(left) * sizeof *to);
}

SIMD_INLINE vf value_load(const OptimTensor *p, int64_t i, int64_t left) {
    return p->master != NULL ? vf_load_some(p->master, i, left, DTYPE_F32)
                             : vf_load_some(p->weight, i, left, DTYPE_BF16);
}
// random16: of element i; used only without a master.
SIMD_INLINE void value_store(const OptimTensor *p, int64_t i, vf w, int64_t left, const uint16_t *random16) {
    if (p->master == NULL) {
        store_stochastic(p->weight + i, w, random16, left);
        return;
    }
    vf_store_some(p->master, i, w, left, DTYPE_F32);
    if (p->weight != NULL) vf_store_some(p->weight, i, w, left, DTYPE_BF16);
}

// ---- AdamW ----
static void adamw_body(const Update *u, int64_t tensor, int64_t first, int64_t end) {
    const OptimTensor *p = &u->tensors[tensor];
    float step = (float)((double)p->lr / u->correction1), root_v = (float)(1 / sqrt(u->correction2));
    float decay = p->lr * p->weight_decay;
    RoundingBits bits;
    for (int64_t chunk = first; chunk < end; chunk += ROUNDING_ELEMS) {
        const uint16_t *random16 = p->master == NULL ? rounding_bits(&bits, u, p, chunk) : (const uint16_t *)bits.words;
        for (int64_t i = chunk; i < min_i64(chunk + ROUNDING_ELEMS, end); i += VF_LANES) {
            int64_t left = end - i;
            vf g = vf_load_some(p->grad, i, left, DTYPE_F32) * u->grad_scale;
            vf m = u->beta1 * vf_load_some(p->m, i, left, DTYPE_F32) + (1.0f - u->beta1) * g;
            vf v = u->beta2 * vf_load_some(p->v, i, left, DTYPE_F32) + (1.0f - u->beta2) * g * g;
            vf w = value_load(p, i, left);
            w -= step * m / (vf_sqrt(v) * root_v + u->eps) + decay * w;
            vf_store_some(p->m, i, m, left, DTYPE_F32);
            vf_store_some(p->v, i, v, left, DTYPE_F32);
            value_store(p, i, w, left, random16 + (i - chunk));
        }
    }
}
static void adamw(Backend *be, const OptimTensor *tensors, int64_t count, const GradStats *stats, AdamwArgs args) {
    op_check_optim(tensors, count, args.t);
    if (stats->skip) return;
    Update update = {.tensors = tensors, .count = count, .grad_scale = stats->scale, .seed = args.seed,
                     .stream = rounding_stream(args.t), .beta1 = args.beta1, .beta2 = args.beta2, .eps = args.eps,
                     .correction1 = 1 - pow((double)args.beta1, (double)args.t),
                     .correction2 = 1 - pow((double)args.beta2, (double)args.t)};
    update_all(be, &update, adamw_body);
}

// ---- Muon ----
SIMD_INLINE void momentum_at(const Update *u, const OptimTensor *p, void *out, int64_t i, int64_t left, DType dtype) {
    vf g = vf_load_some(p->grad, i, left, DTYPE_F32) * u->grad_scale;
    vf m = u->momentum * vf_load_some(p->m, i, left, DTYPE_F32) + g;
    vf_store_some(p->m, i, m, left, DTYPE_F32);
    if (u->nesterov) m = g + u->momentum * m;
    vf_store_some(out, i, m, left, dtype);
}
static void momentum_body(const Update *u, int64_t tensor, int64_t first, int64_t end) {
    const OptimTensor *p = &u->tensors[tensor];
    void *out = tensor_rows(u->x, tensor, 1).data;
    for (int64_t i = first; i < end; i += VF_LANES) {
        if (u->x.dtype == DTYPE_F32) momentum_at(u, p, out, i, end - i, DTYPE_F32);
        else momentum_at(u, p, out, i, end - i, DTYPE_BF16);
    }
}
static void muon_momentum(Backend *be, Tensor update, const OptimTensor *tensors, int64_t count,
                          const GradStats *stats, MuonArgs args) {
    op_check_optim(tensors, count, args.t);
    op_check_muon("update", update, tensors, count);
    if (stats->skip) {
        be->zero(be, update.data, tensor_bytes(update));
        return;
    }
    Update all = {.tensors = tensors, .count = count, .grad_scale = stats->scale, .momentum = args.momentum,
                  .nesterov = args.nesterov, .x = update};
    update_all(be, &all, momentum_body);
}

static void muon_apply_body(const Update *u, int64_t tensor, int64_t first, int64_t end) {
    const OptimTensor *p = &u->tensors[tensor];
    const void *x = tensor_rows(u->x, tensor, 1).data;
    RoundingBits bits;
    for (int64_t chunk = first; chunk < end; chunk += ROUNDING_ELEMS) {
        const uint16_t *random16 = p->master == NULL ? rounding_bits(&bits, u, p, chunk) : (const uint16_t *)bits.words;
        for (int64_t i = chunk; i < min_i64(chunk + ROUNDING_ELEMS, end); i += VF_LANES) {
            int64_t left = end - i;
            vf w = value_load(p, i, left);
            vf dw = u->x.dtype == DTYPE_F32 ? vf_load_some(x, i, left, DTYPE_F32)
                                            : vf_load_some(x, i, left, DTYPE_BF16);
            w -= p->lr * (dw + p->weight_decay * w);
            value_store(p, i, w, left, random16 + (i - chunk));
        }
    }
}
static void muon_apply(Backend *be, const OptimTensor *tensors, int64_t count, Tensor x, const GradStats *stats,
                       MuonArgs args) {
    op_check_optim(tensors, count, args.t);
    op_check_muon("x", x, tensors, count);
    if (stats->skip) return;
    Update update = {.tensors = tensors, .count = count, .seed = args.seed, .stream = rounding_stream(args.t),
                     .x = x};
    update_all(be, &update, muon_apply_body);
}

void ISA_NAME(optim_register)(Backend *be) {
    be->sum_squares = sum_squares_flat;
    be->grad_clip = grad_clip;
    be->adamw = adamw;
    be->muon_momentum = muon_momentum;
    be->frobenius_normalize = frobenius_normalize;
    be->muon_apply = muon_apply;
}
