// test_ops_loss.c: cross-entropy against double precision; its gradient against finite differences of that.
#include "tests/support/op_test.h"

#include <math.h>
#include <stdio.h>

typedef struct {
    int64_t N, V, Vp;
    double *logits;
    const double *targets, *weights;
    double softcap, loss_scale;
    double *nll;
} LossRef;

static double loss_ref(void *user) {
    const LossRef *r = user;
    double loss = 0;
    for (int64_t i = 0; i < r->N; ++i) {
        r->nll[i] = 0;
        if (r->weights[i] == 0) continue;
        double sum = 0, at_target = 0, max = -INFINITY;
        for (int64_t v = 0; v < r->V; ++v) max = fmax(max, r->logits[i * r->Vp + v]);
        if (r->softcap > 0) max = r->softcap * tanh(max / r->softcap);
        for (int64_t v = 0; v < r->V; ++v) {
            double x = r->logits[i * r->Vp + v];
            if (r->softcap > 0) x = r->softcap * tanh(x / r->softcap);
            sum += exp(x - max);
            if (v == (int64_t)r->targets[i]) at_target = x;
        }
        r->nll[i] = log(sum) + max - at_target;
        loss += r->loss_scale * r->weights[i] * r->nll[i];
    }
    return loss;
}

// The gradient of loss_ref; nll is that of loss_ref too.
static void loss_ref_grad(LossRef *r, double *grad) {
    loss_ref(r);
    for (int64_t i = 0; i < r->N; ++i) {
        int64_t target = (int64_t)r->targets[i];
        if (r->weights[i] == 0) continue;
        double scale = r->loss_scale * r->weights[i], cap = r->softcap, *logits = r->logits + i * r->Vp;
        double at_target = cap > 0 ? cap * tanh(logits[target] / cap) : logits[target];
        for (int64_t v = 0; v < r->V; ++v) {
            double slope = cap > 0 ? 1 - pow(tanh(logits[v] / cap), 2) : 1;
            double x = cap > 0 ? cap * tanh(logits[v] / cap) : logits[v];
            // log softmax = x - at_target - nll
            grad[i * r->Vp + v] = scale * slope * (exp(x - at_target - r->nll[i]) - (v == target ? 1 : 0));
        }
    }
}

typedef struct {
    Tensor nll, logits, targets, weights;
    double *logits_before;
    CrossEntropyArgs args;
    LossRef ref;
} LossCase;

static void run_loss(OpTest *t, void *user) {
    const LossCase *l = user;
    op_test_upload(t, l->logits, l->logits_before);
    t->be->cross_entropy(t->be, l->nll, l->logits, l->targets, l->weights, l->args);
}

// Every third row has weight 0 and an impossible target; the padding columns hold NaN.
static LossCase loss_case(OpTest *t, int64_t N, int64_t V, int64_t Vp, float softcap, DType dtype) {
    LossCase l = {.args = {.V = V, .softcap = softcap, .want_grad = true}};
    const double loss_scale = 0.375;  // exact in fp32
    l.args.loss_scale = op_test_from(t, DTYPE_F32, OP_TEST_DIMS(1), &loss_scale);
    l.nll = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(N));
    l.logits = op_test_random(t, dtype, OP_TEST_DIMS(N, Vp), 4.0);
    l.targets = op_test_integers(t, OP_TEST_DIMS(N), V);
    l.weights = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(N), 1.0);
    double *targets = op_test_host(t, l.targets), *weights = op_test_host(t, l.weights);
    l.logits_before = op_test_host(t, l.logits);
    for (int64_t i = 0; i < N; ++i) {
        for (int64_t v = V; v < Vp; ++v) l.logits_before[i * Vp + v] = NAN;
        if (i % 3 != 1) continue;
        weights[i] = 0;
        targets[i] = i % 2 == 0 ? -1 : 1 << 30;
    }
    op_test_upload(t, l.targets, targets);
    op_test_upload(t, l.weights, weights);
    double *logits = op_test_doubles(t, N * Vp);
    for (int64_t i = 0; i < N * Vp; ++i) logits[i] = l.logits_before[i];
    l.ref = (LossRef){N, V, Vp, logits, targets, weights, (double)softcap, loss_scale, op_test_doubles(t, N)};
    return l;
}

