// dataset.h: the directory that tokenize writes: shards, tokenizer.json and dataset.json (data/FORMAT.md). It is
// filled under a temporary name and renamed at the end, so that it is complete or not there. Knows nothing of text.
#ifndef DATA_DATASET_H
#define DATA_DATASET_H

#include "llmc/base/common.h"
#include "llmc/tokenizer/tokenizer.h"

typedef enum { SPLIT_TRAIN, SPLIT_VAL, SPLIT_COUNT } DatasetSplit;

typedef struct {
    const char *dir;
    const Tokenizer *tokenizer;
    int shard_version;     // 1 or 2
    int64_t shard_tokens;  // at most, a shard
    bool overwrite;        // an older dataset in dir may go
    const char *docs;      // what a document was, for dataset.json
    char **sources;        // names of the inputs
    int source_count;
} DatasetSpec;

typedef struct {
    int64_t tokens, documents, text_bytes;
    int shards;
} DatasetTotals;

typedef struct Dataset Dataset;
// Keeps spec's pointers. Errors: dir is there and is no empty directory (nor, with overwrite, a dataset); not
// writable.
Dataset *dataset_create(const DatasetSpec *spec, Error *err);
// Appends tokens of one split; documents: how many of them start here; text_bytes: that the tokens stand for.
bool dataset_append(Dataset *dataset, DatasetSplit split, const int32_t *tokens, int64_t count, int64_t documents,
                    int64_t text_bytes, Error *err);
DatasetTotals dataset_totals(const Dataset *dataset, DatasetSplit split);
// Completes the shards, writes dataset.json and the tokenizer, and renames the directory. Frees in any case.
bool dataset_commit(Dataset *dataset, Error *err);
void dataset_abort(Dataset *dataset);  // removes everything; NULL is fine

#endif
