// comm.c: see comm.h. Opens groups of ranks and the MPI plug-in; implements the group of one rank.
#include "llmc/ranks/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/ranks/comm_host.h"
#include "llmc/base/plugin.h"

// ---- none: one rank. A copy is an ordinary operation of the backend, so there are no events to wait for; nothing is
// sent, so nothing is rounded to the wire's dtype ----
static CommEvent none_reduce_scatter(Comm *comm, const char *what, Tensor out, Tensor in, const CommSegment *segments,
                                     int count, CommSum how) {
    (void)what;
    int64_t owned = comm_segments_check(segments, count, 1, tensor_elems(in), 0);
    CHECK(in.dtype == DTYPE_F32 && out.dtype == DTYPE_F32, "in %s, out %s", dtype_name(in.dtype),
          dtype_name(out.dtype));
    if (out.data == in.data) {
        CHECK(!how.accumulate && tensor_elems(out) == tensor_elems(in), "in place: accumulate=%d out=%lld in=%lld",
              how.accumulate, (long long)tensor_elems(out), (long long)tensor_elems(in));
        return 0;
    }
    CHECK(tensor_elems(out) == owned, "out=%lld owned=%lld", (long long)tensor_elems(out), (long long)owned);
    CommCursor cursor = comm_cursor(segments, count, 0, INT64_MAX);
    CommPiece piece;
    while (comm_cursor_next(&cursor, &piece)) {
        float *to = (float *)out.data + piece.packed;
        float *from = (float *)in.data + piece.first;
        Tensor sum = tensor_1d(to, DTYPE_F32, piece.count);
        if (how.accumulate) {
            comm->be->add(comm->be, sum, sum, tensor_1d(from, DTYPE_F32, piece.count));
        } else {
            comm->be->copy(comm->be, to, from, tensor_bytes(sum));
        }
    }
    return 0;
}
static CommEvent none_all_gather(Comm *comm, const char *what, Tensor x, const CommSegment *segments, int count) {
    (void)comm;
    (void)what;
    comm_segments_check(segments, count, 1, tensor_elems(x), 0);
    return 0;
}
static CommEvent none_all_reduce(Comm *comm, const char *what, Tensor x, CommSum how) {
    (void)comm;
    (void)what;
    (void)how;
    CHECK(x.dtype == DTYPE_F32 || x.dtype == DTYPE_F64, "dtype=%s", dtype_name(x.dtype));
    return 0;
}
static CommEvent none_broadcast(Comm *comm, const char *what, Tensor x, int root) {
    (void)comm;
    (void)what;
    (void)x;
    CHECK(root == 0, "root=%d of one rank", root);
    return 0;
}
static CommEvent none_barrier(Comm *comm, const char *what) {
    (void)comm;
    (void)what;
    return 0;
}
static void none_wait(Comm *comm, CommEvent event) {
    (void)comm;
    CHECK(event == 0, "event=%lld of one rank", (long long)event);
}
static bool none_synchronize(Comm *comm, Error *err) { return comm->be->synchronize(comm->be, err); }
static void none_stats(Comm *comm, CommStats *out) {
    (void)comm;
    *out = (CommStats){.operations = 0};
}
static void none_status(Comm *comm, ControlStatus *out) {
    (void)comm;
    *out = (ControlStatus){.waiting_seconds = -1};
}
static void none_close(Comm *comm) { free(comm); }

static Comm *none_open(Backend *be) {
    Comm *comm = xcalloc(1, sizeof *comm);
    *comm = (Comm){.kind = "none", .rank = 0, .world = 1, .be = be,
                   .reduce_scatter = none_reduce_scatter, .all_gather = none_all_gather,
                   .all_reduce = none_all_reduce, .broadcast = none_broadcast, .barrier = none_barrier,
                   .wait = none_wait, .synchronize = none_synchronize, .stats = none_stats, .status = none_status,
                   .close = none_close};
    snprintf(comm->description, sizeof comm->description, "one rank");
    return comm;
}

// ---- groups ----
const char *comm_kind(const Backend *be, int world) {
    if (world == 1) return "none";
    return strcmp(be->name, "cpu") == 0 ? "mpi" : "nccl";
}

