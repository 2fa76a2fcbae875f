// test_decimal.c: shortest decimals read back bit for bit, and no shorter ones do.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/decimal.h"
#include "llmc/base/rng.h"

static void test_written(void **state) {
    (void)state;
    static const struct {
        double value;
        const char *text;
    } CASES[] = {{0, "0"},         {1, "1"},       {-2.5, "-2.5"},       {0.1, "0.1"},           {100000, "100000"},
                 {1e-5, "1e-05"},  {1e15, "1e+15"}, {1.0 / 3, "0.3333333333333333"}, {123456789012345, "123456789012345"},
                 {1e22, "1e+22"},  {6e-4, "0.0006"}, {0.1 + 0.2, "0.30000000000000004"}};
    char text[DECIMAL_BYTES];
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i)
        assert_string_equal(decimal_shortest(text, CASES[i].value), CASES[i].text);
    assert_string_equal(decimal_shortest_f32(text, 1e-5f), "1e-05");
    assert_string_equal(decimal_shortest_f32(text, 0.1f), "0.1");
    assert_string_equal(decimal_shortest_f32(text, 16777216.0f), "16777216");
    assert_int_equal(decimal_digits(500000), 1);
    assert_int_equal(decimal_digits_f32(1.0f / 3), 8);
}

static void test_random(void **state) {
    (void)state;
    char text[DECIMAL_BYTES];
    for (uint64_t i = 0; i < 20000; ++i) {
        uint64_t bits = rng_u64(3, 1, i);
        double value;
        memcpy(&value, &bits, sizeof value);
        if (!isnormal(value)) continue;
        if (i % 4 == 0) value = (double)(int64_t)(bits % 100000) / 1000;  // decimals that are short
        int digits = decimal_digits(value);
        assert_true(strtod(decimal_shortest(text, value), NULL) == value);
        char shorter[64];
        if (digits > 1) {
            snprintf(shorter, sizeof shorter, "%.*e", digits - 2, value);
            assert_true(strtod(shorter, NULL) != value);
        }
        float narrow;
        uint32_t half = (uint32_t)bits;
        memcpy(&narrow, &half, sizeof narrow);
        if (!isnormal(narrow)) continue;
        digits = decimal_digits_f32(narrow);
        assert_true(strtof(decimal_shortest_f32(text, narrow), NULL) == narrow);
        if (digits == 1) continue;
        snprintf(shorter, sizeof shorter, "%.*e", digits - 2, (double)narrow);
        assert_true(strtof(shorter, NULL) != narrow);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_written), cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
