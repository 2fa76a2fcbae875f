// test_mixture.c: samples are assigned exactly by weight, ordinals have no gaps, each epoch uses each row once.
#include "llmc/loader/mixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// Checks the picks and counts of all samples against plain counting.
static void check_counting(int source_count, const double *weights, const int64_t *first_ordinal, int64_t samples) {
    Mixture mixture;
    mixture_init(&mixture, source_count, weights, first_ordinal);
    double total = 0;
    for (int s = 0; s < source_count; ++s) total += weights[s];
    int64_t seen[MIXTURE_MAX_SOURCES] = {0};
    for (int64_t n = 0; n < samples; ++n) {
        for (int s = 0; s < source_count; ++s) {
            assert_int_equal(mixture_count(&mixture, s, n), seen[s]);
            double expected = (double)n * weights[s] / total;
            // The bound of mixture.h; weights rounded to 2^-32 do not matter at these counts.
            if (!(fabs((double)seen[s] - expected) <= 1 + s / 2.0))
                fail_msg("source %d after %ld samples: expected %g, found %ld", s, (long)n, expected, (long)seen[s]);
        }
        MixturePick pick = mixture_pick(&mixture, n);
        assert_true(pick.source >= 0 && pick.source < source_count && weights[pick.source] > 0);
        assert_int_equal(pick.ordinal, seen[pick.source] + (first_ordinal != NULL ? first_ordinal[pick.source] : 0));
        ++seen[pick.source];
    }
}

static void test_counts_are_exact(void **state) {
    (void)state;
    check_counting(1, (double[]){3}, NULL, 1000);
    check_counting(2, (double[]){0.5, 0.5}, NULL, 5000);
    check_counting(2, (double[]){1, 0}, NULL, 1000);
    check_counting(2, (double[]){0, 1e-9}, NULL, 1000);
    check_counting(3, (double[]){0.3333, 1e-4, 0.6667}, NULL, 50000);
    check_counting(4, (double[]){34.35, 36.70, 7.17, 21.78}, (int64_t[]){5, 0, 1000000007, 3}, 20000);
    check_counting(5, (double[]){1e-3, 1, 0, 1e-3, 0}, NULL, 20000);
    double equal[32], falling[32], rising[32];
    for (int s = 0; s < 32; ++s) {
        equal[s] = 1;
        falling[s] = pow(0.7, s);
        rising[s] = pow(0.7, 31 - s);
    }
    check_counting(32, equal, NULL, 5000);
    check_counting(32, falling, NULL, 5000);
    check_counting(32, rising, NULL, 5000);
}

// Late in a long run the counts still grow by one: they are not rounded as doubles would be.
static void test_far_samples(void **state) {
    (void)state;
    Mixture mixture;
    mixture_init(&mixture, 3, (double[]){0.1, 0.7, 0.2}, NULL);
    const int64_t starts[] = {((int64_t)1 << 32) - 500, ((int64_t)1 << 53) - 500, ((int64_t)1 << 60) + 12345};
    for (size_t k = 0; k < sizeof starts / sizeof starts[0]; ++k) {
        int64_t seen[3];
        for (int s = 0; s < 3; ++s) seen[s] = mixture_count(&mixture, s, starts[k]);
        assert_true(seen[0] + seen[1] + seen[2] == starts[k]);
        for (int64_t n = starts[k]; n < starts[k] + 1000; ++n) {
            MixturePick pick = mixture_pick(&mixture, n);
            assert_true(pick.ordinal == seen[pick.source]);
            ++seen[pick.source];
        }
        // Weights are stored to 2^-32 of their sum.
        assert_true(fabs((double)seen[0] / (double)(starts[k] + 1000) - 0.1) < 0x1p-31);
        assert_true(fabs((double)seen[1] / (double)(starts[k] + 1000) - 0.7) < 0x1p-31);
    }
}

