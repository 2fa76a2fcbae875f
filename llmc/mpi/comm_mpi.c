// comm_mpi.c: the plug-in libllmc_mpi.so: starts MPI and implements groups of ranks in host memory (comm.h). Each group has
// one thread that runs the operations in the order in which they were issued, concurrently with the computation. The CPU
// backend computes synchronously, so operands are ready when an operation is issued.
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#endif

#include "llmc/mpi/exchange.h"

// Capacity of the queue of issued operations; a caller that is further ahead waits.
#define RING 256

struct CommMpi {
    int rank, world;
    int threads;        // MPI_THREAD_SERIALIZED or _MULTIPLE
    int groups;         // open groups
    char library[96];   // "Open MPI v4.1.4"
};

typedef enum { OP_REDUCE_SCATTER, OP_ALL_GATHER, OP_ALL_REDUCE, OP_BROADCAST, OP_BARRIER } OpKind;
typedef struct {
    OpKind kind;
    char what[sizeof((ControlStatus *)0)->what];
    Tensor out, in;
    const CommSegment *segments;
    int count, root;
    CommSum how;
} Op;

typedef struct {
    CommMpi *mpi;
    MPI_Comm mpi_comm;
    Exchange exchange;  // used by the group's thread only
    pthread_t thread;
    pthread_mutex_t mutex;  // for everything below; never held during a call of MPI
    pthread_cond_t issued_cond, done_cond;
    bool closing;
    Op ring[RING];
    // Numbers of operations; also their events and sequence numbers. Operation n is in ring[n % RING].
    int64_t issued, done;
    bool running;           // operation done + 1 is in progress
    double running_since;
    double busy_seconds, exposed_seconds;
    int64_t bytes;          // sent by completed operations
    bool failed;
    Error error;
} Group;

// ---- the thread ----
static bool op_run(Exchange *x, const Op *op, Error *err) {
    switch (op->kind) {
    case OP_REDUCE_SCATTER:
        return exchange_reduce_scatter(x, op->out, op->in, op->segments, op->count, op->how, err);
    case OP_ALL_GATHER: return exchange_all_gather(x, op->out, op->segments, op->count, err);
    case OP_ALL_REDUCE: return exchange_all_reduce(x, op->out, op->how, err);
    case OP_BROADCAST: return exchange_broadcast(x, op->out, op->root, err);
    case OP_BARRIER: return exchange_barrier(x, err);
    }
    CHECK(false, "kind=%d", (int)op->kind);
    return false;
}

static void lock(Group *group) {
    int code = pthread_mutex_lock(&group->mutex);
    CHECK(code == 0, "pthread_mutex_lock: %s", strerror(code));
}
static void unlock(Group *group) {
    int code = pthread_mutex_unlock(&group->mutex);
    CHECK(code == 0, "pthread_mutex_unlock: %s", strerror(code));
}
static void wait_for(pthread_cond_t *cond, Group *group) {
    int code = pthread_cond_wait(cond, &group->mutex);
    CHECK(code == 0, "pthread_cond_wait: %s", strerror(code));
}
static void announce(pthread_cond_t *cond) {
    int code = pthread_cond_broadcast(cond);
    CHECK(code == 0, "pthread_cond_broadcast: %s", strerror(code));
}

static void *group_thread(void *context) {
    Group *group = context;
    // Naps between polls are shorter than the kernel's default timer slack of 50 us. If prctl fails, naps are longer.
    (void)prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
    lock(group);
    for (;;) {
        while (group->issued == group->done && !group->closing) wait_for(&group->issued_cond, group);
        if (group->issued == group->done) break;
        const Op *op = &group->ring[(group->done + 1) % RING];
        bool failed = group->failed;
        group->running = true;
        group->running_since = now_seconds();
        unlock(group);
        Error error = {""};
        if (!failed && !op_run(&group->exchange, op, &error)) {
            error_prefix(&error, "\"%s\" on rank %d", op->what, group->mpi->rank);
            failed = true;
        }
        lock(group);
        if (failed && !group->failed) group->error = error;
        group->failed = failed;
        group->busy_seconds += now_seconds() - group->running_since;
        group->running = false;
        group->bytes = group->exchange.bytes_sent;
        ++group->done;
        announce(&group->done_cond);
    }
    unlock(group);
    return NULL;
}

