// loss_kernels.c: softmax cross-entropy with its gradient in place. The logits are the largest tensor of a step: they
// are read from memory once and written once; the passes over a row in between stay in L1 and L2.
#include "llmc/cpu/isa.h"
#include "llmc/cpu/kernels.h"
#include "llmc/cpu/simd.h"

// Logits as input of the softmax.
SIMD_INLINE vf cap_logit(vf x, float cap) {
    if (cap > 0) x = cap * vf_tanh(x * (1.0f / cap));
    return x;
}
SIMD_INLINE vf capped_logit(const void *logits, int64_t index, int64_t left, float cap, DType dtype) {
    return cap_logit(vf_load_some(logits, index, left, dtype), cap);
}

SIMD_INLINE void store_zeros(void *row, int64_t first, int64_t end, DType dtype) {
    size_t each = dtype_bytes(dtype);
    memset((char *)row + to_size(first) * each, 0, to_size(end - first) * each);
}

// A row is processed in blocks that fit in L1. The softmax's sum is relative to the largest logit so far; if
// possible, the gradient reuses the exponentials that the block stored in place of its logits.
#define ROW_MAX_BLOCKS 256
#define ROW_MIN_BLOCK 2048
typedef struct {
    int64_t block;              // elements, a multiple of VF_LANES
    float top[ROW_MAX_BLOCKS];  // the maximum that a block's exponentials are relative to
    float max, sum;             // of the whole row
} RowSoftmax;

// Ignores NaN; the exponentials that follow carry it into the sum.
SIMD_INLINE float block_max(const void *row, int64_t first, int64_t end, float cap, DType dtype) {
    vf best[2] = {vf_set(-INFINITY), vf_set(-INFINITY)};
    int64_t v = first;
    for (; v + 2 * VF_LANES <= end; v += 2 * VF_LANES)
        for (int k = 0; k < 2; ++k)
            best[k] = vf_max(capped_logit(row, v + k * VF_LANES, VF_LANES, cap, dtype), best[k]);
    float max = vf_hmax(vf_max(best[0], best[1]));
    for (; v < end; v += VF_LANES) {
        vf tail = capped_logit(row, v, end - v, cap, dtype);
        for (int64_t i = 0; i < min_i64(VF_LANES, end - v); ++i) max = tail[i] > max ? tail[i] : max;
    }
    return max;
}
// sum of exp(logit - top); keep: each exponential replaces its logit.
SIMD_INLINE float block_sum_exp(void *row, int64_t first, int64_t end, float top, float cap, bool keep, DType dtype) {
    vf sum = vf_set(0.0f);
    int64_t v = first;
    for (; v + VF_LANES <= end; v += VF_LANES) {
        vf e = vf_exp(capped_logit(row, v, VF_LANES, cap, dtype) - top);
        if (keep) vf_store_as(row, v, e, dtype);
        sum += e;
    }
    float total = vf_sum(sum);
    if (v < end) {
        vf e = vf_exp(capped_logit(row, v, end - v, cap, dtype) - top);
        if (keep) vf_store_part_as(row, v, e, dtype, end - v);
        for (int64_t i = 0; i < end - v; ++i) total += e[i];
    }
    return total;
}
SIMD_INLINE void row_softmax(RowSoftmax *s, void *row, int64_t V, float cap, bool keep, DType dtype) {
    s->block = round_up(max_i64(ROW_MIN_BLOCK, div_up(V, ROW_MAX_BLOCKS)), VF_LANES);
    s->max = -INFINITY;
    s->sum = 0;
    for (int64_t first = 0, b = 0; first < V; first += s->block, ++b) {
        int64_t end = min_i64(first + s->block, V);
        float top = block_max(row, first, end, cap, dtype);
        if (!(top > s->max)) top = s->max;
        if (s->sum != 0) s->sum *= expf(s->max - top);
        s->top[b] = s->max = top;
        s->sum += block_sum_exp(row, first, end, top, cap, keep, dtype);
    }
}

