// run_lock.c: see run_lock.h. An open-file-description lock: it works on network file systems, and closing another
// descriptor of the file in this process does not release it.
#include "llmc/run/run_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define POLL_SECONDS 0.1
#define CONTENT_BYTES 256

static int try_lock(int fd) {
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(fd, F_OFD_SETLK, &whole) == 0 ? 0 : errno;
}

static bool is_held(int reason) { return reason == EAGAIN || reason == EACCES; }

static bool refuse(int fd, const char *dir, Error *err) {
    char holder[CONTENT_BYTES];
    ssize_t length = pread(fd, holder, sizeof holder - 1, 0);
    holder[length < 0 ? 0 : length] = '\0';
    holder[strcspn(holder, "\n")] = '\0';
    // Any process may have written the file: control characters must not reach the terminal.
    for (char *c = holder; *c != '\0'; ++c)
        if (*c < ' ' || *c > '~') *c = '?';
    return error_set(err, "%s: another run is using this directory: %s; wait for it, stop it, or choose another "
                          "out_dir", dir, holder[0] != '\0' ? holder : "unknown holder");
}

static bool write_holder(int fd, const char *path, Error *err) {
    char host[64] = "", since[32] = "", text[CONTENT_BYTES];
    if (gethostname(host, sizeof host - 1) != 0) snprintf(host, sizeof host, "unknown host");
    time_t now = time(NULL);
    struct tm local;
    if (localtime_r(&now, &local) != NULL) strftime(since, sizeof since, "%Y-%m-%d %H:%M:%S", &local);
    int length = snprintf(text, sizeof text, "host %s, pid %ld, since %s\n", host, (long)getpid(), since);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)length, 0) != length)
        return error_set(err, "%s: cannot write: %s", path, strerror(errno));
    return true;
}

bool run_lock_take(RunLock *lock, const char *dir, double wait_seconds, Error *err) {
    *lock = (RunLock){.fd = -1};
    if (!make_dirs(dir, err)) return false;
    char *path = path_join(dir, RUN_LOCK_FILE);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) {
        error_set(err, "%s: cannot open: %s", path, strerror(errno));
        free(path);
        return false;
    }
    double until = now_seconds() + wait_seconds;
    int reason = try_lock(fd);
    while (is_held(reason) && now_seconds() < until) {
        usleep((useconds_t)(POLL_SECONDS * 1e6));
        reason = try_lock(fd);
    }
    if (reason != 0 && !is_held(reason))
        snprintf(lock->note, sizeof lock->note, "%.160s: cannot be locked (%s): a second run on this directory will "
                                                "not be detected", path, strerror(reason));
    bool ok = is_held(reason) ? refuse(fd, dir, err) : write_holder(fd, path, err);
    if (ok) lock->fd = fd;
    else close(fd);
    free(path);
    return ok;
}

void run_lock_release(RunLock *lock) {
    if (lock->fd >= 0) close(lock->fd);
    lock->fd = -1;
}
