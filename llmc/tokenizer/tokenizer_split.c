// tokenizer_split.c: see tokenizer_split.h.
#include "llmc/tokenizer/tokenizer_split.h"

#include "llmc/tokenizer/tokenizer.h"
#include "llmc/tokenizer/unicode.h"

#define SURE_CUT_BYTES (4 * SPLIT_MAX_PIECE_BYTES)
_Static_assert(SURE_CUT_BYTES == TOKENIZER_SURE_CUT_BYTES, "tokenizer.h states this value");

// Classes of single bytes; CLASS_MULTI: not ASCII, decode it.
enum { O = CLASS_OTHER, L = CLASS_LETTER, N = CLASS_NUMBER, S = CLASS_SPACE, CLASS_MULTI = 4, M = CLASS_MULTI };
#define EIGHT(x) x, x, x, x, x, x, x, x
#define LETTERS_26 EIGHT(L), EIGHT(L), EIGHT(L), L, L
static const uint8_t BYTE_CLASS[256] = {
    EIGHT(O),   O,        S,        S,        S,        S,        S,        O,          O,        EIGHT(O),
    EIGHT(O),   S,        O,        O,        O,        O,        O,        O,          O,        EIGHT(O),
    EIGHT(N),   N,        N,        O,        O,        O,        O,        O,          O,        O,
    LETTERS_26, O,        O,        O,        O,        O,        O,        LETTERS_26, O,        O,
    O,          O,        O,        EIGHT(M), EIGHT(M), EIGHT(M), EIGHT(M), EIGHT(M),   EIGHT(M), EIGHT(M),
    EIGHT(M),   EIGHT(M), EIGHT(M), EIGHT(M), EIGHT(M), EIGHT(M), EIGHT(M), EIGHT(M),   EIGHT(M),
};

static inline int class_at(const uint8_t *text, int64_t bytes, int *length) {
    int class = BYTE_CLASS[text[0]];
    *length = 1;
    if (class != CLASS_MULTI) return class;
    uint32_t code;
    *length = utf8_decode(text, bytes, &code);
    return code == UTF8_INVALID ? CLASS_OTHER : (int)unicode_class(code);
}

// The end of the run of characters of one class that begins at pos; characters at limit or later are excluded.
static inline int64_t run_end(const uint8_t *text, int64_t pos, int64_t limit, int64_t bytes, int class) {
    while (pos < limit) {
        int length;
        if (BYTE_CLASS[text[pos]] == class) {
            ++pos;
            continue;
        }
        if (BYTE_CLASS[text[pos]] != CLASS_MULTI || class_at(text + pos, bytes - pos, &length) != class) break;
        pos += length;
    }
    return pos;
}

static inline bool is_newline(uint8_t byte) { return byte == '\n' || byte == '\r'; }

// Length of 's 't 'd 'm 'll 've 're at text[0] == '\'', or 0. Any case also takes the long s (U+017F), as Unicode
// case folding does.
static int64_t contraction(const uint8_t *text, int64_t bytes, bool any_case) {
    if (bytes < 2) return 0;
    uint8_t fold = any_case ? 0x20 : 0;
    uint8_t a = text[1] | fold;
    if (a == 's' || a == 't' || a == 'd' || a == 'm') return 2;
    if (bytes < 3) return 0;
    if (any_case && text[1] == 0xC5 && text[2] == 0xBF) return 3;
    uint8_t b = text[2] | fold;
    return (a == 'l' && b == 'l') || (a == 'v' && b == 'e') || (a == 'r' && b == 'e') ? 3 : 0;
}

// White space at text[0]. Its last character belongs to the next piece, unless it is the only one.
static int64_t piece_space(SplitPattern pattern, const uint8_t *text, int64_t limit, int64_t bytes) {
    int64_t pos = 0, last = 0, after_newline = 0;
    while (pos < limit) {
        int length;
        if (class_at(text + pos, bytes - pos, &length) != CLASS_SPACE) break;
        last = pos;
        pos += length;
        if (is_newline(text[last])) after_newline = pos;
    }
    if (pos >= SPLIT_MAX_PIECE_BYTES) return pos;
    if (pos == bytes && (pattern == SPLIT_CL100K || pattern == SPLIT_GPT2)) return pos;
    if (pattern != SPLIT_GPT2 && after_newline > 0) return after_newline;
    return pos == bytes || last == 0 ? pos : last;
}

static inline int64_t piece_gpt2(const uint8_t *text, int64_t limit, int64_t bytes) {
    int64_t pos = 0;
    if (text[0] == '\'') {
        int64_t length = contraction(text, bytes, false);
        if (length > 0) return length;
    }
    int length, class = class_at(text, bytes, &length);
    if (text[0] == ' ' && bytes > 1) {
        int next = class_at(text + 1, bytes - 1, &length);
        if (next != CLASS_SPACE) {
            class = next;
            pos = 1;
        }
    }
    if (class == CLASS_SPACE) return piece_space(SPLIT_GPT2, text, limit, bytes);
    return run_end(text, pos + length, limit, bytes, class);
}

