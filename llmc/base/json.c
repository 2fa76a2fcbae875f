// json.c: see json.h.
#include "llmc/base/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// Length of the UTF-8 sequence at p, or 0: no overlong forms, surrogates or code points beyond 10FFFF (RFC 3629).
static size_t utf8_sequence(const unsigned char *p, size_t left) {
    if (p[0] < 0x80) return 1;
    size_t length = p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;
    if (length == 0 || length > left) return 0;
    for (size_t i = 1; i < length; ++i)
        if ((p[i] & 0xc0) != 0x80) return 0;
    bool overlong = (p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xf0 && p[1] < 0x90);
    bool surrogate = p[0] == 0xed && p[1] >= 0xa0, beyond = p[0] == 0xf4 && p[1] >= 0x90;
    return overlong || surrogate || beyond ? 0 : length;
}

static bool utf8_is_valid(const char *text, size_t bytes) {
    const unsigned char *p = (const unsigned char *)text;
    for (size_t i = 0; i < bytes;) {
        size_t length = utf8_sequence(p + i, bytes - i);
        if (length == 0) return false;
        i += length;
    }
    return true;
}

// cJSON returns NUL-terminated strings: a NUL inside, plain or as \u0000, would truncate a name.
static bool has_cut_strings(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) {
        if ((unsigned char)text[i] < 0x20 && strchr("\t\n\r", text[i]) == NULL) return true;
        if (text[i] == '\0') return true;
        if (text[i] != '\\') continue;
        if (bytes - i >= 6 && memcmp(text + i, "\\u0000", 6) == 0) return true;
        ++i;
    }
    return false;
}

static int compare_keys(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// The first duplicate key of any object in the tree; NULL: none.
static const char *find_duplicate_key(const cJSON *item) {
    size_t count = 0;
    const char *found = NULL;
    for (const cJSON *child = item->child; child != NULL && found == NULL; child = child->next, ++count)
        if (child->child != NULL) found = find_duplicate_key(child);
    if (found != NULL || count < 2 || !cJSON_IsObject(item)) return found;
    const char **keys = xmalloc(count * sizeof *keys);
    size_t used = 0;
    for (const cJSON *child = item->child; child != NULL; child = child->next) keys[used++] = child->string;
    qsort(keys, count, sizeof *keys, compare_keys);
    for (size_t i = 1; i < count && found == NULL; ++i)
        if (strcmp(keys[i - 1], keys[i]) == 0) found = keys[i];
    free(keys);
    return found;
}

cJSON *json_parse(const char *text, size_t bytes, const char *path, Error *err) {
    if (!utf8_is_valid(text, bytes)) {
        error_set(err, "%s: expected JSON in UTF-8, found other bytes", path);
        return NULL;
    }
    if (has_cut_strings(text, bytes)) {
        error_set(err, "%s: expected JSON, found control characters", path);
        return NULL;
    }
    const char *end = text;
    cJSON *root = cJSON_ParseWithLengthOpts(text, bytes, &end, false);
    if (root == NULL) {
        error_set(err, "%s: not valid JSON near byte %lld", path, (long long)(end == NULL ? 0 : end - text));
        return NULL;
    }
    size_t used = (size_t)(end - text);
    while (used < bytes && strchr(" \t\n\r", text[used]) != NULL) ++used;
    const char *duplicate = find_duplicate_key(root);
    if (used != bytes)
        error_set(err, "%s: expected the end after the JSON value, found more text at byte %zu", path, used);
    else if (!cJSON_IsObject(root)) error_set(err, "%s: expected a JSON object at the top level", path);
    else if (duplicate != NULL) error_set(err, "%s: duplicate JSON key '%s'", path, duplicate);
    else return root;
    cJSON_Delete(root);
    return NULL;
}

cJSON *json_parse_file(const char *path, size_t max_bytes, Error *err) {
    char *text;
    size_t bytes;
    if (!file_read_all(path, max_bytes, &text, &bytes, err)) return NULL;
    cJSON *root = json_parse(text, bytes, path, err);
    free(text);
    return root;
}

const cJSON *json_find(const cJSON *object, const char *key) {
    return cJSON_GetObjectItemCaseSensitive(object, key);
}

bool json_as_f64(const cJSON *item, double *out) {
    if (!cJSON_IsNumber(item) || !isfinite(item->valuedouble)) return false;
    *out = item->valuedouble;
    return true;
}

bool json_as_i64(const cJSON *item, int64_t *out) {
    double value;
    if (!json_as_f64(item, &value) || !(fabs(value) <= 0x1p53) || value != trunc(value)) return false;
    *out = (int64_t)value;
    return true;
}
