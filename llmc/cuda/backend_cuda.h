// backend_cuda.h: llmc/cuda is the CUDA backend, a plug-in over CUDA kernels, cuBLASLt, cuDNN and NCCL. This header
// declares what its files share: the state of an open backend, checked calls, launches and the scratch block. Each
// operation file sets its function pointers in <file>_register_cuda. Must not know models, training or the meaning of
// ranks.
//
// Errors of the device or its libraries are not programming errors: the first one is kept in the state with the
// library's text, later calls do nothing, and wait and synchronize return it. Wrong shapes abort (CHECK).
#ifndef LLMC_CUDA_BACKEND_CUDA_H
#define LLMC_CUDA_BACKEND_CUDA_H

#include "llmc/backend/backend.h"
#include "llmc/cuda/gpu.h"

#define CUDA_TICKETS 64

typedef struct CudaState {
    int device;                 // index among the visible GPUs
    int compute_capability;     // 80, 90, 100, ...
    int sm_count;
    size_t shared_bytes_limit;  // most dynamic shared memory of a block
    cudaStream_t compute;       // obtained by cuda_stream
    int64_t stream_uses;        // number of cuda_stream calls
    // Transfers, one stream per direction, because a GPU has a copy engine for each: an incoming batch, which the
    // computation needs, must not queue behind an outgoing snapshot.
    cudaStream_t uploads, downloads;
    cudaEvent_t issued;         // recorded on compute; a download waits for it
    void *scratch;              // see cuda_scratch
    size_t scratch_bytes;
    Error failure;              // the first failure; "": none
    cudaEvent_t events[CUDA_TICKETS];  // ring: ticket t is events[t % CUDA_TICKETS]
    int64_t next_ticket;
    void *matmul;     // MatmulState of matmul.cu
    void *attention;  // AttentionState of attention.cu
    char attention_wanted[16];  // BackendOptions: "auto", "cudnn" or "own"
    char cache_dir[4096];       // BackendOptions: "": keep no measured choices
    char gpu_name[256];
    struct CudaSequences *sequences;  // sequence.cu
    struct DeviceInfo *info;          // device_info.cu
} CudaState;

static inline CudaState *cuda_state(const Backend *be) { return (CudaState *)be->impl; }
// The stream, for issuing work; the caller may write to any memory, which ends records (absmax.h).
static inline cudaStream_t cuda_stream(const Backend *be) {
    ++cuda_state(be)->stream_uses;
    return cuda_state(be)->compute;
}
static inline bool cuda_failed(const Backend *be) { return cuda_state(be)->failure.message[0] != '\0'; }

// Keeps "what: text of the library" as the backend's failure unless it has one already; returns false.
bool cuda_fail(Backend *be, const char *what, const char *library_text);
// True for cudaSuccess; otherwise keeps the failure.
bool cuda_ok(Backend *be, cudaError_t status, const char *what);

// Launches on the compute stream unless the backend has failed; put a template kernel in parentheses:
//     GPU_LAUNCH(be, (add_kernel<T, 4>), dim3(blocks), dim3(256), 0, out, a, b, elems);
#define GPU_LAUNCH(be, kernel, grid, block, smem_bytes, ...)                                                       \
    do {                                                                                                           \
        if (!cuda_failed(be))                                                                                      \
            cuda_ok(be, gpu_launch(kernel, grid, block, smem_bytes, cuda_stream(be), __VA_ARGS__), #kernel);       \
    } while (0)

// Device memory for one operation, 256-byte aligned, valid until the next call of cuda_scratch: partial sums,
// workspaces of libraries. An operation calls it once and divides the block itself. It grows before the run starts;
// later, more than be->workspace_limit_bytes aborts. cuda_plan_workspace (workspace.h) must bound every operation's
// need. NULL after a failure of the backend.
void *cuda_scratch(Backend *be, size_t bytes);

// device_info.cu: peak rates and telemetry of the GPU.
struct DeviceInfo *device_info_open(int device, const char *pci_bus_id);
void device_info_close(struct DeviceInfo *info);
bool device_info_telemetry(const struct DeviceInfo *info, DeviceTelemetry *out);
double cuda_measure_peak(Backend *be, DType dtype);

// sequence.cu: captured CUDA graphs. `captures` false: every sequence is issued call by call.
struct CudaSequences *sequences_open(bool captures);
// Captured graphs contain addresses: discards them when scratch memory moves.
void sequences_forget(Backend *be);
void sequences_close(Backend *be);
bool sequence_begin_cuda(Backend *be, uint64_t key);
void sequence_end_cuda(Backend *be, uint64_t key);
bool sequence_is_capturing(const Backend *be);

// comm_nccl.cu: Backend.comm_open.
bool comm_open_nccl(struct Comm **out, Backend *be, const struct CommOptions *options, Error *err);

// One line per operation file.
void matmul_register_cuda(Backend *be);
void embedding_register_cuda(Backend *be);
void norm_register_cuda(Backend *be);
void rope_register_cuda(Backend *be);
void attention_register_cuda(Backend *be);
void pointwise_register_cuda(Backend *be);
void loss_register_cuda(Backend *be);
void reduce_register_cuda(Backend *be);
void optim_register_cuda(Backend *be);
// Frees the file's part of the state.
void matmul_close_cuda(Backend *be);
void attention_close_cuda(Backend *be);

#endif
