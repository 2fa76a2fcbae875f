// backend_cuda.cu: opens the CUDA backend: finds and checks the GPU, creates the streams, fills the function table
// from the operation files, and owns memory, scratch, tickets and the first failure. The plug-in's one exported
// function, which the program finds by dlopen, is at the end.
#include "llmc/cuda/backend_cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CUDA_OLDEST_COMPUTE_CAPABILITY 80

// ---- failures ----

bool cuda_fail(Backend *be, const char *what, const char *library_text) {
    CudaState *state = cuda_state(be);
    if (!cuda_failed(be)) error_set(&state->failure, "the GPU failed: %s: %s", what, library_text);
    return false;
}
bool cuda_ok(Backend *be, cudaError_t status, const char *what) {
    if (status == cudaSuccess) return true;
    char text[512];
    snprintf(text, sizeof text, "%s (%s)", cudaGetErrorString(status), cudaGetErrorName(status));
    cudaGetLastError();  // clears an error that is not sticky, which the next call would report again
    return cuda_fail(be, what, text);
}
static bool return_failure(Backend *be, Error *err) {
    if (!cuda_failed(be)) return true;
    return error_set(err, "%s", cuda_state(be)->failure.message);
}

// ---- memory ----

static size_t cuda_memory_free(Backend *be) {
    size_t free_bytes = 0, total_bytes = 0;
    cuda_ok(be, cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
    return free_bytes;
}
static void *cuda_alloc(Backend *be, size_t bytes, Error *err) {
    if (!return_failure(be, err)) return NULL;
    void *memory = NULL;
    cudaError_t status = cudaMalloc(&memory, bytes > 0 ? bytes : 1);
    if (status == cudaSuccess) return memory;
    cudaGetLastError();
    error_set(err, "cannot allocate %.1f MiB on the GPU, where %.1f MiB are free: %s", (double)bytes / 1048576.0,
              (double)cuda_memory_free(be) / 1048576.0, cudaGetErrorString(status));
    return NULL;
}
// cudaFree waits for all work that may still use the block.
static void cuda_free(Backend *be, void *pointer, size_t bytes) {
    (void)bytes;
    if (pointer != NULL) cuda_ok(be, cudaFree(pointer), "cudaFree");
}
static void *cuda_host_alloc(Backend *be, size_t bytes, Error *err) {
    if (!return_failure(be, err)) return NULL;
    void *memory = NULL;
    cudaError_t status = cudaMallocHost(&memory, bytes > 0 ? bytes : 1);
    if (status == cudaSuccess) return memory;
    cudaGetLastError();
    error_set(err, "cannot allocate %.1f MiB of page-locked host memory: %s", (double)bytes / 1048576.0,
              cudaGetErrorString(status));
    return NULL;
}
static void cuda_host_free(Backend *be, void *pointer) { cuda_ok(be, cudaFreeHost(pointer), "cudaFreeHost"); }

static void cuda_zero(Backend *be, void *pointer, size_t bytes) {
    if (!cuda_failed(be)) cuda_ok(be, cudaMemsetAsync(pointer, 0, bytes, cuda_stream(be)), "cudaMemsetAsync");
}
static void copy_on_compute(Backend *be, void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    if (!cuda_failed(be)) cuda_ok(be, cudaMemcpyAsync(to, from, bytes, kind, cuda_stream(be)), "cudaMemcpyAsync");
}
static void wait_for_compute(Backend *be) {
    if (!cuda_failed(be)) cuda_ok(be, cudaStreamSynchronize(cuda_stream(be)), "the computation");
}
static void cuda_upload(Backend *be, void *device, const void *host, size_t bytes) {
    copy_on_compute(be, device, host, bytes, cudaMemcpyHostToDevice);
    wait_for_compute(be);
}
// On the compute stream: the host waits for the computation anyway, and must not queue behind a snapshot that is still
// leaving on the stream of downloads.
static void cuda_download(Backend *be, void *host, const void *device, size_t bytes) {
    copy_on_compute(be, host, device, bytes, cudaMemcpyDeviceToHost);
    wait_for_compute(be);
    // Data that did not arrive must not be used: NaN in every floating-point type.
    if (cuda_failed(be)) memset(host, 0xff, bytes);
}
static void cuda_copy(Backend *be, void *to, const void *from, size_t bytes) {
    copy_on_compute(be, to, from, bytes, cudaMemcpyDeviceToDevice);
}

void *cuda_scratch(Backend *be, size_t bytes) {
    CudaState *state = cuda_state(be);
    if (cuda_failed(be)) return NULL;
    if (bytes <= state->scratch_bytes && state->scratch != NULL) return state->scratch;
    size_t limit = be->workspace_limit_bytes, wanted = limit > bytes ? limit : bytes;
    CHECK(limit == 0 || bytes <= limit, "workspace of %zu bytes, planned %zu", bytes, limit);
    CHECK(!sequence_is_capturing(be), "scratch memory of %zu bytes grows during a capture", bytes);
    sequences_forget(be);
    cuda_free(be, state->scratch, state->scratch_bytes);
    state->scratch_bytes = 0;
    Error err = {""};
    state->scratch = cuda_alloc(be, wanted, &err);
    if (state->scratch == NULL) {
        cuda_fail(be, "scratch memory of the operations", err.message);
        return NULL;
    }
    state->scratch_bytes = wanted;
    return state->scratch;
}

// ---- tickets: points on the streams, events in a ring ----

static cudaEvent_t event_of(Backend *be, Ticket ticket) { return cuda_state(be)->events[ticket % CUDA_TICKETS]; }
// Its place in the ring was reused by a later ticket, which waited for it.
static bool is_long_past(Backend *be, Ticket ticket) {
    return ticket <= 0 || ticket <= cuda_state(be)->next_ticket - CUDA_TICKETS;
}

static Ticket record_on(Backend *be, cudaStream_t stream) {
    CudaState *state = cuda_state(be);
    if (cuda_failed(be)) return 0;
    Ticket ticket = ++state->next_ticket;
    if (ticket > CUDA_TICKETS && !cuda_ok(be, cudaEventSynchronize(event_of(be, ticket)), "the computation")) return 0;
    cuda_ok(be, cudaEventRecord(event_of(be, ticket), stream), "cudaEventRecord");
    return ticket;
}
static Ticket cuda_mark(Backend *be) { return record_on(be, cuda_stream(be)); }

static void cuda_after(Backend *be, Ticket ticket) {
    CHECK(!sequence_is_capturing(be), "waiting for ticket %lld inside a captured sequence", (long long)ticket);
    if (!cuda_failed(be) && !is_long_past(be, ticket))
        cuda_ok(be, cudaStreamWaitEvent(cuda_stream(be), event_of(be, ticket), 0), "cudaStreamWaitEvent");
}
static Ticket cuda_upload_after(Backend *be, void *device, const void *host, size_t bytes, Ticket after) {
    CudaState *state = cuda_state(be);
    if (cuda_failed(be)) return 0;
    if (!is_long_past(be, after))
        cuda_ok(be, cudaStreamWaitEvent(state->uploads, event_of(be, after), 0), "cudaStreamWaitEvent");
    cuda_ok(be, cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, state->uploads), "cudaMemcpyAsync");
    Ticket sent = record_on(be, state->uploads);
    cuda_after(be, sent);
    return sent;
}
static Ticket cuda_download_begin(Backend *be, const DownloadPiece *pieces, int64_t count) {
    CudaState *state = cuda_state(be);
    CHECK(!sequence_is_capturing(be), "a download inside a captured sequence, %lld pieces", (long long)count);
    if (cuda_failed(be)) return 0;
    // One event for all downloads: a wait refers to the latest record at the time of its call.
    cuda_ok(be, cudaEventRecord(state->issued, cuda_stream(be)), "cudaEventRecord");
    cuda_ok(be, cudaStreamWaitEvent(state->downloads, state->issued, 0), "cudaStreamWaitEvent");
    for (int64_t i = 0; i < count && !cuda_failed(be); ++i)
        cuda_ok(be, cudaMemcpyAsync(pieces[i].host, pieces[i].device, pieces[i].bytes, cudaMemcpyDeviceToHost,
                                    state->downloads), "cudaMemcpyAsync");
    return record_on(be, state->downloads);
}
static bool cuda_has_passed(Backend *be, Ticket ticket) {
    if (cuda_failed(be) || is_long_past(be, ticket)) return true;
    cudaError_t status = cudaEventQuery(event_of(be, ticket));
    if (status == cudaErrorNotReady) return false;
    cuda_ok(be, status, "the computation");
    return true;
}
static bool cuda_wait(Backend *be, Ticket ticket, Error *err) {
    if (!cuda_failed(be) && !is_long_past(be, ticket))
        cuda_ok(be, cudaEventSynchronize(event_of(be, ticket)), "the computation");
    return return_failure(be, err);
}
static double cuda_elapsed_ms(Backend *be, Ticket from, Ticket to) {
    float ms = -1;
    if (cuda_failed(be) || is_long_past(be, from) || is_long_past(be, to)) return -1;
    cuda_ok(be, cudaEventElapsedTime(&ms, event_of(be, from), event_of(be, to)), "cudaEventElapsedTime");
    return (double)ms;
}
static bool cuda_synchronize(Backend *be, Error *err) {
    wait_for_compute(be);
    if (!cuda_failed(be)) cuda_ok(be, cudaStreamSynchronize(cuda_state(be)->uploads), "a transfer");
    if (!cuda_failed(be)) cuda_ok(be, cudaStreamSynchronize(cuda_state(be)->downloads), "a transfer");
    return return_failure(be, err);
}

