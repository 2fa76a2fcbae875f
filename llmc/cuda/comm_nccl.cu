// comm_nccl.cu: a group of ranks over NCCL, behind comm.h: collectives on a separate stream, beside the computation.
// Opened by Backend.comm_open. Must not know models or what the segments mean.
//
// An operation waits on the device for the computation issued before it, and the computation waits on the device for
// the operation where wait is called: the host waits for neither. Sums are NCCL's own (ncclReduceScatter, ncclReduce,
// ncclAllReduce: the same bits in every run of the same ranks on the same machines) or, for CommSum.tree and wire
// bf16, contributions are sent by ncclSend and ncclRecv and added here (comm_sum.cu).
//
// A failure of NCCL becomes the backend's failure, which wait and synchronize return.
//
// More than 600 lines: every operation shares the group's fields and its begin, end and wait, which stay private here.
#include "llmc/cuda/comm_nccl.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "llmc/ranks/comm_host.h"

#if NCCL_BUILT

// Most operations in flight; issuing one more waits for the oldest.
#define COMM_OPERATIONS 128
#define BEGUN 0
#define DONE 1

typedef struct {
    int64_t sequence;
    char what[sizeof(((ControlStatus *)0)->what)];
    cudaEvent_t ready;                   // on the compute stream: the operation's inputs are complete
    cudaEvent_t begin, end;              // on the group's stream
    cudaEvent_t stall_begin, stall_end;  // on the compute stream, around the first wait for it
    bool waited_for, busy_counted, stall_counted;
} CommOperation;

typedef struct {
    NcclApi api;
    ncclComm_t nccl;
    cudaStream_t stream;
    // [BEGUN], [DONE]: numbers of the latest operations, written by the device into host memory, so that status needs
    // neither CUDA nor its locks, which a thread waiting for the device may hold.
    volatile int64_t *reached;
    unsigned char *scratch;
    size_t scratch_bytes;
    void *token;                          // device memory for barriers
    CommSegment *even;                    // [world], of all_reduce
    CommOperation ring[COMM_OPERATIONS];  // operation s is ring[s % COMM_OPERATIONS]
    int64_t issued;
    CommStats stats;
    pthread_mutex_t mutex;  // protects the fields read by status: issued, seen, the ring's `sequence` and `what`
    int64_t seen;           // the operation in progress at the last status call, and since when
    double seen_seconds;
} NcclGroup;

static NcclGroup *group_of(const Comm *comm) { return (NcclGroup *)comm->impl; }
static CommOperation *operation_of(NcclGroup *group, int64_t sequence) {
    return &group->ring[sequence % COMM_OPERATIONS];
}

// ---- failures ----

// Keeps NCCL's message as the backend's failure.
static bool nccl_ok(Comm *comm, ncclResult_t result, const char *call) {
    if (result == ncclSuccess) return true;
    NcclGroup *group = group_of(comm);
    char what[256], text[512];
    const char *last = group->api.last_error(group->nccl);
    if (last == NULL || last[0] == '\0') last = "NCCL_DEBUG=WARN shows more";
    snprintf(what, sizeof what, "%s on rank %d of %d", call, comm->rank, comm->world);
    if (group->issued > 0)
        snprintf(what, sizeof what, "%s for \"%s\" #%lld on rank %d of %d", call,
                 operation_of(group, group->issued)->what, (long long)group->issued, comm->rank, comm->world);
    snprintf(text, sizeof text, "%s (%s)", group->api.error_string(result), last);
    return cuda_fail(comm->be, what, text);
}
// Whether nothing has failed: no error here and no asynchronous error of NCCL.
static bool is_alive(Comm *comm) {
    if (cuda_failed(comm->be)) return false;
    ncclResult_t later = ncclSuccess;
    NcclGroup *group = group_of(comm);
    return nccl_ok(comm, group->api.async_error(group->nccl, &later), "ncclCommGetAsyncError") &&
           (later == ncclInProgress || nccl_ok(comm, later, "a collective"));
}

// ---- operations: begin, end and wait ----

