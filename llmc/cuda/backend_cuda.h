// backend_cuda.h: what the rooms of the CUDA backend share: the state of an open backend, checked calls, launches and
// the one scratch block. Each operation file fills its entries of the function table in its <file>_register_cuda.
//
// Errors of the device or its libraries are not a programmer's: the first one is kept in the state with the library's
// own text, later calls do nothing, and whoever waits (wait, synchronize) returns it. Wrong shapes stay CHECKs.
#ifndef LLMC_CUDA_BACKEND_CUDA_H
#define LLMC_CUDA_BACKEND_CUDA_H

#include "llmc/backend/backend.h"
#include "llmc/cuda/gpu.h"

#define CUDA_TICKETS 64

typedef struct CudaState {
    int device;                 // index among the visible GPUs
    int compute_capability;     // 80, 90, 100, ...
    int sm_count;
    size_t shared_bytes_limit;  // of dynamic shared memory a block may ask for
    cudaStream_t compute;       // taken through cuda_stream
    int64_t stream_uses;        // how often it was
    // Transfers, a stream for each direction, as a GPU has an engine for each: a batch on its way in must not queue
    // behind a snapshot on its way out, for the computation waits for the batch.
    cudaStream_t uploads, downloads;
    cudaEvent_t issued;         // on compute: what a download waits for
    void *scratch;              // see cuda_scratch
    size_t scratch_bytes;
    Error failure;              // the first failure; "" while all is well
    cudaEvent_t events[CUDA_TICKETS];  // ring: ticket t is events[t % CUDA_TICKETS]
    int64_t next_ticket;
    void *matmul;     // MatmulState of matmul.cu
    void *attention;  // AttentionState of attention_cudnn.cu
    char attention_wanted[16];  // BackendOptions: "auto", "cudnn" or "own"
    char cache_dir[4096];       // BackendOptions: "": keep no measured choices
    char gpu_name[256];
    struct CudaSequences *sequences;  // sequence.cu
    struct DeviceInfo *info;          // device_info.cu
} CudaState;

static inline CudaState *cuda_state(const Backend *be) { return (CudaState *)be->impl; }
// For issuing work: whoever takes the stream may write to anything (see absmax.h).
static inline cudaStream_t cuda_stream(const Backend *be) {
    ++cuda_state(be)->stream_uses;
    return cuda_state(be)->compute;
}
static inline bool cuda_failed(const Backend *be) { return cuda_state(be)->failure.message[0] != '\0'; }

// Keeps "what: text of the library" as the backend's failure unless it has one already; returns false.
bool cuda_fail(Backend *be, const char *what, const char *library_text);
// True for cudaSuccess; otherwise keeps the failure.
bool cuda_ok(Backend *be, cudaError_t status, const char *what);

// Launches on the compute stream unless the backend has failed; a template kernel stands in parentheses:
//     GPU_LAUNCH(be, (add_kernel<T, 4>), dim3(blocks), dim3(256), 0, out, a, b, elems);
#define GPU_LAUNCH(be, kernel, grid, block, smem_bytes, ...)                                                       \
    do {                                                                                                           \
        if (!cuda_failed(be))                                                                                      \
            cuda_ok(be, gpu_launch(kernel, grid, block, smem_bytes, cuda_stream(be), __VA_ARGS__), #kernel);       \
    } while (0)

// Device memory for the operation that asks, 256-byte aligned, until the next operation asks: partial sums, workspaces
// of libraries. One call an operation; it divides the block itself. It grows before the run starts and aborts beyond
// be->workspace_limit_bytes afterwards. cuda_plan_workspace (workspace.h) must know the most that any operation asks.
// NULL once the backend has failed.
void *cuda_scratch(Backend *be, size_t bytes);

// device_info.cu: what the GPU is and how it fares.
struct DeviceInfo *device_info_open(int device, const char *pci_bus_id);
void device_info_close(struct DeviceInfo *info);
bool device_info_telemetry(const struct DeviceInfo *info, DeviceTelemetry *out);
double cuda_measure_peak(Backend *be, DType dtype);

// sequence.cu: captured CUDA graphs. `captures` false: every sequence is issued call by call.
struct CudaSequences *sequences_open(bool captures);
// What was captured holds addresses: when scratch memory moves, it is forgotten.
void sequences_forget(Backend *be);
void sequences_close(Backend *be);
bool sequence_begin_cuda(Backend *be, uint64_t key);
void sequence_end_cuda(Backend *be, uint64_t key);
bool sequence_is_capturing(const Backend *be);

// comm_nccl.cu: Backend.comm_open.
bool comm_open_nccl(struct Comm **out, Backend *be, const struct CommOptions *options, Error *err);

// One line an operation file.
void matmul_register_cuda(Backend *be);
void embedding_register_cuda(Backend *be);
void norm_register_cuda(Backend *be);
void rope_register_cuda(Backend *be);
void attention_register_cuda(Backend *be);
void pointwise_register_cuda(Backend *be);
void loss_register_cuda(Backend *be);
void reduce_register_cuda(Backend *be);
void optim_register_cuda(Backend *be);
// Frees what the file keeps in the state.
void matmul_close_cuda(Backend *be);
void attention_close_cuda(Backend *be);

#endif
