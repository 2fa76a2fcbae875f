// test_emu_runtime.cpp: the emulated CUDA runtime (dev/emu) against CUDA's documented behaviour: streams run late, a
// missing wait is detected, graphs replay, captures refuse what CUDA refuses, injected failures end the context.
// dev/emu/emu.mk builds it if the CUDA headers are found; tests/gpu/test_emu_runtime.sh runs it. Tests that need other
// settings of the emulated device, or that end its context, run in a child process. More than 600 lines: a list of short
// independent cases.
#include "emu_runtime.h"

#include <math.h>

#include "tests/support/emu_child.h"

#define REFUSED(error, call) assert_string_equal(cudaGetErrorName(call), #error)

// A "kernel": out[i] = in[i] + add.
static cudaError_t launch_add(float *out, const float *in, int n, float add, cudaStream_t stream) {
    return emu_enqueue(stream, "add", [=] {
        for (int i = 0; i < n; i++) out[i] = in[i] + add;
        return cudaSuccess;
    });
}

static float *device_floats(int n) {
    void *pointer = NULL;
    OK(cudaMalloc(&pointer, (size_t)n * sizeof(float)));
    return (float *)pointer;
}
static float *pinned_floats(int n, float value) {
    void *pointer = NULL;
    OK(cudaMallocHost(&pointer, (size_t)n * sizeof(float)));
    for (int i = 0; i < n; i++) ((float *)pointer)[i] = value;
    return (float *)pointer;
}
static cudaStream_t stream_new(void) {
    cudaStream_t stream;
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}
static cudaEvent_t event_new(void) {
    cudaEvent_t event;
    OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return event;
}
static cudaError_t copy_in(float *to, const float *from, int n, cudaStream_t stream) {
    return cudaMemcpyAsync(to, from, (size_t)n * sizeof(float), cudaMemcpyHostToDevice, stream);
}
static cudaError_t copy_out(float *to, const float *from, int n, cudaStream_t stream) {
    return cudaMemcpyAsync(to, from, (size_t)n * sizeof(float), cudaMemcpyDeviceToHost, stream);
}

// ---- streams ----

static void test_nothing_runs_before_a_wait(void **state) {
    (void)state;
    cudaStream_t stream = stream_new();
    float *host = pinned_floats(4, 1), *device = device_floats(4);
    OK(copy_in(device, host, 4, stream));
    OK(launch_add(device, device, 4, 1, stream));
    host[0] = 10;  // too early: the copy has not run
    OK(copy_out(host, device, 4, stream));
    assert_true(host[0] == 10 && host[1] == 1);
    OK(cudaStreamSynchronize(stream));
    assert_true(host[0] == 11 && host[1] == 2);
    OK(cudaFree(device));
    OK(cudaFreeHost(host));
    OK(cudaStreamDestroy(stream));
}

static void test_only_what_the_waited_point_needs_runs(void **state) {
    (void)state;
    cudaStream_t a = stream_new(), b = stream_new();
    cudaEvent_t middle = event_new();
    int ran[4] = {0, 0, 0, 0};
    auto mark = [&ran](int i) {
        return [&ran, i] {
            ran[i]++;
            return cudaSuccess;
        };
    };
    OK(emu_enqueue(a, "0", mark(0)));
    OK(cudaEventRecord(middle, a));
    OK(emu_enqueue(a, "1", mark(1)));
    OK(emu_enqueue(b, "2", mark(2)));
    OK(cudaStreamWaitEvent(b, middle, 0));
    OK(emu_enqueue(b, "3", mark(3)));
    OK(cudaEventSynchronize(middle));
    assert_true(ran[0] == 1 && ran[1] == 0 && ran[2] == 0 && ran[3] == 0);
    OK(cudaStreamSynchronize(b));
    assert_true(ran[1] == 0 && ran[2] == 1 && ran[3] == 1);
    OK(cudaDeviceSynchronize());
    assert_true(ran[0] == 1 && ran[1] == 1 && ran[2] == 1 && ran[3] == 1);
    OK(cudaEventDestroy(middle));
    OK(cudaStreamDestroy(a));
    OK(cudaStreamDestroy(b));
}

