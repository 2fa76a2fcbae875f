// shard_test.h: shards for tests.
#ifndef TESTS_SHARD_TEST_H
#define TESTS_SHARD_TEST_H

#include <stdint.h>

// Writes tokens (count) as a shard of this version; fails the test when that cannot be done.
void shard_test_write(const char *path, int version, const int32_t *tokens, int64_t count, int64_t vocab, int32_t eot);

#endif
