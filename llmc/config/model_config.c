// model_config.c: presets, derived sizes and checks of an architecture; see model_config.h.
#include "llmc/config/model_config.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

const Word POSITION_WORDS[] = {
    {POSITION_LEARNED, "learned"}, {POSITION_ROPE, "rope"}, {POSITION_NONE, "none"}, {0, NULL}};
const Word RECOMPUTE_WORDS[] = {
    {RECOMPUTE_NONE, "none"}, {RECOMPUTE_NORM_ACT, "norm_act"}, {RECOMPUTE_BLOCK, "block"}, {0, NULL}};

// Limits far above any real model. They keep every product of sizes within int64, also for sizes from untrusted files.
#define MAX_LAYERS ((int64_t)1 << 14)
#define MAX_WIDTH ((int64_t)1 << 20)
#define MAX_VOCAB (INT32_MAX - MODEL_VOCAB_MULTIPLE)

// Settings that all sizes of a family share. Vp, and HS, NKV, F where the general rule gives the right value, stay 0
// until model_config_finish, so that they follow an override of C or NH.
static const ModelConfig GPT2 = {
    .V = 50257, .max_seq_len = 1024, .norm = NORM_LAYER, .norm_eps = 1e-5f, .position = POSITION_LEARNED,
    .activation = ACT_GELU, .norm_bias = true, .qkv_bias = true, .proj_bias = true, .mlp_bias = true, .tied = true,
    .init_std = 0.02f,
};
static const ModelConfig LLAMA = {
    .max_seq_len = 2048, .norm = NORM_RMS, .norm_eps = 1e-5f, .position = POSITION_ROPE, .rope_theta = 10000,
    .activation = ACT_SWIGLU, .init_std = 0.02f,
};

typedef struct {
    const char *name;
    int64_t L, C, NH, NKV, HS, F, V;
    bool tied;
} PresetSize;

// GPT-3: table 2.1 of Brown et al. 2020. Where the paper's heads do not give HS * NH = C, the number is changed so that
// they do.
static const PresetSize GPT2_SIZES[] = {
    {"124M", 12, 768, 12, 0, 0, 0, 50257, true},   {"350M", 24, 1024, 16, 0, 0, 0, 50257, true},
    {"355M", 24, 1024, 16, 0, 0, 0, 50257, true},  {"774M", 36, 1280, 20, 0, 0, 0, 50257, true},
    {"1558M", 48, 1600, 25, 0, 0, 0, 50257, true}, {"1.5B", 48, 1600, 25, 0, 0, 0, 50257, true},
};
static const PresetSize GPT3_SIZES[] = {
    {"125M", 12, 768, 12, 0, 0, 0, 50257, true},  {"350M", 24, 1024, 16, 0, 0, 0, 50257, true},
    {"760M", 24, 1536, 16, 0, 0, 0, 50257, true}, {"1.3B", 24, 2048, 16, 0, 0, 0, 50257, true},
    {"2.7B", 32, 2560, 32, 0, 0, 0, 50257, true}, {"6.7B", 32, 4096, 32, 0, 0, 0, 50257, true},
    {"13B", 40, 5120, 40, 0, 0, 0, 50257, true},
};
static const PresetSize LLAMA3_SIZES[] = {
    {"1B", 16, 2048, 32, 8, 0, 8192, 128256, true},
    {"3B", 28, 3072, 24, 8, 0, 8192, 128256, true},
    {"8B", 32, 4096, 32, 8, 0, 14336, 128256, false},
    {"70B", 80, 8192, 64, 8, 0, 28672, 128256, false},
};
static const PresetSize QWEN2_SIZES[] = {
    {"0.5B", 24, 896, 14, 2, 0, 4864, 151936, true},
    {"1.5B", 28, 1536, 12, 2, 0, 8960, 151936, true},
    {"3B", 36, 2048, 16, 2, 0, 11008, 151936, true},
    {"7B", 28, 3584, 28, 4, 0, 18944, 152064, false},
};
static const PresetSize QWEN3_SIZES[] = {
    {"0.6B", 28, 1024, 16, 8, 128, 3072, 151936, true},
    {"1.7B", 28, 2048, 16, 8, 128, 6144, 151936, true},
    {"4B", 36, 2560, 32, 8, 128, 9728, 151936, true},
    {"8B", 36, 4096, 32, 8, 128, 12288, 151936, false},
};
static const PresetSize STORIES_SIZES[] = {
    {"260K", 5, 64, 8, 4, 0, 172, 512, true},
    {"15M", 6, 288, 6, 0, 0, 768, 32000, true},
};

