// emu_runtime_state.h: shared by dev/emu/emu_runtime*.cpp: the one runtime of the process, its streams, events, memory
// blocks and captures.
//
// All state is protected by one lock, and work runs on the thread that waits for it.
#ifndef DEV_EMU_RUNTIME_STATE_H
#define DEV_EMU_RUNTIME_STATE_H

#include "emu_runtime.h"

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

// gcc and clang define it differently.
#if defined(__has_feature) && !defined(__SANITIZE_ADDRESS__)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

enum EmuOrder { EMU_LAZY, EMU_EAGER, EMU_OVERTAKE };

// A position in a stream, recorded by an event.
struct EmuPoint {
    CUstream_st *stream;
    uint64_t sequence;  // reached when stream->done >= sequence; the stream may be destroyed once `reached` is set
    bool reached;
    double seconds;  // when it was reached
};

// One entry of a stream: work, or a wait for a point of another stream, or a point of its own.
struct EmuWork {
    const char *name;
    std::function<cudaError_t()> run;
    std::shared_ptr<EmuPoint> wait, reach;
    bool counted;  // a launch, copy or library call; of a graph, the nodes count, not the graph itself
};

struct EmuNode {
    const char *name;
    std::function<cudaError_t()> run;
    std::vector<int> after;  // earlier nodes that it depends on
    bool counted, forked;    // forked: captured on a stream other than the capture's own
};
struct CUgraph_st {
    std::vector<EmuNode> nodes;
};
struct CUgraphExec_st {
    std::shared_ptr<const CUgraph_st> graph;
};

struct EmuCapture {
    CUstream_st *origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool valid, ended;
    CUgraph_st graph;
    std::set<CUstream_st *> streams;
};

struct CUstream_st {
    bool blocking;  // ordered against the default stream
    int priority;
    std::deque<EmuWork> queue;
    uint64_t issued, done;  // entries added and removed so far
    std::shared_ptr<EmuCapture> capture;
    std::vector<int> tail;  // while capturing: dependencies of the next node
};

struct CUevent_st {
    unsigned flags;
    std::shared_ptr<EmuPoint> point;      // last record outside captures
    std::shared_ptr<EmuCapture> capture;  // set if the last record was captured
    std::vector<int> nodes;
};

struct EmuBlock {
    size_t bytes;
    void *map;  // the whole mapping, guard pages included
    size_t map_bytes;
    bool guarded;  // inaccessible to the host except while work runs
};

struct EmuHostBlock {
    size_t bytes;
    bool mapped;  // cudaHostAllocMapped: kernels may access it
};

struct EmuRuntime {
    std::recursive_mutex mutex;
    // Settings, read once.
    int driver_version, devices, capability, sm_count;
    size_t memory_bytes;
    EmuOrder order;
    size_t protect_bytes;
    cudaError_t fail_with;  // TOKAMAK_EMU_FAIL
    int64_t fail_at;

    cudaError_t sticky;  // the error that ended the context
    int64_t counted;     // pieces of work run so far
    int running;         // depth: device memory is accessible while work runs
    CUstream_st default_stream;
    std::vector<CUstream_st *> streams;  // in order of creation, default stream first
    std::set<CUevent_st *> events;
    std::set<CUgraph_st *> graphs;
    std::set<CUgraphExec_st *> execs;
    std::set<std::shared_ptr<EmuCapture>> captures;  // active
    std::map<uintptr_t, EmuBlock> blocks;            // device memory, by address
    std::map<void *, EmuHostBlock> host_blocks;      // pinned memory, by address
    size_t used_bytes;
    std::map<const void *, int> shared_limits;
};

EmuRuntime *emu_runtime(void);

// Aborts on a programming error or an invalid TOKAMAK_EMU_... setting.
[[noreturn]] void emu_abort(const char *format, ...) __attribute__((format(printf, 1, 2)));
// A whole number in [least, most] from the environment.
int64_t emu_env(const char *name, int64_t otherwise, int64_t least, int64_t most);

// Called first in every function that needs a device: returns an error if there is no driver or device, or if the
// context has ended.
cudaError_t emu_ready(void);
// Called first in functions forbidden during capture ("potentially unsafe": allocations, waits); invalidates the
// capture.
cudaError_t emu_ready_uncaptured(void);

// The stream behind a handle (NULL and cudaStreamLegacy: the default stream), or NULL for one that does not exist.
CUstream_st *emu_stream(cudaStream_t handle);
cudaError_t emu_push(CUstream_st *stream, EmuWork work);
// Makes later work on the stream wait for the point.
void emu_push_wait(CUstream_st *stream, const std::shared_ptr<EmuPoint> &point);
std::shared_ptr<EmuPoint> emu_push_point(CUstream_st *stream);
// Runs work until the stream has done `sequence` entries.
void emu_run_until(CUstream_st *stream, uint64_t sequence);
void emu_run_everything(void);
// Runs one piece of work unless the context has ended; an error that it returns ends the context.
void emu_run_work(const char *name, const std::function<cudaError_t()> &run, bool counted);
// Makes memory accessible or inaccessible to the host.
void emu_protect(bool reachable);

// Captures: adds a node to the stream's capture; invalidates a capture.
cudaError_t emu_capture_add(CUstream_st *stream, const char *name, std::function<cudaError_t()> run, bool counted);
cudaError_t emu_capture_break(const std::shared_ptr<EmuCapture> &capture, cudaError_t error);

#endif
