// loss_kernels.c: softmax cross-entropy with its gradient in place: the logits, the largest tensor of a step, are read
// from memory once and written once; the passes over a row in between stay in L2.
#include "llmc/cpu/isa.h"
#include "llmc/cpu/kernels.h"
#include "llmc/cpu/simd.h"

// Logits as the softmax sees them.
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

// Largest capped logit of the row. NaN is passed over; the exponentials that follow bring it to the loss.
SIMD_INLINE float row_max(const void *row, int64_t V, float cap, DType dtype) {
    vf best = vf_set(-INFINITY);
    int64_t v = 0;
    for (; v + VF_LANES <= V; v += VF_LANES) best = vf_max(capped_logit(row, v, VF_LANES, cap, dtype), best);
    float max = vf_hmax(best);
    if (v < V) {
        vf tail = capped_logit(row, v, V - v, cap, dtype);
        for (int64_t i = 0; i < V - v; ++i) max = tail[i] > max ? tail[i] : max;
    }
    return max;
}
SIMD_INLINE float row_sum_exp(const void *row, int64_t V, float max, float cap, DType dtype) {
    vf sum = vf_set(0.0f);
    int64_t v = 0;
    for (; v + VF_LANES <= V; v += VF_LANES) sum += vf_exp(capped_logit(row, v, VF_LANES, cap, dtype) - max);
    float total = vf_sum(sum);
    if (v < V) {
        vf tail = vf_exp(capped_logit(row, v, V - v, cap, dtype) - max);
        for (int64_t i = 0; i < V - v; ++i) total += tail[i];
    }
    return total;
}

// d(scale nll)/d(logit) = scale (softmax - [v is the target]) (1 - tanh^2 where capped)
SIMD_INLINE void row_gradient(void *row, int64_t V, int64_t Vp, int64_t target, float scale, float max, float sum,
                              float cap, DType dtype) {
    vf at_target = vf_load_some(row, target, 1, dtype);
    float factor = scale / sum;
    for (int64_t v = 0; v < V; v += VF_LANES) {
        vf x = capped_logit(row, v, V - v, cap, dtype);
        vf p = vf_exp(x - max) * factor;
        if (cap > 0) p *= 1.0f - (x * (1.0f / cap)) * (x * (1.0f / cap));
        vf_store_some(row, v, p, V - v, dtype);
    }
    // The target's element again from its logit: subtracting from the stored probability would round twice in bf16.
    vf x = cap_logit(at_target, cap);
    vf d = vf_exp(x - max) * factor - scale;
    if (cap > 0) d *= 1.0f - (x * (1.0f / cap)) * (x * (1.0f / cap));
    vf_store_some(row, target, d, 1, dtype);
    store_zeros(row, V, Vp, dtype);
}

SIMD_INLINE float cross_entropy_row(void *row, int64_t Vp, int64_t target, float weight, CrossEntropyArgs args,
                                    DType dtype) {
    float max = row_max(row, args.V, args.softcap, dtype);
    float sum = row_sum_exp(row, args.V, max, args.softcap, dtype);
    float at_target = capped_logit(row, target, 1, args.softcap, dtype)[0];
    // Logits may be large and their difference small: in double.
    float nll = (float)(log((double)sum) + (double)max - (double)at_target);
    if (args.want_grad)
        row_gradient(row, args.V, Vp, target, weight * args.loss_scale, max, sum, args.softcap, dtype);
    return nll;
}

static void cross_entropy(Backend *be, Tensor nll, Tensor logits, Tensor targets, Tensor weights,
                          CrossEntropyArgs args) {
    CHECK(logits.ndim == 2, "logits: expected 2 dimensions, found %d", logits.ndim);
    cpu_check_act("logits", logits);
    int64_t N = logits.dim[0], Vp = logits.dim[1];
    CHECK(args.V > 0 && args.V <= Vp && args.softcap >= 0, "V=%lld of %lld, softcap=%g", (long long)args.V,
          (long long)Vp, (double)args.softcap);
    cpu_check_1d("nll", nll, DTYPE_F32, N);
    cpu_check_1d("targets", targets, DTYPE_I32, N);
    cpu_check_1d("weights", weights, DTYPE_F32, N);
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
        if (logits.dtype == DTYPE_F32)
            *loss = cross_entropy_row(row, Vp, target, weight, args, DTYPE_F32);
        else
            *loss = cross_entropy_row(row, Vp, target, weight, args, DTYPE_BF16);
    }
}

void ISA_NAME(loss_register)(Backend *be) { be->cross_entropy = cross_entropy; }
