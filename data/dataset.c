// dataset.c: see dataset.h.
#include "data/dataset.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/format_version.h"
#include "llmc/loader/shard.h"

static const char *const SPLIT_NAMES[SPLIT_COUNT] = {"train", "val"};

typedef struct {
    ShardWriter *writer;  // of the current shard, or NULL
    int64_t in_shard;     // tokens in it
    DatasetTotals totals;
} Split;

struct Dataset {
    DatasetSpec spec;
    char *temporary;
    Split splits[SPLIT_COUNT];
};

// 0: absent, 1: an empty directory, 2: a dataset, 3: something else.
static int what_is_at(const char *dir) {
    DIR *stream = opendir(dir);
    if (stream == NULL) return errno == ENOENT ? 0 : 3;
    int kind = 1;
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) kind = 3;
    closedir(stream);
    char *meta = path_join(dir, "dataset.json");
    if (file_exists(meta)) kind = 2;
    free(meta);
    return kind;
}

// The path without trailing slashes.
static char *trimmed(const char *dir) {
    char *path = xstrdup(dir);
    for (size_t length = strlen(path); length > 1 && path[length - 1] == '/'; --length) path[length - 1] = '\0';
    return path;
}
static char *parent_of(const char *path) {
    const char *slash = strrchr(path, '/');
    if (slash == NULL) return xstrdup(".");
    return xasprintf("%.*s", (int)(slash == path ? 1 : slash - path), path);
}

Dataset *dataset_create(const DatasetSpec *spec, Error *err) {
    int kind = what_is_at(spec->dir);
    if (kind == 3 || (kind == 2 && !spec->overwrite)) {
        error_set(err, "%s: %s", spec->dir,
                  kind == 2 ? "the directory already holds a dataset; use --overwrite to replace it"
                            : "expected a new or empty directory, found other files or no directory");
        return NULL;
    }
    Dataset *dataset = xcalloc(1, sizeof *dataset);
    dataset->spec = *spec;
    char *path = trimmed(spec->dir);
    dataset->temporary = xasprintf("%s.tmp", path);
    free(path);
    // An interrupted run may have left this directory.
    if (remove_tree(dataset->temporary, err) && make_dirs(dataset->temporary, err)) return dataset;
    free(dataset->temporary);
    free(dataset);
    return NULL;
}

static char *shard_path(const Dataset *dataset, DatasetSplit split, int index) {
    return xasprintf("%s/%s_%06d.bin", dataset->temporary, SPLIT_NAMES[split], index);
}

static bool finish_shard(Split *split, Error *err) {
    ShardWriter *writer = split->writer;
    split->writer = NULL;
    return writer == NULL || shard_writer_finish(writer, err);
}

bool dataset_append(Dataset *dataset, DatasetSplit which, const int32_t *tokens, int64_t count, int64_t documents,
                    int64_t text_bytes, Error *err) {
    Split *split = &dataset->splits[which];
    split->totals.tokens += count;
    split->totals.documents += documents;
    split->totals.text_bytes += text_bytes;
    while (count > 0) {
        if (split->in_shard == dataset->spec.shard_tokens && !finish_shard(split, err)) return false;
        if (split->writer == NULL) {
            char *path = shard_path(dataset, which, split->totals.shards);
            const Tokenizer *t = dataset->spec.tokenizer;
            split->writer =
                shard_writer_open(path, dataset->spec.shard_version, tokenizer_vocab(t), tokenizer_eot(t), err);
            free(path);
            if (split->writer == NULL) return false;
            ++split->totals.shards;
            split->in_shard = 0;
        }
        int64_t step = min_i64(count, dataset->spec.shard_tokens - split->in_shard);
        if (!shard_writer_append(split->writer, tokens, step, err)) return false;
        split->in_shard += step;
        tokens += step;
        count -= step;
    }
    return true;
}

DatasetTotals dataset_totals(const Dataset *dataset, DatasetSplit split) { return dataset->splits[split].totals; }

