// norm_kernels.c: LayerNorm and RMSNorm over the last dimension, forward and backward, one row at a time so that a
// row is read from memory once. Must not know models.
#include "llmc/cpu/isa.h"
#include "llmc/cpu/partials.h"

// Sum over a row of x - shift, or of its square. Four sums in flight hide the latency of the additions.
#define SUMS 4
SIMD_INLINE float row_sum(const void *x, int64_t base, int64_t C, float shift, bool squared, DType dtype) {
    vf sum[SUMS] = {vf_set(0.0f), vf_set(0.0f), vf_set(0.0f), vf_set(0.0f)};
    int64_t c = 0;
    for (; c + SUMS * VF_LANES <= C; c += SUMS * VF_LANES)
        for (int k = 0; k < SUMS; ++k) {
            vf v = vf_load_as(x, base + c + k * VF_LANES, dtype) - shift;
            if (squared) v *= v;
            sum[k] += v;
        }
    for (; c + VF_LANES <= C; c += VF_LANES) {
        vf v = vf_load_as(x, base + c, dtype) - shift;
        if (squared) v *= v;
        sum[0] += v;
    }
    float total = vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    if (c == C) return total;
    vf v = vf_load_part_as(x, base + c, dtype, C - c) - shift;
    for (int64_t i = 0; i < C - c; ++i) total += squared ? v[i] * v[i] : v[i];
    return total;
}

// The variance is taken around the mean in a second pass over the row, then in L1: E[x^2] - mean^2 would cancel.
// adds and dtype are compile-time constants at each call: without a residual there is no branch for it.
SIMD_INLINE void norm_forward_row(Tensor out, float *mean_out, float *rstd_out, Tensor x, Tensor weight, Tensor bias,
                                  NormArgs args, int64_t row, bool adds, DType dtype) {
    int64_t C = x.dim[1], base = row * C;
    float mean = 0;
    if (args.kind == NORM_LAYER) *mean_out = mean = row_sum(x.data, base, C, 0.0f, false, dtype) / (float)C;
    float rstd = 1.0f / sqrtf(row_sum(x.data, base, C, mean, true, dtype) / (float)C + args.eps);
    *rstd_out = rstd;
    for (int64_t c = 0; c < C; c += VF_LANES) {
        int64_t left = C - c;
        vf y = (vf_load_some(x.data, base + c, left, dtype) - mean) * rstd;
        y *= vf_load_some(weight.data, c, left, dtype);
        if (!tensor_is_none(bias)) y += vf_load_some(bias.data, c, left, dtype);
        if (adds) y += vf_load_some(args.residual.data, base + c, left, dtype);
        vf_store_some(out.data, base + c, y, left, dtype);
    }
}

SIMD_INLINE void norm_forward_any(Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor weight, Tensor bias,
                                  NormArgs args, int64_t row, bool adds) {
    float *row_mean = args.kind == NORM_LAYER ? (float *)mean.data + row : NULL;
    float *row_rstd = (float *)rstd.data + row;
    if (x.dtype == DTYPE_F32)
        norm_forward_row(out, row_mean, row_rstd, x, weight, bias, args, row, adds, DTYPE_F32);
    else
        norm_forward_row(out, row_mean, row_rstd, x, weight, bias, args, row, adds, DTYPE_BF16);
}

static void norm_forward(Backend *be, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor weight, Tensor bias,
                         NormArgs args) {
    op_check_norm_forward(out, mean, rstd, x, weight, bias, &args);
    int64_t N = x.dim[0];
    (void)be;
    // Two loops, so that the residual does not change the code compiled for the loop without one.
    if (tensor_is_none(args.residual)) {
#pragma omp parallel for schedule(static) num_threads(be->threads) if (tensor_elems(x) > CPU_PARALLEL_ELEMS)
        for (int64_t row = 0; row < N; ++row) norm_forward_any(out, mean, rstd, x, weight, bias, args, row, false);
    } else {
#pragma omp parallel for schedule(static) num_threads(be->threads) if (tensor_elems(x) > CPU_PARALLEL_ELEMS)
        for (int64_t row = 0; row < N; ++row) norm_forward_any(out, mean, rstd, x, weight, bias, args, row, true);
    }
}

