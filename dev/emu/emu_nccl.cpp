// emu_nccl.cpp: NCCL for emulated GPUs, over MPI: libnccl_emu.so, which the emulated CUDA plug-in opens in place of
// libnccl.so.2. NVIDIA's nccl.h declares the functions. Like the real library it uses the device through the CUDA
// runtime only: the emulated runtime, in the plug-in, runs its work in the order of the stream.
//
// A call, or all calls of a group, become one piece of work, which starts all messages, waits for them, and adds in
// the order of the ranks, ((0+1)+2)+3, which differs from the order of our own sums. Errors that make NCCL hang or
// return wrong numbers abort with a message: ranks that call different collectives, messages of different lengths or
// without a partner, buffers that overlap or are not in device memory. One rank needs no MPI.
//
//   TOKAMAK_EMU_NCCL_TIMEOUT=s         longest time of a message, in seconds (120)
//   TOKAMAK_EMU_NCCL_FAIL=call@n       the n-th call of a collective returns ncclSystemError
//   TOKAMAK_EMU_NCCL_FAIL=async@n      from the n-th call, ncclCommGetAsyncError returns ncclRemoteError
//   TOKAMAK_EMU_NCCL_VERSION=n         the reported version (that of the header)
#include "emu_runtime.h"

#include <mpi.h>
#include <nccl.h>

#include <limits.h>
#include <memory>
#include <sched.h>
#include <set>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <vector>

namespace {

enum Kind { SEND, RECV, BROADCAST, REDUCE, ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER };
const char *const KIND_NAMES[] = {"ncclSend",      "ncclRecv",          "ncclBroadcast", "ncclReduce",
                                  "ncclAllReduce", "ncclReduceScatter", "ncclAllGather"};

struct Call {
    Kind kind;
    const char *send;
    char *recv;
    size_t count;  // the function's argument: of one rank for reduce-scatter and all-gather
    ncclDataType_t type;
    int peer;  // or root
};

// All ranks must agree on this before a unit of collectives runs.
struct Digest {
    int64_t unit, calls;
    uint64_t hash;
    int64_t kind, count, type, peer;  // of the first call that the hash covers, for the message
};

}  // namespace

struct ncclComm {
    int rank, nranks;
    MPI_Comm mpi;
    int64_t units;  // of work that has run
    ncclResult_t async_error;
    bool aborted;
    int users;  // references: the caller, and work that has not run
};