size_t comm_scratch_bytes(const char *kind, int world, int64_t elems, int64_t owned_elems, CommSum how) {
    if (strcmp(kind, "mpi") == 0) {
        // The pieces in flight from every other rank, at least a page each: the plan does not count sums of a few numbers.
        int64_t piece = round_up(min_i64(COMM_PIECE_BYTES, max_i64(4096, owned_elems * (int64_t)sizeof(float))), 64);
        return to_size((world - 1) * COMM_WINDOW * piece);
    }
    if (strcmp(kind, "nccl") == 0) {
        // wire bf16: a copy of what this rank sends. Then the other ranks' contributions to its own elements, or NCCL's
        // sums before they are added to out. all_reduce divides evenly. At least a page per rank: the plan does not count
        // sums of a few numbers.
        int64_t sent = how.wire == DTYPE_BF16 ? round_up(2 * elems, 256) : 0;
        if (world == 1) return to_size(sent);
        int64_t most = round_up(max_i64(owned_elems, elems / world + 8 * world), 8);
        int64_t bytes = most * (how.wire == DTYPE_BF16 ? 2 : 4);
        if (how.tree || how.wire == DTYPE_BF16) bytes *= world - 1;
        else if (!how.accumulate) bytes = 0;
        return to_size(sent + max_i64(bytes, (world - 1) * 4096));
    }
    CHECK(strcmp(kind, "none") == 0, "kind=%s", kind);
    return 0;
}

bool comm_open(Comm **out, const char *kind, Backend *be, const CommOptions *options, Error *err) {
    *out = NULL;
    CHECK(mesh_axis_is_valid(options->axis), "rank=%d world=%d", options->axis.rank, options->axis.world);
    if (strcmp(kind, "none") == 0) {
        CHECK(options->axis.world == 1, "world=%d", options->axis.world);
        *out = none_open(be);
        return true;
    }
    if (strcmp(kind, "mpi") == 0) {
        if (options->mpi == NULL || options->mpi->mpi == NULL)
            return error_set(err, "%d CPU ranks need MPI to communicate, but were not started by MPI: "
                             "start them with mpirun (or srun --mpi=pmix)", options->axis.world);
        return options->mpi->api->comm_open(out, options->mpi->mpi, be, options, err);
    }
    CHECK(strcmp(kind, "nccl") == 0, "kind=%s", kind);
    if (be->comm_open == NULL)
        return error_set(err, "device %s has no NCCL: NCCL groups need GPUs", be->name);
    return be->comm_open(out, be, options, err);
}

// ---- the MPI plug-in ----
bool comm_mpi_open(CommMpiPlugin *out, Launch *launch, Error *err) {
    *out = (CommMpiPlugin){.mpi = NULL};
    char *path = plugin_path("mpi");
    if (!file_exists(path)) {
        error_set(err, "launch=mpi: the plug-in %s is not there: MPI was not found when it was built; run "
                       "`scripts/setup.sh --mpi`, then `make`", path);
        free(path);
        return false;
    }
    // Global symbols: MPI libraries dlopen components that need the symbols of the rest.
    Error why = {""};
    void *symbol = plugin_entry(path, "comm_mpi_entry", true, &why);
    if (symbol == NULL) {
        error_set(err,
                  "launch=mpi: cannot open %s: %s; the MPI library that it was built with must be on LD_LIBRARY_PATH",
                  path, why.message);
        free(path);
        return false;
    }
    CommMpiEntry *entry;
    memcpy(&entry, &symbol, sizeof entry);
    const CommMpiApi *api = entry();
    if (api->abi != COMM_MPI_ABI) {
        error_set(err, "launch=mpi: %s has interface version %d, this program expects %d: run `make`", path, api->abi,
                  COMM_MPI_ABI);
        free(path);
        return false;
    }
    free(path);
    CommMpi *mpi = api->init(launch, err);
    if (mpi == NULL) return error_prefix(err, "launch=mpi");
    // The library stays open: MPI libraries do not support unloading.
    *out = (CommMpiPlugin){api, mpi};
    return true;
}

void comm_mpi_close(CommMpiPlugin *plugin) {
    if (plugin->mpi != NULL) plugin->api->finalize(plugin->mpi);
    plugin->mpi = NULL;
}
