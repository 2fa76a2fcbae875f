// test_file_writer.c: a file is complete or unchanged.
#include <stdlib.h>
#include <string.h>

#include "llmc/base/file_writer.h"
#include "tests/support/file_test.h"

static void expect_contents(FileTest *t, const char *path, const char *expected) {
    char *text;
    file_test_expect_ok(t, file_read_all(path, 1000, &text, NULL, &t->err));
    assert_string_equal(text, expected);
    free(text);
    assert_int_equal(file_test_count_entries(t->dir), 1);  // no temporary file beside it
}

static void test_commit_and_abort(void **state) {
    FileTest *t = *state;
    char *path = file_test_path(t, "a");
    FileWriter writer;
    file_test_expect_ok(t, file_writer_open(&writer, path, &t->err));
    assert_false(file_exists(path));
    file_test_expect_ok(t, file_writer_append(&writer, "one", 3, &t->err));
    file_test_expect_ok(t, file_writer_append(&writer, "", 0, &t->err));
    file_test_expect_ok(t, file_writer_append(&writer, "two", 3, &t->err));
    file_test_expect_ok(t, file_writer_commit(&writer, &t->err));
    expect_contents(t, path, "onetwo");
    file_test_expect_ok(t, file_writer_open(&writer, path, &t->err));
    file_test_expect_ok(t, file_writer_append(&writer, "x", 1, &t->err));
    file_writer_abort(&writer);
    expect_contents(t, path, "onetwo");
    free(path);
}

static void test_full_disk(void **state) {
    FileTest *t = *state;
    char *path = file_test_path(t, "a"), large[5000] = "";
    file_test_write(t, "a", "old", 3);
    FileWriter writer;
    file_test_expect_ok(t, file_writer_open(&writer, path, &t->err));
    file_test_limit_file_size(4096);
    bool ok = file_writer_append(&writer, large, sizeof large, &t->err);  // the first 4096 bytes fit
    file_test_limit_file_size(0);
    file_test_expect_error(t, ok, "cannot write: File too large");
    expect_contents(t, path, "old");
    free(path);
}

static void test_bad_places(void **state) {
    FileTest *t = *state;
    FileWriter writer;
    char *path = file_test_path(t, "absent/a");
    file_test_expect_error(t, file_writer_open(&writer, path, &t->err), "absent/a: cannot create: No such file");
    free(path);
    file_test_expect_ok(t, file_writer_open(&writer, t->dir, &t->err));  // a directory: detected at the rename
    file_test_expect_error(t, file_writer_commit(&writer, &t->err), "cannot rename into place");
    assert_int_equal(file_test_count_entries(t->dir), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {FILE_TEST(test_commit_and_abort), FILE_TEST(test_full_disk),
                                       FILE_TEST(test_bad_places)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
