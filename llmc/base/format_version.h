// format_version.h: the kinds of files that this program writes and reads back, each with the version of its format.
// A file stores its version as "format_version" (in JSON, in the metadata of a safetensors header, as the first key
// of a run file) or in its header (shards); a file without it has version 1. A change that older programs would
// misread raises the version in format_version.c; the reader keeps reading the older versions. Must not know the
// contents of the files.
//
// Not listed: files in external formats (model.safetensors, config.json, tokenizer.json, TensorBoard events, llm.c's
// model file, Llama-3 shards), and the cache of measured matmul algorithms, whose unreadable lines are measured
// again.
#ifndef LLMC_FORMAT_VERSION_H
#define LLMC_FORMAT_VERSION_H

#include "llmc/base/json.h"

typedef enum {
    FORMAT_RUN_FILE,   // run.conf, and the output of --print-config
    FORMAT_SHARD,      // *.bin: in the header; 1 is llm.c's
    FORMAT_DATASET,    // dataset.json
    FORMAT_STATE,      // state.json of a checkpoint
    FORMAT_MANIFEST,   // MANIFEST.json of a checkpoint
    FORMAT_OPTIMIZER,  // optimizer*.safetensors of a checkpoint
    FORMAT_METRICS,    // metrics.jsonl: in every line that holds the config
    FORMAT_HASHES,     // hashes.jsonl: in its first line
    FORMAT_KINDS
} FormatKind;

#define FORMAT_VERSION_KEY "format_version"

// The version that is written; also the newest that is read.
int64_t format_version(FormatKind kind);
// Errors: a newer version (the message names path, kind, both versions and what to do); a version below 1.
bool format_version_check(FormatKind kind, int64_t found, const char *path, Error *err);
// The same for an object's "format_version", which may be absent; any other value than a whole number is an error.
bool format_version_read(FormatKind kind, const cJSON *object, const char *path, Error *err);
// The same for text; NULL: absent.
bool format_version_parse(FormatKind kind, const char *text, const char *path, Error *err);
// Adds it to an object before it is written.
void format_version_add(cJSON *object, FormatKind kind);
#endif
