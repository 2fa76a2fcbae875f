// test_option_table.c: options of both spellings: values, ranges, words, messages, other arguments, help.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/base/option_table.h"
#include "tests/support/file_test.h"

enum { BLUE = 7, RED = 3 };
static const Word COLOURS[] = {{BLUE, "blue"}, {RED, "red"}, {5, "green"}, {0, NULL}};

typedef struct {
    const char *text, *mode;
    char name[8];
    int64_t count;
    double real;
    float narrow;
    bool on, flag;
    int colour;
} Values;

#define FIELD(field) OPTION_AT(Values, field)
static const Option ROWS[] = {
    {"ckpt", FIELD(text), OPTION_TEXT, 1, .help = "which checkpoint"},
    {"mode", FIELD(mode), .words = COLOURS, .word_count = 2, .help = "as text"},
    {"name", FIELD(name), OPTION_CHARS, .fallback = "", .help = "short"},
    {"tokens", FIELD(count), OPTION_WHOLE, 1, 1e6, .fallback = "64", .help = "how many"},
    {"temperature", FIELD(real), OPTION_REAL, 0, 100, .help = "how wild"},
    {"eps", FIELD(narrow), OPTION_FLOAT, 0, 1, .help = "how little"},
    {"mask", FIELD(on), OPTION_BOOL, .help = "whether"},
    {"list", FIELD(flag), OPTION_FLAG, .help = "only list"},
    {"colour", FIELD(colour), OPTION_WORD, .words = COLOURS, .help = "which"},
};
static const Values DEFAULTS = {.text = "here", .mode = "blue", .count = 64, .real = 0.8, .colour = RED};

static OptionTable table_of(Values *values, OptionSpelling spelling) {
    *values = DEFAULTS;
    return (OptionTable){OPTION_ROWS(ROWS), spelling, values, "train_gpt", "usage: train_gpt sample ckpt=DIR"};
}
#define ARGV(...) \
    (int)(sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)), (char *[]) { __VA_ARGS__ }

static void test_keys(void **state) {
    FileTest *t = *state;
    Values v;
    OptionTable table = table_of(&v, OPTIONS_KEYS);
    assert_int_equal(options_parse(NULL, 0, NULL, &table, &t->err), OPTIONS_OK);
    assert_memory_equal(&v, &DEFAULTS, sizeof v);
    assert_int_equal(options_parse(NULL,
                                   ARGV("tokens=2k", "ckpt=a=b", "temperature=-0", "tokens=1", "mask=on", "list=true",
                                        "colour=green", "eps=1e-5", "name=seven77", "mode=red"),
                                   &table, &t->err),
                     OPTIONS_OK);
    assert_string_equal(v.text, "a=b");
    assert_string_equal(v.mode, "red");
    assert_string_equal(v.name, "seven77");
    assert_int_equal(v.count, 1);  // the last word counts
    assert_true(v.real == 0 && !signbit(v.real) && v.narrow == 1e-5f && v.on && v.flag && v.colour == 5);
}

static void test_dashes(void **state) {
    FileTest *t = *state;
    Values v;
    int rest;
    OptionTable table = table_of(&v, OPTIONS_DASHES);
    char *argv[] = {"a", "--tokens", "4Ki", "-", "--colour=blue", "--list", "b", "--", "--tokens", "--help"};
    assert_int_equal(options_parse(&rest, 10, argv, &table, &t->err), OPTIONS_OK);
    assert_true(v.count == 4096 && v.colour == BLUE && v.flag && !v.on);
    static const char *const REST[] = {"a", "-", "b", "--tokens", "--help"};
    assert_int_equal(rest, 5);
    for (int i = 0; i < rest; ++i) assert_string_equal(argv[i], REST[i]);
}

