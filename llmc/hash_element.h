// hash_element.h: the hash of one element of a tensor, for sums that say whether two runs or two replicas hold the same
// bits. Sums mod 2^64 of it do not depend on the order or on who holds which element. Shared by the backends.
#ifndef LLMC_HASH_ELEMENT_H
#define LLMC_HASH_ELEMENT_H

#include <stdint.h>

#if defined(__CUDACC__)
#define HASH_INLINE static __host__ __device__ __forceinline__
#else
#define HASH_INLINE static inline
#endif

// The finalizer of MurmurHash3 (Appleby) over index and bits, so that equal values at other places count differently.
HASH_INLINE uint64_t hash_element(uint64_t index, uint32_t bits) {
    uint64_t h = index * 0x9e3779b97f4a7c15u + bits;
    h = (h ^ (h >> 33)) * 0xff51afd7ed558ccdu;
    h = (h ^ (h >> 33)) * 0xc4ceb9fe1a85ec53u;
    return h ^ (h >> 33);
}

#endif
