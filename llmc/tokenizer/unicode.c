// unicode.c: see unicode.h. Strict decoding by table 3-7 of the Unicode standard.
#include "llmc/tokenizer/unicode.h"

static int is_continuation(uint8_t byte) { return (byte & 0xC0) == 0x80; }

int utf8_decode(const uint8_t *text, int64_t bytes, uint32_t *code) {
    uint8_t a = text[0];
    *code = a;
    if (a < 0x80) return 1;
    *code = UTF8_INVALID;
    if (a < 0xC2 || a > 0xF4 || bytes < 2 || !is_continuation(text[1])) return 1;
    uint8_t b = text[1];
    if (a < 0xE0) {
        *code = (uint32_t)(a & 0x1F) << 6 | (b & 0x3F);
        return 2;
    }
    if (bytes < 3 || !is_continuation(text[2])) return 1;
    if (a < 0xF0) {
        uint32_t value = (uint32_t)(a & 0x0F) << 12 | (uint32_t)(b & 0x3F) << 6 | (text[2] & 0x3F);
        if (value < 0x800 || (value >= 0xD800 && value < 0xE000)) return 1;
        *code = value;
        return 3;
    }
    if (bytes < 4 || !is_continuation(text[3])) return 1;
    uint32_t value =
        (uint32_t)(a & 0x07) << 18 | (uint32_t)(b & 0x3F) << 12 | (uint32_t)(text[2] & 0x3F) << 6 | (text[3] & 0x3F);
    if (value < 0x10000 || value > 0x10FFFF) return 1;
    *code = value;
    return 4;
}

int utf8_encode(uint8_t out[4], uint32_t code) {
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (uint8_t)(0xC0 | code >> 6);
        out[1] = (uint8_t)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (uint8_t)(0xE0 | code >> 12);
        out[1] = (uint8_t)(0x80 | (code >> 6 & 0x3F));
        out[2] = (uint8_t)(0x80 | (code & 0x3F));
        return 3;
    }
    out[0] = (uint8_t)(0xF0 | code >> 18);
    out[1] = (uint8_t)(0x80 | (code >> 12 & 0x3F));
    out[2] = (uint8_t)(0x80 | (code >> 6 & 0x3F));
    out[3] = (uint8_t)(0x80 | (code & 0x3F));
    return 4;
}
