// hf.h: Hugging Face's config.json and tensor names for dense GPT-2, Llama, Mistral, Qwen2 and Qwen3 models. Import and
// export use the same map from this engine's parameter table to Hugging Face's tensors. Must not know devices or ranks.
#ifndef LLMC_HF_H
#define LLMC_HF_H

#include "llmc/model/params.h"

// Names and bias vectors of a Hugging Face architecture. A bias that it has and the model lacks is written as zeros;
// when read, it may be absent, but if present it must be zero.
typedef struct {
    bool gpt2_names;  // else Llama's
    bool norm_bias, qkv_bias, proj_bias, mlp_bias;
} HfLayout;

// One Hugging Face tensor: rows [first_row, first_row + rows) of a parameter, transposed for GPT-2's Conv1D.
typedef struct {
    char name[128];
    const ParamSpec *spec;  // NULL: zeros
    int64_t first_row, rows;
    bool transposed;
    int ndim;
    int64_t dim[2];  // as Hugging Face stores it
} HfTensor;

typedef struct {
    HfTensor *tensor;  // in the order of the parameter table; the parts of a parameter are contiguous
    int count;
} HfMap;

// The architecture name for export: "GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM" or
// "Qwen3ForCausalLM"; "TokamakForCausalLM" (with Llama's tensor names) when none of them computes this model.
const char *hf_architecture(const ModelConfig *config);
HfLayout hf_layout(const ModelConfig *config);  // of that architecture
void hf_map_build(HfMap *map, const ParamTable *params, const ModelConfig *config);
void hf_map_build_as(HfMap *map, const ParamTable *params, HfLayout layout);
void hf_map_free(HfMap *map);

// The text of config.json. bos/eos ids < 0 are written as null (for absent keys transformers would use its defaults).
// Caller frees.
char *hf_config_write(const ModelConfig *config, DType dtype, int64_t bos, int64_t eos);
// Strict about keys that change results (activation, rope_scaling kinds, tie_word_embeddings, head_dim, sliding window,
// ...): a value that this engine cannot compute exactly is an error with the key and value.
bool hf_config_read(ModelConfig *out, const char *json, const char *path, Error *err);
#endif
