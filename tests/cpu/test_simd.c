// test_simd.c: the vector helpers of the CPU kernels against double precision, at the baseline instruction set; the
// other levels run the same functions through the operations (test_ops_pointwise.c, test_ops_loss.c).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "llmc/cpu/simd.h"

static float first_lane(vf v) { return v[0]; }
static float exp_of(float x) { return first_lane(vf_exp(vf_set(x))); }
static float tanh_of(float x) { return first_lane(vf_tanh(vf_set(x))); }

// A grid that is fine everywhere and includes small magnitudes of both signs.
#define GRID 200000
static float grid_point(int i, double low, double high) {
    if (i % 4 == 0) return (float)(ldexp(1.0 + i / (double)GRID, -(i / 4) % 149) * (i % 8 == 0 ? 1 : -1));
    return (float)(low + (high - low) * i / GRID);
}

static void test_exp(void **state) {
    (void)state;
    double worst = 0;
    for (int i = 0; i < GRID; ++i) {
        float x = grid_point(i, -105, 88.72);
        double expected = exp((double)x), error = fabs((double)exp_of(x) - expected);
        // Results below 2^-126 are denormal: their spacing is 2^-149.
        if (expected >= 0x1p-126) worst = fmax(worst, error / expected);
        if (expected < 0x1p-126 && !(error <= 0x1p-149)) fail_msg("exp(%.9g) is off by %g", (double)x, error);
        if (!isfinite(exp_of(x))) fail_msg("exp(%.9g) is not finite", (double)x);
    }
    if (!(worst <= 1.5e-7)) fail_msg("relative error of exp: %.3g", worst);
    assert_true(exp_of(0.0f) == 1 && exp_of(-0.0f) == 1);
    assert_true(exp_of(INFINITY) == INFINITY && exp_of(3.4e38f) == INFINITY && exp_of(88.8f) == INFINITY);
    assert_true(exp_of(-INFINITY) == 0 && exp_of(-3.4e38f) == 0 && exp_of(-104.5f) == 0);
    assert_true(isnan(exp_of(NAN)) && isnan(exp_of(-NAN)));
}

static void test_tanh(void **state) {
    (void)state;
    double worst = 0;
    for (int i = 0; i < GRID; ++i) {
        float x = grid_point(i, -12, 12), y = tanh_of(x);
        double expected = tanh((double)x), error = fabs((double)y - expected);
        if (fabs(expected) >= 0x1p-126) worst = fmax(worst, error / fabs(expected));
        if (fabs(expected) < 0x1p-126 && !(error <= 0x1p-149)) fail_msg("tanh(%.9g) is off by %g", (double)x, error);
        if (tanh_of(-x) != -y) fail_msg("tanh is not odd at %.9g", (double)x);
    }
    if (!(worst <= 4e-7)) fail_msg("relative error of tanh: %.3g", worst);
    assert_true(tanh_of(0.0f) == 0 && signbit(tanh_of(-0.0f)));
    assert_true(fabs((double)tanh_of(INFINITY) - 1) <= 1.2e-7 && fabs((double)tanh_of(-INFINITY) + 1) <= 1.2e-7);
    assert_true(isnan(tanh_of(NAN)));
}

static void test_sigmoid_and_gelu(void **state) {
    (void)state;
    double worst_sigmoid = 0, worst_gelu = 0;
    for (int i = 0; i < GRID; ++i) {
        float x = grid_point(i, -80, 40);
        double expected = 1 / (1 + exp(-(double)x));
        worst_sigmoid = fmax(worst_sigmoid, fabs((double)first_lane(vf_sigmoid(vf_set(x))) / expected - 1));
        // Relative to |x|: in the far tail GELU's exponent is large, and so is the error of its rounded argument.
        double u = sqrt(2 / 3.14159265358979323846) * ((double)x + 0.044715 * pow((double)x, 3));
        double gelu = (double)x / (1 + exp(-2 * u));
        double error = fabs((double)first_lane(vf_gelu(vf_set(x))) - gelu);
        worst_gelu = fmax(worst_gelu, error / fmax(fabs((double)x), 1e-30));
    }
    if (!(worst_sigmoid <= 3e-7)) fail_msg("relative error of sigmoid: %.3g", worst_sigmoid);
    if (!(worst_gelu <= 4e-7)) fail_msg("error of GELU: %.3g", worst_gelu);
    assert_true(first_lane(vf_sigmoid(vf_set(-INFINITY))) == 0 && first_lane(vf_sigmoid(vf_set(INFINITY))) == 1);
    assert_true(first_lane(vf_gelu(vf_set(-1000.0f))) == 0 && first_lane(vf_gelu(vf_set(1000.0f))) == 1000);
    assert_true(first_lane(vf_gelu_derivative(vf_set(-1000.0f))) == 0);
    assert_true(first_lane(vf_gelu_derivative(vf_set(1000.0f))) == 1);
    assert_true(isnan(first_lane(vf_gelu(vf_set(NAN)))) && isnan(first_lane(vf_gelu_derivative(vf_set(NAN)))));
}

static void test_partial_vectors(void **state) {
    (void)state;
    float in[2 * VF_LANES], out[2 * VF_LANES];
    uint16_t narrow[2 * VF_LANES];
    for (int i = 0; i < 2 * VF_LANES; ++i) in[i] = (float)(i + 1);
    for (int64_t left = 1; left < 2 * VF_LANES; ++left) {
        for (int i = 0; i < 2 * VF_LANES; ++i) {
            out[i] = -1;
            narrow[i] = 0xffff;
        }
        vf v = vf_load_some(in, 0, left, DTYPE_F32);
        vf_store_some(out, 0, v, left, DTYPE_F32);
        vf_store_some(narrow, 0, v, left, DTYPE_BF16);
        vf back = vf_load_some(narrow, 0, left, DTYPE_BF16);
        for (int i = 0; i < VF_LANES; ++i) {
            float expected = i < left ? in[i] : 0;
            assert_true(v[i] == expected && back[i] == expected && out[i] == (i < left ? expected : -1));
            assert_true(i < left || narrow[i] == 0xffff);
        }
        for (int i = VF_LANES; i < 2 * VF_LANES; ++i) assert_true(out[i] == -1 && narrow[i] == 0xffff);
    }
    assert_true(vf_sum(vf_load(in)) == (float)(VF_LANES * (VF_LANES + 1) / 2));
    assert_true(vf_hmax(vf_load(in)) == (float)VF_LANES);
}
static void test_max_and_min_take_the_second_of_nan(void **state) {
    (void)state;
    vf nan = vf_set(NAN), one = vf_set(1.0f), two = vf_set(2.0f);
    assert_true(first_lane(vf_max(nan, one)) == 1 && isnan(first_lane(vf_max(one, nan))));
    assert_true(first_lane(vf_min(nan, one)) == 1 && isnan(first_lane(vf_min(one, nan))));
    assert_true(first_lane(vf_max(one, two)) == 2 && first_lane(vf_min(one, two)) == 1);
    assert_true(first_lane(vf_select(one < two, one, two)) == 1 && first_lane(vf_select(two < one, one, two)) == 2);
    assert_true(first_lane(vf_sqrt(vf_set(9.0f))) == 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp), cmocka_unit_test(test_tanh), cmocka_unit_test(test_sigmoid_and_gelu),
        cmocka_unit_test(test_partial_vectors), cmocka_unit_test(test_max_and_min_take_the_second_of_nan)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