// A copy on one stream, a kernel on another: without the event the kernel reads unwritten memory.
static void test_missing_wait_reads_nan(void **state) {
    (void)state;
    for (int with_wait = 0; with_wait < 2; with_wait++) {
        cudaStream_t compute = stream_new(), copy = stream_new();
        cudaEvent_t copied = event_new();
        float *host = pinned_floats(4, 1), *in = device_floats(4), *out = device_floats(4);
        OK(copy_in(in, host, 4, copy));
        OK(cudaEventRecord(copied, copy));
        if (with_wait) OK(cudaStreamWaitEvent(compute, copied, 0));
        OK(launch_add(out, in, 4, 1, compute));
        float *result = pinned_floats(4, 0);
        OK(copy_out(result, out, 4, compute));
        OK(cudaStreamSynchronize(compute));
        assert_true(with_wait ? result[0] == 2 : isnan(result[0]));
        OK(cudaFree(in));
        OK(cudaFree(out));
        OK(cudaFreeHost(host));
        OK(cudaFreeHost(result));
        OK(cudaEventDestroy(copied));
        OK(cudaStreamDestroy(compute));
        OK(cudaStreamDestroy(copy));
    }
}

// The next input overwrites memory that a kernel still reads: only "overtake" runs the copy first.
static float overwritten_too_early(bool with_wait) {
    cudaStream_t compute = stream_new(), copy = stream_new();
    cudaEvent_t used = event_new(), copied = event_new();
    float *first = pinned_floats(1, 1), *second = pinned_floats(1, 100), *in = device_floats(1),
          *out = device_floats(1);
    copy_in(in, first, 1, compute);
    cudaStreamSynchronize(compute);
    launch_add(out, in, 1, 1, compute);
    cudaEventRecord(used, compute);
    if (with_wait) cudaStreamWaitEvent(copy, used, 0);
    copy_in(in, second, 1, copy);
    cudaEventRecord(copied, copy);
    cudaStreamWaitEvent(compute, copied, 0);
    float *result = pinned_floats(1, 0);
    copy_out(result, out, 1, compute);
    cudaStreamSynchronize(compute);
    return result[0];
}
// The same inside a graph: the copy is forked off before the kernel that still reads.
static float overwritten_in_a_graph(bool with_wait) {
    cudaStream_t compute = stream_new(), copy = stream_new();
    cudaEvent_t forked = event_new(), copied = event_new();
    float *first = pinned_floats(1, 1), *second = pinned_floats(1, 100), *in = device_floats(1),
          *out = device_floats(1);
    float *result = pinned_floats(1, 0);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamBeginCapture(compute, cudaStreamCaptureModeGlobal);
    copy_in(in, first, 1, compute);
    if (!with_wait) cudaEventRecord(forked, compute);
    launch_add(out, in, 1, 1, compute);
    if (with_wait) cudaEventRecord(forked, compute);
    cudaStreamWaitEvent(copy, forked, 0);
    copy_in(in, second, 1, copy);
    cudaEventRecord(copied, copy);
    copy_out(result, out, 1, compute);
    cudaStreamWaitEvent(compute, copied, 0);
    cudaStreamEndCapture(compute, &graph);
    cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphLaunch(exec, compute);
    cudaStreamSynchronize(compute);
    return result[0];
}
static void overtaken(void) {
    CHILD(overwritten_in_a_graph(true) == 2);
    CHILD(overwritten_in_a_graph(false) == 101);
    CHILD(overwritten_too_early(true) == 2);
    CHILD(overwritten_too_early(false) == 101);
}
static void in_order(void) {
    CHILD(overwritten_in_a_graph(false) == 2);
    CHILD(overwritten_too_early(true) == 2);
    CHILD(overwritten_too_early(false) == 2);
}
static void test_overtaking_streams(void **state) {
    (void)state;
    assert_int_equal(in_child("TOKAMAK_EMU_STREAMS=overtake", "overtaken"), 0);
    assert_int_equal(in_child("TOKAMAK_EMU_STREAMS=eager", "in_order"), 0);
}

static void test_queries_make_progress(void **state) {
    (void)state;
    cudaStream_t stream = stream_new();
    cudaEvent_t done = event_new();
    assert_int_equal(cudaEventQuery(done), cudaSuccess);  // never recorded
    int count = 0;
    for (int i = 0; i < 3; i++)
        OK(emu_enqueue(stream, "count", [&count] {
            count++;
            return cudaSuccess;
        }));
    OK(cudaEventRecord(done, stream));
    int refused = 0;
    for (cudaError_t error; (error = cudaEventQuery(done)) != cudaSuccess; refused++)
        assert_int_equal(error, cudaErrorNotReady);
    assert_int_equal(refused, 3);
    assert_int_equal(count, 3);
    OK(cudaGetLastError());  // "not ready" is no failure
    OK(cudaEventDestroy(done));
    OK(cudaStreamDestroy(stream));
}

