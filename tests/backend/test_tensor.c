// test_tensor.c: shapes, views and bf16 rounding.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "llmc/backend/tensor.h"

static void test_dtypes(void **state) {
    (void)state;
    for (DType dtype = DTYPE_F32; dtype < DTYPE_COUNT; ++dtype) {
        DType parsed = DTYPE_COUNT;
        assert_true(dtype_parse(dtype_name(dtype), &parsed));
        assert_int_equal(parsed, dtype);
    }
    DType untouched = DTYPE_U8;
    assert_false(dtype_parse("fp16", &untouched));
    assert_false(dtype_parse("", &untouched));
    assert_int_equal(untouched, DTYPE_U8);
    assert_int_equal(dtype_bytes(DTYPE_BF16), 2);
    assert_int_equal(dtype_bytes(DTYPE_F64), 8);
}

static void test_shapes(void **state) {
    (void)state;
    Tensor t = tensor_3d(NULL, DTYPE_BF16, 6, 4, 5);
    assert_int_equal(tensor_elems(t), 120);
    assert_int_equal(tensor_bytes(t), 240);
    assert_int_equal(tensor_elems(tensor_2d(NULL, DTYPE_F32, 0, 7)), 0);
    assert_true(tensor_is_none(TENSOR_NONE));
    assert_int_equal(tensor_elems(TENSOR_NONE), 0);
    assert_false(tensor_is_none(tensor_1d(NULL, DTYPE_F32, 0)));
    // Counts beyond 32 bits.
    assert_true(tensor_bytes(tensor_2d(NULL, DTYPE_F32, 1 << 20, 1 << 20)) == (size_t)1 << 42);
}

static void test_rows(void **state) {
    (void)state;
    float data[12];
    Tensor rows = tensor_rows(tensor_3d(data, DTYPE_F32, 3, 2, 2), 1, 2);
    assert_ptr_equal(rows.data, data + 4);
    assert_int_equal(rows.dim[0], 2);
    assert_int_equal(tensor_elems(rows), 8);
    assert_null(tensor_rows(tensor_2d(NULL, DTYPE_F32, 3, 2), 1, 1).data);  // planned views stay NULL
    assert_int_equal(tensor_elems(tensor_rows(tensor_2d(data, DTYPE_F32, 3, 2), 3, 0)), 0);
}

// Every bf16 number, the midpoint to its neighbour (to even), and the floats next to the midpoint.
static void test_bf16_rounding(void **state) {
    (void)state;
    for (uint32_t bits = 0; bits < 0x7f80; ++bits) {
        uint16_t even = (uint16_t)(bits & 1 ? bits + 1 : bits), next = (uint16_t)(bits + 1);
        const struct {
            uint32_t wide;
            uint16_t expected;
        } cases[] = {{bits << 16, (uint16_t)bits}, {bits << 16 | 0x8000, even}, {bits << 16 | 0x7fff, (uint16_t)bits},
                     {bits << 16 | 0x8001, next}};
        for (int i = 0; i < 4; ++i) {
            float value;
            memcpy(&value, &cases[i].wide, sizeof value);
            assert_int_equal(bf16_from_f32(value), cases[i].expected);
            assert_int_equal(bf16_from_f32(-value), cases[i].expected | 0x8000);
        }
        assert_int_equal(bf16_from_f32(bf16_to_f32((uint16_t)bits)), bits);
    }
    assert_int_equal(bf16_from_f32(INFINITY), 0x7f80);
    assert_true(isnan(bf16_to_f32(bf16_from_f32(NAN))));
    uint32_t low_payload = 0x7f800001;  // a NaN whose upper half alone would be infinity
    float nan;
    memcpy(&nan, &low_payload, sizeof nan);
    assert_true(isnan(bf16_to_f32(bf16_from_f32(nan))));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_dtypes), cmocka_unit_test(test_shapes),
                                       cmocka_unit_test(test_rows), cmocka_unit_test(test_bf16_rounding)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
