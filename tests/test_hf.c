// test_hf.c: config.json and weights of every kind of architecture, out and in again; what Hugging Face calls things and
// how it lays them out; directories that lie; real models.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/hf.h"
#include "llmc/json.h"
#include "llmc/safetensors.h"
#include "tests/file_test.h"
#include "tests/model_kinds.h"

// ---- a model on the host: one flat array ----

typedef struct {
    ModelConfig config;
    ParamTable params;
    float *values;  // (params.total_elems)
    int puts;
} HostModel;

static HostModel host_model(const ModelConfig *config) {
    HostModel model = {.config = *config};
    params_build(&model.params, config);
    size_t bytes = to_size(model.params.total_elems) * sizeof(float);
    model.values = xmalloc(bytes);
    memset(model.values, 0xff, bytes);  // NaN
    return model;
}
static HostModel random_model(const ModelConfig *config) {
    HostModel model = host_model(config);
    for (int i = 0; i < model.params.count; ++i) {
        ParamSpec spec = model.params.spec[i];
        spec.init = INIT_NORMAL;  // vectors too: constants would hide a mix-up
        spec.init_std = 1;
        params_init_values(&spec, 3, model.values + spec.offset);
    }
    return model;
}
static void host_model_free(HostModel *model) {
    params_free(&model->params);
    free(model->values);
}
static bool put_values(void *context, const ParamSpec *spec, const float *values, Error *err) {
    HostModel *model = context;
    if (model->puts < 0) return error_set(err, "no room for %s", spec->name);
    assert_ptr_equal(spec, &model->params.spec[model->puts]);
    model->puts++;
    memcpy(model->values + spec->offset, values, to_size(spec->elems) * sizeof *values);
    return true;
}
static bool get_values(void *context, const ParamSpec *spec, int64_t first, int64_t count, float *out, Error *err) {
    (void)err;
    const HostModel *model = context;
    assert_true(first >= 0 && count > 0 && first + count <= spec->elems);
    memcpy(out, model->values + spec->offset + first, to_size(count) * sizeof *out);
    return true;
}

static bool import_dir(HostModel *model, const char *dir, Error *err) {
    model->puts = 0;
    return model_file_read(dir, &model->config, &model->params, put_values, model, err);
}
static void export_dir(FileTest *t, HostModel *model, DType dtype) {
    char *json = hf_config_write(&model->config, dtype, 1, 2);
    file_test_write(t, "config.json", json, strlen(json));
    free(json);
    file_test_expect_ok(t, model_file_write_hf(t->dir, &model->config, &model->params, dtype, get_values, model, &t->err));
}

static void expect_same_values(const HostModel *a, const HostModel *b, DType dtype) {
    for (int i = 0; i < a->params.count; ++i) {
        const ParamSpec *spec = &a->params.spec[i];
        for (int64_t j = 0; j < spec->elems; ++j) {
            float want = a->values[spec->offset + j], got = b->values[spec->offset + j];
            if (dtype == DTYPE_BF16) want = bf16_to_f32(bf16_from_f32(want));
            if (!(want == got))
                fail_msg("%s[%lld]: expected %g, found %g", spec->name, (long long)j, (double)want, (double)got);
        }
    }
}

// ---- every kind, out and in ----

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

static void test_weights_round_trip(void **state) {
    FileTest *t = *state;
    for (int kind = 0; kind < MODEL_KIND_COUNT; ++kind)
        for (int bf16 = 0; bf16 < 2; ++bf16) {
            print_message("  %s %s\n", MODEL_KINDS[kind].name, bf16 ? "bf16" : "fp32");
            const ModelConfig config = model_kind(kind);
            DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
            HostModel model = random_model(&config);
            export_dir(t, &model, dtype);
            ModelConfig found;
            file_test_expect_ok(t, model_file_read_config(&found, t->dir, &t->err));
            expect_same_config(&config, &found, MODEL_KINDS[kind].name);
            HostModel back = host_model(&found);
            file_test_expect_ok(t, import_dir(&back, t->dir, &t->err));
            assert_int_equal(back.puts, back.params.count);
            expect_same_values(&model, &back, dtype);
            host_model_free(&model);
            host_model_free(&back);
        }
}

