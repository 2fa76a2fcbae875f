// jsonl_file.c: see jsonl_file.h.
#include "llmc/base/jsonl_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// Truncates the file before the first line of a later step or an incomplete line.
static bool cut(const char *path, FormatKind kind, int64_t step, Error *err) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return error_set(err, "%s: cannot open: %s", path, strerror(errno));
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    off_t keep = 0;
    bool known = true;
    while (known && (length = getline(&line, &capacity, file)) > 0 && line[length - 1] == '\n') {
        long long at, version = 1;
        if (sscanf(line, "{\"step\":%lld,\"" FORMAT_VERSION_KEY "\":%lld", &at, &version) >= 1 && at > step) break;
        known = format_version_check(kind, version, path, err);
        keep += length;
    }
    free(line);
    bool ok = !ferror(file);
    fclose(file);
    if (!known) return false;
    if (ok && truncate(path, keep) == 0) return true;
    return error_set(err, "%s: cannot remove the lines after step %lld: %s", path, (long long)step,
                     strerror(errno));
}

// A new run in an old run's directory.
static bool put_aside(const char *dir, const char *name, const char *path, Error *err) {
    for (int i = 1; file_exists(path); ++i) {
        char *aside = xasprintf("%s/%s-%d.jsonl", dir, name, i);
        bool taken = access(aside, F_OK) == 0, ok = taken || rename(path, aside) == 0;
        if (!ok) error_set(err, "%s: cannot rename to %s: %s", path, aside, strerror(errno));
        free(aside);
        if (!ok) return false;
    }
    return true;
}

bool jsonl_file_open(int *fd, const char *dir, const char *name, FormatKind kind, int64_t resume_step, Error *err) {
    char *path = xasprintf("%s/%s.jsonl", dir, name);
    bool resumed = resume_step > 0 && file_exists(path);
    bool ok = resumed ? cut(path, kind, resume_step, err) : put_aside(dir, name, path, err);
    *fd = -1;
    if (ok) {
        *fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        ok = *fd >= 0 || error_set(err, "%s: cannot open for writing: %s", path, strerror(errno));
    }
    free(path);
    return ok;
}

bool jsonl_file_append(int fd, const char *line, size_t bytes) {
    struct stat before;
    bool known = fstat(fd, &before) == 0;
    ssize_t wrote = write(fd, line, bytes);
    if (wrote == (ssize_t)bytes) return true;
    if (wrote >= 0) errno = ENOSPC;
    int saved = errno;
    if (known && wrote > 0 && ftruncate(fd, before.st_size) != 0) saved = errno;
    errno = saved;
    return false;
}
