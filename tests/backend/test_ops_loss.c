// test_ops_loss.c: cross-entropy; large, non-finite and extreme logits, and invalid targets.
#include <math.h>
#include <stdio.h>

#include "tests/support/case_test.h"

enum { NLL, LOGITS, TARGETS, WEIGHTS };
#define MASKED 2u  // row 1 has weight 0

// Logits whose exponentials overflow, a confident row, and a vocabulary that spans several blocks.
static void test_large(OpTest *t) {
    const int64_t V = 5003, Vp = 5056;
    OpCall *call = case_test_open(t, "cross-entropy", "plain", DTYPE_F32, MASKED, OP_TEST_DIMS(3, Vp, V));
    double *logits = call->operand[LOGITS].pattern;
    for (int64_t i = 0; i < 3 * Vp; ++i) logits[i] = (double)(float)(300 * logits[i] - 200);
    logits[2 * Vp + (int64_t)op_value(call, TARGETS, 2)] = 5000;
    op_call_reset(call);
    case_test_run(t, call);
    const double *grad = op_test_host(t, call->t[0][LOGITS]);
    double sum = 0, largest = 0, *ref = op_test_doubles(t, 3);
    call->c->kind->outputs[0].reference(call, 0, 3, ref);
    op_test_close(t, call->t[0][NLL], ref, 2e-6, "nll of large logits");
    for (int64_t v = 0; v < Vp; ++v) {
        sum += grad[v];
        largest = fmax(largest, fabs(grad[v]));
    }
    assert_true(fabs(sum) <= 1e-5 * largest);  // softmax minus one-hot sums to zero
    for (int64_t v = 0; v < Vp; ++v) assert_true(fabs(grad[2 * Vp + v]) < 1e-6);
}
// A NaN or infinite logit in any lane or in the tail reaches the loss of its own row and no other.
static void test_not_finite(OpTest *t) {
    const double bad[2] = {NAN, INFINITY};
    for (int64_t at = 0; at < 37; at += 6)
        for (int kind = 0; kind < 2; ++kind) {
            OpCall *call = case_test_open(t, "cross-entropy", "plain", DTYPE_F32, MASKED, OP_TEST_DIMS(3, 37, 37));
            call->operand[LOGITS].pattern[at] = bad[kind];
            op_call_reset(call);
            case_test_run(t, call);
            const double *nll = op_test_host(t, call->t[0][NLL]);
            assert_true(!isfinite(nll[0]) && nll[1] == 0 && isfinite(nll[2]));
        }
}
// The exponential at this level, element by element: with logits (0, x) and scale 1 the second gradient is
// e^x / (1 + e^x), down to where results are denormal (spacing 2^-149).
static void test_tail(OpTest *t) {
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
// A row with a weight must have a target inside the vocabulary, padding columns excluded: the CPU aborts, a device
// makes the loss and gradient of that row alone NaN.
static void test_bad_target(OpTest *t) {
    const double bad[3] = {-1, 33, 1 << 30};
    for (int i = 0; i < 3; ++i) {
        OpCall *call = case_test_open(t, "cross-entropy", "plain", DTYPE_F32, MASKED, OP_TEST_DIMS(3, 40, 33));
        op_test_upload(t, call->t[0][TARGETS], (double[]){bad[i], 0, 5});
        char message[64];
        snprintf(message, sizeof message, "targets[0]=%d, expected 0 to 32", (int)bad[i]);
        if (op_test_on_cpu()) {
            op_test_aborts(t, case_test_run_user, call, message);
            continue;
        }
        case_test_run(t, call);
        const double *nll = op_test_host(t, call->t[0][NLL]), *grad = op_test_host(t, call->t[0][LOGITS]);
        assert_true(isnan(nll[0]) && nll[1] == 0 && isfinite(nll[2]));
        for (int v = 0; v < 33; ++v) assert_true(isnan(grad[v]) && grad[40 + v] == 0 && isfinite(grad[80 + v]));
    }
}

int main(void) {
    const OpTestCase SPECIAL[] = {OP_TEST_CASE(test_large), OP_TEST_CASE(test_not_finite), OP_TEST_CASE(test_tail),
                                  OP_TEST_CASE(test_bad_target)};
    return case_test_main(&OPS_LOSS, SPECIAL, sizeof SPECIAL / sizeof SPECIAL[0]);
}
