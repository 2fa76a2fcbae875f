// jsonl.c: see jsonl.h. A recursive-descent reader over RFC 8259's grammar; `at` never passes `end`.
#include "data/read/jsonl.h"

#include <stdlib.h>
#include <string.h>

#include "llmc/tokenizer/unicode.h"

enum { MAX_DEPTH = 128 };

typedef struct {
    const uint8_t *start, *at, *end;
    TextBuffer key;
    Error *err;
} Reader;

void text_buffer_append(TextBuffer *buffer, const void *bytes, int64_t count) {
    if (buffer->count + count > buffer->capacity) {
        buffer->capacity = 2 * (buffer->count + count) + 64;
        buffer->bytes = xrealloc(buffer->bytes, to_size(buffer->capacity));
    }
    if (count > 0) memcpy(buffer->bytes + buffer->count, bytes, to_size(count));
    buffer->count += count;
}
void text_buffer_free(TextBuffer *buffer) {
    free(buffer->bytes);
    *buffer = (TextBuffer){0};
}

static bool fail(Reader *r, const char *expected) {
    return error_set(r->err, "malformed JSON at column %lld: expected %s", (long long)(r->at - r->start + 1),
                     expected);
}

static void skip_space(Reader *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r')) ++r->at;
}

static bool take(Reader *r, uint8_t byte) {
    if (r->at == r->end || *r->at != byte) return false;
    ++r->at;
    return true;
}

// The four digits after \u.
static bool read_hex(Reader *r, uint32_t *code) {
    *code = 0;
    for (int i = 0; i < 4; ++i, ++r->at) {
        if (r->at == r->end) return fail(r, "four hexadecimal digits");
        uint8_t c = *r->at, lower = c | 0x20;
        bool is_digit = c >= '0' && c <= '9', is_letter = lower >= 'a' && lower <= 'f';
        if (!is_digit && !is_letter) return fail(r, "four hexadecimal digits");
        *code = *code << 4 | (uint32_t)(is_digit ? c - '0' : lower - 'a' + 10);
    }
    return true;
}

static bool read_escape(Reader *r, TextBuffer *out) {
    static const char NAMES[] = "\"\\/bfnrt", VALUES[] = "\"\\/\b\f\n\r\t";
    if (r->at == r->end) return fail(r, "an escape");
    uint8_t name = *r->at++;
    if (name != 'u') {
        const char *found = memchr(NAMES, name, sizeof NAMES - 1);
        if (found == NULL) return fail(r, "an escape");
        if (out != NULL) text_buffer_append(out, &VALUES[found - NAMES], 1);
        return true;
    }
    uint32_t code, low;
    if (!read_hex(r, &code)) return false;
    if (code >= 0xD800 && code < 0xE000) {
        if (code >= 0xDC00 || !take(r, '\\') || !take(r, 'u')) return fail(r, "a whole surrogate pair");
        if (!read_hex(r, &low)) return false;
        if (low < 0xDC00 || low >= 0xE000) return fail(r, "a whole surrogate pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    uint8_t bytes[4];
    int length = utf8_encode(bytes, code);
    if (out != NULL) text_buffer_append(out, bytes, length);
    return true;
}

// Reads a string; out NULL: only checks it.
static bool read_string(Reader *r, TextBuffer *out) {
    if (!take(r, '"')) return fail(r, "a string in quotes");
    for (;;) {
        const uint8_t *from = r->at;
        while (r->at < r->end && *r->at != '"' && *r->at != '\\' && *r->at >= 0x20) ++r->at;
        if (out != NULL) text_buffer_append(out, from, r->at - from);
        if (take(r, '"')) return true;
        if (!take(r, '\\')) return fail(r, "the closing quote");
        if (!read_escape(r, out)) return false;
    }
}

static int64_t skip_digits(Reader *r) {
    const uint8_t *from = r->at;
    while (r->at < r->end && *r->at >= '0' && *r->at <= '9') ++r->at;
    return r->at - from;
}

static bool skip_number(Reader *r) {
    take(r, '-');
    if (!take(r, '0') && skip_digits(r) == 0) return fail(r, "a value");
    if (take(r, '.') && skip_digits(r) == 0) return fail(r, "digits");
    if (take(r, 'e') || take(r, 'E')) {
        if (!take(r, '+')) take(r, '-');
        if (skip_digits(r) == 0) return fail(r, "digits");
    }
    return true;
}

static bool skip_word(Reader *r, const char *word) {
    for (; *word != '\0'; ++word)
        if (!take(r, (uint8_t)*word)) return fail(r, "true, false or null");
    return true;
}

static bool skip_value(Reader *r, int depth);

static bool skip_list(Reader *r, int depth) {
    skip_space(r);
    if (take(r, ']')) return true;
    do {
        if (!skip_value(r, depth)) return false;
        skip_space(r);
    } while (take(r, ','));
    return take(r, ']') ? true : fail(r, "',' or ']'");
}

static bool skip_object(Reader *r, int depth) {
    skip_space(r);
    if (take(r, '}')) return true;
    do {
        skip_space(r);
        if (!read_string(r, NULL)) return false;
        skip_space(r);
        if (!take(r, ':')) return fail(r, "':'");
        if (!skip_value(r, depth)) return false;
        skip_space(r);
    } while (take(r, ','));
    return take(r, '}') ? true : fail(r, "',' or '}'");
}

static bool skip_value(Reader *r, int depth) {
    skip_space(r);
    if (depth == MAX_DEPTH) return fail(r, "fewer nested lists and objects");
    if (r->at == r->end) return fail(r, "a value");
    switch (*r->at) {
    case '"': return read_string(r, NULL);
    case '[': return ++r->at, skip_list(r, depth + 1);
    case '{': return ++r->at, skip_object(r, depth + 1);
    case 't': return skip_word(r, "true");
    case 'f': return skip_word(r, "false");
    case 'n': return skip_word(r, "null");
    default: return skip_number(r);
    }
}

static bool read_top(Reader *r, TextBuffer *out, const char *field) {
    bool found = false;
    skip_space(r);
    if (!take(r, '{')) return fail(r, "an object ('{')");
    skip_space(r);
    bool is_empty = take(r, '}');
    while (!is_empty) {
        r->key.count = 0;
        skip_space(r);
        if (!read_string(r, &r->key)) return false;
        skip_space(r);
        if (!take(r, ':')) return fail(r, "':'");
        skip_space(r);
        bool is_field = (size_t)r->key.count == strlen(field) &&
                        (r->key.count == 0 || memcmp(r->key.bytes, field, to_size(r->key.count)) == 0);
        if (is_field && found) return error_set(r->err, "expected the key \"%s\" once, found it twice", field);
        if (is_field && (r->at == r->end || *r->at != '"'))
            return error_set(r->err, "the value of \"%s\" is not a string", field);
        if (!(is_field ? read_string(r, out) : skip_value(r, 0))) return false;
        found = found || is_field;
        skip_space(r);
        if (take(r, '}')) break;
        if (!take(r, ',')) return fail(r, "',' or '}'");
    }
    skip_space(r);
    if (r->at != r->end) return fail(r, "the end of the line");
    return found ? true : error_set(r->err, "expected the key \"%s\", not found", field);
}

bool jsonl_text(TextBuffer *out, const uint8_t *line, int64_t count, const char *field, Error *err) {
    Reader reader = {.start = line, .at = line, .end = line + count, .err = err};
    out->count = 0;
    bool ok = read_top(&reader, out, field);
    text_buffer_free(&reader.key);
    return ok;
}
