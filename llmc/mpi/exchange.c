// exchange.c: see exchange.h. Messages between two ranks arrive in the order in which they were sent, and both walk
// the same segments in the same pieces, so messages need no tags: the n-th message is the n-th piece.
#include "llmc/mpi/exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TAG 1
// Pieces received in place need not fit a cache.
#define GATHER_PIECE_BYTES ((int64_t)1 << 20)
// A thread that waits for messages polls SPIN_POLLS times, then sleeps between polls with growing naps, to leave the cores
// to the computation.
#define SPIN_POLLS 50
#define NAP_MIN_NS 20000
#define NAP_MAX_NS 100000

// An operation in progress.
typedef struct {
    const unsigned char *from;  // the buffer that this rank sends from
    unsigned char *to;          // the buffer that pieces are received into; NULL: into slots, to be added
    int64_t elem_bytes;
    bool narrow;                // fp32 elements are sent as bf16
    // Adding: `from` holds this rank's contribution; a piece is added, in order, when all ranks' parts of it have arrived.
    unsigned char *sum;
    DType dtype;
    bool in_place, accumulate;
    int64_t added;
    CommPiece piece[COMM_WINDOW];
    int arrived[COMM_WINDOW];
} Job;

bool mpi_ok(int code, const char *call, Error *err) {
    if (code == MPI_SUCCESS) return true;
    char words[MPI_MAX_ERROR_STRING];
    int length = 0;
    if (MPI_Error_string(code, words, &length) != MPI_SUCCESS) snprintf(words, sizeof words, "error %d", code);
    return error_set(err, "%s: %s", call, words);
}

bool exchange_open(Exchange *out, MPI_Comm comm, void *scratch, size_t bytes, Error *err) {
    *out = (Exchange){.comm = comm, .slot = scratch};
    if (!mpi_ok(MPI_Comm_rank(comm, &out->rank), "MPI_Comm_rank", err)) return false;
    if (!mpi_ok(MPI_Comm_size(comm, &out->world), "MPI_Comm_size", err)) return false;
    out->links = out->world - 1;
    // The pieces of a sum must have the same size on all ranks.
    int64_t mine = out->links == 0 ? COMM_PIECE_BYTES : (int64_t)bytes / (out->links * COMM_WINDOW) / 64 * 64;
    mine = min_i64(mine, COMM_PIECE_BYTES);
    int code = MPI_Allreduce(&mine, &out->slot_bytes, 1, MPI_INT64_T, MPI_MIN, comm);
    if (!mpi_ok(code, "MPI_Allreduce", err)) return false;
    CHECK(out->slot_bytes >= 64, "a rank has too little scratch: %zu bytes here, see comm_scratch_bytes", bytes);

    size_t links = to_size(out->links), requests = links * 2 * COMM_WINDOW;
    out->link = xcalloc(links, sizeof *out->link);
    out->request = xcalloc(requests, sizeof *out->request);
    out->status = xcalloc(requests, sizeof *out->status);
    out->completed = xcalloc(requests, sizeof *out->completed);
    out->even = xcalloc(to_size(out->world), sizeof *out->even);
    out->term = xcalloc(to_size(out->world), sizeof *out->term);
    for (size_t i = 0; i < requests; ++i) out->request[i] = MPI_REQUEST_NULL;
    for (int i = 0; i < out->links; ++i) out->link[i].peer = (out->rank + 1 + i) % out->world;
    return true;
}

void exchange_close(Exchange *x) {
    free(x->link);
    free(x->request);
    free(x->status);
    free(x->completed);
    free(x->even);
    free(x->term);
}

static MPI_Request *receive_request(Exchange *x, int link, int slot) {
    return &x->request[2 * COMM_WINDOW * link + slot];
}
static MPI_Request *send_request(Exchange *x, int link, int slot) {
    return &x->request[2 * COMM_WINDOW * link + COMM_WINDOW + slot];
}
// bf16 pieces are half as long: the first half of a slot receives, the second half is sent.
static unsigned char *slot_received(Exchange *x, int link, int slot) {
    return x->slot + (link * COMM_WINDOW + slot) * x->slot_bytes;
}
static unsigned char *slot_sent(Exchange *x, int link, int slot) {
    return slot_received(x, link, slot) + x->slot_bytes / 2;
}

