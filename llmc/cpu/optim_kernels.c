// optim_kernels.c: gradient norm and clipping, AdamW, and Muon's elementwise steps (matmul makes its products).
// Every update is one pass over memory: at 124M parameters these operations run at the speed of memory.
#include "llmc/cpu/isa.h"
#include "llmc/cpu/kernels.h"
#include "llmc/cpu/simd.h"

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
// Four places of the range at once: one stream of loads alone does not fill the memory's bandwidth.
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

static void grad_clip(Backend *be, GradStats *stats, Tensor grad, float max_norm) {
    int64_t elems = tensor_elems(grad);
    CHECK(grad.dtype == DTYPE_F32, "grad: expected fp32, found %s", dtype_name(grad.dtype));
    double sum = sum_squares(be, grad.data, elems, DTYPE_F32), norm = sqrt(sum);
    bool finite = isfinite((float)norm);
    float scale = max_norm > 0 && norm > (double)max_norm ? (float)((double)max_norm / norm) : 1.0f;
    *stats = (GradStats){.sum_squares = sum, .norm = (float)norm, .scale = finite ? scale : 0.0f, .skip = !finite};
}

static void frobenius_normalize(Backend *be, Tensor x, float eps) {
    op_check_act("x", x);
    int64_t elems = tensor_elems(x);
    float factor = (float)(1.0 / (sqrt(sum_squares(be, x.data, elems, x.dtype)) + (double)eps));
#pragma omp parallel for schedule(static) num_threads(be->threads) if (elems > CPU_PARALLEL_ELEMS)
    for (int64_t i = 0; i < elems; i += VF_LANES) {
        if (x.dtype == DTYPE_F32)
            vf_store_some(x.data, i, vf_load_some(x.data, i, elems - i, DTYPE_F32) * factor, elems - i, DTYPE_F32);
        else
            vf_store_some(x.data, i, vf_load_some(x.data, i, elems - i, DTYPE_BF16) * factor, elems - i, DTYPE_BF16);
    }
}

// ---- AdamW ----
// What is the same for every element of a tensor in this step.
typedef struct {
    float grad_scale, beta1, beta2, eps;
    float step;      // lr / (1 - beta1^t)
    float root_v;    // 1 / sqrt(1 - beta2^t)
    float decay;     // lr * weight_decay
} AdamwFactors;

static void adamw_range(const OptimTensor *p, int64_t first, int64_t end, AdamwFactors f) {
    for (int64_t i = first; i < end; i += VF_LANES) {
        int64_t left = end - i;
        vf g = vf_load_some(p->grad, i, left, DTYPE_F32) * f.grad_scale;
        vf m = f.beta1 * vf_load_some(p->m, i, left, DTYPE_F32) + (1.0f - f.beta1) * g;
        vf v = f.beta2 * vf_load_some(p->v, i, left, DTYPE_F32) + (1.0f - f.beta2) * g * g;
        vf w = vf_load_some(p->master, i, left, DTYPE_F32);
        w -= f.step * m / (vf_sqrt(v) * f.root_v + f.eps) + f.decay * w;
        vf_store_some(p->m, i, m, left, DTYPE_F32);
        vf_store_some(p->v, i, v, left, DTYPE_F32);
        vf_store_some(p->master, i, w, left, DTYPE_F32);
        if (p->weight != NULL) vf_store_some(p->weight, i, w, left, DTYPE_BF16);
    }
}

#define ADAMW_BLOCK_ELEMS 4096
#define ADAMW_PARALLEL_BLOCKS (CPU_PARALLEL_ELEMS / ADAMW_BLOCK_ELEMS)

