// op_check.h: shape checks at the start of every backend's operations. A wrong call is a programming error and aborts
// with both shapes.
#ifndef LLMC_OP_CHECK_H
#define LLMC_OP_CHECK_H

#include "llmc/backend/backend.h"

static inline void op_check_1d(const char *name, Tensor t, DType dtype, int64_t d0) {
    CHECK(t.ndim == 1 && t.dtype == dtype && t.dim[0] == d0,
          "%s: expected %s (%lld), found %s (%lld) of %d dimensions", name, dtype_name(dtype), (long long)d0,
          dtype_name(t.dtype), (long long)t.dim[0], t.ndim);
}
static inline void op_check_2d(const char *name, Tensor t, DType dtype, int64_t d0, int64_t d1) {
    CHECK(t.ndim == 2 && t.dtype == dtype && t.dim[0] == d0 && t.dim[1] == d1,
          "%s: expected %s (%lld, %lld), found %s (%lld, %lld) of %d dimensions", name, dtype_name(dtype),
          (long long)d0, (long long)d1, dtype_name(t.dtype), (long long)t.dim[0], (long long)t.dim[1], t.ndim);
}
static inline void op_check_act(const char *name, Tensor t) {
    CHECK(t.dtype == DTYPE_F32 || t.dtype == DTYPE_BF16, "%s: expected fp32 or bf16, found %s", name,
          dtype_name(t.dtype));
}

static inline void op_check_matmul_operand(Tensor t, const char *name, int64_t rows, int64_t cols, DType dtype) {
    CHECK(t.ndim == 2 && t.dim[0] == rows && t.dim[1] == cols && t.dtype == dtype,
          "matmul: %s is %s (%lld, %lld), expected %s (%lld, %lld)", name, dtype_name(t.dtype), (long long)t.dim[0],
          (long long)t.dim[1], dtype_name(dtype), (long long)rows, (long long)cols);
}

// Checks one two-dimensional product; returns its K. M and N are out's.
static inline int64_t op_check_matmul(Tensor out, Tensor a, Tensor b, const MatmulArgs *args) {
    CHECK(a.ndim == 2 && b.ndim == 2 && out.ndim == 2, "matmul: ndim out=%d a=%d b=%d", out.ndim, a.ndim, b.ndim);
    const int64_t M = out.dim[0], N = out.dim[1], K = args->trans_a ? a.dim[0] : a.dim[1];
    CHECK(a.dtype == DTYPE_F32 || a.dtype == DTYPE_BF16, "matmul: a is %s", dtype_name(a.dtype));
    CHECK(out.dtype == DTYPE_F32 || (out.dtype == DTYPE_BF16 && a.dtype == DTYPE_BF16), "matmul: out is %s, a is %s",
          dtype_name(out.dtype), dtype_name(a.dtype));
    op_check_matmul_operand(a, "a", args->trans_a ? K : M, args->trans_a ? M : K, a.dtype);
    op_check_matmul_operand(b, "b", args->trans_b ? N : K, args->trans_b ? K : N, a.dtype);
    if (!tensor_is_none(args->add)) op_check_matmul_operand(args->add, "add", M, N, out.dtype);
    if (!tensor_is_none(args->pre)) op_check_matmul_operand(args->pre, "pre", M, N, out.dtype);
    if (!tensor_is_none(args->bias)) op_check_1d("matmul: bias", args->bias, a.dtype, N);
    if (!tensor_is_none(args->sums)) {
        CHECK(args->trans_a, "matmul: sums of rows need trans_a%s", "");
        op_check_1d("matmul: sums", args->sums, DTYPE_F32, M);
    }
    CHECK(!activation_is_gated(args->act) && !activation_is_gated(args->act_grad),
          "matmul: a gated activation is not elementwise%s", "");
    CHECK(args->act == ACT_NONE || args->act_grad == ACT_NONE, "matmul: act=%d and act_grad=%d", (int)args->act,
          (int)args->act_grad);
    CHECK(args->act_grad == ACT_NONE || !tensor_is_none(args->pre), "matmul: act_grad=%d without pre",
          (int)args->act_grad);
    return K;
}
static inline void op_check_matmul_batch(Tensor out, Tensor a, Tensor b, const MatmulArgs *args) {
    CHECK(a.ndim == 3 && b.ndim == 3 && a.dim[0] == out.dim[0] && b.dim[0] == out.dim[0],
          "matmul: batches of out=%lld a=%lld b=%lld", (long long)out.dim[0], (long long)a.dim[0],
          (long long)b.dim[0]);
    CHECK(tensor_is_none(args->add) || (args->add.ndim == 3 && args->add.dim[0] == out.dim[0]),
          "matmul: add has %d dimensions", args->add.ndim);
    CHECK(tensor_is_none(args->bias) && tensor_is_none(args->pre) && tensor_is_none(args->sums) &&
              args->act == ACT_NONE && args->act_grad == ACT_NONE,
          "matmul: a batch takes alpha, beta and add only%s", "");
}

