// emu_runtime_stream.cpp: streams and events of the emulated CUDA runtime: queues of work that runs when a caller
// waits.
//
// A wait runs only the dependencies of its point (lazy), or first all other work that may run (overtake): together
// they reveal a missing wait, whether the work then runs too late or too early. A query runs one piece of work, so
// that a loop of queries ends.
#include "emu_runtime_state.h"

#include <algorithm>
#include <time.h>

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// ---- running ----

void emu_run_work(const char *name, const std::function<cudaError_t()> &run, bool counted) {
    EmuRuntime *rt = emu_runtime();
    if (rt->sticky != cudaSuccess) return;
    if (counted && ++rt->counted == rt->fail_at) {
        rt->sticky = rt->fail_with;
        return;
    }
    cudaError_t error = run();
    if (error == cudaSuccess) return;
    fprintf(stderr, "CUDA emulator: %s failed on the device: %s\n", name, cudaGetErrorString(error));
    rt->sticky = error;
}

// Whether the stream's next entry is a wait for something that has not happened.
static bool stream_blocked(const CUstream_st *stream) {
    return !stream->queue.empty() && stream->queue.front().wait != NULL && !stream->queue.front().wait->reached;
}

static void stream_step(CUstream_st *stream) {
    EmuWork work = std::move(stream->queue.front());
    stream->queue.pop_front();
    if (work.run) emu_run_work(work.name, work.run, work.counted);
    stream->done++;
    if (work.reach != NULL) {
        work.reach->reached = true;
        work.reach->seconds = seconds_now();
    }
}

// Everything that may run on streams other than `except`, the youngest stream first.
static void run_ahead(const CUstream_st *except) {
    EmuRuntime *rt = emu_runtime();
    for (bool progress = true; progress;) {
        progress = false;
        for (size_t i = rt->streams.size(); i-- > 0;) {
            CUstream_st *stream = rt->streams[i];
            for (; stream != except && !stream->queue.empty() && !stream_blocked(stream); progress = true)
                stream_step(stream);
        }
    }
}

// Runs at most `limit` entries towards stream->done >= sequence.
static void run_towards(CUstream_st *stream, uint64_t sequence, int64_t limit) {
    EmuRuntime *rt = emu_runtime();
    if (rt->running++ == 0) emu_protect(true);
    std::vector<std::pair<CUstream_st *, uint64_t>> goals = {{stream, sequence}};
    while (!goals.empty() && limit > 0) {
        auto [now, until] = goals.back();
        if (rt->order == EMU_OVERTAKE) run_ahead(now);
        if (now->done >= until) {
            goals.pop_back();
        } else if (stream_blocked(now)) {
            const EmuPoint &point = *now->queue.front().wait;
            goals.push_back({point.stream, point.sequence});
        } else {
            stream_step(now);
            limit--;
        }
    }
    if (--rt->running == 0) emu_protect(false);
}

void emu_run_until(CUstream_st *stream, uint64_t sequence) {
    if (stream->done < sequence) run_towards(stream, sequence, INT64_MAX);
}

void emu_run_everything(void) {
    for (CUstream_st *stream : emu_runtime()->streams) emu_run_until(stream, stream->issued);
}

// ---- filling ----

CUstream_st *emu_stream(cudaStream_t handle) {
    EmuRuntime *rt = emu_runtime();
    if (handle == NULL || handle == cudaStreamLegacy) return &rt->default_stream;
    auto found = std::find(rt->streams.begin(), rt->streams.end(), handle);
    return found == rt->streams.end() ? NULL : *found;
}

static void push_entry(CUstream_st *stream, EmuWork work) {
    stream->queue.push_back(std::move(work));
    stream->issued++;
}

void emu_push_wait(CUstream_st *stream, const std::shared_ptr<EmuPoint> &point) {
    if (point == NULL || point->reached || point->stream == stream) return;
    push_entry(stream, {"wait", NULL, point, NULL, false});
}

std::shared_ptr<EmuPoint> emu_push_point(CUstream_st *stream) {
    auto point = std::make_shared<EmuPoint>(EmuPoint{stream, stream->issued + 1, false, 0});
    push_entry(stream, {"event", NULL, NULL, point, false});
    if (emu_runtime()->order == EMU_EAGER) emu_run_until(stream, stream->issued);
    return point;
}

