// model_file.h: models in files, as Hugging Face directories (whole or in shards) and llm.c's model file: read parameter by
// parameter, written from whoever has the values. Must not know where values live (device, ranks, optimizer).
#ifndef LLMC_MODEL_FILE_H
#define LLMC_MODEL_FILE_H

#include "llmc/formats/hf.h"

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