// Adds a passed operation's times to the statistics.
static void count_operation(Comm *comm, CommOperation *operation) {
    CommStats *stats = &group_of(comm)->stats;
    float ms = 0;
    if (!operation->busy_counted &&
        cuda_ok(comm->be, cudaEventElapsedTime(&ms, operation->begin, operation->end), "cudaEventElapsedTime")) {
        stats->busy_seconds += 1e-3 * (double)ms;
        operation->busy_counted = true;
    }
    if (!operation->waited_for || operation->stall_counted) return;
    cudaError_t status = cudaEventElapsedTime(&ms, operation->stall_begin, operation->stall_end);
    if (status == cudaErrorNotReady) return;  // the computation has not reached the wait
    if (!cuda_ok(comm->be, status, "cudaEventElapsedTime")) return;
    stats->exposed_seconds += 1e-3 * (double)ms;
    operation->stall_counted = true;
}

// Makes room for operation `sequence`: waits for the earlier one in its place and for the one after that, so that
// status finds the name of the latest operation that began.
static void make_room(Comm *comm, int64_t sequence) {
    NcclGroup *group = group_of(comm);
    if (sequence > COMM_OPERATIONS - 1)
        cuda_ok(comm->be, cudaEventSynchronize(operation_of(group, sequence + 1)->end), "a collective");
    CommOperation *place = operation_of(group, sequence);
    if (place->sequence == 0 || cuda_failed(comm->be)) return;
    if (place->waited_for) cuda_ok(comm->be, cudaEventSynchronize(place->stall_end), "the computation");
    if (!cuda_failed(comm->be)) count_operation(comm, place);
}

// Returns false after a failure: nothing is issued any more.
static bool operation_begin(Comm *comm, const char *what) {
    NcclGroup *group = group_of(comm);
    CHECK(!sequence_is_capturing(comm->be), "collective \"%s\" inside a captured sequence", what);
    if (!is_alive(comm)) return false;
    int64_t sequence = group->issued + 1;
    make_room(comm, sequence);
    if (cuda_failed(comm->be)) return false;
    CommOperation *operation = operation_of(group, sequence);
    pthread_mutex_lock(&group->mutex);
    operation->sequence = group->issued = sequence;
    snprintf(operation->what, sizeof operation->what, "%s", what);
    pthread_mutex_unlock(&group->mutex);
    operation->waited_for = operation->busy_counted = operation->stall_counted = false;
    return cuda_ok(comm->be, cudaEventRecord(operation->ready, cuda_stream(comm->be)), "cudaEventRecord") &&
           cuda_ok(comm->be, cudaStreamWaitEvent(group->stream, operation->ready, 0), "cudaStreamWaitEvent") &&
           cuda_ok(comm->be, comm_mark(&group->reached[BEGUN], sequence, group->stream), "comm_mark_kernel") &&
           cuda_ok(comm->be, cudaEventRecord(operation->begin, group->stream), "cudaEventRecord");
}
// bytes: sent by this rank.
static CommEvent operation_end(Comm *comm, int64_t bytes) {
    NcclGroup *group = group_of(comm);
    if (cuda_failed(comm->be)) return 0;
    CommOperation *operation = operation_of(group, group->issued);
    group->stats.operations += 1;
    group->stats.bytes += bytes;
    bool ok = cuda_ok(comm->be, cudaEventRecord(operation->end, group->stream), "cudaEventRecord") &&
              cuda_ok(comm->be, comm_mark(&group->reached[DONE], group->issued, group->stream), "comm_mark_kernel");
    return ok ? group->issued : 0;
}

static void nccl_wait(Comm *comm, CommEvent event) {
    NcclGroup *group = group_of(comm);
    CHECK(event >= 0 && event <= group->issued, "event %lld of %lld", (long long)event, (long long)group->issued);
    CHECK(!sequence_is_capturing(comm->be), "waiting for a collective inside a captured sequence");
    // Its place was reused after operation_begin had waited for it.
    if (event == 0 || event <= group->issued - COMM_OPERATIONS || !is_alive(comm)) return;
    CommOperation *operation = operation_of(group, event);
    cudaStream_t compute = cuda_stream(comm->be);
    bool first = !operation->waited_for;
    if (first) cuda_ok(comm->be, cudaEventRecord(operation->stall_begin, compute), "cudaEventRecord");
    cuda_ok(comm->be, cudaStreamWaitEvent(compute, operation->end, 0), "cudaStreamWaitEvent");
    if (first) cuda_ok(comm->be, cudaEventRecord(operation->stall_end, compute), "cudaEventRecord");
    operation->waited_for = true;
}