static bool post_receives(Exchange *x, Job *job, int i, Error *err) {
    Link *link = &x->link[i];
    int64_t wire_bytes = job->narrow ? 2 : job->elem_bytes;
    for (;;) {
        int slot = (int)(link->received % COMM_WINDOW);
        MPI_Request *request = receive_request(x, i, slot);
        if (*request != MPI_REQUEST_NULL) return true;
        if (job->to == NULL && link->received >= job->added + COMM_WINDOW) return true;
        CommPiece piece;
        if (!comm_cursor_next(&link->receive, &piece)) return true;
        void *to = job->to == NULL ? slot_received(x, i, slot) : job->to + piece.first * job->elem_bytes;
        job->piece[slot] = piece;
        int code = MPI_Irecv(to, to_i32(piece.count * wire_bytes), MPI_BYTE, link->peer, TAG, x->comm, request);
        if (!mpi_ok(code, "MPI_Irecv", err)) return false;
        ++link->received;
    }
}

static bool post_sends(Exchange *x, const Job *job, int i, Error *err) {
    Link *link = &x->link[i];
    for (;;) {
        int slot = (int)(link->sent % COMM_WINDOW);
        MPI_Request *request = send_request(x, i, slot);
        if (*request != MPI_REQUEST_NULL) return true;
        CommPiece piece;
        if (!comm_cursor_next(&link->send, &piece)) return true;
        const void *from = job->from + piece.first * job->elem_bytes;
        int64_t bytes = piece.count * job->elem_bytes;
        if (job->narrow) {
            comm_round_bf16((uint16_t *)(void *)slot_sent(x, i, slot), from, piece.count);
            from = slot_sent(x, i, slot);
            bytes = piece.count * 2;
        }
        int code = MPI_Isend(from, to_i32(bytes), MPI_BYTE, link->peer, TAG, x->comm, request);
        if (!mpi_ok(code, "MPI_Isend", err)) return false;
        ++link->sent;
        x->bytes_sent += bytes;
    }
}

// Adds the next piece; all other ranks' contributions to it are in the slots.
static void add_piece(Exchange *x, Job *job) {
    int slot = (int)(job->added % COMM_WINDOW);
    const CommPiece *piece = &job->piece[slot];
    for (int i = 0; i < x->links; ++i)
        x->term[x->link[i].peer] =
            (CommTerm){.data = slot_received(x, i, slot), .dtype = job->narrow ? DTYPE_BF16 : job->dtype};
    x->term[x->rank] = (CommTerm){.data = job->from + piece->first * job->elem_bytes, .dtype = job->dtype,
                                  .rounded = job->narrow};
    int64_t place = job->in_place ? piece->first : piece->packed;
    comm_sum_tree(job->sum + place * job->elem_bytes, job->dtype, job->accumulate, x->term, x->world, piece->count);
    job->arrived[slot] = 0;
    ++job->added;
}

static void nap(int idle_polls) {
    if (idle_polls < SPIN_POLLS) return;
    int64_t ns = min_i64(NAP_MAX_NS, NAP_MIN_NS + (int64_t)NAP_MIN_NS / 4 * (idle_polls - SPIN_POLLS));
    // An interrupted nap may be shorter.
    struct timespec length = {.tv_sec = 0, .tv_nsec = (long)ns};
    nanosleep(&length, NULL);
}

// Polls MPI once; *completed: the number of requests completed; -1: none is active.
static bool poll_requests(Exchange *x, Job *job, int *completed, Error *err) {
    int requests = x->links * 2 * COMM_WINDOW;
    int code = MPI_Testsome(requests, x->request, completed, x->completed, x->status);
    for (int i = 0; code == MPI_ERR_IN_STATUS && i < *completed; ++i)
        if (!mpi_ok(x->status[i].MPI_ERROR, "MPI_Testsome", err)) return false;
    if (!mpi_ok(code, "MPI_Testsome", err)) return false;
    if (*completed == MPI_UNDEFINED) *completed = -1;
    for (int i = 0; i < *completed; ++i) {
        int in_lane = x->completed[i] % (2 * COMM_WINDOW);
        if (in_lane < COMM_WINDOW) ++job->arrived[in_lane];
    }
    return true;
}

