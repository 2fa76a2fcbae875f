// format_version.h: one table of the kinds of files that this program writes and reads again, each with the version of
// its format. A file carries its version as "format_version" (in JSON, in a safetensors header's metadata, as the first
// key of a run file) or in its header (shards); one without is of version 1, as files were before they carried it.
// A change of a format that older programs would misread raises the version in format_version.c; the reader then
// keeps reading the older ones. Knows nothing of what the files hold.
//
// Not in it: files whose format is somebody else's (model.safetensors, config.json, tokenizer.json, TensorBoard events,
// llm.c's model file, Llama-3 shards), and the cache of measured matrix-product algorithms, whose lines are measured
// again when they are not understood.
#ifndef LLMC_FORMAT_VERSION_H
#define LLMC_FORMAT_VERSION_H

#include "llmc/base/json.h"

typedef enum {
    FORMAT_RUN_FILE,   // run.conf, and what --print-config prints
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

// The version that is written, the newest that is read.
int64_t format_version(FormatKind kind);
// Errors: a version newer than that, naming path, kind, both versions and what to do; one below 1.
bool format_version_check(FormatKind kind, int64_t found, const char *path, Error *err);
// The same of an object's "format_version", which may be absent; anything else than a whole number is an error.
bool format_version_read(FormatKind kind, const cJSON *object, const char *path, Error *err);
// The same of text; NULL: absent.
bool format_version_parse(FormatKind kind, const char *text, const char *path, Error *err);
// Adds it to an object that is to be written.
void format_version_add(cJSON *object, FormatKind kind);
#endif