// The new thread blocks all signals: the caller's thread handles them.
static void start_thread(Group *group) {
    sigset_t all, before;
    sigfillset(&all);
    int code = pthread_sigmask(SIG_SETMASK, &all, &before);
    CHECK(code == 0, "pthread_sigmask: %s", strerror(code));
    code = pthread_create(&group->thread, NULL, group_thread, group);
    CHECK(code == 0, "pthread_create: %s", strerror(code));
    code = pthread_sigmask(SIG_SETMASK, &before, NULL);
    CHECK(code == 0, "pthread_sigmask: %s", strerror(code));
}

// ---- issuing and waiting ----
// The mutex is held.
static void wait_done(Group *group, int64_t event) {
    if (group->done >= event) return;
    double start = now_seconds();
    while (group->done < event) wait_for(&group->done_cond, group);
    group->exposed_seconds += now_seconds() - start;
}

static CommEvent issue(Comm *comm, const char *what, Op op) {
    Group *group = comm->impl;
    snprintf(op.what, sizeof op.what, "%s", what);
    lock(group);
    wait_done(group, group->issued + 1 - RING);
    CommEvent event = ++group->issued;
    group->ring[event % RING] = op;
    announce(&group->issued_cond);
    unlock(group);
    return event;
}

static void check_sum(Tensor x, CommSum how) {
    CHECK(x.dtype == DTYPE_F32 || (x.dtype == DTYPE_F64 && how.wire != DTYPE_BF16), "dtype=%s wire=%s",
          dtype_name(x.dtype), dtype_name(how.wire));
    CHECK(how.wire == DTYPE_F32 || how.wire == DTYPE_BF16, "wire=%s", dtype_name(how.wire));
}

static CommEvent mpi_reduce_scatter(Comm *comm, const char *what, Tensor out, Tensor in, const CommSegment *segments,
                                    int count, CommSum how) {
    int64_t elems = tensor_elems(in);
    int64_t owned = comm_segments_check(segments, count, comm->world, elems, comm->rank);
    check_sum(in, how);
    bool in_place = out.data == in.data;
    CHECK(out.dtype == DTYPE_F32 && in.dtype == DTYPE_F32 && tensor_elems(out) == (in_place ? elems : owned),
          "out %s %lld, in %s %lld, owned %lld", dtype_name(out.dtype), (long long)tensor_elems(out),
          dtype_name(in.dtype), (long long)elems, (long long)owned);
    CHECK(!in_place || !how.accumulate, "%s adds to what it reads", what);
    return issue(comm, what, (Op){.kind = OP_REDUCE_SCATTER, .out = out, .in = in, .segments = segments,
                                  .count = count, .how = how});
}
static CommEvent mpi_all_gather(Comm *comm, const char *what, Tensor x, const CommSegment *segments, int count) {
    comm_segments_check(segments, count, comm->world, tensor_elems(x), comm->rank);
    return issue(comm, what, (Op){.kind = OP_ALL_GATHER, .out = x, .segments = segments, .count = count});
}
static CommEvent mpi_all_reduce(Comm *comm, const char *what, Tensor x, CommSum how) {
    check_sum(x, how);
    return issue(comm, what, (Op){.kind = OP_ALL_REDUCE, .out = x, .how = how});
}
static CommEvent mpi_broadcast(Comm *comm, const char *what, Tensor x, int root) {
    CHECK(root >= 0 && root < comm->world, "root=%d world=%d", root, comm->world);
    return issue(comm, what, (Op){.kind = OP_BROADCAST, .out = x, .root = root});
}
static CommEvent mpi_barrier(Comm *comm, const char *what) {
    return issue(comm, what, (Op){.kind = OP_BARRIER});
}