// Polls, so that a failure of NCCL, whose kernels then never end, ends the wait.
static bool nccl_synchronize(Comm *comm, Error *err) {
    NcclGroup *group = group_of(comm);
    const struct timespec pause = {0, 20000};
    while (is_alive(comm)) {
        cudaError_t status = cudaStreamQuery(group->stream);
        if (status == cudaErrorNotReady) {
            nanosleep(&pause, NULL);
            continue;
        }
        cuda_ok(comm->be, status, "a collective");
        break;
    }
    if (!cuda_failed(comm->be)) return true;
    return error_set(err, "%s", cuda_state(comm->be)->failure.message);
}

static void nccl_stats(Comm *comm, CommStats *out) {
    NcclGroup *group = group_of(comm);
    // The mark that an operation is done follows its end event.
    int64_t done = group->reached[DONE], oldest = max_i64(1, group->issued - COMM_OPERATIONS + 1);
    for (int64_t s = oldest; s <= done && !cuda_failed(comm->be); ++s) count_operation(comm, operation_of(group, s));
    *out = group->stats;
    // The cost of a wait for nothing counts too, but the hidden time is never negative.
    if (out->exposed_seconds > out->busy_seconds) out->exposed_seconds = out->busy_seconds;
}

static void nccl_status(Comm *comm, ControlStatus *out) {
    NcclGroup *group = group_of(comm);
    memset(out, 0, sizeof *out);
    out->waiting_seconds = -1;
    pthread_mutex_lock(&group->mutex);
    // Read DONE first: an operation that begins in between is then reported as in progress.
    int64_t done = group->reached[DONE], begun = group->reached[BEGUN];
    if (begun > 0) {
        const CommOperation *operation = operation_of(group, begun);
        out->sequence = begun;
        memcpy(out->what, operation->what, sizeof out->what);
        if (group->seen != begun) {
            group->seen = begun;
            group->seen_seconds = now_seconds();
        }
        if (done < begun) out->waiting_seconds = now_seconds() - group->seen_seconds;
    }
    pthread_mutex_unlock(&group->mutex);
}

// ---- segments ----

// Adjacent segments of one owner are sent as one. Returns the next run of segments at *at, false after the last.
static bool next_run(const CommSegment *segments, int count, int *at, CommSegment *run) {
    if (*at >= count) return false;
    *run = segments[(*at)++];
    for (; *at < count && segments[*at].owner == run->owner && segments[*at].first == run->first + run->count; ++*at)
        run->count += segments[*at].count;
    return true;
}

// The layout that NCCL's own collectives support: one run per rank, in the order of the ranks, without gaps, of
// `chunk` elements each, starting at `first`; the last rank may have `rest` elements more.
typedef struct {
    int64_t first, chunk, rest;
} EvenSplit;
static bool is_even_split(const CommSegment *segments, int count, int world, EvenSplit *out) {
    CommSegment run;
    int at = 0, owner = 0;
    int64_t end = 0;
    while (next_run(segments, count, &at, &run)) {
        if (owner == 0) *out = {run.first, run.count, 0};
        bool fits = run.owner == owner && (owner == 0 || run.first == end) &&
                    (run.count == out->chunk || (owner == world - 1 && run.count > out->chunk));
        if (!fits) return false;
        out->rest = run.count - out->chunk;
        end = run.first + run.count;
        ++owner;
    }
    return owner == world;
}

