// shard.h: token shards on disk (data/FORMAT.md), memory-mapped for reading, written atomically. Knows nothing of
// tokenizers, models or devices.
//   version 1: llm.c's .bin: 256 int32 header (magic 20240520, 1, token count), then uint16 tokens
//   version 2: same header with version 2: [2] = low and [3] = high word of the 64-bit token count,
//              [4] = bytes a token (2 or 4), [5] = vocabulary size, [6] = end-of-text id or -1; then tokens
#ifndef LLMC_SHARD_H
#define LLMC_SHARD_H

#include "llmc/common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHARD_MAGIC 20240520
#define SHARD_HEADER_BYTES 1024

typedef struct {
    char *path;
    int64_t token_count;
    int bytes_per_token;   // 2 or 4
    int64_t vocab;         // 0 when the file does not say (version 1)
    int32_t eot;           // -1 when the file does not say
    const unsigned char *map;  // whole file
    size_t map_bytes;
} Shard;

// Checks magic, version, size against count. Token ids are checked by shard_check_range.
bool shard_open(Shard *shard, const char *path, Error *err);
void shard_close(Shard *shard);
// Copies tokens [first, first+count) as int32; the range must lie inside the shard.
void shard_read(const Shard *shard, int64_t first, int64_t count, int32_t *out);
// One pass over all tokens: error naming the first id >= vocab, with its position.
bool shard_check_range(const Shard *shard, int64_t vocab, Error *err);

typedef struct ShardWriter ShardWriter;
// Writes path.tmp and renames at finish. version 1 needs vocab <= 65536; eot -1: none.
ShardWriter *shard_writer_open(const char *path, int version, int64_t vocab, int32_t eot, Error *err);
bool shard_writer_append(ShardWriter *writer, const int32_t *tokens, int64_t count, Error *err);
bool shard_writer_finish(ShardWriter *writer, Error *err);  // also frees
void shard_writer_abort(ShardWriter *writer);               // removes the temporary file and frees

#ifdef __cplusplus
}
#endif
#endif
