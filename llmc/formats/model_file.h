// model_file.h: reads and writes model weights, one parameter at a time, as Hugging Face directories (one file or
// shards) and llm.c's model file. The caller's functions hold the values. Must not know devices, ranks or optimizers.
#ifndef LLMC_MODEL_FILE_H
#define LLMC_MODEL_FILE_H

#include "llmc/formats/hf.h"

// Reads config.json of a directory, or the header of an llm.c .bin (magic 20240326). If the files of a GPT-2 directory
// lack a kind of bias (config.json cannot state this), the config is without it.
bool model_file_read_config(ModelConfig *out, const char *path, Error *err);
// Calls `put` once for every parameter of the table, in order, with its fp32 values [spec->elems] (pad rows zero).
// Checks that every tensor is present with the right shape and that there are no others (except known redundant ones:
// rotary inv_freq, masks, a tied head that equals the embedding).
typedef bool (*ModelFilePut)(void *context, const ParamSpec *spec, const float *values, Error *err);
bool model_file_read(const char *path, const ModelConfig *config, const ParamTable *params, ModelFilePut put,
                     void *context, Error *err);
// Reads one parameter at a time, in any order; used to read several models together.
typedef struct ModelReader ModelReader;
bool model_reader_open(ModelReader **out, const char *path, const ModelConfig *config, const ParamTable *params,
                       Error *err);
bool model_reader_read(ModelReader *reader, const ParamSpec *spec, float *values, Error *err);
void model_reader_close(ModelReader *reader);
int64_t model_file_largest_param(const ParamTable *params);  // elements of the largest parameter: room for reading one
// Whether the two configs have the same weights.
bool model_file_same_architecture(const ModelConfig *a, const ModelConfig *b);

// out[count] = the fp32 values of elements [first, first + count) of a parameter.
typedef bool (*ModelFileGet)(void *context, const ParamSpec *spec, int64_t first, int64_t count, float *out,
                             Error *err);
// Host bytes that model_file_write_hf allocates: two chunks, and with GPT-2 names twice the largest transposed matrix.
size_t model_file_staging_bytes(const ModelConfig *config, const ParamTable *params);
// Writes model.safetensors (dtype fp32 or bf16) to an existing directory.
bool model_file_write_hf(const char *dir, const ModelConfig *config, const ParamTable *params, DType dtype,
                         ModelFileGet get, void *context, Error *err);

// ---- one model in several files, as in Hugging Face: whole tensors, balanced by bytes ----
// "model.safetensors", or with several shards "model-00002-of-00004.safetensors" (shard: from 0). Caller frees.
char *hf_shard_name(const char *stem, int shard, int shards);
// The shard of a tensor at bytes [first, first + bytes) of total_bytes: the shard that contains its middle.
int hf_shard_of(int64_t first, int64_t bytes, int64_t total_bytes, int shards);
// A range of elements of a parameter: whole rows. The ranges of a shard are in the order of the table, at most one per
// parameter. Returns their number; caller frees.
typedef struct {
    int param;  // index in the table
    int64_t first, count;
} ParamRange;
int model_file_shard_ranges(ParamRange **out, const ModelConfig *config, const ParamTable *params, int shard,
                            int shards);
// Writes one shard; calls get only for elements of its ranges, in order.
bool model_file_write_hf_shard(const char *dir, const ModelConfig *config, const ParamTable *params, DType dtype,
                               int shard, int shards, ModelFileGet get, void *context, Error *err);
// Writes model.safetensors.index.json, which maps tensors to shards.
bool model_file_write_hf_index(const char *dir, const ModelConfig *config, const ParamTable *params, DType dtype,
                               int shards, Error *err);

// llm.c's model file: version 3 (fp32) or 5 (bf16); GPT-2 architecture only.
bool model_file_write_llmc(const char *path, const ModelConfig *config, const ParamTable *params, DType dtype,
                           ModelFileGet get, void *context, Error *err);
#endif