// The matrices of one Muon call, and the tensors they belong to.
static inline void op_check_muon(const char *name, Tensor x, const OptimTensor *tensors, int64_t count) {
    op_check_act(name, x);
    CHECK(x.ndim == 3 && x.dim[0] == count, "%s: expected %lld matrices, found %lld of %d dimensions", name,
          (long long)count, (long long)x.dim[0], x.ndim);
    for (int64_t i = 0; i < count; ++i)
        CHECK(tensors[i].elems == x.dim[1] * x.dim[2], "%s: matrix %lld has %lld elements, its tensor %lld", name,
              (long long)i, (long long)(x.dim[1] * x.dim[2]), (long long)tensors[i].elems);
}
// Checks a list of tensors to update.
static inline void op_check_optim(const OptimTensor *tensors, int64_t count, int64_t t) {
    CHECK(t >= 1, "t=%lld", (long long)t);
    for (int64_t i = 0; i < count; ++i)
        CHECK((tensors[i].master != NULL || tensors[i].weight != NULL || tensors[i].elems == 0) &&
                  tensors[i].first_elem >= 0,
              "tensor %lld of %lld elements: no values, or first_elem=%lld", (long long)i,
              (long long)tensors[i].elems, (long long)tensors[i].first_elem);
}

// ---- sums over rows ----
static inline void op_check_bias_backward(Tensor dbias, Tensor dout) {
    CHECK(dout.ndim == 2, "dout: expected 2 dimensions, found %d", dout.ndim);
    op_check_act("dout", dout);
    op_check_1d("dbias", dbias, DTYPE_F32, dout.dim[1]);
}
static inline void op_check_weighted_sum(Tensor out, Tensor nll, Tensor weights) {
    int64_t N = tensor_elems(nll);
    op_check_1d("out", out, DTYPE_F64, 1);
    op_check_1d("nll", nll, DTYPE_F32, N);
    op_check_1d("weights", weights, DTYPE_F32, N);
}

// ---- embedding ----
// rows are (N,C); each table has C columns; tokens or positions are row indices. wpe may be TENSOR_NONE.
static inline void op_check_embedding(const char *rows_name, Tensor rows, Tensor tokens, Tensor positions,
                                      const char *wte_name, Tensor wte, const char *wpe_name, Tensor wpe,
                                      DType tables) {
    op_check_act(rows_name, rows);
    int64_t N = rows.dim[0], C = wte.dim[1];
    op_check_2d(rows_name, rows, rows.dtype, N, C);
    op_check_2d(wte_name, wte, tables, wte.dim[0], C);
    op_check_1d("tokens", tokens, DTYPE_I32, N);
    if (tensor_is_none(wpe)) return;
    op_check_2d(wpe_name, wpe, tables, wpe.dim[0], C);
    op_check_1d("positions", positions, DTYPE_I32, N);
}

