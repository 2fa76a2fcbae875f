// rank_test.h: what the programs that run as several ranks share (comm_ranks.c, comm_nccl_ranks.c): a check that names its rank,
// numbers that every rank knows of every other, and lists of segments.
#ifndef TESTS_RANK_TEST_H
#define TESTS_RANK_TEST_H

#include <stdio.h>

#include "llmc/ranks/comm_host.h"

// test: any struct with rank, world and failures.
#define EXPECT(test, condition, ...)                                                                       \
    do {                                                                                                   \
        if (!(condition) && ++(test)->failures <= 5) {                                                     \
            fprintf(stderr, "rank %d of %d, %s:%d: %s: ", (test)->rank, (test)->world, __FILE__, __LINE__, \
                    #condition);                                                                           \
            fprintf(stderr, __VA_ARGS__);                                                                  \
            fprintf(stderr, "\n");                                                                         \
        }                                                                                                  \
    } while (0)

// Numbers of many magnitudes: sums of them in another order have other bits.
static inline double rank_test_value(int rank, int salt, int64_t i) {
    uint64_t x = ((uint64_t)(rank + 1) << 40) ^ ((uint64_t)salt << 52) ^ (uint64_t)i;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    x ^= x >> 31;
    static const double SCALE[4] = {1.0, 1024.0, 0.0078125, 33.0};
    return ((double)(x >> 11) / 9007199254740992.0 - 0.5) * SCALE[x & 3];
}

// 0: equal, the last one longer; 1: one owner; 2: owners in any order, ranks that own nothing; 3: with gaps; 4:
// sixteen equal grains, dealt out in runs; 5: equal, the last one shorter.
#define RANK_TEST_KINDS 6
static inline int rank_test_segments(CommSegment *out, int world, int64_t elems, int kind) {
    int count = 0;
    if (kind == 5) return comm_segments_even(out, world, elems);
    if (kind == 0 || kind == 4) {
        int parts = kind == 0 ? world : 16;
        int64_t each = elems / parts / 8 * 8;
        for (int i = each > 0 ? 0 : parts - 1; i < parts; ++i)
            out[count++] = (CommSegment){
                .owner = i * world / parts, .first = i * each, .count = i == parts - 1 ? elems - i * each : each};
        return count;
    }
    if (kind == 1) {
        out[0] = (CommSegment){.owner = world - 1, .first = 0, .count = elems};
        return 1;
    }
    int64_t first = kind == 3 ? 7 : 0;
    for (int64_t length = 1; first < elems && count < 60; length = length * 3 + 1, ++count) {
        out[count] =
            (CommSegment){.owner = (count * 5 + 1) % world, .first = first, .count = min_i64(length, elems - first)};
        first += out[count].count + (kind == 3 ? count : 0);
    }
    return count;
}

#endif
