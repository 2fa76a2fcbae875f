// hash_file.c: see hash_file.h.
#include "llmc/train/hash_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "llmc/base/format_version.h"

#define FILE_MAX_BYTES ((size_t)1 << 30)

uint64_t hash_link_chain(uint64_t before, const HashLink *link) {
    const uint64_t all[5] = {before, (uint64_t)link->step, link->data, link->weights, link->optimizer};
    unsigned char bytes[sizeof all];  // little-endian everywhere
    for (size_t i = 0; i < sizeof bytes; ++i) bytes[i] = (unsigned char)(all[i / 8] >> (i % 8 * 8));
    return XXH3_64bits(bytes, sizeof bytes);
}

size_t hash_link_format(char out[HASH_LINK_BYTES], const HashLink *link) {
    int length = snprintf(out, HASH_LINK_BYTES,
                          "{\"step\":%" PRId64 ",\"since\":%" PRId64 ",\"data\":\"%016" PRIx64
                          "\",\"weights\":\"%016" PRIx64 "\",\"optimizer\":\"%016" PRIx64 "\",\"chain\":\"%016" PRIx64
                          "\"}\n", link->step, link->since, link->data, link->weights, link->optimizer, link->chain);
    CHECK(length > 0 && length < HASH_LINK_BYTES, "a line of %d bytes", length);
    return (size_t)length;
}

#define HEADER_START "{\"step\":0,"  // links have steps from 1

size_t hash_header_format(char out[HASH_LINK_BYTES]) {
    return (size_t)snprintf(out, HASH_LINK_BYTES, HEADER_START "\"" FORMAT_VERSION_KEY "\":%" PRId64 "}\n",
                            format_version(FORMAT_HASHES));
}

static bool check_header(const char *text, size_t bytes, const char *place, Error *err) {
    cJSON *object = json_parse(text, bytes, place, err);
    bool ok = object != NULL && format_version_read(FORMAT_HASHES, object, place, err);
    cJSON_Delete(object);
    return ok;
}

static bool read_hash(uint64_t *out, const cJSON *object, const char *key) {
    const cJSON *item = json_find(object, key);
    const char *text = cJSON_IsString(item) ? item->valuestring : "";
    if (strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16) return false;
    *out = strtoull(text, NULL, 16);
    return true;
}

static bool parse_link(HashLink *link, const char *text, size_t bytes, const char *place, Error *err) {
    cJSON *object = json_parse(text, bytes, place, err);
    if (object == NULL) return false;
    bool ok = json_as_i64(json_find(object, "step"), &link->step) &&
              json_as_i64(json_find(object, "since"), &link->since) && link->since >= 0 && link->step > link->since &&
              read_hash(&link->data, object, "data") && read_hash(&link->weights, object, "weights") &&
              read_hash(&link->optimizer, object, "optimizer") && read_hash(&link->chain, object, "chain");
    cJSON_Delete(object);
    return ok || error_set(err, "%s: expected a step, the smaller step \"since\", and data, weights, optimizer and "
                                "chain of 16 hexadecimal digits each", place);
}

// before: NULL for the first line. If links are missing between the two, the chain cannot be checked.
static bool check_order(const HashLink *link, const HashLink *before, const char *place, Error *err) {
    if (before != NULL && link->since < before->step)
        return error_set(err, "%s: expected a link of steps after %" PRId64 ", found one of steps %" PRId64
                              " to %" PRId64, place, before->step, link->since + 1, link->step);
    bool follows = before != NULL ? link->since == before->step : link->since == 0;
    if (follows && hash_link_chain(before != NULL ? before->chain : 0, link) != link->chain)
        return error_set(err, "%s: its chain does not follow from %s: the file was changed or damaged", place,
                         before != NULL ? "the line before" : "its hashes");
    return true;
}

static bool parse_lines(HashFile *file, const char *text, Error *err) {
    int64_t capacity = 0;
    for (int64_t number = 1; *text != '\0'; ++number) {
        const char *end = strchr(text, '\n');
        file->unfinished = end == NULL;
        if (end == NULL) break;
        if (file->count == capacity) {
            capacity = max_i64(2 * capacity, 256);
            file->link = xrealloc(file->link, to_size(capacity) * sizeof *file->link);
        }
        HashLink *link = &file->link[file->count];
        char *place = xasprintf("%s:%" PRId64, file->path, number);
        bool header = number == 1 && strncmp(text, HEADER_START, strlen(HEADER_START)) == 0;
        bool ok = header ? check_header(text, (size_t)(end - text), place, err)
                         : parse_link(link, text, (size_t)(end - text), place, err) &&
                               check_order(link, file->count > 0 ? link - 1 : NULL, place, err);
        free(place);
        if (!ok) return false;
        file->count += !header;
        text = end + 1;
    }
    return file->count > 0 || error_set(err, "%s: expected links of a hash chain, found none yet", file->path);
}

bool hash_file_read(HashFile *out, const char *path, Error *err) {
    *out = (HashFile){.path = dir_exists(path) ? path_join(path, HASH_FILE_NAME ".jsonl") : xstrdup(path)};
    char *text = NULL;
    size_t bytes = 0;
    bool ok = file_exists(out->path) ||
              error_set(err, "%s: there is no such file: a run writes it when hash_every=N is set",
                        out->path);
    ok = ok && file_read_all(out->path, FILE_MAX_BYTES, &text, &bytes, err);
    if (ok && strlen(text) != bytes) ok = error_set(err, "%s: damaged: it contains a zero byte", out->path);
    ok = ok && parse_lines(out, text, err);
    free(text);
    if (!ok) hash_file_free(out);
    return ok;
}

void hash_file_free(HashFile *file) {
    free(file->path);
    free(file->link);
    *file = (HashFile){0};
}