static void mpi_wait(Comm *comm, CommEvent event) {
    Group *group = comm->impl;
    lock(group);
    CHECK(event >= 0 && event <= group->issued, "event=%lld issued=%lld", (long long)event, (long long)group->issued);
    wait_done(group, event);
    unlock(group);
}
static bool mpi_synchronize(Comm *comm, Error *err) {
    Group *group = comm->impl;
    lock(group);
    wait_done(group, group->issued);
    bool failed = group->failed;
    if (failed) error_set(err, "%s", group->error.message);
    unlock(group);
    return !failed;
}
static void mpi_stats(Comm *comm, CommStats *out) {
    Group *group = comm->impl;
    lock(group);
    *out = (CommStats){.busy_seconds = group->busy_seconds, .exposed_seconds = group->exposed_seconds,
                       .operations = group->done, .bytes = group->bytes};
    unlock(group);
}
static void mpi_status(Comm *comm, ControlStatus *out) {
    Group *group = comm->impl;
    lock(group);
    int64_t sequence = group->done + (group->running ? 1 : 0);
    *out = (ControlStatus){.sequence = sequence, .waiting_seconds = -1};
    if (sequence > 0) memcpy(out->what, group->ring[sequence % RING].what, sizeof out->what);
    if (group->running) out->waiting_seconds = now_seconds() - group->running_since;
    unlock(group);
}

static void mpi_close(Comm *comm) {
    Group *group = comm->impl;
    lock(group);
    group->closing = true;
    announce(&group->issued_cond);
    unlock(group);
    int code = pthread_join(group->thread, NULL);
    CHECK(code == 0, "pthread_join: %s", strerror(code));
    // After a failure requests may never complete, and freeing the communicator could wait for them.
    Error error;
    if (!group->failed && !mpi_ok(MPI_Comm_free(&group->mpi_comm), "MPI_Comm_free", &error))
        fprintf(stderr, "closing a group of ranks: %s\n", error.message);
    exchange_close(&group->exchange);
    pthread_cond_destroy(&group->issued_cond);
    pthread_cond_destroy(&group->done_cond);
    pthread_mutex_destroy(&group->mutex);
    --group->mpi->groups;
    free(group);
    free(comm);
}

// ---- opening ----
static bool mpi_comm_open(Comm **out, CommMpi *mpi, Backend *be, const CommOptions *options, Error *err) {
    *out = NULL;
    CHECK(options->axis.rank == mpi->rank && options->axis.world == mpi->world, "rank %d of %d, but %d of %d in MPI",
          options->axis.rank, options->axis.world, mpi->rank, mpi->world);
    if (mpi->groups > 0 && mpi->threads < MPI_THREAD_MULTIPLE)
        return error_set(err, "%s allows calls from one thread at a time: only one group of ranks can be open",
                         mpi->library);
    Group *group = xcalloc(1, sizeof *group);
    group->mpi = mpi;
    // A separate communicator, so that messages of two groups do not mix. It inherits MPI_COMM_WORLD's error handler.
    if (!mpi_ok(MPI_Comm_dup(MPI_COMM_WORLD, &group->mpi_comm), "MPI_Comm_dup", err) ||
        !exchange_open(&group->exchange, group->mpi_comm, options->scratch, options->scratch_bytes, err)) {
        free(group);
        return false;
    }
    CHECK(pthread_mutex_init(&group->mutex, NULL) == 0 && pthread_cond_init(&group->issued_cond, NULL) == 0 &&
          pthread_cond_init(&group->done_cond, NULL) == 0, "no mutex or condition for %s", mpi->library);
    start_thread(group);
    ++mpi->groups;
    Comm *comm = xcalloc(1, sizeof *comm);
    *comm = (Comm){.kind = "mpi", .rank = mpi->rank, .world = mpi->world, .be = be, .impl = group,
                   .reduce_scatter = mpi_reduce_scatter, .all_gather = mpi_all_gather, .all_reduce = mpi_all_reduce,
                   .broadcast = mpi_broadcast, .barrier = mpi_barrier, .wait = mpi_wait,
                   .synchronize = mpi_synchronize, .stats = mpi_stats, .status = mpi_status, .close = mpi_close};
    snprintf(comm->description, sizeof comm->description, "%s, %d rank%s", mpi->library, mpi->world,
             mpi->world == 1 ? "" : "s");
    *out = comm;
    return true;
}

