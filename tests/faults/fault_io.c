// fault_io.c: preloaded (LD_PRELOAD) into train_gpt by tests/cli/test_train.sh and test_faults.sh: kills the process or fails
// at a chosen file operation under a chosen path, so that "killed in the middle of a checkpoint write" and "disk full" are
// reproducible.
//   FAULT_PATH   only operations on paths that contain this text are counted
//   FAULT_AT     the number of the operation (write, pwrite, fsync, rename; from 1) that fails
//   FAULT_KIND   kill (SIGKILL, as kill -9 or the OOM killer would), enospc (fails with "No space left on device"), or
//                erofs (opening to write and mkdir fail with "Read-only file system"; FAULT_AT is not used)
//   FAULT_FOREVER=1  enospc from that operation on
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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
// True: the operation must fail; errno is set.
static bool is_hit(void) {
    const char *at = getenv("FAULT_AT"), *kind = getenv("FAULT_KIND"), *forever = getenv("FAULT_FOREVER");
    ++operations;
    if (at == NULL || kind == NULL || strcmp(kind, "erofs") == 0) return false;
    bool hit = operations == atoi(at) || (forever != NULL && operations > atoi(at));
    if (!hit) return false;
    if (strcmp(kind, "kill") == 0) kill(getpid(), SIGKILL);
    errno = ENOSPC;
    return true;
}

// True: the path is on a file system that is read-only for this process; errno is set.
static bool is_read_only(const char *path) {
    const char *kind = getenv("FAULT_KIND");
    if (kind == NULL || strcmp(kind, "erofs") != 0 || !path_counts(path)) return false;
    errno = EROFS;
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
int open(const char *path, int flags, ...) {
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) != 0 && is_read_only(path)) return -1;
    va_list rest;
    va_start(rest, flags);
    mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return NEXT(int (*)(const char *, int, ...), "open")(path, flags, mode);
}
int mkdir(const char *path, mode_t mode) {
    if (is_read_only(path)) return -1;
    return NEXT(int (*)(const char *, mode_t), "mkdir")(path, mode);
}
