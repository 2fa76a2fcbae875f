// state_file.c: see state_file.h.
#include "llmc/checkpoint/state_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/format_version.h"
#include "llmc/base/words.h"

#define OLD_VERSION_KEY "format"  // key of the version in files of version 1
// Most steps of one skip: more than any run has (SCHEDULE_OPEN_STEPS), and few enough that sums do not overflow.
#define STATE_MOST_SKIPPED 4294967296.0

static void add_hex(cJSON *root, const char *key, uint64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%016" PRIx64, value);
    cJSON_AddStringToObject(root, key, text);
}

// cJSON may print too few digits; 17 digits restore every bit.
static cJSON *exact_number(double value) {
    char text[40];
    snprintf(text, sizeof text, "%.17g", value);
    return cJSON_CreateRaw(text);
}

static void add_skips(cJSON *root, const RunProgress *progress) {
    cJSON *list = cJSON_AddArrayToObject(root, "skips");
    for (int i = 0; i < progress->skip_count; ++i) {
        cJSON *pair = cJSON_CreateArray();
        cJSON_AddItemToArray(pair, exact_number((double)progress->skip[i].at_step));
        cJSON_AddItemToArray(pair, exact_number((double)progress->skip[i].steps));
        cJSON_AddItemToArray(list, pair);
    }
}

static void add_guard(cJSON *root, const Guard *guard) {
    cJSON *list = cJSON_AddArrayToObject(root, "guard");
    for (int64_t i = 0; i < guard->count; ++i) {
        cJSON *triple = cJSON_CreateArray();
        cJSON_AddItemToArray(triple, exact_number((double)guard->entry[i].step));
        cJSON_AddItemToArray(triple, exact_number(guard->entry[i].loss));
        cJSON_AddItemToArray(triple, exact_number(guard->entry[i].norm));
        cJSON_AddItemToArray(list, triple);
    }
}

char *state_file_write(const StateFile *state, const char *config_json) {
    cJSON *root = cJSON_CreateObject();
    format_version_add(root, FORMAT_STATE);
    cJSON_AddNumberToObject(root, "step", (double)state->progress.step);
    cJSON_AddNumberToObject(root, "bad_steps", (double)state->progress.bad_steps);
    cJSON_AddNumberToObject(root, "bad_in_row", (double)state->progress.bad_in_row);
    cJSON_AddNumberToObject(root, "seconds", state->progress.seconds);
    cJSON_AddNumberToObject(root, "spikes", (double)state->progress.spikes);
    cJSON_AddStringToObject(root, "optimizer", state->optimizer);
    cJSON_AddStringToObject(root, "dtype", state->dtype);
    cJSON_AddBoolToObject(root, "master_weights", state->master_weights);
    add_hex(root, "tokenizer_fingerprint", state->tokenizer_fingerprint);
    add_hex(root, "chain", state->progress.chain);
    add_hex(root, "chain_data", state->progress.chain_data);
    cJSON_AddNumberToObject(root, "chain_step", (double)state->progress.chain_step);
    add_skips(root, &state->progress);
    add_guard(root, &state->progress.guard);
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

// Reads one of the first two words of a table.
static bool read_word(const cJSON *root, const char *key, char *out, size_t out_bytes, const Word two[2],
                      const char *path, Error *err) {
    const cJSON *item = json_find(root, key);
    const char *word = cJSON_IsString(item) ? item->valuestring : "";
    if (strcmp(word, two[0].word) != 0 && strcmp(word, two[1].word) != 0)
        return error_set(err, "%s: expected \"%s\" to be \"%s\" or \"%s\"", path, key, two[0].word, two[1].word);
    snprintf(out, out_bytes, "%s", word);
    return true;
}

static bool read_hex(const cJSON *root, const char *key, uint64_t *out, const char *path, Error *err) {
    const cJSON *item = json_find(root, key);
    const char *text = cJSON_IsString(item) ? item->valuestring : "";
    if (strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16)
        return error_set(err, "%s: expected \"%s\" to be 16 hexadecimal digits", path, key);
    *out = strtoull(text, NULL, 16);
    return true;
}

// out = a list of at most `most` lists; NULL if the key is absent.
static bool read_list(const cJSON **out, const cJSON *root, const char *key, int most, const char *path, Error *err) {
    *out = json_find(root, key);
    if (*out == NULL || (cJSON_IsArray(*out) && cJSON_GetArraySize(*out) <= most)) return true;
    return error_set(err, "%s: expected \"%s\" to be a list of at most %d lists", path, key, most);
}

// Reads exactly `count` numbers, the first of which is a step from `least` to `most`.
static bool read_numbers(const cJSON *list, double *out, int count, int64_t least, int64_t most) {
    int64_t step;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != count) return false;
    if (!json_as_i64(list->child, &step) || step < least || step > most) return false;
    for (const cJSON *item = list->child; item != NULL; item = item->next)
        if (!json_as_f64(item, out++)) return false;
    return true;
}

