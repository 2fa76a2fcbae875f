// test_tree_sum.c: the tree, written out for small numbers of terms, and its three forms against each other.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "dev/cases/values.h"
#include "llmc/base/tree_sum.h"

#define MOST 300

// Values whose sum depends on the order.
static double value(int i) { return rng_normal(7, RNG_STREAM_TEST, (uint64_t)i) * (i % 5 == 0 ? 1e9 : 1); }

static void test_by_hand(void **state) {
    (void)state;
    double x[7];
    for (int i = 0; i < 7; ++i) x[i] = value(i);
    const double expected[8] = {0,
                                x[0],
                                x[0] + x[1],
                                (x[0] + x[1]) + x[2],
                                (x[0] + x[1]) + (x[2] + x[3]),
                                ((x[0] + x[1]) + (x[2] + x[3])) + x[4],
                                ((x[0] + x[1]) + (x[2] + x[3])) + (x[4] + x[5]),
                                ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + x[6])};
    for (int count = 0; count <= 7; ++count) assert_true(tree_sum_f64(x, count) == expected[count]);
}

static double by_splits(const double *x, int64_t count) {
    if (count == 1) return x[0];
    int64_t left = tree_split(count);
    return by_splits(x, left) + by_splits(x + left, count - left);
}
static double by_strides(const double *x, int count) {
    double sum[MOST];
    memcpy(sum, x, (size_t)count * sizeof *x);
    for (int stride = 1; stride < count; stride *= 2)
        for (int i = 0; i + stride < count; i += 2 * stride) sum[i] += sum[i + stride];
    return sum[0];
}

static void test_forms(void **state) {
    (void)state;
    double x[MOST];
    float narrow[MOST];
    int serial_differs = 0;
    for (int i = 0; i < MOST; ++i) x[i] = value(i);
    for (int i = 0; i < MOST; ++i) narrow[i] = (float)x[i];
    for (int count = 1; count <= MOST; ++count) {
        double sum = tree_sum_f64(x, count), serial = 0, split = by_splits(x, count), strides = by_strides(x, count);
        assert_memory_equal(&sum, &split, sizeof sum);
        assert_memory_equal(&sum, &strides, sizeof sum);
        for (int i = 0; i < count; ++i) serial += x[i];
        serial_differs += serial != sum;
        float half[MOST];
        memcpy(half, narrow, sizeof half);
        for (int stride = 1; stride < count; stride *= 2)
            for (int i = 0; i + stride < count; i += 2 * stride) half[i] += half[i + stride];
        float sum_f32 = tree_sum_f32(narrow, count);
        assert_memory_equal(&sum_f32, &half[0], sizeof sum_f32);
    }
    assert_true(serial_differs > MOST / 2);  // otherwise the test could not distinguish orders
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_by_hand), cmocka_unit_test(test_forms)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