// The default stream's work comes after all issued work of blocking streams, and theirs after its own.
static cudaError_t order_default_stream(CUstream_st *stream) {
    EmuRuntime *rt = emu_runtime();
    if (stream == &rt->default_stream) {
        for (const auto &capture : rt->captures)
            for (CUstream_st *captured : capture->streams)
                if (captured->blocking) return emu_capture_break(capture, cudaErrorStreamCaptureImplicit);
        for (CUstream_st *other : rt->streams)
            if (other != stream && other->blocking && other->done < other->issued)
                emu_push_wait(stream, emu_push_point(other));
    } else if (stream->blocking && rt->default_stream.done < rt->default_stream.issued) {
        emu_push_wait(stream, emu_push_point(&rt->default_stream));
    }
    return cudaSuccess;
}

cudaError_t emu_push(CUstream_st *stream, EmuWork work) {
    cudaError_t error = order_default_stream(stream);
    if (error != cudaSuccess) return error;
    push_entry(stream, std::move(work));
    if (emu_runtime()->order == EMU_EAGER) emu_run_until(stream, stream->issued);
    return cudaSuccess;
}

cudaError_t emu_enqueue(cudaStream_t handle, const char *name, std::function<cudaError_t()> work) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return emu_set_error(error);
    CUstream_st *stream = emu_stream(handle);
    if (stream == NULL) return emu_set_error(cudaErrorInvalidResourceHandle);
    if (stream->capture != NULL) return emu_set_error(emu_capture_add(stream, name, std::move(work), true));
    return emu_set_error(emu_push(stream, {name, std::move(work), NULL, NULL, true}));
}

// Here the host function can access device memory, as a library's work would (emu_nccl.cpp).
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    if (function == NULL) return emu_set_error(cudaErrorInvalidValue);
    return emu_enqueue(stream, "host function", [=] {
        function(data);
        return cudaSuccess;
    });
}

// ---- streams ----

static cudaError_t stream_create(cudaStream_t *handle, unsigned flags, int priority) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return emu_set_error(error);
    if (handle == NULL || (flags != cudaStreamDefault && flags != cudaStreamNonBlocking))
        return emu_set_error(cudaErrorInvalidValue);
    CUstream_st *stream = new CUstream_st();
    stream->blocking = flags == cudaStreamDefault;
    stream->priority = priority;
    rt->streams.push_back(stream);
    *handle = stream;
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return stream_create(stream, cudaStreamDefault, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return stream_create(stream, flags, 0);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    return stream_create(stream, flags, priority);
}

// The stream's remaining work runs now.
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready();
    if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice) return emu_set_error(error);
    CUstream_st *stream = emu_stream(handle);
    if (stream == NULL || stream == &rt->default_stream) return emu_set_error(cudaErrorInvalidResourceHandle);
    if (stream->capture != NULL) emu_capture_break(stream->capture, cudaErrorStreamCaptureInvalidated);
    emu_run_until(stream, stream->issued);
    if (stream->capture != NULL) {
        stream->capture->streams.erase(stream);
        if (stream->capture->origin == stream) rt->captures.erase(stream->capture);
    }
    rt->streams.erase(std::find(rt->streams.begin(), rt->streams.end(), stream));
    delete stream;
    return emu_set_error(rt->sticky);
}

// The stream of a wait or query, or an error: waiting for a capturing stream invalidates the capture.
static cudaError_t stream_to_wait_for(cudaStream_t handle, CUstream_st **stream) {
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return error;
    *stream = emu_stream(handle);
    if (*stream == NULL) return cudaErrorInvalidResourceHandle;
    if ((*stream)->capture != NULL) return emu_capture_break((*stream)->capture, cudaErrorStreamCaptureUnsupported);
    error = emu_ready_uncaptured();
    return error != cudaSuccess ? error : order_default_stream(*stream);
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    CUstream_st *stream = NULL;
    cudaError_t error = stream_to_wait_for(handle, &stream);
    if (error != cudaSuccess) return emu_set_error(error);
    emu_run_until(stream, stream->issued);
    return emu_set_error(rt->sticky);
}

static cudaError_t query(CUstream_st *stream, uint64_t sequence) {
    if (stream->done < sequence) {
        run_towards(stream, sequence, 1);
        if (stream->done < sequence) return cudaErrorNotReady;
    }
    return emu_runtime()->sticky;
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    CUstream_st *stream = NULL;
    cudaError_t error = stream_to_wait_for(handle, &stream);
    return emu_set_error(error != cudaSuccess ? error : query(stream, stream->issued));
}

