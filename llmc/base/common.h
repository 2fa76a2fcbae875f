// common.h: what every room uses: programmer-error checks, user errors, checked memory and narrowing, time, and small
// file helpers. Must not know tensors, models or devices.
//
// Two kinds of errors, never mixed:
//   CHECK     a programming error: abort with file:line and the offending values (kept in release builds)
//   Error     a user error (config, CLI, data, checkpoints): the function returns false and fills *err with one
//             sentence that names path, expected and found; only main prints it and exits.
#ifndef LLMC_COMMON_H
#define LLMC_COMMON_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define PRINTF_LIKE(format_index, args_index) __attribute__((format(printf, format_index, args_index)))
#define NO_RETURN __attribute__((noreturn))
#else
#define PRINTF_LIKE(format_index, args_index)
#define NO_RETURN
#endif

// ---- programmer errors ----
NO_RETURN void check_failed(const char *file, int line, const char *condition, const char *format, ...)
    PRINTF_LIKE(4, 5);
// CHECK(rows > 0, "rows=%lld", (long long)rows): the format is required and shows the values.
#define CHECK(condition, ...)                                                        \
    do {                                                                             \
        if (!(condition)) check_failed(__FILE__, __LINE__, #condition, __VA_ARGS__); \
    } while (0)

// ---- user errors ----
typedef struct {
    char message[1024];  // "" while there is no error
} Error;
// Fills err (which may be NULL) and returns false, so that callers can write `return error_set(err, ...)`.
bool error_set(Error *err, const char *format, ...) PRINTF_LIKE(2, 3);
// Prepends "context: " to the message in err; returns false.
bool error_prefix(Error *err, const char *format, ...) PRINTF_LIKE(2, 3);

// ---- memory: host allocations that abort, naming the size, when they fail ----
void *xmalloc(size_t bytes);
void *xcalloc(size_t count, size_t bytes_each);  // zeroed; aborts on count*bytes overflow
void *xrealloc(void *pointer, size_t bytes);
char *xstrdup(const char *text);
char *xasprintf(const char *format, ...) PRINTF_LIKE(1, 2);  // caller frees

// ---- checked narrowing ----
int32_t to_i32(int64_t value);  // aborts when the value does not fit
size_t to_size(int64_t value);  // aborts when negative

static inline int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t multiple) { return div_up(a, multiple) * multiple; }
// Whether an action that is due every `every` steps is due after this one; every 0: never.
static inline bool is_due(int64_t step, int64_t every) { return every > 0 && step % every == 0; }
// Whether a word of the command line asks for help.
static inline bool is_help_word(const char *word) { return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0; }

// ---- strict text to number: no leading or trailing characters, no overflow; "1e-3", "128", "0x10" not accepted as
// int ----
bool parse_i64(const char *text, int64_t *out);
bool parse_f64(const char *text, double *out);  // finite only
// Integers with an optional binary or decimal suffix: "4096", "64k" = 64000, "1M", "2G", "4Ki" = 4096, "1Mi".
bool parse_count(const char *text, int64_t *out);

// ---- time ----
double now_seconds(void);  // monotonic

// ---- files ----
// Reads a whole file into a NUL-terminated buffer (caller frees). Refuses files over max_bytes.
bool file_read_all(const char *path, size_t max_bytes, char **out, size_t *out_bytes, Error *err);
// Writes path.tmp, fsyncs, renames over path, fsyncs the directory: the file is old or new, never partial.
bool file_write_atomic(const char *path, const void *bytes, size_t count, Error *err);
bool file_exists(const char *path);
bool dir_exists(const char *path);
bool make_dirs(const char *path, Error *err);  // mkdir -p
bool fsync_dir(const char *path, Error *err);
bool remove_tree(const char *path, Error *err);      // rm -r; a missing path is success
char *path_join(const char *dir, const char *name);  // caller frees

#ifdef __cplusplus
}
#endif
#endif
