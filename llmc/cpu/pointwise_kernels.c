// pointwise_kernels.c: elementwise operations: activations, residual adds, casts, the logit soft-cap. All but SwiGLU
// treat tensors as flat arrays divided into blocks.
#include "llmc/cpu/isa.h"
#include "llmc/cpu/kernels.h"
#include "llmc/cpu/simd.h"

#define BLOCK_ELEMS 4096

// ---- activations ----
SIMD_INLINE vf activation(vf x, Activation kind) {
    if (kind == ACT_GELU) return vf_gelu(x);
    vf positive = vf_max(vf_set(0.0f), x);  // this order keeps NaN
    return positive * positive;
}
SIMD_INLINE vf activation_derivative(vf x, Activation kind) {
    if (kind == ACT_GELU) return vf_gelu_derivative(x);
    return 2.0f * vf_max(vf_set(0.0f), x);
}

SIMD_INLINE void forward_block(void *out, const void *pre, int64_t first, int64_t end, Activation kind, DType dtype) {
    for (int64_t i = first; i < end; i += VF_LANES)
        vf_store_some(out, i, activation(vf_load_some(pre, i, end - i, dtype), kind), end - i, dtype);
}
SIMD_INLINE void backward_block(void *dpre, const void *dout, const void *pre, int64_t first, int64_t end,
                                Activation kind, DType dtype) {
    for (int64_t i = first; i < end; i += VF_LANES) {
        vf slope = activation_derivative(vf_load_some(pre, i, end - i, dtype), kind);
        vf_store_some(dpre, i, vf_load_some(dout, i, end - i, dtype) * slope, end - i, dtype);
    }
}
// A pre-activation row is [gate(F) | up(F)]: out = gate sigmoid(gate) up.
SIMD_INLINE void swiglu_forward_row(void *out, const void *pre, int64_t row, int64_t F, DType dtype) {
    for (int64_t f = 0; f < F; f += VF_LANES) {
        vf gate = vf_load_some(pre, row * 2 * F + f, F - f, dtype);
        vf up = vf_load_some(pre, row * 2 * F + F + f, F - f, dtype);
        vf_store_some(out, row * F + f, gate * vf_sigmoid(gate) * up, F - f, dtype);
    }
}
SIMD_INLINE void swiglu_backward_row(void *dpre, const void *dout, const void *pre, int64_t row, int64_t F,
                                     DType dtype) {
    for (int64_t f = 0; f < F; f += VF_LANES) {
        int64_t left = F - f, gate_at = row * 2 * F + f, up_at = gate_at + F;
        vf gate = vf_load_some(pre, gate_at, left, dtype);
        vf up = vf_load_some(pre, up_at, left, dtype);
        vf d = vf_load_some(dout, row * F + f, left, dtype);
        vf sigmoid = vf_sigmoid(gate);
        vf_store_some(dpre, gate_at, d * up * sigmoid * (1.0f + gate * (1.0f - sigmoid)), left, dtype);
        vf_store_some(dpre, up_at, d * gate * sigmoid, left, dtype);
    }
}

// One body for each activation and dtype: kind and dtype are constants inside.
static void forward_any(void *out, const void *pre, int64_t first, int64_t end, Activation kind, DType dtype) {
    if (kind == ACT_GELU && dtype == DTYPE_F32) forward_block(out, pre, first, end, ACT_GELU, DTYPE_F32);
    if (kind == ACT_GELU && dtype == DTYPE_BF16) forward_block(out, pre, first, end, ACT_GELU, DTYPE_BF16);
    if (kind == ACT_RELU2 && dtype == DTYPE_F32) forward_block(out, pre, first, end, ACT_RELU2, DTYPE_F32);
    if (kind == ACT_RELU2 && dtype == DTYPE_BF16) forward_block(out, pre, first, end, ACT_RELU2, DTYPE_BF16);
}
static void backward_any(void *dpre, const void *dout, const void *pre, int64_t first, int64_t end, Activation kind,
                         DType dtype) {
    if (kind == ACT_GELU && dtype == DTYPE_F32) backward_block(dpre, dout, pre, first, end, ACT_GELU, DTYPE_F32);
    if (kind == ACT_GELU && dtype == DTYPE_BF16) backward_block(dpre, dout, pre, first, end, ACT_GELU, DTYPE_BF16);
    if (kind == ACT_RELU2 && dtype == DTYPE_F32) backward_block(dpre, dout, pre, first, end, ACT_RELU2, DTYPE_F32);
    if (kind == ACT_RELU2 && dtype == DTYPE_BF16) backward_block(dpre, dout, pre, first, end, ACT_RELU2, DTYPE_BF16);
}

static void check_kind(Activation kind) {
    CHECK(kind == ACT_GELU || kind == ACT_RELU2 || kind == ACT_SWIGLU, "no kernel for activation %d", (int)kind);
}

static void activation_forward(Backend *be, Tensor out, Tensor pre, Activation kind) {
    check_kind(kind);
    op_check_activation(out, pre, kind);
    int64_t elems = tensor_elems(out), rows = out.dim[0];
    (void)be;
    if (kind == ACT_SWIGLU) {
#pragma omp parallel for schedule(static) num_threads(be->threads) if (elems > CPU_PARALLEL_ELEMS)
        for (int64_t row = 0; row < rows; ++row) {
            if (pre.dtype == DTYPE_F32)
                swiglu_forward_row(out.data, pre.data, row, out.dim[1], DTYPE_F32);
            else
                swiglu_forward_row(out.data, pre.data, row, out.dim[1], DTYPE_BF16);
        }
        return;
    }
#pragma omp parallel for schedule(static) num_threads(be->threads) if (elems > CPU_PARALLEL_ELEMS)
    for (int64_t first = 0; first < elems; first += BLOCK_ELEMS)
        forward_any(out.data, pre.data, first, min_i64(first + BLOCK_ELEMS, elems), kind, pre.dtype);
}

