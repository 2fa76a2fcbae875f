// params.c: builds the parameter table in the order in which a token meets the tensors, and their initial values; see
// params.h. Knows the architecture, not the device.
#include "llmc/model/params.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "llmc/base/rng.h"

#define MAX_ROWS_PER_BLOCK 14
#define MAX_ROWS_OUTSIDE 5

static ParamSpec *add_row(ParamTable *table, ParamRole role, int layer, const char *name, int64_t rows,
                          int64_t cols) {
    ParamSpec *spec = &table->spec[table->count++];
    *spec = (ParamSpec){.role = role, .layer = layer, .ndim = cols > 0 ? 2 : 1, .dim = {rows, cols > 0 ? cols : 1}};
    if (layer < 0) snprintf(spec->name, sizeof spec->name, "%s", name);
    else snprintf(spec->name, sizeof spec->name, "block.%d.%s", layer, name);
    spec->real_rows = rows;
    spec->part_count = 1;
    spec->part_rows[0] = rows;
    spec->elems = spec->dim[0] * spec->dim[1];
    spec->offset = table->total_elems;
    table->total_elems = round_up(spec->offset + spec->elems, PARAM_ALIGN_ELEMS);
    return spec;
}
static ParamSpec *add_vector(ParamTable *table, ParamRole role, int layer, const char *name, int64_t elems,
                             ParamInit init) {
    ParamSpec *spec = add_row(table, role, layer, name, elems, 0);
    spec->init = init;
    return spec;
}
static ParamSpec *add_matrix(ParamTable *table, ParamRole role, int layer, const char *name, int64_t rows,
                             int64_t cols, float init_std) {
    ParamSpec *spec = add_row(table, role, layer, name, rows, cols);
    spec->init = INIT_NORMAL;
    spec->init_std = init_std;
    spec->decay = true;
    spec->hidden_matrix = layer >= 0;
    return spec;
}
static void set_parts(ParamSpec *spec, int count, const int64_t *rows) {
    spec->part_count = count;
    for (int i = 0; i < count; ++i) spec->part_rows[i] = rows[i];
}

static void add_attention(ParamTable *table, const ModelConfig *config, int layer, float residual_std) {
    int64_t C = config->C, q_rows = config->NH * config->HS, kv_rows = config->NKV * config->HS;
    const int64_t parts[] = {q_rows, kv_rows, kv_rows};
    int64_t qkv = model_config_qkv_width(config);
    set_parts(add_matrix(table, PARAM_QKV_W, layer, "attn.qkv.weight", qkv, C, config->init_std), 3, parts);
    if (config->qkv_bias)
        set_parts(add_vector(table, PARAM_QKV_B, layer, "attn.qkv.bias", qkv, INIT_ZEROS), 3, parts);
    if (config->qk_norm) {
        add_vector(table, PARAM_Q_NORM_W, layer, "attn.q_norm.weight", config->HS, INIT_ONES);
        add_vector(table, PARAM_K_NORM_W, layer, "attn.k_norm.weight", config->HS, INIT_ONES);
    }
    add_matrix(table, PARAM_ATTN_PROJ_W, layer, "attn.proj.weight", C, q_rows, residual_std);
    if (config->proj_bias) add_vector(table, PARAM_ATTN_PROJ_B, layer, "attn.proj.bias", C, INIT_ZEROS);
}

static void add_feed_forward(ParamTable *table, const ModelConfig *config, int layer, float residual_std) {
    int64_t C = config->C, F = config->F;
    int part_count = config->activation == ACT_SWIGLU ? 2 : 1;
    const int64_t parts[] = {F, F};
    ParamSpec *fc = add_matrix(table, PARAM_FC_W, layer, "mlp.fc.weight", part_count * F, C, config->init_std);
    set_parts(fc, part_count, parts);
    if (config->mlp_bias)
        set_parts(add_vector(table, PARAM_FC_B, layer, "mlp.fc.bias", part_count * F, INIT_ZEROS), part_count, parts);
    add_matrix(table, PARAM_MLP_PROJ_W, layer, "mlp.proj.weight", C, F, residual_std);
    if (config->mlp_bias) add_vector(table, PARAM_MLP_PROJ_B, layer, "mlp.proj.bias", C, INIT_ZEROS);
}