static void adamw(Backend *be, const OptimTensor *tensors, int64_t count, const GradStats *stats, AdamwArgs args) {
    CHECK(args.t >= 1, "t=%lld", (long long)args.t);
    if (stats->skip) return;
    double correction1 = 1 - pow((double)args.beta1, (double)args.t);
    double correction2 = 1 - pow((double)args.beta2, (double)args.t);
    int64_t blocks = 0;
    for (int64_t i = 0; i < count; ++i) blocks += div_up(tensors[i].elems, ADAMW_BLOCK_ELEMS);
    int64_t parts = be->threads;
    // One parallel region for all tensors: part p takes an equal share of the blocks, wherever tensors begin and end.
#pragma omp parallel for schedule(static, 1) num_threads(be->threads) if (blocks > ADAMW_PARALLEL_BLOCKS)
    for (int64_t part = 0; part < parts; ++part) {
        int64_t first_block = blocks * part / parts, end_block = blocks * (part + 1) / parts;
        for (int64_t i = 0, block = 0; i < count; ++i) {
            const OptimTensor *p = &tensors[i];
            int64_t first = max_i64(first_block - block, 0) * ADAMW_BLOCK_ELEMS;
            int64_t end = min_i64((end_block - block) * ADAMW_BLOCK_ELEMS, p->elems);
            block += div_up(p->elems, ADAMW_BLOCK_ELEMS);
            AdamwFactors factors = {.grad_scale = stats->scale, .beta1 = args.beta1, .beta2 = args.beta2,
                                    .eps = args.eps, .step = (float)((double)p->lr / correction1),
                                    .root_v = (float)(1 / sqrt(correction2)), .decay = p->lr * p->weight_decay};
            adamw_range(p, first, end, factors);
        }
    }
}

// ---- Muon ----
SIMD_INLINE void momentum_at(Tensor update, OptimTensor p, int64_t i, float scale, float momentum, bool nesterov,
                             DType dtype) {
    int64_t left = p.elems - i;
    vf g = vf_load_some(p.grad, i, left, DTYPE_F32) * scale;
    vf m = momentum * vf_load_some(p.m, i, left, DTYPE_F32) + g;
    vf_store_some(p.m, i, m, left, DTYPE_F32);
    vf u = m;
    if (nesterov) u = g + momentum * m;
    vf_store_some(update.data, i, u, left, dtype);
}
static void muon_momentum(Backend *be, Tensor update, OptimTensor tensor, const GradStats *stats, float momentum,
                          bool nesterov) {
    op_check_act("update", update);
    int64_t elems = tensor.elems;
    CHECK(tensor_elems(update) == elems, "update %lld, tensor %lld elements", (long long)tensor_elems(update),
          (long long)elems);
    if (stats->skip) {
        be->zero(be, update.data, tensor_bytes(update));
        return;
    }
#pragma omp parallel for schedule(static) num_threads(be->threads) if (elems > CPU_PARALLEL_ELEMS)
    for (int64_t i = 0; i < elems; i += VF_LANES) {
        if (update.dtype == DTYPE_F32)
            momentum_at(update, tensor, i, stats->scale, momentum, nesterov, DTYPE_F32);
        else
            momentum_at(update, tensor, i, stats->scale, momentum, nesterov, DTYPE_BF16);
    }
}

SIMD_INLINE void muon_apply_at(OptimTensor p, const void *x, int64_t i, DType dtype) {
    int64_t left = p.elems - i;
    vf w = vf_load_some(p.master, i, left, DTYPE_F32);
    w -= p.lr * (vf_load_some(x, i, left, dtype) + p.weight_decay * w);
    vf_store_some(p.master, i, w, left, DTYPE_F32);
    if (p.weight != NULL) vf_store_some(p.weight, i, w, left, DTYPE_BF16);
}
static void muon_apply(Backend *be, OptimTensor tensor, Tensor x, const GradStats *stats) {
    op_check_act("x", x);
    int64_t elems = tensor.elems;
    CHECK(tensor_elems(x) == elems, "x %lld, tensor %lld elements", (long long)tensor_elems(x), (long long)elems);
    if (stats->skip) return;
    (void)be;
#pragma omp parallel for schedule(static) num_threads(be->threads) if (elems > CPU_PARALLEL_ELEMS)
    for (int64_t i = 0; i < elems; i += VF_LANES) {
        if (x.dtype == DTYPE_F32)
            muon_apply_at(tensor, x.data, i, DTYPE_F32);
        else
            muon_apply_at(tensor, x.data, i, DTYPE_BF16);
    }
}

void ISA_NAME(optim_register)(Backend *be) {
    be->grad_clip = grad_clip;
    be->adamw = adamw;
    be->muon_momentum = muon_momentum;
    be->frobenius_normalize = frobenius_normalize;
    be->muon_apply = muon_apply;
}
