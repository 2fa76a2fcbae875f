// test_tokenizer_files.c: tokenizer files written and read again. Malformed, hostile and unsupported files give an
// error that names the problem, never a crash or a tokenizer that differs from the file.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/rng.h"
#include "llmc/tokenizer/tokenizer.h"
#include "tests/support/file_test.h"

static Tokenizer *load(FileTest *t, const char *name) {
    char *path = name[0] == '.' ? xstrdup(t->dir) : file_test_path(t, name);
    Tokenizer *tokenizer = tokenizer_load(path, &t->err);
    free(path);
    return tokenizer;
}

// A small tokenizer with merges: letters, a space before words, bytes above 127.
static Tokenizer *small_tokenizer(void) {
    static const char TEXT[] =
        "low lower lowest \xC3\xA9t\xC3\xA9 \xC3\xA9t\xC3\xA9 new newer newest "
        "\"quoted\" \"quoted\" \\ \\\\ \n\n \n\n";
    WordCounts *counts = word_counts_new();
    word_counts_add(counts, TEXT, sizeof TEXT - 1);
    TokenizerTraining training = {.vocab = 300, .reserved = 1, .min_count = 2};
    Tokenizer *tokenizer = tokenizer_train(counts, &training, NULL);
    word_counts_free(counts);
    return tokenizer;
}

static void read_file(char **text, const FileTest *t, const char *name) {
    char *path = file_test_path(t, name);
    assert_true(file_read_all(path, 1 << 24, text, NULL, NULL));
    free(path);
}

static void test_save_and_load(void **state) {
    FileTest *t = *state;
    Tokenizer *made[] = {small_tokenizer(), tokenizer_load("bytes", NULL)};
    for (int i = 0; i < 2; ++i) {
        file_test_expect_ok(t, tokenizer_save(made[i], t->dir, &t->err));
        assert_int_equal(file_test_count_entries(t->dir), 2);
        Tokenizer *again = load(t, ".");
        file_test_expect_ok(t, again != NULL);
        assert_int_equal(tokenizer_fingerprint(again), tokenizer_fingerprint(made[i]));
        assert_string_equal(tokenizer_name(again), tokenizer_name(made[i]));
        assert_int_equal(tokenizer_eot(again), tokenizer_eot(made[i]));
        // A loaded tokenizer.json is written back byte for byte, unknown keys included.
        char *before;
        read_file(&before, t, "tokenizer.json");
        file_test_expect_ok(t, tokenizer_save(again, t->dir, &t->err));
        char *after;
        read_file(&after, t, "tokenizer.json");
        assert_string_equal(before, after);
        free(before);
        free(after);
        tokenizer_free(again);
        tokenizer_free(made[i]);
    }
}

static void test_save_errors(void **state) {
    FileTest *t = *state;
    Tokenizer *tokenizer = small_tokenizer();
    file_test_expect_error(t, tokenizer_save(tokenizer, "/nonexistent", &t->err), "/nonexistent");
    file_test_limit_file_size(1000);
    bool ok = tokenizer_save(tokenizer, t->dir, &t->err);
    file_test_limit_file_size(0);
    file_test_expect_error(t, ok, "tokenizer.json");
    assert_int_equal(file_test_count_entries(t->dir), 0);
    tokenizer_free(tokenizer);
}

// ---- tokenizer.json ----

// Replaces the first `from` in *text, which is on the heap.
static void replace(char **text, const char *from, const char *to) {
    const char *at = strstr(*text, from);
    if (at == NULL) fail_msg("expected '%s' in the file", from);
    char *edited = xasprintf("%.*s%s%s", (int)(at - *text), *text, to, at + strlen(from));
    free(*text);
    *text = edited;
}

