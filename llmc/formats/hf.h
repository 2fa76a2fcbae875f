// hf.h: the names that other people use: Hugging Face's config.json and tensor names for GPT-2, Llama, Mistral, Qwen2
// and Qwen3 dense models. Both import and export walk one map from our parameter table to
// theirs.
#ifndef LLMC_HF_H
#define LLMC_HF_H

#include "llmc/model/params.h"

// Which names and which bias vectors the other side has. A bias that it has and the model has not is written as
// zeros, and when read may be absent but must be zero: adding it changes nothing.
typedef struct {
    bool gpt2_names;  // else Llama's
    bool norm_bias, qkv_bias, proj_bias, mlp_bias;
} HfLayout;

// One tensor of the other side: rows [first_row, first_row + rows) of our parameter, transposed for GPT-2's Conv1D.
typedef struct {
    char name[128];
    const ParamSpec *spec;  // NULL: zeros
    int64_t first_row, rows;
    bool transposed;
    int ndim;
    int64_t dim[2];  // as the other side stores it
} HfTensor;

typedef struct {
    HfTensor *tensor;  // in the order of the parameter table; the parts of a parameter follow each other
    int count;
} HfMap;

// Which architecture name the config can be exported as: "GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM",
// "Qwen2ForCausalLM", "Qwen3ForCausalLM"; "TokamakForCausalLM" (Llama names) when none of them computes this model.
const char *hf_architecture(const ModelConfig *config);
HfLayout hf_layout(const ModelConfig *config);  // of that architecture
void hf_map_build(HfMap *map, const ParamTable *params, const ModelConfig *config);
void hf_map_build_as(HfMap *map, const ParamTable *params, HfLayout layout);
void hf_map_free(HfMap *map);

// config.json text. bos/eos ids < 0 are null (left out, transformers would fill in its own). Caller frees.
char *hf_config_write(const ModelConfig *config, DType dtype, int64_t bos, int64_t eos);
// Strict about what changes results (activation, rope_scaling kinds, tie_word_embeddings, head_dim, sliding window,
// ...): what we cannot compute exactly is an error naming the key and value.
bool hf_config_read(ModelConfig *out, const char *json, const char *path, Error *err);
#endif
