// emu_runtime_graph.cpp: stream capture and graphs of the emulated CUDA runtime, by CUDA's rules: a call that is
// forbidden during capture returns CUDA's error and invalidates the capture; ending it on another stream or with
// unjoined streams fails.
//
// A graph keeps the captured work and the dependencies of each piece. A launch is one piece of work on its stream; it
// runs the nodes in one of the orders that their dependencies allow (TOKAMAK_EMU_STREAMS), reading all memory anew.
#include "emu_runtime_state.h"

#include <algorithm>

static thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

cudaError_t emu_capture_break(const std::shared_ptr<EmuCapture> &capture, cudaError_t error) {
    capture->valid = false;
    return error;
}

// Allowed for relaxed threads; otherwise neither a capture of this thread nor a global one may be active.
cudaError_t emu_ready_uncaptured(void) {
    cudaError_t error = emu_ready();
    if (error != cudaSuccess || thread_mode == cudaStreamCaptureModeRelaxed) return error;
    for (const auto &capture : emu_runtime()->captures) {
        bool own = capture->thread == std::this_thread::get_id();
        bool forbids =
            own ? capture->mode != cudaStreamCaptureModeRelaxed
                : capture->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
        if (forbids) error = emu_capture_break(capture, cudaErrorStreamCaptureUnsupported);
    }
    return error;
}

cudaError_t emu_capture_add(CUstream_st *stream, const char *name, std::function<cudaError_t()> run, bool counted) {
    EmuCapture *capture = stream->capture.get();
    if (!capture->valid) return cudaErrorStreamCaptureInvalidated;
    capture->graph.nodes.push_back({name, std::move(run), stream->tail, counted, stream != capture->origin});
    stream->tail = {(int)capture->graph.nodes.size() - 1};
    return cudaSuccess;
}

// ---- capture ----

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode) {
    std::swap(*mode, thread_mode);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return emu_set_error(error);
    CUstream_st *stream = emu_stream(handle);
    if (stream == NULL) return emu_set_error(cudaErrorInvalidResourceHandle);
    if (stream == &rt->default_stream) return emu_set_error(cudaErrorStreamCaptureUnsupported);
    if (stream->capture != NULL) return emu_set_error(cudaErrorIllegalState);
    auto capture = std::make_shared<EmuCapture>();
    capture->origin = stream;
    capture->mode = mode;
    capture->thread = std::this_thread::get_id();
    capture->valid = true;
    capture->streams.insert(stream);
    stream->capture = capture;
    rt->captures.insert(capture);
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return emu_set_error(error);
    const CUstream_st *stream = emu_stream(handle);
    if (stream == NULL) return emu_set_error(cudaErrorInvalidResourceHandle);
    *status = stream->capture == NULL  ? cudaStreamCaptureStatusNone
              : stream->capture->valid ? cudaStreamCaptureStatusActive
                                       : cudaStreamCaptureStatusInvalidated;
    return cudaSuccess;
}

// Whether the work of every captured stream is joined: a dependency, direct or not, of the origin's next node.
static bool capture_joined(const EmuCapture &capture) {
    std::vector<bool> before(capture.graph.nodes.size(), false);
    std::vector<int> open = capture.origin->tail;
    while (!open.empty()) {
        int node = open.back();
        open.pop_back();
        if (before[(size_t)node]) continue;
        before[(size_t)node] = true;
        for (int earlier : capture.graph.nodes[(size_t)node].after) open.push_back(earlier);
    }
    return std::find(before.begin(), before.end(), false) == before.end();
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    *graph = NULL;
    CUstream_st *stream = emu_stream(handle);
    if (stream == NULL) return emu_set_error(cudaErrorInvalidResourceHandle);
    std::shared_ptr<EmuCapture> capture = stream->capture;
    if (capture == NULL) return emu_set_error(cudaErrorIllegalState);
    if (capture->origin != stream) return emu_set_error(emu_capture_break(capture, cudaErrorStreamCaptureUnmatched));
    if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
        return emu_set_error(cudaErrorStreamCaptureWrongThread);
    cudaError_t error = emu_ready();
    if (error == cudaSuccess && !capture->valid) error = cudaErrorStreamCaptureInvalidated;
    if (error == cudaSuccess && !capture_joined(*capture)) error = cudaErrorStreamCaptureUnjoined;
    capture->ended = true;
    rt->captures.erase(capture);
    for (CUstream_st *captured : capture->streams) {
        captured->capture = NULL;
        captured->tail.clear();
    }
    if (error != cudaSuccess) return emu_set_error(error);
    *graph = new CUgraph_st(std::move(capture->graph));
    rt->graphs.insert(*graph);
    return cudaSuccess;
}

// ---- graphs ----

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return emu_set_error(error);
    if (exec == NULL || rt->graphs.count(graph) == 0) return emu_set_error(cudaErrorInvalidValue);
    if (flags != 0) emu_abort("cudaGraphInstantiate: flags %llu are not emulated", flags);
    *exec = new CUgraphExec_st{std::make_shared<const CUgraph_st>(*graph)};
    rt->execs.insert(*exec);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    if (rt->graphs.erase(graph) == 0) return emu_set_error(cudaErrorInvalidValue);
    delete graph;
    return emu_set_error(emu_ready());
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    if (rt->execs.erase(exec) == 0) return emu_set_error(cudaErrorInvalidValue);
    delete exec;
    return emu_set_error(emu_ready());
}

// Lists the node after its dependencies, unless they are already listed.
static void graph_list(std::vector<int> *order, std::vector<bool> *listed, const CUgraph_st &graph, int node) {
    std::vector<int> open = {node};
    while (!open.empty()) {
        int now = open.back(), before = -1;
        for (int earlier : graph.nodes[(size_t)now].after)
            if (before < 0 && !(*listed)[(size_t)earlier]) before = earlier;
        if (before >= 0) {
            open.push_back(before);
            continue;
        }
        if (!(*listed)[(size_t)now]) order->push_back(now);
        (*listed)[(size_t)now] = true;
        open.pop_back();
    }
}

// An order of the nodes that their dependencies allow: as captured (eager); the capture's own stream first and forked
// work only when needed (lazy); forked work as early as possible (overtake).
static std::vector<int> graph_order(const CUgraph_st &graph, EmuOrder kind) {
    std::vector<int> order;
    std::vector<bool> listed(graph.nodes.size(), false);
    for (bool forked : {kind == EMU_OVERTAKE, kind != EMU_OVERTAKE})
        for (size_t i = 0; i < graph.nodes.size(); i++)
            if (kind == EMU_EAGER || graph.nodes[i].forked == forked) graph_list(&order, &listed, graph, (int)i);
    return order;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return emu_set_error(error);
    CUstream_st *stream = emu_stream(handle);
    if (stream == NULL || rt->execs.count(exec) == 0) return emu_set_error(cudaErrorInvalidResourceHandle);
    std::shared_ptr<const CUgraph_st> graph = exec->graph;
    EmuOrder order = rt->order;
    auto run = [graph, order] {
        for (int node : graph_order(*graph, order)) {
            const EmuNode &now = graph->nodes[(size_t)node];
            emu_run_work(now.name, now.run, now.counted);
        }
        return cudaSuccess;
    };
    if (stream->capture != NULL) return emu_set_error(emu_capture_add(stream, "graph", run, false));
    return emu_set_error(emu_push(stream, {"graph", run, NULL, NULL, false}));
}