static size_t cuda_plan_workspace(const Backend *be, WorkspaceShape shape) {
    (void)be;
    return backend_cuda_plan_workspace(shape);
}
static bool cuda_telemetry(Backend *be, DeviceTelemetry *out) {
    return device_info_telemetry(cuda_state(be)->info, out);
}

// ---- opening and closing ----

static void cuda_close(Backend *be) {
    CudaState *state = cuda_state(be);
    cuda_synchronize(be, NULL);
    sequences_close(be);
    attention_close_cuda(be);
    matmul_close_cuda(be);
    cuda_free(be, state->scratch, state->scratch_bytes);
    for (int i = 0; i < CUDA_TICKETS; ++i)
        if (state->events[i] != NULL) cudaEventDestroy(state->events[i]);
    if (state->issued != NULL) cudaEventDestroy(state->issued);
    if (state->downloads != NULL) cudaStreamDestroy(state->downloads);
    if (state->uploads != NULL) cudaStreamDestroy(state->uploads);
    if (state->compute != NULL) cudaStreamDestroy(state->compute);
    device_info_close(state->info);
    free(state);
    free(be);
}

// Selects the GPU named by the options, or reports what is wrong with the driver or the device.
static bool find_device(int *index, const BackendOptions *options, cudaDeviceProp *properties, Error *err) {
    int count = 0, driver = 0, runtime = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (status == cudaErrorInsufficientDriver)
        return error_set(err, "the NVIDIA driver is too old: it supports CUDA %d.%d, this build needs CUDA %d.%d (%s); "
                              "update the driver", driver / 1000, driver % 1000 / 10, runtime / 1000,
                         runtime % 1000 / 10, cudaGetErrorString(status));
    if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
        return error_set(err, "there is no GPU (%s)%s%s%s", cudaGetErrorString(cudaErrorNoDevice),
                         visible != NULL ? "; CUDA_VISIBLE_DEVICES is \"" : "", visible != NULL ? visible : "",
                         visible != NULL ? "\"" : "");
    if (status != cudaSuccess)
        return error_set(err, "the NVIDIA driver reports an error: %s (%s)", cudaGetErrorString(status),
                         cudaGetErrorName(status));
    // Launchers may make one GPU visible to each process.
    *index = count == 1 ? 0 : options->device_index;
    if (*index < 0 || *index >= count)
        return error_set(err, "GPU %d is needed (one for each rank of a host), but %d are visible", *index, count);
    status = cudaSetDevice(*index);
    if (status == cudaSuccess) status = cudaGetDeviceProperties(properties, *index);
    if (status != cudaSuccess)
        return error_set(err, "GPU %d cannot be used: %s (%s)", *index, cudaGetErrorString(status),
                         cudaGetErrorName(status));
    if (properties->major * 10 + properties->minor < CUDA_OLDEST_COMPUTE_CAPABILITY)
        return error_set(err, "GPU %d, %s, has compute capability %d.%d; 8.0 (Ampere) or later is needed, for bf16",
                         *index, properties->name, properties->major, properties->minor);
    return true;
}