typedef struct {
    const char *name;
    const ModelConfig *base;
    const PresetSize *sizes;
    int size_count;
    bool any_depth;  // "dN" is a valid size
} PresetFamily;
#define SIZES(array) array, (int)(sizeof array / sizeof array[0])
static const PresetFamily FAMILIES[] = {
    {"gpt2", &GPT2, SIZES(GPT2_SIZES), true},      {"gpt3", &GPT2, SIZES(GPT3_SIZES), false},
    {"llama", &LLAMA, NULL, 0, true},              {"llama3", &LLAMA, SIZES(LLAMA3_SIZES), false},
    {"qwen2", &LLAMA, SIZES(QWEN2_SIZES), false},  {"qwen3", &LLAMA, SIZES(QWEN3_SIZES), false},
    {"stories", &LLAMA, SIZES(STORIES_SIZES), false},
};
#define FAMILY_COUNT ((int)(sizeof FAMILIES / sizeof FAMILIES[0]))

static bool unknown_preset(const char *name, Error *err) {
    char known[768];
    size_t used = 0;
    for (int f = 0; f < FAMILY_COUNT; ++f) {
        const PresetFamily *family = &FAMILIES[f];
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s:", f ? ", " : "", family->name);
        for (int s = 0; s < family->size_count; ++s)
            used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", s ? "|" : "", family->sizes[s].name);
        if (family->any_depth)
            used += (size_t)snprintf(known + used, sizeof known - used, "%sdN", family->size_count ? "|" : "");
        CHECK(used < sizeof known, "list of presets needs %zu bytes", used);
    }
    return error_set(err, "unknown model '%s'; known models: %s (dN: N layers, width 64 N)", name, known);
}

static const PresetFamily *find_family(const char *name, size_t length) {
    for (int f = 0; f < FAMILY_COUNT; ++f)
        if (strlen(FAMILIES[f].name) == length && strncmp(FAMILIES[f].name, name, length) == 0) return &FAMILIES[f];
    return NULL;
}

// Differences of a family from its base, for all sizes.
static void apply_family(ModelConfig *config, const char *family) {
    if (strcmp(family, "gpt3") == 0) config->max_seq_len = 2048;
    if (strcmp(family, "llama3") == 0) {
        config->rope_theta = 500000;
        config->max_seq_len = 8192;
    }
    if (strcmp(family, "qwen2") == 0 || strcmp(family, "qwen3") == 0) {
        config->rope_theta = 1000000;
        config->norm_eps = 1e-6f;
        config->max_seq_len = 4096;
        config->qkv_bias = strcmp(family, "qwen2") == 0;
        config->qk_norm = strcmp(family, "qwen3") == 0;
    }
}

bool model_config_preset(ModelConfig *out, const char *name, Error *err) {
    const char *colon = strchr(name, ':');
    if (colon == NULL) return unknown_preset(name, err);
    const PresetFamily *family = find_family(name, (size_t)(colon - name));
    if (family == NULL) return unknown_preset(name, err);
    const char *size = colon + 1;

    ModelConfig config = *family->base;
    apply_family(&config, family->name);
    int64_t depth;
    if (family->any_depth && size[0] == 'd' && isdigit((unsigned char)size[1]) && parse_i64(size + 1, &depth)) {
        if (depth < 1 || depth > MAX_WIDTH / 64)
            return error_set(err, "model '%s': expected 1 to %lld layers", name, (long long)(MAX_WIDTH / 64));
        config.L = config.NH = depth;
        config.C = 64 * depth;
        config.V = 0;  // not a published model: the vocabulary comes from the tokenizer
        *out = config;
        return true;
    }
    for (int s = 0; s < family->size_count; ++s) {
        const PresetSize *row = &family->sizes[s];
        if (strcmp(row->name, size) != 0) continue;
        config.L = row->L;
        config.C = row->C;
        config.NH = row->NH;
        config.NKV = row->NKV;
        config.HS = row->HS;
        config.F = row->F;
        config.V = row->V;
        config.tied = row->tied;
        if (strcmp(family->name, "stories") == 0) config.max_seq_len = strcmp(size, "260K") == 0 ? 512 : 256;
        *out = config;
        return true;
    }
    return unknown_preset(name, err);
}

static bool check_range(const char *what, int64_t value, int64_t max, Error *err) {
    if (value >= 1 && value <= max) return true;
    return error_set(err, "model: %s must be between 1 and %lld, found %lld", what, (long long)max,
                     (long long)value);
}

