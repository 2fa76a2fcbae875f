// test_model_file.c: round trips of every kind of architecture through a Hugging Face directory; Hugging Face's names
// and layouts; invalid directories; real models.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/formats/model_file.h"
#include "llmc/base/json.h"
#include "llmc/formats/safetensors.h"
#include "tests/support/file_test.h"
#include "tests/support/model_kinds.h"

// ---- directories ----

static bool import_dir(HostModel *model, const char *dir, Error *err) {
    model->puts = 0;
    return model_file_read(dir, &model->config, &model->params, host_model_put, model, err);
}
static void export_dir(FileTest *t, HostModel *model, DType dtype) {
    char *json = hf_config_write(&model->config, dtype, 1, 2);
    file_test_write(t, "config.json", json, strlen(json));
    free(json);
    file_test_expect_ok(
        t, model_file_write_hf(t->dir, &model->config, &model->params, dtype, host_model_get, model, &t->err));
}

// ---- round trips of every kind ----

static void test_weights_round_trip(void **state) {
    FileTest *t = *state;
    for (int kind = 0; kind < MODEL_KIND_COUNT; ++kind)
        for (int bf16 = 0; bf16 < 2; ++bf16) {
            print_message("  %s %s\n", MODEL_KINDS[kind].name, bf16 ? "bf16" : "fp32");
            const ModelConfig config = model_kind(kind);
            DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
            HostModel model = host_model_random(&config);
            export_dir(t, &model, dtype);
            ModelConfig found;
            file_test_expect_ok(t, model_file_read_config(&found, t->dir, &t->err));
            expect_same_config(&config, &found, MODEL_KINDS[kind].name);
            HostModel back = host_model_empty(&found);
            file_test_expect_ok(t, import_dir(&back, t->dir, &t->err));
            assert_int_equal(back.puts, back.params.count);
            host_model_expect_same(&model, &back, dtype);
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
static void test_gpt2_layout(void **state) {
    FileTest *t = *state;
    const ModelConfig config = model_kind(model_kind_find("gpt2"));
    HostModel model = host_model_random(&config);
    export_dir(t, &model, DTYPE_F32);
    SafeTensors *file;
    file_test_expect_ok(t, safetensors_open(&file, t->dir, &t->err));
    char *path = file_test_path(t, "model.safetensors");
    file_test_expect_metadata(path, "format", "pt");
    free(path);
    assert_int_equal(safetensors_count(file), 2 + 12 * config.L + 2);
    assert_int_equal(safetensors_find(file, "transformer.wte.weight")->dim[0], config.V);
    int64_t C = config.C;
    assert_true(element(file, "transformer.wte.weight", config.V - 1, 2) ==
                host_model_at(&model, PARAM_WTE, -1, config.V - 1, 2));
    assert_true(element(file, "transformer.wpe.weight", 5, 7) == host_model_at(&model, PARAM_WPE, -1, 5, 7));
    // Conv1D: (in, out), so (out, in) is transposed; q, k and v are columns of one matrix.
    assert_true(element(file, "transformer.h.1.attn.c_attn.weight", 3, 2 * C + 1) ==
                host_model_at(&model, PARAM_QKV_W, 1, 2 * C + 1, 3));
    assert_true(element(file, "transformer.h.1.attn.c_attn.bias", C + 4, 0) ==
                host_model_at(&model, PARAM_QKV_B, 1, C + 4, 0));
    assert_true(element(file, "transformer.h.0.mlp.c_fc.weight", 1, 4 * C - 1) ==
                host_model_at(&model, PARAM_FC_W, 0, 4 * C - 1, 1));
    assert_true(element(file, "transformer.h.0.mlp.c_proj.weight", 4 * C - 1, 1) ==
                host_model_at(&model, PARAM_MLP_PROJ_W, 0, 1, 4 * C - 1));
    assert_true(element(file, "transformer.h.1.ln_2.bias", 9, 0) == host_model_at(&model, PARAM_NORM2_B, 1, 9, 0));
    assert_true(element(file, "transformer.ln_f.weight", 9, 0) == host_model_at(&model, PARAM_NORM_F_W, -1, 9, 0));
    assert_null(safetensors_find(file, "lm_head.weight"));
    safetensors_close(file);
    host_model_free(&model);
}

static void test_llama_layout(void **state) {
    FileTest *t = *state;
    const ModelConfig config = model_kind(model_kind_find("qwen3"));
    HostModel model = host_model_random(&config);
    export_dir(t, &model, DTYPE_F32);
    SafeTensors *file;
    file_test_expect_ok(t, safetensors_open(&file, t->dir, &t->err));
    int64_t q_rows = config.NH * config.HS, kv_rows = config.NKV * config.HS;
    assert_int_equal(safetensors_count(file), 1 + 11 * config.L + 1 + (config.tied ? 0 : 1));
    assert_int_equal(safetensors_find(file, "model.layers.1.self_attn.q_proj.weight")->dim[0], q_rows);
    assert_true(element(file, "model.embed_tokens.weight", 1, 2) == host_model_at(&model, PARAM_WTE, -1, 1, 2));
    assert_true(element(file, "model.layers.1.self_attn.q_proj.weight", q_rows - 1, 3) ==
                host_model_at(&model, PARAM_QKV_W, 1, q_rows - 1, 3));
    assert_true(element(file, "model.layers.1.self_attn.k_proj.weight", 2, 3) ==
                host_model_at(&model, PARAM_QKV_W, 1, q_rows + 2, 3));
    assert_true(element(file, "model.layers.1.self_attn.v_proj.weight", 2, 3) ==
                host_model_at(&model, PARAM_QKV_W, 1, q_rows + kv_rows + 2, 3));
    assert_true(element(file, "model.layers.0.self_attn.k_norm.weight", 2, 0) ==
                host_model_at(&model, PARAM_K_NORM_W, 0, 2, 0));
    assert_true(element(file, "model.layers.0.self_attn.o_proj.weight", 2, q_rows - 1) ==
                host_model_at(&model, PARAM_ATTN_PROJ_W, 0, 2, q_rows - 1));
    assert_true(element(file, "model.layers.0.mlp.gate_proj.weight", 2, 1) ==
                host_model_at(&model, PARAM_FC_W, 0, 2, 1));
    assert_true(element(file, "model.layers.0.mlp.up_proj.weight", 2, 1) ==
                host_model_at(&model, PARAM_FC_W, 0, config.F + 2, 1));
    assert_true(element(file, "model.layers.0.post_attention_layernorm.weight", 4, 0) ==
                host_model_at(&model, PARAM_NORM2_W, 0, 4, 0));
    assert_true(element(file, "model.norm.weight", 4, 0) == host_model_at(&model, PARAM_NORM_F_W, -1, 4, 0));
    assert_true(element(file, "lm_head.weight", 4, 3) == host_model_at(&model, PARAM_HEAD, -1, 4, 3));
    safetensors_close(file);
    host_model_free(&model);
}

// ---- the same directory, changed ----

// The changes that rewrite() makes to the tensors of model.safetensors.
typedef struct {
    const char *drop;       // omit this tensor
    const char *add;        // add a tensor of this name with the shape and values of `like`
    const char *like;       // NULL: one element
    const char *zero;       // fill this one with zeros
    const char *shorten;    // remove the last row of this one
    const char *as_ints;    // give this one dtype I32
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
        SafeTensorSpec spec = {
            change.strip_prefix ? stripped(tensor->name) : tensor->name, DTYPE_F32, tensor->ndim, {0}};
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
    char *path = file_test_path(t, "model.safetensors");  // replaced, not overwritten: the mapping stays valid
    file_test_expect_ok(t, safetensors_write(path, specs, count, NULL, fetch_source, &sources, &t->err));
    free(path);
    safetensors_close(file);
}

static void expect_import(FileTest *t, const char *kind, Change change, const char *mention) {
    const ModelConfig config = model_kind(model_kind_find(kind));
    HostModel model = host_model_random(&config), back = host_model_empty(&config);
    export_dir(t, &model, DTYPE_F32);
    rewrite(t, change);
    bool ok = import_dir(&back, t->dir, &t->err);
    if (mention == NULL) {
        file_test_expect_ok(t, ok);
        host_model_expect_same(&model, &back, DTYPE_F32);
    } else {
        file_test_expect_error(t, ok, mention);
        assert_int_equal(back.puts, 0);  // no value was passed on before all tensors were found
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
    // A bias that the model lacks is written as zeros, and may be absent when read.
    expect_import(t, "gpt2 no bias", (Change){.drop = "transformer.h.0.attn.c_attn.bias"}, NULL);
}

// The same weights in two files with an index.
static void test_shards(void **state) {
    FileTest *t = *state;
    const ModelConfig config = model_kind(model_kind_find("qwen2"));
    HostModel model = host_model_random(&config), back = host_model_empty(&config);
    export_dir(t, &model, DTYPE_F32);
    SafeTensors *file;
    file_test_expect_ok(t, safetensors_open(&file, t->dir, &t->err));
    SafeTensorSpec specs[256];
    Sources sources;
    int count = collect(specs, &sources, file, (Change){0}), half = count / 2;
    cJSON *index = cJSON_CreateObject(), *weight_map = cJSON_AddObjectToObject(index, "weight_map");
    for (int shard = 0; shard < 2; ++shard) {
        int first = shard * half, size = shard == 0 ? half : count - half;
        char name[32];
        snprintf(name, sizeof name, "model-%d.safetensors", shard);
        for (int i = first; i < first + size; ++i) cJSON_AddStringToObject(weight_map, specs[i].name, name);
        Sources part;
        memcpy(part.data, sources.data + first, (size_t)size * sizeof part.data[0]);
        char *path = file_test_path(t, name);
        file_test_expect_ok(t, safetensors_write(path, specs + first, size, NULL, fetch_source, &part, &t->err));
        free(path);
    }
    safetensors_close(file);
    char *path = file_test_path(t, "model.safetensors"), *text = cJSON_PrintUnformatted(index);
    assert_int_equal(remove(path), 0);
    file_test_write(t, "model.safetensors.index.json", text, strlen(text));
    file_test_expect_ok(t, import_dir(&back, t->dir, &t->err));
    host_model_expect_same(&model, &back, DTYPE_F32);
    free(path);
    cJSON_free(text);
    cJSON_Delete(index);
    host_model_free(&model);
    host_model_free(&back);
}

static void test_what_does_not_fit(void **state) {
    FileTest *t = *state;
    expect_import(t, "gpt2", (Change){.drop = "transformer.h.1.mlp.c_fc.bias"},
                  "'transformer.h.1.mlp.c_fc.bias' is missing");
    expect_import(t, "llama", (Change){.drop = "lm_head.weight"}, "'lm_head.weight' is missing");
    expect_import(t, "llama", (Change){.drop = "model.layers.1.mlp.up_proj.weight"}, "is missing");
    expect_import(t, "llama", (Change){.add = "model.layers.2.mlp.up_proj.weight"},
                  "'model.layers.2.mlp.up_proj.weight' does not belong");
    expect_import(t, "llama", (Change){.add = "score.weight"}, "'score.weight' does not belong");
    expect_import(t, "llama", (Change){.add = "norm.weight"},
                  "'norm.weight' does not belong");  // in addition to model.norm.weight
    expect_import(t, "llama tied", (Change){.add = "lm_head.weight", .like = "model.layers.0.mlp.up_proj.weight"},
                  "tie_word_embeddings");
    expect_import(t, "llama", (Change){.shorten = "model.embed_tokens.weight"},
                  "expected shape [300, 32], found [299, 32]");
    expect_import(t, "llama", (Change){.shorten = "model.norm.weight"}, "expected shape [32], found [31]");
    expect_import(t, "llama", (Change){.as_ints = "model.norm.weight"}, "found I32");
    expect_import(t, "qwen3", (Change){.drop = "model.layers.0.self_attn.k_norm.weight"},
                  "k_norm.weight' is missing");
}

// For a model without some bias, a file with nonzero values there is an error; they are not ignored.
static void test_unwanted_bias(void **state) {
    FileTest *t = *state;
    ModelConfig config = model_kind(model_kind_find("gpt2"));
    HostModel model = host_model_random(&config);
    export_dir(t, &model, DTYPE_F32);
    config.qkv_bias = false;
    HostModel back = host_model_empty(&config);
    file_test_expect_error(t, import_dir(&back, t->dir, &t->err), "c_attn.bias': expected zeros");
    rewrite(t, (Change){.zero = "transformer.h.0.attn.c_attn.bias"});
    rewrite(t, (Change){.zero = "transformer.h.1.attn.c_attn.bias"});
    file_test_expect_ok(t, import_dir(&back, t->dir, &t->err));
    host_model_free(&model);
    host_model_free(&back);
}

// GPT-2's config.json cannot state that biases are missing; the tensors show it.
static void test_gpt2_without_a_bias(void **state) {
    FileTest *t = *state;
    ModelConfig config = model_kind(model_kind_find("gpt2")), found;
    HostModel model = host_model_random(&config);
    export_dir(t, &model, DTYPE_F32);
    rewrite(t, (Change){.drop = "transformer.h.0.attn.c_attn.bias"});
    file_test_expect_ok(t, model_file_read_config(&found, t->dir, &t->err));
    assert_false(found.qkv_bias);
    assert_true(found.norm_bias && found.proj_bias && found.mlp_bias);
    HostModel back = host_model_empty(&found);
    file_test_expect_error(t, import_dir(&back, t->dir, &t->err), "h.1.attn.c_attn.bias': expected zeros");
    rewrite(t, (Change){.drop = "transformer.h.1.attn.c_attn.bias"});
    file_test_expect_ok(t, import_dir(&back, t->dir, &t->err));
    host_model_free(&model);
    host_model_free(&back);
}

// The names follow the file, not the run's config, which may differ.
static void test_import_into_a_changed_model(void **state) {
    FileTest *t = *state;
    ModelConfig config = model_kind(model_kind_find("gpt2"));
    HostModel model = host_model_random(&config);
    export_dir(t, &model, DTYPE_F32);
    config.logit_softcap = 30;
    assert_string_equal(hf_architecture(&config), "TokamakForCausalLM");
    HostModel back = host_model_empty(&config);
    file_test_expect_ok(t, import_dir(&back, t->dir, &t->err));
    host_model_expect_same(&model, &back, DTYPE_F32);
    host_model_free(&model);
    host_model_free(&back);
}

static void test_failures_of_the_caller_and_the_disk(void **state) {
    FileTest *t = *state;
    const ModelConfig config = model_kind(model_kind_find("llama"));
    HostModel model = host_model_random(&config), back = host_model_empty(&config);
    export_dir(t, &model, DTYPE_F32);
    back.puts = -1;
    file_test_expect_error(t, model_file_read(t->dir, &back.config, &back.params, host_model_put, &back, &t->err),
                           "no room for wte");
    file_test_limit_file_size(20000);
    bool ok = model_file_write_hf(t->dir, &model.config, &model.params, DTYPE_F32, host_model_get, &model, &t->err);
    file_test_limit_file_size(0);
    file_test_expect_error(t, ok, "model.safetensors: cannot write: File too large");
    assert_int_equal(file_test_count_entries(t->dir), 2);
    file_test_expect_ok(t, import_dir(&back, t->dir, &t->err));  // the old file is unchanged
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
    HostModel model = host_model_empty(&config);
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
    assert_true(host_model_at(&model, PARAM_WTE, -1, 511, 63) == (float)-0.424032598733902);
    assert_true(host_model_at(&model, PARAM_QKV_W, 0, 3, 5) == (float)0.04290907457470894);        // q[3, 5]
    assert_true(host_model_at(&model, PARAM_QKV_W, 4, 64 + 31, 63) == (float)-0.2651301622390747);  // k[31, 63]
    assert_true(host_model_at(&model, PARAM_QKV_W, 2, 96, 1) == (float)0.02586946077644825);        // v[0, 1]
    assert_true(host_model_at(&model, PARAM_FC_W, 3, 171, 2) == (float)0.030650679022073746);       // gate[171, 2]
    assert_true(host_model_at(&model, PARAM_FC_W, 3, 172, 0) == (float)0.14707590639591217);        // up[0, 0]
    assert_true(host_model_at(&model, PARAM_MLP_PROJ_W, 1, 7, 100) == (float)-0.04650247097015381);
    assert_true(host_model_at(&model, PARAM_NORM_F_W, -1, 9, 0) == (float)1.8381099700927734);
    assert_sum(&model, 8359.39259929182);
    host_model_free(&model);
}
static void test_real_llama2xs(void **state) {
    HostModel model = read_real(*state, "../shared/data/models/llama2xs_hf");
    assert_true(host_model_at(&model, PARAM_FC_W, 4, 192 + 191, 63) == (float)-0.18292589485645294);
    assert_sum(&model, 38010.725613748815);
    host_model_free(&model);
}
static void test_real_gpt_nano_sort(void **state) {
    HostModel model = read_real(*state, "../shared/data/models/gpt_nano_sort_hf");
    assert_false(model.config.tied);
    assert_false(model.config.qkv_bias);  // its files have no such bias, but have the others
    assert_true(model.config.norm_bias && model.config.proj_bias && model.config.mlp_bias);
    assert_int_equal(model.config.Vp, 128);
    assert_true(host_model_at(&model, PARAM_QKV_W, 1, 100, 5) == (float)0.017714494839310646);
    assert_true(host_model_at(&model, PARAM_FC_W, 2, 191, 47) == (float)-0.009792047552764416);
    assert_true(host_model_at(&model, PARAM_MLP_PROJ_W, 0, 3, 190) == (float)-0.004928017966449261);
    assert_true(host_model_at(&model, PARAM_WPE, -1, 10, 47) == (float)-0.12745524942874908);
    assert_true(host_model_at(&model, PARAM_HEAD, -1, 2, 1) == (float)-0.1889171004295349);
    assert_true(host_model_at(&model, PARAM_NORM_F_B, -1, 0, 0) == (float)0.005723397247493267);
    assert_sum(&model, 404.36645006950704);  // the pad rows add nothing
    host_model_free(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FILE_TEST(test_weights_round_trip), FILE_TEST(test_gpt2_layout), FILE_TEST(test_llama_layout),
        FILE_TEST(test_harmless_differences), FILE_TEST(test_shards), FILE_TEST(test_what_does_not_fit),
        FILE_TEST(test_unwanted_bias), FILE_TEST(test_gpt2_without_a_bias),
        FILE_TEST(test_import_into_a_changed_model), FILE_TEST(test_failures_of_the_caller_and_the_disk),
        FILE_TEST(test_real_stories260k), FILE_TEST(test_real_llama2xs), FILE_TEST(test_real_gpt_nano_sort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
