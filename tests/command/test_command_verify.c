// test_command_verify.c: hash chains in valid and damaged files, and the output of train_gpt verify for two of them:
// exit status, step and parts of the first difference, with equal and different hash_every.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/command/commands.h"
#include "llmc/train/hash_file.h"
#include "llmc/base/jsonl_file.h"
#include "tests/support/file_test.h"

// A made-up run: its hashes depend on the step only, unless it goes wrong from a given step on.
typedef struct {
    int64_t every, steps, first;  // links after step `first`
    int64_t bad_data, bad_weights, bad_optimizer;  // first step that differs; 0: none. bad_data: that step only
} Story;

static uint64_t mix(int64_t step, uint64_t kind) { return ((uint64_t)step * 3 + kind) * 0x9e3779b97f4a7c15u; }

static char *write_run(const FileTest *t, const char *name, const Story *story) {
    char *dir = file_test_path(t, name);
    Error err = {""};
    assert_true(make_dirs(dir, &err));
    char *path = path_join(dir, "hashes.jsonl");
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    HashLink link = {.since = story->first};
    uint64_t chain = 0;
    for (int64_t step = story->first + 1; step <= story->steps; ++step) {
        link.data += mix(step, 0) + (step == story->bad_data);
        if (step % story->every != 0) continue;
        link.step = step;
        link.weights = mix(step, 1) ^ (story->bad_weights > 0 && step >= story->bad_weights);
        link.optimizer = mix(step, 2) ^ (story->bad_optimizer > 0 && step >= story->bad_optimizer);
        chain = link.chain = hash_link_chain(chain, &link);
        char line[HASH_LINK_BYTES];
        size_t bytes = hash_link_format(line, &link);
        assert_int_equal(fwrite(line, 1, bytes, file), bytes);
        link.since = step;
        link.data = 0;
    }
    fclose(file);
    free(path);
    return dir;
}