void params_build(ParamTable *table, const ModelConfig *config) {
    CHECK(config->Vp >= config->V && config->V > 0 && config->HS > 0 && config->F > 0,
          "model_config_finish was not called: V=%lld Vp=%lld HS=%lld F=%lld", (long long)config->V,
          (long long)config->Vp, (long long)config->HS, (long long)config->F);
    int64_t C = config->C;
    *table = (ParamTable){0};
    table->spec = xcalloc(to_size(config->L * MAX_ROWS_PER_BLOCK + MAX_ROWS_OUTSIDE), sizeof *table->spec);

    add_matrix(table, PARAM_WTE, -1, "wte", config->Vp, C, config->init_std)->real_rows = config->V;
    if (config->position == POSITION_LEARNED)
        add_matrix(table, PARAM_WPE, -1, "wpe", config->max_seq_len, C, config->init_std);
    // 2L projections write into the residual stream; this keeps its variance at init independent of depth (GPT-2).
    float residual_std = (float)(config->init_std / sqrt(2.0 * (double)config->L));
    for (int layer = 0; layer < config->L; ++layer) {
        add_vector(table, PARAM_NORM1_W, layer, "norm1.weight", C, INIT_ONES);
        if (config->norm_bias) add_vector(table, PARAM_NORM1_B, layer, "norm1.bias", C, INIT_ZEROS);
        add_attention(table, config, layer, residual_std);
        add_vector(table, PARAM_NORM2_W, layer, "norm2.weight", C, INIT_ONES);
        if (config->norm_bias) add_vector(table, PARAM_NORM2_B, layer, "norm2.bias", C, INIT_ZEROS);
        add_feed_forward(table, config, layer, residual_std);
    }
    add_vector(table, PARAM_NORM_F_W, -1, "norm_f.weight", C, INIT_ONES);
    if (config->norm_bias) add_vector(table, PARAM_NORM_F_B, -1, "norm_f.bias", C, INIT_ZEROS);
    if (!config->tied)
        add_matrix(table, PARAM_HEAD, -1, "head.weight", config->Vp, C, config->init_std)->real_rows = config->V;
}

void params_free(ParamTable *table) {
    free(table->spec);
    *table = (ParamTable){0};
}

const ParamSpec *params_find(const ParamTable *table, ParamRole role, int layer) {
    for (int i = 0; i < table->count; ++i)
        if (table->spec[i].role == role && table->spec[i].layer == layer) return &table->spec[i];
    return NULL;
}

Tensor params_view(const ParamSpec *spec, void *base, DType dtype) {
    void *data = base == NULL ? NULL : (char *)base + to_size(spec->offset) * dtype_bytes(dtype);
    return spec->ndim == 1 ? tensor_1d(data, dtype, spec->dim[0])
                           : tensor_2d(data, dtype, spec->dim[0], spec->dim[1]);
}

// Two normals of one random block (Box-Muller's pair): at 124M elements the logarithms are what a start waits for.
static void fill_normal(float *out, uint64_t tensor_seed, int64_t elems, double std) {
    const double TWO_PI = 6.283185307179586476925;
#pragma omp parallel for schedule(static) if (elems > 65536)
    for (int64_t pair = 0; pair < (elems + 1) / 2; ++pair) {
        uint32_t words[4];
        rng_block(tensor_seed, RNG_STREAM_INIT, (uint64_t)pair, words);
        double u = ((double)(((uint64_t)words[1] << 32 | words[0]) >> 11) + 0.5) * 0x1p-53;
        double v = (double)(((uint64_t)words[3] << 32 | words[2]) >> 11) * 0x1p-53;
        double radius = std * sqrt(-2 * log(u));
        out[2 * pair] = (float)(radius * cos(TWO_PI * v));
        if (2 * pair + 1 < elems) out[2 * pair + 1] = (float)(radius * sin(TWO_PI * v));
    }
}

void params_init_values(const ParamSpec *spec, uint64_t seed, float *out) {
    if (spec->init != INIT_NORMAL) {
        for (int64_t i = 0; i < spec->elems; ++i) out[i] = spec->init == INIT_ONES ? 1.0f : 0.0f;
        return;
    }
    int64_t real_elems = spec->real_rows * spec->dim[1];
    fill_normal(out, rng_u64(seed, RNG_STREAM_INIT, rng_hash(spec->name)), real_elems, (double)spec->init_std);
    memset(out + real_elems, 0, to_size(spec->elems - real_elems) * sizeof *out);
}
