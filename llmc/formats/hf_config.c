// hf_config.c: writes and reads config.json of Hugging Face models; see hf.h. Reading is strict about every key that
// changes what the model computes and ignores the others (dropout, generation defaults, versions).
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/formats/hf.h"
#include "llmc/base/decimal.h"
#include "llmc/base/json.h"

// ---- which architecture ----

static bool is_gpt2(const ModelConfig *config) {
    return config->norm == NORM_LAYER && config->position == POSITION_LEARNED && config->activation == ACT_GELU &&
           config->NKV == config->NH && config->NH * config->HS == config->C && !config->qk_norm &&
           config->window == 0 && config->logit_softcap == 0;
}

const char *hf_architecture(const ModelConfig *config) {
    if (is_gpt2(config)) return "GPT2LMHeadModel";
    if (config->norm == NORM_RMS && config->position == POSITION_ROPE && config->activation == ACT_SWIGLU &&
        config->logit_softcap == 0) {
        bool any_bias = config->qkv_bias || config->proj_bias || config->mlp_bias;
        if (config->qk_norm && !config->mlp_bias) return "Qwen3ForCausalLM";
        if (config->qk_norm) return "TokamakForCausalLM";
        if (config->qkv_bias && !config->proj_bias && !config->mlp_bias && config->NH * config->HS == config->C)
            return "Qwen2ForCausalLM";
        // transformers rejects a Llama whose width is not a multiple of its heads. Mistral has no biases.
        if (config->window == 0 && config->C % config->NH == 0) return "LlamaForCausalLM";
        if (!any_bias) return "MistralForCausalLM";
    }
    return "TokamakForCausalLM";
}

static const struct {
    const char *architecture, *model_type;
} ARCHITECTURES[] = {
    {"GPT2LMHeadModel", "gpt2"},   {"LlamaForCausalLM", "llama"}, {"MistralForCausalLM", "mistral"},
    {"Qwen2ForCausalLM", "qwen2"}, {"Qwen3ForCausalLM", "qwen3"}, {"TokamakForCausalLM", "tokamak"},
};
#define ARCHITECTURE_COUNT (sizeof ARCHITECTURES / sizeof ARCHITECTURES[0])

static const char *model_type_of(const char *architecture) {
    for (size_t i = 0; i < ARCHITECTURE_COUNT; ++i)
        if (strcmp(ARCHITECTURES[i].architecture, architecture) == 0) return ARCHITECTURES[i].model_type;
    CHECK(false, "architecture=%s", architecture);
}

HfLayout hf_layout(const ModelConfig *config) {
    const char *type = model_type_of(hf_architecture(config));
    HfLayout layout = {false, config->norm_bias, config->qkv_bias, config->proj_bias, config->mlp_bias};
    if (strcmp(type, "gpt2") == 0) layout = (HfLayout){true, true, true, true, true};
    // One key, attention_bias, sets the biases of all four projections.
    if (strcmp(type, "llama") == 0 || strcmp(type, "qwen3") == 0)
        layout.qkv_bias = layout.proj_bias = config->qkv_bias || config->proj_bias;
    return layout;
}

// ---- writing ----

static void add_int(cJSON *root, const char *key, int64_t value) {
    cJSON_AddNumberToObject(root, key, (double)value);
}

// The shortest decimal that reads back to the same number (1e-05, not 9.9999997473787516e-06), always with a point or
// exponent: transformers 4 warns about a factor written as 4 instead of 4.0.
static void add_real(cJSON *root, const char *key, double value, bool is_float) {
    char text[40];
    snprintf(text, sizeof text, "%.*g", is_float ? decimal_digits_f32((float)value) : decimal_digits(value), value);
    if (strpbrk(text, ".e") == NULL) strcat(text, ".0");
    cJSON_AddRawToObject(root, key, text);
}
static void add_double(cJSON *root, const char *key, double value) { add_real(root, key, value, false); }
static void add_float(cJSON *root, const char *key, float value) { add_real(root, key, (double)value, true); }

static void add_id(cJSON *root, const char *key, int64_t id) {
    if (id >= 0) add_int(root, key, id);
    else cJSON_AddNullToObject(root, key);
}

static void write_gpt2(cJSON *root, const ModelConfig *config) {
    add_int(root, "n_layer", config->L);
    add_int(root, "n_head", config->NH);
    add_int(root, "n_embd", config->C);
    add_int(root, "n_inner", config->F);
    add_int(root, "n_positions", config->max_seq_len);
    add_float(root, "layer_norm_epsilon", config->norm_eps);
    cJSON_AddStringToObject(root, "activation_function", "gelu_new");
    add_double(root, "resid_pdrop", 0);
    add_double(root, "embd_pdrop", 0);
    add_double(root, "attn_pdrop", 0);
}