// Runs a job; the links' cursors hold the pieces to send and receive.
static bool run(Exchange *x, Job *job, Error *err) {
    int idle_polls = 0;
    for (;;) {
        for (int i = 0; i < x->links; ++i)
            if (!post_receives(x, job, i, err) || !post_sends(x, job, i, err)) return false;
        int completed = 0;
        if (!poll_requests(x, job, &completed, err)) return false;
        // No request is active, so all cursors are at their end.
        if (completed < 0) return true;
        int64_t added = job->added;
        while (job->sum != NULL && job->arrived[job->added % COMM_WINDOW] == x->links) add_piece(x, job);
        idle_polls = completed > 0 || job->added > added ? 0 : idle_polls + 1;
        nap(idle_polls);
    }
}

static void set_lanes(Exchange *x, const CommSegment *segments, int count, bool sums, int64_t piece_elems) {
    for (int i = 0; i < x->links; ++i) {
        Link *link = &x->link[i];
        *link = (Link){.peer = link->peer,
                       .send = comm_cursor(segments, count, sums ? link->peer : x->rank, piece_elems),
                       .receive = comm_cursor(segments, count, sums ? x->rank : link->peer, piece_elems)};
    }
}

// A group of one rank: its sums are its own contribution, without messages.
static void add_alone(Exchange *x, Job *job, CommCursor own) {
    while (comm_cursor_next(&own, &job->piece[job->added % COMM_WINDOW])) add_piece(x, job);
}

bool exchange_reduce_scatter(Exchange *x, Tensor out, Tensor in, const CommSegment *segments, int count, CommSum how,
                             Error *err) {
    bool narrow = how.wire == DTYPE_BF16;
    int64_t elem_bytes = (int64_t)dtype_bytes(in.dtype);
    int64_t piece_elems = x->slot_bytes / elem_bytes;
    Job job = {.from = in.data, .elem_bytes = elem_bytes, .narrow = narrow, .sum = out.data, .dtype = in.dtype,
               .in_place = out.data == in.data, .accumulate = how.accumulate};
    set_lanes(x, segments, count, true, piece_elems);
    if (x->links == 0) {
        add_alone(x, &job, comm_cursor(segments, count, x->rank, piece_elems));
        return true;
    }
    return run(x, &job, err);
}

bool exchange_all_gather(Exchange *x, Tensor t, const CommSegment *segments, int count, Error *err) {
    int64_t elem_bytes = (int64_t)dtype_bytes(t.dtype);
    Job job = {.from = t.data, .to = t.data, .elem_bytes = elem_bytes};
    set_lanes(x, segments, count, false, GATHER_PIECE_BYTES / elem_bytes);
    return run(x, &job, err);
}

bool exchange_all_reduce(Exchange *x, Tensor t, CommSum how, Error *err) {
    int segments = comm_segments_even(x->even, x->world, tensor_elems(t));
    CommSum sum = {.tree = how.tree, .wire = how.wire};
    return exchange_reduce_scatter(x, t, t, x->even, segments, sum, err) &&
           exchange_all_gather(x, t, x->even, segments, err);
}

// The root scatters equal shares, then the ranks all-gather them: no link carries more than twice the tensor.
bool exchange_broadcast(Exchange *x, Tensor t, int root, Error *err) {
    int64_t elem_bytes = (int64_t)dtype_bytes(t.dtype), piece_elems = GATHER_PIECE_BYTES / elem_bytes;
    int segments = comm_segments_even(x->even, x->world, tensor_elems(t));
    Job job = {.from = t.data, .to = t.data, .elem_bytes = elem_bytes};
    set_lanes(x, x->even, segments, true, piece_elems);
    for (int i = 0; i < x->links; ++i) {
        if (x->rank != root) x->link[i].send.count = 0;
        if (x->link[i].peer != root) x->link[i].receive.count = 0;
    }
    return run(x, &job, err) && exchange_all_gather(x, t, x->even, segments, err);
}

bool exchange_barrier(Exchange *x, Error *err) {
    MPI_Request request = MPI_REQUEST_NULL;
    if (!mpi_ok(MPI_Ibarrier(x->comm, &request), "MPI_Ibarrier", err)) return false;
    for (int idle_polls = 0;; ++idle_polls) {
        int done = 0;
        if (!mpi_ok(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test", err)) return false;
        if (done) return true;
        nap(idle_polls);
    }
}
