// test_ops_pointwise.c: activations, add, cast and soft-cap against double precision; derivatives against finite
// differences.
#include "tests/support/op_test.h"

#include <math.h>

// On a GPU the last ones need several blocks, in whole packs of 16 bytes and not.
static const int64_t SHAPES[][2] = {{1, 1}, {3, 7}, {2, 16}, {5, 33}, {0, 4}, {3, 4104}, {17, 301}};
#define SHAPE_COUNT (sizeof SHAPES / sizeof SHAPES[0])

// ---- activations ----
typedef struct {
    Activation kind;
    int64_t N, F;
    double *pre;
    const double *dout;
} ActivationRef;

static double activation_ref(const ActivationRef *r, int64_t row, int64_t f) {
    if (r->kind == ACT_SWIGLU) {
        double gate = r->pre[row * 2 * r->F + f], up = r->pre[row * 2 * r->F + r->F + f];
        return gate / (1 + exp(-gate)) * up;
    }
    double x = r->pre[row * r->F + f];
    if (r->kind == ACT_RELU2) return x > 0 ? x * x : 0;
    return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}
// An element of pre reaches one element of the output: its gradient is a finite difference of that one.
static double activation_grad(const ActivationRef *r, int64_t i) {
    const double h = 1e-5;
    int64_t width = r->kind == ACT_SWIGLU ? 2 * r->F : r->F, row = i / width, f = i % width % r->F;
    double kept = r->pre[i];
    r->pre[i] = kept + h;
    double above = activation_ref(r, row, f);
    r->pre[i] = kept - h;
    double below = activation_ref(r, row, f);
    r->pre[i] = kept;
    return r->dout[row * r->F + f] * (above - below) / (2 * h);
}

static void check_activation(OpTest *t, int64_t N, int64_t F, Activation kind, DType dtype) {
    int64_t width = kind == ACT_SWIGLU ? 2 * F : F;
    Tensor pre = op_test_random(t, dtype, OP_TEST_DIMS(N, width), 2.0);
    Tensor dout = op_test_random(t, dtype, OP_TEST_DIMS(N, F), 1.0);
    Tensor out = op_test_tensor(t, dtype, OP_TEST_DIMS(N, F));
    Tensor dpre = op_test_tensor(t, dtype, OP_TEST_DIMS(N, width));
    ActivationRef ref = {kind, N, F, op_test_host(t, pre), op_test_host(t, dout)};
    double *expected = op_test_doubles(t, N * F), *grad = op_test_doubles(t, N * width);
    for (int64_t i = 0; i < N * F; ++i) expected[i] = activation_ref(&ref, i / F, i % F);
    for (int64_t i = 0; i < N * width; ++i) grad[i] = activation_grad(&ref, i);

    t->be->activation_forward(t->be, out, pre, kind);
    op_test_close(t, out, expected, op_test_tolerance(dtype), "activation %d %lldx%lld", (int)kind, (long long)N,
                  (long long)F);
    t->be->activation_backward(t->be, dpre, dout, pre, kind);
    op_test_close(t, dpre, grad, op_test_tolerance(dtype), "activation %d backward %lldx%lld", (int)kind,
                  (long long)N, (long long)F);
    // In place: over the pre-activation, and over dout where the shapes agree.
    Tensor kept = op_test_from(t, dtype, OP_TEST_DIMS(N, width), ref.pre);
    t->be->activation_backward(t->be, pre, dout, pre, kind);
    op_test_same_bits(t, pre, dpre, "activation_backward in place of pre");
    if (kind == ACT_SWIGLU) return;
    t->be->activation_backward(t->be, dout, dout, kept, kind);
    op_test_same_bits(t, dout, dpre, "activation_backward in place of dout");
}
static void test_activations(OpTest *t) {
    for (size_t s = 0; s < SHAPE_COUNT; ++s)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype)
            for (Activation kind = ACT_GELU; kind <= ACT_SWIGLU; ++kind)
                check_activation(t, SHAPES[s][0], SHAPES[s][1], kind, dtype);
}
// Far out, activations are 0 or the identity, and NaN is passed on: it must reach the loss and stop the update.
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

