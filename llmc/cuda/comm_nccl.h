// comm_nccl.h: shared by the files of the NCCL group: NCCL's functions, opened at run time (nccl_api.cu), and the
// kernels that round and add contributions (comm_sum.cu). comm_nccl.cu uses both to implement comm.h.
#ifndef LLMC_CUDA_COMM_NCCL_H
#define LLMC_CUDA_COMM_NCCL_H

#include "llmc/cuda/backend_cuda.h"

#if __has_include(<nccl.h>)
#define NCCL_BUILT 1
#include <nccl.h>
#else
#define NCCL_BUILT 0
#endif

#if NCCL_BUILT
// NCCL 2.13 is the first with ncclGetLastError, whose text error messages need.
#define NCCL_OLDEST NCCL_VERSION(2, 13, 4)

typedef struct {
    void *library;
    int version;  // as NCCL_VERSION makes it
    decltype(&ncclGetVersion) get_version;
    decltype(&ncclGetUniqueId) get_unique_id;
    decltype(&ncclCommInitRank) init_rank;
    decltype(&ncclCommDestroy) destroy;
    decltype(&ncclCommAbort) abort;
    decltype(&ncclCommGetAsyncError) async_error;
    decltype(&ncclGetErrorString) error_string;
    decltype(&ncclGetLastError) last_error;
    decltype(&ncclGroupStart) group_start;
    decltype(&ncclGroupEnd) group_end;
    decltype(&ncclReduceScatter) reduce_scatter;
    decltype(&ncclReduce) reduce;
    decltype(&ncclAllGather) all_gather;
    decltype(&ncclBroadcast) broadcast;
    decltype(&ncclAllReduce) all_reduce;
    decltype(&ncclSend) send;
    decltype(&ncclRecv) recv;
} NcclApi;

// Opens libnccl.so.2: beside the plug-in, in NCCL's directory at build time, or on the loader's path. Errors: not
// found (the message lists what was tried), too old, a function is missing. It stays loaded: it has threads and exit
// handlers.
bool nccl_api_open(NcclApi *api, Error *err);
// "2.28.9"
void nccl_version_text(int version, char *text, size_t bytes);
#endif

// ---- kernels, on any stream ----

// out (elems) = in rounded to bf16.
cudaError_t comm_round(bf16 *out, const float *in, int64_t elems, cudaStream_t stream);

// The contributions of all ranks to the same elements: own is this rank's; those of the others are in received, in
// the order of their ranks, `stride` elements apart.
typedef struct {
    const void *own, *received;
    int64_t stride;
    int rank, world;  // of the group
    DType dtype;  // fp32 or bf16, summed in fp32; fp64, in fp64
} CommContributions;
#define COMM_STRIDE_MULTIPLE 8  // elements; keeps packs of 16 bytes aligned
// out (elems) {=, += if accumulate} the sum in the fixed binary tree over ranks, ((0+1)+(2+3))+...; a rank without a
// partner moves up a level unchanged. out may be `own` (= only, and of the same dtype).
cudaError_t comm_sum(void *out, CommContributions from, int64_t elems, bool accumulate, cudaStream_t stream);

// *word = value, issued on the stream. word: host memory mapped for the device.
cudaError_t comm_mark(volatile int64_t *word, int64_t value, cudaStream_t stream);

#endif
