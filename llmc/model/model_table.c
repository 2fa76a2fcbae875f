// model_table.c: the architecture as two tables: all parameters (ParamRow of params.h), and all activations that a block's
// backward pass reads (ActRow of model_impl.h). To add a tensor: a member of its struct in model.h, one row here, and its
// uses in block.c. Layout, binding, files and counts follow from the row. Must not know: sizes in bytes, addresses.
#include "llmc/model/model_impl.h"

#include <stddef.h>

// ---------------------------------------------------------------------------------------------------------------
// When a tensor exists

static bool has_positions(const ModelConfig *c, int layer) {
    (void)layer;
    return c->position == POSITION_LEARNED;
}
static bool has_norm_bias(const ModelConfig *c, int layer) {
    (void)layer;
    return c->norm_bias;
}
static bool has_norm_mean(const ModelConfig *c, int layer) {
    (void)layer;
    return c->norm == NORM_LAYER;
}
static bool has_qkv_bias(const ModelConfig *c, int layer) {
    (void)layer;
    return c->qkv_bias;
}
static bool has_qk_norm(const ModelConfig *c, int layer) {
    (void)layer;
    return c->qk_norm;
}
static bool has_proj_bias(const ModelConfig *c, int layer) {
    (void)layer;
    return c->proj_bias;
}
static bool has_mlp_bias(const ModelConfig *c, int layer) {
    (void)layer;
    return c->mlp_bias;
}
static bool has_head(const ModelConfig *c, int layer) {
    (void)layer;
    return !c->tied;
}

// ---------------------------------------------------------------------------------------------------------------
// Parameters, in the order of the forward pass

// Matrices: random initial values and weight decay. Vectors: ones or zeros, no weight decay.
#define MATRIX(kind) INIT_##kind, true
#define VECTOR(kind) INIT_##kind, false
#define WEIGHT(owner, part) .value = offsetof(owner, part.w), .grad = offsetof(owner, part.dw)
#define LINEAR(part) WEIGHT(Block, part), .fp8 = offsetof(Block, part.fp8)
#define BIAS(owner, part) .value = offsetof(owner, part.b), .grad = offsetof(owner, part.db), .bias = true