// With xhat = (x - mean) rstd and g = dout weight: dx = rstd (g - avg(g) - xhat avg(g xhat)); RMSNorm has no avg(g).
// dweight += dout xhat and dbias += dout, in the chunk's partial row [dweight(C) | dbias(C)].
SIMD_INLINE void norm_backward_row(Tensor dx, float *partial, Tensor dout, Tensor x, Tensor weight, float mean,
                                   float rstd, NormKind kind, bool want_bias, bool accumulate, int64_t row,
                                   DType dtype) {
    int64_t C = x.dim[1], base = row * C;
    vf sum_g = vf_set(0.0f), sum_gx = vf_set(0.0f);
    for (int64_t c = 0; c < C; c += VF_LANES) {
        int64_t left = C - c;
        vf d = vf_load_some(dout.data, base + c, left, dtype);
        vf xhat = (vf_load_some(x.data, base + c, left, dtype) - mean) * rstd;
        vf g = d * vf_load_some(weight.data, c, left, dtype);
        sum_g += g;
        sum_gx += g * xhat;
        vf_store_some(partial, c, vf_load_some(partial, c, left, DTYPE_F32) + d * xhat, left, DTYPE_F32);
        if (want_bias)
            vf_store_some(partial, C + c, vf_load_some(partial, C + c, left, DTYPE_F32) + d, left, DTYPE_F32);
    }
    float avg_g = kind == NORM_LAYER ? vf_sum(sum_g) / (float)C : 0.0f;
    float avg_gx = vf_sum(sum_gx) / (float)C;
    for (int64_t c = 0; c < C; c += VF_LANES) {
        int64_t left = C - c;
        vf xhat = (vf_load_some(x.data, base + c, left, dtype) - mean) * rstd;
        vf g = vf_load_some(dout.data, base + c, left, dtype) * vf_load_some(weight.data, c, left, dtype);
        vf d = rstd * (g - avg_g - xhat * avg_gx);
        if (accumulate) d += vf_load_some(dx.data, base + c, left, dtype);
        vf_store_some(dx.data, base + c, d, left, dtype);
    }
}

static void norm_backward(Backend *be, Tensor dx, Tensor dweight, Tensor dbias, Tensor dout, Tensor x, Tensor weight,
                          Tensor mean, Tensor rstd, bool accumulate_dx, bool accumulate_dw, NormArgs args) {
    int64_t N = x.dim[0], C = x.dim[1];
    op_check_norm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd, args.kind);
    bool want_bias = !tensor_is_none(dbias);
    int64_t width = want_bias ? 2 * C : C, chunks = partials_chunks(N);
    float *partials = partials_zeroed(be, N, width);
#pragma omp parallel for schedule(static) num_threads(be->threads) if (N * C > CPU_PARALLEL_ELEMS)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        float *partial = partials + chunk * width;
        for (int64_t row = partials_first_row(N, chunk); row < partials_first_row(N, chunk + 1); ++row) {
            float row_mean = args.kind == NORM_LAYER ? ((const float *)mean.data)[row] : 0.0f;
            float row_rstd = ((const float *)rstd.data)[row];
            if (x.dtype == DTYPE_F32)
                norm_backward_row(dx, partial, dout, x, weight, row_mean, row_rstd, args.kind, want_bias,
                                  accumulate_dx, row, DTYPE_F32);
            else
                norm_backward_row(dx, partial, dout, x, weight, row_mean, row_rstd, args.kind, want_bias,
                                  accumulate_dx, row, DTYPE_BF16);
        }
    }
    partials_sum(be, dweight.data, partials, N, width, 0, C, accumulate_dw);
    if (want_bias) partials_sum(be, dbias.data, partials, N, width, C, C, accumulate_dw);
}

void ISA_NAME(norm_register)(Backend *be) {
    be->norm_forward = norm_forward;
    be->norm_backward = norm_backward;
}
