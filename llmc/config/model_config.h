// model_config.h: the architecture as data. One struct describes GPT-2, GPT-3, Llama and Qwen shaped decoders and
// everything between; presets fill it, the run file overrides it, checkpoints store it (as Hugging Face config.json).
// Knows nothing of tensors or devices.
#ifndef LLMC_MODEL_CONFIG_H
#define LLMC_MODEL_CONFIG_H

#include "llmc/base/common.h"
#include "llmc/base/op_types.h"
#include "llmc/base/words.h"

typedef enum { POSITION_LEARNED, POSITION_ROPE, POSITION_NONE } PositionKind;

// What the backward pass computes again instead of keeping it: nothing; the normalized inputs and the activation's
// output (cheap to compute, a third of the memory); whole blocks (one more forward pass, only h_l is kept).
typedef enum { RECOMPUTE_NONE, RECOMPUTE_NORM_ACT, RECOMPUTE_BLOCK } Recompute;

extern const Word POSITION_WORDS[], RECOMPUTE_WORDS[];

// Llama-3.1's frequency rescaling; factor == 0: none.
typedef struct {
    double factor, low_freq_factor, high_freq_factor;
    int64_t original_max_seq_len;
} RopeScaling;

typedef struct {
    int64_t L;            // layers (blocks)
    int64_t C;            // channels (width of the residual stream)
    int64_t NH, NKV, HS;  // query heads, key/value heads, head size; NH*HS need not equal C
    int64_t F;            // feed-forward width
    int64_t V;            // vocabulary
    int64_t Vp;           // V rounded up to MODEL_VOCAB_MULTIPLE: rows of the embedding that exist in memory
    int64_t max_seq_len;  // learned positions, and the default training length
    NormKind norm;
    float norm_eps;
    PositionKind position;
    double rope_theta;
    RopeScaling rope_scaling;
    Activation activation;
    bool norm_bias;       // LayerNorm bias vectors
    bool qkv_bias;        // bias of the q, k, v projection
    bool proj_bias;       // bias of the attention output projection
    bool mlp_bias;        // biases of the feed-forward projections
    bool tied;            // the head is the embedding
    bool qk_norm;         // RMS norm of every q and k head before the rotation
    int64_t window;       // sliding attention window in tokens, 0: none
    float logit_softcap;  // 0: none
    float init_std;       // N(0, init_std); residual projections are divided by sqrt(2L)
} ModelConfig;

#define MODEL_VOCAB_MULTIPLE 128

// "gpt2:124M|355M|774M|1558M" (also 350M, 1.5B), "gpt2:dN" (N layers, C = 64 N),
// "gpt3:125M|350M|760M|1.3B|2.7B|6.7B|13B", "llama:dN", "llama3:1B|3B|8B|70B", "qwen2:0.5B|1.5B|3B|7B",
// "qwen3:0.6B|1.7B|4B|8B", "stories:260K|15M". Unknown names list the known. Derived sizes stay 0 until
// model_config_finish, so that overrides move them; so does V of the dN shapes (the tokenizer decides). max_seq_len
// is a length to pretrain at, which for Llama 3 and Qwen is below what the published weights were extended to.
bool model_config_preset(ModelConfig *out, const char *name, Error *err);
// Fills what is derived (Vp, HS when 0, NKV when 0, F when 0) and rejects what cannot be: zero or negative sizes,
// heads that do not divide, an odd head size with RoPE, ... naming the option and the values.
bool model_config_finish(ModelConfig *config, Error *err);

int64_t model_config_qkv_width(const ModelConfig *config);  // (NH + 2 NKV) HS
// The sliding attention window of a layer, 0: none. (All layers have the same one today.)
int64_t model_config_window(const ModelConfig *config, int64_t layer);
#endif