static void test_take(void **state) {
    FileTest *t = *state;
    Values v;
    OptionTable table = table_of(&v, OPTIONS_KEYS);
    char *argv[] = {"plan", "tokens=7", "token=8", "run.conf", "tokens", "colour=blue"};
    int argc = 6;
    assert_true(options_take(&argc, argv, &table, &t->err));
    assert_int_equal(argc, 4);
    assert_true(v.count == 7 && v.colour == BLUE);
    assert_string_equal(argv[1], "token=8");
    assert_string_equal(argv[3], "tokens");
    argc = 2;
    argv[1] = "tokens=0";
    assert_false(options_take(&argc, argv, &table, &t->err));
    assert_non_null(strstr(t->err.message, "tokens: expected a whole number from 1 to 1000000"));
}

static void test_mistakes(void **state) {
    FileTest *t = *state;
    // a word as a key, as an option, and what the message must say
    static const struct {
        const char *key, *option, *says;
    } CASES[] = {
        {"tokens=0", "--tokens=0", "tokens: expected a whole number from 1 to 1000000"},
        {"tokens=1000001", "--tokens=1000001", "found '1000001'"},
        {"tokens=-1", "--tokens=-1", "found '-1'"},
        {"tokens=8x", "--tokens=8x", "found '8x'"},
        {"tokens=", "--tokens=", "found ''"},
        {"tokens= 5", "--tokens= 5", "found ' 5'"},
        {"tokens=1.5", "--tokens=1.5", "found '1.5'"},
        {"temperature=hot", "--temperature=hot", "temperature: expected a number from 0 to 100, found 'hot'"},
        {"temperature=100.1", "--temperature=100.1", "found '100.1'"},
        {"temperature=nan", "--temperature=nan", "found 'nan'"},
        {"temperature=1e999", "--temperature=1e999", "found '1e999'"},
        {"eps=-0.1", "--eps=-0.1", "eps: expected a number from 0 to 1"},
        {"ckpt=", "--ckpt=", "ckpt: expected a non-empty text, found ''"},
        {"name=12345678", "--name=12345678", "name: expected at most 7 bytes, found 8"},
        {"mode=green", "--mode=green", "mode: expected one of: blue red; found 'green'"},
        {"colour=7", "--colour=7", "colour: expected one of: blue red green; found '7'"},
        {"mask=maybe", "--mask=maybe", "mask: expected true or false, found 'maybe'"},
        {"token=5", "--token=5", "token'; did you mean '"},
        {"=5", "--=5", "unknown option '"},
        {"--tokens=5", "-tokens", "tokens'; did you mean '"},
        {"tokens", "tokens", "unexpected 'tokens'"},
        {"", "", "unexpected ''"},
        {"tokens", "--tokens", "tokens"},
    };
    for (size_t i = 0; i < 2 * sizeof CASES / sizeof CASES[0]; ++i) {
        OptionSpelling spelling = i % 2 == 0 ? OPTIONS_KEYS : OPTIONS_DASHES;
        Values v;
        OptionTable table = table_of(&v, spelling);
        const char *word = i % 2 == 0 ? CASES[i / 2].key : CASES[i / 2].option;
        char *copy = xstrdup(word);
        t->err.message[0] = '\0';
        if (options_parse(NULL, ARGV(copy), &table, &t->err) != OPTIONS_ERROR) fail_msg("'%s' is taken", word);
        if (strstr(t->err.message, CASES[i / 2].says) == NULL)
            fail_msg("'%s': '%s' does not say '%s'", word, t->err.message, CASES[i / 2].says);
        if (spelling == OPTIONS_DASHES && strncmp(CASES[i / 2].says, "tokens:", 7) == 0)
            assert_int_equal(strncmp(t->err.message, "--tokens:", 9), 0);
        assert_memory_equal(&v, &DEFAULTS, sizeof v);
        free(copy);
    }
    Values v;
    OptionTable table = table_of(&v, OPTIONS_DASHES);
    assert_int_equal(options_parse(NULL, ARGV("--list=1"), &table, &t->err), OPTIONS_ERROR);
    assert_non_null(strstr(t->err.message, "--list takes no value"));
    assert_int_equal(options_parse(NULL, ARGV("--tokens"), &table, &t->err), OPTIONS_ERROR);
    assert_non_null(strstr(t->err.message, "--tokens: expected a value after it"));
    assert_string_equal(options_nearest(&table, "tokns"), "tokens");
    assert_int_equal(edit_distance("kitten", "sitting"), 3);
}

