// test_common.c: strict number parsing, errors, and file helpers that never leave a partial file.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "llmc/base/common.h"

// ---- numbers ----
static void test_parse_i64(void **state) {
    (void)state;
    static const char *const BAD[] = {"", "-", "+1", " 1", "1 ", "1x", "0x10", "1.0", "--1", "1e3",
                                      "9223372036854775808"};
    int64_t value = 42;
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; ++i) assert_false(parse_i64(BAD[i], &value));
    assert_int_equal(value, 42);  // untouched
    assert_true(parse_i64("-9223372036854775808", &value) && value == INT64_MIN);
    assert_true(parse_i64("9223372036854775807", &value) && value == INT64_MAX);
    assert_true(parse_i64("007", &value) && value == 7);
}
static void test_parse_f64(void **state) {
    (void)state;
    static const char *const BAD[] = {"", "nan", "inf", "-inf", "1e400", "0x1p3", "1 ", " 1", "1,5", "1e", ".",
                                      "1-2"};
    double value = 42;
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; ++i) assert_false(parse_f64(BAD[i], &value));
    assert_true(value == 42);
    assert_true(parse_f64("3e-4", &value) && value == 3e-4);
    assert_true(parse_f64("-.5", &value) && value == -0.5);
}
static void test_parse_count(void **state) {
    (void)state;
    static const char *const BAD[] = {"", "k", "1kk", "1 k", "1.5M", "1Mb", "1ki", "9223372036854775807k", "1e6",
                                      "11111111111111111111111111111111111111"};
    int64_t value = 42;
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; ++i) assert_false(parse_count(BAD[i], &value));
    static const struct {
        const char *text;
        int64_t value;
    } GOOD[] = {{"0", 0},          {"-3", -3},          {"64k", 64000},        {"64K", 64000},
                {"1M", 1000000},   {"2G", 2000000000},  {"10B", 10000000000},  {"3T", 3000000000000},
                {"4Ki", 4096},     {"1Mi", 1048576},    {"2Gi", 2147483648}};
    for (size_t i = 0; i < sizeof GOOD / sizeof GOOD[0]; ++i) {
        assert_true(parse_count(GOOD[i].text, &value));
        assert_true(value == GOOD[i].value);
    }
}
static void test_arithmetic(void **state) {
    (void)state;
    assert_int_equal(div_up(0, 4), 0);
    assert_int_equal(div_up(5, 4), 2);
    assert_int_equal(round_up(50257, 128), 50304);
    assert_int_equal(round_up(256, 256), 256);
    assert_int_equal(to_i32(INT32_MIN), INT32_MIN);
}

// ---- errors ----
static void test_errors(void **state) {
    (void)state;
    Error err = {""};
    assert_false(error_set(&err, "expected %d, found %d", 3, 4));
    assert_string_equal(err.message, "expected 3, found 4");
    assert_false(error_prefix(&err, "%s", "run.conf"));
    assert_string_equal(err.message, "run.conf: expected 3, found 4");
    assert_false(error_set(NULL, "no err"));
    // Long messages are truncated.
    char *text = xmalloc(5000);
    memset(text, 'x', 4999);
    text[4999] = '\0';
    error_set(&err, "%s", text);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    error_prefix(&err, "%s", "path");
    assert_memory_equal(err.message, "path: xxx", 9);
    assert_true(strlen(err.message) < sizeof err.message);
    error_prefix(&err, "%s", text);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    free(text);
}

// ---- files ----
typedef struct {
    char dir[64];
} Scratch;
static int setup(void **state) {
    Scratch *s = xcalloc(1, sizeof *s);
    snprintf(s->dir, sizeof s->dir, "/tmp/test_common.XXXXXX");
    *state = s;
    return mkdtemp(s->dir) == NULL;
}
static int teardown(void **state) {
    Scratch *s = *state;
    Error err = {""};
    bool ok = remove_tree(s->dir, &err) && !dir_exists(s->dir);
    free(s);
    return !ok;
}

