// shard.c: see shard.h. All reads go through shard_read, which widens tokens to int32 and checks their ids, so no token
// reaches a model unchecked.
#include "llmc/loader/shard.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "llmc/base/format_version.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "shards are read without swapping bytes");

#define HEADER_INTS (SHARD_HEADER_BYTES / 4)
#define CHUNK_TOKENS 16384
#define WRITER_BUFFER_BYTES ((size_t)1 << 20)

// ---- reading ----

// Reads exactly `bytes`; errno is 0 when the file ended first.
static bool pread_fully(int fd, void *out, size_t bytes, int64_t offset) {
    unsigned char *to = out;
    while (bytes > 0) {
        ssize_t got = pread(fd, to, bytes, offset);
        if (got < 0 && errno == EINTR) continue;
        if (got == 0) errno = 0;
        if (got <= 0) return false;
        to += got;
        offset += got;
        bytes -= (size_t)got;
    }
    return true;
}

// Fills version, count, width, vocab and eot from a header; the caller checks the size of the file.
static bool header_parse(Shard *shard, const int32_t *header, Error *err) {
    bool llama3 = header[0] == SHARD_MAGIC_LLAMA3;
    if (!llama3 && header[0] != SHARD_MAGIC)
        return error_set(err, "%s: not a token shard: expected magic %d or %d, found %d", shard->path, SHARD_MAGIC,
                         SHARD_MAGIC_LLAMA3, header[0]);
    if (!llama3 && header[1] > format_version(FORMAT_SHARD))
        return format_version_check(FORMAT_SHARD, header[1], shard->path, err);
    if (llama3 ? header[1] != 7 : header[1] != 1 && header[1] != 2)
        return error_set(err, "%s: expected version %s, found %d: make the shard again with prep", shard->path,
                         llama3 ? "7" : "1 or 2", header[1]);
    shard->version = header[1];
    shard->token_count = header[2];
    shard->bytes_per_token = llama3 ? 4 : 2;
    shard->vocab = 0;
    shard->eot = -1;
    if (shard->version == 2) {
        shard->token_count = (int64_t)((uint64_t)(uint32_t)header[3] << 32 | (uint32_t)header[2]);
        shard->bytes_per_token = header[4];
        shard->vocab = header[5];
        shard->eot = header[6];
        if (header[4] != 2 && header[4] != 4)
            return error_set(err, "%s: expected 2 or 4 bytes a token, found %d", shard->path, header[4]);
        if (header[5] <= 0 || (header[4] == 2 && header[5] > 65536))
            return error_set(err, "%s: expected a vocabulary from 1 to %s, found %d", shard->path,
                             header[4] == 2 ? "65536" : "2147483647", header[5]);
        if (header[6] < -1 || header[6] >= header[5])
            return error_set(err, "%s: expected an end-of-text id from -1 to %d, found %d", shard->path,
                             header[5] - 1, header[6]);
    }
    if (shard->token_count < 0 || shard->token_count > (INT64_MAX - SHARD_HEADER_BYTES) / shard->bytes_per_token)
        return error_set(err, "%s: expected a token count >= 0 that a file can hold, found %lld",
                         shard->path, (long long)shard->token_count);
    return true;
}

static bool check_open_file(Shard *shard, Error *err) {
    struct stat info;
    if (fstat(shard->fd, &info) != 0 || !S_ISREG(info.st_mode))
        return error_set(err, "%s: expected a regular file", shard->path);
    if (info.st_size < SHARD_HEADER_BYTES)
        return error_set(err, "%s: expected a header of %d bytes, found a file of %lld: truncated, or not a shard",
                         shard->path, SHARD_HEADER_BYTES, (long long)info.st_size);
    int32_t header[HEADER_INTS];
    if (!pread_fully(shard->fd, header, sizeof header, 0))
        return error_set(err, "%s: cannot read the header: %s", shard->path, strerror(errno));
    if (!header_parse(shard, header, err)) return false;
    int64_t expected = SHARD_HEADER_BYTES + shard->token_count * shard->bytes_per_token;
    if (info.st_size != expected)
        return error_set(err, "%s: expected %lld bytes for the %lld tokens that its header counts, found %lld: "
                         "%s", shard->path, (long long)expected, (long long)shard->token_count,
                         (long long)info.st_size, info.st_size < expected ? "truncated" : "too long");
    return true;
}