// The division of all_reduce among the ranks: as ncclAllGather requires, with a longer last segment; for few
// elements, balanced.
static int even_segments(CommSegment *out, int world, int64_t elems) {
    if (elems < 256 * world) return comm_segments_even(out, world, elems);
    int64_t chunk = elems / world / COMM_STRIDE_MULTIPLE * COMM_STRIDE_MULTIPLE;
    for (int r = 0; r < world; ++r) out[r] = {r, r * chunk, r < world - 1 ? chunk : elems - r * chunk};
    return world;
}

static ncclDataType_t nccl_type(DType dtype) {
    switch (dtype) {
    case DTYPE_F32: return ncclFloat32;
    case DTYPE_BF16: return ncclBfloat16;
    case DTYPE_I32: return ncclInt32;
    case DTYPE_U8: return ncclUint8;
    case DTYPE_F64: return ncclFloat64;
    default: CHECK(false, "dtype %d", (int)dtype);
    }
}
static unsigned char *element(void *data, DType dtype, int64_t index) {
    return (unsigned char *)data + to_size(index) * dtype_bytes(dtype);
}

// ---- sums by NCCL ----

// packed: this rank's segments, contiguous; NULL: sums are written to the segments themselves.
static void library_reduce_scatter(Comm *comm, float *packed, float *in, const CommSegment *segments, int count) {
    NcclGroup *group = group_of(comm);
    const NcclApi *nccl = &group->api;
    EvenSplit split;
    nccl_ok(comm, nccl->group_start(), "ncclGroupStart");
    if (is_even_split(segments, count, comm->world, &split)) {
        float *from = in + split.first, *tail = from + comm->world * split.chunk;
        float *to = packed != NULL ? packed : from + comm->rank * split.chunk;
        nccl_ok(
            comm,
            nccl->reduce_scatter(from, to, to_size(split.chunk), ncclFloat32, ncclSum, group->nccl, group->stream),
            "ncclReduceScatter");
        // Only the root's destination is written.
        float *tail_to = packed != NULL && comm->rank == comm->world - 1 ? packed + split.chunk : tail;
        if (split.rest > 0)
            nccl_ok(comm,
                    nccl->reduce(tail, tail_to, to_size(split.rest), ncclFloat32, ncclSum, comm->world - 1,
                                 group->nccl, group->stream),
                    "ncclReduce");
    } else {
        CommSegment run;
        for (int at = 0; next_run(segments, count, &at, &run);) {
            bool own = run.owner == comm->rank;
            float *from = in + run.first, *to = own && packed != NULL ? packed : from;
            nccl_ok(comm,
                    nccl->reduce(from, to, to_size(run.count), ncclFloat32, ncclSum, run.owner, group->nccl,
                                 group->stream),
                    "ncclReduce");
            if (own && packed != NULL) packed += run.count;
        }
    }
    nccl_ok(comm, nccl->group_end(), "ncclGroupEnd");
}

static void library_all_gather(Comm *comm, Tensor x, const CommSegment *segments, int count) {
    NcclGroup *group = group_of(comm);
    const NcclApi *nccl = &group->api;
    ncclDataType_t type = nccl_type(x.dtype);
    EvenSplit split;
    nccl_ok(comm, nccl->group_start(), "ncclGroupStart");
    if (is_even_split(segments, count, comm->world, &split)) {
        nccl_ok(comm,
                nccl->all_gather(element(x.data, x.dtype, split.first + comm->rank * split.chunk),
                                 element(x.data, x.dtype, split.first), to_size(split.chunk), type, group->nccl,
                                 group->stream),
                "ncclAllGather");
        void *tail = element(x.data, x.dtype, split.first + comm->world * split.chunk);
        if (split.rest > 0)
            nccl_ok(
                comm,
                nccl->broadcast(tail, tail, to_size(split.rest), type, comm->world - 1, group->nccl, group->stream),
                "ncclBroadcast");
    } else {
        CommSegment run;
        for (int at = 0; next_run(segments, count, &at, &run);) {
            void *place = element(x.data, x.dtype, run.first);
            nccl_ok(comm,
                    nccl->broadcast(place, place, to_size(run.count), type, run.owner, group->nccl, group->stream),
                    "ncclBroadcast");
        }
    }
    nccl_ok(comm, nccl->group_end(), "ncclGroupEnd");
}

