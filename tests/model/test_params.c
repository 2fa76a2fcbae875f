// test_params.c: the table's layout, flags and counts for every kind of architecture, and the initial values.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "llmc/model/model_impl.h"

static const char *KINDS[] = {"gpt2:124M", "gpt3:760M", "llama:d4", "llama3:1B", "qwen2:0.5B", "qwen3:0.6B",
                              "stories:260K"};
#define KIND_COUNT (sizeof KINDS / sizeof KINDS[0])

static ModelConfig preset(const char *name) {
    ModelConfig config;
    assert_true(model_config_preset(&config, name, NULL));
    if (config.V == 0) config.V = 50257;
    assert_true(model_config_finish(&config, NULL));
    return config;
}

static void test_layout_and_counts(void **state) {
    (void)state;
    for (size_t k = 0; k < KIND_COUNT; ++k) {
        ModelConfig config = preset(KINDS[k]);
        ParamTable table;
        params_build(&table, &config);
        int64_t real = 0, end = 0;
        for (int i = 0; i < table.count; ++i) {
            const ParamSpec *spec = &table.spec[i];
            assert_int_equal(spec->offset % PARAM_ALIGN_ELEMS, 0);
            assert_true(spec->offset >= end && spec->offset < end + PARAM_ALIGN_ELEMS);
            end = spec->offset + spec->elems;
            assert_int_equal(spec->elems, spec->dim[0] * (spec->ndim == 2 ? spec->dim[1] : 1));
            real += spec->real_rows * spec->dim[1];
            int64_t rows = 0;
            for (int p = 0; p < spec->part_count; ++p) rows += spec->part_rows[p];
            assert_int_equal(rows, spec->dim[0]);
            assert_int_equal(spec->decay, spec->ndim == 2);
            assert_int_equal(spec->hidden_matrix, spec->ndim == 2 && spec->layer >= 0);
            assert_ptr_equal(params_find(&table, spec->role, spec->layer), spec);  // role and layer are unique
            for (int j = 0; j < i; ++j) assert_string_not_equal(table.spec[j].name, spec->name);
        }
        assert_int_equal(real, params_count(&config));
        assert_true(table.total_elems >= end && table.total_elems < end + PARAM_ALIGN_ELEMS);
        params_free(&table);
    }
}

// Totals as transformers' num_parameters() gives them for the published configurations (positions: see the preset).
static void test_published_counts(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int64_t params;
    } CASES[] = {
        {"gpt2:124M", 124439808},    {"gpt2:355M", 354823168},   {"gpt2:350M", 354823168},
        {"gpt2:774M", 774030080},    {"gpt2:1558M", 1557611200}, {"gpt2:1.5B", 1557611200},
        {"llama3:1B", 1235814400},   {"llama3:3B", 3212749824},  {"llama3:8B", 8030261248},
        {"llama3:70B", 70553706496}, {"qwen2:0.5B", 494032768},  {"qwen2:1.5B", 1543714304},
        {"qwen2:3B", 3085938688},    {"qwen2:7B", 7615616512},   {"qwen3:0.6B", 596049920},
        {"qwen3:1.7B", 1720574976},  {"qwen3:4B", 4022468096},   {"qwen3:8B", 8190735360},
        {"stories:260K", 260032},    {"stories:15M", 15191712},  {"gpt2:d12", 124439808},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        ModelConfig config = preset(CASES[i].name);
        if (params_count(&config) != CASES[i].params)
            fail_msg("%s: expected %lld parameters, found %lld", CASES[i].name, (long long)CASES[i].params,
                     (long long)params_count(&config));
    }
}