bool shard_open(Shard *shard, const char *path, Error *err) {
    // O_NONBLOCK: a FIFO of this name must give an error, not block.
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return error_set(err, "%s: cannot open: %s", path, strerror(errno));
    *shard = (Shard){.path = xstrdup(path), .fd = fd};
    if (check_open_file(shard, err)) return true;
    shard_close(shard);
    return false;
}

void shard_close(Shard *shard) {
    close(shard->fd);
    free(shard->path);
    *shard = (Shard){.fd = -1};
}

static bool read_error(const Shard *shard, int64_t offset, Error *err) {
    if (errno != 0)
        return error_set(err, "%s: cannot read at byte %lld: %s", shard->path, (long long)offset, strerror(errno));
    return error_set(err, "%s: expected %lld tokens, found the end of the file after byte %lld: truncated while in use",
                     shard->path, (long long)shard->token_count, (long long)offset);
}

bool shard_read(int32_t *out, const Shard *shard, int64_t first, int64_t count, int64_t vocab, Error *err) {
    CHECK(first >= 0 && count >= 0 && count <= shard->token_count - first, "first=%lld count=%lld of %lld",
          (long long)first, (long long)count, (long long)shard->token_count);
    uint32_t limit = vocab > 0 && vocab <= INT32_MAX ? (uint32_t)vocab : (uint32_t)INT32_MAX + 1;
    uint16_t narrow[CHUNK_TOKENS];
    for (int64_t done = 0; done < count;) {
        int64_t n = min_i64(count - done, CHUNK_TOKENS);
        int64_t offset = SHARD_HEADER_BYTES + (first + done) * shard->bytes_per_token;
        int32_t *to = out + done;
        bool wide = shard->bytes_per_token == 4;
        if (!pread_fully(shard->fd, wide ? (void *)to : narrow, to_size(n * shard->bytes_per_token), offset))
            return read_error(shard, offset, err);
        uint32_t bad = 0;  // accumulated without a branch, so that the loops vectorize
        if (wide) {
            for (int64_t i = 0; i < n; ++i) bad |= (uint32_t)to[i] >= limit;
        } else {
            for (int64_t i = 0; i < n; ++i) {
                to[i] = narrow[i];
                bad |= narrow[i] >= limit;
            }
        }
        if (bad) {
            int64_t at = 0;
            while ((uint32_t)to[at] < limit) ++at;
            return error_set(err, "%s: expected token ids below %u, found %u at position %lld: the shard was written "
                             "with another tokenizer or is damaged", shard->path, limit, (uint32_t)to[at],
                             (long long)(first + done + at));
        }
        done += n;
    }
    return true;
}

bool shard_check_range(const Shard *shard, int64_t first, int64_t count, int64_t vocab, Error *err) {
    int32_t tokens[CHUNK_TOKENS];
    for (int64_t done = 0; done < count;) {
        int64_t n = min_i64(count - done, CHUNK_TOKENS);
        if (!shard_read(tokens, shard, first + done, n, vocab, err)) return false;
        done += n;
    }
    return true;
}

// ---- sets ----

static int compare_names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

// A large corpus has more shards than the usual soft limit of 1024 open files.
static void allow_open_files(size_t count) {
    struct rlimit limit;
    rlim_t wanted = (rlim_t)count + 256;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted + 1024) return;
    limit.rlim_cur = wanted + 1024 < limit.rlim_max ? wanted + 1024 : limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);  // if this fails, the open that fails later reports it
}

static bool open_all(ShardSet *set, char *const *paths, int count, Error *err) {
    for (int i = 0; i < count; ++i) {
        Shard *shard = &set->shard[i];
        if (!shard_open(shard, paths[i], err)) return false;
        ++set->shard_count;
        set->first_token[i + 1] = set->first_token[i] + shard->token_count;
        set->vocab = max_i64(set->vocab, shard->vocab);
        if (shard->eot >= 0 && set->eot >= 0 && shard->eot != set->eot)
            return error_set(err, "%s: expected end-of-text id %d as in the shards before it, found %d: one source "
                             "needs one tokenizer", paths[i], set->eot, shard->eot);
        if (shard->eot >= 0) set->eot = shard->eot;
    }
    set->token_count = set->first_token[count];
    return true;
}