// Creates streams and events and opens the libraries, whose device memory is measured.
static bool open_state(Backend *be, const BackendOptions *options, int index, const cudaDeviceProp *properties,
                       Error *err) {
    CudaState *state = cuda_state(be);
    state->device = index;
    state->compute_capability = properties->major * 10 + properties->minor;
    state->sm_count = properties->multiProcessorCount;
    state->shared_bytes_limit = properties->sharedMemPerBlockOptin;
    snprintf(state->attention_wanted, sizeof state->attention_wanted, "%s",
             options->attention != NULL ? options->attention : "auto");
    snprintf(state->cache_dir, sizeof state->cache_dir, "%s", options->cache_dir != NULL ? options->cache_dir : "");
    snprintf(state->gpu_name, sizeof state->gpu_name, "%s", properties->name);
    char bus[32] = "";
    cuda_ok(be, cudaDeviceGetPCIBusId(bus, sizeof bus, state->device), "cudaDeviceGetPCIBusId");
    state->info = device_info_open(state->device, bus);
    DeviceTelemetry before = {0, 0, 0, 0};
    device_info_telemetry(state->info, &before);
    cuda_ok(be, cudaFree(NULL), "opening the device");
    cuda_ok(be, cudaStreamCreateWithFlags(&state->compute, cudaStreamNonBlocking), "cudaStreamCreate");
    cuda_ok(be, cudaStreamCreateWithFlags(&state->uploads, cudaStreamNonBlocking), "cudaStreamCreate");
    cuda_ok(be, cudaStreamCreateWithFlags(&state->downloads, cudaStreamNonBlocking), "cudaStreamCreate");
    cuda_ok(be, cudaEventCreateWithFlags(&state->issued, cudaEventDisableTiming), "cudaEventCreate");
    for (int i = 0; i < CUDA_TICKETS; ++i) cuda_ok(be, cudaEventCreate(&state->events[i]), "cudaEventCreate");
    state->sequences = sequences_open(options->graphs);
    embedding_register_cuda(be);
    norm_register_cuda(be);
    rope_register_cuda(be);
    pointwise_register_cuda(be);
    loss_register_cuda(be);
    reduce_register_cuda(be);
    optim_register_cuda(be);
    matmul_register_cuda(be);
    attention_register_cuda(be);
    size_t free_bytes = 0, total_bytes = 0;
    cuda_ok(be, cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
    size_t used = total_bytes - free_bytes;
    be->library_bytes = used > before.memory_used_bytes ? used - before.memory_used_bytes : 0;
    snprintf(be->description, sizeof be->description, "%.160s, %.0f GiB, compute capability %d.%d, %d SMs",
             properties->name, (double)total_bytes / 1073741824.0, properties->major, properties->minor,
             state->sm_count);
    return return_failure(be, err);
}

#if defined(TOKAMAK_EMU)
#define CUDA_BACKEND_NAME "cudaemu"
#else
#define CUDA_BACKEND_NAME "cuda"
#endif

extern "C" __attribute__((visibility("default"))) Backend *backend_plugin_entry(const BackendOptions *options,
                                                                                Error *err);
extern "C" Backend *backend_plugin_entry(const BackendOptions *options, Error *err) {
    if (options->abi != BACKEND_ABI || options->backend_bytes != sizeof(Backend)) {
        error_set(err, "the plug-in does not match this program (found interface %d of %zu bytes, expected "
                       "%d of %zu): run `make` again", BACKEND_ABI, sizeof(Backend), options->abi,
                  options->backend_bytes);
        return NULL;
    }
    cudaDeviceProp properties;
    int index = 0;
    if (!find_device(&index, options, &properties, err)) return NULL;
    Backend *be = (Backend *)xcalloc(1, sizeof *be);
    be->name = CUDA_BACKEND_NAME;
    be->bf16_native = true;
    be->impl = xcalloc(1, sizeof(CudaState));
    be->alloc = cuda_alloc;
    be->free = cuda_free;
    be->zero = cuda_zero;
    be->memory_free = cuda_memory_free;
    be->upload = cuda_upload;
    be->download = cuda_download;
    be->copy = cuda_copy;
    be->synchronize = cuda_synchronize;
    be->host_alloc = cuda_host_alloc;
    be->host_free = cuda_host_free;
    be->mark = cuda_mark;
    be->upload_after = cuda_upload_after;
    be->download_begin = cuda_download_begin;
    be->after = cuda_after;
    be->has_passed = cuda_has_passed;
    be->wait = cuda_wait;
    be->elapsed_ms = cuda_elapsed_ms;
    be->sequence_begin = sequence_begin_cuda;
    be->sequence_end = sequence_end_cuda;
    be->comm_open = comm_open_nccl;
    be->close = cuda_close;
    be->plan_workspace = cuda_plan_workspace;
    be->measure_peak = cuda_measure_peak;
    be->telemetry = cuda_telemetry;
    if (open_state(be, options, index, &properties, err)) return be;
    cuda_close(be);
    return NULL;
}