static void check_loss(OpTest *t, int64_t N, int64_t V, int64_t Vp, float softcap, DType dtype) {
    LossCase l = loss_case(t, N, V, Vp, softcap, dtype);
    double *grad = op_test_doubles(t, N * Vp);
    op_test_numeric_gradient(grad, l.ref.logits, N * Vp, 1e-5, loss_ref, &l.ref);
    loss_ref(&l.ref);
    run_loss(t, &l);
    op_test_close(t, l.nll, l.ref.nll, 2e-6, "nll %lldx%lld softcap %g", (long long)N, (long long)V, (double)softcap);
    op_test_close(t, l.logits, grad, op_test_tolerance(dtype), "dlogits %lldx%lld softcap %g", (long long)N,
                  (long long)V, (double)softcap);
    l.args.want_grad = false;
    op_test_poison(t, l.nll);
    run_loss(t, &l);
    op_test_close(t, l.nll, l.ref.nll, 2e-6, "nll without gradient %lldx%lld", (long long)N, (long long)V);
}
static void test_cross_entropy(OpTest *t) {
    const int64_t SHAPES[][3] = {{1, 1, 1}, {1, 5, 8}, {4, 16, 16}, {7, 33, 40}, {3, 100, 128}, {0, 9, 9}};
    for (size_t s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; ++s)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype)
            for (int capped = 0; capped < 2; ++capped)
                check_loss(t, SHAPES[s][0], SHAPES[s][1], SHAPES[s][2], capped ? 5.0f : 0.0f, dtype);
}
// Vocabularies of real models, larger than what a GPU's block keeps of a row in both dtypes, and in bf16 between one
// and two blocks a multiprocessor.
static void check_wide(OpTest *t, int64_t V, int64_t Vp, float softcap, DType dtype) {
    LossCase l = loss_case(t, 2, V, Vp, softcap, dtype);
    double *grad = op_test_doubles(t, 2 * Vp);
    loss_ref_grad(&l.ref, grad);
    run_loss(t, &l);
    op_test_close(t, l.nll, l.ref.nll, 2e-6, "nll of %lld logits", (long long)V);
    op_test_close(t, l.logits, grad, op_test_tolerance(dtype), "dlogits of %lld", (long long)V);
}
static void test_cross_entropy_wide(OpTest *t) {
    check_wide(t, 50257, 50304, 0.0f, DTYPE_BF16);
    check_wide(t, 65001, 65024, 0.0f, DTYPE_F32);
    check_wide(t, 128256, 128256, 15.0f, DTYPE_BF16);
    check_wide(t, 65536, 65537, 0.0f, DTYPE_BF16);  // no whole packs
}
static void test_cross_entropy_reference(OpTest *t) {
    for (int capped = 0; capped < 2; ++capped) {
        LossCase l = loss_case(t, 7, 33, 40, capped ? 5.0f : 0.0f, DTYPE_F32);
        double *grad = op_test_doubles(t, 280), *expected = op_test_doubles(t, 280);
        op_test_numeric_gradient(expected, l.ref.logits, 280, 1e-5, loss_ref, &l.ref);
        loss_ref_grad(&l.ref, grad);
        double error = op_test_error(grad, expected, 280);
        if (!(error <= 1e-8)) fail_msg("the reference's gradient: relative error %.3g", error);
    }
}
// Logits whose exponentials overflow, a confident row, and a vocabulary that spans several blocks.
static void test_cross_entropy_large(OpTest *t) {
    LossCase l = loss_case(t, 3, 5003, 5056, 0.0f, DTYPE_F32);
    for (int64_t i = 0; i < 3 * 5056; ++i) l.logits_before[i] = 300 * l.logits_before[i] - 200;
    l.logits_before[2 * 5056 + (int64_t)l.ref.targets[2]] = 5000;
    op_test_upload(t, l.logits, l.logits_before);
    double *rounded = op_test_host(t, l.logits);
    for (int64_t i = 0; i < 3 * 5056; ++i) l.ref.logits[i] = l.logits_before[i] = rounded[i];
    loss_ref(&l.ref);
    run_loss(t, &l);
    op_test_close(t, l.nll, l.ref.nll, 2e-6, "nll of large logits");
    const double *grad = op_test_host(t, l.logits);
    double sum = 0, largest = 0;
    for (int64_t v = 0; v < 5056; ++v) {
        sum += grad[v];
        largest = fmax(largest, fabs(grad[v]));
    }
    assert_true(fabs(sum) <= 1e-5 * largest);  // softmax minus one-hot sums to zero
    for (int64_t v = 0; v < 5056; ++v) assert_true(fabs(grad[2 * 5056 + v]) < 1e-6);
}
// A NaN or infinite logit reaches the loss, from any lane and from the tail, and only in its own row.
static void test_cross_entropy_nan(OpTest *t) {
    const double bad[2] = {NAN, INFINITY};
    for (int64_t at = 0; at < 37; at += 6)
        for (int kind = 0; kind < 2; ++kind) {
            LossCase l = loss_case(t, 3, 37, 37, 0.0f, DTYPE_F32);
            l.logits_before[at] = bad[kind];
            run_loss(t, &l);
            const double *nll = op_test_host(t, l.nll);
            assert_true(!isfinite(nll[0]) && nll[1] == 0 && isfinite(nll[2]));
        }
}
// The exponential at this level, element by element: with logits (0, x) and scale 1 the second gradient is
// e^x / (1 + e^x), down to where results are denormal (spacing 2^-149).
static void test_cross_entropy_tail(OpTest *t) {
    const int64_t N = 10501;
    double *logits = op_test_doubles(t, 2 * N), *ones = op_test_doubles(t, N);
    for (int64_t i = 0; i < N; ++i) {
        logits[2 * i + 1] = (double)(float)(-0.01 * (double)i);
        ones[i] = 1;
    }
    Tensor nll = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(N));
    Tensor device = op_test_from(t, DTYPE_F32, OP_TEST_DIMS(N, 2), logits);
    Tensor targets = op_test_from(t, DTYPE_I32, OP_TEST_DIMS(N), op_test_doubles(t, N));
    Tensor weights = op_test_from(t, DTYPE_F32, OP_TEST_DIMS(N), ones);
    CrossEntropyArgs args = {.V = 2, .want_grad = true};
    args.loss_scale = op_test_from(t, DTYPE_F32, OP_TEST_DIMS(1), (double[]){1});
    t->be->cross_entropy(t->be, nll, device, targets, weights, args);
    const double *grad = op_test_host(t, device);
    for (int64_t i = 0; i < N; ++i) {
        double expected = 1 / (1 + exp(-logits[2 * i + 1])), error = fabs(grad[2 * i + 1] - expected);
        if (!(error <= fmax(4e-7 * expected, 0x1p-149)))
            fail_msg("softmax of (0, %g) is off by %g of %g", logits[2 * i + 1], error, expected);
    }
}
// A row that counts must have a target inside the vocabulary, padding columns excluded: the CPU stops, a device makes
// the row's loss and gradient NaN, and only that row's.
static void test_cross_entropy_bad_target(OpTest *t) {
    const double bad[3] = {-1, 33, 1 << 30};
    for (int i = 0; i < 3; ++i) {
        LossCase l = loss_case(t, 3, 33, 40, 0.0f, DTYPE_F32);
        const double targets[3] = {bad[i], 0, 5};
        op_test_upload(t, l.targets, targets);
        char message[64];
        snprintf(message, sizeof message, "targets[0]=%d, expected 0 to 32", (int)bad[i]);
        if (op_test_on_cpu()) {
            op_test_aborts(t, run_loss, &l, message);
            continue;
        }
        run_loss(t, &l);
        const double *nll = op_test_host(t, l.nll), *grad = op_test_host(t, l.logits);
        assert_true(isnan(nll[0]) && nll[1] == 0 && isfinite(nll[2]));
        for (int v = 0; v < 33; ++v) assert_true(isnan(grad[v]) && grad[40 + v] == 0 && isfinite(grad[80 + v]));
    }
}
static void test_cross_entropy_threads(OpTest *t) {
    LossCase l = loss_case(t, 29, 1003, 1024, 0.0f, DTYPE_F32);
    op_test_thread_invariant(t, run_loss, &l, (Tensor[]){l.nll, l.logits}, 2, "cross_entropy");
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_cross_entropy),
                                OP_TEST_CASE(test_cross_entropy_reference),
                                OP_TEST_CASE(test_cross_entropy_wide),
                                OP_TEST_CASE(test_cross_entropy_large),
                                OP_TEST_CASE(test_cross_entropy_nan),
                                OP_TEST_CASE(test_cross_entropy_tail),
                                OP_TEST_CASE(test_cross_entropy_bad_target),
                                OP_TEST_CASE(test_cross_entropy_threads)};
    return op_test_main(CASES, sizeof CASES / sizeof CASES[0]);
}
