// test_tokenizer.c: encoding and decoding. Published cases for GPT-2 (three kinds of files, equal ids), llama2.c's
// small vocabulary, lossless round trips of any bytes, streaming and parallel encoding compared with encoding at once,
// special tokens.
#include "llmc/tokenizer/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/rng.h"
#include "tests/support/file_test.h"
#include "tests/support/tokenizer_test.h"

#define DATA "../shared/data/"

static Tokenizer *load_or_skip(const char *source) {
    if (!file_exists(source) && !dir_exists(source)) {
        print_message("skipped: %s does not exist\n", source);
        skip();
    }
    Error err = {""};
    Tokenizer *t = tokenizer_load(source, &err);
    if (t == NULL) fail_msg("%s", err.message);
    return t;
}

// NUL-terminated; the caller frees.
static void read_or_skip(char **text, int64_t *bytes, const char *path) {
    size_t count = 0;
    if (!file_exists(path)) {
        print_message("skipped: %s does not exist\n", path);
        skip();
    }
    assert_true(file_read_all(path, (size_t)1 << 30, text, &count, NULL));
    *bytes = (int64_t)count;
}

// GPT-2 has merges for most of this alphabet; some of it is invalid UTF-8.
static int64_t random_bytes(uint8_t *out, int64_t bytes, uint64_t stream) {
    static const char *const PARTS[] = {
        " the", "and", "s", " ", "\n", "in", "'ll", "12", "\xC3\xA9", "\xF0\x9F\x98\x80", "==", "\t"};
    int64_t count = 0;
    for (uint64_t i = 0; count + 4 < bytes; ++i) {
        uint32_t random = rng_u32(11, stream, i);
        if (random % 5 == 0) {
            out[count++] = (uint8_t)(random >> 8);
            continue;
        }
        const char *part = PARTS[(random >> 8) % (sizeof PARTS / sizeof PARTS[0])];
        memcpy(out + count, part, strlen(part));
        count += (int64_t)strlen(part);
    }
    return count;
}

static void check_decodes_to(const Tokenizer *t, const TokenList *ids, const uint8_t *text, int64_t bytes) {
    int64_t pos = 0;
    for (int64_t i = 0; i < ids->count; ++i) {
        int32_t count;
        const uint8_t *token = tokenizer_token(t, ids->ids[i], &count);
        assert_true(pos + count <= bytes && memcmp(text + pos, token, (size_t)count) == 0);
        pos += tokenizer_text_bytes(t, ids->ids[i]);
    }
    assert_int_equal(pos, bytes);
}

static void check_equal(const TokenList *a, const TokenList *b) {
    assert_int_equal(a->count, b->count);
    if (a->count > 0) assert_memory_equal(a->ids, b->ids, (size_t)a->count * sizeof *a->ids);
}

// At every safe cut: the ids of the parts, each from its own encoder, are those of the whole.
static void encode_in_chunks(const Tokenizer *t, TokenList *out, const uint8_t *text, int64_t bytes) {
    enum { CHUNK_BYTES = 1 << 14 };
    for (int64_t start = 0, cut; start < bytes; start += cut) {
        cut = 0;
        for (int64_t window = CHUNK_BYTES; cut == 0 && start + window < bytes; window *= 2)
            cut = tokenizer_safe_cut(t, text + start, window);
        if (cut == 0) cut = bytes - start;
        TokenEncoder *encoder = token_encoder_new(t);
        token_encoder_feed(encoder, out, text + start, cut);
        token_encoder_finish(encoder, out);
        token_encoder_free(encoder);
    }
}

// Round trips of random bytes; the same ids from streaming in random pieces and from chunks.
static void check_ways_of_encoding(const Tokenizer *t) {
    enum { BYTES = 3000000 };
    uint8_t *text = xmalloc(BYTES);
    TokenEncoder *encoder = token_encoder_new(t);
    for (uint64_t round = 0; round < 40; ++round) {
        int64_t bytes = random_bytes(text, round == 39 ? BYTES : 10 + 40 * (int64_t)round, round);
        TokenList whole = {0}, streamed = {0}, chunks = {0};
        tokenizer_encode(t, &whole, text, bytes, false);
        check_decodes_to(t, &whole, text, bytes);
        for (int64_t pos = 0, step; pos < bytes; pos += step) {
            step = min_i64(bytes - pos, rng_u32(12, round, (uint64_t)pos) % (round == 39 ? 100000 : 30));
            token_encoder_feed(encoder, &streamed, text + pos, step);
            if (step == 0) step = 1, token_encoder_feed(encoder, &streamed, text + pos, 1);
        }
        token_encoder_finish(encoder, &streamed);
        check_equal(&whole, &streamed);
        encode_in_chunks(t, &chunks, text, bytes);
        check_equal(&whole, &chunks);
        token_list_free(&whole);
        token_list_free(&streamed);
        token_list_free(&chunks);
    }
    token_encoder_free(encoder);
    free(text);
}

