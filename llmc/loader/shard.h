// shard.h: token shards on disk (data/FORMAT.md): checked when opened, read with pread, written atomically; and a set
// of shards read as one stream. Must not know tokenizers, models or devices.
// All integers are little-endian; a header is 256 int32, unused fields 0.
//   version 1: llm.c's .bin: [0] = 20240520, [1] = 1, [2] = token count; then uint16 tokens
//   version 2: [0] = 20240520, [1] = 2, [2] = low and [3] = high word of the 64-bit token count,
//              [4] = bytes a token (2 or 4), [5] = vocabulary size, [6] = end-of-text id or -1; then tokens
//   llm.c's Llama 3 shards: [0] = 20240801, [1] = 7, [2] = token count; then uint32 tokens; read, not written
// The file size must be exactly header + tokens.
#ifndef LLMC_SHARD_H
#define LLMC_SHARD_H

#include "llmc/base/common.h"

#define SHARD_MAGIC 20240520
#define SHARD_MAGIC_LLAMA3 20240801
#define SHARD_HEADER_BYTES 1024

// An open file, not a mapping: a file that is truncated while in use gives an error, where a mapping would raise
// SIGBUS. A deleted file stays readable.
typedef struct {
    char *path;
    int fd;
    int version;           // 1, 2, or 7 for llm.c's Llama 3 shards
    int bytes_per_token;   // 2 or 4
    int64_t token_count;
    int64_t vocab;         // 0 when the file does not say (all but version 2)
    int32_t eot;           // -1 when the file does not say
} Shard;

// Checks magic, version, header fields, and size against count; reads no tokens.
bool shard_open(Shard *shard, const char *path, Error *err);
void shard_close(Shard *shard);
// out[0..count) = tokens [first, first+count), which must be inside the shard. Error when the file has become shorter,
// and at the first id >= vocab, with its position; vocab 0: only ids that do not fit an int32 are errors. Several
// threads may read one shard at the same time.
bool shard_read(int32_t *out, const Shard *shard, int64_t first, int64_t count, int64_t vocab, Error *err);
// One pass over tokens [first, first+count) with the errors of shard_read.
bool shard_check_range(const Shard *shard, int64_t first, int64_t count, int64_t vocab, Error *err);

// The shards that a glob pattern matches, sorted by name (bytewise, in any locale), as one stream of tokens.
typedef struct {
    int shard_count;
    Shard *shard;
    int64_t *first_token;  // [shard_count + 1]: offset of each shard in the stream; the last is token_count
    int64_t token_count;
    int64_t vocab;         // the largest that a shard states; 0: none does
    int32_t eot;           // the id that the shards state; -1: none does
} ShardSet;

// Errors: an empty pattern, no match, an error of shard_open, shards that state different end-of-text ids.
bool shard_set_open(ShardSet *set, const char *pattern, Error *err);
void shard_set_close(ShardSet *set);
// Whether the set fits a model. Errors: a stated vocabulary above `vocab` (0: not checked), a stated end-of-text id
// other than `eot` (-1: not checked), and an id >= vocab in the first SHARD_SET_CHECK_TOKENS of each shard. This
// finds a wrong tokenizer without reading a whole corpus; shard_set_read checks every token that it reads.
#define SHARD_SET_CHECK_TOKENS ((int64_t)1 << 22)
bool shard_set_check(const ShardSet *set, int64_t vocab, int32_t eot, Error *err);
// As shard_read, over the stream; reads may cross shards.
bool shard_set_read(int32_t *out, const ShardSet *set, int64_t first, int64_t count, int64_t vocab, Error *err);

typedef struct ShardWriter ShardWriter;
// Writes path.tmp and renames it to path at finish: path is the old file or the complete new one. version 1 or 2;
// version 1 needs vocab <= 65536 and does not store vocab and eot; version 2 uses 2 bytes a token if vocab <= 65536,
// else 4. eot -1: none. NULL on error.
ShardWriter *shard_writer_open(const char *path, int version, int64_t vocab, int32_t eot, Error *err);
// Errors: an id outside [0, vocab), a full disk, more tokens than version 1 can count. After an error, only
// shard_writer_abort may be called.
bool shard_writer_append(ShardWriter *writer, const int32_t *tokens, int64_t count, Error *err);
bool shard_writer_finish(ShardWriter *writer, Error *err);  // also frees, and removes the temporary file on error
void shard_writer_abort(ShardWriter *writer);               // removes the temporary file and frees
#endif
