// op_check.h: the shape checks that every backend's operations begin with. A wrong call is a programmer's mistake and
// stops with both shapes.
#ifndef LLMC_OP_CHECK_H
#define LLMC_OP_CHECK_H

#include "llmc/backend.h"

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

// Of one two-dimensional product; returns its K. M and N are out's.
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
    CHECK(args->act != ACT_SWIGLU && args->act_grad != ACT_SWIGLU, "matmul: a gated activation is not elementwise%s",
          "");
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

// Matrices that Muon takes together, and the tensors they belong to.
static inline void op_check_muon(const char *name, Tensor x, const OptimTensor *tensors, int64_t count) {
    op_check_act(name, x);
    CHECK(x.ndim == 3 && x.dim[0] == count, "%s: expected %lld matrices, found %lld of %d dimensions", name,
          (long long)count, (long long)x.dim[0], x.ndim);
    for (int64_t i = 0; i < count; ++i)
        CHECK(tensors[i].elems == x.dim[1] * x.dim[2], "%s: matrix %lld has %lld elements, its tensor %lld", name,
              (long long)i, (long long)(x.dim[1] * x.dim[2]), (long long)tensors[i].elems);
}
// Of every list of tensors to update.
static inline void op_check_optim(const OptimTensor *tensors, int64_t count, int64_t t) {
    CHECK(t >= 1, "t=%lld", (long long)t);
    for (int64_t i = 0; i < count; ++i)
        CHECK((tensors[i].master != NULL || tensors[i].weight != NULL || tensors[i].elems == 0) &&
                  tensors[i].first_elem >= 0,
              "tensor %lld of %lld elements: no values, or first_elem=%lld", (long long)i,
              (long long)tensors[i].elems, (long long)tensors[i].first_elem);
}

#endif