static void test_default_stream_orders_blocking_streams(void **state) {
    (void)state;
    cudaStream_t blocking, other = stream_new();
    OK(cudaStreamCreate(&blocking));
    float *host = pinned_floats(1, 5), *device = device_floats(2);
    OK(copy_in(device, host, 1, blocking));
    OK(copy_in(device + 1, host, 1, other));
    float seen[2] = {0, 0};
    OK(cudaMemcpy(seen, device, sizeof seen, cudaMemcpyDeviceToHost));
    assert_true(seen[0] == 5 && isnan(seen[1]));
    OK(cudaMemset(device, 0, 4));  // returns before it has run
    OK(launch_add(device, device, 1, 1, blocking));
    OK(copy_out(host, device, 1, blocking));
    OK(cudaStreamSynchronize(blocking));
    assert_true(host[0] == 1);
    OK(cudaFree(device));
    OK(cudaFreeHost(host));
    OK(cudaStreamDestroy(blocking));
    OK(cudaStreamDestroy(other));
}

static void test_elapsed_time(void **state) {
    (void)state;
    cudaStream_t stream = stream_new();
    cudaEvent_t start, end;
    OK(cudaEventCreate(&start));
    OK(cudaEventCreate(&end));
    OK(cudaEventRecord(start, stream));
    OK(emu_enqueue(stream, "sleep", [] {
        usleep(20000);
        return cudaSuccess;
    }));
    OK(cudaEventRecord(end, stream));
    float ms = 0;
    assert_int_equal(cudaEventElapsedTime(&ms, start, end), cudaErrorNotReady);
    OK(cudaEventSynchronize(end));
    OK(cudaEventElapsedTime(&ms, start, end));
    assert_true(ms >= 20 && ms < 5000);
    OK(cudaEventDestroy(start));
    OK(cudaEventDestroy(end));
    OK(cudaStreamDestroy(stream));
}

// ---- memory ----

static void test_memory(void **state) {
    (void)state;
    size_t before, after, total;
    OK(cudaMemGetInfo(&before, &total));
    assert_int_equal(total, (size_t)4096 << 20);
    char *block = NULL;
    OK(cudaMalloc((void **)&block, 1001));
    assert_int_equal((uintptr_t)block % 256, 0);
    assert_true(emu_is_device_memory(block, 1001) && !emu_is_device_memory(block, 1002));
    assert_false(emu_is_device_memory(&total, 1));
    OK(cudaMemGetInfo(&after, &total));
    assert_int_equal(before - after, 1024);
    unsigned char bytes[1001];
    OK(cudaMemcpy(bytes, block, 1001, cudaMemcpyDeviceToHost));
    for (int i = 0; i < 1001; i++) assert_int_equal(bytes[i], 0xff);
    REFUSED(cudaErrorInvalidValue, cudaMemcpy(bytes, block + 1, 1001, cudaMemcpyDeviceToHost));
    REFUSED(cudaErrorInvalidValue, cudaMemcpy(bytes, block, 10, cudaMemcpyHostToDevice));
    REFUSED(cudaErrorInvalidValue, cudaMemset(bytes, 0, 10));
    REFUSED(cudaErrorInvalidValue, cudaFree(block + 256));
    void *huge = bytes;
    REFUSED(cudaErrorMemoryAllocation, cudaMalloc(&huge, before));
    REFUSED(cudaErrorMemoryAllocation, cudaGetLastError());
    OK(cudaGetLastError());
    OK(cudaFree(block));
    OK(cudaMemGetInfo(&after, &total));
    assert_int_equal(before, after);
    OK(cudaFree(NULL));
}

static void test_strided_copies(void **state) {
    (void)state;
    cudaStream_t stream = stream_new();
    float host[6] = {1, 2, 3, 4, 5, 6}, back[4];
    float *device = device_floats(4);
    OK(cudaMemcpy2DAsync(device, 8, host + 1, 12, 8, 2, cudaMemcpyHostToDevice, stream));
    OK(copy_out(back, device, 4, stream));
    OK(cudaStreamSynchronize(stream));
    assert_true(back[0] == 2 && back[1] == 3 && back[2] == 5 && back[3] == 6);
    REFUSED(cudaErrorInvalidPitchValue, cudaMemcpy2DAsync(device, 4, host, 12, 8, 2, cudaMemcpyHostToDevice, stream));
    OK(cudaFree(device));
    OK(cudaStreamDestroy(stream));
}