// ---- add, cast, soft-cap ----
static void test_add(OpTest *t) {
    for (size_t s = 0; s < SHAPE_COUNT; ++s)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype) {
            int64_t N = SHAPES[s][0], C = SHAPES[s][1];
            Tensor a = op_test_random(t, dtype, OP_TEST_DIMS(N, C), 1.0);
            Tensor b = op_test_random(t, dtype, OP_TEST_DIMS(N, C), 1.0);
            Tensor out = op_test_tensor(t, dtype, OP_TEST_DIMS(N, C));
            const double *host_a = op_test_host(t, a), *host_b = op_test_host(t, b);
            double *ref = op_test_doubles(t, N * C);
            for (int64_t i = 0; i < N * C; ++i) ref[i] = host_a[i] + host_b[i];
            t->be->add(t->be, out, a, b);
            op_test_close(t, out, ref, op_test_tolerance(dtype), "add %lldx%lld", (long long)N, (long long)C);
            t->be->add(t->be, a, a, b);
            op_test_same_bits(t, a, out, "add in place");
        }
}
// Views that start in the middle of 16 bytes.
static void test_add_unaligned(OpTest *t) {
    for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype) {
        Tensor whole = op_test_random(t, dtype, OP_TEST_DIMS(65), 1.0),
               out = op_test_tensor(t, dtype, OP_TEST_DIMS(64));
        const double *host = op_test_host(t, whole);
        double *ref = op_test_doubles(t, 64);
        for (int64_t i = 0; i < 64; ++i) ref[i] = host[i] + host[i + 1];
        t->be->add(t->be, out, tensor_rows(whole, 0, 64), tensor_rows(whole, 1, 64));
        op_test_close(t, out, ref, op_test_tolerance(dtype), "add of unaligned views");
    }
}
static void test_cast(OpTest *t) {
    const int64_t SIZES[] = {0, 13, 26, 39, 40, 5000};
    for (size_t i = 0; i < sizeof SIZES / sizeof SIZES[0]; ++i) {
        int64_t N = SIZES[i];
        Tensor wide = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(N), 1.0);
        Tensor back = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(N));
        Tensor narrow = op_test_tensor(t, DTYPE_BF16, OP_TEST_DIMS(N));
        Tensor expected = op_test_from(t, DTYPE_BF16, OP_TEST_DIMS(N), op_test_host(t, wide));
        t->be->cast(t->be, narrow, wide);
        op_test_same_bits(t, narrow, expected, "fp32 to bf16 rounds to nearest even");
        t->be->cast(t->be, back, narrow);
        op_test_close(t, back, op_test_host(t, narrow), 0, "bf16 to fp32 is exact");
        t->be->cast(t->be, back, wide);
        op_test_same_bits(t, back, wide, "cast between equal dtypes copies");
    }
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
static void test_softcap(OpTest *t) {
    for (size_t s = 0; s < SHAPE_COUNT; ++s)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype) {
            int64_t N = SHAPES[s][0], C = SHAPES[s][1];
            Tensor logits = op_test_random(t, dtype, OP_TEST_DIMS(N, C), 20.0);
            double *ref = op_test_host(t, logits);
            for (int64_t i = 0; i < N * C; ++i) ref[i] = 15 * tanh(ref[i] / 15);
            t->be->softcap(t->be, logits, 15.0f);
            op_test_close(t, logits, ref, op_test_tolerance(dtype), "softcap %lldx%lld", (long long)N, (long long)C);
        }
}

// Element by element, at this level's vector functions: with cap 1 the soft-cap is tanh itself; silu(x) is x e^x far
// out. Bounds as in simd.h, twice that for the two roundings around the exponential.
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

// Long enough that threads take part, with a tail.
typedef struct {
    Tensor out, pre;
} Pointwise;
static void run_gelu(OpTest *t, void *user) {
    const Pointwise *p = user;
    t->be->activation_forward(t->be, p->out, p->pre, ACT_GELU);
}
static void test_pointwise_threads(OpTest *t) {
    Pointwise p = {op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(101, 203)),
                   op_test_random(t, DTYPE_F32, OP_TEST_DIMS(101, 203), 1.0)};
    op_test_thread_invariant(t, run_gelu, &p, &p.out, 1, "activation_forward");
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_activations),
                                OP_TEST_CASE(test_activation_extremes),
                                OP_TEST_CASE(test_add),
                                OP_TEST_CASE(test_add_unaligned),
                                OP_TEST_CASE(test_cast),
                                OP_TEST_CASE(test_cast_special_values),
                                OP_TEST_CASE(test_softcap),
                                OP_TEST_CASE(test_vector_functions),
                                OP_TEST_CASE(test_pointwise_threads)};
    return op_test_main(CASES, sizeof CASES / sizeof CASES[0]);
}
