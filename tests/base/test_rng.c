// test_rng.c: known answers of Philox, moments of the distributions, and the keyed permutation.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "dev/cases/values.h"

// Known answers of philox4x32-10 from the Random123 distribution. The counter is (index, stream), the key the seed.
static void test_philox_known_answers(void **state) {
    (void)state;
    static const struct {
        uint64_t seed, stream, index;
        uint32_t expected[4];
    } VECTORS[] = {
        {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof VECTORS / sizeof VECTORS[0]; ++i) {
        uint32_t words[4];
        rng_block(VECTORS[i].seed, VECTORS[i].stream, VECTORS[i].index, words);
        for (int w = 0; w < 4; ++w) assert_int_equal(words[w], VECTORS[i].expected[w]);
    }
    assert_int_equal(rng_u32(0, 0, 0), 0x6627e8d5);
    assert_true(rng_u64(0, 0, 0) == 0xe169c58d6627e8d5u);
}

// Sample moments of n draws are within five standard errors: 1/sqrt(12 n), 1/sqrt(n), sqrt(2/n), sqrt(96/n).
static void test_distributions(void **state) {
    (void)state;
    const int n = 100000;
    double uniform = 0, mean = 0, square = 0, fourth = 0;
    for (int i = 0; i < n; ++i) {
        double u = rng_uniform(7, RNG_STREAM_TEST, (uint64_t)i);
        double x = (double)rng_normal(7, RNG_STREAM_TEST, (uint64_t)i);
        assert_true(u >= 0 && u < 1 && isfinite(x));
        uniform += u / n;
        mean += x / n;
        square += x * x / n;
        fourth += x * x * x * x / n;
    }
    assert_true(fabs(uniform - 0.5) < 5 / sqrt(12.0 * n));
    assert_true(fabs(mean) < 5 / sqrt((double)n));
    assert_true(fabs(square - 1) < 5 * sqrt(2.0 / n));
    assert_true(fabs(fourth - 3) < 5 * sqrt(96.0 / n));
}
static void test_seeds_and_streams_differ(void **state) {
    (void)state;
    assert_int_not_equal(rng_u32(1, 1, 1), rng_u32(2, 1, 1));
    assert_int_not_equal(rng_u32(1, 1, 1), rng_u32(1, 2, 1));
    assert_int_not_equal(rng_u32(1, 1, 1), rng_u32(1, 1, 2));
    assert_int_not_equal(rng_u32(1, 1, 1), rng_u32(1, 1, 1 + ((uint64_t)1 << 32)));
}

static void test_hash(void **state) {
    (void)state;
    assert_true(rng_hash("") == 0xcbf29ce484222325u);  // FNV-1a's published test vectors
    assert_true(rng_hash("a") == 0xaf63dc4c8601ec8cu);
    assert_true(rng_hash("foobar") == 0x85944171f73967e8u);
}

static void test_permutation_is_a_bijection(void **state) {
    (void)state;
    const uint64_t SIZES[] = {1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097};
    for (size_t s = 0; s < sizeof SIZES / sizeof SIZES[0]; ++s)
        for (uint64_t key = 0; key < 3; ++key) {
            unsigned char *seen = xcalloc(SIZES[s], 1);
            for (uint64_t i = 0; i < SIZES[s]; ++i) {
                uint64_t at = rng_permute(key, SIZES[s], i);
                assert_true(at < SIZES[s] && !seen[at]);
                seen[at] = 1;
            }
            free(seen);
        }
}
// The chance that a random permutation keeps an element is 1/n: about one fixed point; a key changes nearly all.
static void test_permutation_depends_on_key(void **state) {
    (void)state;
    int fixed = 0, same = 0;
    for (uint64_t i = 0; i < 1000; ++i) {
        fixed += rng_permute(1, 1000, i) == i;
        same += rng_permute(1, 1000, i) == rng_permute(2, 1000, i);
    }
    assert_true(fixed < 10 && same < 10);
    // Far beyond 32 bits, and at the largest size, results stay inside.
    for (uint64_t i = 0; i < 100; ++i) {
        assert_true(rng_permute(3, ((uint64_t)1 << 40) + 7, ((uint64_t)1 << 40) - i) < ((uint64_t)1 << 40) + 7);
        assert_true(rng_permute(3, UINT64_MAX, UINT64_MAX - 1 - i) < UINT64_MAX);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),       cmocka_unit_test(test_distributions),
        cmocka_unit_test(test_seeds_and_streams_differ),   cmocka_unit_test(test_hash),
        cmocka_unit_test(test_permutation_is_a_bijection), cmocka_unit_test(test_permutation_depends_on_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
