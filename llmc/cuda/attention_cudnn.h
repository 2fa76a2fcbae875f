// attention_cudnn.h: attention by cuDNN: plans made once per shape and kept, document tables, execution. Called by
// attention.cu, which serves with its own kernel what this refuses. Knows nothing of that kernel.
#ifndef LLMC_CUDA_ATTENTION_CUDNN_H
#define LLMC_CUDA_ATTENTION_CUDNN_H

#include "llmc/cuda/backend_cuda.h"

typedef struct CudnnAttention CudnnAttention;

// NULL where cuDNN cannot be used; why says so. Takes device memory for cuDNN's handle. deterministic: the backward
// pass adds in a fixed order, or is refused; otherwise cuDNN takes its fastest way, whose last bits differ from run
// to run.
CudnnAttention *cudnn_attention_open(Backend *be, bool deterministic, Error *why);
void cudnn_attention_close(CudnnAttention *cudnn);

// The contracts of backend.h. False: cuDNN refuses the case, why says so, nothing was done; asking again is cheap.
// True: done, or the backend has failed meanwhile.
//
// *unserved is NULL, or, with args.doc, an int32 on the device that becomes 1 when the batch holds more documents
// than cudnn_document_places: then cuDNN leaves the outputs undefined, and the own kernel, launched behind with this
// condition, must write them. (Only the device knows the number of documents, and nobody waits for it.)
//
// The first call with a shape compiles kernels, which takes up to a second and must not happen while a CUDA graph is
// captured.
bool cudnn_attention_forward(CudnnAttention *cudnn, Backend *be, Tensor out, Tensor lse, Tensor qkv,
                             AttentionArgs args, const int32_t **unserved, Error *why);
bool cudnn_attention_backward(CudnnAttention *cudnn, Backend *be, Tensor dqkv, Tensor dout, Tensor qkv, Tensor out,
                              Tensor lse, AttentionArgs args, const int32_t **unserved, Error *why);

// What served the last call that returned true, for people: "cuDNN 9.19.0: causal, 12/2 heads of 128, T=1024".
const char *cudnn_attention_choice(const CudnnAttention *cudnn);

// ---- kernels, for tests ----
// Where the documents of doc(B,T) lie: lengths (places), and offsets (places + 1) of their first rows in qkv, out and
// the statistics. Unused places are documents without tokens. *unserved = 1 and no documents if there are more than
// places.
typedef struct {
    int32_t *lengths;
    int64_t *offsets_qkv, *offsets_out, *offsets_stats;
    int32_t *unserved;
} DocumentTables;
void cudnn_attention_documents(Backend *be, DocumentTables tables, Tensor doc, int64_t places, AttentionArgs args);
// packed (B*T, NH) = lse (B, NH, T), or the other way round.
void cudnn_attention_pack_lse(Backend *be, float *packed, const float *lse, AttentionArgs args);
void cudnn_attention_unpack_lse(Backend *be, float *lse, const float *packed, AttentionArgs args);

#endif