cudaError_t cudaDeviceSynchronize(void) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready_uncaptured();
    if (error != cudaSuccess) return emu_set_error(error);
    emu_run_everything();
    return emu_set_error(rt->sticky);
}

// ---- events ----

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *handle, unsigned flags) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return emu_set_error(error);
    if (handle == NULL || (flags & ~(unsigned)(cudaEventBlockingSync | cudaEventDisableTiming)) != 0)
        return emu_set_error(cudaErrorInvalidValue);
    CUevent_st *event = new CUevent_st();
    event->flags = flags;
    rt->events.insert(event);
    *handle = event;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    if (rt->events.erase(event) == 0) return emu_set_error(cudaErrorInvalidResourceHandle);
    delete event;
    return emu_set_error(emu_ready());
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return emu_set_error(error);
    CUstream_st *stream = emu_stream(handle);
    if (stream == NULL || rt->events.count(event) == 0) return emu_set_error(cudaErrorInvalidResourceHandle);
    event->point = NULL;
    event->capture = stream->capture;
    event->nodes = stream->tail;
    if (stream->capture != NULL)
        return emu_set_error(stream->capture->valid ? cudaSuccess : cudaErrorStreamCaptureInvalidated);
    error = order_default_stream(stream);
    if (error == cudaSuccess) event->point = emu_push_point(stream);
    return emu_set_error(error);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned flags) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return emu_set_error(error);
    CUstream_st *stream = emu_stream(handle);
    if (stream == NULL || rt->events.count(event) == 0) return emu_set_error(cudaErrorInvalidResourceHandle);
    if (flags != cudaEventWaitDefault) return emu_set_error(cudaErrorInvalidValue);
    if (event->capture == NULL && stream->capture == NULL) {
        error = order_default_stream(stream);
        if (error == cudaSuccess) emu_push_wait(stream, event->point);
        return emu_set_error(error);
    }
    if (event->capture == NULL)
        return event->point == NULL
                   ? cudaSuccess
                   : emu_set_error(emu_capture_break(stream->capture, cudaErrorStreamCaptureIsolation));
    if (event->capture->ended) return emu_set_error(cudaErrorCapturedEvent);
    if (stream == &rt->default_stream)
        return emu_set_error(emu_capture_break(event->capture, cudaErrorStreamCaptureImplicit));
    if (stream->capture != NULL && stream->capture != event->capture) {
        emu_capture_break(stream->capture, cudaErrorStreamCaptureMerge);
        return emu_set_error(emu_capture_break(event->capture, cudaErrorStreamCaptureMerge));
    }
    if (!event->capture->valid) return emu_set_error(cudaErrorStreamCaptureInvalidated);
    stream->capture = event->capture;
    stream->capture->streams.insert(stream);
    for (int node : event->nodes)
        if (std::find(stream->tail.begin(), stream->tail.end(), node) == stream->tail.end())
            stream->tail.push_back(node);
    return cudaSuccess;
}

// The error of a wait for or query of this event; cudaSuccess with event->point NULL: never recorded, so complete.
static cudaError_t event_to_wait_for(cudaEvent_t event) {
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return error;
    if (emu_runtime()->events.count(event) == 0) return cudaErrorInvalidResourceHandle;
    if (event->capture != NULL) return cudaErrorCapturedEvent;
    return emu_ready_uncaptured();
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = event_to_wait_for(event);
    if (error != cudaSuccess) return emu_set_error(error);
    if (event->point != NULL && !event->point->reached) emu_run_until(event->point->stream, event->point->sequence);
    return emu_set_error(rt->sticky);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = event_to_wait_for(event);
    if (error != cudaSuccess) return emu_set_error(error);
    if (event->point == NULL || event->point->reached) return emu_set_error(rt->sticky);
    return emu_set_error(query(event->point->stream, event->point->sequence));
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    for (cudaEvent_t event : {start, end}) {
        cudaError_t error = event_to_wait_for(event);
        if (error != cudaSuccess) return emu_set_error(error);
        if (event->point == NULL || (event->flags & cudaEventDisableTiming) != 0)
            return emu_set_error(cudaErrorInvalidResourceHandle);
        if (!event->point->reached) return cudaErrorNotReady;
    }
    *ms = (float)(1e3 * (end->point->seconds - start->point->seconds));
    return cudaSuccess;
}
