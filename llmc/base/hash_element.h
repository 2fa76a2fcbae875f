// hash_element.h: the hash of one element of a tensor. Sums of it mod 2^64 show whether two runs or two replicas hold
// the same bits; they do not depend on the order or the distribution of the elements. Shared by the backends.
#ifndef LLMC_HASH_ELEMENT_H
#define LLMC_HASH_ELEMENT_H

#include <stdint.h>

#if defined(__CUDACC__)
#define HASH_INLINE static __host__ __device__ __forceinline__
#else
#define HASH_INLINE static inline
#endif

#define HASH_PLACE 0x9e3779b97f4a7c15u
#define HASH_FACTOR1 0xff51afd7ed558ccdu
#define HASH_FACTOR2 0xc4ceb9fe1a85ec53u

// The finalizer of MurmurHash3 (Appleby) over index and bits, so that equal values at other indices hash differently.
// place is index * HASH_PLACE: a loop over elements adds HASH_PLACE instead of multiplying.
HASH_INLINE uint64_t hash_at_place(uint64_t place, uint32_t bits) {
    uint64_t h = place + bits;
    h = (h ^ (h >> 33)) * HASH_FACTOR1;
    h = (h ^ (h >> 33)) * HASH_FACTOR2;
    return h ^ (h >> 33);
}
HASH_INLINE uint64_t hash_element(uint64_t index, uint32_t bits) { return hash_at_place(index * HASH_PLACE, bits); }

#endif