// Every row has the offset of its tensor, and no two rows have the same.
static void test_rows_and_fields(void **state) {
    (void)state;
    for (int i = 0; i < PARAM_ROLE_COUNT; ++i) {
        const ParamRow *row = &PARAM_ROWS[i];
        const size_t owner = row->place == PLACE_BLOCK ? sizeof(Block) : sizeof(ModelTensors);
        assert_non_null(row->name);
        assert_non_null(row->gpt2);
        assert_non_null(row->llama[0]);
        assert_true(row->value != row->grad && row->value < owner && row->grad < owner && row->fp8 < owner);
        assert_int_equal(row->decay, row->cols != DIM_NONE);
        assert_int_equal(row->fp8 > 0, row->place == PLACE_BLOCK && row->cols != DIM_NONE);
        // A bias follows its weight and has the same names.
        if (row->bias) assert_string_equal(row->gpt2, row[-1].gpt2);
        for (int j = 0; j < i; ++j) {
            const ParamRow *other = &PARAM_ROWS[j];
            if ((row->place == PLACE_BLOCK) != (other->place == PLACE_BLOCK)) continue;
            const size_t fields[] = {other->value, other->grad};
            for (int k = 0; k < 2; ++k) assert_true(row->value != fields[k] && row->grad != fields[k]);
        }
    }
    assert_int_equal((size_t)ACT_ROW_COUNT * sizeof(Tensor), sizeof(BlockActs));
    for (int i = 0; i < ACT_ROW_COUNT; ++i)
        for (int j = 0; j < i; ++j)
            if (ACT_ROWS[i].field == ACT_ROWS[j].field) fail_msg("%s and %s", ACT_ROWS[i].name, ACT_ROWS[j].name);
}

static void expect_names(const char *kind, const char *const *names, int count) {
    ModelConfig config = preset(kind);
    config.L = 1;
    ParamTable table;
    params_build(&table, &config);
    assert_int_equal(table.count, count);
    for (int i = 0; i < count; ++i) assert_string_equal(table.spec[i].name, names[i]);
    params_free(&table);
}
static void test_names_and_order(void **state) {
    (void)state;
    static const char *GPT2[] = {
        "wte", "wpe", "block.0.norm1.weight", "block.0.norm1.bias", "block.0.attn.qkv.weight",
        "block.0.attn.qkv.bias", "block.0.attn.proj.weight", "block.0.attn.proj.bias", "block.0.norm2.weight",
        "block.0.norm2.bias", "block.0.mlp.fc.weight", "block.0.mlp.fc.bias", "block.0.mlp.proj.weight",
        "block.0.mlp.proj.bias", "norm_f.weight", "norm_f.bias"};
    static const char *QWEN3_8B[] = {
        "wte", "block.0.norm1.weight", "block.0.attn.qkv.weight", "block.0.attn.q_norm.weight",
        "block.0.attn.k_norm.weight", "block.0.attn.proj.weight", "block.0.norm2.weight", "block.0.mlp.fc.weight",
        "block.0.mlp.proj.weight", "norm_f.weight", "head.weight"};
    expect_names("gpt2:124M", GPT2, 16);
    expect_names("qwen3:8B", QWEN3_8B, 11);
}

static void test_shapes_and_parts(void **state) {
    (void)state;
    ModelConfig config = preset("qwen3:0.6B");  // 16 heads of 128 over a width of 1024: NH*HS != C
    ParamTable table;
    params_build(&table, &config);
    const ParamSpec *qkv = params_find(&table, PARAM_QKV_W, 3);
    assert_string_equal(qkv->name, "block.3.attn.qkv.weight");
    assert_int_equal(qkv->dim[0], 4096);
    assert_int_equal(qkv->dim[1], 1024);
    assert_int_equal(qkv->part_count, 3);
    assert_int_equal(qkv->part_rows[0], 2048);
    assert_int_equal(qkv->part_rows[1], 1024);
    assert_int_equal(qkv->part_rows[2], 1024);
    const ParamSpec *proj = params_find(&table, PARAM_ATTN_PROJ_W, 0);
    assert_int_equal(proj->dim[0], 1024);
    assert_int_equal(proj->dim[1], 2048);
    const ParamSpec *fc = params_find(&table, PARAM_FC_W, 27);
    assert_int_equal(fc->part_count, 2);
    assert_int_equal(fc->dim[0], 6144);
    assert_null(params_find(&table, PARAM_HEAD, -1));
    assert_null(params_find(&table, PARAM_FC_W, 28));

    Tensor planned = params_view(fc, NULL, DTYPE_F32);
    assert_null(planned.data);
    assert_int_equal(planned.ndim, 2);
    char base[4];
    Tensor view = params_view(fc, base, DTYPE_BF16);
    assert_true((uintptr_t)view.data == (uintptr_t)base + (uintptr_t)fc->offset * 2);
    params_free(&table);
}