// ---- names and layouts, from Hugging Face's side ----

static float element(const SafeTensors *file, const char *name, int64_t row, int64_t col) {
    const SafeTensor *tensor = safetensors_find(file, name);
    if (tensor == NULL) fail_msg("%s is missing", name);
    assert_true(row < tensor->dim[0] && (tensor->ndim == 1 ? col == 0 : col < tensor->dim[1]));
    float value;
    assert_true(safetensors_read_f32(tensor, row * (tensor->ndim == 1 ? 1 : tensor->dim[1]) + col, 1, &value, NULL));
    return value;
}
static float ours(const HostModel *model, ParamRole role, int layer, int64_t row, int64_t col) {
    const ParamSpec *spec = params_find(&model->params, role, layer);
    return model->values[spec->offset + row * spec->dim[1] + col];
}

static void test_gpt2_layout(void **state) {
    FileTest *t = *state;
    const ModelConfig config = model_kind(model_kind_find("gpt2"));
    HostModel model = random_model(&config);
    export_dir(t, &model, DTYPE_F32);
    SafeTensors *file;
    file_test_expect_ok(t, safetensors_open(&file, t->dir, &t->err));
    assert_string_equal(safetensors_metadata(file, "format"), "pt");
    assert_int_equal(safetensors_count(file), 2 + 12 * config.L + 2);
    assert_int_equal(safetensors_find(file, "transformer.wte.weight")->dim[0], config.V);
    int64_t C = config.C;
    assert_true(element(file, "transformer.wte.weight", config.V - 1, 2) == ours(&model, PARAM_WTE, -1, config.V - 1, 2));
    assert_true(element(file, "transformer.wpe.weight", 5, 7) == ours(&model, PARAM_WPE, -1, 5, 7));
    // Conv1D: (in, out), so our (out, in) transposed; q, k and v side by side.
    assert_true(element(file, "transformer.h.1.attn.c_attn.weight", 3, 2 * C + 1) ==
                ours(&model, PARAM_QKV_W, 1, 2 * C + 1, 3));
    assert_true(element(file, "transformer.h.1.attn.c_attn.bias", C + 4, 0) == ours(&model, PARAM_QKV_B, 1, C + 4, 0));
    assert_true(element(file, "transformer.h.0.mlp.c_fc.weight", 1, 4 * C - 1) ==
                ours(&model, PARAM_FC_W, 0, 4 * C - 1, 1));
    assert_true(element(file, "transformer.h.0.mlp.c_proj.weight", 4 * C - 1, 1) ==
                ours(&model, PARAM_MLP_PROJ_W, 0, 1, 4 * C - 1));
    assert_true(element(file, "transformer.h.1.ln_2.bias", 9, 0) == ours(&model, PARAM_NORM2_B, 1, 9, 0));
    assert_true(element(file, "transformer.ln_f.weight", 9, 0) == ours(&model, PARAM_NORM_F_W, -1, 9, 0));
    assert_null(safetensors_find(file, "lm_head.weight"));
    safetensors_close(file);
    host_model_free(&model);
}

