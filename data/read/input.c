// input.c: see input.h.
#include "data/read/input.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

typedef enum { PLAIN, GZIP, ZSTD } Packing;
enum { BUFFER_BYTES = 1 << 18 };

struct Input {
    char *path;
    int fd;
    int64_t position, end;
    bool at_end;  // of the file
    Packing packing;
    uint8_t *buffer;  // raw bytes; [used, filled) are not yet consumed
    size_t used, filled;
    z_stream gzip;
    ZSTD_DStream *zstd;
    bool inside_frame;  // of compressed data: the file must not end here
};

static Packing packing_of(const uint8_t *bytes, size_t count) {
    if (count >= 2 && bytes[0] == 0x1F && bytes[1] == 0x8B) return GZIP;
    if (count >= 4 && memcmp(bytes, "\x28\xB5\x2F\xFD", 4) == 0) return ZSTD;
    return PLAIN;
}

// Reads raw bytes into out until it is full or the byte range ends.
static int64_t read_raw(Input *input, uint8_t *out, int64_t count, Error *err) {
    int64_t got = 0;
    count = min_i64(count, input->end - input->position);
    while (got < count) {
        ssize_t step = read(input->fd, out + got, to_size(count - got));
        if (step < 0 && errno == EINTR) continue;
        if (step < 0) {
            error_set(err, "%s: cannot read: %s", input->path, strerror(errno));
            return -1;
        }
        if (step == 0) break;
        got += step;
        input->position += step;
    }
    return got;
}

static bool refill(Input *input, Error *err) {
    int64_t got = read_raw(input, input->buffer, BUFFER_BYTES, err);
    if (got < 0) return false;
    input->used = 0;
    input->filled = (size_t)got;
    input->at_end = got == 0;
    return true;
}

static bool start(Input *input, int64_t first, Error *err) {
    if (first > 0 && lseek(input->fd, first, SEEK_SET) != first)
        return error_set(err, "%s: cannot seek: %s", input->path, strerror(errno));
    if (!refill(input, err)) return false;
    if (first == 0 && input->end == INT64_MAX) input->packing = packing_of(input->buffer, input->filled);
    if (input->packing == GZIP) {
        enum { GZIP_HEADER = 16 + MAX_WBITS };
        if (inflateInit2(&input->gzip, GZIP_HEADER) != Z_OK)
            return error_set(err, "%s: cannot start zlib", input->path);
    } else if (input->packing == ZSTD) {
        input->zstd = ZSTD_createDStream();
        if (input->zstd == NULL) return error_set(err, "%s: cannot start zstd", input->path);
    }
    return true;
}

Input *input_open(const char *path, int64_t first, int64_t end, Error *err) {
    Input *input = xcalloc(1, sizeof *input);
    input->path = xstrdup(strcmp(path, "-") == 0 ? "standard input" : path);
    input->buffer = xmalloc(BUFFER_BYTES);
    input->position = first;
    input->end = end;
    input->fd = strcmp(path, "-") == 0 ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    bool ok = input->fd >= 0 || error_set(err, "%s: cannot open: %s", input->path, strerror(errno));
    if (ok && fstat(input->fd, &info) == 0 && S_ISDIR(info.st_mode))
        ok = error_set(err, "%s: expected a file, found a directory", path);
    if (ok && start(input, first, err)) return input;
    input_close(input);
    return NULL;
}

void input_close(Input *input) {
    if (input == NULL) return;
    if (input->packing == GZIP) inflateEnd(&input->gzip);
    ZSTD_freeDStream(input->zstd);
    if (input->fd >= 0) close(input->fd);
    free(input->buffer);
    free(input->path);
    free(input);
}

// One step of decompression into out; returns the number of bytes written, or -1.
static int64_t step_gzip(uint8_t *out, Input *input, int64_t count, Error *err) {
    z_stream *stream = &input->gzip;
    stream->next_in = input->buffer + input->used;
    stream->avail_in = (uInt)(input->filled - input->used);
    stream->next_out = out;
    stream->avail_out = (uInt)min_i64(count, 1 << 30);
    uInt room = stream->avail_out;
    input->inside_frame = true;
    int result = inflate(stream, Z_NO_FLUSH);
    input->used = input->filled - stream->avail_in;
    if (result == Z_STREAM_END) {  // another member may follow
        input->inside_frame = false;
        inflateReset(stream);
    } else if (result != Z_OK && result != Z_BUF_ERROR) {
        error_set(err, "%s: damaged gzip data: %s", input->path, stream->msg != NULL ? stream->msg : "unknown error");
        return -1;
    }
    return room - stream->avail_out;
}

static int64_t step_zstd(uint8_t *out, Input *input, int64_t count, Error *err) {
    ZSTD_inBuffer in = {input->buffer, input->filled, input->used};
    ZSTD_outBuffer made = {out, to_size(count), 0};
    size_t result = ZSTD_decompressStream(input->zstd, &made, &in);
    if (ZSTD_isError(result)) {
        error_set(err, "%s: damaged zstd data: %s", input->path, ZSTD_getErrorName(result));
        return -1;
    }
    input->used = in.pos;
    input->inside_frame = result != 0;
    return (int64_t)made.pos;
}

int64_t input_read(uint8_t *out, Input *input, int64_t count, Error *err) {
    int64_t got = 0;
    while (got < count) {
        int64_t left = (int64_t)(input->filled - input->used), step;
        if (input->packing == PLAIN) {
            // The first block, read by start(), comes from the buffer; the rest is read directly.
            step = left > 0 ? min_i64(left, count - got) : read_raw(input, out + got, count - got, err);
            if (step < 0) return -1;
            if (step == 0) break;
            if (left > 0) memcpy(out + got, input->buffer + input->used, (size_t)step);
            if (left > 0) input->used += (size_t)step;
        } else {
            if (left == 0 && !input->at_end && !refill(input, err)) return -1;
            if (input->at_end && !input->inside_frame) break;
            step = (input->packing == GZIP ? step_gzip : step_zstd)(out + got, input, count - got, err);
            if (step < 0) return -1;
            if (step == 0 && input->at_end) {
                error_set(err, "%s: the compressed data is truncated", input->path);
                return -1;
            }
        }
        got += step;
    }
    return got;
}

int64_t input_position(const Input *input) { return input->position - (int64_t)(input->filled - input->used); }

int64_t input_file_bytes(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode) ? (int64_t)info.st_size : -1;
}

int64_t input_plain_bytes(const char *path) {
    uint8_t head[4];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t got = read(fd, head, sizeof head);
    close(fd);
    return got < 0 || packing_of(head, (size_t)got) != PLAIN ? -1 : input_file_bytes(path);
}