namespace {

struct Unit {
    ncclComm *comm;
    std::vector<Call> calls;
};

// State of the calling thread between ncclGroupStart and ncclGroupEnd.
thread_local int group_depth = 0;
thread_local std::vector<Call> group_calls;
thread_local ncclComm *group_comm = NULL;
thread_local cudaStream_t group_stream = NULL;
thread_local ncclResult_t group_error = ncclSuccess;

struct State {
    int64_t calls;       // of collectives, for TOKAMAK_EMU_NCCL_FAIL
    int live;            // communicators
    bool aborted, ours;  // ours: MPI was initialised here
    char last_error[256];
};
State state;

[[noreturn]] void die(const ncclComm *comm, const char *format, ...) __attribute__((format(printf, 2, 3)));
void die(const ncclComm *comm, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fflush(stdout);
    fprintf(stderr, "NCCL emulator: rank %d of %d: ", comm != NULL ? comm->rank : -1,
            comm != NULL ? comm->nranks : -1);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

void must(const ncclComm *comm, int status, const char *call) {
    if (status == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(status, text, &length);
    die(comm, "%s: %s", call, text);
}

int64_t setting(const char *name, int64_t otherwise) {
    const char *text = getenv(name);
    if (text == NULL || *text == '\0') return otherwise;
    char *end = NULL;
    long long value = strtoll(text, &end, 10);
    if (*end != '\0' || value < 1) die(NULL, "%s=%s: expected a whole number of at least 1", name, text);
    return value;
}

double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

size_t type_bytes(ncclDataType_t type) {
    switch (type) {
    case ncclInt8:
    case ncclUint8: return 1;
    case ncclFloat16:
    case ncclBfloat16: return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32: return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64: return 8;
    default: die(NULL, "ncclDataType_t %d is not emulated", (int)type);
    }
}

void describe(char *text, size_t bytes, const Call &call) {
    snprintf(text, bytes, "%s of %zu elements of type %d, %s %d", KIND_NAMES[call.kind], call.count, (int)call.type,
             call.kind <= RECV ? "peer" : "root", call.peer);
}

// ---- messages ----

struct Message {
    MPI_Request request;
    size_t bytes;
    int peer;
    const Call *call;
    bool receives;
};
struct Messages {
    ncclComm *comm;
    std::vector<Message> all;
};

int message_bytes(const ncclComm *comm, size_t bytes) {
    if (bytes > INT_MAX) die(comm, "a message of %zu bytes exceeds MPI's limit", bytes);
    return (int)bytes;
}
void start_send(Messages *messages, const Call &call, const void *from, size_t bytes, int peer, int tag) {
    Message message = {MPI_REQUEST_NULL, bytes, peer, &call, false};
    must(messages->comm,
         MPI_Isend(from, message_bytes(messages->comm, bytes), MPI_BYTE, peer, tag, messages->comm->mpi,
                   &message.request),
         "MPI_Isend");
    messages->all.push_back(message);
}
void start_recv(Messages *messages, const Call &call, void *to, size_t bytes, int peer, int tag) {
    Message message = {MPI_REQUEST_NULL, bytes, peer, &call, true};
    must(messages->comm,
         MPI_Irecv(to, message_bytes(messages->comm, bytes), MPI_BYTE, peer, tag, messages->comm->mpi,
                   &message.request),
         "MPI_Irecv");
    messages->all.push_back(message);
}

// Yields the processor: there may be more ranks than cores.
void pause_between_tests(int64_t tests) {
    if (tests < 50) sched_yield();
    else usleep(50);
}

void finish_messages(Messages *messages) {
    const ncclComm *comm = messages->comm;
    const double patience = (double)setting("TOKAMAK_EMU_NCCL_TIMEOUT", 120), began = seconds_now();
    for (Message &message : messages->all) {
        char what[160];
        MPI_Status status;
        for (int64_t tests = 0, done = 0; !done; ++tests) {
            int flag = 0, result = MPI_Test(&message.request, &flag, &status);
            describe(what, sizeof what, *message.call);
            if (result != MPI_SUCCESS)
                die(comm, "%s: rank %d sent something else than the %zu bytes expected", what, message.peer,
                    message.bytes);
            done = flag;
            if (done) break;
            if (seconds_now() - began > patience)
                die(comm, "%s has waited for rank %d for %.0f s (%s %zu bytes)", what, message.peer, patience,
                    message.receives ? "to receive" : "to send", message.bytes);
            pause_between_tests(tests);
        }
        int got = 0;
        if (message.receives) {
            must(comm, MPI_Get_count(&status, MPI_BYTE, &got), "MPI_Get_count");
            if ((size_t)got != message.bytes)
                die(comm, "%s: rank %d sent %d bytes, expected %zu", what, message.peer, got, message.bytes);
        }
    }
    messages->all.clear();
}

// ---- a unit of work ----

Digest digest_of(const Unit &unit) {
    Digest digest = {unit.comm->units, 0, 14695981039346656037u, -1, -1, -1, -1};
    for (const Call &call : unit.calls) {
        if (call.kind <= RECV) continue;
        const int64_t words[] = {call.kind, (int64_t)call.count, call.type, call.peer};
        for (int64_t word : words) digest.hash = (digest.hash ^ (uint64_t)word) * 1099511628211u;
        if (digest.calls++ == 0)
            digest.kind = words[0], digest.count = words[1], digest.type = words[2], digest.peer = words[3];
    }
    return digest;
}

// Every rank must call the same collectives. (Sends and receives are checked between the two partners.)
void check_agreement(const Unit &unit) {
    ncclComm *comm = unit.comm;
    Digest mine = digest_of(unit);
    if (mine.calls == 0) return;
    std::vector<Digest> all((size_t)comm->nranks);
    MPI_Request request;
    must(comm, MPI_Iallgather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, comm->mpi, &request),
         "MPI_Iallgather");
    const double patience = (double)setting("TOKAMAK_EMU_NCCL_TIMEOUT", 120), began = seconds_now();
    for (int64_t tests = 0, flag = 0; !flag; ++tests) {
        int done = 0;
        must(comm, MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
        flag = done;
        if (seconds_now() - began > patience)
            die(comm, "%s of %lld elements has waited for the other ranks for %.0f s", KIND_NAMES[mine.kind],
                (long long)mine.count, patience);
        if (!flag) pause_between_tests(tests);
    }
    for (int rank = 0; rank < comm->nranks; ++rank) {
        const Digest &theirs = all[(size_t)rank];
        if (theirs.hash == mine.hash && theirs.calls == mine.calls && theirs.unit == mine.unit) continue;
        die(comm,
            "the ranks call different collectives: here unit %lld, %lld calls, the first %s of %lld (type %lld, root "
            "%lld); rank %d: unit %lld, %lld calls, %s of %lld (type %lld, root %lld)",
            (long long)mine.unit, (long long)mine.calls, KIND_NAMES[mine.kind], (long long)mine.count,
            (long long)mine.type, (long long)mine.peer, rank, (long long)theirs.unit, (long long)theirs.calls,
            KIND_NAMES[theirs.kind], (long long)theirs.count, (long long)theirs.type, (long long)theirs.peer);
    }
}

template <class T>
void add_in_rank_order(char *out, const std::vector<char> &all, size_t count, int nranks) {
    const T *from = (const T *)all.data();
    T *to = (T *)out;
    for (size_t i = 0; i < count; ++i) {
        T sum = from[i];
        for (int rank = 1; rank < nranks; ++rank) sum = (T)(sum + from[(size_t)rank * count + i]);
        to[i] = sum;
    }
}
void add_contributions(const ncclComm *comm, char *out, const std::vector<char> &all, size_t count,
                       ncclDataType_t type) {
    switch (type) {
    case ncclFloat32: add_in_rank_order<float>(out, all, count, comm->nranks); break;
    case ncclFloat64: add_in_rank_order<double>(out, all, count, comm->nranks); break;
    case ncclInt32: add_in_rank_order<int32_t>(out, all, count, comm->nranks); break;
    default: die(comm, "sums of ncclDataType_t %d are not emulated", (int)type);
    }
}

// Starts the messages of one call; `all` receives the contributions to a sum computed by this rank.
void start_call(Messages *messages, const Call &call, std::vector<char> *all, int tag) {
    ncclComm *comm = messages->comm;
    const int rank = comm->rank, nranks = comm->nranks;
    const size_t bytes = call.count * type_bytes(call.type);
    const bool sums =
        call.kind == ALL_REDUCE || call.kind == REDUCE_SCATTER || (call.kind == REDUCE && call.peer == rank);
    if (sums) all->resize(bytes * (size_t)nranks);
    if (call.kind == SEND) start_send(messages, call, call.send, bytes, call.peer, 0);
    if (call.kind == RECV) start_recv(messages, call, call.recv, bytes, call.peer, 0);
    if (call.kind <= RECV) return;
    for (int peer = 0; peer < nranks; ++peer) {
        const char *part = call.kind == REDUCE_SCATTER ? call.send + (size_t)peer * bytes : call.send;
        bool sends = call.kind == REDUCE ? peer == call.peer : call.kind == BROADCAST ? rank == call.peer : true;
        bool receives = call.kind == BROADCAST ? peer == call.peer : sums || call.kind == ALL_GATHER;
        char *to = sums                      ? all->data() + (size_t)peer * bytes
                   : call.kind == ALL_GATHER ? call.recv + (size_t)peer * bytes
                                             : call.recv;
        if (peer != rank && sends) start_send(messages, call, part, bytes, peer, tag);
        if (peer != rank && receives) start_recv(messages, call, to, bytes, peer, tag);
        if (peer == rank && (sums || call.kind == ALL_GATHER || (call.kind == BROADCAST && rank == call.peer)) &&
            to != part)
            memmove(to, part, bytes);
    }
}

void run_unit(Unit *unit) {
    ncclComm *comm = unit->comm;
    comm->units++;
    if (comm->nranks > 1) check_agreement(*unit);
    Messages messages = {comm, {}};
    std::vector<std::vector<char>> sums(unit->calls.size());
    for (size_t i = 0; i < unit->calls.size(); ++i)
        start_call(&messages, unit->calls[i], &sums[i], 1 + (int)(i % 30000));
    finish_messages(&messages);
    for (size_t i = 0; i < unit->calls.size(); ++i)
        if (!sums[i].empty())
            add_contributions(comm, unit->calls[i].recv, sums[i], unit->calls[i].count, unit->calls[i].type);
}

void release(ncclComm *comm) {
    if (--comm->users == 0) delete comm;
}
// Pending work. After a failure of the device it never runs and stays here.
std::set<Unit *> &waiting_units(void) {
    static std::set<Unit *> *const units = new std::set<Unit *>();
    return *units;
}
// Remaining work of an aborted communicator is dropped.
void CUDART_CB run_and_free(void *unit) {
    std::unique_ptr<Unit> owned((Unit *)unit);
    waiting_units().erase(owned.get());
    if (!owned->comm->aborted) run_unit(owned.get());
    release(owned->comm);
}

// ---- calls ----

ncclResult_t enqueue_unit(void) {
    ncclResult_t error = group_error;
    group_error = ncclSuccess;
    if (error != ncclSuccess) group_calls.clear();
    if (group_calls.empty()) return error;
    Unit *unit = new Unit{group_comm, std::move(group_calls)};
    group_calls.clear();
    group_comm = NULL;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(group_stream, &capture) == cudaSuccess && capture != cudaStreamCaptureStatusNone)
        die(unit->comm, "collectives in captured graphs are not emulated");
    ncclComm *comm = unit->comm;
    comm->users++;
    waiting_units().insert(unit);
    cudaError_t status = cudaLaunchHostFunc(group_stream, run_and_free, unit);
    if (status == cudaSuccess) return ncclSuccess;
    waiting_units().erase(unit);
    delete unit;
    release(comm);
    snprintf(state.last_error, sizeof state.last_error, "the device does not accept work: error %d", (int)status);
    return ncclUnhandledCudaError;
}

bool overlap(const char *a, size_t a_bytes, const char *b, size_t b_bytes) {
    return a < b + b_bytes && b < a + a_bytes;
}

void check_buffers(const ncclComm *comm, const Call &call) {
    const size_t bytes = call.count * type_bytes(call.type), all = bytes * (size_t)comm->nranks;
    const bool root = call.kind > REDUCE || call.peer == comm->rank;
    const size_t send_bytes = call.kind == REDUCE_SCATTER ? all : bytes;
    const size_t recv_bytes = call.kind == ALL_GATHER ? all : bytes;
    const bool reads = call.kind != RECV && (call.kind != BROADCAST || root);
    const bool writes = call.kind != SEND && (call.kind != REDUCE || root);
    const size_t part = (size_t)comm->rank * bytes;
    const char *in_place =
        call.kind == ALL_GATHER ? call.recv + part : call.recv - (call.kind == REDUCE_SCATTER ? part : 0);
    if (call.peer < 0 || call.peer >= comm->nranks) die(comm, "%s: rank %d", KIND_NAMES[call.kind], call.peer);
    if (call.kind <= RECV && call.peer == comm->rank) die(comm, "%s to itself", KIND_NAMES[call.kind]);
    if (bytes == 0) return;
    if ((reads && !emu_is_device_memory(call.send, send_bytes)) ||
        (writes && !emu_is_device_memory(call.recv, recv_bytes)))
        die(comm, "%s: a buffer is not in device memory, or leaves its block", KIND_NAMES[call.kind]);
    if (reads && writes && call.send != in_place && overlap(call.send, send_bytes, call.recv, recv_bytes))
        die(comm, "%s: the buffers overlap and are not in place", KIND_NAMES[call.kind]);
}

// Whether TOKAMAK_EMU_NCCL_FAIL requests `how` at this call.
bool fails_now(const char *how) {
    const char *text = getenv("TOKAMAK_EMU_NCCL_FAIL");
    const char *at = text != NULL ? strchr(text, '@') : NULL;
    return at != NULL && strncmp(text, how, (size_t)(at - text)) == 0 && strtoll(at + 1, NULL, 10) == state.calls;
}

ncclResult_t add_call(ncclComm *comm, cudaStream_t stream, const Call &call) {
    if (comm == NULL) return ncclInvalidArgument;
    state.calls++;
    if (fails_now("call")) {
        snprintf(state.last_error, sizeof state.last_error, "requested by TOKAMAK_EMU_NCCL_FAIL");
        return group_error = ncclSystemError;
    }
    if (fails_now("async")) comm->async_error = ncclRemoteError;
    check_buffers(comm, call);
    if (group_comm != NULL && (group_comm != comm || group_stream != stream))
        die(comm, "a group with two communicators or streams is not emulated");
    group_comm = comm;
    group_stream = stream;
    group_calls.push_back(call);
    return group_depth > 0 ? ncclSuccess : enqueue_unit();
}

void only_sums(const ncclComm *comm, ncclRedOp_t op) {
    if (op != ncclSum) die(comm, "ncclRedOp_t %d is not emulated", (int)op);
}

// ---- MPI ----

// mpirun treats an exit without MPI_Finalize as a failure; open groups must lead to that.
void finalize(void) {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (state.ours && !finalized && state.live == 0 && !state.aborted) MPI_Finalize();
}

void open_mpi(ncclComm *comm, const ncclUniqueId &id) {
    int initialized = 0, provided = MPI_THREAD_SINGLE, world = 0, rank = 0;
    must(comm, MPI_Initialized(&initialized), "MPI_Initialized");
    if (!initialized) {
        must(comm, MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
        state.ours = true;
        atexit(finalize);
    }
    must(comm, MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    must(comm, MPI_Comm_size(MPI_COMM_WORLD, &world), "MPI_Comm_size");
    if (world != comm->nranks)
        die(comm, "MPI started %d processes: emulated ranks use MPI, start all of them by one mpirun", world);
    must(comm, MPI_Comm_split(MPI_COMM_WORLD, 0, comm->rank, &comm->mpi), "MPI_Comm_split");
    must(comm, MPI_Comm_rank(comm->mpi, &rank), "MPI_Comm_rank");
    if (rank != comm->rank) die(comm, "two processes have the same rank, or a rank is missing");
    ncclUniqueId first = id;
    must(comm, MPI_Bcast(&first, sizeof first, MPI_BYTE, 0, comm->mpi), "MPI_Bcast");
    if (memcmp(&first, &id, sizeof id) != 0) die(comm, "this rank's id is not rank 0's");
}

}  // namespace

// ---- nccl.h ----

ncclResult_t ncclGetVersion(int *version) {
    *version = (int)setting("TOKAMAK_EMU_NCCL_VERSION", NCCL_VERSION_CODE);
    return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "emulated, of process %d at %.9f", (int)getpid(), seconds_now());
    return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t *out, int nranks, ncclUniqueId id, int rank) {
    if (out == NULL || nranks < 1 || rank < 0 || rank >= nranks) return ncclInvalidArgument;
    ncclComm *comm = new ncclComm{rank, nranks, MPI_COMM_NULL, 0, ncclSuccess, false, 1};
    if (nranks > 1) open_mpi(comm, id);
    state.live++;
    *out = comm;
    return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    if (comm == NULL) return ncclInvalidArgument;
    if (comm->mpi != MPI_COMM_NULL) must(comm, MPI_Comm_free(&comm->mpi), "MPI_Comm_free");
    state.live--;
    release(comm);
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
    if (comm == NULL) return ncclInvalidArgument;
    state.aborted = comm->aborted = true;
    release(comm);
    return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *result) {
    if (comm == NULL) return ncclInvalidArgument;
    *result = comm->async_error;
    return ncclSuccess;
}
const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const TEXTS[ncclNumResults] = {"no error",
                                                      "unhandled cuda error",
                                                      "unhandled system error",
                                                      "internal error",
                                                      "invalid argument",
                                                      "invalid usage",
                                                      "remote process exited or there was a network error",
                                                      "in progress"};
    return (int)result >= 0 && result < ncclNumResults ? TEXTS[result] : "unknown result code";
}
const char *ncclGetLastError(ncclComm_t) { return state.last_error; }

ncclResult_t ncclGroupStart() {
    group_depth++;
    return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
    if (group_depth == 0) return ncclInvalidUsage;
    return --group_depth > 0 ? ncclSuccess : enqueue_unit();
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return add_call(comm, stream, {SEND, (const char *)send, NULL, count, type, peer});
}
ncclResult_t ncclRecv(void *recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
    return add_call(comm, stream, {RECV, NULL, (char *)recv, count, type, peer});
}
ncclResult_t ncclBroadcast(const void *send, void *recv, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
    return add_call(comm, stream, {BROADCAST, (const char *)send, (char *)recv, count, type, root});
}
ncclResult_t ncclReduce(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t comm, cudaStream_t stream) {
    only_sums(comm, op);
    return add_call(comm, stream, {REDUCE, (const char *)send, (char *)recv, count, type, root});
}
ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
    only_sums(comm, op);
    return add_call(comm, stream, {ALL_REDUCE, (const char *)send, (char *)recv, count, type, 0});
}
ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
    only_sums(comm, op);
    return add_call(comm, stream, {REDUCE_SCATTER, (const char *)send, (char *)recv, count, type, 0});
}
ncclResult_t ncclAllGather(const void *send, void *recv, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
    return add_call(comm, stream, {ALL_GATHER, (const char *)send, (char *)recv, count, type, 0});
}