static double moment(const float *x, int64_t n, int power) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += pow((double)x[i], power);
    return sum / (double)n;
}
static void test_initial_values(void **state) {
    (void)state;
    ModelConfig config = preset("llama:d2");
    config.norm = NORM_LAYER;
    config.norm_bias = config.mlp_bias = true;
    ParamTable table;
    params_build(&table, &config);
    for (int i = 0; i < table.count; ++i) {
        const ParamSpec *spec = &table.spec[i];
        float *x = xmalloc(to_size(spec->elems) * sizeof *x);
        memset(x, 0xff, to_size(spec->elems) * sizeof *x);
        params_init_values(spec, 42, x);
        int64_t real = spec->real_rows * spec->dim[1];
        if (spec->ndim == 1) {
            float expected = strstr(spec->name, "bias") != NULL ? 0.0f : 1.0f;
            for (int64_t j = 0; j < spec->elems; ++j) assert_true(x[j] == expected);
        } else {
            bool residual = spec->role == PARAM_ATTN_PROJ_W || spec->role == PARAM_MLP_PROJ_W;
            double std = residual ? 0.02 / sqrt(4) : 0.02, n = (double)real;
            // Five standard errors of a sample's mean, second and fourth moment.
            assert_true(fabs(moment(x, real, 1)) <= 5 * std / sqrt(n));
            assert_true(fabs(moment(x, real, 2) / (std * std) - 1) <= 5 * sqrt(2 / n));
            assert_true(fabs(moment(x, real, 4) / pow(std, 4) - 3) <= 5 * sqrt(96 / n));
            for (int64_t j = real; j < spec->elems; ++j) assert_true(x[j] == 0);
        }
        free(x);
    }
    params_free(&table);
}

// f(seed, name, index): independent of the other tensors in the table and of the tensor's length.
static void test_values_depend_on_seed_and_name_only(void **state) {
    (void)state;
    ParamSpec a = {.name = "wte", .ndim = 2, .dim = {3, 5}, .real_rows = 3, .elems = 15, .init_std = 1};
    ParamSpec b = a, other = a;
    b.dim[0] = b.real_rows = 7;
    b.elems = 35;
    b.offset = 1280;
    strcpy(other.name, "wpe");
    float x[15], y[35], z[15], w[15];
    params_init_values(&a, 1, x);
    params_init_values(&b, 1, y);
    params_init_values(&other, 1, z);
    params_init_values(&a, 2, w);
    for (int i = 0; i < 15; ++i) {
        assert_true(x[i] == y[i]);
        assert_true(x[i] != z[i] && x[i] != w[i]);
        for (int j = 0; j < i; ++j) assert_true(x[i] != x[j]);
    }
}

static void test_describe(void **state) {
    (void)state;
    char text[160];
    ModelConfig config = preset("gpt2:124M");
    params_describe(&config, text, sizeof text);
    assert_string_equal(text, "GPT-2-like, 12 layers, 768 wide, 12 heads, vocabulary 50257: 124.4M parameters");
    config = preset("qwen3:0.6B");
    params_describe(&config, text, sizeof text);
    assert_string_equal(text, "Qwen3-like, 28 layers, 1024 wide, 16 heads (8 key/value), vocabulary 151936: "
                              "596.0M parameters");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_counts),
        cmocka_unit_test(test_rows_and_fields),
        cmocka_unit_test(test_describe),
        cmocka_unit_test(test_layout_and_counts), cmocka_unit_test(test_names_and_order),
        cmocka_unit_test(test_shapes_and_parts),  cmocka_unit_test(test_initial_values),
        cmocka_unit_test(test_values_depend_on_seed_and_name_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
