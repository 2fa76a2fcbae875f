// test_unicode_nfc.c: normalization form C compared with Python's unicodedata (version 16) in the difficult cases: order
// of marks, blocked marks, singletons, excluded compositions, Hangul; invalid UTF-8; idempotence; long runs of marks.
#include "llmc/tokenizer/unicode_nfc.h"

#include <stdlib.h>
#include <string.h>

#include "llmc/base/rng.h"
#include "llmc/tokenizer/unicode.h"
#include "tests/support/file_test.h"

static const struct {
    const char *text, *nfc;
} CASES[] = {
    {"A\xCC\x8A", "\xC3\x85"},
    {"\xE2\x84\xAB", "\xC3\x85"},
    {"\xE1\xBA\x9B\xCC\xA3", "\xE1\xBA\x9B\xCC\xA3"},
    {"q\xCC\x87\xCC\xA3", "q\xCC\xA3\xCC\x87"},
    {"\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", "\xEA\xB0\x81"},
    {"\xEA\xB0\x80\xE1\x86\xA8", "\xEA\xB0\x81"},
    {"\xEA\xB0\x81", "\xEA\xB0\x81"},
    {"\xE1\x84\x80\xE1\x86\xA8", "\xE1\x84\x80\xE1\x86\xA8"},
    {"e\xCC\x81\xCC\x81", "\xC3\xA9\xCC\x81"},
    {"a\xCD\x85\xCC\x81", "\xC3\xA1\xCD\x85"},
    {"\xCD\x84", "\xCC\x88\xCC\x81"},
    {"\xEF\xAC\xAC", "\xD7\xA9\xD6\xBC\xD7\x81"},
    {"\xF0\x9D\x85\xA0", "\xF0\x9D\x85\x98\xF0\x9D\x85\xA5\xF0\x9D\x85\xAE"},
    {"\xE2\x84\xA6 \xE2\x80\x80x", "\xCE\xA9 \xE2\x80\x82x"},
    {"\xE0\xA5\x98", "\xE0\xA4\x95\xE0\xA4\xBC"},
    {"a\xCC\x81\xCC\xA7"
     "b",
     "\xC3\xA1\xCC\xA7"
     "b"},
    {"\xCC\x81"
     "a",
     "\xCC\x81"
     "a"},
    {"\xC7\x95", "\xC7\x95"},
    {"U\xCC\x88\xCC\x84", "\xC7\x95"},
    {"\xE0\xAD\x87\xE0\xAC\xBE", "\xE0\xAD\x8B"},
    {"\xE0\xAD\x87\xCC\x80\xE0\xAC\xBE", "\xE0\xAD\x87\xCC\x80\xE0\xAC\xBE"},
    {"\xF0\x91\x84\xB1\xF0\x91\x84\xA7", "\xF0\x91\x84\xAE"},
    {"\xC3\xA9", "\xC3\xA9"},
    {"e\xCC\x81\xFF\xCC\x81\x80", "\xC3\xA9\xFF\xCC\x81\x80"},  // invalid bytes stay, and marks do not compose across them
    {"\xE1\x84", "\xE1\x84"},
};

static void test_cases(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        uint8_t out[100] = {0};
        const uint8_t *text = (const uint8_t *)CASES[i].text;
        int64_t bytes = (int64_t)strlen(CASES[i].text), count = unicode_nfc(out, text, bytes);
        assert_int_equal(count, strlen(CASES[i].nfc));
        assert_memory_equal(out, CASES[i].nfc, (size_t)count);
        if (unicode_is_plainly_nfc(text, bytes)) assert_string_equal(CASES[i].text, CASES[i].nfc);
    }
}

// Idempotence, for every character after a letter and before a mark.
static void test_idempotent(void **state) {
    (void)state;
    for (uint32_t code = 0; code <= 0x10FFFF; ++code) {
        uint8_t text[16] = "a", once[48], twice[144];
        int64_t bytes = 1 + utf8_encode(text + 1, code >= 0xD800 && code < 0xE000 ? 'b' : code);
        bytes += utf8_encode(text + bytes, 0x301 + rng_u32(1, RNG_STREAM_TEST, code) % 0x40);
        int64_t count = unicode_nfc(once, text, bytes);
        assert_int_equal(unicode_nfc(twice, once, count), count);
        assert_memory_equal(once, twice, (size_t)count);
    }
}

// A hundred thousand unsorted marks on one letter take no noticeable time.
static void test_long_run(void **state) {
    (void)state;
    enum { PAIRS = 50000, BYTES = 1 + 4 * PAIRS };
    uint8_t *text = xmalloc(BYTES), *out = xmalloc(3 * BYTES);
    text[0] = 'x';
    for (int i = 0; i < PAIRS; ++i) memcpy(text + 1 + 4 * i, "\xCC\x88\xCC\xA3", 4);  // above, then below
    // The marks below come first; the first mark above composes with the letter across them: U+1E8D.
    assert_int_equal(unicode_nfc(out, text, BYTES), BYTES);
    assert_memory_equal(out, "\xE1\xBA\x8D\xCC\xA3\xCC\xA3", 7);
    assert_memory_equal(out + 3 + 2 * PAIRS - 2, "\xCC\xA3\xCC\x88", 4);
    free(text);
    free(out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_idempotent),
        cmocka_unit_test(test_long_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
