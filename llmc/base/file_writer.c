// file_writer.c: see file_writer.h.
#include "llmc/base/file_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool fail_and_abort(FileWriter *writer, const char *what, Error *err) {
    int reason = errno;
    error_set(err, "%s: cannot %s: %s", writer->path, what, strerror(reason));
    file_writer_abort(writer);
    return false;
}

bool file_writer_open(FileWriter *writer, const char *path, Error *err) {
    *writer = (FileWriter){-1, xstrdup(path), xasprintf("%s.tmp", path)};
    writer->fd = open(writer->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return writer->fd >= 0 ? true : fail_and_abort(writer, "create", err);
}

bool file_writer_append(FileWriter *writer, const void *bytes, size_t count, Error *err) {
    const char *next = bytes;
    while (count > 0) {
        ssize_t wrote = write(writer->fd, next, count);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote == 0) errno = ENOSPC;
        if (wrote <= 0) return fail_and_abort(writer, "write", err);
        next += wrote;
        count -= (size_t)wrote;
    }
    return true;
}

bool file_writer_commit(FileWriter *writer, Error *err) {
    if (fsync(writer->fd) != 0) return fail_and_abort(writer, "sync", err);
    int fd = writer->fd;
    writer->fd = -1;
    if (close(fd) != 0) return fail_and_abort(writer, "close", err);
    if (rename(writer->temporary, writer->path) != 0) return fail_and_abort(writer, "rename into place", err);
    const char *slash = strrchr(writer->path, '/');
    char *dir = slash == NULL
                    ? xstrdup(".")
                    : xasprintf("%.*s", (int)(slash - writer->path + (slash == writer->path)), writer->path);
    bool ok = fsync_dir(dir, err);
    free(dir);
    free(writer->path);
    free(writer->temporary);
    return ok;
}

void file_writer_abort(FileWriter *writer) {
    if (writer->fd >= 0) close(writer->fd);
    unlink(writer->temporary);
    free(writer->path);
    free(writer->temporary);
    *writer = (FileWriter){-1, NULL, NULL};
}
