// test_hf_config.c: config.json of every kind of architecture, written and read back; keys that other writers omit,
// spell differently or add; errors for models that would be computed wrongly.
#include <stdlib.h>
#include <string.h>

#include "llmc/formats/hf.h"
#include "llmc/base/json.h"
#include "tests/support/file_test.h"
#include "tests/support/model_kinds.h"

static void test_config_round_trip(void **state) {
    FileTest *t = *state;
    for (int kind = 0; kind < MODEL_KIND_COUNT; ++kind) {
        const ModelConfig config = model_kind(kind);
        if (strcmp(hf_architecture(&config), MODEL_KINDS[kind].architecture) != 0)
            fail_msg("%s: expected %s, found %s", MODEL_KINDS[kind].name, MODEL_KINDS[kind].architecture,
                     hf_architecture(&config));
        char *json = hf_config_write(&config, DTYPE_BF16, 1, -1);
        ModelConfig back;
        file_test_expect_ok(t, hf_config_read(&back, json, MODEL_KINDS[kind].name, &t->err));
        expect_same_config(&config, &back, MODEL_KINDS[kind].name);
        assert_non_null(strstr(json, MODEL_KINDS[kind].architecture));
        assert_non_null(strstr(json, "\"torch_dtype\":\t\"bfloat16\""));
        assert_non_null(strstr(json, "\"bos_token_id\":\t1"));
        assert_non_null(strstr(json, "\"eos_token_id\":\tnull"));
        free(json);
    }
}

// The config of `kind` with `key` set to the JSON value `value` (NULL: removed).
static bool read_changed(FileTest *t, ModelConfig *out, const char *kind, const char *key, const char *value) {
    const ModelConfig config = model_kind(model_kind_find(kind));
    char *json = hf_config_write(&config, DTYPE_F32, -1, -1);
    cJSON *root = cJSON_Parse(json);
    cJSON_DeleteItemFromObjectCaseSensitive(root, key);
    if (value != NULL) {
        cJSON *item = cJSON_Parse(value);
        assert_non_null(item);
        cJSON_AddItemToObject(root, key, item);
    }
    char *changed = cJSON_PrintUnformatted(root);
    bool ok = hf_config_read(out, changed, "config.json", &t->err);
    cJSON_Delete(root);
    cJSON_free(changed);
    free(json);
    return ok;
}

