// test_ops_norm.c: LayerNorm and RMSNorm; with a residual: one rounding, in place, and the gradient.
#include "tests/support/case_test.h"

static void random_norm(OpTest *t, Tensor *x, Tensor *weight, Tensor *rstd, DType dtype, int64_t N, int64_t C) {
    *x = op_test_random(t, dtype, OP_TEST_DIMS(N, C), 1.5);
    *weight = op_test_random(t, dtype, OP_TEST_DIMS(C), 1.0);
    *rstd = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(N));
}
// The residual may be out. In bf16 nearly every element is the fp32 sum rounded once: if the normalized row were
// rounded before, a quarter of them would not be.
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
    Tensor dx, dweight, dbias, dout, out, x, weight, bias, mean, rstd;
    NormArgs args;
} Norm;
static void run_forward(OpTest *t, void *user) {
    Norm *n = user;
    t->be->norm_forward(t->be, n->out, n->mean, n->rstd, n->x, n->weight, n->bias, n->args);
}
static void run_backward(OpTest *t, void *user) {
    Norm *n = user;
    t->be->norm_backward(t->be, n->dx, n->dweight, n->dbias, n->dout, n->x, n->weight, n->mean, n->rstd, false, false,
                         n->args);
}
// dx in a tensor of its own; dout is unchanged, as the residual's gradient.
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

// loss = sum of dout * out for out = residual + norm(x), with element i of `operand` (x or the residual) at value.
static double loss_at(OpTest *t, Norm *n, Tensor operand, double *values, int64_t i, double value) {
    double kept = values[i], sum = 0;
    values[i] = value;
    op_test_upload(t, operand, values);
    run_forward(t, n);
    values[i] = kept;
    const double *out = op_test_host(t, n->out), *dout = op_test_host(t, n->dout);
    for (int64_t k = 0; k < tensor_elems(n->out); ++k) sum += dout[k] * out[k];
    return sum;
}
// d loss / d operand by central differences of fourth order; at h = 1/16 their error in fp32 is 5e-6.
static double *loss_gradient(OpTest *t, Norm *n, Tensor operand) {
    const double h = 0.0625;
    double *values = op_test_host(t, operand), *gradient = op_test_doubles(t, tensor_elems(operand));
    for (int64_t i = 0; i < tensor_elems(operand); ++i) {
        double v = values[i], at[4];
        for (int k = 0; k < 4; ++k) at[k] = loss_at(t, n, operand, values, i, v + h * (k < 2 ? k - 2 : k - 1));
        gradient[i] = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h);
    }
    op_test_upload(t, operand, values);
    return gradient;
}
// The gradient through out = residual + norm(x): d residual = dout, and dx = norm_backward without accumulation.
static void test_norm_residual_gradient(OpTest *t) {
    enum { N = 2, C = 12 };
    for (int kind = 0; kind < 2; ++kind) {
        Norm n = {.args = {.kind = kind == 0 ? NORM_LAYER : NORM_RMS, .eps = 1e-5f}};
        random_norm(t, &n.x, &n.weight, &n.rstd, DTYPE_F32, N, C);
        n.dweight = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(C));
        if (kind == 0) {
            n.mean = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(N));
            n.bias = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(C), 1.0);
            n.dbias = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(C));
        }
        n.out = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(N, C));
        n.dx = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(N, C));
        n.dout = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(N, C), 1.0);
        n.args.residual = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(N, C), 1.0);
        const double *dx = loss_gradient(t, &n, n.x), *dresidual = loss_gradient(t, &n, n.args.residual);
        run_forward(t, &n);
        run_backward(t, &n);
        op_test_close(t, n.dx, dx, 5e-5, "dx by differences, kind %d", kind);
        op_test_close(t, n.dout, dresidual, 1e-6, "d residual by differences, kind %d", kind);
    }
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_norm_residual), OP_TEST_CASE(test_norm_residual_backward),
                                OP_TEST_CASE(test_norm_residual_gradient)};
    return case_test_main(&OPS_NORM, CASES, sizeof CASES / sizeof CASES[0]);
}