// d(scale nll)/d(logit) = scale (softmax - [v is the target]) (1 - tanh^2 where capped)
SIMD_INLINE vf logit_gradient(vf logit, float max, float factor, float minus, float cap) {
    vf x = cap_logit(logit, cap), d = vf_exp(x - max) * factor - minus;
    if (cap > 0) d *= 1.0f - (x * (1.0f / cap)) * (x * (1.0f / cap));
    return d;
}
SIMD_INLINE void row_gradient(void *row, const RowSoftmax *s, int64_t V, float scale, float cap, bool kept,
                              DType dtype) {
    for (int64_t first = 0, b = 0; first < V; first += s->block, ++b) {
        int64_t end = min_i64(first + s->block, V);
        float factor = scale / s->sum * (kept ? expf(s->top[b] - s->max) : 1.0f);
        for (int64_t v = first; v < end; v += VF_LANES) {
            vf d = vf_load_some(row, v, end - v, dtype);
            if (kept)
                d *= factor;
            else
                d = logit_gradient(d, s->max, factor, 0.0f, cap);
            vf_store_some(row, v, d, end - v, dtype);
        }
    }
}

// scale is the row's weight times the loss scale; cap is args.softcap, a constant 0 if there is none, so that the
// compiler removes it.
SIMD_INLINE float cross_entropy_row(void *row, int64_t Vp, int64_t target, float scale, CrossEntropyArgs args,
                                    float cap, DType dtype) {
    // bf16 exponentials would be rounded twice, and the soft-cap's derivative needs the logits.
    bool keep = dtype == DTYPE_F32 && cap == 0;
    vf at_target = vf_load_some(row, target, 1, dtype);
    RowSoftmax s;
    row_softmax(&s, row, args.V, cap, keep, dtype);
    if (args.want_grad) {
        row_gradient(row, &s, args.V, scale, cap, keep, dtype);
        // Recompute the target's element from its logit: subtracting from the stored probability would round twice.
        vf d = logit_gradient(at_target, s.max, scale / s.sum, scale, cap);
        vf_store_some(row, target, d, 1, dtype);
        store_zeros(row, args.V, Vp, dtype);
    }
    // Logits may be large and their difference small: use double.
    return (float)(log((double)s.sum) + (double)s.max - (double)cap_logit(at_target, cap)[0]);
}
static float cross_entropy_any(void *row, int64_t Vp, int64_t target, float scale, CrossEntropyArgs args,
                               DType dtype) {
    if (dtype == DTYPE_F32)
        return args.softcap == 0 ? cross_entropy_row(row, Vp, target, scale, args, 0.0f, DTYPE_F32)
                                 : cross_entropy_row(row, Vp, target, scale, args, args.softcap, DTYPE_F32);
    return args.softcap == 0 ? cross_entropy_row(row, Vp, target, scale, args, 0.0f, DTYPE_BF16)
                             : cross_entropy_row(row, Vp, target, scale, args, args.softcap, DTYPE_BF16);
}

static void cross_entropy(Backend *be, Tensor nll, Tensor logits, Tensor targets, Tensor weights,
                          CrossEntropyArgs args) {
    op_check_cross_entropy(nll, logits, targets, weights, &args);
    int64_t N = logits.dim[0], Vp = logits.dim[1];
    float loss_scale = args.want_grad ? *(const float *)args.loss_scale.data : 0.0f;
    (void)be;
#pragma omp parallel for schedule(static) num_threads(be->threads) if (N * Vp > CPU_PARALLEL_ELEMS)
    for (int64_t i = 0; i < N; ++i) {
        float *loss = (float *)nll.data + i;
        float weight = ((const float *)weights.data)[i];
        int64_t target = ((const int32_t *)targets.data)[i];
        void *row = (char *)logits.data + to_size(i * Vp) * dtype_bytes(logits.dtype);
        if (weight == 0.0f) {  // whatever its target and logits are
            *loss = 0;
            if (args.want_grad) store_zeros(row, 0, Vp, logits.dtype);
            continue;
        }
        CHECK(target >= 0 && target < args.V, "targets[%lld]=%lld, expected 0 to %lld", (long long)i,
              (long long)target, (long long)args.V - 1);
        *loss = cross_entropy_any(row, Vp, target, weight * loss_scale, args, logits.dtype);
    }
}

void ISA_NAME(loss_register)(Backend *be) { be->cross_entropy = cross_entropy; }