static void test_config_rejections(void **state) {
    FileTest *t = *state;
    static const struct {
        const char *kind, *key, *value, *mention;
    } CASES[] = {
        {"gpt2", "model_type", "\"bert\"", "found 'bert'"},
        {"gpt2", "model_type", NULL, "'model_type'"},
        {"gpt2", "model_type", "7", "expected text"},
        {"gpt2", "activation_function", "\"gelu\"", "found 'gelu'"},
        {"gpt2", "activation_function", "\"relu\"", "'activation_function'"},
        {"gpt2", "scale_attn_weights", "false", "'scale_attn_weights'"},
        {"gpt2", "scale_attn_by_inverse_layer_idx", "true", "'scale_attn_by_inverse_layer_idx'"},
        {"gpt2", "add_cross_attention", "true", "'add_cross_attention'"},
        {"gpt2", "n_layer", NULL, "'n_layer': expected a whole number, found nothing"},
        {"gpt2", "n_layer", "2.5", "'n_layer'"},
        {"gpt2", "n_layer", "\"2\"", "'n_layer'"},
        {"gpt2", "n_layer", "-1", "found -1"},
        {"gpt2", "n_head", "5", "is not a multiple of heads (NH) 5"},
        {"gpt2", "vocab_size", "0", "vocabulary"},
        {"gpt2", "vocab_size", "1e18", "vocab"},
        {"gpt2", "tie_word_embeddings", "\"yes\"", "expected true or false"},
        {"gpt2", "quantization_config", "{\"bits\":4}", "quantized"},
        {"gpt2", "tokamak", "[]", "'tokamak'"},
        {"llama", "hidden_act", "\"gelu\"", "found 'gelu'"},
        {"llama", "rope_scaling", "{\"type\":\"linear\",\"factor\":2.0}", "found 'linear'"},
        {"llama", "rope_scaling", "{\"rope_type\":\"yarn\",\"factor\":2.0}", "found 'yarn'"},
        {"llama", "rope_scaling", "{\"rope_type\":\"llama3\",\"factor\":8}", "'original_max_position_embeddings'"},
        {"llama", "rope_scaling",
         "{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":1,"
         "\"original_max_position_embeddings\":64}",
         "RoPE scaling"},
        {"llama", "rope_scaling", "\"llama3\"", "expected an object"},
        {"llama", "rope_parameters", "{\"rope_type\":\"dynamic\"}", "found 'dynamic'"},
        {"llama", "partial_rotary_factor", "0.5", "'partial_rotary_factor'"},
        {"llama", "rope_theta", "-1", "rope_theta"},
        {"llama", "rms_norm_eps", "0", "norm_eps"},
        {"llama", "attention_bias", "1", "'attention_bias'"},
        {"llama", "head_dim", "7", "even head size"},
        {"llama", "num_key_value_heads", "3", "cannot share 3"},
        {"mistral", "sliding_window", "-5", "'sliding_window'"},
        {"mistral", "num_key_value_heads", NULL, "'num_key_value_heads'"},
        {"qwen2 window", "max_window_layers", "1", "'max_window_layers'"},
        {"qwen2 window", "layer_types", "[\"full_attention\",\"sliding_attention\"]", "'layer_types'"},
        {"qwen2 window", "layer_types", "[\"sliding_attention\"]", "'layer_types'"},
        {"qwen2 window", "layer_types", "[\"x\",\"y\"]", "'layer_types'"},
        {"qwen2", "layer_types", "[\"sliding_attention\",\"sliding_attention\"]", "'sliding_window'"},
        {"relu2", "activation", "\"relu3\"", "unknown value 'relu3'"},
        {"relu2", "activation", NULL, "'activation'"},
        {"relu2", "norm", "\"batch\"", "unknown value 'batch'"},
        {"relu2", "position", "\"alibi\"", "unknown value 'alibi'"},
        {"relu2", "head_dim", NULL, "'head_dim'"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        ModelConfig config;
        print_message("  %s %s\n", CASES[i].kind, CASES[i].key);
        file_test_expect_error(t, read_changed(t, &config, CASES[i].kind, CASES[i].key, CASES[i].value),
                               CASES[i].mention);
    }
    ModelConfig config;
    file_test_expect_error(t, hf_config_read(&config, "", "x/config.json", &t->err), "x/config.json: not valid JSON");
    file_test_expect_error(t, hf_config_read(&config, "[]", "x/config.json", &t->err), "JSON object");
    file_test_expect_error(t, hf_config_read(&config, "{\"a\":1,\"a\":2}", "x/config.json", &t->err), "duplicate JSON");
}

// Keys that other writers omit, spell differently or add.
static void test_config_variants(void **state) {
    FileTest *t = *state;
    ModelConfig config;
    file_test_expect_ok(t, read_changed(t, &config, "gpt2", "n_inner", "null"));
    assert_int_equal(config.F, 4 * config.C);
    file_test_expect_ok(t, read_changed(t, &config, "gpt2", "activation_function", "\"gelu_pytorch_tanh\""));
    file_test_expect_ok(t, read_changed(t, &config, "gpt2", "tie_word_embeddings", NULL));
    assert_true(config.tied);
    file_test_expect_ok(t, read_changed(t, &config, "gpt2", "anything_else", "{\"a\":[1]}"));
    file_test_expect_ok(t, read_changed(t, &config, "llama", "tie_word_embeddings", NULL));
    assert_false(config.tied);
    file_test_expect_ok(t, read_changed(t, &config, "llama", "num_key_value_heads", NULL));
    assert_int_equal(config.NKV, config.NH);
    file_test_expect_ok(t, read_changed(t, &config, "llama", "head_dim", NULL));
    assert_int_equal(config.HS, config.C / config.NH);
    file_test_expect_ok(t, read_changed(t, &config, "llama", "rope_theta", NULL));
    assert_true(config.rope_theta == 10000);
    file_test_expect_ok(t, read_changed(t, &config, "llama", "rms_norm_eps", NULL));
    assert_true(config.norm_eps == 1e-6f);
    file_test_expect_ok(t, read_changed(t, &config, "llama", "rope_scaling", "{\"rope_type\":\"default\"}"));
    assert_true(config.rope_scaling.factor == 0);
    // transformers 5: all settings of the rotation are in one object, which has precedence.
    file_test_expect_ok(
        t, read_changed(t, &config, "llama", "rope_parameters",
                        "{\"rope_type\":\"llama3\",\"rope_theta\":5e5,\"factor\":32,\"low_freq_factor\":1,"
                        "\"high_freq_factor\":4,\"original_max_position_embeddings\":8192}"));
    assert_true(config.rope_theta == 500000 && config.rope_scaling.factor == 32);
    assert_true(config.rope_scaling.low_freq_factor == 1 && config.rope_scaling.high_freq_factor == 4);
    assert_int_equal(config.rope_scaling.original_max_seq_len, 8192);
    file_test_expect_ok(t, read_changed(t, &config, "mistral", "sliding_window", "null"));
    assert_int_equal(config.window, 0);
    file_test_expect_ok(t, read_changed(t, &config, "mistral", "sliding_window", NULL));
    assert_int_equal(config.window, 4096);
    file_test_expect_ok(t, read_changed(t, &config, "qwen2 window", "use_sliding_window", "false"));
    assert_int_equal(config.window, 0);
    file_test_expect_ok(t, read_changed(t, &config, "qwen2 window", "max_window_layers", "2"));  // of 2 layers: none
    assert_int_equal(config.window, 0);
    file_test_expect_ok(t, read_changed(t, &config, "qwen2 window", "layer_types",
                                        "[\"sliding_attention\",\"sliding_attention\"]"));
    assert_true(config.window > 0);
    file_test_expect_ok(t, read_changed(t, &config, "qwen2 window", "layer_types",
                                        "[\"full_attention\",\"full_attention\"]"));
    assert_int_equal(config.window, 0);
    file_test_expect_ok(t, read_changed(t, &config, "qwen3", "head_dim", NULL));
    assert_int_equal(config.HS, 128);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FILE_TEST(test_config_round_trip), FILE_TEST(test_config_rejections), FILE_TEST(test_config_variants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