static bool derive_sizes(ModelConfig *config, Error *err) {
    if (!check_range("layers (L)", config->L, MAX_LAYERS, err)) return false;
    if (!check_range("width (C)", config->C, MAX_WIDTH, err)) return false;
    if (!check_range("heads (NH)", config->NH, MAX_WIDTH, err)) return false;
    if (config->HS == 0) {
        if (config->C % config->NH != 0)
            return error_set(err, "model: width (C) %lld is not a multiple of heads (NH) %lld: change one of them, or "
                             "set a head size",
                             (long long)config->C, (long long)config->NH);
        config->HS = config->C / config->NH;
    }
    if (config->NKV == 0) config->NKV = config->NH;
    if (config->F == 0) {
        // Three matrices of a gated layer of 8/3 C have the weights of two of 4 C.
        config->F = activation_is_gated(config->activation) ? round_up(div_up(8 * config->C, 3), 64) : 4 * config->C;
    }
    if (!check_range("head size (HS)", config->HS, MAX_WIDTH, err)) return false;
    if (!check_range("heads times head size (NH*HS)", config->NH * config->HS, MAX_WIDTH, err)) return false;
    if (!check_range("key/value heads (NKV)", config->NKV, config->NH, err)) return false;
    if (!check_range("feed-forward width (F)", config->F, 4 * MAX_WIDTH, err)) return false;
    if (!check_range("vocabulary (V)", config->V, MAX_VOCAB, err)) return false;
    if (!check_range("longest sequence (max_seq_len)", config->max_seq_len, INT32_MAX, err)) return false;
    if (config->NH % config->NKV != 0)
        return error_set(err, "model: %lld heads (NH) cannot share %lld key/value heads (NKV) evenly",
                         (long long)config->NH, (long long)config->NKV);
    config->Vp = round_up(config->V, MODEL_VOCAB_MULTIPLE);
    return true;
}

static bool check_rope(const ModelConfig *config, Error *err) {
    const RopeScaling *scaling = &config->rope_scaling;
    if (config->HS % 2 != 0)
        return error_set(err, "model: rotary positions need an even head size (HS), found %lld",
                         (long long)config->HS);
    if (!(config->rope_theta > 0 && isfinite(config->rope_theta)))
        return error_set(err, "model: rope_theta must be positive, found %g", config->rope_theta);
    if (scaling->factor == 0) return true;
    if (!(scaling->factor >= 1 && isfinite(scaling->factor)) || scaling->original_max_seq_len < 1 ||
        !(scaling->low_freq_factor > 0 && scaling->high_freq_factor > scaling->low_freq_factor &&
          isfinite(scaling->high_freq_factor)))
        return error_set(err,
                         "model: RoPE scaling needs factor >= 1, 0 < low < high frequency factor and a positive "
                         "original length, found factor %g, low %g, high %g, length %lld",
                         scaling->factor, scaling->low_freq_factor, scaling->high_freq_factor,
                         (long long)scaling->original_max_seq_len);
    return true;
}

bool model_config_finish(ModelConfig *config, Error *err) {
    if (!derive_sizes(config, err)) return false;
    if (config->position == POSITION_ROPE && !check_rope(config, err)) return false;
    if (config->position != POSITION_ROPE && config->rope_scaling.factor != 0)
        return error_set(err, "model: RoPE scaling needs position=rope, found factor %g with another position",
                         config->rope_scaling.factor);
    if (config->activation == ACT_NONE)
        return error_set(err, "model: the feed-forward layer needs an activation, found none");
    if (config->norm == NORM_RMS && config->norm_bias)
        return error_set(err, "model: RMSNorm has no bias: set norm_bias=false or use LayerNorm");
    if (!(config->norm_eps > 0 && isfinite(config->norm_eps)))
        return error_set(err, "model: norm_eps must be positive, found %g", (double)config->norm_eps);
    if (!(config->init_std >= 0 && isfinite(config->init_std)))
        return error_set(err, "model: init_std must not be negative, found %g", (double)config->init_std);
    if (!(config->logit_softcap >= 0 && isfinite(config->logit_softcap)))
        return error_set(err, "model: logit_softcap must be 0 (off) or positive, found %g",
                         (double)config->logit_softcap);
    if (config->window < 0)
        return error_set(err, "model: window must be 0 (off) or positive, found %lld", (long long)config->window);
    return true;
}

int64_t model_config_qkv_width(const ModelConfig *config) {
    return (config->NH + 2 * config->NKV) * config->HS;
}

int64_t model_config_window(const ModelConfig *config, int64_t layer) {
    (void)layer;
    return config->window;
}
