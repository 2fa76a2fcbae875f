// rope_kernels.c: the q and k heads between their projection and attention: RMS norm of each head (QK-norm,
// optional), then rotary position embedding (Su et al., "RoFormer"; optional). v heads are copied unchanged.
#include "llmc/cpu/isa.h"
#include "llmc/cpu/partials.h"

static void check_positions(Tensor positions, const QkArgs *args) {
    if (!args->use_rope) return;
    const int32_t *position = positions.data;
    int64_t P = args->cos.dim[0];
    for (int64_t i = 0; i < positions.dim[0]; ++i)
        CHECK(position[i] >= 0 && position[i] < P, "positions[%lld]=%d, expected 0 to %lld", (long long)i,
              position[i], (long long)P - 1);
}

// (a, b) -> (a cos - b sin, b cos + a sin) on the pairs (i, i + HS/2); direction -1 is the inverse (the transpose).
SIMD_INLINE void rotate_head(void *out, const void *in, const float *cos, const float *sin, float direction,
                             int64_t HS, DType out_dtype, DType in_dtype) {
    int64_t half = HS / 2;
    for (int64_t i = 0; i < half; i += VF_LANES) {
        int64_t left = half - i;
        vf a = vf_load_some(in, i, left, in_dtype), b = vf_load_some(in, half + i, left, in_dtype);
        vf c = vf_load_some(cos, i, left, DTYPE_F32), s = direction * vf_load_some(sin, i, left, DTYPE_F32);
        vf_store_some(out, i, a * c - b * s, left, out_dtype);
        vf_store_some(out, half + i, b * c + a * s, left, out_dtype);
    }
}
SIMD_INLINE void copy_head(void *out, const void *in, int64_t HS, DType out_dtype, DType in_dtype) {
    for (int64_t i = 0; i < HS; i += VF_LANES)
        vf_store_some(out, i, vf_load_some(in, i, HS - i, in_dtype), HS - i, out_dtype);
}

// y = x rstd weight, kept in fp32 for the rotation.
SIMD_INLINE float rms_head(float *y, const void *x, const void *weight, float eps, int64_t HS, DType dtype) {
    vf squares = vf_set(0.0f);
    for (int64_t i = 0; i < HS; i += VF_LANES) {
        vf v = vf_load_some(x, i, HS - i, dtype);
        squares += v * v;
    }
    float rstd = 1.0f / sqrtf(vf_sum(squares) / (float)HS + eps);
    for (int64_t i = 0; i < HS; i += VF_LANES) {
        vf v = vf_load_some(x, i, HS - i, dtype) * rstd * vf_load_some(weight, i, HS - i, dtype);
        vf_store_some(y, i, v, HS - i, DTYPE_F32);
    }
    return rstd;
}

static const void *head_at(const void *base, int64_t index, DType dtype) {
    return (const char *)base + to_size(index) * dtype_bytes(dtype);
}

SIMD_INLINE void qk_forward_row(Tensor out, Tensor rstd, Tensor in, int64_t position, const QkArgs *args, int64_t row,
                                DType dtype) {
    int64_t HS = args->HS, heads = args->NH + args->NKV;
    const float *cos = (const float *)args->cos.data + position * (HS / 2);
    const float *sin = (const float *)args->sin.data + position * (HS / 2);
    bool qk_norm = !tensor_is_none(args->q_weight);
    for (int64_t h = 0; h < heads; ++h) {
        int64_t at = row * in.dim[1] + h * HS;
        const void *x = head_at(in.data, at, dtype);
        void *y = (void *)(uintptr_t)head_at(out.data, at, dtype);
        float normed[OP_MAX_HEAD_SIZE];
        if (qk_norm) {
            const void *weight = h < args->NH ? args->q_weight.data : args->k_weight.data;
            ((float *)rstd.data)[row * heads + h] = rms_head(normed, x, weight, args->eps, HS, dtype);
            if (args->use_rope)
                rotate_head(y, normed, cos, sin, 1.0f, HS, dtype, DTYPE_F32);
            else
                copy_head(y, normed, HS, dtype, DTYPE_F32);
        } else {
            rotate_head(y, x, cos, sin, 1.0f, HS, dtype, dtype);
        }
    }
}

// Copies the v heads of a row, if not in place.
static void copy_v(Tensor out, Tensor in, int64_t row, const QkArgs *args) {
    int64_t at = row * in.dim[1] + (args->NH + args->NKV) * args->HS;
    size_t bytes = to_size(args->NKV * args->HS) * dtype_bytes(in.dtype);
    if (out.data != in.data)
        memcpy((void *)(uintptr_t)head_at(out.data, at, in.dtype), head_at(in.data, at, in.dtype), bytes);
}
// Neither norm nor rotation.
static bool qk_copies(Backend *be, Tensor out, Tensor in, const QkArgs *args) {
    if (args->use_rope || !tensor_is_none(args->q_weight)) return false;
    if (out.data != in.data) be->copy(be, out.data, in.data, tensor_bytes(in));
    return true;
}

