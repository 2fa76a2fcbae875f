// test_ops_pointwise.c: activations, add, cast and soft-cap; at large and special values, and element by element.
#include <math.h>

#include "tests/support/case_test.h"

// For large inputs activations are 0 or the identity, and NaN is propagated: it must reach the loss and skip the
// update.
static void test_activation_extremes(OpTest *t) {
    const double values[6] = {-1e4, -30, 0, 30, 1e4, NAN};
    for (Activation kind = ACT_GELU; kind <= ACT_RELU2; ++kind) {
        Tensor pre = op_test_from(t, DTYPE_F32, OP_TEST_DIMS(1, 6), values);
        Tensor dout = op_test_from(t, DTYPE_F32, OP_TEST_DIMS(1, 6), (double[]){1, 1, 1, 1, 1, 1});
        Tensor out = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(1, 6));
        t->be->activation_forward(t->be, out, pre, kind);
        const double *y = op_test_host(t, out);
        double power = kind == ACT_GELU ? 1 : 2;
        assert_true(y[0] == 0 && fabs(y[1]) < 1e-30 && y[2] == 0 && isnan(y[5]));
        assert_true(fabs(y[3] / pow(30, power) - 1) < 1e-6 && fabs(y[4] / pow(1e4, power) - 1) < 1e-6);
        t->be->activation_backward(t->be, out, dout, pre, kind);
        const double *d = op_test_host(t, out);
        assert_true(d[0] == 0 && fabs(d[1]) < 1e-30 && isnan(d[5]));
        assert_true(fabs(d[4] / (kind == ACT_GELU ? 1 : 2e4) - 1) < 1e-6);
    }
    Tensor pre = op_test_from(t, DTYPE_F32, OP_TEST_DIMS(3, 2), (double[]){-1e4, 2, 1e4, 2, NAN, 2});
    Tensor out = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(3, 1));
    t->be->activation_forward(t->be, out, pre, ACT_SWIGLU);
    const double *y = op_test_host(t, out);
    assert_true(y[0] == 0 && y[1] == 2e4 && isnan(y[2]));
}
// Views that are not aligned to 16 bytes: one operand at a time.
static void test_add_views(OpTest *t) {
    for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype)
        case_test_views(t, "add", "residual", dtype, 0, OP_TEST_DIMS(1, 64));
}
static void test_cast_special_values(OpTest *t) {
    // Ties to even in both directions, the largest finite number (rounds to infinity), signed zero, NaN.
    const double values[7] = {1.00390625, 1.01171875, 3.4028234663852886e38, -0.0, INFINITY, -INFINITY, NAN};
    Tensor wide = op_test_from(t, DTYPE_F32, OP_TEST_DIMS(7), values);
    Tensor narrow = op_test_tensor(t, DTYPE_BF16, OP_TEST_DIMS(7));
    t->be->cast(t->be, narrow, wide);
    const double *out = op_test_host(t, narrow);
    assert_true(out[0] == 1 && out[1] == 1.015625 && out[2] == INFINITY && out[3] == 0 && signbit(out[3]));
    assert_true(out[4] == INFINITY && out[5] == -INFINITY && isnan(out[6]));
}

// Element by element, for this level's vector functions: with cap 1 the soft-cap is tanh itself; silu(x) is x e^x for
// large negative x. Bounds as in simd.h, twice that for the two roundings around the exponential.
static double worst_relative(const double *out, const double *ref, int64_t elems) {
    double worst = 0;
    for (int64_t i = 0; i < elems; ++i) {
        double error = ref[i] == 0 ? fabs(out[i]) : fabs(out[i] / ref[i] - 1);
        if (!(error <= worst)) worst = error;  // a NaN stays
    }
    return worst;
}
static void test_vector_functions(OpTest *t) {
    const int64_t N = 20001;
    double *x = op_test_doubles(t, 2 * N), *tanh_ref = op_test_doubles(t, N), *silu_ref = op_test_doubles(t, N);
    for (int64_t i = 0; i < N; ++i) {
        x[2 * i] = (double)(float)(-80 + 0.005 * (double)i);
        x[2 * i + 1] = 1;
        tanh_ref[i] = tanh(x[2 * i] / 8);
        silu_ref[i] = x[2 * i] / (1 + exp(-x[2 * i]));
    }
    Tensor gate_up = op_test_from(t, DTYPE_F32, OP_TEST_DIMS(N, 2), x);
    Tensor silu = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(N, 1));
    t->be->activation_forward(t->be, silu, gate_up, ACT_SWIGLU);
    double worst = worst_relative(op_test_host(t, silu), silu_ref, N);
    if (!(worst <= 4e-7)) fail_msg("relative error of silu: %.3g", worst);
    for (int64_t i = 0; i < N; ++i) x[i] = x[2 * i] / 8;
    Tensor logits = op_test_from(t, DTYPE_F32, OP_TEST_DIMS(N, 1), x);
    t->be->softcap(t->be, logits, 1.0f);
    worst = worst_relative(op_test_host(t, logits), tanh_ref, N);
    if (!(worst <= 4e-7)) fail_msg("relative error of tanh: %.3g", worst);
}

int main(void) {
    const OpTestCase SPECIAL[] = {OP_TEST_CASE(test_activation_extremes), OP_TEST_CASE(test_add_views),
                                  OP_TEST_CASE(test_cast_special_values), OP_TEST_CASE(test_vector_functions)};
    return case_test_main(&OPS_POINTWISE, SPECIAL, sizeof SPECIAL / sizeof SPECIAL[0]);
}
