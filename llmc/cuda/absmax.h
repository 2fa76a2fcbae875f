// absmax.h: the largest magnitude of a tensor, which is what scales it before it is rounded to 8 bits: recorded by
// the kernel that writes the tensor while the values are in registers, so that fp8 products need not read it once
// more.
//
//     uint32_t *most = absmax_begin(be, out);      // NULL while no product of this run is asked for fp8
//     GPU_LAUNCH(be, some_kernel, ..., most);       // whose threads end with absmax_record<T>(most, ...)
//     absmax_end(be, out, most);
//
// Magnitudes are compared as the integers that their bits are: the order is that of the values, NaN is above
// infinity, and a maximum does not depend on who comes first.
//
// A record holds until the compute stream is handed out again (cuda_stream): whoever takes the stream may write
// anything. An operation that knows better says so (absmax_keep). So nobody who does not know of records can make one
// stale, and inside a captured sequence only what was recorded inside it is used.
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
    bool wanted;      // some product was asked for fp8
    uint32_t *slots;  // on the device, one a record
    AbsmaxRecord record[ABSMAX_RECORDS];
} Absmax;

// A cleared slot for out, which is about to be written; NULL while nobody wants it, or once the backend has failed.
uint32_t *absmax_begin(Backend *be, Tensor out);
// Everything that the operation does has been issued, and the slot will hold out's largest magnitude.
void absmax_end(Backend *be, Tensor out, const uint32_t *slot);
// The slot of t's largest magnitude as bits of an fp32, or NULL.
const uint32_t *absmax_find(const Backend *be, Tensor t);
// What was found before this operation still holds after it: it has not written to t.
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
// What each lane has found, of fp32 values that were rounded to T when they were stored: the largest of the rounded
// is the largest rounded. All lanes of the warp call it; slot may be NULL. Most warps only look: atomics on one
// address are done one after the other. What they see may be old, hence smaller, which costs an atomic and nothing
// else.
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