static void write_rope(cJSON *root, const ModelConfig *config) {
    add_double(root, "rope_theta", config->rope_theta);
    const RopeScaling *scaling = &config->rope_scaling;
    if (scaling->factor == 0) {
        cJSON_AddNullToObject(root, "rope_scaling");
        return;
    }
    cJSON *object = cJSON_AddObjectToObject(root, "rope_scaling");
    cJSON_AddStringToObject(object, "rope_type", "llama3");
    add_double(object, "factor", scaling->factor);
    add_double(object, "low_freq_factor", scaling->low_freq_factor);
    add_double(object, "high_freq_factor", scaling->high_freq_factor);
    add_int(object, "original_max_position_embeddings", scaling->original_max_seq_len);
}

static void write_sizes(cJSON *root, const ModelConfig *config) {
    add_int(root, "hidden_size", config->C);
    add_int(root, "intermediate_size", config->F);
    add_int(root, "num_hidden_layers", config->L);
    add_int(root, "num_attention_heads", config->NH);
    add_int(root, "num_key_value_heads", config->NKV);
    add_int(root, "head_dim", config->HS);
    add_int(root, "max_position_embeddings", config->max_seq_len);
}

static void write_llama_family(cJSON *root, const ModelConfig *config, const char *type) {
    write_sizes(root, config);
    add_float(root, "rms_norm_eps", config->norm_eps);
    cJSON_AddStringToObject(root, "hidden_act", "silu");
    add_double(root, "attention_dropout", 0);
    write_rope(root, config);
    if (strcmp(type, "llama") == 0 || strcmp(type, "qwen3") == 0)
        cJSON_AddBoolToObject(root, "attention_bias", hf_layout(config).qkv_bias);
    if (strcmp(type, "llama") == 0) cJSON_AddBoolToObject(root, "mlp_bias", config->mlp_bias);
    if (strcmp(type, "llama") == 0) return;
    if (config->window > 0) add_int(root, "sliding_window", config->window);
    else cJSON_AddNullToObject(root, "sliding_window");
    if (strcmp(type, "mistral") == 0) return;
    cJSON_AddBoolToObject(root, "use_sliding_window", config->window > 0);
    add_int(root, "max_window_layers", config->window > 0 ? 0 : config->L);  // layers from here on have the window
}

static void write_biases(cJSON *root, const ModelConfig *config) {
    cJSON_AddBoolToObject(root, "norm_bias", config->norm_bias);
    cJSON_AddBoolToObject(root, "qkv_bias", config->qkv_bias);
    cJSON_AddBoolToObject(root, "proj_bias", config->proj_bias);
    cJSON_AddBoolToObject(root, "mlp_bias", config->mlp_bias);
}

static void write_tokamak(cJSON *root, const ModelConfig *config) {
    write_sizes(root, config);
    cJSON_AddStringToObject(root, "norm", word_of(NORM_WORDS, (int)config->norm));
    add_float(root, "norm_eps", config->norm_eps);
    cJSON_AddStringToObject(root, "position", word_of(POSITION_WORDS, (int)config->position));
    cJSON_AddStringToObject(root, "activation", word_of(ACTIVATION_WORDS, (int)config->activation));
    cJSON_AddBoolToObject(root, "qk_norm", config->qk_norm);
    add_int(root, "sliding_window", config->window);
    add_float(root, "logit_softcap", config->logit_softcap);
    write_biases(root, config);
    write_rope(root, config);
}

