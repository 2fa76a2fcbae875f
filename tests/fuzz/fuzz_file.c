// fuzz_file.c: see fuzz_file.h.
#include "tests/fuzz/fuzz_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "llmc/base/common.h"

static char dir[64];

static void remove_dir(void) { remove_tree(dir, NULL); }

const char *fuzz_dir(void) {
    if (dir[0] != '\0') return dir;
    // In memory if possible: targets write a file for every input.
    snprintf(dir, sizeof dir, "%s/tokamak_fuzz_XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    CHECK(mkdtemp(dir) != NULL, "cannot make %s", dir);
    atexit(remove_dir);
    return dir;
}

const char *fuzz_file(const char *name, const uint8_t *data, size_t bytes) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", fuzz_dir(), name);
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL && fwrite(data, 1, bytes, file) == bytes && fclose(file) == 0, "cannot write %s", path);
    return path;
}