static void read_device_memory_on_the_host(void) {
    float *device = device_floats(4);
    volatile float value = *(volatile float *)device;
    (void)value;
}
static void write_behind_device_memory(void) {
    float *device = device_floats(3);
    emu_enqueue(NULL, "overrun", [=] {
#ifdef __SANITIZE_ADDRESS__
        ((volatile float *)device)[3] = 1;  // the first byte after the block
#else
        ((volatile float *)device)[64] = 1;  // the next page: blocks are aligned to 256 bytes
#endif
        return cudaSuccess;
    });
    cudaDeviceSynchronize();
}
static void use_freed_device_memory(void) {
    float *device = device_floats(3);
    cudaFree(device);
    launch_add(device, device, 3, 1, NULL);
    cudaDeviceSynchronize();
}
static void test_bad_accesses_fault(void **state) {
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    const int FAULT = 1;  // exit status after its reports
    const char *const TOUCHED = "use-after-poison", *const BEHIND = "poison";
#else
    const int FAULT = 128 + SIGSEGV;
    const char *const TOUCHED = "the host accessed device memory: byte 0 of a block of 16";
    const char *const BEHIND = "bytes behind a block of 12 bytes of device memory";
#endif
    assert_int_equal(in_child("TOKAMAK_EMU_PROTECT_MIB=1", "read_device_memory_on_the_host"), FAULT);
    assert_child_said(TOUCHED);
    assert_int_equal(in_child(NULL, "write_behind_device_memory"), FAULT);
    assert_child_said(BEHIND);
    assert_int_equal(in_child(NULL, "use_freed_device_memory"), FAULT);
}

// ---- captures and graphs ----