char *hf_config_write(const ModelConfig *config, DType dtype, int64_t bos, int64_t eos) {
    CHECK(dtype == DTYPE_F32 || dtype == DTYPE_BF16, "dtype=%s", dtype_name(dtype));
    const char *architecture = hf_architecture(config), *type = model_type_of(architecture);
    cJSON *root = cJSON_CreateObject();
    cJSON_AddItemToArray(cJSON_AddArrayToObject(root, "architectures"), cJSON_CreateString(architecture));
    cJSON_AddStringToObject(root, "model_type", type);
    cJSON_AddStringToObject(root, "torch_dtype", dtype == DTYPE_F32 ? "float32" : "bfloat16");
    add_int(root, "vocab_size", config->V);
    if (strcmp(type, "gpt2") == 0) write_gpt2(root, config);
    else if (strcmp(type, "tokamak") == 0) write_tokamak(root, config);
    else write_llama_family(root, config, type);
    cJSON_AddBoolToObject(root, "tie_word_embeddings", config->tied);
    add_float(root, "initializer_range", config->init_std);
    add_id(root, "bos_token_id", bos);
    add_id(root, "eos_token_id", eos);

    // Biases that the architecture has and the model lacks are exported as zeros; this object marks them, so that they
    // are not read back as biases.
    HfLayout layout = hf_layout(config);
    if (layout.norm_bias != config->norm_bias || layout.qkv_bias != config->qkv_bias ||
        layout.proj_bias != config->proj_bias || layout.mlp_bias != config->mlp_bias)
        write_biases(cJSON_AddObjectToObject(root, "tokamak"), config);
    char *text = cJSON_Print(root);
    CHECK(text != NULL, "config.json of %s", architecture);
    cJSON_Delete(root);
    char *copy = xasprintf("%s\n", text);
    cJSON_free(text);
    return copy;
}

// ---- reading ----

// State of the readers below: the current object and the first error. An absent or null key gives the default; a wrong
// type is an error.
typedef struct {
    const cJSON *root;
    const char *path;
    Error *err;
    bool ok;
} ConfigReader;

static void PRINTF_LIKE(3, 4) reject(ConfigReader *r, const char *key, const char *format, ...) {
    if (!r->ok) return;
    char detail[512];
    va_list args;
    va_start(args, format);
    vsnprintf(detail, sizeof detail, format, args);
    va_end(args);
    error_set(r->err, "%s: key '%s': %s", r->path, key, detail);
    r->ok = false;
}

static const cJSON *get(const ConfigReader *r, const char *key) {
    const cJSON *item = json_find(r->root, key);
    return cJSON_IsNull(item) ? NULL : item;
}

#define REQUIRED INT64_MIN
static int64_t get_int(ConfigReader *r, const char *key, int64_t absent) {
    const cJSON *item = get(r, key);
    int64_t value = absent;
    if (item == NULL && absent == REQUIRED) reject(r, key, "expected a whole number, found nothing");
    else if (item != NULL && !json_as_i64(item, &value)) reject(r, key, "expected a whole number");
    return value;
}
static double get_number(ConfigReader *r, const char *key, double absent) {
    const cJSON *item = get(r, key);
    double value = absent;
    if (item != NULL && !json_as_f64(item, &value)) reject(r, key, "expected a number");
    return value;
}
static bool get_bool(ConfigReader *r, const char *key, bool absent) {
    const cJSON *item = get(r, key);
    if (item == NULL) return absent;
    if (!cJSON_IsBool(item)) reject(r, key, "expected true or false");
    return cJSON_IsTrue(item);
}
static const char *get_text(ConfigReader *r, const char *key, const char *absent) {
    const cJSON *item = get(r, key);
    if (item == NULL) return absent;
    if (cJSON_IsString(item)) return item->valuestring;
    reject(r, key, "expected text");
    return absent;
}
static int get_word(ConfigReader *r, const char *key, const Word *words) {
    int value = 0;
    const char *found = get_text(r, key, "nothing");
    if (!word_find(&value, words, found)) reject(r, key, "unknown value '%s'", found);
    return value;
}
static void require_text(ConfigReader *r, const char *key, const char *one, const char *other) {
    const char *found = get_text(r, key, one);
    if (strcmp(found, one) != 0 && strcmp(found, other) != 0)
        reject(r, key, "expected '%s' or '%s', found '%s', which is not supported", one, other, found);
}
static void require_bool(ConfigReader *r, const char *key, bool value) {
    if (get_bool(r, key, value) != value)
        reject(r, key, "only %s is supported", value ? "true" : "false");
}

static void read_biases(ConfigReader *r, ModelConfig *out) {
    out->norm_bias = get_bool(r, "norm_bias", out->norm_bias);
    out->qkv_bias = get_bool(r, "qkv_bias", out->qkv_bias);
    out->proj_bias = get_bool(r, "proj_bias", out->proj_bias);
    out->mlp_bias = get_bool(r, "mlp_bias", out->mlp_bias);
}