static void test_llama_layout(void **state) {
    FileTest *t = *state;
    const ModelConfig config = model_kind(model_kind_find("qwen3"));
    HostModel model = random_model(&config);
    export_dir(t, &model, DTYPE_F32);
    SafeTensors *file;
    file_test_expect_ok(t, safetensors_open(&file, t->dir, &t->err));
    int64_t q_rows = config.NH * config.HS, kv_rows = config.NKV * config.HS;
    assert_int_equal(safetensors_count(file), 1 + 11 * config.L + 1 + (config.tied ? 0 : 1));
    assert_int_equal(safetensors_find(file, "model.layers.1.self_attn.q_proj.weight")->dim[0], q_rows);
    assert_true(element(file, "model.embed_tokens.weight", 1, 2) == ours(&model, PARAM_WTE, -1, 1, 2));
    assert_true(element(file, "model.layers.1.self_attn.q_proj.weight", q_rows - 1, 3) ==
                ours(&model, PARAM_QKV_W, 1, q_rows - 1, 3));
    assert_true(element(file, "model.layers.1.self_attn.k_proj.weight", 2, 3) ==
                ours(&model, PARAM_QKV_W, 1, q_rows + 2, 3));
    assert_true(element(file, "model.layers.1.self_attn.v_proj.weight", 2, 3) ==
                ours(&model, PARAM_QKV_W, 1, q_rows + kv_rows + 2, 3));
    assert_true(element(file, "model.layers.0.self_attn.k_norm.weight", 2, 0) == ours(&model, PARAM_K_NORM_W, 0, 2, 0));
    assert_true(element(file, "model.layers.0.self_attn.o_proj.weight", 2, q_rows - 1) ==
                ours(&model, PARAM_ATTN_PROJ_W, 0, 2, q_rows - 1));
    assert_true(element(file, "model.layers.0.mlp.gate_proj.weight", 2, 1) == ours(&model, PARAM_FC_W, 0, 2, 1));
    assert_true(element(file, "model.layers.0.mlp.up_proj.weight", 2, 1) == ours(&model, PARAM_FC_W, 0, config.F + 2, 1));
    assert_true(element(file, "model.layers.0.post_attention_layernorm.weight", 4, 0) ==
                ours(&model, PARAM_NORM2_W, 0, 4, 0));
    assert_true(element(file, "model.norm.weight", 4, 0) == ours(&model, PARAM_NORM_F_W, -1, 4, 0));
    assert_true(element(file, "lm_head.weight", 4, 3) == ours(&model, PARAM_HEAD, -1, 4, 3));
    safetensors_close(file);
    host_model_free(&model);
}

// ---- the same directory, changed ----

// What rewrite() does to the tensors of model.safetensors.
typedef struct {
    const char *drop;       // this one is left out
    const char *add;        // one more of this name, and of the shape and values of `like`
    const char *like;       // NULL: one element
    const char *zero;       // this one gets zeros
    const char *shorten;    // this one loses its last row
    const char *as_ints;    // this one gets dtype I32
    bool strip_prefix;      // no "transformer." or "model."
    bool reverse;           // written in reverse order
} Change;

typedef struct {
    const void *data[256];
} Sources;
static const void *fetch_source(void *context, int index, int64_t first, int64_t count, Error *err) {
    (void)err;
    assert_true(first == 0 && count < SAFETENSORS_CHUNK_ELEMS);  // whole tensors
    return ((Sources *)context)->data[index];
}

static const char *stripped(const char *name) {
    if (strncmp(name, "transformer.", 12) == 0) return name + 12;
    return strncmp(name, "model.", 6) == 0 ? name + 6 : name;
}
static bool same(const char *a, const char *b) { return a != NULL && strcmp(a, b) == 0; }

static int collect(SafeTensorSpec *specs, Sources *sources, const SafeTensors *file, Change change) {
    static const float zeros[1 << 14];
    int count = 0, total = safetensors_count(file);
    for (int i = 0; i < total; ++i) {
        const SafeTensor *tensor = safetensors_at(file, change.reverse ? total - 1 - i : i);
        if (same(change.drop, tensor->name)) continue;
        SafeTensorSpec spec = {change.strip_prefix ? stripped(tensor->name) : tensor->name, DTYPE_F32, tensor->ndim, {0}};
        for (int d = 0; d < tensor->ndim; ++d) spec.dim[d] = tensor->dim[d];
        spec.dim[0] -= same(change.shorten, tensor->name);
        if (same(change.as_ints, tensor->name)) spec.dtype = DTYPE_I32;
        sources->data[count] = same(change.zero, tensor->name) ? (const void *)zeros : tensor->data;
        specs[count++] = spec;
    }
    if (change.add != NULL) {
        SafeTensorSpec spec = {change.add, DTYPE_F32, 1, {1}};
        const SafeTensor *like = change.like == NULL ? NULL : safetensors_find(file, change.like);
        if (like != NULL) spec = (SafeTensorSpec){change.add, DTYPE_F32, 2, {like->dim[0], like->dim[1]}};
        sources->data[count] = like == NULL ? (const void *)zeros : like->data;
        specs[count++] = spec;
    }
    return count;
}