static void test_graph_replays_and_rereads_memory(void **state) {
    (void)state;
    cudaStream_t main_stream = stream_new(), side = stream_new();
    cudaEvent_t fork_point = event_new(), join_point = event_new();
    float *host = pinned_floats(1, 1), *in = device_floats(1), *out = device_floats(1), *result = pinned_floats(1, 0);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    OK(cudaStreamBeginCapture(main_stream, cudaStreamCaptureModeGlobal));
    OK(copy_in(in, host, 1, main_stream));
    OK(cudaEventRecord(fork_point, main_stream));
    OK(cudaStreamWaitEvent(side, fork_point, 0));
    OK(launch_add(out, in, 1, 1, side));
    OK(cudaEventRecord(join_point, side));
    OK(cudaStreamWaitEvent(main_stream, join_point, 0));
    OK(copy_out(result, out, 1, main_stream));
    OK(cudaStreamEndCapture(main_stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphDestroy(graph));
    assert_true(result[0] == 0);
    for (int i = 1; i <= 3; i++) {
        host[0] = (float)(10 * i);
        OK(cudaGraphLaunch(exec, main_stream));
        assert_true(result[0] == (i == 1 ? 0 : (float)(10 * i - 9)));
        OK(cudaStreamSynchronize(main_stream));
        assert_true(result[0] == (float)(10 * i + 1));
    }
    OK(cudaGraphLaunch(exec, main_stream));
    OK(cudaGraphExecDestroy(exec));  // launched work still runs
    host[0] = 50;
    OK(cudaStreamSynchronize(main_stream));
    assert_true(result[0] == 51);
    OK(cudaFree(in));
    OK(cudaFree(out));
    OK(cudaFreeHost(host));
    OK(cudaFreeHost(result));
    OK(cudaEventDestroy(fork_point));
    OK(cudaEventDestroy(join_point));
    OK(cudaStreamDestroy(main_stream));
    OK(cudaStreamDestroy(side));
}

static void test_missing_wait_inside_a_graph(void **state) {
    (void)state;
    cudaStream_t main_stream = stream_new(), side = stream_new();
    cudaEvent_t fork_point = event_new(), join_point = event_new();
    float *host = pinned_floats(1, 1), *in = device_floats(1), *out = device_floats(1), *result = pinned_floats(1, 0);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    OK(cudaStreamBeginCapture(main_stream, cudaStreamCaptureModeThreadLocal));
    OK(cudaEventRecord(fork_point, main_stream));
    OK(cudaStreamWaitEvent(side, fork_point, 0));
    OK(copy_in(in, host, 1, side));
    OK(cudaEventRecord(join_point, side));
    OK(launch_add(out, in, 1, 1, main_stream));  // should wait for join_point, which comes too late
    OK(copy_out(result, out, 1, main_stream));
    OK(cudaStreamWaitEvent(main_stream, join_point, 0));
    OK(cudaStreamEndCapture(main_stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphLaunch(exec, main_stream));
    OK(cudaStreamSynchronize(main_stream));
    assert_true(isnan(result[0]));
    OK(cudaGraphDestroy(graph));
    OK(cudaGraphExecDestroy(exec));
    OK(cudaFree(in));
    OK(cudaFree(out));
    OK(cudaFreeHost(host));
    OK(cudaFreeHost(result));
    OK(cudaEventDestroy(fork_point));
    OK(cudaEventDestroy(join_point));
    OK(cudaStreamDestroy(main_stream));
    OK(cudaStreamDestroy(side));
}

// One forbidden call inside a capture: it is refused, and so is the end of the capture.
static void capture_refuses(cudaStreamCaptureMode mode, const char *refusal, cudaError_t (*call)(cudaStream_t)) {
    cudaStream_t stream = stream_new();
    cudaGraph_t graph = NULL;
    cudaStreamCaptureStatus status;
    OK(cudaStreamBeginCapture(stream, mode));
    OK(cudaStreamIsCapturing(stream, &status));
    assert_int_equal(status, cudaStreamCaptureStatusActive);
    assert_string_equal(cudaGetErrorName(call(stream)), refusal);
    OK(cudaStreamIsCapturing(stream, &status));
    assert_int_equal(status, cudaStreamCaptureStatusInvalidated);
    REFUSED(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(stream, &graph));
    assert_null(graph);
    OK(cudaStreamIsCapturing(stream, &status));
    assert_int_equal(status, cudaStreamCaptureStatusNone);
    OK(cudaStreamDestroy(stream));
    cudaGetLastError();
}
static cudaError_t call_synchronize(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
static cudaError_t call_device_synchronize(cudaStream_t stream) {
    (void)stream;
    return cudaDeviceSynchronize();
}
static cudaError_t call_malloc(cudaStream_t stream) {
    (void)stream;
    void *pointer;
    return cudaMalloc(&pointer, 16);
}
static cudaError_t call_wait_outside(cudaStream_t stream) {
    cudaStream_t other = stream_new();
    cudaEvent_t event = event_new();
    OK(cudaEventRecord(event, other));
    cudaError_t error = cudaStreamWaitEvent(stream, event, 0);
    OK(cudaEventDestroy(event));
    OK(cudaStreamDestroy(other));
    return error;
}

static void test_captures_refuse(void **state) {
    (void)state;
    const cudaStreamCaptureMode GLOBAL = cudaStreamCaptureModeGlobal, RELAXED = cudaStreamCaptureModeRelaxed;
    capture_refuses(GLOBAL, "cudaErrorStreamCaptureUnsupported", call_synchronize);
    capture_refuses(RELAXED, "cudaErrorStreamCaptureUnsupported", call_synchronize);
    capture_refuses(GLOBAL, "cudaErrorStreamCaptureUnsupported", call_device_synchronize);
    capture_refuses(GLOBAL, "cudaErrorStreamCaptureUnsupported", call_malloc);
    capture_refuses(GLOBAL, "cudaErrorStreamCaptureIsolation", call_wait_outside);

    // Relaxed captures, and threads in relaxed mode, may allocate.
    cudaStream_t stream = stream_new(), side = stream_new();
    cudaGraph_t graph;
    void *block;
    OK(cudaStreamBeginCapture(stream, RELAXED));
    OK(cudaMalloc(&block, 16));
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphDestroy(graph));
    OK(cudaStreamBeginCapture(stream, GLOBAL));
    cudaStreamCaptureMode mode = RELAXED;
    OK(cudaThreadExchangeStreamCaptureMode(&mode));
    OK(cudaFree(block));
    OK(cudaThreadExchangeStreamCaptureMode(&mode));
    assert_int_equal(mode, RELAXED);
    REFUSED(cudaErrorIllegalState, cudaStreamBeginCapture(stream, GLOBAL));
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphDestroy(graph));
    REFUSED(cudaErrorIllegalState, cudaStreamEndCapture(stream, &graph));

    // Work on a forked stream that nothing joins; an event of a capture outside it.
    cudaEvent_t fork_point = event_new();
    OK(cudaStreamBeginCapture(stream, GLOBAL));
    OK(cudaEventRecord(fork_point, stream));
    OK(cudaStreamWaitEvent(side, fork_point, 0));
    OK(emu_enqueue(side, "nothing", [] { return cudaSuccess; }));
    REFUSED(cudaErrorStreamCaptureUnjoined, cudaStreamEndCapture(stream, &graph));
    REFUSED(cudaErrorCapturedEvent, cudaEventSynchronize(fork_point));
    REFUSED(cudaErrorCapturedEvent, cudaStreamWaitEvent(stream, fork_point, 0));
    REFUSED(cudaErrorStreamCaptureUnsupported, cudaStreamBeginCapture(NULL, GLOBAL));
    OK(cudaEventDestroy(fork_point));
    OK(cudaStreamDestroy(stream));
    OK(cudaStreamDestroy(side));
    cudaGetLastError();
}

// ---- failures ----

static void third_piece_fails(void) {
    cudaStream_t stream = stream_new();
    float *device = device_floats(1);
    for (int i = 0; i < 5; i++) CHILD(cudaMemsetAsync(device, i, 4, stream) == cudaSuccess);
    CHILD(cudaStreamSynchronize(stream) == cudaErrorECCUncorrectable);
    CHILD(cudaGetLastError() == cudaErrorECCUncorrectable);
    CHILD(cudaGetLastError() == cudaErrorECCUncorrectable);
    CHILD(cudaMalloc((void **)&device, 4) == cudaErrorECCUncorrectable);
    CHILD(emu_enqueue(stream, "late", [] { return cudaSuccess; }) == cudaErrorECCUncorrectable);
}
static void fewer_pieces_pass(void) {
    float *device = device_floats(1);
    for (int i = 0; i < 2; i++) CHILD(cudaMemset(device, i, 4) == cudaSuccess);
    CHILD(cudaDeviceSynchronize() == cudaSuccess);
}
static void device_fails_itself(void) {
    CHILD(emu_enqueue(NULL, "trap", [] { return cudaErrorIllegalAddress; }) == cudaSuccess);
    CHILD(emu_enqueue(NULL, "never", [] {
              _exit(1);
              return cudaSuccess;
          }) == cudaSuccess);
    CHILD(cudaDeviceSynchronize() == cudaErrorIllegalAddress);
    CHILD(cudaDeviceSynchronize() == cudaErrorIllegalAddress);
}
static void no_device(void) {
    int count = 7;
    CHILD(cudaGetDeviceCount(&count) == cudaErrorNoDevice && count == 0);
    void *pointer;
    CHILD(cudaMalloc(&pointer, 1) == cudaErrorNoDevice);
}
static void no_driver(void) {
    int count = 7, version = 7;
    CHILD(cudaGetDeviceCount(&count) == cudaErrorInsufficientDriver && count == 0);
    CHILD(cudaSetDevice(0) == cudaErrorInsufficientDriver);
    CHILD(cudaDriverGetVersion(&version) == cudaSuccess && version == 0);
}
static void small_memory(void) {
    void *pointer = NULL;
    CHILD(cudaMalloc(&pointer, (size_t)3 << 20) == cudaErrorMemoryAllocation && pointer == NULL);
    CHILD(cudaMalloc(&pointer, (size_t)2 << 20) == cudaSuccess);
    CHILD(cudaMalloc(&pointer, 1) == cudaErrorMemoryAllocation);
    CHILD(cudaPeekAtLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaErrorMemoryAllocation);
    CHILD(cudaGetLastError() == cudaSuccess);  // not an error that ends the context
}
static void use_anything(void) { cudaGetLastError(); }

static void test_failures(void **state) {
    (void)state;
    assert_int_equal(in_child("TOKAMAK_EMU_FAIL=cudaErrorECCUncorrectable@3", "third_piece_fails"), 0);
    assert_int_equal(in_child("TOKAMAK_EMU_FAIL=cudaErrorECCUncorrectable@3", "fewer_pieces_pass"), 0);
    assert_int_equal(in_child(NULL, "device_fails_itself"), 0);
    assert_int_equal(in_child("TOKAMAK_EMU_DEVICES=0", "no_device"), 0);
    assert_int_equal(in_child("TOKAMAK_EMU_DRIVER=0", "no_driver"), 0);
    assert_int_equal(in_child("TOKAMAK_EMU_MEMORY_MIB=2", "small_memory"), 0);
    // Settings that mean nothing stop the program.
    assert_int_equal(in_child("TOKAMAK_EMU_FAIL=cudaErrorNonsense@3", "use_anything"), 128 + SIGABRT);
    assert_int_equal(in_child("TOKAMAK_EMU_FAIL=cudaErrorLaunchFailure", "use_anything"), 128 + SIGABRT);
    assert_int_equal(in_child("TOKAMAK_EMU_STREAMS=quick", "use_anything"), 128 + SIGABRT);
    assert_int_equal(in_child("TOKAMAK_EMU_SMS=many", "use_anything"), 128 + SIGABRT);
}

// ---- the device ----

static void a_turing(void) {
    cudaDeviceProp prop;
    CHILD(cudaGetDeviceProperties(&prop, 0) == cudaSuccess && prop.major == 7 && prop.minor == 5);
    CHILD(prop.sharedMemPerBlockOptin == 64 << 10);
}
static void unknown_attribute(void) {
    int value;
    cudaDeviceGetAttribute(&value, cudaDevAttrMaxTexture3DDepthAlt, 0);
}
static void test_device(void **state) {
    (void)state;
    int count = 0, value = 0;
    OK(cudaGetDeviceCount(&count));
    assert_int_equal(count, 1);
    REFUSED(cudaErrorInvalidDevice, cudaSetDevice(1));
    cudaDeviceProp prop;
    OK(cudaGetDeviceProperties(&prop, 0));
    assert_string_equal(prop.name, "Emulated GPU");
    assert_true(prop.major == 9 && prop.minor == 0 && prop.multiProcessorCount == 4);
    OK(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    assert_int_equal(value, 227 << 10);
    char id[16];
    OK(cudaDeviceGetPCIBusId(id, sizeof id, 0));
    assert_string_equal(id, "0000:e0:00.0");
    const void *kernel = (const void *)&a_turing;
    assert_int_equal(emu_shared_limit(kernel), 48 << 10);
    REFUSED(cudaErrorInvalidValue,
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, value + 1));
    OK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, value));
    assert_int_equal(emu_shared_limit(kernel), 227 << 10);
    cudaGetLastError();
    assert_int_equal(in_child("TOKAMAK_EMU_CC=75", "a_turing"), 0);
    assert_int_equal(in_child(NULL, "unknown_attribute"), 128 + SIGABRT);
    assert_child_said("cudaDeviceAttr");
}