static void read_gpt2(ConfigReader *r, ModelConfig *out) {
    out->L = get_int(r, "n_layer", REQUIRED);
    out->NH = get_int(r, "n_head", REQUIRED);
    out->C = get_int(r, "n_embd", REQUIRED);
    out->F = get_int(r, "n_inner", 0);  // 0: 4 C
    out->max_seq_len = get_int(r, "n_positions", REQUIRED);
    out->norm = NORM_LAYER;
    out->norm_eps = (float)get_number(r, "layer_norm_epsilon", 1e-5);
    out->position = POSITION_LEARNED;
    out->activation = ACT_GELU;
    out->norm_bias = out->qkv_bias = out->proj_bias = out->mlp_bias = true;
    out->tied = get_bool(r, "tie_word_embeddings", true);
    require_text(r, "activation_function", "gelu_new", "gelu_pytorch_tanh");
    require_bool(r, "scale_attn_weights", true);
    require_bool(r, "scale_attn_by_inverse_layer_idx", false);
    require_bool(r, "add_cross_attention", false);
}

// Up to version 4, transformers has the keys rope_theta and rope_scaling; from 5 on both are in rope_parameters.
static void read_rope(ConfigReader *r, ModelConfig *out) {
    out->position = POSITION_ROPE;
    out->rope_theta = get_number(r, "rope_theta", 10000);
    if (get_number(r, "partial_rotary_factor", 1) != 1)
        reject(r, "partial_rotary_factor", "only 1 is supported");
    const char *key = get(r, "rope_parameters") != NULL ? "rope_parameters" : "rope_scaling";
    const cJSON *object = get(r, key);
    if (object == NULL) return;
    if (!cJSON_IsObject(object)) {
        reject(r, key, "expected an object");
        return;
    }
    ConfigReader inner = {object, r->path, r->err, r->ok};
    const char *type = get_text(&inner, "rope_type", get_text(&inner, "type", "default"));
    out->rope_theta = get_number(&inner, "rope_theta", out->rope_theta);
    if (get_number(&inner, "partial_rotary_factor", 1) != 1)
        reject(&inner, "partial_rotary_factor", "only 1 is supported");
    if (strcmp(type, "llama3") == 0) {
        out->rope_scaling.factor = get_number(&inner, "factor", 0);
        out->rope_scaling.low_freq_factor = get_number(&inner, "low_freq_factor", 0);
        out->rope_scaling.high_freq_factor = get_number(&inner, "high_freq_factor", 0);
        out->rope_scaling.original_max_seq_len = get_int(&inner, "original_max_position_embeddings", REQUIRED);
        if (!(out->rope_scaling.factor >= 1)) reject(&inner, "factor", "expected 1 or more with rope_type llama3");
    } else if (strcmp(type, "default") != 0) {
        reject(&inner, key, "expected rope_type 'default' or 'llama3', found '%s', which is not supported", type);
    }
    r->ok = inner.ok;
}

static void read_sizes(ConfigReader *r, ModelConfig *out) {
    out->C = get_int(r, "hidden_size", REQUIRED);
    out->F = get_int(r, "intermediate_size", REQUIRED);
    out->L = get_int(r, "num_hidden_layers", REQUIRED);
    out->NH = get_int(r, "num_attention_heads", REQUIRED);
    out->max_seq_len = get_int(r, "max_position_embeddings", REQUIRED);
}

// layer_types, if present, gives the kind of attention of each layer and replaces what other keys imply.
static int64_t read_layer_types(ConfigReader *r, const cJSON *types, int64_t layers, int64_t window) {
    int64_t sliding = 0, full = 0;
    for (const cJSON *item = types->child; item != NULL; item = item->next) {
        const char *text = cJSON_IsString(item) ? item->valuestring : "";
        sliding += strcmp(text, "sliding_attention") == 0;
        full += strcmp(text, "full_attention") == 0;
    }
    if (sliding == layers && full == 0) {
        if (window == 0) reject(r, "sliding_window", "expected a window, because layers have sliding attention");
        return window;
    }
    if (full != layers || sliding != 0 || cJSON_GetArraySize(types) != layers)
        reject(r, "layer_types", "expected %lld layers, all full_attention or all sliding_attention",
               (long long)layers);
    return 0;
}