bool shard_set_open(ShardSet *set, const char *pattern, Error *err) {
    *set = (ShardSet){.eot = -1};
    if (pattern[0] == '\0') return error_set(err, "expected a path or pattern of token shards, found nothing");
    glob_t found = {0};
    int status = glob(pattern, GLOB_NOSORT, NULL, &found);
    if (status != 0 || found.gl_pathc == 0) {
        globfree(&found);
        return error_set(err, "%s: expected at least one token shard, found no file of this name or pattern", pattern);
    }
    qsort(found.gl_pathv, found.gl_pathc, sizeof *found.gl_pathv, compare_names);
    int count = to_i32((int64_t)found.gl_pathc);
    set->shard = xcalloc(found.gl_pathc, sizeof *set->shard);
    set->first_token = xcalloc(found.gl_pathc + 1, sizeof *set->first_token);
    allow_open_files(found.gl_pathc);
    bool ok = open_all(set, found.gl_pathv, count, err);
    globfree(&found);
    if (!ok) shard_set_close(set);
    return ok;
}

void shard_set_close(ShardSet *set) {
    for (int i = 0; i < set->shard_count; ++i) shard_close(&set->shard[i]);
    free(set->shard);
    free(set->first_token);
    *set = (ShardSet){.eot = -1};
}

bool shard_set_check(const ShardSet *set, int64_t vocab, int32_t eot, Error *err) {
    for (int i = 0; i < set->shard_count; ++i) {
        const Shard *shard = &set->shard[i];
        if (vocab > 0 && shard->vocab > vocab)
            return error_set(err, "%s: expected a vocabulary of at most %lld, found %lld: the shard was written with "
                             "another tokenizer", shard->path, (long long)vocab, (long long)shard->vocab);
        if (eot >= 0 && shard->eot >= 0 && shard->eot != eot)
            return error_set(err, "%s: expected end-of-text id %d, found %d: the shard was written with another "
                             "tokenizer", shard->path, eot, shard->eot);
        int64_t count = min_i64(shard->token_count, SHARD_SET_CHECK_TOKENS);
        if (!shard_check_range(shard, 0, count, vocab, err)) return false;
    }
    return true;
}

bool shard_set_read(int32_t *out, const ShardSet *set, int64_t first, int64_t count, int64_t vocab, Error *err) {
    CHECK(first >= 0 && count >= 0 && count <= set->token_count - first, "first=%lld count=%lld of %lld",
          (long long)first, (long long)count, (long long)set->token_count);
    int low = 0, high = set->shard_count;  // the last shard with first_token <= first
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (set->first_token[middle] <= first) low = middle;
        else high = middle;
    }
    for (int64_t done = 0; done < count; ++low) {
        int64_t inside = first + done - set->first_token[low];
        int64_t n = min_i64(count - done, set->shard[low].token_count - inside);
        if (!shard_read(out + done, &set->shard[low], inside, n, vocab, err)) return false;
        done += n;
    }
    return true;
}

// ---- writing ----

struct ShardWriter {
    char *path, *temporary_path;
    int fd;
    int version, bytes_per_token;
    int64_t vocab, token_count;
    int32_t eot;
    size_t used_bytes;
    unsigned char *buffer;
};

static bool writer_flush(ShardWriter *writer, Error *err) {
    const unsigned char *from = writer->buffer;
    while (writer->used_bytes > 0) {
        ssize_t wrote = write(writer->fd, from, writer->used_bytes);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return error_set(err, "%s: cannot write: %s", writer->temporary_path, strerror(errno));
        from += wrote;
        writer->used_bytes -= (size_t)wrote;
    }
    return true;
}