static void activation_backward(Backend *be, Tensor dpre, Tensor dout, Tensor pre, Activation kind) {
    check_kind(kind);
    op_check_activation_backward(dpre, dout, pre, kind);
    int64_t elems = tensor_elems(dout), rows = dout.dim[0];
    (void)be;
    if (kind == ACT_SWIGLU) {
#pragma omp parallel for schedule(static) num_threads(be->threads) if (elems > CPU_PARALLEL_ELEMS)
        for (int64_t row = 0; row < rows; ++row) {
            if (pre.dtype == DTYPE_F32)
                swiglu_backward_row(dpre.data, dout.data, pre.data, row, dout.dim[1], DTYPE_F32);
            else
                swiglu_backward_row(dpre.data, dout.data, pre.data, row, dout.dim[1], DTYPE_BF16);
        }
        return;
    }
#pragma omp parallel for schedule(static) num_threads(be->threads) if (elems > CPU_PARALLEL_ELEMS)
    for (int64_t first = 0; first < elems; first += BLOCK_ELEMS)
        backward_any(dpre.data, dout.data, pre.data, first, min_i64(first + BLOCK_ELEMS, elems), kind, pre.dtype);
}

// ---- add, cast, soft-cap ----
SIMD_INLINE void add_block(void *out, const void *a, const void *b, int64_t first, int64_t end, DType dtype) {
    for (int64_t i = first; i < end; i += VF_LANES) {
        vf sum = vf_load_some(a, i, end - i, dtype) + vf_load_some(b, i, end - i, dtype);
        vf_store_some(out, i, sum, end - i, dtype);
    }
}
static void add(Backend *be, Tensor out, Tensor a, Tensor b) {
    op_check_add(out, a, b);
    int64_t elems = tensor_elems(out);
    (void)be;
#pragma omp parallel for schedule(static) num_threads(be->threads) if (elems > CPU_PARALLEL_ELEMS)
    for (int64_t first = 0; first < elems; first += BLOCK_ELEMS) {
        int64_t end = min_i64(first + BLOCK_ELEMS, elems);
        if (out.dtype == DTYPE_F32)
            add_block(out.data, a.data, b.data, first, end, DTYPE_F32);
        else
            add_block(out.data, a.data, b.data, first, end, DTYPE_BF16);
    }
}

SIMD_INLINE void cast_block(void *out, const void *in, int64_t first, int64_t end, DType to, DType from) {
    for (int64_t i = first; i < end; i += VF_LANES)
        vf_store_some(out, i, vf_load_some(in, i, end - i, from), end - i, to);
}
static void cast(Backend *be, Tensor out, Tensor in) {
    op_check_cast(out, in);
    int64_t elems = tensor_elems(out);
    (void)be;
#pragma omp parallel for schedule(static) num_threads(be->threads) if (elems > CPU_PARALLEL_ELEMS)
    for (int64_t first = 0; first < elems; first += BLOCK_ELEMS) {
        int64_t end = min_i64(first + BLOCK_ELEMS, elems);
        if (out.dtype == DTYPE_BF16 && in.dtype == DTYPE_F32)
            cast_block(out.data, in.data, first, end, DTYPE_BF16, DTYPE_F32);
        else if (out.dtype == DTYPE_F32 && in.dtype == DTYPE_BF16)
            cast_block(out.data, in.data, first, end, DTYPE_F32, DTYPE_BF16);
        else {
            size_t each = dtype_bytes(out.dtype);
            memcpy((char *)out.data + to_size(first) * each, (const char *)in.data + to_size(first) * each,
                   to_size(end - first) * each);
        }
    }
}

SIMD_INLINE void softcap_block(void *logits, int64_t first, int64_t end, float cap, DType dtype) {
    for (int64_t i = first; i < end; i += VF_LANES) {
        vf capped = cap * vf_tanh(vf_load_some(logits, i, end - i, dtype) * (1.0f / cap));
        vf_store_some(logits, i, capped, end - i, dtype);
    }
}
static void softcap(Backend *be, Tensor logits, float cap) {
    op_check_softcap(logits, cap);
    int64_t elems = tensor_elems(logits);
    (void)be;
#pragma omp parallel for schedule(static) num_threads(be->threads) if (elems > CPU_PARALLEL_ELEMS)
    for (int64_t first = 0; first < elems; first += BLOCK_ELEMS) {
        int64_t end = min_i64(first + BLOCK_ELEMS, elems);
        if (logits.dtype == DTYPE_F32)
            softcap_block(logits.data, first, end, cap, DTYPE_F32);
        else
            softcap_block(logits.data, first, end, cap, DTYPE_BF16);
    }
}

void ISA_NAME(pointwise_register)(Backend *be) {
    be->activation_forward = activation_forward;
    be->activation_backward = activation_backward;
    be->add = add;
    be->cast = cast;
    be->softcap = softcap;
}
