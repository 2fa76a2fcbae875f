// dataset.h: the directory that prep tokenize writes: shards, tokenizer.json and dataset.json (data/FORMAT.md). It is
// written under a temporary name and renamed at the end, so it is complete or absent. Must not know text.
#ifndef DATA_DATASET_H
#define DATA_DATASET_H

#include "llmc/base/common.h"
#include "llmc/tokenizer/tokenizer.h"

typedef enum { SPLIT_TRAIN, SPLIT_VAL, SPLIT_COUNT } DatasetSplit;

typedef struct {
    const char *dir;
    const Tokenizer *tokenizer;
    int shard_version;     // 1 or 2
    int64_t shard_tokens;  // most tokens of a shard
    bool overwrite;        // an existing dataset in dir may be replaced
    const char *docs;      // the document mode, for dataset.json
    char **sources;        // names of the inputs
    int source_count;
} DatasetSpec;

typedef struct {
    int64_t tokens, documents, text_bytes;
    int shards;
} DatasetTotals;

typedef struct Dataset Dataset;
// Keeps spec's pointers. Errors: dir exists and is not an empty directory (nor, with overwrite, a dataset); it is not
// writable.
Dataset *dataset_create(const DatasetSpec *spec, Error *err);
// Appends tokens of one split. documents: number of documents that start in them; text_bytes: bytes of their text.
bool dataset_append(Dataset *dataset, DatasetSplit split, const int32_t *tokens, int64_t count, int64_t documents,
                    int64_t text_bytes, Error *err);
DatasetTotals dataset_totals(const Dataset *dataset, DatasetSplit split);
// Completes the shards, writes dataset.json and the tokenizer, and renames the directory. Frees also on error.
bool dataset_commit(Dataset *dataset, Error *err);
void dataset_abort(Dataset *dataset);  // removes everything; NULL is fine

#endif