typedef struct {
    const char *from, *to, *mention;  // mention NULL: loads
} Edit;
static const Edit EDITS[] = {
    {"\"BPE\"", "\"WordPiece\"", "WordPiece"},
    {"\"dropout\": null", "\"dropout\": 0.1", "dropout"},
    {"\"dropout\": null", "\"dropout\": 0", NULL},
    {"\"byte_fallback\": false", "\"byte_fallback\": true", "byte_fallback"},
    {"\"continuing_subword_prefix\": null", "\"continuing_subword_prefix\": \"##\"", "continuing_subword_prefix"},
    {"\"end_of_word_suffix\": null", "\"end_of_word_suffix\": \"</w>\"", "end_of_word_suffix"},
    {"\"normalizer\": null", "\"normalizer\": {\"type\": \"Lowercase\"}", "Lowercase"},
    {"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}", NULL},
    {"\"add_prefix_space\": false", "\"add_prefix_space\": true", "add_prefix_space"},
    {"\"use_regex\": true", "\"use_regex\": false", "use_regex"},
    {"{\"type\": \"ByteLevel\"", "{\"type\": \"Metaspace\"", "Metaspace"},
    {"\"pre_tokenizer\": ", "\"pre_tokenizer\": null, \"was\": ", "pre_tokenizer"},
    {"\"model\": ", "\"modell\": ", "model"},
    {"\"vocab\": {", "\"vocab\": 5, \"was\": {", "vocab"},
    {"\"merges\": [", "\"merges\": 5, \"was\": [", "merges"},
    {"\"a\": 97", "\"a\": 97, \"a\": 97", "duplicate"},
    {"\"a\": 97", "\"a\": 98", "two tokens have the id 98"},
    {"\"a\": 97,", "", "0x61"},
    {"\"a\": 97", "\"a\": 97.5", "whole number"},
    {"\"a\": 97", "\"a\": -1", "-1"},
    {"\"a\": 97", "\"a\": 1e300", "id"},
    {"\"a\": 97", "\"a\": 2147483648", "2147483648"},
    {"\"a\": 97", "\"a\": 100000000000000000000", "id"},
    {"\"a\": 97", "\"a\": \"97\"", "id"},
    {"\"a\": 97", "\"a\": 1000000", "97"},  // a hole
    {"\"a\": 97", "\"a\": 97, \"\": 400", "0 bytes"},
    {"\"merges\": [", "\"merges\": [5,", "merge 0"},
    {"\"merges\": [", "\"merges\": [\"lo\",", "merge 0"},
    {"\"merges\": [", "\"merges\": [\"l o w\",", "merge 0"},
    {"\"merges\": [", "\"merges\": [[\"l\"],", "merge 0"},
    {"\"merges\": [", "\"merges\": [[\"q\", \"q\"],", "no token is the result"},
    {"\"merges\": [", "\"merges\": [[\"qq\", \"q\"],", "not a token"},
    {"\"merges\": [", "\"merges\": [[\"l\", \"o\"],[\"l\", \"o\"],", "second time"},
    {"\"added_tokens\": [", "\"added_tokens\": [7,", "added_tokens"},
    {"\"added_tokens\": [", "\"added_tokens\": [{\"id\": 5, \"content\": \"x\", \"special\": true},", "id 5"},
    {"\"added_tokens\": [", "\"added_tokens\": [{\"id\": 500, \"content\": \"x y\"},", "white space"},
    {"\"added_tokens\": [", "\"added_tokens\": [{\"id\": 500, \"content\": \"xy\", \"special\": true},", NULL},
    {"\"version\"", "\"ver\\u0000sion\"", "control"},
    {"{", "{{", "JSON"},
};

static void test_edited_json(void **state) {
    FileTest *t = *state;
    Tokenizer *tokenizer = small_tokenizer();
    file_test_expect_ok(t, tokenizer_save(tokenizer, t->dir, &t->err));
    tokenizer_free(tokenizer);
    char *json;
    read_file(&json, t, "tokenizer.json");
    for (size_t i = 0; i < sizeof EDITS / sizeof EDITS[0]; ++i) {
        char *edited = xstrdup(json);
        replace(&edited, EDITS[i].from, EDITS[i].to);
        file_test_write(t, "tokenizer.json", edited, strlen(edited));
        free(edited);
        tokenizer = load(t, "tokenizer.json");
        if (EDITS[i].mention == NULL) file_test_expect_ok(t, tokenizer != NULL);
        else file_test_expect_error(t, tokenizer != NULL, EDITS[i].mention);
        tokenizer_free(tokenizer);
    }
    free(json);
}

