// shard_test.c: see shard_test.h.
#include "tests/support/shard_test.h"

#include "llmc/loader/shard.h"
#include "tests/support/file_test.h"

void shard_test_write(const char *path, int version, const int32_t *tokens, int64_t count, int64_t vocab, int32_t eot) {
    Error err = {""};
    ShardWriter *writer = shard_writer_open(path, version, vocab, eot, &err);
    if (writer == NULL || !shard_writer_append(writer, tokens, count, &err) || !shard_writer_finish(writer, &err))
        fail_msg("%s", err.message);
}
