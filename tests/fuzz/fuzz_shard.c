// fuzz_shard.c: token shards, alone and as a set. Every token of a shard that opens is read.
#include "llmc/loader/shard.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    Error err = {""};
    Shard shard;
    const char *path = fuzz_file("tokens.bin", data, bytes);
    if (!shard_open(&shard, path, &err)) {
        CHECK(err.message[0] != '\0', "an error without a message");
        return 0;
    }
    int32_t tokens[256];
    for (int64_t first = 0; first < shard.token_count; first += 256) {
        int64_t count = min_i64(256, shard.token_count - first);
        if (!shard_read(tokens, &shard, first, count, shard.vocab, &err)) break;
        for (int64_t i = 0; i < count; ++i)
            CHECK(tokens[i] >= 0 && (shard.vocab == 0 || tokens[i] < shard.vocab), "token %d", tokens[i]);
    }
    shard_close(&shard);
    ShardSet set;
    if (shard_set_open(&set, path, &err)) {
        shard_set_check(&set, 50257, -1, &err);
        shard_set_close(&set);
    }
    return 0;
}
