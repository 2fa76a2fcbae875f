// params.c: builds the table of a model's parameters from the rows of model_table.c, computes initial values and counts;
// see params.h. Must not know: single tensors, devices.
#include "llmc/model/params.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "llmc/base/rng.h"

// parts = the sizes of the dimension's parts, whose sum it is. Returns their number.
static int model_dim_parts(const ModelConfig *config, ModelDim dim, int64_t parts[PARAM_MAX_PARTS]) {
    const int64_t Q = config->NH * config->HS, KV = config->NKV * config->HS;
    switch (dim) {
        case DIM_NONE: parts[0] = 1; return 1;
        case DIM_V: parts[0] = config->Vp; return 1;
        case DIM_P: parts[0] = config->max_seq_len; return 1;
        case DIM_C: parts[0] = config->C; return 1;
        case DIM_QKV: parts[0] = Q; parts[1] = parts[2] = KV; return 3;
        case DIM_Q: parts[0] = Q; return 1;
        case DIM_HS: parts[0] = config->HS; return 1;
        case DIM_FC: parts[0] = parts[1] = config->F; return activation_is_gated(config->activation) ? 2 : 1;
        case DIM_F: parts[0] = config->F; return 1;
        case DIM_NH: parts[0] = config->NH; return 1;
        case DIM_HEADS: parts[0] = config->NH + config->NKV; return 1;
    }
    CHECK(false, "dim=%d", (int)dim);
}

int64_t model_dim(const ModelConfig *config, ModelDim dim) {
    int64_t parts[PARAM_MAX_PARTS], sum = 0;
    for (int i = model_dim_parts(config, dim, parts); i-- > 0;) sum += parts[i];
    return sum;
}

static bool row_exists(const ParamRow *row, const ModelConfig *config, int layer) {
    return row->when == NULL || row->when(config, layer);
}
static int64_t real_rows(const ParamRow *row, const ModelConfig *config) {
    return row->rows == DIM_V ? config->V : model_dim(config, row->rows);
}

static void add_row(ParamTable *table, ParamRole role, int layer) {
    const ModelConfig *config = &table->config;
    const ParamRow *row = &PARAM_ROWS[role];
    const bool matrix = row->cols != DIM_NONE;
    ParamSpec *spec = &table->spec[table->count++];
    *spec = (ParamSpec){.role = role, .layer = layer, .ndim = matrix ? 2 : 1, .init = row->init, .decay = row->decay};
    if (layer < 0) snprintf(spec->name, sizeof spec->name, "%s", row->name);
    else snprintf(spec->name, sizeof spec->name, "block.%d.%s", layer, row->name);
    spec->dim[0] = model_dim(config, row->rows);
    spec->dim[1] = model_dim(config, row->cols);
    spec->real_rows = real_rows(row, config);
    spec->part_count = model_dim_parts(config, row->rows, spec->part_rows);
    if (row->init == INIT_NORMAL) spec->init_std = config->init_std;
    if (row->init == INIT_RESIDUAL) spec->init_std = (float)(config->init_std / sqrt(2.0 * (double)config->L));
    spec->hidden_matrix = matrix && row->place == PLACE_BLOCK;
    spec->elems = spec->dim[0] * spec->dim[1];
    spec->offset = table->total_elems;
    table->total_elems = round_up(spec->offset + spec->elems, PARAM_ALIGN_ELEMS);
}

static void add_place(ParamTable *table, ParamPlace place, int layer) {
    for (int role = 0; role < PARAM_ROLE_COUNT; ++role)
        if (PARAM_ROWS[role].place == place && row_exists(&PARAM_ROWS[role], &table->config, layer))
            add_row(table, (ParamRole)role, layer);
}

void params_build(ParamTable *table, const ModelConfig *config) {
    CHECK(config->Vp >= config->V && config->V > 0 && config->HS > 0 && config->F > 0,
          "model_config_finish was not called: V=%lld Vp=%lld HS=%lld F=%lld", (long long)config->V,
          (long long)config->Vp, (long long)config->HS, (long long)config->F);
    *table = (ParamTable){.config = *config};
    table->spec = xcalloc(to_size((config->L + 1) * PARAM_ROLE_COUNT), sizeof *table->spec);
    add_place(table, PLACE_FRONT, -1);
    for (int layer = 0; layer < config->L; ++layer) add_place(table, PLACE_BLOCK, layer);
    add_place(table, PLACE_BACK, -1);
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

// Both normals of a Box-Muller pair from one random block: with 124M elements the logarithms dominate the time of a start.
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
    if (spec->init == INIT_ONES || spec->init == INIT_ZEROS) {
        for (int64_t i = 0; i < spec->elems; ++i) out[i] = spec->init == INIT_ONES ? 1.0f : 0.0f;
        return;
    }
    int64_t real_elems = spec->real_rows * spec->dim[1];
    fill_normal(out, rng_u64(seed, RNG_STREAM_INIT, rng_hash(spec->name)), real_elems, (double)spec->init_std);
    memset(out + real_elems, 0, to_size(spec->elems - real_elems) * sizeof *out);
}

int64_t params_count(const ModelConfig *config) {
    int64_t count = 0;
    for (int role = 0; role < PARAM_ROLE_COUNT; ++role) {
        const ParamRow *row = &PARAM_ROWS[role];
        const bool in_block = row->place == PLACE_BLOCK;
        for (int layer = in_block ? 0 : -1; layer < (in_block ? config->L : 0); ++layer)
            if (row_exists(row, config, layer)) count += real_rows(row, config) * model_dim(config, row->cols);
    }
    return count;
}

static const char *resemblance(const ModelConfig *config) {
    if (config->norm == NORM_LAYER && config->position == POSITION_LEARNED && config->activation == ACT_GELU)
        return "GPT-2-like";
    if (config->norm == NORM_RMS && config->position == POSITION_ROPE && config->activation == ACT_SWIGLU)
        return config->qk_norm ? "Qwen3-like" : config->qkv_bias ? "Qwen2-like" : "Llama-like";
    return "custom decoder";
}

void params_describe(const ModelConfig *config, char *out, size_t out_bytes) {
    double count = (double)params_count(config);
    const char *unit = count >= 1e9 ? "B" : count >= 1e6 ? "M" : "K";
    double scaled = count / (count >= 1e9 ? 1e9 : count >= 1e6 ? 1e6 : 1e3);
    char kv[48] = "";
    if (config->NKV != config->NH) snprintf(kv, sizeof kv, " (%lld key/value)", (long long)config->NKV);
    // An imported GPT-2 may lack some biases: say so.
    bool gpt2 = strcmp(resemblance(config), "GPT-2-like") == 0;
    bool some_missing = !config->norm_bias || !config->qkv_bias || !config->proj_bias || !config->mlp_bias;
    char missing[64] = "";
    if (gpt2 && some_missing)
        snprintf(missing, sizeof missing, " without%s%s%s%s bias", config->norm_bias ? "" : " norm",
                 config->qkv_bias ? "" : " q/k/v", config->proj_bias ? "" : " projection",
                 config->mlp_bias ? "" : " MLP");
    snprintf(out, out_bytes, "%s%s, %lld layers, %lld wide, %lld heads%s, vocabulary %lld: %.1f%s parameters",
             resemblance(config), missing, (long long)config->L, (long long)config->C, (long long)config->NH, kv,
             (long long)config->V, scaled, unit);
}
