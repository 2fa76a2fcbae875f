// input.h: bytes of a file, of a part of it, or of standard input, decompressed on the way (gzip, zstd: told by their
// first bytes). Constant memory. Knows nothing of text or documents.
#ifndef DATA_INPUT_H
#define DATA_INPUT_H

#include "llmc/base/common.h"

typedef struct Input Input;

// path "-": standard input. first and end: the part of the file to read (0 and INT64_MAX: all of it); a part is read
// as it is, never decompressed. NULL on error.
Input *input_open(const char *path, int64_t first, int64_t end, Error *err);
void input_close(Input *input);  // NULL is fine
// Up to count (> 0) bytes into out; fewer only at the end. -1 on error (unreadable, damaged or truncated).
int64_t input_read(uint8_t *out, Input *input, int64_t count, Error *err);
// Bytes of the file itself read so far (compressed ones, if it is compressed): for progress.
int64_t input_position(const Input *input);

// The size of a regular file that is not compressed, else -1.
int64_t input_plain_bytes(const char *path);
// The size of a regular file, else -1.
int64_t input_file_bytes(const char *path);

#endif
