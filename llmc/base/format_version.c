// format_version.c: see format_version.h.
#include "llmc/base/format_version.h"

#include <inttypes.h>

static const struct {
    const char *name;
    int64_t version;
} KINDS[FORMAT_KINDS] = {
    [FORMAT_RUN_FILE] = {"run file", 1},
    [FORMAT_SHARD] = {"token shard", 2},
    [FORMAT_DATASET] = {"dataset description", 1},
    [FORMAT_STATE] = {"checkpoint's state", 1},
    [FORMAT_MANIFEST] = {"checkpoint's manifest", 1},
    [FORMAT_OPTIMIZER] = {"checkpoint's optimizer state", 1},
    [FORMAT_METRICS] = {"metrics file", 1},
    [FORMAT_HASHES] = {"hash chain", 1},
};

int64_t format_version(FormatKind kind) {
    CHECK(kind >= 0 && kind < FORMAT_KINDS, "kind=%d", (int)kind);
    return KINDS[kind].version;
}

bool format_version_check(FormatKind kind, int64_t found, const char *path, Error *err) {
    int64_t known = format_version(kind);
    if (found >= 1 && found <= known) return true;
    if (found < 1)
        return error_set(err, "%s: expected a format version of 1 or more, found %" PRId64, path, found);
    return error_set(err, "%s: this %s has format version %" PRId64 ", this program reads versions up to %" PRId64
                          ": use the version of the program that wrote it, or a later one", path, KINDS[kind].name,
                     found, known);
}

bool format_version_read(FormatKind kind, const cJSON *object, const char *path, Error *err) {
    const cJSON *item = json_find(object, FORMAT_VERSION_KEY);
    int64_t found = 1;
    if (item != NULL && !json_as_i64(item, &found))
        return error_set(err, "%s: expected \"" FORMAT_VERSION_KEY "\" to be a whole number", path);
    return format_version_check(kind, found, path, err);
}

bool format_version_parse(FormatKind kind, const char *text, const char *path, Error *err) {
    int64_t found = 1;
    if (text != NULL && !parse_i64(text, &found))
        return error_set(err, "%s: expected " FORMAT_VERSION_KEY " to be a whole number, found '%.40s'", path, text);
    return format_version_check(kind, found, path, err);
}

void format_version_add(cJSON *object, FormatKind kind) {
    cJSON_AddNumberToObject(object, FORMAT_VERSION_KEY, (double)format_version(kind));
}
