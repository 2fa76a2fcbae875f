// absmax.h: the largest magnitude of a tensor, which gives its scale for rounding to 8 bits. The kernel that writes
// the tensor records it while the values are in registers, so that fp8 products do not read the tensor once more.
//
//     uint32_t *most = absmax_begin(be, out);      // NULL until the first fp8 product of this run
//     GPU_LAUNCH(be, some_kernel, ..., most);       // its threads end with absmax_record<T>(most, ...)
//     absmax_end(be, out, most);
//
// Magnitudes are compared as integers, by their bits: the order is that of the values, NaN is above infinity, and a
// maximum does not depend on the order of the threads.
//
// A record is valid until the next call of cuda_stream, since the caller may then write to any memory. An operation
// that did not write to the tensor extends the record (absmax_keep). So code that does not use records cannot leave a
// stale one, and a captured sequence uses only records made inside it.
#ifndef LLMC_CUDA_ABSMAX_H
#define LLMC_CUDA_ABSMAX_H

#include "llmc/cuda/backend_cuda.h"
#include "llmc/cuda/ptx.h"

#define ABSMAX_RECORDS 16

typedef struct {
    const void *data;
    int64_t elems;
    int64_t valid_at;  // CudaState.stream_uses
} AbsmaxRecord;

typedef struct Absmax {
    bool wanted;      // there was an fp8 product
    uint32_t *slots;  // on the device, one per record
    AbsmaxRecord record[ABSMAX_RECORDS];
} Absmax;

// A cleared slot for out, to be called before out is written; NULL before the first fp8 product or after a failure.
uint32_t *absmax_begin(Backend *be, Tensor out);
// Call after the operation's last launch: the slot will hold out's largest magnitude.
void absmax_end(Backend *be, Tensor out, const uint32_t *slot);
// The slot of t's largest magnitude as bits of an fp32, or NULL.
const uint32_t *absmax_find(const Backend *be, Tensor t);
// Extends a slot found before this operation, which has not written to t.
void absmax_keep(Backend *be, Tensor t, const uint32_t *slot);
// From the record, or by a kernel that reads t.
const uint32_t *absmax_of(Backend *be, Tensor t);
// The state: part of MatmulState.
Absmax *absmax_state(const Backend *be);
bool absmax_open(Backend *be, Absmax *absmax);
void absmax_close(Absmax *absmax);

// The larger of `most` and x's magnitude, as bits.
static __device__ __forceinline__ uint32_t absmax_add(uint32_t most, float x) {
    const uint32_t bits = __float_as_uint(x) & 0x7fffffffu;
    return bits > most ? bits : most;
}
// Records the maximum of all lanes' `most`, of fp32 values rounded to T when stored: the largest rounded value is the
// rounded largest value. All lanes of the warp call it; slot may be NULL. Atomics on one address are serialized, so a
// warp first reads the slot, and most stop there. The value read may be old, hence smaller, which only costs an
// unnecessary atomic.
template <class T>
__device__ __forceinline__ void absmax_record(uint32_t *slot, uint32_t most) {
    if (slot == NULL) return;
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const uint32_t other = __shfl_xor_sync(FULL_MASK, most, distance);
        most = other > most ? other : most;
    }
    most = __float_as_uint(to_float(from_float<T>(__uint_as_float(most))));
    if ((int)threadIdx.x % WARP == 0 && most > ptx_load_relaxed(slot)) atomicMax(slot, most);
}

#endif
