// matmul_cache.cu: the file of the fastest measured algorithms, so that the next run and a resumed run compute the
// same bits and measure nothing.
//
//     <cache_dir>/matmul-<GPU>-<library version>.txt
//     one line per choice: the key's numbers, FUSE_ bits, the algorithm's 8 words, microseconds, a hash of all this
//
// A line is appended by one write as soon as it is known, so that a killed process loses nothing; of several lines
// for one key the first is valid, also for the process that wrote a later one. The hash begins with the names of the
// GPU and the library: lines that are damaged, incomplete or from another machine are ignored, and their keys are
// measured again.
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/cuda/matmul.h"

#define MOST_FILE_BYTES ((size_t)64 << 20)
#define LINE_BYTES 1024
#define ALGO_WORDS (sizeof(cublasLtMatmulAlgo_t) / sizeof(uint64_t))

// The line without its hash; returns its length.
static size_t print_choice(char line[LINE_BYTES], const MatmulChoice *choice) {
    size_t used = 0;
    for (int i = 0; i < KEY_COUNT; ++i)
        used += (size_t)snprintf(line + used, LINE_BYTES - used, "%lld ", (long long)choice->key.v[i]);
    used += (size_t)snprintf(line + used, LINE_BYTES - used, "%u ", choice->fused);
    for (size_t i = 0; i < ALGO_WORDS; ++i)
        used += (size_t)snprintf(line + used, LINE_BYTES - used, "%016llx ",
                                 (unsigned long long)choice->algo.data[i]);
    used += (size_t)snprintf(line + used, LINE_BYTES - used, "%.1f ", choice->microseconds);
    CHECK(used < LINE_BYTES - 32, "a line of %zu characters", used);
    return used;
}

// The hash is right, so print_choice wrote the rest.
static void parse_choice(MatmulChoice *choice, const char *line) {
    memset(choice, 0, sizeof *choice);
    char *at = (char *)line;
    for (int i = 0; i < KEY_COUNT; ++i) choice->key.v[i] = strtoll(at, &at, 10);
    choice->fused = (unsigned)strtoul(at, &at, 10);
    for (size_t i = 0; i < ALGO_WORDS; ++i) choice->algo.data[i] = strtoull(at, &at, 16);
    choice->microseconds = strtod(at, &at);
}
static bool line_is_sound(const MatmulCache *cache, const char *line, size_t length) {
    if (length < 17 || line[length - 17] != ' ') return false;
    char expected[17];
    snprintf(expected, sizeof expected, "%016llx",
             (unsigned long long)matmul_hash(line, length - 16, cache->seed));
    return memcmp(expected, line + length - 16, 16) == 0;
}

const MatmulChoice *matmul_cache_find(const MatmulCache *cache, const MatmulKey *key) {
    for (int64_t i = 0; i < cache->count; ++i)
        if (memcmp(&cache->choices[i].key, key, sizeof *key) == 0) return &cache->choices[i];
    return NULL;
}
static void keep_first(MatmulCache *cache, const MatmulChoice *choice) {
    if (matmul_cache_find(cache, &choice->key) != NULL) return;
    cache->choices = (MatmulChoice *)xrealloc(cache->choices, to_size(cache->count + 1) * sizeof *choice);
    cache->choices[cache->count++] = *choice;
}

// Reads the file again; a missing file is empty. Choices from the file replace those in memory.
static void read_file(MatmulCache *cache) {
    char *text = NULL;
    size_t bytes = 0;
    Error err = {""};
    cache->open_end = false;
    if (!file_exists(cache->path)) return;
    if (!file_read_all(cache->path, MOST_FILE_BYTES, &text, &bytes, &err)) {
        fprintf(stderr, "%s; matmul algorithms will be measured again\n", err.message);
        return;
    }
    cache->count = 0;
    int64_t damaged = 0;
    for (size_t at = 0; at < bytes;) {
        size_t length = 0;
        while (at + length < bytes && text[at + length] != '\n') ++length;
        if (at + length < bytes && line_is_sound(cache, text + at, length)) {
            MatmulChoice choice;
            text[at + length] = '\0';
            parse_choice(&choice, text + at);
            keep_first(cache, &choice);
        } else if (length > 0) {
            ++damaged;
        }
        at += length + 1;
    }
    cache->open_end = bytes > 0 && text[bytes - 1] != '\n' && text[bytes - 1] != '\0';
    free(text);
    if (damaged > cache->damaged)
        fprintf(stderr, "%s: %lld damaged or foreign lines are ignored; their algorithms will be measured again\n",
                cache->path, (long long)damaged);
    cache->damaged = damaged;
}

void matmul_cache_open(MatmulCache *cache, const char *dir, const char *gpu_name, size_t library_version) {
    memset(cache, 0, sizeof *cache);
    cache->seed = matmul_hash(&library_version, sizeof library_version,
                              matmul_hash(gpu_name, strlen(gpu_name), MATMUL_HASH_START));
    if (dir[0] == '\0') return;
    char *name = xasprintf("matmul-%s-%zu.txt", gpu_name, library_version);
    for (char *c = name; *c != '\0'; ++c)
        if (!isalnum((unsigned char)*c) && *c != '.') *c = '-';
    cache->path = path_join(dir, name);
    free(name);
    read_file(cache);
}
void matmul_cache_close(MatmulCache *cache) {
    free(cache->path);
    free(cache->choices);
    memset(cache, 0, sizeof *cache);
}

// Appends text by one write. The directory is created before the first line.
static bool append(MatmulCache *cache, const char *text, size_t bytes, Error *err) {
    char *dir = xstrdup(cache->path);
    *strrchr(dir, '/') = '\0';
    bool made = make_dirs(dir, err);
    free(dir);
    if (!made) return false;
    const int file = open(cache->path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (file < 0) return error_set(err, "%s: cannot write: %s", cache->path, strerror(errno));
    const ssize_t written = write(file, text, bytes);
    const bool failed = written != (ssize_t)bytes || fdatasync(file) != 0;
    if (failed) error_set(err, "%s: cannot write: %s", cache->path, written < 0 ? strerror(errno) : "disk full");
    close(file);
    return !failed;
}

const MatmulChoice *matmul_cache_add(MatmulCache *cache, const MatmulChoice *choice) {
    if (cache->path != NULL) {
        char line[LINE_BYTES + 2];
        size_t start = 0, used;
        if (cache->open_end) line[start++] = '\n';  // ends an incomplete line
        used = start + print_choice(line + start, choice);
        used += (size_t)snprintf(line + used, sizeof line - used, "%016llx\n",
                                 (unsigned long long)matmul_hash(line + start, used - start, cache->seed));
        Error err = {""};
        if (append(cache, line, used, &err)) {
            read_file(cache);
        } else {
            fprintf(stderr, "%s; a run resumed from this run's checkpoints may differ in the last bits\n",
                    err.message);
            free(cache->path);  // warn once
            cache->path = NULL;
        }
    }
    keep_first(cache, choice);
    return matmul_cache_find(cache, &choice->key);
}
