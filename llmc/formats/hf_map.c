// hf_map.c: from our parameter table to the tensor names of Hugging Face's GPT-2 and Llama families; see hf.h. The
// one place that knows those names. Used by import and export alike, so that they cannot disagree.
#include <stdio.h>
#include <stdlib.h>

#include "llmc/formats/hf.h"

// Names without prefix and without ".weight" or ".bias". Row blocks that Llama keeps apart (q, k, v; gate, up) have a
// name each; GPT-2 keeps them fused in the order that we do.
typedef struct {
    ParamRole weight, bias;  // bias PARAM_ROLE_COUNT: neither side has one
    const char *gpt2;
    const char *llama[PARAM_MAX_PARTS];
} TensorNames;

static const TensorNames NAMES[] = {
    {PARAM_WTE, PARAM_ROLE_COUNT, "wte", {"embed_tokens"}},
    {PARAM_WPE, PARAM_ROLE_COUNT, "wpe", {"embed_positions"}},
    {PARAM_NORM1_W, PARAM_NORM1_B, "ln_1", {"input_layernorm"}},
    {PARAM_QKV_W, PARAM_QKV_B, "attn.c_attn", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}},
    {PARAM_Q_NORM_W, PARAM_ROLE_COUNT, "attn.q_norm", {"self_attn.q_norm"}},
    {PARAM_K_NORM_W, PARAM_ROLE_COUNT, "attn.k_norm", {"self_attn.k_norm"}},
    {PARAM_ATTN_PROJ_W, PARAM_ATTN_PROJ_B, "attn.c_proj", {"self_attn.o_proj"}},
    {PARAM_NORM2_W, PARAM_NORM2_B, "ln_2", {"post_attention_layernorm"}},
    {PARAM_FC_W, PARAM_FC_B, "mlp.c_fc", {"mlp.gate_proj", "mlp.up_proj"}},
    {PARAM_MLP_PROJ_W, PARAM_MLP_PROJ_B, "mlp.c_proj", {"mlp.down_proj"}},
    {PARAM_NORM_F_W, PARAM_NORM_F_B, "ln_f", {"norm"}},
    {PARAM_HEAD, PARAM_ROLE_COUNT, "lm_head", {"lm_head"}},
};

static const TensorNames *find_names(ParamRole role, bool *is_bias) {
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; ++i) {
        *is_bias = NAMES[i].bias == role;
        if (NAMES[i].weight == role || *is_bias) return &NAMES[i];
    }
    CHECK(false, "role=%d has no name", (int)role);
}

static void format_name(HfTensor *out, const TensorNames *names, const ParamSpec *spec, int part, HfLayout layout,
                        bool is_bias) {
    const char *stem = layout.gpt2_names ? names->gpt2 : names->llama[part];
    if (!layout.gpt2_names && names->weight == PARAM_FC_W && spec->part_count == 1) stem = "mlp.up_proj";
    const char *prefix = names->weight == PARAM_HEAD ? "" : layout.gpt2_names ? "transformer." : "model.";
    char block[32] = "";
    if (spec->layer >= 0) snprintf(block, sizeof block, layout.gpt2_names ? "h.%d." : "layers.%d.", spec->layer);
    snprintf(out->name, sizeof out->name, "%s%s%s.%s", prefix, block, stem, is_bias ? "bias" : "weight");
}

// The tensors that spec becomes. as_zeros: those of the bias that belongs to the weight spec but does not exist.
static void add_tensors(HfMap *map, const ParamSpec *spec, HfLayout layout, bool as_zeros) {
    bool is_bias;
    const TensorNames *names = find_names(spec->role, &is_bias);
    bool vector = spec->ndim == 1 || as_zeros;
    int parts = layout.gpt2_names ? 1 : spec->part_count;
    int64_t row = 0;
    for (int part = 0; part < parts; ++part) {
        HfTensor *out = &map->tensor[map->count++];
        *out = (HfTensor){.spec = as_zeros ? NULL : spec, .first_row = row, .ndim = vector ? 1 : 2};
        out->rows = parts == 1 ? spec->real_rows : spec->part_rows[part];
        out->transposed = layout.gpt2_names && !vector && spec->layer >= 0;  // Conv1D: (in, out)
        out->dim[0] = out->transposed ? spec->dim[1] : out->rows;
        out->dim[1] = vector ? 1 : out->transposed ? out->rows : spec->dim[1];
        format_name(out, names, spec, part, layout, is_bias || as_zeros);
        row += out->rows;
    }
}

static bool layout_has_bias(HfLayout layout, ParamRole bias) {
    switch (bias) {
        case PARAM_NORM1_B:
        case PARAM_NORM2_B:
        case PARAM_NORM_F_B: return layout.norm_bias;
        case PARAM_QKV_B: return layout.qkv_bias;
        case PARAM_ATTN_PROJ_B: return layout.proj_bias;
        case PARAM_FC_B:
        case PARAM_MLP_PROJ_B: return layout.mlp_bias;
        default: return false;
    }
}

void hf_map_build_as(HfMap *map, const ParamTable *params, HfLayout layout) {
    map->tensor = xcalloc((size_t)params->count * 2 * PARAM_MAX_PARTS, sizeof *map->tensor);
    map->count = 0;
    for (int i = 0; i < params->count; ++i) {
        const ParamSpec *spec = &params->spec[i];
        add_tensors(map, spec, layout, false);
        bool is_bias;
        const TensorNames *names = find_names(spec->role, &is_bias);
        bool bias_follows = i + 1 < params->count && params->spec[i + 1].role == names->bias;
        if (!is_bias && !bias_follows && layout_has_bias(layout, names->bias)) add_tensors(map, spec, layout, true);
    }
}

void hf_map_build(HfMap *map, const ParamTable *params, const ModelConfig *config) {
    hf_map_build_as(map, params, hf_layout(config));
}

void hf_map_free(HfMap *map) {
    free(map->tensor);
    *map = (HfMap){0};
}
