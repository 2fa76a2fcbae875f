// test_model_config.c: presets against published parameter counts, derived sizes, errors that name the wrong option.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "llmc/config/model_config.h"
#include "tests/support/model_test.h"

static void test_every_preset_finishes(void **state) {
    (void)state;
    static const char *NAMES[] = {"gpt3:125M", "gpt3:350M", "gpt3:760M", "gpt3:1.3B", "gpt3:2.7B", "gpt3:6.7B",
                                  "gpt3:13B", "gpt2:d1", "llama:d4", "llama:d20"};
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; ++i) {
        ModelConfig config = model_test_preset(NAMES[i]);
        assert_int_equal(config.Vp % MODEL_VOCAB_MULTIPLE, 0);
        assert_int_equal(config.NH * config.HS, config.C);
    }
    ModelConfig config = model_test_preset("gpt3:1.3B");
    assert_int_equal(config.HS, 128);
    assert_int_equal(config.max_seq_len, 2048);
    config = model_test_preset("llama:d4");
    assert_int_equal(config.F, 704);  // 8/3 * 256 = 682.7, up to a multiple of 64
    assert_int_equal(config.NKV, 4);
}

static void test_unknown_presets(void **state) {
    (void)state;
    static const char *NAMES[] = {"", "gpt2", "gpt2:", "gpt2:d", "gpt2:d0", "gpt2:d-1", "gpt2:d12x", "gpt2:125M",
                                  "gpt3:d12", "llama:8B", "bert:base", ":d12", "gpt2:d99999999999999999999"};
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; ++i) {
        ModelConfig config;
        Error err = {""};
        if (model_config_preset(&config, NAMES[i], &err)) fail_msg("'%s' was accepted", NAMES[i]);
        assert_true(err.message[0] != '\0');
    }
    Error err = {""};
    ModelConfig config;
    assert_false(model_config_preset(&config, "gpt2:125M", &err));
    assert_non_null(strstr(err.message, "gpt2:125M"));
    assert_non_null(strstr(err.message, "124M|350M"));
    assert_non_null(strstr(err.message, "stories:260K|15M"));
}

static void expect_rejected(ModelConfig config, const char *mention) {
    Error err = {""};
    if (model_config_finish(&config, &err)) fail_msg("accepted, expected an error about %s", mention);
    if (strstr(err.message, mention) == NULL) fail_msg("'%s' does not mention '%s'", err.message, mention);
}
static void test_rejections(void **state) {
    (void)state;
    const ModelConfig gpt = model_test_preset("gpt2:124M"), llama = model_test_preset("llama3:1B");
    ModelConfig c;
#define REJECT(base, field, value, mention) (c = (base), c.field = (value), expect_rejected(c, mention))
    REJECT(gpt, L, 0, "layers");
    REJECT(gpt, L, -3, "found -3");
    REJECT(gpt, C, 0, "width (C)");
    REJECT(gpt, NH, 0, "heads (NH)");
    REJECT(gpt, NKV, 24, "key/value heads");
    REJECT(gpt, NKV, -1, "key/value heads");
    REJECT(gpt, NKV, 5, "12 heads (NH) cannot share 5");
    REJECT(gpt, HS, -64, "head size");
    REJECT(gpt, F, -1, "feed-forward");
    REJECT(gpt, V, 0, "vocabulary (V)");
    REJECT(gpt, V, INT64_MAX, "vocabulary (V)");
    REJECT(gpt, C, INT64_MAX, "width (C)");
    REJECT(gpt, max_seq_len, 0, "max_seq_len");
    REJECT(gpt, norm_eps, 0, "norm_eps");
    REJECT(gpt, norm_eps, NAN, "norm_eps");
    REJECT(gpt, init_std, -1, "init_std");
    REJECT(gpt, logit_softcap, NAN, "logit_softcap");
    REJECT(gpt, window, -1, "window");
    REJECT(gpt, activation, ACT_NONE, "activation");
    REJECT(gpt, rope_scaling.factor, 2, "needs position=rope");
    REJECT(llama, norm_bias, true, "RMSNorm");
    REJECT(llama, HS, 63, "even head size");
    REJECT(llama, rope_theta, 0, "rope_theta");
    REJECT(llama, rope_scaling.factor, 8, "RoPE scaling");
#undef REJECT
    c = gpt;
    c.HS = 0;
    c.NH = 7;
    expect_rejected(c, "is not a multiple of heads (NH) 7");
}

// Derived sizes follow an override of a preset, because presets leave them 0.
static void test_overrides_move_derived_sizes(void **state) {
    (void)state;
    ModelConfig config;
    assert_true(model_config_preset(&config, "gpt2:124M", NULL));
    config.C = 384;
    config.NH = 6;
    config.V = 300;
    assert_true(model_config_finish(&config, NULL));
    assert_int_equal(config.HS, 64);
    assert_int_equal(config.NKV, 6);
    assert_int_equal(config.F, 1536);
    assert_int_equal(config.Vp, 384);
    config.V = 384;  // model_config_finish may be called again after a change
    assert_true(model_config_finish(&config, NULL));
    assert_int_equal(config.Vp, 384);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_preset_finishes), cmocka_unit_test(test_unknown_presets),
        cmocka_unit_test(test_rejections), cmocka_unit_test(test_overrides_move_derived_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