// Truncated anywhere, or with one byte changed: an error or a tokenizer, never a crash.
static void test_damaged_json(void **state) {
    FileTest *t = *state;
    Tokenizer *tokenizer = small_tokenizer();
    file_test_expect_ok(t, tokenizer_save(tokenizer, t->dir, &t->err));
    tokenizer_free(tokenizer);
    char *json;
    read_file(&json, t, "tokenizer.json");
    size_t bytes = strlen(json);
    for (uint64_t i = 0; i < 150; ++i) {
        file_test_write(t, "tokenizer.json", json, bytes * i / 150);
        file_test_expect_error(t, load(t, "tokenizer.json") != NULL, "tokenizer.json");
        char *damaged = xstrdup(json);
        damaged[rng_u64(5, RNG_STREAM_TEST, i) % bytes] = (char)rng_u32(6, RNG_STREAM_TEST, i);
        file_test_write(t, "tokenizer.json", damaged, bytes);
        tokenizer_free(load(t, "tokenizer.json"));
        free(damaged);
    }
    free(json);
}

// ---- Llama 3 and Qwen 2 style files ----

#define PATTERN_HEAD "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|"
#define PATTERN_TAIL "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

static void test_split_patterns(void **state) {
    FileTest *t = *state;
    static const struct {
        const char *pattern;
        int64_t count;  // number of ids of " 12345": the pattern decides which digits can merge
    } CASES[] = {
        {PATTERN_HEAD "\\\\p{N}{1,3}" PATTERN_TAIL, 3}, {PATTERN_HEAD "\\\\p{N}" PATTERN_TAIL, 6}, {"\\\\d", -1}};
    Tokenizer *tokenizer = tokenizer_load("bytes", NULL);
    file_test_expect_ok(t, tokenizer_save(tokenizer, t->dir, &t->err));
    tokenizer_free(tokenizer);
    char *json;
    read_file(&json, t, "tokenizer.json");
    replace(&json, "\"1\": 49", "\"12\": 257, \"45\": 258, \"123\": 259, \"34\": 260, \"1\": 49");
    replace(&json, "\"merges\": [", "\"merges\": [\"1 2\", \"4 5\", \"12 3\", \"3 4\"");
    replace(&json, "\"use_regex\": true}", "\"use_regex\": false}]}");
    for (int i = 0; i < 3; ++i) {
        char *edited = xstrdup(json);
        replace(&edited, "\"pre_tokenizer\": ",
                "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": "
                "{\"Regex\": \"PATTERN\"}, \"behavior\": \"Isolated\", \"invert\": false}, ");
        replace(&edited, "PATTERN", CASES[i].pattern);
        file_test_write(t, "tokenizer.json", edited, strlen(edited));
        free(edited);
        tokenizer = load(t, "tokenizer.json");
        if (CASES[i].count < 0) {
            file_test_expect_error(t, tokenizer != NULL, "split pattern");
            continue;
        }
        file_test_expect_ok(t, tokenizer != NULL);
        TokenList ids = {0};
        tokenizer_encode(tokenizer, &ids, " 12345", 6, false);
        assert_int_equal(ids.count, CASES[i].count);
        token_list_free(&ids);
        tokenizer_free(tokenizer);
    }
    free(json);
}

// ---- the other kinds ----

static void expect_bad_file(FileTest *t, const char *name, const void *bytes, size_t count, const char *mention) {
    file_test_write(t, name, bytes, count);
    file_test_expect_error(t, load(t, name) != NULL, mention);
}
static void expect_bad_text(FileTest *t, const char *name, const char *text, const char *mention) {
    expect_bad_file(t, name, text, strlen(text), mention);
}

