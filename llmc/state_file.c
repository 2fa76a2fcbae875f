// state_file.c: see state_file.h.
#include "llmc/state_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/json.h"

#define STATE_FORMAT 1

char *state_file_write(const StateFile *state, const char *config_json) {
    cJSON *root = cJSON_CreateObject();
    char fingerprint[32];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, state->tokenizer_fingerprint);
    cJSON_AddNumberToObject(root, "format", STATE_FORMAT);
    cJSON_AddNumberToObject(root, "step", (double)state->progress.step);
    cJSON_AddNumberToObject(root, "bad_steps", (double)state->progress.bad_steps);
    cJSON_AddNumberToObject(root, "bad_in_row", (double)state->progress.bad_in_row);
    cJSON_AddNumberToObject(root, "seconds", state->progress.seconds);
    cJSON_AddStringToObject(root, "optimizer", state->optimizer);
    cJSON_AddStringToObject(root, "dtype", state->dtype);
    cJSON_AddBoolToObject(root, "master_weights", state->master_weights);
    cJSON_AddStringToObject(root, "tokenizer_fingerprint", fingerprint);
    cJSON_AddItemToObject(root, "config", cJSON_Parse(config_json));
    char *text = cJSON_Print(root);
    cJSON_Delete(root);
    return text;
}

static bool read_count(const cJSON *root, const char *key, int64_t *out, const char *path, Error *err) {
    if (!json_as_i64(json_find(root, key), out) || *out < 0)
        return error_set(err, "%s: expected \"%s\" to be a whole number of 0 or more", path, key);
    return true;
}

// One of two words.
static bool read_word(const cJSON *root, const char *key, char *out, size_t out_bytes, const char *one,
                      const char *other, const char *path, Error *err) {
    const cJSON *item = json_find(root, key);
    const char *word = cJSON_IsString(item) ? item->valuestring : "";
    if (strcmp(word, one) != 0 && strcmp(word, other) != 0)
        return error_set(err, "%s: expected \"%s\" to be \"%s\" or \"%s\"", path, key, one, other);
    snprintf(out, out_bytes, "%s", word);
    return true;
}

static bool read_fingerprint(const cJSON *root, uint64_t *out, const char *path, Error *err) {
    const char *key = "tokenizer_fingerprint";
    const cJSON *item = json_find(root, key);
    const char *text = cJSON_IsString(item) ? item->valuestring : "";
    if (strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16)
        return error_set(err, "%s: expected \"%s\" to be 16 hexadecimal digits", path, key);
    *out = strtoull(text, NULL, 16);
    return true;
}

static bool state_from_json(StateFile *out, const cJSON *root, const char *path, Error *err) {
    int64_t format = 0;
    RunProgress *progress = &out->progress;
    *out = (StateFile){0};
    if (!read_count(root, "format", &format, path, err)) return false;
    if (format != STATE_FORMAT)
        return error_set(err, "%s: expected format %d, found %" PRId64, path, STATE_FORMAT, format);
    if (!read_count(root, "step", &progress->step, path, err) ||
        !read_count(root, "bad_steps", &progress->bad_steps, path, err) ||
        !read_count(root, "bad_in_row", &progress->bad_in_row, path, err) ||
        !read_word(root, "optimizer", out->optimizer, sizeof out->optimizer, "adamw", "muon", path, err) ||
        !read_word(root, "dtype", out->dtype, sizeof out->dtype, "fp32", "bf16", path, err) ||
        !read_fingerprint(root, &out->tokenizer_fingerprint, path, err))
        return false;
    const cJSON *masters = json_find(root, "master_weights");
    if (masters != NULL && !cJSON_IsBool(masters))
        return error_set(err, "%s: expected \"master_weights\" to be true or false", path);
    out->master_weights = masters == NULL || cJSON_IsTrue(masters);
    if (progress->bad_in_row > progress->bad_steps || progress->bad_steps > progress->step)
        return error_set(err,
                         "%s: expected bad_in_row <= bad_steps <= step, found %" PRId64 ", %" PRId64 ", %" PRId64,
                         path, progress->bad_in_row, progress->bad_steps, progress->step);
    if (!json_as_f64(json_find(root, "seconds"), &progress->seconds) || progress->seconds < 0)
        return error_set(err, "%s: expected \"seconds\" to be a number of 0 or more", path);
    return true;
}

bool state_file_parse(StateFile *out, const char *json, const char *path, Error *err) {
    cJSON *root = json_parse(json, strlen(json), path, err);
    bool ok = root != NULL && state_from_json(out, root, path, err);
    cJSON_Delete(root);
    return ok;
}