static void qk_forward(Backend *be, Tensor out, Tensor rstd, Tensor in, Tensor positions, QkArgs args) {
    op_check_qk_forward(out, rstd, in, positions, &args);
    check_positions(positions, &args);
    int64_t N = in.dim[0];
    if (qk_copies(be, out, in, &args)) return;
#pragma omp parallel for schedule(static) num_threads(be->threads) if (tensor_elems(in) > CPU_PARALLEL_ELEMS)
    for (int64_t row = 0; row < N; ++row) {
        int64_t position = args.use_rope ? ((const int32_t *)positions.data)[row] : 0;
        if (in.dtype == DTYPE_F32)
            qk_forward_row(out, rstd, in, position, &args, row, DTYPE_F32);
        else
            qk_forward_row(out, rstd, in, position, &args, row, DTYPE_BF16);
        copy_v(out, in, row, &args);
    }
}

// dy is the gradient of rms_head's y: dx = rstd (dy weight - xhat avg(dy weight xhat)), dweight += dy xhat.
SIMD_INLINE void rms_head_backward(void *dx, float *dweight, const float *dy, const void *x, const void *weight,
                                   float rstd, int64_t HS, DType dtype) {
    vf dot = vf_set(0.0f);
    for (int64_t i = 0; i < HS; i += VF_LANES) {
        int64_t left = HS - i;
        vf d = vf_load_some(dy, i, left, DTYPE_F32), xhat = vf_load_some(x, i, left, dtype) * rstd;
        dot += d * vf_load_some(weight, i, left, dtype) * xhat;
        vf_store_some(dweight, i, vf_load_some(dweight, i, left, DTYPE_F32) + d * xhat, left, DTYPE_F32);
    }
    float avg = vf_sum(dot) / (float)HS;
    for (int64_t i = 0; i < HS; i += VF_LANES) {
        int64_t left = HS - i;
        vf g = vf_load_some(dy, i, left, DTYPE_F32) * vf_load_some(weight, i, left, dtype);
        vf xhat = vf_load_some(x, i, left, dtype) * rstd;
        vf_store_some(dx, i, rstd * (g - xhat * avg), left, dtype);
    }
}

// partial is the chunk's [dq_weight(HS) | dk_weight(HS)].
SIMD_INLINE void qk_backward_row(Tensor din, float *partial, Tensor dout, Tensor in, Tensor rstd, int64_t position,
                                 const QkArgs *args, int64_t row, DType dtype) {
    int64_t HS = args->HS, heads = args->NH + args->NKV;
    const float *cos = (const float *)args->cos.data + position * (HS / 2);
    const float *sin = (const float *)args->sin.data + position * (HS / 2);
    for (int64_t h = 0; h < heads; ++h) {
        int64_t at = row * dout.dim[1] + h * HS;
        const void *dy = head_at(dout.data, at, dtype);
        void *dx = (void *)(uintptr_t)head_at(din.data, at, dtype);
        if (partial == NULL) {
            rotate_head(dx, dy, cos, sin, -1.0f, HS, dtype, dtype);
            continue;
        }
        float turned[OP_MAX_HEAD_SIZE];
        if (args->use_rope)
            rotate_head(turned, dy, cos, sin, -1.0f, HS, DTYPE_F32, dtype);
        else
            copy_head(turned, dy, HS, DTYPE_F32, dtype);
        bool is_q = h < args->NH;
        rms_head_backward(dx, partial + (is_q ? 0 : HS), turned, head_at(in.data, at, dtype),
                          is_q ? args->q_weight.data : args->k_weight.data,
                          ((const float *)rstd.data)[row * heads + h], HS, dtype);
    }
}

static void qk_backward(Backend *be, Tensor din, Tensor dq_weight, Tensor dk_weight, Tensor dout, Tensor in,
                        Tensor rstd, Tensor positions, bool accumulate_dw, QkArgs args) {
    op_check_qk_backward(din, dq_weight, dk_weight, dout, in, rstd, positions, &args);
    check_positions(positions, &args);
    int64_t N = dout.dim[0], HS = args.HS;
    bool qk_norm = !tensor_is_none(args.q_weight);
    if (qk_copies(be, din, dout, &args)) return;
    float *partials = qk_norm ? partials_zeroed(be, N, 2 * HS) : NULL;
    int64_t chunks = partials_chunks(N);
#pragma omp parallel for schedule(static) num_threads(be->threads) if (tensor_elems(dout) > CPU_PARALLEL_ELEMS)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        float *partial = qk_norm ? partials + chunk * 2 * HS : NULL;
        for (int64_t row = partials_first_row(N, chunk); row < partials_first_row(N, chunk + 1); ++row) {
            int64_t position = args.use_rope ? ((const int32_t *)positions.data)[row] : 0;
            if (dout.dtype == DTYPE_F32)
                qk_backward_row(din, partial, dout, in, rstd, position, &args, row, DTYPE_F32);
            else
                qk_backward_row(din, partial, dout, in, rstd, position, &args, row, DTYPE_BF16);
            copy_v(din, dout, row, &args);
        }
    }
    if (!qk_norm) return;
    partials_sum(be, dq_weight.data, partials, N, 2 * HS, 0, HS, accumulate_dw);
    partials_sum(be, dk_weight.data, partials, N, 2 * HS, HS, HS, accumulate_dw);
}

void ISA_NAME(rope_register)(Backend *be) {
    be->qk_forward = qk_forward;
    be->qk_backward = qk_backward;
}