// ---- normalization ----
static inline void op_check_norm(Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, NormKind kind) {
    CHECK(x.ndim == 2, "x: expected 2 dimensions, found %d", x.ndim);
    op_check_act("x", x);
    op_check_1d("weight", weight, x.dtype, x.dim[1]);
    if (!tensor_is_none(bias)) op_check_1d("bias", bias, x.dtype, x.dim[1]);
    CHECK(tensor_is_none(mean) == (kind == NORM_RMS), "kind=%d: mean is given for LayerNorm only", (int)kind);
    if (kind == NORM_LAYER) op_check_1d("mean", mean, DTYPE_F32, x.dim[0]);
    op_check_1d("rstd", rstd, DTYPE_F32, x.dim[0]);
}
static inline void op_check_norm_forward(Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor weight, Tensor bias,
                                         const NormArgs *args) {
    op_check_norm(x, weight, bias, mean, rstd, args->kind);
    op_check_2d("out", out, x.dtype, x.dim[0], x.dim[1]);
    if (!tensor_is_none(args->residual)) op_check_2d("residual", args->residual, x.dtype, x.dim[0], x.dim[1]);
}
static inline void op_check_norm_backward(Tensor dx, Tensor dweight, Tensor dbias, Tensor dout, Tensor x,
                                          Tensor weight, Tensor mean, Tensor rstd, NormKind kind) {
    op_check_norm(x, weight, TENSOR_NONE, mean, rstd, kind);
    op_check_2d("dx", dx, x.dtype, x.dim[0], x.dim[1]);
    op_check_2d("dout", dout, x.dtype, x.dim[0], x.dim[1]);
    CHECK(dx.data != dout.data || x.dim[0] == 0, "dx is dout, %lld rows", (long long)x.dim[0]);
    op_check_1d("dweight", dweight, DTYPE_F32, x.dim[1]);
    if (!tensor_is_none(dbias)) op_check_1d("dbias", dbias, DTYPE_F32, x.dim[1]);
}

// ---- q and k ----
#define OP_MAX_HEAD_SIZE 1024
static inline void op_check_qk(Tensor out, Tensor in, Tensor rstd, Tensor positions, const QkArgs *args) {
    int64_t N = in.dim[0], HS = args->HS;
    op_check_act("in", in);
    CHECK(args->NH > 0 && args->NKV > 0 && HS > 0 && HS <= OP_MAX_HEAD_SIZE, "NH=%lld NKV=%lld HS=%lld",
          (long long)args->NH, (long long)args->NKV, (long long)HS);
    op_check_2d("in", in, in.dtype, N, (args->NH + 2 * args->NKV) * HS);
    op_check_2d("out", out, in.dtype, N, in.dim[1]);
    bool qk_norm = !tensor_is_none(args->q_weight);
    CHECK(tensor_is_none(args->k_weight) == !qk_norm, "q_weight and k_weight must both be given or both absent%s", "");
    if (qk_norm) {
        op_check_1d("q_weight", args->q_weight, in.dtype, HS);
        op_check_1d("k_weight", args->k_weight, in.dtype, HS);
        op_check_2d("rstd", rstd, DTYPE_F32, N, args->NH + args->NKV);
    }
    if (args->use_rope) {
        CHECK(HS % 2 == 0, "HS=%lld is odd", (long long)HS);
        int64_t P = args->cos.dim[0];
        op_check_2d("cos", args->cos, DTYPE_F32, P, HS / 2);
        op_check_2d("sin", args->sin, DTYPE_F32, P, HS / 2);
        op_check_1d("positions", positions, DTYPE_I32, N);
    }
}
static inline void op_check_qk_forward(Tensor out, Tensor rstd, Tensor in, Tensor positions, const QkArgs *args) {
    op_check_qk(out, in, rstd, positions, args);
    CHECK(tensor_is_none(args->q_weight) || out.data != in.data,
          "QK-norm cannot work in place: backward reads in%s", "");
}
static inline void op_check_qk_backward(Tensor din, Tensor dq_weight, Tensor dk_weight, Tensor dout, Tensor in,
                                        Tensor rstd, Tensor positions, const QkArgs *args) {
    op_check_qk(din, dout, rstd, positions, args);
    if (tensor_is_none(args->q_weight)) return;
    op_check_2d("in", in, dout.dtype, dout.dim[0], dout.dim[1]);
    op_check_1d("dq_weight", dq_weight, DTYPE_F32, args->HS);
    op_check_1d("dk_weight", dk_weight, DTYPE_F32, args->HS);
}

