// attention_cudnn.h: attention by cuDNN: plans cached per shape, document tables, execution. For calls that it
// refuses, attention.cu uses the own kernels, which this must not know.
#ifndef LLMC_CUDA_ATTENTION_CUDNN_H
#define LLMC_CUDA_ATTENTION_CUDNN_H

#include "llmc/cuda/backend_cuda.h"

typedef struct CudnnAttention CudnnAttention;

// NULL if cuDNN cannot be used; why holds the reason. Allocates device memory for cuDNN's handle. deterministic: the
// backward pass adds in a fixed order, or is refused; otherwise cuDNN uses its fastest method, whose last bits differ
// between runs.
CudnnAttention *cudnn_attention_open(Backend *be, bool deterministic, Error *why);
void cudnn_attention_close(CudnnAttention *cudnn);

// The contracts of backend.h. False: cuDNN refuses the case, why holds the reason, nothing was done; repeated calls
// are cheap. True: done, or the backend has failed.
//
// *unserved is NULL or, with args.doc, an int32 on the device that becomes 1 when the batch holds more documents than
// cudnn_document_places: then cuDNN leaves the outputs undefined, and the caller must launch the own kernel
// afterwards with this condition, to write them. (The number of documents is known on the device only, and the host
// does not wait.)
//
// The first call with a shape compiles kernels, which takes up to a second and must not happen during the capture of
// a CUDA graph.
bool cudnn_attention_forward(CudnnAttention *cudnn, Backend *be, Tensor out, Tensor lse, Tensor qkv,
                             AttentionArgs args, const int32_t **unserved, Error *why);
bool cudnn_attention_backward(CudnnAttention *cudnn, Backend *be, Tensor dqkv, Tensor dout, Tensor qkv, Tensor out,
                              Tensor lse, AttentionArgs args, const int32_t **unserved, Error *why);

// Human-readable plan of the last call that returned true: "cuDNN 9.19.0: causal, 12/2 heads of 128, T=1024".
const char *cudnn_attention_choice(const CudnnAttention *cudnn);

// ---- kernels, for tests ----
// The documents of doc(B,T): lengths (places), and offsets (places + 1) of their first rows in qkv, out and the
// statistics. Unused places are documents without tokens. *unserved = 1 and no documents if there are more than
// places.
typedef struct {
    int32_t *lengths;
    int64_t *offsets_qkv, *offsets_out, *offsets_stats;
    int32_t *unserved;
} DocumentTables;
void cudnn_attention_documents(Backend *be, DocumentTables tables, Tensor doc, int64_t places, AttentionArgs args);
// packed (B*T, NH) = lse (B, NH, T), or the reverse.
void cudnn_attention_pack_lse(Backend *be, float *packed, const float *lse, AttentionArgs args);
void cudnn_attention_unpack_lse(Backend *be, float *lse, const float *packed, AttentionArgs args);

#endif
