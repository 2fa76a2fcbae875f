// test_ops_norm.c: LayerNorm and RMSNorm; a residual: one rounding, in place, and what its caller's backward needs.
#include "tests/support/case_test.h"

static void random_norm(OpTest *t, Tensor *x, Tensor *weight, Tensor *rstd, DType dtype, int64_t N, int64_t C) {
    *x = op_test_random(t, dtype, OP_TEST_DIMS(N, C), 1.5);
    *weight = op_test_random(t, dtype, OP_TEST_DIMS(C), 1.0);
    *rstd = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(N));
}
// The residual may be out. In bf16 nearly every element is the fp32 sum rounded once: a quarter would not be if the
// normalized row was rounded before.
static void check_residual(OpTest *t, DType dtype, int64_t N, int64_t C) {
    Tensor x, weight, rstd, residual = op_test_random(t, dtype, OP_TEST_DIMS(N, C), 1.0);
    random_norm(t, &x, &weight, &rstd, dtype, N, C);
    Tensor out = op_test_tensor(t, dtype, OP_TEST_DIMS(N, C)), in_place = op_test_tensor(t, dtype, OP_TEST_DIMS(N, C));
    const double *r = op_test_host(t, residual), *w = op_test_host(t, weight), *v = op_test_host(t, x);
    op_test_upload(t, in_place, r);
    NormArgs args = {.kind = NORM_RMS, .eps = 1e-5f, .residual = residual};
    t->be->norm_forward(t->be, out, TENSOR_NONE, rstd, x, weight, TENSOR_NONE, args);
    args.residual = in_place;
    t->be->norm_forward(t->be, in_place, TENSOR_NONE, rstd, x, weight, TENSOR_NONE, args);
    op_test_same_bits(t, out, in_place, "the residual in place");
    op_test_close(t, residual, r, 0, "residual after norm_forward");
    if (dtype != DTYPE_BF16) return;
    const double *got = op_test_host(t, out), *scale = op_test_host(t, rstd);
    int64_t off = 0;
    for (int64_t i = 0; i < N * C; ++i) {
        double sum = v[i] * scale[i / C] * w[i % C] + r[i];
        off += got[i] != (double)bf16_to_f32(bf16_from_f32((float)sum));
    }
    if (off > 2 + N * C / 100) fail_msg("%lld of %lld elements are not rounded once", (long long)off, (long long)(N * C));
}
static void test_norm_residual(OpTest *t) {
    static const int64_t SHAPES[][2] = {{37, 20}, {13, 264}, {3, 1032}, {3, 700}, {1, 16392}};
    for (size_t s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; ++s)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype)
            check_residual(t, dtype, SHAPES[s][0], SHAPES[s][1]);
}

typedef struct {
    Tensor dx, dweight, dout, out, x, weight, rstd;
    NormArgs args;
} Norm;
static void run_forward(OpTest *t, void *user) {
    Norm *n = user;
    t->be->norm_forward(t->be, n->out, TENSOR_NONE, n->rstd, n->x, n->weight, TENSOR_NONE, n->args);
}
static void run_backward(OpTest *t, void *user) {
    Norm *n = user;
    t->be->norm_backward(t->be, n->dx, n->dweight, TENSOR_NONE, n->dout, n->x, n->weight, TENSOR_NONE, n->rstd, false,
                         false, n->args);
}
// dx apart, and dout goes on as the residual's gradient.
static void test_norm_residual_backward(OpTest *t) {
    Norm n = {.args = {.kind = NORM_RMS, .eps = 1e-5f}};
    random_norm(t, &n.x, &n.weight, &n.rstd, DTYPE_F32, 13, 264);
    n.dout = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(13, 264), 1.0);
    n.out = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(13, 264));
    n.dx = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(13, 264));
    n.dweight = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(264));
    const double *dout = op_test_host(t, n.dout);
    run_forward(t, &n);
    run_backward(t, &n);
    const double *dx = op_test_host(t, n.dx);
    n.args.residual = n.out;
    op_test_poison(t, n.dx);
    run_backward(t, &n);
    op_test_close(t, n.dx, dx, 0, "dx with a residual");
    op_test_close(t, n.dout, dout, 0, "dout after norm_backward");
    if (!op_test_on_cpu()) return;
    n.args.residual = n.x;
    n.args.residual.dim[1] = 263;
    op_test_aborts(t, run_forward, &n, "residual");
    n.dx = n.dout;
    op_test_aborts(t, run_backward, &n, "dx is dout");
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_norm_residual), OP_TEST_CASE(test_norm_residual_backward)};
    return case_test_main(&OPS_NORM, CASES, sizeof CASES / sizeof CASES[0]);
}