ShardWriter *shard_writer_open(const char *path, int version, int64_t vocab, int32_t eot, Error *err) {
    CHECK(version == 1 || version == 2, "version=%d", version);
    CHECK(vocab > 0 && vocab <= INT32_MAX && eot >= -1 && eot < vocab, "vocab=%lld eot=%d", (long long)vocab, eot);
    if (version == 1 && vocab > 65536) {
        error_set(err, "%s: expected a vocabulary of at most 65536 for a version-1 shard, found %lld: use version 2",
                  path, (long long)vocab);
        return NULL;
    }
    char *temporary_path = xasprintf("%s.tmp", path);
    int fd = open(temporary_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) {
        error_set(err, "%s: cannot create: %s", temporary_path, strerror(errno));
        free(temporary_path);
        return NULL;
    }
    ShardWriter *writer = xcalloc(1, sizeof *writer);
    *writer = (ShardWriter){.path = xstrdup(path), .temporary_path = temporary_path, .fd = fd, .version = version,
                            .bytes_per_token = vocab <= 65536 ? 2 : 4, .vocab = vocab, .eot = eot,
                            .used_bytes = SHARD_HEADER_BYTES, .buffer = xcalloc(1, WRITER_BUFFER_BYTES)};
    return writer;  // the buffer starts with a header of zeros; shard_writer_finish writes the real one
}

bool shard_writer_append(ShardWriter *writer, const int32_t *tokens, int64_t count, Error *err) {
    if (writer->version == 1 && count > INT32_MAX - writer->token_count)
        return error_set(err, "%s: a version-1 shard holds at most %d tokens: write smaller shards or version 2",
                         writer->path, INT32_MAX);
    size_t each = (size_t)writer->bytes_per_token;
    for (int64_t i = 0; i < count; ++i) {
        if (tokens[i] < 0 || tokens[i] >= writer->vocab)
            return error_set(err, "%s: expected token ids from 0 to %lld, found %d at position %lld", writer->path,
                             (long long)writer->vocab - 1, tokens[i], (long long)writer->token_count);
        if (writer->used_bytes + each > WRITER_BUFFER_BYTES && !writer_flush(writer, err)) return false;
        memcpy(writer->buffer + writer->used_bytes, &tokens[i], each);  // little-endian: the low bytes come first
        writer->used_bytes += each;
        ++writer->token_count;
    }
    return true;
}

static bool write_header(const ShardWriter *writer, Error *err) {
    int32_t header[HEADER_INTS] = {SHARD_MAGIC, writer->version, (int32_t)(uint32_t)writer->token_count};
    if (writer->version == 2) {
        header[3] = (int32_t)(writer->token_count >> 32);
        header[4] = writer->bytes_per_token;
        header[5] = (int32_t)writer->vocab;
        header[6] = writer->eot;
    }
    if (pwrite(writer->fd, header, sizeof header, 0) == (ssize_t)sizeof header) return true;
    return error_set(err, "%s: cannot write the header: %s", writer->temporary_path, strerror(errno));
}

static void writer_free(ShardWriter *writer) {
    if (writer->fd >= 0) close(writer->fd);
    free(writer->path);
    free(writer->temporary_path);
    free(writer->buffer);
    free(writer);
}

static bool sync_parent(const char *path, Error *err) {
    const char *slash = strrchr(path, '/');
    char *dir = slash == NULL ? xstrdup(".") : xasprintf("%.*s", (int)(slash - path + (slash == path)), path);
    bool ok = fsync_dir(dir, err);
    free(dir);
    return ok;
}

bool shard_writer_finish(ShardWriter *writer, Error *err) {
    bool ok = writer_flush(writer, err) && write_header(writer, err);
    if (ok && fsync(writer->fd) != 0)
        ok = error_set(err, "%s: cannot sync: %s", writer->temporary_path, strerror(errno));
    if (close(writer->fd) != 0 && ok)
        ok = error_set(err, "%s: cannot close: %s", writer->temporary_path, strerror(errno));
    writer->fd = -1;
    if (ok && rename(writer->temporary_path, writer->path) != 0)
        ok = error_set(err, "%s: cannot rename to %s: %s", writer->temporary_path, writer->path, strerror(errno));
    if (!ok) {
        shard_writer_abort(writer);
        return false;
    }
    ok = sync_parent(writer->path, err);
    writer_free(writer);
    return ok;
}

void shard_writer_abort(ShardWriter *writer) {
    unlink(writer->temporary_path);
    writer_free(writer);
}