static const Child CHILDREN[] = {
    CHILD_ENTRY(overtaken),
    CHILD_ENTRY(in_order),
    CHILD_ENTRY(read_device_memory_on_the_host),
    CHILD_ENTRY(write_behind_device_memory),
    CHILD_ENTRY(use_freed_device_memory),
    CHILD_ENTRY(third_piece_fails),
    CHILD_ENTRY(fewer_pieces_pass),
    CHILD_ENTRY(device_fails_itself),
    CHILD_ENTRY(no_device),
    CHILD_ENTRY(no_driver),
    CHILD_ENTRY(small_memory),
    CHILD_ENTRY(use_anything),
    CHILD_ENTRY(a_turing),
    CHILD_ENTRY(unknown_attribute),
};

int main(int argc, char **argv) {
    run_if_child(CHILDREN, argc, argv);
    const struct CMUnitTest TESTS[] = {
        cmocka_unit_test(test_nothing_runs_before_a_wait),
        cmocka_unit_test(test_only_what_the_waited_point_needs_runs),
        cmocka_unit_test(test_missing_wait_reads_nan),
        cmocka_unit_test(test_overtaking_streams),
        cmocka_unit_test(test_queries_make_progress),
        cmocka_unit_test(test_default_stream_orders_blocking_streams),
        cmocka_unit_test(test_elapsed_time),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_strided_copies),
        cmocka_unit_test(test_bad_accesses_fault),
        cmocka_unit_test(test_graph_replays_and_rereads_memory),
        cmocka_unit_test(test_missing_wait_inside_a_graph),
        cmocka_unit_test(test_captures_refuse),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_device),
    };
    return cmocka_run_group_tests(TESTS, NULL, NULL);
}