static int64_t run_newlines(const uint8_t *text, int64_t pos, int64_t limit) {
    while (pos < limit && is_newline(text[pos])) ++pos;
    return pos;
}

static int64_t piece_modern(SplitPattern pattern, const uint8_t *text, int64_t limit, int64_t bytes) {
    if (text[0] == '\'') {
        int64_t length = contraction(text, bytes, true);
        if (length > 0) return length;
    }
    int length, class = class_at(text, bytes, &length);
    if (class == CLASS_LETTER) return run_end(text, length, limit, bytes, CLASS_LETTER);
    if (class == CLASS_NUMBER) {
        int64_t pos = length;
        for (int count = pattern == SPLIT_QWEN2 ? 1 : 3; count > 1 && pos < bytes; --count, pos += length)
            if (class_at(text + pos, bytes - pos, &length) != CLASS_NUMBER) break;
        return pos;
    }
    int next = -1, next_length = 0;
    if (length < bytes) next = class_at(text + length, bytes - length, &next_length);
    if (next == CLASS_LETTER && !is_newline(text[0]))
        return run_end(text, length + next_length, limit, bytes, CLASS_LETTER);
    if (class == CLASS_OTHER || (text[0] == ' ' && next == CLASS_OTHER))
        return run_newlines(text, run_end(text, length, limit, bytes, CLASS_OTHER), limit);
    return piece_space(pattern, text, limit, bytes);
}

static int64_t piece_spaces(const uint8_t *text, int64_t limit, int64_t bytes) {
    int64_t pos = 0;
    while (pos < limit && text[pos] == ' ') ++pos;
    while (pos < limit && text[pos] != ' ') {
        uint32_t code;
        pos += utf8_decode(text + pos, bytes - pos, &code);
    }
    return pos;
}

int64_t split_piece(SplitPattern pattern, const uint8_t *text, int64_t bytes) {
    int64_t limit = min_i64(bytes, SPLIT_MAX_PIECE_BYTES);
    switch (pattern) {
    case SPLIT_NONE: return limit;
    case SPLIT_GPT2: return piece_gpt2(text, limit, bytes);
    case SPLIT_SPACES: return piece_spaces(text, limit, bytes);
    case SPLIT_LLAMA3:
    case SPLIT_QWEN2:
    case SPLIT_CL100K: break;
    }
    return piece_modern(pattern, text, limit, bytes);
}

// The class of the character that ends before text + pos (pos >= 1).
static int class_before(const uint8_t *text, int64_t pos) {
    int length, class = CLASS_OTHER;
    for (int64_t start = max_i64(pos - 4, 0); start < pos;
         ++start) {  // the longest that fits; one byte always fits
        class = class_at(text + start, pos - start, &length);
        if (length == pos - start) break;
    }
    return class;
}

// Whether a piece always ends before text[pos], a white-space character, whatever surrounds it: every piece with a
// character that is not white space ends there.
static bool is_sure_boundary(SplitPattern pattern, const uint8_t *text, int64_t pos) {
    if (pattern == SPLIT_SPACES) return text[pos] == ' ' && text[pos - 1] != ' ';
    if (BYTE_CLASS[text[pos]] != CLASS_SPACE) return false;
    int before = class_before(text, pos);
    if (pattern == SPLIT_GPT2 || !is_newline(text[pos])) return before != CLASS_SPACE;
    return before == CLASS_LETTER || before == CLASS_NUMBER;  // a piece of punctuation includes the newlines after it
}

// White space only. (A piece with anything else has at most one white space character before it.)
static bool is_space_piece(const uint8_t *piece, int64_t bytes) {
    int length, next_length;
    if (class_at(piece, bytes, &length) != CLASS_SPACE) return false;
    return length == bytes || class_at(piece + length, bytes - length, &next_length) == CLASS_SPACE;
}

int64_t split_safe_cut(SplitPattern pattern, const uint8_t *text, int64_t scanned, int64_t bytes) {
    if (pattern == SPLIT_NONE) return bytes;
    for (int64_t pos = bytes - 1; pos > 0 && pos >= scanned; --pos)
        if (is_sure_boundary(pattern, text, pos)) return pos;
    if (bytes < SURE_CUT_BYTES) return 0;
    // Take pieces from the start while the given text determines them. A cut after white space is not safe (patterns
    // treat it differently at the end of the text) unless the piece was cut for its length. 3 pieces give a safe one.
    int64_t cut = 0;
    for (int64_t pos = 0; pos + SPLIT_MAX_PIECE_BYTES + 16 <= bytes;) {
        int64_t piece = split_piece(pattern, text + pos, bytes - pos);
        if (piece >= SPLIT_MAX_PIECE_BYTES || !is_space_piece(text + pos, piece)) cut = pos + piece;
        pos += piece;
    }
    CHECK(cut > 0, "no cut in %lld bytes", (long long)bytes);
    return cut;
}
