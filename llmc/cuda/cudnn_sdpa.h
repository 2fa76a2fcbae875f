// cudnn_sdpa.h: attention as cuDNN operation graphs, through cuDNN's C backend interface opened at run time: for a
// shape and a mask it finds an engine that cuDNN supports (or reports the refusal), then makes an executable plan.
// tests/gpu/cudnn/graphs.cpp checks the same graphs against device descriptions on a machine without a GPU. Must not
// know backends, tensors in memory or streams.
#ifndef LLMC_CUDA_CUDNN_SDPA_H
#define LLMC_CUDA_CUDNN_SDPA_H

#include "llmc/cuda/cudnn_workspace.h"

#if defined(__has_include)
#if __has_include(<cudnn.h>)
#define CUDNN_SDPA_BUILT 1
#endif
#endif

#if CUDNN_SDPA_BUILT
#include <cudnn.h>

// cuDNN's functions, from libcudnn.so.9.
typedef struct {
    void *library;
    size_t version;  // 91900 is 9.19.0
    decltype(&cudnnGetVersion) get_version;
    decltype(&cudnnCreate) create;
    decltype(&cudnnDestroy) destroy;
    decltype(&cudnnSetStream) set_stream;
    decltype(&cudnnGetErrorString) error_string;
    decltype(&cudnnGetLastErrorString) last_error;
    decltype(&cudnnBackendCreateDescriptor) make;
    decltype(&cudnnBackendDestroyDescriptor) drop;
    decltype(&cudnnBackendSetAttribute) set;
    decltype(&cudnnBackendGetAttribute) get;
    decltype(&cudnnBackendFinalize) finalize;
    decltype(&cudnnBackendExecute) execute;
} CudnnApi;

// Releases before this one have bugs in attention's backward pass that change results (9.10.0, 9.10.1).
#define CUDNN_SDPA_OLDEST 91002

bool cudnn_api_open(CudnnApi *api, Error *err);
void cudnn_api_close(CudnnApi *api);
// "cuDNN: text of the status (its last error message)".
void cudnn_api_error(const CudnnApi *api, cudnnStatus_t status, char *text, size_t bytes);

// The graph's tensors, which the caller binds to memory. Lengths, offsets and scalars are tensors too.
typedef enum {
    SDPA_Q = 1,
    SDPA_K,
    SDPA_V,
    SDPA_O,
    SDPA_STATS,  // fp32, log-sum-exp; (batch, NH, T), with ragged (tokens, NH)
    SDPA_DO,
    SDPA_DQ,
    SDPA_DK,
    SDPA_DV,
    SDPA_DQ_SUM,         // fp32 workspace
    SDPA_ROW_SUM,        // fp32 workspace: sum of dout * out over a head
    SDPA_LENGTHS_Q,      // int32 (batch)
    SDPA_LENGTHS_KV,
    SDPA_OFFSETS_QKV,    // int64 (batch + 1): see cudnn_attention_documents
    SDPA_OFFSETS_OUT,
    SDPA_OFFSETS_STATS,
    SDPA_SCALE,          // scalars in host memory, fp32
    SDPA_MINUS_INFINITY,
    SDPA_WINDOW,
    SDPA_ONE,
    SDPA_UID_COUNT
} SdpaUid;

// The target GPU of plans. With a handle they can be executed; without one, `description` (a finalized
// CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR) describes the GPU and only support is checked.
typedef struct {
    cudnnHandle_t handle;
    cudnnBackendDescriptor_t description;
    int compute_capability;  // 80, 90, 100, ...
} SdpaDevice;

typedef struct {
    cudnnBackendDescriptor_t plan;  // NULL without a handle
    struct SdpaGraph *graph;        // the plan's graph, with the plan's lifetime
    int64_t workspace_bytes;        // of the engine itself
    int64_t engine;                 // cuDNN's engine number
    bool bound[SDPA_UID_COUNT];     // the tensors that the graph has
} SdpaPlan;

// Whether this GPU's deterministic backward engine stores score gradients: SdpaShape.stores_scores.
bool cudnn_sdpa_stores_scores(const CudnnApi *api, SdpaDevice device);

// Makes a plan of the first supported engine in cuDNN's order of preference. False: cuDNN refuses this shape, err
// holds the reason. Ignores the workspace limit.
bool cudnn_sdpa_build(SdpaPlan *plan, const CudnnApi *api, SdpaDevice device, const SdpaShape *shape, Error *err);
void cudnn_sdpa_free(SdpaPlan *plan);

#endif
#endif
