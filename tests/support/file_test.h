// file_test.h: what tests of file formats share: a temporary directory per test and raw files in it.
#ifndef TESTS_FILE_TEST_H
#define TESTS_FILE_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "llmc/base/common.h"

typedef struct {
    char dir[256];  // fresh and empty; removed with everything in it after the test
    Error err;
} FileTest;

// cmocka setup and teardown; *state is a FileTest.
int file_test_setup(void **state);
int file_test_teardown(void **state);
#define FILE_TEST(function) cmocka_unit_test_setup_teardown(function, file_test_setup, file_test_teardown)

// The same with the directory in a variable; for a test, or for the group of all tests of a program.
extern char *file_test_dir;
int file_test_dir_setup(void **state);
int file_test_dir_teardown(void **state);

char *file_test_path(const FileTest *t, const char *name);  // caller frees
void file_test_write(const FileTest *t, const char *name, const void *bytes, size_t count);
int file_test_count_entries(const char *dir);  // without . and ..
void file_test_remove_all(FileTest *t);         // files of the directory, which holds nothing else
// Fails the test unless `ok` is false and the message mentions `mention`; then clears the message.
void file_test_expect_error(FileTest *t, bool ok, const char *mention);
// Fails the test with the message unless ok.
void file_test_expect_ok(FileTest *t, bool ok);
// Fails the test unless the header of a safetensors file has this metadata; value NULL: unless it has no such key.
void file_test_expect_metadata(const char *path, const char *key, const char *value);
// A copy of text with the first `from`, which must be there, replaced; caller frees.
char *file_test_replaced(const char *text, const char *from, const char *to);
// While the limit stands every write past `bytes` fails with EFBIG, as a full disk would; 0 lifts it.
void file_test_limit_file_size(size_t bytes);

#endif