static int64_t read_window(ConfigReader *r, const char *type, int64_t layers) {
    if (strcmp(type, "llama") == 0) return 0;
    bool qwen = strcmp(type, "mistral") != 0;
    // Mistral's default for an absent key is 4096, and null means none; Qwen has the switch use_sliding_window.
    int64_t window = json_find(r->root, "sliding_window") == NULL ? 4096 : get_int(r, "sliding_window", 0);
    if (qwen && !get_bool(r, "use_sliding_window", false)) window = 0;
    if (window < 0) reject(r, "sliding_window", "expected a positive number or null, found %lld", (long long)window);
    const cJSON *types = get(r, "layer_types");
    if (types != NULL && qwen) return read_layer_types(r, types, layers, window);
    int64_t first = qwen ? get_int(r, "max_window_layers", 28) : 0;
    if (window == 0 || first >= layers) return 0;
    if (first > 0)
        reject(r, "max_window_layers", "a window in some layers only (from layer %lld on) is not supported",
               (long long)first);
    return window;
}

static void read_llama_family(ConfigReader *r, ModelConfig *out, const char *type) {
    bool qwen2 = strcmp(type, "qwen2") == 0, qwen3 = strcmp(type, "qwen3") == 0, llama = strcmp(type, "llama") == 0;
    read_sizes(r, out);
    out->NKV = get_int(r, "num_key_value_heads", llama ? out->NH : REQUIRED);
    bool has_head_dim = json_find(r->root, "head_dim") != NULL;
    out->HS = qwen3 && !has_head_dim ? 128 : get_int(r, "head_dim", 0);  // 0: C / NH
    out->norm = NORM_RMS;
    out->norm_eps = (float)get_number(r, "rms_norm_eps", 1e-6);
    out->activation = ACT_SWIGLU;
    require_text(r, "hidden_act", "silu", "swish");
    bool attention_bias = (llama || qwen3) && get_bool(r, "attention_bias", false);
    out->qkv_bias = attention_bias || qwen2;
    out->proj_bias = attention_bias;
    out->mlp_bias = llama && get_bool(r, "mlp_bias", false);
    out->qk_norm = qwen3;
    out->tied = get_bool(r, "tie_word_embeddings", false);
    out->window = read_window(r, type, out->L);
    read_rope(r, out);
}

static void read_tokamak(ConfigReader *r, ModelConfig *out) {
    read_sizes(r, out);
    out->NKV = get_int(r, "num_key_value_heads", REQUIRED);
    out->HS = get_int(r, "head_dim", REQUIRED);
    out->norm = (NormKind)get_word(r, "norm", NORM_WORDS);
    out->norm_eps = (float)get_number(r, "norm_eps", 0);  // absent: an error of model_config_finish
    out->activation = (Activation)get_word(r, "activation", ACTIVATION_WORDS);
    out->qk_norm = get_bool(r, "qk_norm", false);
    out->window = get_int(r, "sliding_window", 0);
    out->logit_softcap = (float)get_number(r, "logit_softcap", 0);
    out->tied = get_bool(r, "tie_word_embeddings", false);
    read_biases(r, out);
    read_rope(r, out);
    out->position = (PositionKind)get_word(r, "position", POSITION_WORDS);
}

static bool read_fields(ConfigReader *r, ModelConfig *out) {
    const char *type = get_text(r, "model_type", "");
    bool known = false;
    for (size_t i = 0; i < ARCHITECTURE_COUNT; ++i) known = known || strcmp(ARCHITECTURES[i].model_type, type) == 0;
    if (!known) reject(r, "model_type", "expected gpt2, llama, mistral, qwen2, qwen3 or tokamak, found '%s'", type);
    if (get(r, "quantization_config") != NULL)
        reject(r, "quantization_config", "quantized weights are not supported; use the original model");
    out->V = get_int(r, "vocab_size", REQUIRED);
    out->init_std = (float)get_number(r, "initializer_range", 0.02);
    if (strcmp(type, "gpt2") == 0) read_gpt2(r, out);
    else if (strcmp(type, "tokamak") == 0) read_tokamak(r, out);
    else if (known) read_llama_family(r, out, type);
    const cJSON *own = get(r, "tokamak");
    if (own != NULL) {
        ConfigReader inner = {own, r->path, r->err, r->ok};
        if (!cJSON_IsObject(own)) reject(&inner, "tokamak", "expected an object");
        read_biases(&inner, out);
        r->ok = inner.ok;
    }
    return r->ok;
}

bool hf_config_read(ModelConfig *out, const char *json, const char *path, Error *err) {
    cJSON *root = json_parse(json, strlen(json), path, err);
    if (root == NULL) return false;
    ConfigReader reader = {root, path, err, true};
    ModelConfig config = {0};
    bool ok = read_fields(&reader, &config);
    cJSON_Delete(root);
    if (!ok) return false;
    if (!model_config_finish(&config, err)) return error_prefix(err, "%s", path);
    *out = config;
    return true;
}