static void test_sources(void **state) {
    FileTest *t = *state;
    file_test_expect_error(t, load(t, "nothing.json") != NULL, "nothing.json");
    file_test_expect_error(t, load(t, ".") != NULL, "no tokenizer here");
    expect_bad_text(t, "tokenizer.model", "x", "unknown kind");
    file_test_expect_error(t, tokenizer_load("byte", &t->err) != NULL, "\"bytes\"");
}

static void test_tiktoken_files(void **state) {
    FileTest *t = *state;
    expect_bad_text(t, "my.tiktoken", "YQ== 0\n", "name");
    expect_bad_text(t, "gpt2.tiktoken", "", "0x00");
    expect_bad_text(t, "gpt2.tiktoken", "YQ== 0\nYQ== 1\n", "same bytes");
    expect_bad_text(t, "gpt2.tiktoken", "YQ== 0\nYg== 0\n", "line 2");
    expect_bad_text(t, "gpt2.tiktoken", "YQ==0\n", "base64");
    expect_bad_text(t, "gpt2.tiktoken", "YQ= 0\n", "base64");
    expect_bad_text(t, "gpt2.tiktoken", "Y!== 0\n", "base64");
    expect_bad_text(t, "gpt2.tiktoken", "YQ== 0x1\n", "base64");
    expect_bad_text(t, "gpt2.tiktoken", "YQ== 99999999999999999999\n", "base64");
    expect_bad_text(t, "gpt2.tiktoken", "YQ== 9999999999\n", "9999999999");
    expect_bad_text(t, "gpt2.tiktoken", " 0\n", "base64");
    expect_bad_text(t, "gpt2.tiktoken", "YWI= 0\n", "0x61");  // a token whose bytes have no tokens
    expect_bad_file(t, "gpt2.tiktoken", "YQ== 0\0\n", 8, "zero byte");
}

static void test_gpt2_files(void **state) {
    FileTest *t = *state;
    file_test_write(t, "merges.txt", "#version: 0.2\nl o\n", 18);
    expect_bad_text(t, "vocab.json", "[]", "object");
    file_test_expect_error(t, load(t, ".") != NULL, "vocab.json");
    file_test_write(t, "vocab.json", "{\"l\": 0, \"o\": 1}", 16);
    file_test_expect_error(t, load(t, ".") != NULL, "merges.txt: line 2");
    file_test_write(t, "vocab.json", "{\"l\": 0, \"o\": 1, \"lo\": 2}", 25);
    file_test_expect_error(t, load(t, ".") != NULL, "all 256");
}

static void test_llama2c_files(void **state) {
    FileTest *t = *state;
    expect_bad_file(t, "a.bin", "", 0, "found 0 bytes");
    expect_bad_file(t, "a.bin",
                    "\1\0\0\0"
                    "\0\0\0\0"
                    "\1\0\0",
                    11, "token 0");
    expect_bad_file(t, "a.bin",
                    "\1\0\0\0"
                    "\0\0\0\0"
                    "\1\0\0\0",
                    12, "token 0");
    expect_bad_file(t, "a.bin",
                    "\1\0\0\0"
                    "\0\0\0\0"
                    "\xFF\xFF\xFF\xFF"
                    "a",
                    13, "token 0");
    expect_bad_file(t, "a.bin",
                    "\1\0\0\0"
                    "\0\0\0\0"
                    "\0\0\0\x7F"
                    "a",
                    13, "token 0");
    expect_bad_file(t, "a.bin",
                    "\1\0\0\0"
                    "\0\0\xC0\x7F"
                    "\1\0\0\0"
                    "a",
                    13, "token 0");  // a NaN score
    expect_bad_file(t, "a.bin",
                    "\1\0\0\0"
                    "\0\0\0\0"
                    "\1\0\0\0"
                    "a",
                    13, "0x00");  // one token only
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FILE_TEST(test_save_and_load),  FILE_TEST(test_save_errors),    FILE_TEST(test_edited_json),
        FILE_TEST(test_damaged_json),   FILE_TEST(test_split_patterns), FILE_TEST(test_sources),
        FILE_TEST(test_tiktoken_files), FILE_TEST(test_gpt2_files),     FILE_TEST(test_llama2c_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