// Every range of the length of a small batch has the mixture's proportions, not only the whole run.
static void test_every_batch_holds_the_mixture(void **state) {
    (void)state;
    Mixture mixture;
    mixture_init(&mixture, 2, (double[]){0.25, 0.75}, NULL);
    for (int64_t step = 0; step < 1000; ++step)
        assert_int_equal(mixture_count(&mixture, 0, step * 8 + 8) - mixture_count(&mixture, 0, step * 8), 2);
}

static void test_each_row_once_per_epoch(void **state) {
    (void)state;
    const int64_t SIZES[] = {1, 2, 3, 7, 64, 1000, 4097};
    for (size_t k = 0; k < sizeof SIZES / sizeof SIZES[0]; ++k) {
        int64_t rows = SIZES[k];
        int64_t *order = xcalloc(to_size(2 * rows), sizeof *order);
        for (int64_t epoch = 0; epoch < 2; ++epoch) {
            unsigned char *visited = xcalloc(to_size(rows), 1);
            for (int64_t i = 0; i < rows; ++i) {
                int64_t found;
                int64_t row = mixture_row(&found, 42, 3, epoch * rows + i, rows);
                assert_true(found == epoch && row >= 0 && row < rows && !visited[row]);
                visited[row] = 1;
                order[epoch * rows + i] = row;
            }
            free(visited);
        }
        if (rows >= 64) assert_memory_not_equal(order, order + rows, to_size(rows) * sizeof *order);
        free(order);
    }
}

static void test_seed_source_and_epoch_change_the_order(void **state) {
    (void)state;
    enum { ROWS = 1000 };
    int same_seed = 0, same_source = 0, in_place = 0, neighbours = 0;
    for (int64_t i = 0; i < ROWS; ++i) {
        int64_t row = mixture_row(NULL, 1, 0, i, ROWS);
        assert_int_equal(row, mixture_row(NULL, 1, 0, i, ROWS));
        same_seed += row == mixture_row(NULL, 2, 0, i, ROWS);
        same_source += row == mixture_row(NULL, 1, 1, i, ROWS);
        in_place += row == i;
        neighbours += i > 0 && llabs(row - mixture_row(NULL, 1, 0, i - 1, ROWS)) == 1;
    }
    // Two random permutations agree in one place on average (Poisson); 12 places have a probability of 1e-9.
    assert_in_range(same_seed, 0, 12);
    assert_in_range(same_source, 0, 12);
    assert_in_range(in_place, 0, 12);
    assert_in_range(neighbours, 0, 16);
}

// Runs resumed with a later build rely on the order of samples: these values must never change.
static void test_order_is_pinned(void **state) {
    (void)state;
    Mixture mixture;
    mixture_init(&mixture, 3, (double[]){0.5, 0.2, 0.3}, (int64_t[]){0, 100, 0});
    const int sources[10] = {0, 2, 0, 1, 0, 2, 0, 1, 0, 2};
    const int64_t ordinals[10] = {0, 0, 1, 100, 2, 1, 3, 101, 4, 2};
    const int64_t rows[10] = {895, 770, 595, 488, 590, 917, 941, 897, 733, 921};
    for (int n = 0; n < 10; ++n) {
        MixturePick pick = mixture_pick(&mixture, n);
        assert_int_equal(pick.source, sources[n]);
        assert_int_equal(pick.ordinal, ordinals[n]);
        assert_int_equal(mixture_row(NULL, 42, 1, n + 990, 1000), rows[n]);
    }
}

int main(void) {
    const struct CMUnitTest TESTS[] = {
        cmocka_unit_test(test_counts_are_exact),
        cmocka_unit_test(test_far_samples),
        cmocka_unit_test(test_every_batch_holds_the_mixture),
        cmocka_unit_test(test_each_row_once_per_epoch),
        cmocka_unit_test(test_order_is_pinned),
        cmocka_unit_test(test_seed_source_and_epoch_change_the_order),
    };
    return cmocka_run_group_tests(TESTS, NULL, NULL);
}
