// unicode_nfc.c: see unicode_nfc.h. Decomposes, orders the combining marks, composes, as UAX #15 specifies.
#include "llmc/tokenizer/unicode_nfc.h"

#include <stdlib.h>
#include <string.h>

#include "llmc/base/common.h"
#include "llmc/tokenizer/unicode.h"

enum {
    HANGUL_S = 0xAC00,
    HANGUL_L = 0x1100,
    HANGUL_V = 0x1161,
    HANGUL_T = 0x11A7,
    HANGUL_L_COUNT = 19,
    HANGUL_V_COUNT = 21,
    HANGUL_T_COUNT = 28,
    HANGUL_S_COUNT = HANGUL_L_COUNT * HANGUL_V_COUNT * HANGUL_T_COUNT,
    MAX_PARTS = 4,  // code points of one fully decomposed character
};
#define RAW_BYTE 0x80000000u  // marks an invalid byte

typedef struct {
    uint32_t code;
    uint32_t combining_class;
} Mark;

bool unicode_is_plainly_nfc(const uint8_t *text, int64_t bytes) {
    for (int64_t i = 0; i < bytes; ++i)
        if (text[i] >= 0xCC) return false;  // U+0300 begins with CC 80
    return true;
}

static uint32_t combining_class(uint32_t code) {
    if (code < 0x300) return 0;
    int low = 0, high = COMBINING_RANGE_COUNT;
    while (low < high) {
        int middle = (low + high) / 2;
        if (COMBINING_RANGES[middle].last < code) low = middle + 1;
        else high = middle;
    }
    bool found = low < COMBINING_RANGE_COUNT && COMBINING_RANGES[low].first <= code;
    return found ? COMBINING_RANGES[low].combining_class : 0;
}

static int64_t decompose(Mark *out, uint32_t code) {
    if (code - HANGUL_S < HANGUL_S_COUNT) {
        uint32_t index = code - HANGUL_S, tail = index % HANGUL_T_COUNT;
        out[0] = (Mark){HANGUL_L + index / (HANGUL_V_COUNT * HANGUL_T_COUNT), 0};
        out[1] = (Mark){HANGUL_V + index / HANGUL_T_COUNT % HANGUL_V_COUNT, 0};
        out[2] = (Mark){HANGUL_T + tail, 0};
        return tail == 0 ? 2 : 3;
    }
    int low = 0, high = code < 0xC0 ? 0 : DECOMPOSITION_COUNT;
    while (low < high) {
        int middle = (low + high) / 2;
        if (DECOMPOSITIONS[middle].code < code) low = middle + 1;
        else high = middle;
    }
    if (code < 0xC0 || low == DECOMPOSITION_COUNT || DECOMPOSITIONS[low].code != code) {
        out[0] = (Mark){code, combining_class(code)};
        return 1;
    }
    const Decomposition *parts = &DECOMPOSITIONS[low];
    int64_t count = decompose(out, parts->first);
    return parts->second == 0 ? count : count + decompose(out + count, parts->second);
}

// Stable sort by class. Counting keeps long runs of marks linear.
static void order_marks(Mark *marks, Mark *scratch, int64_t count) {
    int64_t starts[257] = {0};
    for (int64_t i = 0; i < count; ++i) ++starts[marks[i].combining_class + 1];
    for (int class = 0; class < 256; ++class) starts[class + 1] += starts[class];
    for (int64_t i = 0; i < count; ++i) scratch[starts[marks[i].combining_class]++] = marks[i];
    memcpy(marks, scratch, to_size(count) * sizeof *marks);
}

static void order_all(Mark *marks, Mark *scratch, int64_t count) {
    for (int64_t i = 0, end; i < count; i = end + 1) {
        for (end = i; end < count && marks[end].combining_class != 0;) ++end;
        if (end - i > 1) order_marks(marks + i, scratch, end - i);
    }
}

// The composition of two characters, or 0.
static uint32_t compose(uint32_t first, uint32_t second) {
    uint32_t l = first - HANGUL_L, v = second - HANGUL_V, s = first - HANGUL_S, t = second - HANGUL_T;
    if (l < HANGUL_L_COUNT && v < HANGUL_V_COUNT) return HANGUL_S + (l * HANGUL_V_COUNT + v) * HANGUL_T_COUNT;
    if (s < HANGUL_S_COUNT && s % HANGUL_T_COUNT == 0 && t > 0 && t < HANGUL_T_COUNT) return first + t;
    int low = 0, high = COMPOSITION_COUNT;
    while (low < high) {
        int middle = (low + high) / 2;
        const Composition *c = &COMPOSITIONS[middle];
        if (c->first < first || (c->first == first && c->second < second)) low = middle + 1;
        else high = middle;
    }
    const Composition *c = &COMPOSITIONS[low];
    return low < COMPOSITION_COUNT && c->first == first && c->second == second ? c->code : 0;
}

// A mark composes with the last starter unless a mark of its class or higher, or another starter, is between.
static int64_t compose_all(Mark *marks, int64_t count) {
    int64_t starter = -1, kept = 0;
    uint32_t last_class = 0;
    for (int64_t i = 0; i < count; ++i) {
        Mark mark = marks[i];
        bool reaches = starter >= 0 && (last_class < mark.combining_class || last_class == 0);
        uint32_t composite = reaches ? compose(marks[starter].code, mark.code) : 0;
        if (composite != 0) {
            marks[starter].code = composite;
            continue;
        }
        if (mark.combining_class == 0) starter = kept;
        last_class = mark.combining_class;
        marks[kept++] = mark;
    }
    return kept;
}

int64_t unicode_nfc(uint8_t *out, const uint8_t *text, int64_t bytes) {
    int64_t capacity = 2 * bytes + MAX_PARTS;  // 2 bytes give up to 3 marks, 3 and 4 bytes up to 4
    Mark *marks = xmalloc(to_size(2 * capacity) * sizeof *marks), *scratch = marks + capacity;
    int64_t count = 0, written = 0;
    for (int64_t pos = 0; pos < bytes;) {
        uint32_t code;
        int length = utf8_decode(text + pos, bytes - pos, &code);
        if (code == UTF8_INVALID) marks[count++] = (Mark){RAW_BYTE | text[pos], 0};
        else count += decompose(marks + count, code);
        pos += length;
    }
    order_all(marks, scratch, count);
    count = compose_all(marks, count);
    for (int64_t i = 0; i < count; ++i) {
        if (marks[i].code & RAW_BYTE) out[written++] = (uint8_t)marks[i].code;
        else written += utf8_encode(out + written, marks[i].code);
    }
    free(marks);
    return written;
}
