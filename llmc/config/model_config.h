// model_config.h: the architecture as data. One struct describes decoders such as GPT-2, GPT-3, Llama and Qwen and
// combinations of their features; presets fill it, the run file overrides it, checkpoints store it (as Hugging Face
// config.json). Must not know tensors or devices.
#ifndef LLMC_MODEL_CONFIG_H
#define LLMC_MODEL_CONFIG_H

#include "llmc/base/common.h"
#include "llmc/base/op_types.h"
#include "llmc/base/words.h"

typedef enum { POSITION_LEARNED, POSITION_ROPE, POSITION_NONE } PositionKind;

// What the backward pass recomputes instead of keeping: nothing; the normalized inputs and the activation's output
// (cheap to compute, a third of the memory); whole blocks (one more forward pass, only h_l is kept).
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
    int64_t V;            // vocabulary size
    int64_t Vp;           // V rounded up to a multiple of MODEL_VOCAB_MULTIPLE: rows of the embedding in memory
    int64_t max_seq_len;  // number of learned positions; also the default training length
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
    bool tied;            // the output head and the token embedding are one matrix
    bool qk_norm;         // RMS norm of every q and k head before the rotation
    int64_t window;       // sliding attention window in tokens; 0: none
    float logit_softcap;  // logits = cap tanh(logits / cap); 0: none
    float init_std;       // N(0, init_std); residual projections are divided by sqrt(2L)
} ModelConfig;

#define MODEL_VOCAB_MULTIPLE 128

// "gpt2:124M|355M|774M|1558M" (also 350M, 1.5B), "gpt2:dN" (N layers, C = 64 N),
// "gpt3:125M|350M|760M|1.3B|2.7B|6.7B|13B", "llama:dN", "llama3:1B|3B|8B|70B", "qwen2:0.5B|1.5B|3B|7B",
// "qwen3:0.6B|1.7B|4B|8B", "stories:260K|15M". The error for an unknown name lists the known ones. Derived sizes stay 0
// until model_config_finish, so that they follow overrides; V of the dN shapes stays 0 too (it comes from the
// tokenizer). max_seq_len is a length for pretraining; for Llama 3 and Qwen the published weights were extended to
// longer contexts.
bool model_config_preset(ModelConfig *out, const char *name, Error *err);
// Fills derived sizes (Vp; HS, NKV and F where they are 0) and rejects impossible ones: zero or negative sizes, heads
// that do not divide the width, an odd head size with RoPE, ... Errors name the option and the values.
bool model_config_finish(ModelConfig *config, Error *err);

int64_t model_config_qkv_width(const ModelConfig *config);  // (NH + 2 NKV) HS
// The sliding attention window of a layer; 0: none. (Today it is the same for all layers.)
int64_t model_config_window(const ModelConfig *config, int64_t layer);
#endif