static void rewrite(FileTest *t, Change change) {
    SafeTensors *file;
    file_test_expect_ok(t, safetensors_open(&file, t->dir, &t->err));
    SafeTensorSpec specs[256];
    Sources sources;
    int count = collect(specs, &sources, file, change);
    char *path = file_test_path(t, "model.safetensors");  // replaced, not written over: the mapping stays valid
    file_test_expect_ok(t, safetensors_write(path, specs, count, NULL, fetch_source, &sources, &t->err));
    free(path);
    safetensors_close(file);
}

static void expect_import(FileTest *t, const char *kind, Change change, const char *mention) {
    const ModelConfig config = model_kind(model_kind_find(kind));
    HostModel model = random_model(&config), back = host_model(&config);
    export_dir(t, &model, DTYPE_F32);
    rewrite(t, change);
    bool ok = import_dir(&back, t->dir, &t->err);
    if (mention == NULL) {
        file_test_expect_ok(t, ok);
        expect_same_values(&model, &back, DTYPE_F32);
    } else {
        file_test_expect_error(t, ok, mention);
        assert_int_equal(back.puts, 0);  // nothing was handed over before everything was found
    }
    host_model_free(&model);
    host_model_free(&back);
}

static void test_harmless_differences(void **state) {
    FileTest *t = *state;
    expect_import(t, "gpt2", (Change){.strip_prefix = true}, NULL);
    expect_import(t, "gpt2", (Change){.reverse = true}, NULL);
    expect_import(t, "gpt2", (Change){.add = "h.0.attn.bias"}, NULL);
    expect_import(t, "gpt2", (Change){.add = "transformer.h.1.attn.masked_bias"}, NULL);
    expect_import(t, "gpt2", (Change){.add = "lm_head.weight", .like = "transformer.wte.weight"}, NULL);
    expect_import(t, "llama", (Change){.strip_prefix = true, .reverse = true}, NULL);
    expect_import(t, "llama", (Change){.add = "model.layers.0.self_attn.rotary_emb.inv_freq"}, NULL);
    expect_import(t, "llama tied", (Change){.add = "lm_head.weight", .like = "model.embed_tokens.weight"}, NULL);
    // A bias that the model has not is written as zeros and may just as well be absent.
    expect_import(t, "gpt2 no bias", (Change){.drop = "transformer.h.0.attn.c_attn.bias"}, NULL);
}

static void test_what_does_not_fit(void **state) {
    FileTest *t = *state;
    expect_import(t, "gpt2", (Change){.drop = "transformer.h.1.mlp.c_fc.bias"}, "'transformer.h.1.mlp.c_fc.bias' is missing");
    expect_import(t, "llama", (Change){.drop = "lm_head.weight"}, "'lm_head.weight' is missing");
    expect_import(t, "llama", (Change){.drop = "model.layers.1.mlp.up_proj.weight"}, "is missing");
    expect_import(t, "llama", (Change){.add = "model.layers.2.mlp.up_proj.weight"},
                  "'model.layers.2.mlp.up_proj.weight' has no place");
    expect_import(t, "llama", (Change){.add = "score.weight"}, "'score.weight' has no place");
    expect_import(t, "llama", (Change){.add = "norm.weight"}, "'norm.weight' has no place");  // beside model.norm.weight
    expect_import(t, "llama tied", (Change){.add = "lm_head.weight", .like = "model.layers.0.mlp.up_proj.weight"},
                  "tie_word_embeddings");
    expect_import(t, "llama", (Change){.shorten = "model.embed_tokens.weight"}, "expected shape [300, 32], found [299, 32]");
    expect_import(t, "llama", (Change){.shorten = "model.norm.weight"}, "expected shape [32], found [31]");
    expect_import(t, "llama", (Change){.as_ints = "model.norm.weight"}, "found I32");
    expect_import(t, "qwen3", (Change){.drop = "model.layers.0.self_attn.k_norm.weight"}, "k_norm.weight' is missing");
}

