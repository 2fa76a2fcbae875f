// test_command_options.c: "key=value" options of the small commands: values, ranges, messages, help.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/command/command_options.h"
#include "llmc/command/commands.h"
#include "tests/support/file_test.h"

typedef struct {
    const char *text;
    int64_t count;
    double real;
    CommandOption table[4];
} Options;

static void options_init(Options *o) {
    *o = (Options){.text = "here", .count = 64, .real = 0.8};
    const CommandOption table[4] = {
        {"ckpt", COMMAND_TEXT, &o->text, 0, 0, "which checkpoint"},
        {"tokens", COMMAND_COUNT, &o->count, 1, 1e6, "how many"},
        {"temperature", COMMAND_REAL, &o->real, 0, 100, "how wild"},
        {NULL, COMMAND_TEXT, NULL, 0, 0, NULL},
    };
    memcpy(o->table, table, sizeof table);
}

// Runs the parser with stdout and stderr in files of the test's directory; *said gets both (caller frees).
static int parse(FileTest *t, Options *o, char **said, int argc, char **argv) {
    char *path = file_test_path(t, "said");
    fflush(stdout);
    fflush(stderr);
    int keep[2] = {dup(STDOUT_FILENO), dup(STDERR_FILENO)};
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    dup2(fileno(file), STDOUT_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    int status = command_parse_options(o->table, "usage: train_gpt sample ckpt=DIR", argc, argv);
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
#define ARGV(...) (int)(sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)), (char *[]) { __VA_ARGS__ }

static void test_values(void **state) {
    FileTest *t = *state;
    Options o;
    char *said;
    options_init(&o);
    assert_int_equal(parse(t, &o, &said, ARGV("sample")), COMMAND_GOES_ON);
    assert_true(strcmp(o.text, "here") == 0 && o.count == 64 && o.real == 0.8);
    free(said);
    assert_int_equal(parse(t, &o, &said, ARGV("sample", "tokens=2k", "ckpt=a=b", "temperature=0", "tokens=1")),
                     COMMAND_GOES_ON);
    assert_string_equal(o.text, "a=b");
    assert_int_equal(o.count, 1);  // the last word counts
    assert_true(o.real == 0);
    assert_string_equal(said, "");
    free(said);
    assert_int_equal(parse(t, &o, &said, ARGV("sample", "ckpt=", "temperature=1e2", "tokens=1M")), COMMAND_GOES_ON);
    assert_string_equal(o.text, "");
    assert_int_equal(o.count, 1000000);
    assert_true(o.real == 100);
    free(said);
}

static void test_mistakes(void **state) {
    FileTest *t = *state;
    // a word, and what the message must name
    static const char *const CASES[][2] = {
        {"tokens=0", "tokens"},           {"tokens=1000001", "1000001"},      {"tokens=-1", "tokens"},
        {"tokens=8x", "\"8x\""},          {"tokens=", "tokens"},              {"tokens=1.5", "1.5"},
        {"tokens= 5", "tokens"},          {"temperature=hot", "\"hot\""},     {"temperature=-0.1", "-0.1"},
        {"temperature=100.1", "100.1"},   {"temperature=nan", "temperature"}, {"temperature=inf", "temperature"},
        {"temperature=1e999", "temperature"}, {"token=5", "token=5"},         {"tokens", "tokens"},
        {"", "unknown option"},           {"=5", "=5"},                       {"--tokens=5", "--tokens"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        Options o;
        char *said, word[32];
        options_init(&o);
        snprintf(word, sizeof word, "%s", CASES[i][0]);
        int status = parse(t, &o, &said, ARGV("sample", "temperature=0.5", word));
        if (status != 2) fail_msg("'%s': expected exit code 2, found %d", word, status);
        if (strstr(said, CASES[i][1]) == NULL) fail_msg("'%s': '%s' does not name %s", word, said, CASES[i][1]);
        assert_non_null(strstr(said, "train_gpt sample: "));
        assert_true(o.count == 64);
        free(said);
    }
}

static void test_help(void **state) {
    FileTest *t = *state;
    Options o;
    char *said;
    static const char *const EXPECTED[] = {"usage: train_gpt sample", "ckpt", "which checkpoint [here]",
                                           "how many [64]", "how wild [0.8]"};
    for (int i = 0; i < 2; ++i) {
        options_init(&o);
        // Help is given even beside a mistake.
        assert_int_equal(parse(t, &o, &said, ARGV("sample", "nonsense", i == 0 ? "--help" : "-h")), 0);
        for (size_t k = 0; k < sizeof EXPECTED / sizeof EXPECTED[0]; ++k)
            if (strstr(said, EXPECTED[k]) == NULL) fail_msg("the help lacks '%s': %s", EXPECTED[k], said);
        free(said);
    }
    options_init(&o);
    o.text = NULL;
    assert_int_equal(parse(t, &o, &said, ARGV("sample", "--help")), 0);
    assert_null(strstr(said, "which checkpoint ["));
    free(said);
}

int main(void) {
    const struct CMUnitTest tests[] = {FILE_TEST(test_values), FILE_TEST(test_mistakes), FILE_TEST(test_help)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
