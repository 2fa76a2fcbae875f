// input.h: reads a file, a part of it, or standard input, and decompresses gzip and zstd (detected by their first
// bytes). Constant memory. Must not know text or documents.
#ifndef DATA_INPUT_H
#define DATA_INPUT_H

#include "llmc/base/common.h"

typedef struct Input Input;

// path "-": standard input. [first, end): the byte range of the file to read (0 and INT64_MAX: all of it); a part of a
// file is never decompressed. NULL on error.
Input *input_open(const char *path, int64_t first, int64_t end, Error *err);
void input_close(Input *input);  // NULL: does nothing
// Reads up to count (> 0) bytes into out; fewer only at the end. Returns the number, or -1 on error (unreadable,
// damaged or truncated).
int64_t input_read(uint8_t *out, Input *input, int64_t count, Error *err);
// Bytes of the file read so far (before decompression), for progress.
int64_t input_position(const Input *input);

// The size of a regular file that is not compressed, else -1.
int64_t input_plain_bytes(const char *path);
// The size of a regular file, else -1.
int64_t input_file_bytes(const char *path);

#endif
