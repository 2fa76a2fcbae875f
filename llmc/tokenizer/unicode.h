// unicode.h: strict UTF-8 decoding and the three character classes that tokenizer split patterns ask for. The
// tables are generated (dev/reference/make_unicode_tables.py). Called by the tokenizer only.
#ifndef LLMC_UNICODE_H
#define LLMC_UNICODE_H

#include <stdint.h>

typedef enum { CLASS_OTHER = 0, CLASS_LETTER = 1, CLASS_NUMBER = 2, CLASS_SPACE = 3 } UnicodeClass;

extern const uint8_t UNICODE_PAGE_OF[0x1100];
extern const uint8_t UNICODE_PAGES[][64];

// \p{L}, \p{N}, White_Space or none of them. code <= 0x10FFFF.
static inline UnicodeClass unicode_class(uint32_t code) {
    uint8_t packed = UNICODE_PAGES[UNICODE_PAGE_OF[code >> 8]][(code & 255) >> 2];
    return (UnicodeClass)((packed >> (2 * (code & 3))) & 3);
}

// Decodes the character at text[0 .. bytes), bytes >= 1: its length (1 to 4), and the code point in *code.
// A byte that starts no valid sequence (overlong, surrogate, above 10FFFF, truncated) has length 1 and *code
// UTF8_INVALID.
#define UTF8_INVALID 0xFFFFFFFFu
int utf8_decode(const uint8_t *text, int64_t bytes, uint32_t *code);
// Writes 1 to 4 bytes; returns how many. code <= 0x10FFFF.
int utf8_encode(uint8_t out[4], uint32_t code);

#endif
