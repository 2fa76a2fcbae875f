// common.c: see common.h.
#include "llmc/base/common.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

void check_failed(const char *file, int line, const char *condition, const char *format, ...) {
    fprintf(stderr, "%s:%d: check failed: %s: ", file, line, condition);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}

bool error_set(Error *err, const char *format, ...) {
    if (err == NULL) return false;
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    return false;
}

bool error_prefix(Error *err, const char *format, ...) {
    if (err == NULL) return false;
    char old[sizeof err->message];
    memcpy(old, err->message, sizeof old);
    va_list args;
    va_start(args, format);
    int used = vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    if (used >= 0 && (size_t)used < sizeof err->message) {
        size_t left = sizeof err->message - (size_t)used;
        snprintf(err->message + used, left, ": %.*s", (int)(left > 3 ? left - 3 : 0), old);
    }
    return false;
}

void *xmalloc(size_t bytes) {
    void *pointer = malloc(bytes ? bytes : 1);
    CHECK(pointer != NULL, "out of host memory: cannot allocate %zu bytes", bytes);
    return pointer;
}
void *xcalloc(size_t count, size_t bytes_each) {
    void *pointer = calloc(count ? count : 1, bytes_each ? bytes_each : 1);
    CHECK(pointer != NULL, "out of host memory: cannot allocate %zu x %zu bytes", count, bytes_each);
    return pointer;
}
void *xrealloc(void *old, size_t bytes) {
    void *pointer = realloc(old, bytes ? bytes : 1);
    CHECK(pointer != NULL, "out of host memory: cannot allocate %zu bytes", bytes);
    return pointer;
}
char *xstrdup(const char *text) {
    size_t bytes = strlen(text) + 1;
    return memcpy(xmalloc(bytes), text, bytes);
}
char *xasprintf(const char *format, ...) {
    char *text = NULL;
    va_list args;
    va_start(args, format);
    int length = vasprintf(&text, format, args);
    va_end(args);
    CHECK(length >= 0, "out of host memory or bad format: %s", format);
    return text;
}

int32_t to_i32(int64_t value) {
    CHECK(value >= INT32_MIN && value <= INT32_MAX, "%lld does not fit in 32 bits", (long long)value);
    return (int32_t)value;
}
size_t to_size(int64_t value) {
    CHECK(value >= 0, "%lld is negative", (long long)value);
    return (size_t)value;
}

bool parse_i64(const char *text, int64_t *out) {
    const char *digits = text[0] == '-' ? text + 1 : text;
    if (digits[0] == '\0' || strspn(digits, "0123456789") != strlen(digits)) return false;
    errno = 0;
    long long value = strtoll(text, NULL, 10);
    if (errno != 0) return false;
    *out = value;
    return true;
}
bool parse_f64(const char *text, double *out) {
    if (text[0] == '\0' || strspn(text, "0123456789+-.eE") != strlen(text)) return false;
    char *end;
    double value = strtod(text, &end);
    if (*end != '\0' || !isfinite(value)) return false;
    *out = value;
    return true;
}
bool parse_count(const char *text, int64_t *out) {
    static const struct {
        const char *suffix;
        int64_t factor;
    } SUFFIXES[] = {{"", 1},           {"k", 1000},          {"K", 1000},  {"M", 1000000},  {"G", 1000000000},
                    {"B", 1000000000}, {"T", 1000000000000}, {"Ki", 1024}, {"Mi", 1 << 20}, {"Gi", 1 << 30}};
    char number[32];
    size_t length = strspn(text, "-0123456789");
    if (length >= sizeof number) return false;
    memcpy(number, text, length);
    number[length] = '\0';
    int64_t value;
    if (!parse_i64(number, &value)) return false;
    for (size_t i = 0; i < sizeof SUFFIXES / sizeof SUFFIXES[0]; ++i)
        if (strcmp(text + length, SUFFIXES[i].suffix) == 0)
            return !__builtin_mul_overflow(value, SUFFIXES[i].factor, out);
    return false;
}

