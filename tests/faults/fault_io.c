// fault_io.c: preloaded (LD_PRELOAD) into train_gpt by tests/test_train.sh: dies or fails at a chosen file operation under a chosen
// path, so that "killed in the middle of a checkpoint write" and "disk full" are exact places and not luck.
//   FAULT_PATH   only operations on paths that contain this text count
//   FAULT_AT     the number of the operation (write, pwrite, fsync, rename; from 1) that is hit
//   FAULT_KIND   kill (SIGKILL, as kill -9 or the OOM killer would) or enospc (fails with "No space left on device")
//   FAULT_FOREVER=1  enospc from that operation on
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int operations = 0;

static bool path_counts(const char *path) {
    const char *wanted = getenv("FAULT_PATH");
    return wanted != NULL && path != NULL && strstr(path, wanted) != NULL;
}
static bool descriptor_counts(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return false;
    path[length] = '\0';
    return path_counts(path);
}
// True: the operation is to fail with errno set.
static bool is_hit(void) {
    const char *at = getenv("FAULT_AT"), *kind = getenv("FAULT_KIND"), *forever = getenv("FAULT_FOREVER");
    ++operations;
    if (at == NULL || kind == NULL) return false;
    bool hit = operations == atoi(at) || (forever != NULL && operations > atoi(at));
    if (!hit) return false;
    if (strcmp(kind, "kill") == 0) kill(getpid(), SIGKILL);
    errno = ENOSPC;
    return true;
}

#define NEXT(type, name) ((type)(intptr_t)dlsym(RTLD_NEXT, name))

ssize_t write(int fd, const void *bytes, size_t count) {
    if (descriptor_counts(fd) && is_hit()) return -1;
    return NEXT(ssize_t(*)(int, const void *, size_t), "write")(fd, bytes, count);
}
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
    if (descriptor_counts(fd) && is_hit()) return -1;
    return NEXT(ssize_t(*)(int, const void *, size_t, off_t), "pwrite")(fd, bytes, count, offset);
}
size_t fwrite(const void *bytes, size_t size, size_t count, FILE *file) {
    if (descriptor_counts(fileno(file)) && is_hit()) return 0;
    return NEXT(size_t(*)(const void *, size_t, size_t, FILE *), "fwrite")(bytes, size, count, file);
}
int fsync(int fd) {
    if (descriptor_counts(fd) && is_hit()) return -1;
    return NEXT(int (*)(int), "fsync")(fd);
}
int rename(const char *from, const char *to) {
    if (path_counts(to) && is_hit()) return -1;
    return NEXT(int (*)(const char *, const char *), "rename")(from, to);
}
