// file_test.c: see file_test.h.
#include "tests/support/file_test.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "llmc/base/dir_list.h"

static bool make_dir(char *out, size_t bytes) {
    const char *base = getenv("TMPDIR");
    if (base == NULL)
        base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";  // memory: a disk's fsync takes seconds
    snprintf(out, bytes, "%s/tokamak-test-XXXXXX", base);
    return mkdtemp(out) != NULL;
}

int file_test_setup(void **state) {
    FileTest *t = xcalloc(1, sizeof *t);
    *state = t;
    return make_dir(t->dir, sizeof t->dir) ? 0 : -1;
}
int file_test_teardown(void **state) {
    FileTest *t = *state;
    file_test_limit_file_size(0);
    bool ok = remove_tree(t->dir, &t->err);
    free(t);
    return ok ? 0 : -1;
}

char *file_test_dir;

int file_test_dir_setup(void **state) {
    (void)state;
    char dir[256];
    if (!make_dir(dir, sizeof dir)) return -1;
    file_test_dir = xstrdup(dir);
    return 0;
}
int file_test_dir_teardown(void **state) {
    (void)state;
    bool ok = remove_tree(file_test_dir, NULL);
    free(file_test_dir);
    file_test_dir = NULL;
    return ok ? 0 : -1;
}

char *file_test_path(const FileTest *t, const char *name) { return path_join(t->dir, name); }

void file_test_write(const FileTest *t, const char *name, const void *bytes, size_t count) {
    char *path = file_test_path(t, name);
    remove(path);  // overwriting makes ext4 sync the new contents: a hundred times slower
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
    free(path);
}

int file_test_count_entries(const char *dir) {
    DIR *stream = opendir(dir);
    assert_non_null(stream);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;)
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(stream);
    return count;
}

void file_test_remove_all(FileTest *t) {
    NameList names;
    file_test_expect_ok(t, dir_list(&names, t->dir, &t->err));
    for (int i = 0; i < names.count; ++i) {
        char *path = file_test_path(t, names.name[i]);
        assert_int_equal(unlink(path), 0);
        free(path);
    }
    name_list_free(&names);
}

void file_test_expect_error(FileTest *t, bool ok, const char *mention) {
    if (ok) fail_msg("expected an error about '%s', found success", mention);
    if (strstr(t->err.message, mention) == NULL) fail_msg("'%s' does not mention '%s'", t->err.message, mention);
    t->err.message[0] = '\0';
}
void file_test_expect_ok(FileTest *t, bool ok) {
    if (!ok) fail_msg("expected success, found: %s", t->err.message);
}

void file_test_limit_file_size(size_t bytes) {
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes == 0 ? limit.rlim_max : bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    signal(SIGXFSZ, bytes == 0 ? SIG_DFL : SIG_IGN);
}

void file_test_expect_metadata(const char *path, const char *key, const char *value) {
    char *text;
    uint64_t bytes;
    assert_true(file_read_all(path, (size_t)1 << 26, &text, NULL, NULL));
    memcpy(&bytes, text, sizeof bytes);
    cJSON *root = cJSON_ParseWithLength(text + sizeof bytes, bytes);
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(root, "__metadata__"), key);
    if (value == NULL) assert_null(item);
    else assert_string_equal(cJSON_GetStringValue(item), value);
    cJSON_Delete(root);
    free(text);
}

char *file_test_replaced(const char *text, const char *from, const char *to) {
    const char *at = strstr(text, from);
    if (at == NULL) fail_msg("'%s' is not in: %s", from, text);
    return xasprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
}
