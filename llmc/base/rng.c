// rng.c: Philox4x32-10, the distributions and the permutation built on it; see rng.h.
#include "llmc/base/rng.h"

#include "llmc/base/rng_philox.h"

void rng_block(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]) {
    philox_block(seed, stream, index, out);
}

uint32_t rng_u32(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t words[4];
    rng_block(seed, stream, index, words);
    return words[0];
}
uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t words[4];
    rng_block(seed, stream, index, words);
    return (uint64_t)words[1] << 32 | words[0];
}
double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    return (double)(rng_u64(seed, stream, index) >> 11) * 0x1p-53;
}

_Static_assert(RNG_STREAM_ROUNDING == 4, "rounding_stream (rng_philox.h) has the number of this stream");

uint64_t rng_hash(const char *text) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const unsigned char *p = (const unsigned char *)text; *p != '\0'; ++p) hash = (hash ^ *p) * 0x100000001b3u;
    return hash;
}

// Four rounds give a permutation indistinguishable from random for shuffling; the domain is the smallest even power
// of two that holds n, so that cycle-walking takes fewer than four tries on average.
#define PERMUTE_ROUNDS 4
uint64_t rng_permute(uint64_t key, uint64_t n, uint64_t index) {
    CHECK(index < n, "index=%llu n=%llu", (unsigned long long)index, (unsigned long long)n);
    unsigned half_bits = 1;
    while (half_bits < 32 && (uint64_t)1 << (2 * half_bits) < n) ++half_bits;
    uint64_t mask = ((uint64_t)1 << half_bits) - 1;
    uint64_t value = index;
    do {
        uint64_t left = value >> half_bits, right = value & mask;
        for (uint64_t round = 0; round < PERMUTE_ROUNDS; ++round) {
            uint64_t mixed = left ^ (rng_u32(key, round, right) & mask);
            left = right;
            right = mixed;
        }
        value = left << half_bits | right;
    } while (value >= n);
    return value;
}