// ---- sums by exchange: every rank sends every other rank its contribution to the segments of that rank ----

// Divides the scratch block: data to send (only if rounded first), then the contributions of the other ranks.
static unsigned char *exchange_scratch(const Comm *comm, const char *what, CommContributions *from, int64_t elems,
                                       int64_t own) {
    NcclGroup *group = group_of(comm);
    size_t sent = from->dtype == DTYPE_BF16 ? to_size(round_up(elems * 2, 256)) : 0;
    from->stride = round_up(own, COMM_STRIDE_MULTIPLE);
    size_t need = sent + to_size((comm->world - 1) * from->stride) * dtype_bytes(from->dtype);
    CHECK(need <= group->scratch_bytes, "\"%s\" needs %zu bytes of scratch, the group was given %zu", what, need,
          group->scratch_bytes);
    from->received = group->scratch + sent;
    return group->scratch;
}

// Sends and receives; from->own points to this rank's contribution to the whole buffer.
static void exchange(Comm *comm, CommContributions *from, void *send, const CommSegment *segments, int count) {
    NcclGroup *group = group_of(comm);
    const NcclApi *nccl = &group->api;
    ncclDataType_t type = nccl_type(from->dtype);
    CommSegment run;
    int64_t packed = 0;
    from->own = send;
    if (comm->world == 1) return;
    nccl_ok(comm, nccl->group_start(), "ncclGroupStart");
    for (int at = 0; next_run(segments, count, &at, &run);) {
        if (run.owner != comm->rank) {
            nccl_ok(comm,
                    nccl->send(element(send, from->dtype, run.first), to_size(run.count), type, run.owner,
                               group->nccl, group->stream),
                    "ncclSend");
            continue;
        }
        for (int peer = 0; peer < comm->world; ++peer) {
            int64_t slot = peer - (peer > comm->rank);
            if (peer == comm->rank) continue;
            nccl_ok(comm,
                    nccl->recv(element((void *)from->received, from->dtype, slot * from->stride + packed),
                               to_size(run.count), type, peer, group->nccl, group->stream),
                    "ncclRecv");
        }
        packed += run.count;
    }
    nccl_ok(comm, nccl->group_end(), "ncclGroupEnd");
}

// packed as in library_reduce_scatter; fp32 or fp64, as the sums. Returns the bytes sent by this rank.
static int64_t exchange_reduce_scatter(Comm *comm, const char *what, void *packed, Tensor in,
                                       const CommSegment *segments, int count, int64_t own, CommSum how) {
    NcclGroup *group = group_of(comm);
    CommContributions from = {NULL, NULL, 0, comm->rank, comm->world, in.dtype};
    if (how.wire == DTYPE_BF16) from.dtype = DTYPE_BF16;
    void *send = in.data;
    unsigned char *scratch = exchange_scratch(comm, what, &from, tensor_elems(in), own);
    if (from.dtype == DTYPE_BF16) {
        send = scratch;
        cuda_ok(comm->be, comm_round((bf16 *)send, (const float *)in.data, tensor_elems(in), group->stream),
                "comm_round_kernel");
    }
    exchange(comm, &from, send, segments, count);
    CommSegment run;
    int64_t done = 0, others = 0;
    for (int at = 0; next_run(segments, count, &at, &run);) {
        if (run.owner != comm->rank) {
            others += run.count;
            continue;
        }
        CommContributions here = from;
        here.own = element((void *)from.own, from.dtype, run.first);
        here.received = element((void *)from.received, from.dtype, done);
        void *out = packed != NULL ? element(packed, in.dtype, done) : element(in.data, in.dtype, run.first);
        if (!cuda_failed(comm->be))
            cuda_ok(comm->be, comm_sum(out, here, run.count, how.accumulate, group->stream), "comm_sum_kernel");
        done += run.count;
    }
    return others * (int64_t)dtype_bytes(from.dtype);
}

// ---- comm.h ----

static void check_sum(Tensor x, CommSum how) {
    CHECK(how.wire == DTYPE_F32 || (how.wire == DTYPE_BF16 && x.dtype == DTYPE_F32), "%s is sent as %s",
          dtype_name(x.dtype), dtype_name(how.wire));
}