static void test_write_and_read(void **state) {
    const Scratch *s = *state;
    Error err = {""};
    char *path = path_join(s->dir, "file"), *temporary = path_join(s->dir, "file.tmp"), *text = NULL;
    size_t bytes = 0;
    assert_true(file_write_atomic(path, "old", 3, &err));
    assert_true(file_write_atomic(path, "new\0er", 6, &err));
    assert_true(file_exists(path));
    assert_false(file_exists(temporary));
    assert_true(file_read_all(path, 6, &text, &bytes, &err));
    assert_int_equal(bytes, 6);
    assert_memory_equal(text, "new\0er", 7);  // and a NUL behind
    free(text);
    assert_false(file_read_all(path, 5, &text, &bytes, &err));
    assert_non_null(strstr(err.message, "expected at most 5 bytes, found 6"));
    assert_false(file_read_all(s->dir, 100, &text, &bytes, &err));
    assert_non_null(strstr(err.message, s->dir));
    assert_true(file_write_atomic(path, NULL, 0, &err));
    assert_true(file_read_all(path, 0, &text, NULL, &err));
    assert_string_equal(text, "");
    free(text);
    free(path);
    free(temporary);
}
// If the last step fails (a directory has the file's name), the old content stays and no temporary file remains.
static void test_failed_write_leaves_nothing(void **state) {
    const Scratch *s = *state;
    Error err = {""};
    char *path = path_join(s->dir, "taken"), *inside = path_join(path, "kept");
    char *temporary = path_join(s->dir, "taken.tmp");
    assert_true(make_dirs(path, &err) && file_write_atomic(inside, "x", 1, &err));
    assert_false(file_write_atomic(path, "new", 3, &err));
    assert_non_null(strstr(err.message, path));
    assert_true(file_exists(inside));
    assert_false(file_exists(temporary));
    char *nowhere = path_join(s->dir, "missing/file");
    assert_false(file_write_atomic(nowhere, "new", 3, &err));
    assert_false(file_read_all(nowhere, 10, &inside, NULL, &err));
    assert_non_null(strstr(err.message, "missing/file: cannot open"));
    free(nowhere);
    free(path);
    free(inside);
    free(temporary);
}
static void test_directories(void **state) {
    const Scratch *s = *state;
    Error err = {""};
    char *deep = path_join(s->dir, "a/b//c"), *file = path_join(s->dir, "a/file"), *below = path_join(file, "d");
    assert_true(make_dirs(deep, &err) && make_dirs(deep, &err) && dir_exists(deep));
    assert_true(file_write_atomic(file, "x", 1, &err));
    assert_false(make_dirs(below, &err));
    assert_non_null(strstr(err.message, "a/file: cannot create directory"));
    assert_false(make_dirs("", &err));
    assert_true(fsync_dir(deep, &err));
    assert_false(fsync_dir(below, &err));
    // A symbolic link is removed, not followed.
    char *victim = path_join(s->dir, "victim"), *link = path_join(s->dir, "a/link");
    assert_true(file_write_atomic(victim, "x", 1, &err));
    assert_int_equal(symlink(victim, link), 0);
    char *tree = path_join(s->dir, "a");
    assert_true(remove_tree(tree, &err) && !dir_exists(tree) && file_exists(victim));
    assert_true(remove_tree(tree, &err));  // already gone
    char *joined = path_join("dir/", "name");
    assert_string_equal(joined, "dir/name");
    free(joined);
    free(tree);
    free(victim);
    free(link);
    free(deep);
    free(file);
    free(below);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse_i64),
        cmocka_unit_test(test_parse_f64),
        cmocka_unit_test(test_parse_count),
        cmocka_unit_test(test_arithmetic),
        cmocka_unit_test(test_errors),
        cmocka_unit_test_setup_teardown(test_write_and_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failed_write_leaves_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_directories, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
