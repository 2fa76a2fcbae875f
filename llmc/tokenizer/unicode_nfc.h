// unicode_nfc.h: Unicode normalization form C (UAX #15), for tokenizers that ask for it (Qwen's). Tables are
// generated (dev/reference/make_unicode_tables.py). Called by the tokenizer only.
#ifndef LLMC_UNICODE_NFC_H
#define LLMC_UNICODE_NFC_H

#include <stdbool.h>
#include <stdint.h>

// True only if the text is NFC already, by a quick look: no character from U+0300 on.
bool unicode_is_plainly_nfc(const uint8_t *text, int64_t bytes);
// Writes the NFC of text to out, which has room for 3 * bytes; returns its length. Bytes that are not UTF-8 stay as
// they are, and nothing composes across them.
int64_t unicode_nfc(uint8_t *out, const uint8_t *text, int64_t bytes);

// ---- tables, sorted ----
typedef struct {
    uint32_t first, last;
    uint8_t combining_class;
} CombiningRange;
typedef struct {
    uint32_t code, first, second;  // second 0: only one
} Decomposition;
typedef struct {
    uint32_t first, second, code;
} Composition;
extern const CombiningRange COMBINING_RANGES[];
extern const Decomposition DECOMPOSITIONS[];
extern const Composition COMPOSITIONS[];
extern const int COMBINING_RANGE_COUNT, DECOMPOSITION_COUNT, COMPOSITION_COUNT;

#endif
