// rng_philox.h: one block of Philox4x32-10, and stochastic rounding to bf16 with it, in integer arithmetic only, so
// that host code (rng.c, cpu/optim_kernels.c) and GPU code (cuda/optim.cu) share it and get the same bits. See rng.h.
#ifndef LLMC_RNG_PHILOX_H
#define LLMC_RNG_PHILOX_H

#include <stdint.h>

#if defined(__CUDACC__)
#define RNG_INLINE static __host__ __device__ __forceinline__
#else
#define RNG_INLINE static inline
#endif

// Four independent 32-bit words, f(seed, stream, index). (Salmon et al., SC'11.)
RNG_INLINE void philox_block(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]) {
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        uint64_t product0 = (uint64_t)0xD2511F53u * c0, product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
        c3 = (uint32_t)product0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

// ---- stochastic rounding ----
// Element e of all parameters, at step t: 16 random bits of block e / ROUNDING_BLOCK_ELEMS of stream
// rounding_stream(t), the lower or upper half of word e % ROUNDING_BLOCK_ELEMS / 2. They depend on nothing else:
// replicas, thread counts, devices and resumed runs round alike.
#define ROUNDING_BLOCK_ELEMS 8
// The lowest byte is RNG_STREAM_ROUNDING: no other use of the seed has these streams.
RNG_INLINE uint64_t rounding_stream(int64_t t) { return (uint64_t)t << 8 | 4; }

// Rounds the bits of an fp32 value to one of its two bf16 neighbours: away from zero with probability (dropped bits)
// / 2^16, so that the expected result is the value itself. random16 is uniform in [0, 2^16). Infinity stays, NaN
// stays NaN.
RNG_INLINE uint16_t bf16_round_stochastic(uint32_t bits, uint32_t random16) {
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x0040u);
    return (uint16_t)((bits + random16) >> 16);
}

#endif