static CommEvent nccl_reduce_scatter(Comm *comm, const char *what, Tensor out, Tensor in, const CommSegment *segments,
                                     int count, CommSum how) {
    NcclGroup *group = group_of(comm);
    int64_t own = comm_segments_check(segments, count, comm->world, tensor_elems(in), comm->rank);
    bool in_place = out.data == in.data;
    CHECK(in.dtype == DTYPE_F32 && out.dtype == DTYPE_F32 &&
              tensor_elems(out) == (in_place ? tensor_elems(in) : own) && !(in_place && how.accumulate),
          "\"%s\": out %s %lld, in %s %lld, own %lld, in place %d, accumulate %d", what, dtype_name(out.dtype),
          (long long)tensor_elems(out), dtype_name(in.dtype), (long long)tensor_elems(in), (long long)own, in_place,
          how.accumulate);
    check_sum(in, how);
    if (!operation_begin(comm, what)) return 0;
    void *packed = in_place ? NULL : out.data;
    // A single rank that adds needs no NCCL call.
    if (how.tree || how.wire == DTYPE_BF16 || (how.accumulate && comm->world == 1))
        return operation_end(comm, exchange_reduce_scatter(comm, what, packed, in, segments, count, own, how));
    if (how.accumulate) {
        size_t need = to_size(own) * sizeof(float);
        CHECK(need <= group->scratch_bytes, "\"%s\" needs %zu bytes of scratch, the group was given %zu", what, need,
              group->scratch_bytes);
        packed = group->scratch;
    }
    library_reduce_scatter(comm, (float *)packed, (float *)in.data, segments, count);
    if (how.accumulate && !cuda_failed(comm->be)) {
        CommContributions sums = {group->scratch, group->scratch, 0, 0, 1, DTYPE_F32};
        cuda_ok(comm->be, comm_sum(out.data, sums, own, true, group->stream), "comm_sum_kernel");
    }
    int64_t covered = 0;
    for (int i = 0; i < count; ++i) covered += segments[i].count;
    return operation_end(comm, (covered - own) * (int64_t)sizeof(float));
}

static CommEvent nccl_all_gather(Comm *comm, const char *what, Tensor x, const CommSegment *segments, int count) {
    int64_t own = comm_segments_check(segments, count, comm->world, tensor_elems(x), comm->rank);
    if (!operation_begin(comm, what)) return 0;
    library_all_gather(comm, x, segments, count);
    return operation_end(comm, own * (comm->world - 1) * (int64_t)dtype_bytes(x.dtype));
}

static CommEvent nccl_all_reduce(Comm *comm, const char *what, Tensor x, CommSum how) {
    NcclGroup *group = group_of(comm);
    int64_t elems = tensor_elems(x);
    CHECK((x.dtype == DTYPE_F32 || x.dtype == DTYPE_F64) && !how.accumulate, "\"%s\": %s, accumulate %d", what,
          dtype_name(x.dtype), how.accumulate);
    check_sum(x, how);
    if (!operation_begin(comm, what)) return 0;
    if (!how.tree && how.wire == DTYPE_F32) {
        nccl_ok(comm,
                group->api.all_reduce(x.data, x.data, to_size(elems), nccl_type(x.dtype), ncclSum, group->nccl,
                                      group->stream),
                "ncclAllReduce");
        return operation_end(comm, 2 * (elems - elems / comm->world) * (int64_t)dtype_bytes(x.dtype));
    }
    int count = even_segments(group->even, comm->world, elems);
    int64_t own = comm_segments_check(group->even, count, comm->world, elems, comm->rank);
    int64_t bytes = exchange_reduce_scatter(comm, what, NULL, x, group->even, count, own, how);
    if (!cuda_failed(comm->be)) library_all_gather(comm, x, group->even, count);
    return operation_end(comm, bytes + own * (comm->world - 1) * (int64_t)dtype_bytes(x.dtype));
}

