// jsonl.h: one text out of one line of JSON, checked strictly and without building a tree (it is most of the work of
// reading .jsonl). Own code because a general parser hands texts out NUL-terminated, losing what follows a \u0000.
#ifndef DATA_JSONL_H
#define DATA_JSONL_H

#include "llmc/base/common.h"

// A growing text.
typedef struct {
    uint8_t *bytes;
    int64_t count, capacity;
} TextBuffer;
void text_buffer_append(TextBuffer *buffer, const void *bytes, int64_t count);
void text_buffer_free(TextBuffer *buffer);

// out = the value of the top-level key `field` of the JSON object in line[0, count). Errors: malformed JSON, no such
// key, the key twice, a value that is no text, a \u escape that is half of a surrogate pair. Unescaped bytes are
// taken as they are, whether or not they are UTF-8.
bool jsonl_text(TextBuffer *out, const uint8_t *line, int64_t count, const char *field, Error *err);

#endif