static void test_bytes(void **state) {
    (void)state;
    Tokenizer *t = tokenizer_load("bytes", NULL);
    assert_string_equal(tokenizer_name(t), "bytes");
    assert_int_equal(tokenizer_vocab(t), 257);
    assert_int_equal(tokenizer_eot(t), 256);
    uint8_t all[256];
    for (int i = 0; i < 256; ++i) all[i] = (uint8_t)i;
    TokenList ids = {0};
    tokenizer_encode(t, &ids, all, 256, false);
    assert_int_equal(ids.count, 256);
    for (int i = 0; i < 256; ++i) assert_int_equal(ids.ids[i], i);
    token_list_free(&ids);
    check_ways_of_encoding(t);
    tokenizer_free(t);
}

static void test_trained(void **state) {
    (void)state;
    enum { BYTES = 200000 };
    uint8_t *text = xmalloc(BYTES);
    WordCounts *counts = word_counts_new();
    word_counts_add(counts, text, random_bytes(text, BYTES, 999));
    TokenizerTraining training = {.vocab = 700, .reserved = 3, .min_count = 2};
    Tokenizer *t = tokenizer_train(counts, &training, NULL);
    assert_string_equal(tokenizer_name(t), "bpe-700");
    check_ways_of_encoding(t);
    tokenizer_free(t);
    word_counts_free(counts);
    free(text);
}

static void test_special_tokens(void **state) {
    (void)state;
    Tokenizer *t = tokenizer_load("bytes", NULL);
    static const char TEXT[] = "<|endoftext|>a<|endoftext|<|endoftext|>";
    TokenList ids = {0};
    tokenizer_encode(t, &ids, TEXT, sizeof TEXT - 1, false);
    assert_int_equal(ids.count, sizeof TEXT - 1);
    ids.count = 0;
    tokenizer_encode(t, &ids, TEXT, sizeof TEXT - 1, true);
    assert_int_equal(ids.count, 1 + 1 + 12 + 1);
    assert_int_equal(ids.ids[0], 256);
    assert_int_equal(ids.ids[14], 256);
    assert_int_equal(tokenizer_test_find_special(t, "<|endoftext|>"), 256);
    assert_int_equal(tokenizer_test_find_special(t, "<|endoftext|"), -1);
    token_list_free(&ids);
    tokenizer_free(t);
}

// ---- GPT-2 ----

static void test_gpt2_files_agree(void **state) {
    (void)state;
    Tokenizer *gpt2 = load_or_skip(DATA "tokenizers/gpt2"),
              *r50k = load_or_skip(DATA "tokenizers/r50k_base.tiktoken");
    assert_string_equal(tokenizer_name(gpt2), "gpt2");
    assert_int_equal(tokenizer_vocab(gpt2), 50257);
    assert_int_equal(tokenizer_eot(gpt2), 50256);
    assert_int_equal(tokenizer_merges(gpt2), 50000);
    assert_true(tokenizer_is_special(gpt2, 50256));
    assert_int_equal(tokenizer_fingerprint(gpt2), tokenizer_fingerprint(r50k));
    int64_t bytes;
    char *text;
    read_or_skip(&text, &bytes, DATA "text/tinyshakespeare.txt");
    TokenList a = {0}, b = {0};
    tokenizer_encode(gpt2, &a, text, bytes, false);
    assert_int_equal(a.count, 338025);  // nanoGPT's and llm.c's figure
    encode_in_chunks(r50k, &b, (const uint8_t *)text, bytes);
    check_equal(&a, &b);
    check_decodes_to(gpt2, &a, (const uint8_t *)text, bytes);
    check_ways_of_encoding(gpt2);
    token_list_free(&a);
    token_list_free(&b);
    tokenizer_free(gpt2);
    tokenizer_free(r50k);
    free(text);
}

