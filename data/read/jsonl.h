// jsonl.h: extracts one string from one line of JSON, with strict checks and without building a tree (this is most of
// the time of reading .jsonl). cJSON is not used here because its strings are NUL-terminated: text after a \u0000
// would be lost.
#ifndef DATA_JSONL_H
#define DATA_JSONL_H

#include "llmc/base/common.h"

// A buffer that grows.
typedef struct {
    uint8_t *bytes;
    int64_t count, capacity;
} TextBuffer;
void text_buffer_append(TextBuffer *buffer, const void *bytes, int64_t count);
void text_buffer_free(TextBuffer *buffer);

// out = the value of the top-level key `field` of the JSON object in line[0, count). Errors: malformed JSON, no such
// key, a duplicate key, a value that is not a string, a \u escape that is half of a surrogate pair. Unescaped bytes
// are copied unchanged, also if they are not UTF-8.
bool jsonl_text(TextBuffer *out, const uint8_t *line, int64_t count, const char *field, Error *err);

#endif