// A model without some bias refuses a file that has values there instead of dropping them.
static void test_unwanted_bias(void **state) {
    FileTest *t = *state;
    ModelConfig config = model_kind(model_kind_find("gpt2"));
    HostModel model = random_model(&config);
    export_dir(t, &model, DTYPE_F32);
    config.qkv_bias = false;
    HostModel back = host_model(&config);
    file_test_expect_error(t, import_dir(&back, t->dir, &t->err), "c_attn.bias' holds values");
    rewrite(t, (Change){.zero = "transformer.h.0.attn.c_attn.bias"});
    rewrite(t, (Change){.zero = "transformer.h.1.attn.c_attn.bias"});
    file_test_expect_ok(t, import_dir(&back, t->dir, &t->err));
    host_model_free(&model);
    host_model_free(&back);
}

// GPT-2's config.json cannot say that biases are missing; the files do.
static void test_gpt2_without_a_bias(void **state) {
    FileTest *t = *state;
    ModelConfig config = model_kind(model_kind_find("gpt2")), found;
    HostModel model = random_model(&config);
    export_dir(t, &model, DTYPE_F32);
    rewrite(t, (Change){.drop = "transformer.h.0.attn.c_attn.bias"});
    file_test_expect_ok(t, model_file_read_config(&found, t->dir, &t->err));
    assert_false(found.qkv_bias);
    assert_true(found.norm_bias && found.proj_bias && found.mlp_bias);
    HostModel back = host_model(&found);
    file_test_expect_error(t, import_dir(&back, t->dir, &t->err), "h.1.attn.c_attn.bias' holds values");
    rewrite(t, (Change){.drop = "transformer.h.1.attn.c_attn.bias"});
    file_test_expect_ok(t, import_dir(&back, t->dir, &t->err));
    host_model_free(&model);
    host_model_free(&back);
}

// The names follow the file, not the config at hand, which may have been changed on purpose.
static void test_import_into_a_changed_model(void **state) {
    FileTest *t = *state;
    ModelConfig config = model_kind(model_kind_find("gpt2"));
    HostModel model = random_model(&config);
    export_dir(t, &model, DTYPE_F32);
    config.logit_softcap = 30;
    assert_string_equal(hf_architecture(&config), "TokamakForCausalLM");
    HostModel back = host_model(&config);
    file_test_expect_ok(t, import_dir(&back, t->dir, &t->err));
    expect_same_values(&model, &back, DTYPE_F32);
    host_model_free(&model);
    host_model_free(&back);
}

static void test_failures_of_the_caller_and_the_disk(void **state) {
    FileTest *t = *state;
    const ModelConfig config = model_kind(model_kind_find("llama"));
    HostModel model = random_model(&config), back = host_model(&config);
    export_dir(t, &model, DTYPE_F32);
    back.puts = -1;
    file_test_expect_error(t, model_file_read(t->dir, &back.config, &back.params, put_values, &back, &t->err), "no room for wte");
    file_test_limit_file_size(20000);
    bool ok = model_file_write_hf(t->dir, &model.config, &model.params, DTYPE_F32, get_values, &model, &t->err);
    file_test_limit_file_size(0);
    file_test_expect_error(t, ok, "model.safetensors: cannot write: File too large");
    assert_int_equal(file_test_count_entries(t->dir), 2);
    file_test_expect_ok(t, import_dir(&back, t->dir, &t->err));  // the old file is whole
    host_model_free(&model);
    host_model_free(&back);

    char *absent = file_test_path(t, "absent");
    ModelConfig found;
    file_test_expect_error(t, model_file_read_config(&found, absent, &t->err), "absent: cannot open");
    free(absent);
    char *path = file_test_path(t, "config.json");
    assert_int_equal(remove(path), 0);
    free(path);
    file_test_expect_error(t, model_file_read_config(&found, t->dir, &t->err), "config.json: cannot open");
}