// Printed values read back, also one among random values.
static void test_format(void **state) {
    FileTest *t = *state;
    static const char *const TEXTS[] = {"x y", "red", "abc", "123456", "0.3", "1e-05", "true", "false", "green"};
    for (int i = 0; i < (int)(sizeof ROWS / sizeof ROWS[0]); ++i) {
        Values v = DEFAULTS;
        assert_true(option_store(&ROWS[i], &v, TEXTS[i], &t->err));
        char *text = option_format(&ROWS[i], &v);
        assert_string_equal(text, TEXTS[i]);
        free(text);
    }
}

// options_read with stdout and stderr in a file of the test's directory; *said receives both (caller frees).
static int read_options(FileTest *t, const OptionTable *table, char **said, int argc, char **argv) {
    char *path = file_test_path(t, "said");
    fflush(stdout);
    fflush(stderr);
    int keep[2] = {dup(STDOUT_FILENO), dup(STDERR_FILENO)};
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    dup2(fileno(file), STDOUT_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    int status = options_read(table, argc, argv);
    fflush(stdout);
    fflush(stderr);
    for (int i = 0; i < 2; ++i) {
        dup2(keep[i], STDOUT_FILENO + i);
        close(keep[i]);
    }
    fclose(file);
    file_test_expect_ok(t, file_read_all(path, 1 << 16, said, NULL, &t->err));
    free(path);
    return status;
}

static void test_read(void **state) {
    FileTest *t = *state;
    Values v;
    OptionTable table = table_of(&v, OPTIONS_KEYS);
    char *said;
    assert_int_equal(read_options(t, &table, &said, ARGV("sample", "tokens=5")), OPTIONS_CONTINUE);
    assert_string_equal(said, "");
    free(said);
    assert_int_equal(read_options(t, &table, &said, ARGV("sample", "tokens=x")), 2);
    assert_int_equal(strncmp(said, "train_gpt sample: tokens: expected", 34), 0);
    free(said);
    // Help is printed even if another argument is wrong.
    static const char *const SAYS[] = {"usage: train_gpt sample", "\n  ckpt ",
                                       "which checkpoint\n",      "how many [whole, from 1] (default: 64)",
                                       "short (default: empty)",  "which [blue red green]",
                                       "whether [true, false]"};
    for (int i = 0; i < 2; ++i) {
        assert_int_equal(read_options(t, &table, &said, ARGV("sample", "nonsense", i == 0 ? "--help" : "-h")), 0);
        for (size_t k = 0; k < sizeof SAYS / sizeof SAYS[0]; ++k)
            if (strstr(said, SAYS[k]) == NULL) fail_msg("the help lacks '%s': %s", SAYS[k], said);
        free(said);
    }
    // A row with a variable shows its value.
    int64_t ranks = 3;
    const Option rows[] = {{"ranks", OPTION_TO(ranks), OPTION_WHOLE, 1, 8, .help = "how many"}};
    const OptionTable small = {OPTION_ROWS(rows), OPTIONS_DASHES, .program = "bench", .about = "bench"};
    assert_int_equal(read_options(t, &small, &said, ARGV("op", "--help")), 0);
    assert_non_null(strstr(said, "  --ranks N             how many [whole, 1 to 8] (default: 3)\n"));
    free(said);
}

int main(void) {
    const struct CMUnitTest tests[] = {FILE_TEST(test_keys),     FILE_TEST(test_dashes), FILE_TEST(test_take),
                                       FILE_TEST(test_mistakes), FILE_TEST(test_format), FILE_TEST(test_read)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