double now_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

bool file_read_all(const char *path, size_t max_bytes, char **out, size_t *out_bytes, Error *err) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return error_set(err, "%s: cannot open: %s", path, strerror(errno));
    struct stat info;
    if (fstat(fileno(file), &info) != 0 || !S_ISREG(info.st_mode)) {
        fclose(file);
        return error_set(err, "%s: expected a regular file", path);
    }
    if ((uint64_t)info.st_size > max_bytes) {
        fclose(file);
        return error_set(err, "%s: expected at most %zu bytes, found %lld", path, max_bytes, (long long)info.st_size);
    }
    size_t bytes = (size_t)info.st_size;
    char *buffer = xmalloc(bytes + 1);
    size_t got = fread(buffer, 1, bytes, file);
    fclose(file);
    if (got != bytes) {
        free(buffer);
        return error_set(err, "%s: expected %zu bytes, could read %zu", path, bytes, got);
    }
    buffer[bytes] = '\0';
    *out = buffer;
    if (out_bytes != NULL) *out_bytes = bytes;
    return true;
}

static bool write_fully(int fd, const unsigned char *bytes, size_t count) {
    while (count > 0) {
        ssize_t wrote = write(fd, bytes, count);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return false;
        bytes += wrote;
        count -= (size_t)wrote;
    }
    return true;
}

bool file_write_atomic(const char *path, const void *bytes, size_t count, Error *err) {
    char *temporary = xasprintf("%s.tmp", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    bool ok = fd >= 0 && write_fully(fd, bytes, count) && fsync(fd) == 0;
    int saved = errno;
    if (fd >= 0 && close(fd) != 0 && ok) {
        ok = false;
        saved = errno;
    }
    if (ok && rename(temporary, path) != 0) {
        ok = false;
        saved = errno;
    }
    if (!ok) {
        unlink(temporary);
        error_set(err, "%s: cannot write: %s", path, strerror(saved));
    }
    free(temporary);
    if (!ok) return false;
    const char *slash = strrchr(path, '/');
    char *dir = slash == NULL ? xstrdup(".") : xasprintf("%.*s", (int)(slash - path + (slash == path)), path);
    ok = fsync_dir(dir, err);
    free(dir);
    return ok;
}

bool file_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}
bool dir_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool make_dirs(const char *path, Error *err) {
    if (path[0] == '\0') return error_set(err, "cannot create a directory with an empty name");
    char *copy = xstrdup(path);
    for (char *p = copy + 1;; ++p) {
        if (*p != '/' && *p != '\0') continue;
        char kept = *p;
        *p = '\0';
        if (mkdir(copy, 0777) != 0 && !(errno == EEXIST && dir_exists(copy))) {
            error_set(err, "%s: cannot create directory: %s", copy, strerror(errno == EEXIST ? ENOTDIR : errno));
            free(copy);
            return false;
        }
        *p = kept;
        if (kept == '\0') break;
    }
    free(copy);
    return true;
}

bool fsync_dir(const char *path, Error *err) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return error_set(err, "%s: cannot open directory: %s", path, strerror(errno));
    // Some file systems cannot sync a directory (EINVAL); then the rename is as durable as they offer.
    bool ok = fsync(fd) == 0 || errno == EINVAL;
    int saved = errno;
    close(fd);
    return ok ? true : error_set(err, "%s: cannot sync directory: %s", path, strerror(saved));
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *where) {
    (void)info;
    (void)kind;
    (void)where;
    return remove(path);
}
bool remove_tree(const char *path, Error *err) {
    if (nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT) return true;
    return error_set(err, "%s: cannot remove: %s", path, strerror(errno));
}

char *path_join(const char *dir, const char *name) {
    size_t length = strlen(dir);
    return xasprintf(length > 0 && dir[length - 1] == '/' ? "%s%s" : "%s/%s", dir, name);
}