// ---- elementwise ----
static inline void op_check_activation(Tensor out, Tensor pre, Activation kind) {
    CHECK(kind == ACT_GELU || kind == ACT_RELU2 || activation_is_gated(kind), "kind=%d", (int)kind);
    CHECK(pre.ndim == 2 && out.ndim == 2, "pre has %d dimensions, the activation %d; expected 2", pre.ndim, out.ndim);
    op_check_act("pre", pre);
    op_check_2d("activation", out, pre.dtype, pre.dim[0], activation_is_gated(kind) ? pre.dim[1] / 2 : pre.dim[1]);
    CHECK(!activation_is_gated(kind) || pre.dim[1] % 2 == 0, "width %lld is odd", (long long)pre.dim[1]);
}
static inline void op_check_activation_backward(Tensor dpre, Tensor dout, Tensor pre, Activation kind) {
    op_check_activation(dout, pre, kind);
    op_check_2d("dpre", dpre, pre.dtype, pre.dim[0], pre.dim[1]);
}
static inline void op_check_add(Tensor out, Tensor a, Tensor b) {
    int64_t elems = tensor_elems(out);
    op_check_act("out", out);
    CHECK(a.dtype == out.dtype && b.dtype == out.dtype && tensor_elems(a) == elems && tensor_elems(b) == elems,
          "out %s %lld, a %s %lld, b %s %lld elements: expected the same", dtype_name(out.dtype), (long long)elems,
          dtype_name(a.dtype), (long long)tensor_elems(a), dtype_name(b.dtype), (long long)tensor_elems(b));
}
static inline void op_check_cast(Tensor out, Tensor in) {
    op_check_act("out", out);
    op_check_act("in", in);
    CHECK(tensor_elems(in) == tensor_elems(out), "out %lld, in %lld elements", (long long)tensor_elems(out),
          (long long)tensor_elems(in));
}
static inline void op_check_softcap(Tensor logits, float cap) {
    CHECK(cap > 0, "softcap=%g", (double)cap);
    op_check_act("logits", logits);
}

// ---- loss ----
static inline void op_check_cross_entropy(Tensor nll, Tensor logits, Tensor targets, Tensor weights,
                                          const CrossEntropyArgs *args) {
    CHECK(logits.ndim == 2, "logits: expected 2 dimensions, found %d", logits.ndim);
    op_check_act("logits", logits);
    int64_t N = logits.dim[0], Vp = logits.dim[1];
    CHECK(args->V > 0 && args->V <= Vp && args->softcap >= 0, "V=%lld of %lld, softcap=%g", (long long)args->V,
          (long long)Vp, (double)args->softcap);
    op_check_1d("nll", nll, DTYPE_F32, N);
    op_check_1d("targets", targets, DTYPE_I32, N);
    op_check_1d("weights", weights, DTYPE_F32, N);
    if (args->want_grad) op_check_1d("loss_scale", args->loss_scale, DTYPE_F32, 1);
}

