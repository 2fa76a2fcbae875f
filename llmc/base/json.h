// json.h: strict reading of untrusted JSON (model configs, safetensors headers, manifests), over cJSON, which alone
// accepts input of doubtful meaning: duplicate keys, invalid UTF-8, truncated strings, trailing text. Must not know
// what the keys mean.
#ifndef LLMC_JSON_H
#define LLMC_JSON_H

#include <cjson/cJSON.h>

#include "llmc/base/common.h"

// Parses text whose top level is an object; `path` is used in messages only. Free with cJSON_Delete. NULL: error.
cJSON *json_parse(const char *text, size_t bytes, const char *path, Error *err);
cJSON *json_parse_file(const char *path, size_t max_bytes, Error *err);
// The member with exactly this key; NULL when absent.
const cJSON *json_find(const cJSON *object, const char *key);
// A whole number that a double holds exactly (at most 2^53 in size). False on anything else, NULL included.
bool json_as_i64(const cJSON *item, int64_t *out);
bool json_as_f64(const cJSON *item, double *out);  // finite
#endif
