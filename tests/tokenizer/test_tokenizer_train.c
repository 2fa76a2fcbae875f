// test_tokenizer_train.c: BPE training compared with a naive trainer that recounts all pairs before each merge, and
// with the merges of golden/cs336; the trained tokenizer compared with a naive encoder; independence of chunks and
// threads; limits.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/rng.h"
#include "llmc/tokenizer/tokenizer.h"
#include "llmc/tokenizer/tokenizer_split.h"
#include "tests/support/file_test.h"
#include "tests/support/tokenizer_test.h"

#define CS336 "../shared/data/golden/cs336/"

static Tokenizer *train(const void *text, int64_t bytes, int32_t vocab, int64_t min_count) {
    WordCounts *counts = word_counts_new();
    word_counts_add(counts, text, bytes);
    TokenizerTraining training = {.vocab = vocab, .min_count = min_count};
    Error err = {""};
    Tokenizer *t = tokenizer_train(counts, &training, &err);
    word_counts_free(counts);
    if (t == NULL) fail_msg("%s", err.message);
    return t;
}

static int compare_tokens(const Tokenizer *t, int32_t a, int32_t b) {
    int32_t a_bytes, b_bytes;
    const uint8_t *x = tokenizer_token(t, a, &a_bytes), *y = tokenizer_token(t, b, &b_bytes);
    int order = memcmp(x, y, (size_t)(a_bytes < b_bytes ? a_bytes : b_bytes));
    return order != 0 ? order : (a_bytes > b_bytes) - (a_bytes < b_bytes);
}

// ---- the naive reference: all pieces of the text as symbols, all pairs recounted before each merge ----

enum { NAIVE_MAX = 4096, NAIVE_VOCAB = 330 };
typedef struct {
    int32_t symbols[NAIVE_MAX];
    bool starts[NAIVE_MAX];  // whether a piece starts here
    int64_t count;
} Naive;

static void naive_init(Naive *naive, const uint8_t *text, int64_t bytes) {
    naive->count = bytes;
    for (int64_t pos = 0, end = 0; pos < bytes; ++pos) {
        naive->symbols[pos] = text[pos];
        naive->starts[pos] = pos == end;
        if (pos == end) end += split_piece(SPLIT_GPT2, text + pos, bytes - pos);
    }
}

static void naive_merge(Naive *naive, int32_t left, int32_t right, int32_t result) {
    int64_t kept = 0;
    for (int64_t i = 0; i < naive->count; ++i, ++kept) {
        bool joins = i + 1 < naive->count && !naive->starts[i + 1] && naive->symbols[i] == left &&
                     naive->symbols[i + 1] == right;
        naive->symbols[kept] = joins ? result : naive->symbols[i];
        naive->starts[kept] = naive->starts[i];
        i += joins;
    }
    naive->count = kept;
}

// The most frequent pair; of equals the one with the greatest bytes. Returns its count.
static int64_t naive_best(const Naive *naive, const Tokenizer *t, int32_t *left, int32_t *right) {
    static int64_t counts[NAIVE_VOCAB][NAIVE_VOCAB];
    memset(counts, 0, sizeof counts);
    for (int64_t i = 0; i + 1 < naive->count; ++i)
        if (!naive->starts[i + 1]) ++counts[naive->symbols[i]][naive->symbols[i + 1]];
    int64_t best = 0;
    for (int32_t a = 0; a < NAIVE_VOCAB; ++a)
        for (int32_t b = 0; b < NAIVE_VOCAB; ++b) {
            if (counts[a][b] == 0 || counts[a][b] < best) continue;
            if (counts[a][b] == best) {
                int order = compare_tokens(t, a, *left);
                if (order < 0 || (order == 0 && compare_tokens(t, b, *right) < 0)) continue;
            }
            best = counts[a][b];
            *left = a;
            *right = b;
        }
    return best;
}

static int64_t random_words(uint8_t *out, int64_t bytes, uint64_t round) {
    static const char LETTERS[] = "aabbc d\n'1\xE9";
    for (int64_t i = 0; i < bytes; ++i) {
        uint32_t letters = round % 3 == 0 ? 2 : sizeof LETTERS - 1;  // every third text has only "a" and "b": overlaps
        out[i] = (uint8_t)LETTERS[round % 3 == 0 ? 1 + rng_u32(3, round, (uint64_t)i) % letters
                                                 : rng_u32(3, round, (uint64_t)i) % letters];
    }
    return bytes;
}

static void test_against_naive(void **state) {
    (void)state;
    static Naive naive;
    static uint8_t text[NAIVE_MAX];
    for (uint64_t round = 0; round < 12; ++round) {
        int64_t bytes = random_words(text, 200 + 300 * (int64_t)round, round);
        Tokenizer *t = train(text, bytes, NAIVE_VOCAB, 2);
        naive_init(&naive, text, bytes);
        int32_t merges = tokenizer_merges(t), left = -1, right = -1, got_left, got_right;
        assert_true(merges > 3);
        for (int32_t rank = 0; rank < merges; ++rank) {
            assert_true(naive_best(&naive, t, &left, &right) >= 2);
            tokenizer_test_merge(t, rank, &got_left, &got_right);
            assert_int_equal(got_left, left);
            assert_int_equal(got_right, right);
            naive_merge(&naive, left, right, 256 + rank);
        }
        if (merges < NAIVE_VOCAB - 257) assert_true(naive_best(&naive, t, &left, &right) < 2);
        // The merged training text is its encoding.
        TokenList ids = {0};
        tokenizer_encode(t, &ids, text, bytes, false);
        assert_int_equal(ids.count, naive.count);
        assert_memory_equal(ids.ids, naive.symbols, (size_t)ids.count * sizeof *ids.ids);
        token_list_free(&ids);
        tokenizer_free(t);
    }
}