// ---- optimizer ----
static inline void op_check_sum_squares(Tensor out, Tensor x) {
    op_check_1d("out", out, DTYPE_F64, 1);
    CHECK(x.dtype == DTYPE_F32, "x: expected fp32, found %s", dtype_name(x.dtype));
}
static inline void op_check_grad_clip(const GradStats *stats, Tensor sums, Tensor loss_sums) {
    CHECK(stats != NULL, "stats is NULL%s", "");
    op_check_1d("sums", sums, DTYPE_F64, sums.dim[0]);
    if (!tensor_is_none(loss_sums)) op_check_1d("loss_sums", loss_sums, DTYPE_F64, loss_sums.dim[0]);
}
static inline void op_check_hash_sum(const uint64_t *out, Tensor x, int64_t first_elem) {
    CHECK(out != NULL && ((uintptr_t)out & 7) == 0 && first_elem >= 0, "out=%p first_elem=%lld", (const void *)out,
          (long long)first_elem);
    op_check_act("x", x);
}

static inline void op_check_attention(Tensor qkv, const AttentionArgs *args) {
    CHECK(args->B >= 0 && args->T >= 0 && args->HS > 0 && args->NKV > 0 && args->NH > 0 && args->NH % args->NKV == 0,
          "B=%lld T=%lld NH=%lld NKV=%lld HS=%lld", (long long)args->B, (long long)args->T, (long long)args->NH,
          (long long)args->NKV, (long long)args->HS);
    // Kernels use 32-bit positions, and a tile may extend past the last one.
    CHECK(args->window >= 0 && args->T < INT32_MAX / 2 && args->scale > 0, "window=%lld T=%lld scale=%g",
          (long long)args->window, (long long)args->T, (double)args->scale);
    op_check_act("qkv", qkv);
    op_check_2d("qkv", qkv, qkv.dtype, args->B * args->T, (args->NH + 2 * args->NKV) * args->HS);
    if (!tensor_is_none(args->doc)) op_check_2d("doc", args->doc, DTYPE_I32, args->B, args->T);
    if (!tensor_is_none(args->prefix)) op_check_2d("prefix", args->prefix, DTYPE_U8, args->B, args->T);
}
static inline void op_check_lse(Tensor lse, const AttentionArgs *args) {
    CHECK(lse.ndim == 3 && lse.dtype == DTYPE_F32 && lse.dim[0] == args->B && lse.dim[1] == args->NH &&
              lse.dim[2] == args->T,
          "lse: ndim=%d dtype=%s (%lld,%lld,%lld)", lse.ndim, dtype_name(lse.dtype), (long long)lse.dim[0],
          (long long)lse.dim[1], (long long)lse.dim[2]);
}

static inline void op_check_attention_forward(Tensor out, Tensor lse, Tensor qkv, const AttentionArgs *args) {
    op_check_attention(qkv, args);
    op_check_2d("out", out, qkv.dtype, args->B * args->T, args->NH * args->HS);
    op_check_lse(lse, args);
}
static inline void op_check_attention_backward(Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                                               const AttentionArgs *args) {
    op_check_attention_forward(out, lse, qkv, args);
    op_check_2d("dqkv", dqkv, qkv.dtype, args->B * args->T, qkv.dim[1]);
    op_check_2d("dout", dout, qkv.dtype, args->B * args->T, args->NH * args->HS);
}
static inline void op_check_attention_decode(Tensor out, Tensor k_cache, Tensor v_cache, Tensor qkv, int64_t start,
                                             const AttentionArgs *args) {
    op_check_attention(qkv, args);
    CHECK(args->B == 1 && tensor_is_none(args->doc) && tensor_is_none(args->prefix),
          "B=%lld: decoding takes one sequence and a causal mask", (long long)args->B);
    int64_t kv_width = args->NKV * args->HS, keys = start + args->T;
    op_check_2d("out", out, qkv.dtype, args->T, args->NH * args->HS);
    op_check_2d("k_cache", k_cache, qkv.dtype, k_cache.dim[0], kv_width);
    op_check_2d("v_cache", v_cache, qkv.dtype, k_cache.dim[0], kv_width);
    CHECK(start >= 0 && keys <= k_cache.dim[0] && keys < INT32_MAX / 2, "start=%lld n=%lld Tmax=%lld",
          (long long)start, (long long)args->T, (long long)k_cache.dim[0]);
}

#endif
