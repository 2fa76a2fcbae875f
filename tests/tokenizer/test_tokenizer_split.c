// test_tokenizer_split.c: pieces of each pattern, derived by hand from the published regular expressions; safe cuts;
// the largest length of a piece; UTF-8 decoding.
#include "llmc/tokenizer/tokenizer_split.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/rng.h"
#include "llmc/tokenizer/tokenizer.h"
#include "llmc/tokenizer/unicode.h"
#include "tests/support/file_test.h"

// Pieces joined by '|' (no case contains a '|').
static void join_pieces(char *out, SplitPattern pattern, const char *text) {
    int64_t bytes = (int64_t)strlen(text);
    for (int64_t pos = 0; pos < bytes;) {
        int64_t length = split_piece(pattern, (const uint8_t *)text + pos, bytes - pos);
        assert_true(length >= 1 && pos + length <= bytes);
        if (pos > 0) *out++ = '|';
        memcpy(out, text + pos, (size_t)length);
        out += length;
        pos += length;
    }
    *out = '\0';
}

typedef struct {
    const char *text, *gpt2, *llama3, *qwen2, *cl100k;  // NULL: as the previous one
} Case;
static const Case CASES[] = {
    {"Hello world", "Hello| world", NULL, NULL, NULL},
    {"it's he'll I'VE we're", "it|'s| he|'ll| I|'|VE| we|'re", "it|'s| he|'ll| I|'VE| we|'re", NULL, NULL},
    {"'\xC5\xBFx", "'|\xC5\xBFx", "'\xC5\xBF|x", NULL, NULL},  // long s
    {" 's", " '|s", NULL, NULL, NULL},
    {"a1b 12345", "a|1|b| 12345", "a|1|b| |123|45", "a|1|b| |1|2|3|4|5", "a|1|b| |123|45"},
    {"(foo) \"bar\"", "(|foo|)| \"|bar|\"", "(foo|)| \"|bar|\"", NULL, NULL},
    {"a  b", "a| | b", NULL, NULL, NULL},
    {"a\tb", "a|\t|b", "a|\tb", NULL, NULL},
    {"a\nb", "a|\n|b", NULL, NULL, NULL},
    {"a \n\n  b", "a| \n\n | b", "a| \n\n| | b", NULL, NULL},
    {"x!\n\ny", "x|!|\n|\n|y", "x|!\n\n|y", NULL, NULL},
    {"end.  \n ", "end|.|  \n ", "end|.|  \n| ", NULL, "end|.|  \n "},
    {"  ", "  ", NULL, NULL, NULL},
    {"\xC2\xA0x\xE3\x80\x80", "\xC2\xA0|x|\xE3\x80\x80", "\xC2\xA0x|\xE3\x80\x80", NULL, NULL},
    {"\xE1\xA0\x8E ", "\xE1\xA0\x8E| ", NULL, NULL, NULL},  // U+180E is not white space in Unicode 16
    {"\xC2\xB2\xE2\x85\xA7 x", "\xC2\xB2\xE2\x85\xA7| x", NULL, "\xC2\xB2|\xE2\x85\xA7| x",
     "\xC2\xB2\xE2\x85\xA7| x"},
    {"a\xFF\xFE"
     "b",
     "a|\xFF\xFE|b", "a|\xFF\xFE|b", NULL, NULL},  // invalid bytes are like punctuation
    {"\xFF"
     "b",
     "\xFF|b",
     "\xFF"
     "b",
     NULL, NULL},
};

static void test_patterns(void **state) {
    (void)state;
    static const SplitPattern PATTERNS[] = {SPLIT_GPT2, SPLIT_LLAMA3, SPLIT_QWEN2, SPLIT_CL100K};
    char out[256];
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        const char *expected[] = {CASES[i].gpt2, CASES[i].llama3, CASES[i].qwen2, CASES[i].cl100k};
        for (int k = 0; k < 4; ++k) {
            if (expected[k] == NULL) expected[k] = expected[k - 1];
            join_pieces(out, PATTERNS[k], CASES[i].text);
            assert_string_equal(out, expected[k]);
        }
    }
    join_pieces(out, SPLIT_SPACES, "  ab c  d ");
    assert_string_equal(out, "  ab| c|  d| ");
}

// Fills out with the ends of the pieces; returns their number.
static int64_t piece_ends(int64_t *out, SplitPattern pattern, const uint8_t *text, int64_t start, int64_t bytes) {
    int64_t count = 0;
    for (int64_t pos = start; pos < bytes; ++count) out[count] = pos += split_piece(pattern, text + pos, bytes - pos);
    return count;
}

// Random text of characters for which the patterns differ, some of it invalid UTF-8.
static int64_t random_text(uint8_t *out, int64_t bytes, uint64_t stream) {
    static const char *const PARTS[] = {"a",
                                        "Zq",
                                        "7",
                                        "42",
                                        " ",
                                        "  ",
                                        "\n",
                                        "\r\n",
                                        "\t",
                                        "'s",
                                        "'LL",
                                        "'",
                                        "!?",
                                        "-",
                                        "\xC3\xA9",
                                        "\xE3\x80\x80",
                                        "\xE6\xBC\xA2",
                                        "\xF0\x9F\x98\x80",
                                        "\xC2\xA0",
                                        "\xD9\xA3",
                                        "\xF0\x9F",
                                        "\x80"};
    int64_t count = 0;
    for (uint64_t i = 0; count + 4 < bytes; ++i) {
        const char *part = PARTS[rng_u32(7, stream, i) % (sizeof PARTS / sizeof PARTS[0])];
        size_t length = strlen(part);
        memcpy(out + count, part, length);
        count += (int64_t)length;
    }
    return count;
}