static cJSON *describe_split(const Split *split, const char *name) {
    cJSON *item = cJSON_CreateObject();
    char pattern[32];
    snprintf(pattern, sizeof pattern, "%s_*.bin", name);
    cJSON_AddStringToObject(item, "shards", pattern);
    cJSON_AddNumberToObject(item, "shard_count", split->totals.shards);
    cJSON_AddNumberToObject(item, "tokens", (double)split->totals.tokens);
    cJSON_AddNumberToObject(item, "documents", (double)split->totals.documents);
    cJSON_AddNumberToObject(item, "text_bytes", (double)split->totals.text_bytes);
    return item;
}

static bool write_description(const Dataset *dataset, Error *err) {
    const DatasetSpec *spec = &dataset->spec;
    cJSON *root = cJSON_CreateObject();
    format_version_add(root, FORMAT_DATASET);
    cJSON *tokenizer = cJSON_AddObjectToObject(root, "tokenizer");
    cJSON *splits = cJSON_AddObjectToObject(root, "splits"), *sources = cJSON_AddArrayToObject(root, "sources");
    char fingerprint[20];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, tokenizer_fingerprint(spec->tokenizer));
    cJSON_AddStringToObject(tokenizer, "name", tokenizer_name(spec->tokenizer));
    cJSON_AddStringToObject(tokenizer, "fingerprint", fingerprint);
    cJSON_AddNumberToObject(tokenizer, "vocab", tokenizer_vocab(spec->tokenizer));
    cJSON_AddNumberToObject(tokenizer, "eot", tokenizer_eot(spec->tokenizer));
    for (int i = 0; i < SPLIT_COUNT; ++i)
        if (dataset->splits[i].totals.shards > 0)
            cJSON_AddItemToObject(splits, SPLIT_NAMES[i], describe_split(&dataset->splits[i], SPLIT_NAMES[i]));
    cJSON_AddStringToObject(root, "document", spec->docs);
    cJSON_AddNumberToObject(root, "shard_version", spec->shard_version);
    for (int i = 0; i < spec->source_count; ++i) cJSON_AddItemToArray(sources, cJSON_CreateString(spec->sources[i]));
    char *text = cJSON_Print(root), *path = path_join(dataset->temporary, "dataset.json");
    CHECK(text != NULL, "out of memory");
    bool ok = file_write_atomic(path, text, strlen(text), err);
    free(path);
    free(text);
    cJSON_Delete(root);
    return ok;
}

static bool rename_into_place(const Dataset *dataset, Error *err) {
    char *path = trimmed(dataset->spec.dir), *parent = parent_of(path), *old = xasprintf("%s.old", path);
    bool replaces = what_is_at(path) == 2;
    bool ok =
        !replaces || (remove_tree(old, err) &&
                      (rename(path, old) == 0 || error_set(err, "%s: cannot rename: %s", path, strerror(errno))));
    if (ok && rename(dataset->temporary, path) != 0) {
        ok = error_set(err, "%s: cannot rename to %s: %s", dataset->temporary, path, strerror(errno));
        if (replaces) rename(old, path);
    }
    ok = ok && fsync_dir(parent, err) && (!replaces || remove_tree(old, err));
    free(path);
    free(parent);
    free(old);
    return ok;
}

static void free_dataset(Dataset *dataset) {
    free(dataset->temporary);
    free(dataset);
}

bool dataset_commit(Dataset *dataset, Error *err) {
    bool ok = true;
    for (int i = 0; i < SPLIT_COUNT && ok; ++i) ok = finish_shard(&dataset->splits[i], err);
    ok = ok && write_description(dataset, err) && tokenizer_save(dataset->spec.tokenizer, dataset->temporary, err) &&
         fsync_dir(dataset->temporary, err) && rename_into_place(dataset, err);
    if (ok) free_dataset(dataset);
    else dataset_abort(dataset);
    return ok;
}

void dataset_abort(Dataset *dataset) {
    if (dataset == NULL) return;
    for (int i = 0; i < SPLIT_COUNT; ++i)
        if (dataset->splits[i].writer != NULL) shard_writer_abort(dataset->splits[i].writer);
    remove_tree(dataset->temporary, NULL);
    free_dataset(dataset);
}