// ---- config.json ----

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
        {"gpt2", "n_head", "5", "does not divide into 5 heads"},
        {"gpt2", "vocab_size", "0", "vocabulary"},
        {"gpt2", "vocab_size", "1e18", "vocab"},
        {"gpt2", "tie_word_embeddings", "\"yes\"", "expected true or false"},
        {"gpt2", "quantization_config", "{\"bits\":4}", "quantized"},
        {"gpt2", "tokamak", "[]", "'tokamak'"},
        {"llama", "hidden_act", "\"gelu\"", "found 'gelu'"},
        {"llama", "rope_scaling", "{\"type\":\"linear\",\"factor\":2.0}", "found 'linear'"},
        {"llama", "rope_scaling", "{\"rope_type\":\"yarn\",\"factor\":2.0}", "found 'yarn'"},
        {"llama", "rope_scaling", "{\"rope_type\":\"llama3\",\"factor\":8}", "'original_max_position_embeddings'"},
        {"llama", "rope_scaling", "{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":1,"
         "\"original_max_position_embeddings\":64}", "RoPE scaling"},
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
        file_test_expect_error(t, read_changed(t, &config, CASES[i].kind, CASES[i].key, CASES[i].value), CASES[i].mention);
    }
    ModelConfig config;
    file_test_expect_error(t, hf_config_read(&config, "", "x/config.json", &t->err), "x/config.json: not valid JSON");
    file_test_expect_error(t, hf_config_read(&config, "[]", "x/config.json", &t->err), "JSON object");
    file_test_expect_error(t, hf_config_read(&config, "{\"a\":1,\"a\":2}", "x/config.json", &t->err), "there twice");
}