static void test_cuts_change_nothing(void **state) {
    (void)state;
    uint8_t text[64];
    int64_t whole[64], parts[64];
    int cuts = 0;
    for (uint64_t round = 0; round < 20000; ++round) {
        SplitPattern pattern = (SplitPattern)(1 + round % 5);
        int64_t bytes = random_text(text, 8 + (int64_t)(round % 56), round);
        int64_t shown = bytes - (int64_t)(rng_u32(8, round, 0) % 4);  // the prefix given to split_safe_cut
        if (shown < 1) continue;
        int64_t cut = split_safe_cut(pattern, text, 0, shown);
        assert_true(cut >= 0 && cut <= shown);
        if (cut == 0) continue;
        ++cuts;
        int64_t count = piece_ends(whole, pattern, text, 0, bytes);
        int64_t first = piece_ends(parts, pattern, text, 0, cut);
        assert_int_equal(count, first + piece_ends(parts + first, pattern, text, cut, bytes));
        assert_memory_equal(whole, parts, (size_t)count * sizeof *whole);
    }
    assert_true(cuts > 5000);
}

// Text without a sure boundary is cut at pieces, and the parts have the same pieces.
static void test_cuts_of_long_runs(void **state) {
    (void)state;
    static const char *const RUNS[] = {"a",    " ",   "\n", "!", "!\n", "7", "\xE6\xBC\xA2", "\xE3\x80\x80",
                                       "\xFF", " \n", "a1"};
    enum { BYTES = TOKENIZER_SURE_CUT_BYTES + 1000 };
    uint8_t *text = xmalloc(BYTES);
    int64_t *whole = xmalloc(BYTES * sizeof *whole), *parts = xmalloc(BYTES * sizeof *parts);
    for (size_t run = 0; run < sizeof RUNS / sizeof RUNS[0]; ++run) {
        size_t length = strlen(RUNS[run]);
        for (size_t i = 0; i < BYTES; ++i) text[i] = (uint8_t)RUNS[run][i % length];
        for (int pattern = SPLIT_GPT2; pattern <= SPLIT_SPACES; pattern += 2) {
            int64_t cut = split_safe_cut((SplitPattern)pattern, text, 0, TOKENIZER_SURE_CUT_BYTES);
            assert_true(cut > 0 && cut <= TOKENIZER_SURE_CUT_BYTES);
            int64_t count = piece_ends(whole, (SplitPattern)pattern, text, 0, BYTES);
            int64_t first = piece_ends(parts, (SplitPattern)pattern, text, 0, cut);
            assert_int_equal(count, first + piece_ends(parts + first, (SplitPattern)pattern, text, cut, BYTES));
            assert_memory_equal(whole, parts, (size_t)count * sizeof *whole);
            for (int64_t i = 0; i < count; ++i)
                assert_true(whole[i] - (i > 0 ? whole[i - 1] : 0) <= SPLIT_MAX_PIECE_BYTES + 3);
        }
    }
    free(text);
    free(whole);
    free(parts);
}

static void test_utf8(void **state) {
    (void)state;
    for (uint32_t code = 0; code <= 0x10FFFF; ++code) {
        if (code >= 0xD800 && code < 0xE000) continue;
        uint8_t bytes[4];
        uint32_t back;
        int length = utf8_encode(bytes, code);
        assert_int_equal(utf8_decode(bytes, 4, &back), length);
        assert_int_equal(back, code);
        if (length > 1) assert_true(utf8_decode(bytes, length - 1, &back) == 1 && back == UTF8_INVALID);
    }
    static const char *const INVALID[] = {"\x80",
                                          "\xC0\x80",
                                          "\xC1\xBF",
                                          "\xE0\x80\x80",
                                          "\xE0\x9F\xBF",
                                          "\xED\xA0\x80",
                                          "\xED\xBF\xBF",
                                          "\xF0\x80\x80\x80",
                                          "\xF4\x90\x80\x80",
                                          "\xF5\x80\x80\x80",
                                          "\xFF",
                                          "\xC3"
                                          "a",
                                          "\xE6\xBC"
                                          "a"};
    for (size_t i = 0; i < sizeof INVALID / sizeof INVALID[0]; ++i) {
        uint32_t code;
        assert_int_equal(utf8_decode((const uint8_t *)INVALID[i], (int64_t)strlen(INVALID[i]), &code), 1);
        assert_int_equal(code, UTF8_INVALID);
    }
}

// Totals of the classes in Unicode 16, and code points whose class differs in other versions.
static void test_unicode_classes(void **state) {
    (void)state;
    int64_t counts[4] = {0};
    for (uint32_t code = 0; code <= 0x10FFFF; ++code) ++counts[unicode_class(code)];
    assert_int_equal(counts[CLASS_LETTER], 141028);
    assert_int_equal(counts[CLASS_NUMBER], 1911);
    assert_int_equal(counts[CLASS_SPACE], 25);
    assert_int_equal(unicode_class(0x1E5D0), CLASS_LETTER);  // Ol Onal, new in 16
    assert_int_equal(unicode_class(0x180E), CLASS_OTHER);
    assert_int_equal(unicode_class(0x85), CLASS_SPACE);
    assert_int_equal(unicode_class(0x1C), CLASS_OTHER);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_patterns),          cmocka_unit_test(test_cuts_change_nothing),
        cmocka_unit_test(test_cuts_of_long_runs), cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_unicode_classes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
