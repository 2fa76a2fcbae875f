// rng.h: counter-based random numbers, f(seed, stream, index): no state to save, the same values on any
// device, thread count or world size. The generator is Philox4x32-10 (Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3", SC'11).
#ifndef LLMC_RNG_H
#define LLMC_RNG_H

#include "llmc/base/common.h"

// Streams keep independent uses of one seed apart.
typedef enum {
    RNG_STREAM_INIT = 1,        // parameter initialisation; index = element index inside the named tensor
    RNG_STREAM_DATA_ORDER = 2,  // loader permutations
    RNG_STREAM_SAMPLE = 3,      // text sampling; index = position
    RNG_STREAM_ROUNDING = 4,    // stochastic rounding; the step is in the higher bits: rng_philox.h
    RNG_STREAM_TEST = 5,
    RNG_STREAM_ROWS = 6         // draws of row formats; index = source and epoch, which give the seed of their rows
} RngStream;

// Four independent 32-bit words.
void rng_block(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]);
uint32_t rng_u32(uint64_t seed, uint64_t stream, uint64_t index);
uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index);
double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index);  // [0, 1), 53 bits
// A 64-bit hash of a string (FNV-1a), to derive a stream or a seed from a name.
uint64_t rng_hash(const char *text);

// A keyed permutation of [0, n) evaluated at one point in O(1): cycle-walking over a balanced Feistel network with
// Philox round functions. For n == 1 returns 0. key chooses the permutation.
uint64_t rng_permute(uint64_t key, uint64_t n, uint64_t index);
#endif