// Keys that other writers leave out, spell otherwise or add.
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
    // transformers 5: everything about the rotation in one object, which wins.
    file_test_expect_ok(t, read_changed(t, &config, "llama", "rope_parameters",
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

// ---- real models, values looked up with Python ----

static double sum_of_squares(const HostModel *model) {
    double sum = 0;
    for (int i = 0; i < model->params.count; ++i) {
        const ParamSpec *spec = &model->params.spec[i];
        for (int64_t j = 0; j < spec->elems; ++j)
            sum += (double)model->values[spec->offset + j] * (double)model->values[spec->offset + j];
    }
    return sum;
}
static HostModel read_real(FileTest *t, const char *dir) {
    if (!dir_exists(dir)) {
        print_message("skipped: %s is absent\n", dir);
        skip();
    }
    ModelConfig config;
    file_test_expect_ok(t, model_file_read_config(&config, dir, &t->err));
    HostModel model = host_model(&config);
    file_test_expect_ok(t, import_dir(&model, dir, &t->err));
    return model;
}
// Both sides add the same doubles in different orders.
#define assert_sum(model, expected) assert_true(fabs(sum_of_squares(model) / (expected) - 1) <= 1e-12)

static void test_real_stories260k(void **state) {
    HostModel model = read_real(*state, "../shared/data/models/stories260K_hf");
    assert_int_equal(model.config.F, 172);
    assert_int_equal(model.config.max_seq_len, 512);
    assert_true(model.config.tied && model.config.norm_eps == 1e-5f);
    assert_true(ours(&model, PARAM_WTE, -1, 511, 63) == (float)-0.424032598733902);
    assert_true(ours(&model, PARAM_QKV_W, 0, 3, 5) == (float)0.04290907457470894);        // q[3, 5]
    assert_true(ours(&model, PARAM_QKV_W, 4, 64 + 31, 63) == (float)-0.2651301622390747);  // k[31, 63]
    assert_true(ours(&model, PARAM_QKV_W, 2, 96, 1) == (float)0.02586946077644825);        // v[0, 1]
    assert_true(ours(&model, PARAM_FC_W, 3, 171, 2) == (float)0.030650679022073746);       // gate[171, 2]
    assert_true(ours(&model, PARAM_FC_W, 3, 172, 0) == (float)0.14707590639591217);        // up[0, 0]
    assert_true(ours(&model, PARAM_MLP_PROJ_W, 1, 7, 100) == (float)-0.04650247097015381);
    assert_true(ours(&model, PARAM_NORM_F_W, -1, 9, 0) == (float)1.8381099700927734);
    assert_sum(&model, 8359.39259929182);
    host_model_free(&model);
}
static void test_real_llama2xs(void **state) {
    HostModel model = read_real(*state, "../shared/data/models/llama2xs_hf");
    assert_true(ours(&model, PARAM_FC_W, 4, 192 + 191, 63) == (float)-0.18292589485645294);
    assert_sum(&model, 38010.725613748815);
    host_model_free(&model);
}
static void test_real_gpt_nano_sort(void **state) {
    HostModel model = read_real(*state, "../shared/data/models/gpt_nano_sort_hf");
    assert_false(model.config.tied);
    assert_false(model.config.qkv_bias);  // its files hold none, the other biases are there
    assert_true(model.config.norm_bias && model.config.proj_bias && model.config.mlp_bias);
    assert_int_equal(model.config.Vp, 128);
    assert_true(ours(&model, PARAM_QKV_W, 1, 100, 5) == (float)0.017714494839310646);
    assert_true(ours(&model, PARAM_FC_W, 2, 191, 47) == (float)-0.009792047552764416);
    assert_true(ours(&model, PARAM_MLP_PROJ_W, 0, 3, 190) == (float)-0.004928017966449261);
    assert_true(ours(&model, PARAM_WPE, -1, 10, 47) == (float)-0.12745524942874908);
    assert_true(ours(&model, PARAM_HEAD, -1, 2, 1) == (float)-0.1889171004295349);
    assert_true(ours(&model, PARAM_NORM_F_B, -1, 0, 0) == (float)0.005723397247493267);
    assert_sum(&model, 404.36645006950704);  // the pad rows add nothing
    host_model_free(&model);
}

// ---- llm.c's model file ----

static void read_bin(FileTest *t, HostModel *back, const ModelConfig *config, const char *path) {
    ModelConfig found;
    file_test_expect_ok(t, model_file_read_config(&found, path, &t->err));
    expect_same_config(config, &found, path);
    *back = host_model(&found);
    file_test_expect_ok(t, model_file_read(path, &back->config, &back->params, put_values, back, &t->err));
    assert_int_equal(back->puts, back->params.count);
}

static void test_llmc_round_trip(void **state) {
    FileTest *t = *state;
    const ModelConfig config = model_kind(model_kind_find("gpt2"));
    HostModel model = random_model(&config);
    char *path = file_test_path(t, "model.bin");
    for (int bf16 = 0; bf16 < 2; ++bf16) {
        DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
        file_test_expect_ok(t, model_file_write_llmc(path, &config, &model.params, dtype, get_values, &model, &t->err));
        HostModel back;
        read_bin(t, &back, &config, path);
        expect_same_values(&model, &back, dtype);
        host_model_free(&back);
    }
    free(path);
    host_model_free(&model);
}

// The header and the order, written down independently of the writer.
static void test_llmc_layout(void **state) {
    FileTest *t = *state;
    const ModelConfig config = model_kind(model_kind_find("gpt2"));
    HostModel model = random_model(&config);
    char *path = file_test_path(t, "model.bin"), *bytes;
    size_t size;
    file_test_expect_ok(t, model_file_write_llmc(path, &config, &model.params, DTYPE_F32, get_values, &model, &t->err));
    file_test_expect_ok(t, file_read_all(path, 1 << 24, &bytes, &size, &t->err));
    int32_t header[256];
    memcpy(header, bytes, sizeof header);
    const int32_t expected[8] = {20240326, 3, (int32_t)config.max_seq_len, (int32_t)config.V, (int32_t)config.L,
                                 (int32_t)config.NH, (int32_t)config.C, (int32_t)config.Vp};
    assert_memory_equal(header, expected, sizeof expected);
    for (int i = 8; i < 256; ++i) assert_int_equal(header[i], 0);
    static const ParamRole ORDER[] = {PARAM_WTE, PARAM_WPE, PARAM_NORM1_W, PARAM_NORM1_B, PARAM_QKV_W, PARAM_QKV_B,
                                      PARAM_ATTN_PROJ_W, PARAM_ATTN_PROJ_B, PARAM_NORM2_W, PARAM_NORM2_B, PARAM_FC_W,
                                      PARAM_FC_B, PARAM_MLP_PROJ_W, PARAM_MLP_PROJ_B, PARAM_NORM_F_W, PARAM_NORM_F_B};
    const char *at = bytes + 1024;
    for (int i = 0; i < 16; ++i)
        for (int layer = i < 2 || i > 13 ? -1 : 0; layer < (i < 2 || i > 13 ? 0 : (int)config.L); ++layer) {
            const ParamSpec *spec = params_find(&model.params, ORDER[i], layer);
            assert_memory_equal(at, model.values + spec->offset, to_size(spec->elems) * 4);
            at += spec->elems * 4;
        }
    assert_int_equal(at - bytes, size);
    free(bytes);
    free(path);
    host_model_free(&model);
}

static void test_llmc_rejections(void **state) {
    FileTest *t = *state;
    const ModelConfig config = model_kind(model_kind_find("gpt2"));
    HostModel model = random_model(&config), back = host_model(&config);
    char *path = file_test_path(t, "model.bin"), *bytes;
    size_t size;
    file_test_expect_ok(t, model_file_write_llmc(path, &config, &model.params, DTYPE_F32, get_values, &model, &t->err));
    file_test_expect_ok(t, file_read_all(path, 1 << 24, &bytes, &size, &t->err));
    ModelConfig found;
    file_test_write(t, "model.bin", bytes, 1000);
    file_test_expect_error(t, model_file_read_config(&found, path, &t->err), "header of 1024 bytes, found 1000");
    file_test_write(t, "model.bin", bytes, size - 1);
    file_test_expect_error(t, model_file_read(path, &config, &back.params, put_values, &back, &t->err), "expected");
    static const struct {
        int at, value;
        const char *mention;
    } CASES[] = {{0, 20240520, "model magic 20240326, found 20240520"}, {1, 4, "version 3 (fp32) or 5 (bf16), found 4"},
                 {2, 0, "max_seq_len"}, {3, -1, "vocabulary"}, {4, 0, "layers"}, {5, 7, "does not divide into 7"},
                 {6, -768, "width"}, {7, 301, "found 301"}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        int32_t kept;
        memcpy(&kept, bytes + 4 * CASES[i].at, 4);
        memcpy(bytes + 4 * CASES[i].at, &CASES[i].value, 4);
        file_test_write(t, "model.bin", bytes, size);
        file_test_expect_error(t, model_file_read_config(&found, path, &t->err), CASES[i].mention);
        memcpy(bytes + 4 * CASES[i].at, &kept, 4);
    }
    const int32_t three_layers = 3;
    memcpy(bytes + 16, &three_layers, 4);
    file_test_write(t, "model.bin", bytes, size);
    file_test_expect_error(t, model_file_read(path, &config, &back.params, put_values, &back, &t->err), "layers 2");
    free(bytes);
    host_model_free(&model);
    host_model_free(&back);

    static const char *OTHERS[] = {"llama", "gpt2 untied", "gpt2 no bias", "relu2"};
    for (int i = 0; i < 4; ++i) {
        const ModelConfig other = model_kind(model_kind_find(OTHERS[i]));
        model = random_model(&other);
        file_test_expect_error(t, model_file_write_llmc(path, &other, &model.params, DTYPE_F32, get_values, &model, &t->err),
                               "holds GPT-2 only");
        host_model_free(&model);
    }
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FILE_TEST(test_config_round_trip), FILE_TEST(test_weights_round_trip), FILE_TEST(test_gpt2_layout),
        FILE_TEST(test_llama_layout), FILE_TEST(test_harmless_differences), FILE_TEST(test_what_does_not_fit),
        FILE_TEST(test_unwanted_bias), FILE_TEST(test_gpt2_without_a_bias), FILE_TEST(test_import_into_a_changed_model),
        FILE_TEST(test_failures_of_the_caller_and_the_disk), FILE_TEST(test_config_rejections),
        FILE_TEST(test_config_variants), FILE_TEST(test_real_stories260k), FILE_TEST(test_real_llama2xs),
        FILE_TEST(test_real_gpt_nano_sort), FILE_TEST(test_llmc_round_trip), FILE_TEST(test_llmc_layout),
        FILE_TEST(test_llmc_rejections),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