static void test_layout(void **state) {
    (void)state;
    WordCounts *counts = word_counts_new();
    word_counts_add(counts, "ab ab ab", 8);
    TokenizerTraining training = {.vocab = 262, .reserved = 2, .min_count = 1};
    Error err = {""};
    Tokenizer *t = tokenizer_train(counts, &training, &err);
    assert_non_null(t);
    assert_int_equal(tokenizer_vocab(t), 261);  // "ab" and " ab"; then no pair is left
    assert_int_equal(tokenizer_merges(t), 2);
    assert_int_equal(tokenizer_eot(t), 260);
    assert_int_equal(tokenizer_test_find_special(t, "<|reserved_1|>"), 259);
    assert_true(tokenizer_is_special(t, 258) && !tokenizer_is_special(t, 257));
    assert_int_equal(tokenizer_text_bytes(t, 260), 0);
    assert_int_equal(tokenizer_text_bytes(t, 257), 3);
    TokenList ids = {0};
    tokenizer_encode(t, &ids, "ab<|endoftext|> ab", 18, true);
    assert_int_equal(ids.count, 3);
    assert_int_equal(ids.ids[1], 260);
    token_list_free(&ids);
    tokenizer_free(t);
    training.vocab = 258;  // no room for the reserved ones
    assert_null(tokenizer_train(counts, &training, &err));
    assert_non_null(strstr(err.message, "258"));
    word_counts_free(counts);
}

// Any chunks and any order of merging the counts give the same tokenizer.
static void test_chunks_do_not_matter(void **state) {
    (void)state;
    enum { BYTES = 60000, PARTS = 7 };
    uint8_t *text = xmalloc(BYTES);
    random_words(text, BYTES, 1);
    Tokenizer *whole = train(text, BYTES, 400, 2);
    WordCounts *parts[PARTS];
    for (int i = 0; i < PARTS; ++i) parts[i] = word_counts_new();
    for (int64_t start = 0, i = 0; start < BYTES; ++i) {
        int64_t bytes = min_i64(1000 + 37 * i, BYTES - start);
        int64_t cut = start + bytes == BYTES ? bytes : split_safe_cut(SPLIT_GPT2, text + start, 0, bytes);
        assert_true(cut > 0);
        word_counts_add(parts[(PARTS - i % PARTS) % PARTS], text + start, cut);
        start += cut;
    }
    for (int i = PARTS - 2; i >= 0; --i) word_counts_merge(parts[PARTS - 1], parts[i]);
    assert_int_equal(word_counts_bytes(parts[PARTS - 1]), BYTES);
    TokenizerTraining training = {.vocab = 400, .min_count = 2};
    Tokenizer *merged = tokenizer_train(parts[PARTS - 1], &training, NULL);
    assert_int_equal(tokenizer_fingerprint(whole), tokenizer_fingerprint(merged));
    for (int i = 0; i < PARTS; ++i) word_counts_free(parts[i]);
    tokenizer_free(whole);
    tokenizer_free(merged);
    free(text);
}

// One word of a hundred thousand letters: tokens keep their length limit, and training ends.
static void test_very_long_word(void **state) {
    (void)state;
    enum { BYTES = 100000 };
    char *text = xmalloc(BYTES);
    memset(text, '=', BYTES);
    Tokenizer *t = train(text, BYTES, 300, 2);
    for (int32_t id = 0; id < tokenizer_vocab(t); ++id) assert_true(tokenizer_text_bytes(t, id) <= 4096);
    TokenList ids = {0};
    tokenizer_encode(t, &ids, text, BYTES, false);
    assert_true(ids.count < 100);
    token_list_free(&ids);
    tokenizer_free(t);
    free(text);
}

static void test_golden_merges(void **state) {
    (void)state;
    if (!file_exists(CS336 "corpus.en")) {
        print_message("skipped: " CS336 "corpus.en does not exist\n");
        skip();
    }
    char *text, *merges;
    size_t bytes, merges_bytes;
    assert_true(file_read_all(CS336 "corpus.en", 1 << 20, &text, &bytes, NULL));
    assert_true(file_read_all(CS336 "train-bpe-reference-merges.txt", 1 << 20, &merges, &merges_bytes, NULL));
    Tokenizer *t = train(text, (int64_t)bytes, 500, 1);
    assert_int_equal(tokenizer_merges(t), 243);
    char *line = merges;
    for (int32_t rank = 0; rank < 243; ++rank) {
        int32_t pair[2];
        tokenizer_test_merge(t, rank, &pair[0], &pair[1]);
        char written[200];
        size_t used = 0;
        for (int side = 0; side < 2; ++side) {
            int32_t count;
            const uint8_t *token = tokenizer_token(t, pair[side], &count);
            for (int32_t i = 0; i < count; ++i) {  // the only byte here that GPT-2 writes as a different character
                const char *as = token[i] == ' ' ? "\xC4\xA0" : (char[]){(char)token[i], 0};
                used += (size_t)snprintf(written + used, sizeof written - used, "%s", as);
            }
            used += (size_t)snprintf(written + used, sizeof written - used, "%s", side == 0 ? " " : "");
        }
        char *end = strchr(line, '\n');
        if (end != NULL) *end = '\0';
        assert_string_equal(written, line);
        line = end == NULL ? line + strlen(line) : end + 1;
    }
    tokenizer_free(t);
    free(text);
    free(merges);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_naive),        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_chunks_do_not_matter), cmocka_unit_test(test_very_long_word),
        cmocka_unit_test(test_golden_merges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