// llama.cpp's cases: texts separated by a marker line, one line of ids for each.
static void test_gpt2_llamacpp_cases(void **state) {
    (void)state;
    static const char MARKER[] = "\n__ggml_vocab_test__\n";
    Tokenizer *t = load_or_skip(DATA "tokenizers/gpt2");
    int64_t bytes, expected_bytes;
    char *text;
    read_or_skip(&text, &bytes, DATA "golden/llamacpp_vocab/ggml-vocab-gpt-2.gguf.inp");
    char *expected;
    read_or_skip(&expected, &expected_bytes, DATA "golden/llamacpp_vocab/ggml-vocab-gpt-2.gguf.out");
    int cases = 0;
    char *line = expected;
    for (char *next = text; *line != '\0'; ++cases) {
        char *end = strstr(next, MARKER), *line_end = strchr(line, '\n');
        int64_t length = end == NULL ? (int64_t)strlen(next) : end - next;
        TokenList ids = {0};
        tokenizer_encode(t, &ids, next, length, false);
        *line_end = '\0';
        int64_t count = 0;
        for (char *cursor = line; *cursor != '\0'; ++count) {
            assert_true(count < ids.count);
            assert_int_equal(ids.ids[count], strtol(cursor, &cursor, 10));
        }
        assert_int_equal(count, ids.count);
        token_list_free(&ids);
        line = line_end + 1;
        next += length + (end == NULL ? 0 : (int64_t)strlen(MARKER));
    }
    assert_int_equal(cases, 46);
    tokenizer_free(t);
    free(text);
    free(expected);
}

static void test_cl100k(void **state) {
    (void)state;
    Tokenizer *t = load_or_skip(DATA "tokenizers/cl100k_base.tiktoken");
    assert_string_equal(tokenizer_name(t), "cl100k_base");
    assert_int_equal(tokenizer_vocab(t), 100277);
    assert_int_equal(tokenizer_eot(t), 100257);
    TokenList ids = {0};
    tokenizer_encode(t, &ids, "hello world", 11, false);
    assert_int_equal(ids.count, 2);
    assert_int_equal(ids.ids[0], 15339);
    assert_int_equal(ids.ids[1], 1917);
    token_list_free(&ids);
    check_ways_of_encoding(t);
    tokenizer_free(t);
}

// ---- llama2.c ----

static void test_llama2c(void **state) {
    (void)state;
    static const char STORY[] = "Once upon a time, there was a little girl named Lily. She";
    Tokenizer *t = load_or_skip(DATA "models/stories260K/tok512.bin");
    int64_t bytes;
    char *golden;
    read_or_skip(&golden, &bytes, DATA "golden/stories260K/greedy_ids.json");
    assert_int_equal(tokenizer_vocab(t), 512);
    assert_int_equal(tokenizer_eot(t), 1);
    TokenList ids = {0};
    tokenizer_encode(t, &ids, STORY, sizeof STORY - 1, false);
    char *cursor = strstr(golden, "\"ids\": [") + strlen("\"ids\": [");
    assert_int_equal(strtol(cursor, &cursor, 10), 1);  // the golden ids begin with <s>
    char decoded[200] = "";
    for (int64_t i = 0; i < ids.count; ++i) {
        assert_int_equal(ids.ids[i], strtol(cursor + 1, &cursor, 10));
        int32_t count;
        const uint8_t *token = tokenizer_token(t, ids.ids[i], &count);
        strncat(decoded, (const char *)token, (size_t)count);
    }
    assert_string_equal(decoded + 1, STORY);  // after the space that llama2.c prepends
    assert_int_equal(decoded[0], ' ');
    token_list_free(&ids);
    uint8_t all[256];
    for (int i = 0; i < 256; ++i) all[i] = (uint8_t)i;
    tokenizer_encode(t, &ids, all, 256, false);  // bytes that are no character fall back to byte tokens
    int64_t total = 0;
    for (int64_t i = 0; i < ids.count; ++i) total += tokenizer_text_bytes(t, ids.ids[i]);
    assert_int_equal(total, 257);
    token_list_free(&ids);
    tokenizer_free(t);
    free(golden);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_trained),
        cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_gpt2_files_agree),
        cmocka_unit_test(test_gpt2_llamacpp_cases),
        cmocka_unit_test(test_cl100k),
        cmocka_unit_test(test_llama2c),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