static bool read_skips(RunProgress *progress, const cJSON *root, const char *path, Error *err) {
    const cJSON *list, *item;
    if (!read_list(&list, root, "skips", DATA_SKIPS_MAX, path, err)) return false;
    int64_t least = 0;
    cJSON_ArrayForEach(item, list) {
        double pair[2];
        if (!read_numbers(item, pair, 2, least, progress->step) || !(pair[1] >= 1 && pair[1] <= STATE_MOST_SKIPPED) ||
            pair[1] != (double)(int64_t)pair[1])
            return error_set(err,
                             "%s: expected \"skips\" to be pairs of a step up to %" PRId64
                             ", ascending, and a whole number of 1 to %" PRId64 " steps",
                             path, progress->step, (int64_t)STATE_MOST_SKIPPED);
        least = (int64_t)pair[0];
        progress->skip[progress->skip_count++] = (DataSkip){.at_step = least, .steps = (int64_t)pair[1]};
    }
    return true;
}

static bool read_guard(RunProgress *progress, const cJSON *root, const char *path, Error *err) {
    const cJSON *list, *item;
    Guard *guard = &progress->guard;
    if (!read_list(&list, root, "guard", GUARD_CAPACITY, path, err)) return false;
    int64_t least = 1;
    cJSON_ArrayForEach(item, list) {
        double triple[3];
        if (!read_numbers(item, triple, 3, least, progress->step) || !(triple[2] >= 0))
            return error_set(err,
                             "%s: expected \"guard\" to be triples of a step from 1 to %" PRId64
                             ", ascending, a loss and a gradient norm",
                             path, progress->step);
        least = (int64_t)triple[0] + 1;
        guard->entry[guard->count++] = (GuardEntry){.step = least - 1, .loss = triple[1], .norm = triple[2]};
    }
    return true;
}

static bool read_chain(RunProgress *progress, const cJSON *root, const char *path, Error *err) {
    progress->chain_step = progress->step;
    if ((json_find(root, "chain") != NULL && !read_hex(root, "chain", &progress->chain, path, err)) ||
        (json_find(root, "chain_data") != NULL && !read_hex(root, "chain_data", &progress->chain_data, path, err)) ||
        (json_find(root, "chain_step") != NULL && !read_count(root, "chain_step", &progress->chain_step, path, err)))
        return false;
    return progress->chain_step <= progress->step ||
           error_set(err, "%s: expected chain_step <= step, found %" PRId64 ", %" PRId64, path, progress->chain_step,
                     progress->step);
}

// The file must have one of the two keys.
static bool read_version(const cJSON *root, const char *path, Error *err) {
    int64_t found;
    if (json_find(root, FORMAT_VERSION_KEY) != NULL) return format_version_read(FORMAT_STATE, root, path, err);
    if (json_find(root, OLD_VERSION_KEY) == NULL)
        return error_set(err, "%s: expected \"" FORMAT_VERSION_KEY "\", found none", path);
    return read_count(root, OLD_VERSION_KEY, &found, path, err) && format_version_check(FORMAT_STATE, found, path, err);
}

static bool state_from_json(StateFile *out, const cJSON *root, const char *path, Error *err) {
    RunProgress *progress = &out->progress;
    *out = (StateFile){0};
    if (!read_version(root, path, err)) return false;
    if (!read_count(root, "step", &progress->step, path, err) ||
        !read_count(root, "bad_steps", &progress->bad_steps, path, err) ||
        !read_count(root, "bad_in_row", &progress->bad_in_row, path, err) ||
        !read_word(root, "optimizer", out->optimizer, sizeof out->optimizer, OPTIMIZER_WORDS, path, err) ||
        !read_word(root, "dtype", out->dtype, sizeof out->dtype, DTYPE_WORDS, path, err) ||
        !read_hex(root, "tokenizer_fingerprint", &out->tokenizer_fingerprint, path, err))
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
    return (json_find(root, "spikes") == NULL || read_count(root, "spikes", &progress->spikes, path, err)) &&
           read_chain(progress, root, path, err) && read_skips(progress, root, path, err) && read_guard(progress, root, path, err);
}

bool state_file_parse(StateFile *out, const char *json, const char *path, Error *err) {
    cJSON *root = json_parse(json, strlen(json), path, err);
    bool ok = root != NULL && state_from_json(out, root, path, err);
    cJSON_Delete(root);
    return ok;
}