static bool mpi_share(void *context, void *bytes, size_t count, Error *err) {
    (void)context;
    return mpi_ok(MPI_Bcast(bytes, to_i32((int64_t)count), MPI_BYTE, 0, MPI_COMM_WORLD), "MPI_Bcast", err);
}

// "Open MPI v4.1.4" of "Open MPI v4.1.4, package: ...".
static bool library_name(char *out, size_t out_bytes, Error *err) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    if (!mpi_ok(MPI_Get_library_version(text, &length), "MPI_Get_library_version", err)) return false;
    text[strcspn(text, ",\n")] = '\0';
    snprintf(out, out_bytes, "%.80s", text);
    return true;
}

static bool local_rank(int *out, Error *err) {
    MPI_Comm host;
    int code = MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
    return mpi_ok(code, "MPI_Comm_split_type", err) && mpi_ok(MPI_Comm_rank(host, out), "MPI_Comm_rank", err) &&
           mpi_ok(MPI_Comm_free(&host), "MPI_Comm_free", err);
}

static CommMpi *mpi_start(Launch *launch, Error *err) {
    int started = 0;
    if (!mpi_ok(MPI_Initialized(&started), "MPI_Initialized", err)) return NULL;
    CHECK(!started, "MPI is initialized twice in one process, %d", started);
    CommMpi mpi = {.rank = 0};
    if (!mpi_ok(MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &mpi.threads), "MPI_Init_thread", err)) return NULL;
    if (!mpi_ok(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", err) ||
        !mpi_ok(MPI_Comm_rank(MPI_COMM_WORLD, &mpi.rank), "MPI_Comm_rank", err) ||
        !mpi_ok(MPI_Comm_size(MPI_COMM_WORLD, &mpi.world), "MPI_Comm_size", err) ||
        !library_name(mpi.library, sizeof mpi.library, err) || !local_rank(&launch->local_rank, err))
        return NULL;
    if (mpi.threads < MPI_THREAD_SERIALIZED) {
        error_set(err, "%s supports calls from the main thread only, expected MPI_THREAD_SERIALIZED; use an MPI that "
                       "was built with threads", mpi.library);
        return NULL;
    }
    launch->rank = mpi.rank;
    launch->world = mpi.world;
    CommMpi *out = xmalloc(sizeof *out);
    *out = mpi;
    return out;
}

// MPI leaks memory in MPI_Init, and MPI_Finalize unloads code that other allocations belong to. To find only this
// program's leaks, the leak checker is disabled during MPI_Init and runs before MPI_Finalize instead of at exit.
static CommMpi *mpi_init(Launch *launch, Error *err) {
#if defined(__SANITIZE_ADDRESS__)
    __lsan_disable();
#endif
    CommMpi *mpi = mpi_start(launch, err);
#if defined(__SANITIZE_ADDRESS__)
    __lsan_enable();
#endif
    return mpi;
}

static void mpi_finalize(CommMpi *mpi) {
    CHECK(mpi->groups == 0, "%d groups are still open", mpi->groups);
#if defined(__SANITIZE_ADDRESS__)
    __lsan_do_leak_check();
#endif
    Error error;
    if (!mpi_ok(MPI_Finalize(), "MPI_Finalize", &error)) fprintf(stderr, "%s\n", error.message);
    free(mpi);
}

static const CommMpiApi API = {.abi = COMM_MPI_ABI, .init = mpi_init, .share = mpi_share, .comm_open = mpi_comm_open,
                               .finalize = mpi_finalize};
__attribute__((visibility("default"))) const CommMpiApi *comm_mpi_entry(void);
const CommMpiApi *comm_mpi_entry(void) { return &API; }