const ParamRow PARAM_ROWS[PARAM_ROLE_COUNT] = {
    [PARAM_WTE] = {"wte", PLACE_FRONT, DIM_V, DIM_C, MATRIX(NORMAL), NULL, WEIGHT(ModelTensors, wte),
                   .gpt2 = "transformer.wte", .llama = {"model.embed_tokens"}},
    [PARAM_WPE] = {"wpe", PLACE_FRONT, DIM_P, DIM_C, MATRIX(NORMAL), has_positions, WEIGHT(ModelTensors, wpe),
                   .gpt2 = "transformer.wpe", .llama = {"model.embed_positions"}},

    [PARAM_NORM1_W] = {"norm1.weight", PLACE_BLOCK, DIM_C, DIM_NONE, VECTOR(ONES), NULL, WEIGHT(Block, norm1),
                       .gpt2 = "ln_1", .llama = {"input_layernorm"}},
    [PARAM_NORM1_B] = {"norm1.bias", PLACE_BLOCK, DIM_C, DIM_NONE, VECTOR(ZEROS), has_norm_bias, BIAS(Block, norm1),
                       .gpt2 = "ln_1", .llama = {"input_layernorm"}},
    [PARAM_QKV_W] = {"attn.qkv.weight", PLACE_BLOCK, DIM_QKV, DIM_C, MATRIX(NORMAL), NULL, LINEAR(qkv),
                     .gpt2 = "attn.c_attn", .llama = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}},
    [PARAM_QKV_B] = {"attn.qkv.bias", PLACE_BLOCK, DIM_QKV, DIM_NONE, VECTOR(ZEROS), has_qkv_bias, BIAS(Block, qkv),
                     .gpt2 = "attn.c_attn", .llama = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}},
    [PARAM_Q_NORM_W] = {"attn.q_norm.weight", PLACE_BLOCK, DIM_HS, DIM_NONE, VECTOR(ONES), has_qk_norm,
                        WEIGHT(Block, q_norm), .gpt2 = "attn.q_norm", .llama = {"self_attn.q_norm"}},
    [PARAM_K_NORM_W] = {"attn.k_norm.weight", PLACE_BLOCK, DIM_HS, DIM_NONE, VECTOR(ONES), has_qk_norm,
                        WEIGHT(Block, k_norm), .gpt2 = "attn.k_norm", .llama = {"self_attn.k_norm"}},
    [PARAM_ATTN_PROJ_W] = {"attn.proj.weight", PLACE_BLOCK, DIM_C, DIM_Q, MATRIX(RESIDUAL), NULL, LINEAR(attn_proj),
                           .gpt2 = "attn.c_proj", .llama = {"self_attn.o_proj"}},
    [PARAM_ATTN_PROJ_B] = {"attn.proj.bias", PLACE_BLOCK, DIM_C, DIM_NONE, VECTOR(ZEROS), has_proj_bias,
                           BIAS(Block, attn_proj), .gpt2 = "attn.c_proj", .llama = {"self_attn.o_proj"}},
    [PARAM_NORM2_W] = {"norm2.weight", PLACE_BLOCK, DIM_C, DIM_NONE, VECTOR(ONES), NULL, WEIGHT(Block, norm2),
                       .gpt2 = "ln_2", .llama = {"post_attention_layernorm"}},
    [PARAM_NORM2_B] = {"norm2.bias", PLACE_BLOCK, DIM_C, DIM_NONE, VECTOR(ZEROS), has_norm_bias, BIAS(Block, norm2),
                       .gpt2 = "ln_2", .llama = {"post_attention_layernorm"}},
    [PARAM_FC_W] = {"mlp.fc.weight", PLACE_BLOCK, DIM_FC, DIM_C, MATRIX(NORMAL), NULL, LINEAR(fc),
                    .gpt2 = "mlp.c_fc", .llama = {"mlp.gate_proj", "mlp.up_proj"}},
    [PARAM_FC_B] = {"mlp.fc.bias", PLACE_BLOCK, DIM_FC, DIM_NONE, VECTOR(ZEROS), has_mlp_bias, BIAS(Block, fc),
                    .gpt2 = "mlp.c_fc", .llama = {"mlp.gate_proj", "mlp.up_proj"}},
    [PARAM_MLP_PROJ_W] = {"mlp.proj.weight", PLACE_BLOCK, DIM_C, DIM_F, MATRIX(RESIDUAL), NULL, LINEAR(mlp_proj),
                          .gpt2 = "mlp.c_proj", .llama = {"mlp.down_proj"}},
    [PARAM_MLP_PROJ_B] = {"mlp.proj.bias", PLACE_BLOCK, DIM_C, DIM_NONE, VECTOR(ZEROS), has_mlp_bias,
                          BIAS(Block, mlp_proj), .gpt2 = "mlp.c_proj", .llama = {"mlp.down_proj"}},

    [PARAM_NORM_F_W] = {"norm_f.weight", PLACE_BACK, DIM_C, DIM_NONE, VECTOR(ONES), NULL, WEIGHT(ModelTensors, norm_f),
                        .gpt2 = "transformer.ln_f", .llama = {"model.norm"}},
    [PARAM_NORM_F_B] = {"norm_f.bias", PLACE_BACK, DIM_C, DIM_NONE, VECTOR(ZEROS), has_norm_bias,
                        BIAS(ModelTensors, norm_f), .gpt2 = "transformer.ln_f", .llama = {"model.norm"}},
    [PARAM_HEAD] = {"head.weight", PLACE_BACK, DIM_V, DIM_C, MATRIX(NORMAL), has_head, WEIGHT(ModelTensors, head),
                    .gpt2 = "lm_head", .llama = {"lm_head"}},
};

// ---------------------------------------------------------------------------------------------------------------
// Activations of a block, in the order in which they are computed

#define ACT(field) #field, offsetof(BlockActs, field)

const ActRow ACT_ROWS[] = {
    {ACT(norm1.out), DIM_C, ACT_DTYPE, NULL, RECOMPUTE_NORM_ACT},
    {ACT(norm1.mean), DIM_NONE, ACT_F32, has_norm_mean, RECOMPUTE_BLOCK},
    {ACT(norm1.rstd), DIM_NONE, ACT_F32, NULL, RECOMPUTE_BLOCK},
    {ACT(qkv), DIM_QKV, ACT_DTYPE, NULL, RECOMPUTE_BLOCK},
    {ACT(qkv_raw), DIM_QKV, ACT_DTYPE, has_qk_norm, RECOMPUTE_BLOCK},
    {ACT(qk_rstd), DIM_HEADS, ACT_F32, has_qk_norm, RECOMPUTE_BLOCK},
    {ACT(att), DIM_Q, ACT_DTYPE, NULL, RECOMPUTE_BLOCK},
    {ACT(lse), DIM_NH, ACT_F32, NULL, RECOMPUTE_BLOCK},
    {ACT(mid), DIM_C, ACT_DTYPE, NULL, RECOMPUTE_BLOCK},
    {ACT(norm2.out), DIM_C, ACT_DTYPE, NULL, RECOMPUTE_NORM_ACT},
    {ACT(norm2.mean), DIM_NONE, ACT_F32, has_norm_mean, RECOMPUTE_BLOCK},
    {ACT(norm2.rstd), DIM_NONE, ACT_F32, NULL, RECOMPUTE_BLOCK},
    {ACT(fc_pre), DIM_FC, ACT_DTYPE, NULL, RECOMPUTE_BLOCK},
    {ACT(fc), DIM_F, ACT_DTYPE, NULL, RECOMPUTE_NORM_ACT},
};
const int ACT_ROW_COUNT = (int)(sizeof ACT_ROWS / sizeof ACT_ROWS[0]);
