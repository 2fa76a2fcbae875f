// hf.h: the names that other people use: Hugging Face's config.json and tensor names for GPT-2, Llama, Mistral, Qwen2
// and Qwen3 dense models, and llm.c's model file. Both import and export walk one map from our parameter table to
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

// Reads config.json of a directory, or the header of an llm.c .bin (magic 20240326). A GPT-2 directory whose files
// lack a kind of bias (config.json has no word for it) gives a config without it.
bool model_file_read_config(ModelConfig *out, const char *path, Error *err);
// Calls `put` once for every parameter of the table, in order, with its fp32 values [spec->elems] (pad rows zero).
// Checks that every tensor is there with the right shape and that none is left over (known harmless ones excepted:
// rotary inv_freq, masks, a tied head that equals the embedding).
typedef bool (*ModelFilePut)(void *context, const ParamSpec *spec, const float *values, Error *err);
bool model_file_read(const char *path, const ModelConfig *config, const ParamTable *params, ModelFilePut put,
                     void *context, Error *err);
// The same parameter by parameter, in any order: for those who read several models side by side.
typedef struct ModelReader ModelReader;
bool model_reader_open(ModelReader **out, const char *path, const ModelConfig *config, const ParamTable *params,
                       Error *err);
bool model_reader_read(ModelReader *reader, const ParamSpec *spec, float *values, Error *err);
void model_reader_close(ModelReader *reader);
int64_t model_file_largest_param(const ParamTable *params);  // its elements: what reading one may take
// Whether weights of the one are weights of the other.
bool model_file_same_architecture(const ModelConfig *a, const ModelConfig *b);

// Gets the fp32 values of elements [first, first + count) of a parameter into out[count].
typedef bool (*ModelFileGet)(void *context, const ParamSpec *spec, int64_t first, int64_t count, float *out,
                             Error *err);
// Host memory that model_file_write_hf takes: two chunks, and for GPT-2 names its largest transposed matrix twice.
size_t model_file_staging_bytes(const ModelConfig *config, const ParamTable *params);
// model.safetensors (dtype fp32 or bf16) inside an existing directory.
bool model_file_write_hf(const char *dir, const ModelConfig *config, const ParamTable *params, DType dtype,
                         ModelFileGet get, void *context, Error *err);

// ---- one model in several files, as Hugging Face has them: whole tensors, balanced by bytes ----
// "model.safetensors", or of several "model-00002-of-00004.safetensors" (shard counts from 0). Caller frees.
char *hf_shard_name(const char *stem, int shard, int shards);
// The shard of what lies at bytes [first, first + bytes) of total_bytes: that of its middle.
int hf_shard_of(int64_t first, int64_t bytes, int64_t total_bytes, int shards);
// Elements of a parameter, whole rows; what the tensors of a shard are made of, in the table's order, at most one
// range of each parameter. Returns the count; caller frees.
typedef struct {
    int param;  // index in the table
    int64_t first, count;
} ParamRange;
int model_file_shard_ranges(ParamRange **out, const ModelConfig *config, const ParamTable *params, int shard,
                            int shards);
// Writes one shard; get is asked for elements of its ranges only, in order.
bool model_file_write_hf_shard(const char *dir, const ModelConfig *config, const ParamTable *params, DType dtype,
                               int shard, int shards, ModelFileGet get, void *context, Error *err);
// model.safetensors.index.json: which tensor is in which shard.
bool model_file_write_hf_index(const char *dir, const ModelConfig *config, const ParamTable *params, DType dtype,
                               int shards, Error *err);

// llm.c's model file: version 3 (fp32) or 5 (bf16); GPT-2 architecture only.
bool model_file_write_llmc(const char *path, const ModelConfig *config, const ParamTable *params, DType dtype,
                           ModelFileGet get, void *context, Error *err);
#endif