static CommEvent nccl_broadcast(Comm *comm, const char *what, Tensor x, int root) {
    NcclGroup *group = group_of(comm);
    CHECK(root >= 0 && root < comm->world, "\"%s\": root %d of %d", what, root, comm->world);
    if (!operation_begin(comm, what)) return 0;
    nccl_ok(comm,
            group->api.broadcast(x.data, x.data, to_size(tensor_elems(x)), nccl_type(x.dtype), root, group->nccl,
                                 group->stream),
            "ncclBroadcast");
    return operation_end(comm, root == comm->rank && comm->world > 1 ? (int64_t)tensor_bytes(x) : 0);
}

static CommEvent nccl_barrier(Comm *comm, const char *what) {
    NcclGroup *group = group_of(comm);
    if (!operation_begin(comm, what)) return 0;
    nccl_ok(comm,
            group->api.all_reduce(group->token, group->token, 1, ncclInt32, ncclSum, group->nccl, group->stream),
            "ncclAllReduce");
    return operation_end(comm, 0);
}

// ---- opening and closing ----

static void nccl_close(Comm *comm) {
    NcclGroup *group = group_of(comm);
    Backend *be = comm->be;
    if (group->stream != NULL) nccl_synchronize(comm, NULL);
    // After a failure the other ranks may never join: nothing may wait for them.
    if (group->nccl != NULL && cuda_failed(be)) group->api.abort(group->nccl);
    else if (group->nccl != NULL) nccl_ok(comm, group->api.destroy(group->nccl), "ncclCommDestroy");
    for (int i = 0; i < COMM_OPERATIONS; ++i) {
        CommOperation *o = &group->ring[i];
        for (cudaEvent_t event : {o->ready, o->begin, o->end, o->stall_begin, o->stall_end})
            if (event != NULL) cudaEventDestroy(event);
    }
    if (group->stream != NULL) cudaStreamDestroy(group->stream);
    if (group->reached != NULL) cudaFreeHost((void *)group->reached);
    if (group->token != NULL) be->free(be, group->token, sizeof(int32_t));
    pthread_mutex_destroy(&group->mutex);
    free(group->even);
    free(group);
    free(comm);
}

// Sent by rank 0 to the others: NCCL's id, or why there is none.
typedef struct {
    ncclUniqueId id;
    int version;
    char failure[512];
} Invitation;

// If rank 0 alone fails, the others must not wait in NCCL.
static bool agree_on_id(Comm *comm, Control *control, ncclUniqueId *id, Error *err) {
    const NcclApi *nccl = &group_of(comm)->api;
    Invitation invitation;
    memset(&invitation, 0, sizeof invitation);
    if (comm->rank == 0) {
        invitation.version = nccl->version;
        ncclResult_t result = nccl->get_unique_id(&invitation.id);
        if (result != ncclSuccess)
            snprintf(invitation.failure, sizeof invitation.failure, "ncclGetUniqueId: %s (%s)",
                     nccl->error_string(result), nccl->last_error(NULL));
    }
    if (comm->world > 1 && !control_broadcast(control, "NCCL's id", &invitation, sizeof invitation))
        return error_set(err, "the run is ending");
    if (invitation.failure[0] != '\0') return error_set(err, "NCCL cannot start on rank 0: %s", invitation.failure);
    if (invitation.version != nccl->version) {
        char here[32], there[32];
        nccl_version_text(nccl->version, here, sizeof here);
        nccl_version_text(invitation.version, there, sizeof there);
        return error_set(err, "rank %d has NCCL %s, rank 0 has %s: install the same on all machines", comm->rank,
                         here, there);
    }
    *id = invitation.id;
    return true;
}

