// test_op_test.c: the shared test helpers can fail: they detect NaN and wrong values.
#include "tests/support/op_test.h"

#include <math.h>

static void test_tensors_start_poisoned(OpTest *t) {
    for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype) {
        const double *host = op_test_host(t, op_test_tensor(t, dtype, 2, (int64_t[]){3, 5}));
        for (int i = 0; i < 15; ++i) assert_true(isnan(host[i]));
    }
}
static void test_nan_never_passes(OpTest *t) {
    (void)t;
    double out[2] = {1, NAN}, ref[2] = {1, 2};
    assert_true(!(op_test_error(out, ref, 2) <= 1e30));
    assert_true(!(op_test_error(ref, out, 2) <= 1e30));
    assert_true(op_test_error(ref, ref, 2) == 0);
    out[1] = 2.2;
    assert_true(fabs(op_test_error(out, ref, 2) - 0.2 / sqrt(5)) < 1e-12);
}
static void test_values_survive_the_device(OpTest *t) {
    double values[3] = {1.5, -2, 1.00390625};  // the last lies between two bf16 numbers and rounds to even: 1
    const double *exact = op_test_host(t, op_test_from(t, DTYPE_F32, 1, (int64_t[]){3}, values));
    const double *rounded = op_test_host(t, op_test_from(t, DTYPE_BF16, 1, (int64_t[]){3}, values));
    for (int i = 0; i < 3; ++i) assert_true(exact[i] == values[i]);
    assert_true(rounded[0] == 1.5 && rounded[1] == -2 && rounded[2] == 1);
}
static void run_check(OpTest *t, void *user) {
    (void)t;
    const int *value = user;
    CHECK(*value == 3, "value=%d", *value);
}
static void test_aborts(OpTest *t) {
    int value = 4;
    op_test_aborts(t, run_check, &value, "value=4");
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_tensors_start_poisoned), OP_TEST_CASE(test_nan_never_passes),
                                OP_TEST_CASE(test_values_survive_the_device), OP_TEST_CASE(test_aborts)};
    return op_test_main(CASES, sizeof CASES / sizeof CASES[0]);
}