// Runs the command; *said (caller frees): what it prints on both streams.
static int verify(const FileTest *t, int argc, const char *const *argv, char **said) {
    char *path = file_test_path(t, "said.txt");
    fflush(stdout);
    fflush(stderr);
    int out = dup(STDOUT_FILENO), errors = dup(STDERR_FILENO);
    FILE *file = fopen(path, "wb");
    assert_true(file != NULL && out >= 0 && errors >= 0);
    dup2(fileno(file), STDOUT_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    int status = command_verify(argc, (char **)argv);
    fflush(stdout);
    fflush(stderr);
    dup2(out, STDOUT_FILENO);
    dup2(errors, STDERR_FILENO);
    close(out);
    close(errors);
    fclose(file);
    Error err = {""};
    assert_true(file_read_all(path, 1 << 20, said, NULL, &err));
    free(path);
    return status;
}
static void expect(const FileTest *t, const char *a, const char *b, int status, const char *const *mentions) {
    char *said;
    int found = verify(t, 3, (const char *[]){"verify", a, b, NULL}, &said);
    if (found != status) fail_msg("status %d, expected %d: %s", found, status, said);
    for (int i = 0; mentions[i] != NULL; ++i)
        if (strstr(said, mentions[i]) == NULL) fail_msg("expected \"%s\" in: %s", mentions[i], said);
    free(said);
}
#define SAYS(...) (const char *const[]){__VA_ARGS__, NULL}

static void compare(const FileTest *t, Story a, Story b, int status, const char *const *mentions) {
    char *one = write_run(t, "one", &a), *other = write_run(t, "other", &b);
    expect(t, one, other, status, mentions);
    expect(t, other, one, status, mentions);
    free(one);
    free(other);
}

static void test_equal(void **state) {
    FileTest *t = *state;
    compare(t, (Story){.every = 1, .steps = 7}, (Story){.every = 1, .steps = 7}, 0,
            SAYS("7 of 7 common links agree", "\nequal\n"));
    // One has more steps; one has links at other steps; a change between common steps shows at the next one.
    compare(t, (Story){.every = 2, .steps = 20}, (Story){.every = 3, .steps = 13}, 0,
            SAYS("2 of 2 common links agree", "10 links, steps 2 to 20", "4 links, steps 3 to 12"));
}
static void test_first_difference(void **state) {
    FileTest *t = *state;
    const Story good = {.every = 1, .steps = 9};
    compare(t, good, (Story){.every = 1, .steps = 9, .bad_weights = 5, .bad_optimizer = 5}, 1,
            SAYS("different from step 5 on: weights and optimizer state\n", "equal at step 4", "4 of 9 common",
                 "the data is equal"));
    compare(t, good, (Story){.every = 1, .steps = 9, .bad_data = 3, .bad_weights = 3, .bad_optimizer = 3}, 1,
            SAYS("different from step 3 on: data, weights and optimizer state\n", "equal at step 2",
                 "2 of 9 common"));
    compare(t, good, (Story){.every = 1, .steps = 9, .bad_data = 1}, 1,
            SAYS("different from step 1 on: data\n", "no earlier link agrees", "8 of 9 common"));
    compare(t, good, (Story){.every = 1, .steps = 9, .bad_optimizer = 9}, 1,
            SAYS("different from step 9 on: optimizer state\n", "equal at step 8"));
}
static void test_other_cadence(void **state) {
    FileTest *t = *state;
    const Story good = {.every = 1, .steps = 24};
    // The data of step 5 is part of the link of step 8.
    compare(t, good, (Story){.every = 4, .steps = 24, .bad_data = 5}, 1,
            SAYS("different from step 8 on: data\n", "equal at step 4", "5 of 6 common"));
    const Story bad = {.every = 4, .steps = 24, .bad_data = 13, .bad_weights = 13};
    compare(t, (Story){.every = 6, .steps = 24}, bad, 1,
            SAYS("different from step 24 on: data and weights\n", "equal at step 12", "1 of 2 common"));
    // A chain that began later: its data hashes begin later, too.
    compare(t, good, (Story){.every = 4, .steps = 24, .first = 8}, 0,
            SAYS("4 of 4 common links agree", "the data is not comparable at 1 of them"));
    compare(t, good, (Story){.every = 4, .steps = 24, .first = 10, .bad_weights = 12}, 1,
            SAYS("different from step 12 on: weights\n", "the data is not comparable at 1 of them"));
    compare(t, (Story){.every = 5, .steps = 9}, (Story){.every = 4, .steps = 9}, 1,
            SAYS("the files have no common step"));
}

static char *file_of(const char *dir) { return path_join(dir, "hashes.jsonl"); }
static void rewrite(const char *dir, const char *from, const char *to) {
    char *path = file_of(dir), *text;
    Error err = {""};
    assert_true(file_read_all(path, 1 << 20, &text, NULL, &err));
    char *changed = file_test_replaced(text, from, to);
    assert_true(file_write_atomic(path, changed, strlen(changed), &err));
    free(changed);
    free(text);
    free(path);
}

static void test_files(void **state) {
    FileTest *t = *state;
    const Story good = {.every = 2, .steps = 8};
    char *one = write_run(t, "one", &good), *other = write_run(t, "other", &good), *path = file_of(one);
    expect(t, path, other, 0, SAYS("equal"));  // a file and a directory
    char *nowhere = file_test_path(t, "nowhere");
    expect(t, nowhere, other, 1, SAYS("nowhere: there is no such file", "hash_every=N"));
    expect(t, one, t->dir, 1, SAYS("hashes.jsonl: there is no such file"));
    free(nowhere);

    static const struct {
        const char *from, *to, *says;
    } DAMAGE[] = {
        {"\"step\":4", "\"step\":4.5", "hashes.jsonl:2: expected a step"},
        {"\"step\":4", "\"step\":2", "hashes.jsonl:2: expected a step"},
        {"\"since\":2", "\"since\":1", "hashes.jsonl:2: expected a link of steps after 2, found one of steps 2 to 4"},
        {"\"since\":2,", "", "hashes.jsonl:2: expected"},
        {"\"data\":\"", "\"data\":\"0", "hashes.jsonl:1: expected"},
        {"\"weights\":\"", "\"weights\":null,\"w\":\"", "hashes.jsonl:1: expected"},
        {"\"chain\":\"", "\"chain\":\"x", "hashes.jsonl:1: expected"},
        {"{\"step\":6", "{\"step\":6,\"step\":7", "hashes.jsonl:3"},
        {"{\"step\":6", "\"step\":6", "hashes.jsonl:3"},
        {"{\"step\":6", "{\"step\":6x", "hashes.jsonl:3"},
    };
    for (size_t i = 0; i < sizeof DAMAGE / sizeof DAMAGE[0]; ++i) {
        free(write_run(t, "one", &good));
        rewrite(one, DAMAGE[i].from, DAMAGE[i].to);
        expect(t, one, other, 1, SAYS(DAMAGE[i].says));
        expect(t, other, one, 1, SAYS(DAMAGE[i].says));
    }
    Error err = {""};
    // The first line may be the format's version; files of earlier versions begin with a link.
    static const struct {
        const char *line, *says;
        int status;
    } HEADERS[] = {
        {"{\"step\":0,\"format_version\":1}\n", "equal", 0},
        {"{\"step\":0,\"format_version\":2}\n", "hashes.jsonl:1: this hash chain has format version 2, this program "
                                               "reads versions up to 1", 1},
        {"{\"step\":0,\"format_version\":\"1\"}\n", "hashes.jsonl:1: expected \"format_version\"", 1},
        {"{\"step\":0,\n", "hashes.jsonl:1: not valid JSON", 1},
    };
    for (size_t i = 0; i < sizeof HEADERS / sizeof HEADERS[0]; ++i) {
        free(write_run(t, "one", &good));
        char *links, *text;
        assert_true(file_read_all(path, 1 << 20, &links, NULL, &err));
        text = xasprintf("%s%s", HEADERS[i].line, links);
        assert_true(file_write_atomic(path, text, strlen(text), &err));
        expect(t, one, other, HEADERS[i].status, SAYS(HEADERS[i].says));
        free(links);
        free(text);
    }
    char header[HASH_LINK_BYTES];
    assert_int_equal(hash_header_format(header), strlen(HEADERS[0].line));
    assert_string_equal(header, HEADERS[0].line);
    assert_true(file_write_atomic(path, header, strlen(header), &err));
    expect(t, one, other, 1, SAYS("found none yet"));
    assert_true(file_write_atomic(path, "", 0, &err));
    expect(t, one, other, 1, SAYS("found none yet"));
    assert_true(file_write_atomic(path, "\0\n", 2, &err));
    expect(t, one, other, 1, SAYS("zero byte"));
    free(one);
    free(other);
    free(path);
}
// The chain covers every hash: with any digit changed, the line no longer follows.
static void test_chain(void **state) {
    FileTest *t = *state;
    const Story good = {.every = 1, .steps = 3};
    char *one = write_run(t, "one", &good), *path = file_of(one), *text;
    Error err = {""};
    size_t bytes;
    assert_true(file_read_all(path, 1 << 20, &text, &bytes, &err));
    int changed = 0;
    for (size_t i = 0; i < bytes; ++i) {
        const char *line = text + i;
        while (line > text && line[-1] != '\n') --line;
        if (text[i] != '7' || strstr(line, "\"data\":\"") > text + i) continue;  // a digit of a hash
        text[i] = '8';
        assert_true(file_write_atomic(path, text, bytes, &err));
        expect(t, one, one, 1, SAYS("its chain does not follow"));
        text[i] = '7';
        ++changed;
    }
    assert_true(changed >= 5);
    // Missing links are no damage: the chain continued without them.
    char *second = strchr(text, '\n') + 1, *third = strchr(second, '\n') + 1;
    memmove(second, third, strlen(third) + 1);
    assert_true(file_write_atomic(path, text, strlen(text), &err));
    expect(t, one, one, 0, SAYS("2 of 2 common links agree"));
    // The unfinished line of a killed run is ignored.
    text[strlen(text) - 1] = '\0';
    assert_true(file_write_atomic(path, text, strlen(text), &err));
    expect(t, one, one, 0, SAYS("1 of 1 common links agree", "its last line is unfinished"));
    free(text);
    free(path);
    free(one);
}

static void test_usage(void **state) {
    FileTest *t = *state;
    static const struct {
        int argc, status;
        const char *argv[5];
    } CASES[] = {{1, 2, {"verify"}},
                 {2, 2, {"verify", "a"}},
                 {4, 2, {"verify", "a", "b", "c"}},
                 {3, 2, {"verify", "a", "-x"}},
                 {2, 0, {"verify", "--help"}},
                 {4, 0, {"verify", "a", "b", "-h"}}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        char *said;
        assert_int_equal(verify(t, CASES[i].argc, CASES[i].argv, &said), CASES[i].status);
        assert_non_null(strstr(said, "train_gpt verify A B"));
        assert_non_null(strstr(said, "example"));
        free(said);
    }
}

// ---- files with one line per step ----
static void expect_text(const FileTest *t, const char *name, const char *expected) {
    char *path = file_test_path(t, name), *text;
    Error err = {""};
    if (!file_read_all(path, 1 << 20, &text, NULL, &err)) fail_msg("%s", err.message);
    assert_string_equal(text, expected);
    free(text);
    free(path);
}
static void test_step_file(void **state) {
    FileTest *t = *state;
    int fd;
    file_test_expect_ok(t, jsonl_file_open(&fd, t->dir, "x", FORMAT_HASHES, 0, &t->err));
    assert_true(jsonl_file_append(fd, "{\"step\":1}\n", 11) && jsonl_file_append(fd, "{\"step\":3}\n", 11));
    assert_true(jsonl_file_append(fd, "{\"step\":2", 9));
    close(fd);
    // Resuming from step 3 cuts only the unfinished line; from 2, also later lines; from 0, a new run begins.
    file_test_expect_ok(t, jsonl_file_open(&fd, t->dir, "x", FORMAT_HASHES, 3, &t->err));
    close(fd);
    expect_text(t, "x.jsonl", "{\"step\":1}\n{\"step\":3}\n");
    file_test_expect_ok(t, jsonl_file_open(&fd, t->dir, "x", FORMAT_HASHES, 2, &t->err));
    assert_true(jsonl_file_append(fd, "{\"step\":3,\"again\":1}\n", 21));
    close(fd);
    expect_text(t, "x.jsonl", "{\"step\":1}\n{\"step\":3,\"again\":1}\n");
    for (int i = 1; i <= 2; ++i) {
        file_test_expect_ok(t, jsonl_file_open(&fd, t->dir, "x", FORMAT_HASHES, 0, &t->err));
        expect_text(t, "x.jsonl", "");
        assert_true(jsonl_file_append(fd, "{\"step\":9}\n", 11));
        close(fd);
        expect_text(t, "x-1.jsonl", "{\"step\":1}\n{\"step\":3,\"again\":1}\n");
    }
    expect_text(t, "x-2.jsonl", "{\"step\":9}\n");
    // With a full disk a line is written whole or not at all.
    file_test_expect_ok(t, jsonl_file_open(&fd, t->dir, "x", FORMAT_HASHES, 9, &t->err));
    file_test_limit_file_size(15);
    bool ok = jsonl_file_append(fd, "{\"step\":10}\n", 12);
    file_test_limit_file_size(0);
    close(fd);
    assert_false(ok);
    expect_text(t, "x.jsonl", "{\"step\":9}\n");
    // A file of a newer format is refused and not changed.
    static const char NEWER[] = "{\"step\":0,\"format_version\":2}\n{\"step\":1}\n";
    file_test_write(t, "new.jsonl", NEWER, sizeof NEWER - 1);
    file_test_expect_error(t, jsonl_file_open(&fd, t->dir, "new", FORMAT_HASHES, 1, &t->err),
                           "new.jsonl: this hash chain has format version 2, this program reads versions up to 1");
    expect_text(t, "new.jsonl", NEWER);
    file_test_expect_error(t, jsonl_file_open(&fd, "/nowhere/at/all", "x", FORMAT_HASHES, 0, &t->err), "/nowhere/at/all/x.jsonl");
}

int main(void) {
    const struct CMUnitTest tests[] = {FILE_TEST(test_equal), FILE_TEST(test_first_difference),
                                       FILE_TEST(test_other_cadence), FILE_TEST(test_files), FILE_TEST(test_chain),
                                       FILE_TEST(test_usage), FILE_TEST(test_step_file)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