static void open_stream(Comm *comm) {
    NcclGroup *group = group_of(comm);
    Backend *be = comm->be;
    int lowest = 0, highest = 0;
    cuda_ok(be, cudaDeviceGetStreamPriorityRange(&lowest, &highest), "cudaDeviceGetStreamPriorityRange");
    cuda_ok(be, cudaStreamCreateWithPriority(&group->stream, cudaStreamNonBlocking, highest), "cudaStreamCreate");
    for (int i = 0; i < COMM_OPERATIONS; ++i) {
        CommOperation *o = &group->ring[i];
        cuda_ok(be, cudaEventCreateWithFlags(&o->ready, cudaEventDisableTiming), "cudaEventCreate");
        for (cudaEvent_t *event : {&o->begin, &o->end, &o->stall_begin, &o->stall_end})
            cuda_ok(be, cudaEventCreate(event), "cudaEventCreate");
    }
    void *words = NULL;
    if (cuda_ok(be, cudaHostAlloc(&words, 2 * sizeof(int64_t), cudaHostAllocMapped), "cudaHostAlloc")) {
        memset(words, 0, 2 * sizeof(int64_t));
        group->reached = (volatile int64_t *)words;
    }
    Error err = {""};
    group->token = be->alloc(be, sizeof(int32_t), &err);
    if (group->token == NULL) cuda_fail(be, "opening NCCL", err.message);
    else be->zero(be, group->token, sizeof(int32_t));
}

// NCCL's buffers count as library memory, like that of the libraries opened with the backend.
static void init_rank(Comm *comm, ncclUniqueId id) {
    NcclGroup *group = group_of(comm);
    size_t before = 0, after = 0, total = 0;
    cuda_ok(comm->be, cudaSetDevice(cuda_state(comm->be)->device), "cudaSetDevice");
    cuda_ok(comm->be, cudaMemGetInfo(&before, &total), "cudaMemGetInfo");
    if (cuda_failed(comm->be)) return;
    nccl_ok(comm, group->api.init_rank(&group->nccl, comm->world, id, comm->rank), "ncclCommInitRank");
    cuda_ok(comm->be, cudaMemGetInfo(&after, &total), "cudaMemGetInfo");
    if (after < before) comm->be->library_bytes += before - after;
}

bool comm_open_nccl(Comm **out, Backend *be, const CommOptions *options, Error *err) {
    CHECK(mesh_axis_is_valid(options->axis), "rank %d of %d", options->axis.rank, options->axis.world);
    CHECK(options->axis.world == 1 || options->control != NULL, "%d ranks without control", options->axis.world);
    *out = NULL;
    if (cuda_failed(be)) return error_set(err, "%s", cuda_state(be)->failure.message);
    Comm *comm = (Comm *)xcalloc(1, sizeof *comm);
    NcclGroup *group = (NcclGroup *)xcalloc(1, sizeof *group);
    comm->kind = "nccl";
    comm->rank = options->axis.rank;
    comm->world = options->axis.world;
    comm->be = be;
    comm->impl = group;
    group->scratch = (unsigned char *)options->scratch;
    group->scratch_bytes = options->scratch_bytes;
    group->even = (CommSegment *)xcalloc(to_size(options->axis.world), sizeof *group->even);
    pthread_mutex_init(&group->mutex, NULL);
    ncclUniqueId id;
    if (!nccl_api_open(&group->api, err) || !agree_on_id(comm, options->control, &id, err)) {
        nccl_close(comm);
        return false;
    }
    open_stream(comm);
    init_rank(comm, id);
    if (cuda_failed(be)) {
        nccl_close(comm);
        return error_set(err, "%s", cuda_state(be)->failure.message);
    }
    char version[32];
    nccl_version_text(group->api.version, version, sizeof version);
    snprintf(comm->description, sizeof comm->description, "NCCL %s, %d rank%s", version, comm->world,
             comm->world == 1 ? "" : "s");
    comm->reduce_scatter = nccl_reduce_scatter;
    comm->all_gather = nccl_all_gather;
    comm->all_reduce = nccl_all_reduce;
    comm->broadcast = nccl_broadcast;
    comm->barrier = nccl_barrier;
    comm->wait = nccl_wait;
    comm->synchronize = nccl_synchronize;
    comm->stats = nccl_stats;
    comm->status = nccl_status;
    comm->close = nccl_close;
    *out = comm;
    return true;
}

#else

bool comm_open_nccl(Comm **out, Backend *be, const CommOptions *options, Error *err) {
    (void)be, (void)options;
    *out = NULL;
    return error_set(err, "this build has no NCCL: nccl.h was not found (make config); install NCCL, then make");
}

#endif
