// comm_ranks.c: one rank of the tests of the MPI group; tests/ranks/test_comm_mpi.sh starts several. Every rank knows what
// every other contributes (rank_test_value()), so each compares its results with a serial sum in the same tree, to the bit.
// Exit status 0: all results of this rank as expected.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/base/tree_sum.h"
#include "llmc/ranks/comm_host.h"
#include "llmc/backend/tensor_host.h"
#include "dev/cases/values.h"
#include "tests/support/rank_test.h"

typedef struct {
    Comm *comm;
    Backend *be;
    CommMpiPlugin *plugin;
    int rank, world;
    int failures;
} Test;

static float rounded(float x, bool narrow) { return narrow ? bf16_to_f32(bf16_from_f32(x)) : x; }

static float expected_f32(int world, int salt, int64_t i, bool narrow) {
    float sum[64];
    for (int r = 0; r < world; ++r) sum[r] = rounded((float)rank_test_value(r, salt, i), narrow);
    return tree_sum_f32(sum, world);
}
static double expected_f64(int world, int salt, int64_t i) {
    double sum[64];
    for (int r = 0; r < world; ++r) sum[r] = rank_test_value(r, salt, i);
    return tree_sum_f64(sum, world);
}

static bool same_bits(float a, float b) { return memcmp(&a, &b, sizeof a) == 0; }

static void check_reduce_scatter(Test *t, int64_t elems, int kind, DType wire, bool in_place, bool accumulate) {
    CommSegment segment[64] = {{0}};
    int segments = rank_test_segments(segment, t->world, elems, kind);
    int64_t owned = comm_segments_check(segment, segments, t->world, elems, t->rank);
    float *in = xmalloc(to_size(elems) * 4), *packed = xmalloc(to_size(owned) * 4 + 4);
    for (int64_t i = 0; i < elems; ++i) in[i] = (float)rank_test_value(t->rank, kind, i);
    for (int64_t i = 0; i < owned; ++i) packed[i] = accumulate ? (float)i : (float)(0.0 / 0.0);
    Tensor x = tensor_1d(in, DTYPE_F32, elems), out = in_place ? x : tensor_1d(packed, DTYPE_F32, owned);
    CommSum how = {.accumulate = accumulate, .wire = wire};
    t->comm->wait(t->comm, t->comm->reduce_scatter(t->comm, "reduce", out, x, segment, segments, how));
    int64_t place = 0;
    for (int s = 0; s < segments; ++s) {
        for (int64_t i = segment[s].first; i < segment[s].first + segment[s].count; ++i) {
            bool own = segment[s].owner == t->rank;
            float sum = expected_f32(t->world, kind, i, wire == DTYPE_BF16);
            if (own && !in_place) {
                float expected = accumulate ? (float)place + sum : sum;
                EXPECT(t, same_bits(packed[place], expected),
                       "elems=%lld kind=%d wire=%d i=%lld: %.9g, expected %.9g", (long long)elems, kind, (int)wire,
                       (long long)i, (double)packed[place], (double)expected);
                ++place;
            }
            float expected = own && in_place ? sum : (float)rank_test_value(t->rank, kind, i);
            EXPECT(t, same_bits(in[i], expected),
                   "elems=%lld kind=%d wire=%d in place=%d i=%lld: %.9g, expected %.9g", (long long)elems, kind,
                   (int)wire, in_place, (long long)i, (double)in[i], (double)expected);
        }
    }
    free(in);
    free(packed);
}

static void check_all_gather(Test *t, int64_t elems, int kind, DType dtype) {
    CommSegment segment[64] = {{0}};
    int segments = rank_test_segments(segment, t->world, elems, kind);
    size_t bytes = to_size(elems) * dtype_bytes(dtype);
    unsigned char *x = xmalloc(bytes), *expected = xmalloc(bytes);
    for (size_t i = 0; i < bytes; ++i) expected[i] = x[i] = (unsigned char)(t->rank + 100);
    for (int s = 0; s < segments; ++s)
        for (size_t i = to_size(segment[s].first) * dtype_bytes(dtype);
             i < to_size(segment[s].first + segment[s].count) * dtype_bytes(dtype); ++i) {
            expected[i] = (unsigned char)(i * 7 + to_size(segment[s].owner));
            if (segment[s].owner == t->rank) x[i] = expected[i];
        }
    t->comm->wait(t->comm, t->comm->all_gather(t->comm, "gather", tensor_1d(x, dtype, elems), segment, segments));
    EXPECT(t, memcmp(x, expected, bytes) == 0, "elems=%lld kind=%d %s", (long long)elems, kind, dtype_name(dtype));
    free(x);
    free(expected);
}

static void check_all_reduce(Test *t, int64_t elems, DType dtype, DType wire) {
    unsigned char *x = xmalloc(to_size(elems) * dtype_bytes(dtype));
    for (int64_t i = 0; i < elems; ++i) tensor_host_store(x, dtype, i, rank_test_value(t->rank, 9, i));
    CommSum how = {.tree = true, .wire = wire};
    t->comm->wait(t->comm, t->comm->all_reduce(t->comm, "sum", tensor_1d(x, dtype, elems), how));
    for (int64_t i = 0; i < elems; ++i) {
        double got = tensor_host_load(x, dtype, i);
        double expected = dtype == DTYPE_F64 ? expected_f64(t->world, 9, i)
                                             : (double)expected_f32(t->world, 9, i, wire == DTYPE_BF16);
        EXPECT(t, memcmp(&got, &expected, sizeof got) == 0, "elems=%lld %s i=%lld: %.17g, expected %.17g",
               (long long)elems, dtype_name(dtype), (long long)i, got, expected);
    }
    free(x);
}

static void check_broadcast(Test *t, int64_t elems, DType dtype, int root) {
    size_t bytes = to_size(elems) * dtype_bytes(dtype);
    unsigned char *x = xmalloc(bytes);
    for (size_t i = 0; i < bytes; ++i) x[i] = (unsigned char)(i * 3 + to_size(t->rank));
    t->comm->wait(t->comm, t->comm->broadcast(t->comm, "broadcast", tensor_1d(x, dtype, elems), root));
    bool same = true;
    for (size_t i = 0; i < bytes; ++i) same = same && x[i] == (unsigned char)(i * 3 + to_size(root));
    EXPECT(t, same, "elems=%lld %s root=%d", (long long)elems, dtype_name(dtype), root);
    free(x);
}

static void test_operations(Test *t) {
    // Around the sizes of vectors, of the group's blocks and of pieces; the last has several pieces per rank.
    static const int64_t SIZES[] = {1, 3, 17, 1000, 4099, 140001};
    for (int s = 0; s < 6; ++s) {
        for (int kind = 0; kind < 4; ++kind) {
            if (kind == 3 && SIZES[s] < 17) continue;
            for (int wire = 0; wire < 2; ++wire) {
                DType dtype = wire == 0 ? DTYPE_F32 : DTYPE_BF16;
                check_reduce_scatter(t, SIZES[s], kind, dtype, false, false);
                check_reduce_scatter(t, SIZES[s], kind, dtype, false, true);
                check_reduce_scatter(t, SIZES[s], kind, dtype, true, false);
            }
            for (int dtype = 0; dtype < DTYPE_COUNT; ++dtype) check_all_gather(t, SIZES[s], kind, (DType)dtype);
        }
        check_all_reduce(t, SIZES[s], DTYPE_F32, DTYPE_F32);
        check_all_reduce(t, SIZES[s], DTYPE_F32, DTYPE_BF16);
        check_all_reduce(t, SIZES[s], DTYPE_F64, DTYPE_F32);
        for (int root = 0; root < t->world; ++root)
            check_broadcast(t, SIZES[s], (DType)((root + s) % DTYPE_COUNT), root);
    }
    // Pieces of a gather are 1 MiB.
    check_all_gather(t, 3000001, 0, DTYPE_F32);
    check_broadcast(t, 3000001, DTYPE_F32, t->world - 1);
}

// Many operations are issued before the first wait, and ranks arrive at different times.
static void test_queue(Test *t) {
    enum { N = 1000, ELEMS = 257 };
    CommSegment segment[64] = {{0}};
    int segments = rank_test_segments(segment, t->world, ELEMS, 2);
    double *x = xmalloc(sizeof *x * N);
    float *y = xmalloc(sizeof *y * N * ELEMS);
    for (int i = 0; i < N * ELEMS; ++i) y[i] = (float)(t->rank + i);
    CommEvent event = 0, middle = 0;
    for (int n = 0; n < N; ++n) {
        x[n] = t->rank + n;
        if ((n * 7 + t->rank * 13) % 97 == 0) usleep((useconds_t)((n * 31 + t->rank * 17) % 5 * 1000));
        CommSum how = {.wire = DTYPE_F32};
        event = t->comm->all_reduce(t->comm, "count", tensor_1d(&x[n], DTYPE_F64, 1), how);
        Tensor row = tensor_1d(y + n * ELEMS, DTYPE_F32, ELEMS);
        event = t->comm->reduce_scatter(t->comm, "rows", row, row, segment, segments, how);
        event = t->comm->all_gather(t->comm, "rows", row, segment, segments);
        if (n % 100 == 50) t->comm->barrier(t->comm, "meet");
        if (n == N / 2) middle = event;
    }
    t->comm->wait(t->comm, middle);
    double ranks = t->world * (t->world - 1) / 2.0;
    EXPECT(t, x[N / 2] == t->world * (N / 2) + ranks, "x=%.17g", x[N / 2]);
    Error err = {""};
    EXPECT(t, t->comm->synchronize(t->comm, &err), "%s", err.message);
    for (int n = 0; n < N; ++n) EXPECT(t, x[n] == t->world * n + ranks, "n=%d x=%.17g", n, x[n]);
    for (int i = 0; i < N * ELEMS; ++i)
        EXPECT(t, y[i] == (float)(t->world * i + ranks), "i=%d y=%.9g", i, (double)y[i]);
    CommStats stats;
    t->comm->stats(t->comm, &stats);
    EXPECT(t, stats.operations == 3 * N + N / 100, "operations=%lld", (long long)stats.operations);
    EXPECT(t, stats.busy_seconds > 0 && stats.exposed_seconds > 0, "busy %g s, exposed %g s", stats.busy_seconds,
           stats.exposed_seconds);
    EXPECT(t, (stats.bytes > 0) == (t->world > 1), "bytes=%lld", (long long)stats.bytes);
    free(x);
    free(y);
}

// Rank 0 arrives 300 ms late: the other ranks report that they wait in the barrier; their computation meanwhile hides it.
static void test_status(Test *t) {
    ControlStatus status;
    t->comm->status(t->comm, &status);
    EXPECT(t, status.sequence == 0 && status.waiting_seconds < 0, "sequence=%lld", (long long)status.sequence);
    t->comm->wait(t->comm, t->comm->barrier(t->comm, "start"));
    t->comm->status(t->comm, &status);
    EXPECT(t, status.sequence == 1 && status.waiting_seconds < 0 && strcmp(status.what, "start") == 0,
           "sequence=%lld what=%s", (long long)status.sequence, status.what);
    if (t->rank == 0) usleep(300000);
    CommEvent event =
        t->comm->barrier(t->comm, "a name that is longer than the forty-seven characters that are kept");
    if (t->rank != 0) {
        usleep(100000);
        t->comm->status(t->comm, &status);
        EXPECT(t, status.sequence == 2, "sequence=%lld", (long long)status.sequence);
        EXPECT(t, status.waiting_seconds > 0.05 && status.waiting_seconds < 10, "%g s", status.waiting_seconds);
        EXPECT(t, strcmp(status.what, "a name that is longer than the forty-seven char") == 0, "%s", status.what);
        usleep(1000000);
    }
    t->comm->wait(t->comm, event);
    CommStats stats;
    t->comm->stats(t->comm, &stats);
    if (t->rank != 0)
        EXPECT(t, stats.busy_seconds >= 0.1 && stats.exposed_seconds < stats.busy_seconds, "busy %g s, exposed %g s",
               stats.busy_seconds, stats.exposed_seconds);
}

// Messages of two groups do not mix, whatever the order of the waits.
static void test_two_groups(Test *t) {
    CommOptions options = {.axis = {t->rank, t->world}, .mpi = t->plugin};
    CommSum how = {.wire = DTYPE_F32};
    options.scratch_bytes = comm_scratch_bytes("mpi", t->world, 64, 64, how);
    options.scratch = xmalloc(options.scratch_bytes);
    Comm *other;
    Error err = {""};
    if (!comm_open(&other, "mpi", t->be, &options, &err)) {
        EXPECT(t, false, "%s", err.message);
        return;
    }
    float x = (float)t->rank, y = (float)t->rank + 10;
    CommEvent first = 0, second = 0;
    if (t->rank % 2 == 0) {
        first = t->comm->all_reduce(t->comm, "x", tensor_1d(&x, DTYPE_F32, 1), how);
        second = other->all_reduce(other, "y", tensor_1d(&y, DTYPE_F32, 1), how);
    } else {
        second = other->all_reduce(other, "y", tensor_1d(&y, DTYPE_F32, 1), how);
        first = t->comm->all_reduce(t->comm, "x", tensor_1d(&x, DTYPE_F32, 1), how);
    }
    other->wait(other, second);
    t->comm->wait(t->comm, first);
    float ranks = (float)(t->world * (t->world - 1)) / 2;
    EXPECT(t, x == ranks && y == ranks + 10 * (float)t->world, "x=%g y=%g", (double)x, (double)y);
    EXPECT(t, other->synchronize(other, &err), "%s", err.message);
    other->close(other);
    free(options.scratch);
}

// Rank 1 contributes other values than expected: every rank's check must find it.
static void test_wrong(Test *t) {
    float x[8];
    for (int i = 0; i < 8; ++i) x[i] = (float)rank_test_value(t->rank, t->rank == 1 ? 3 : 9, i);
    CommSum how = {.wire = DTYPE_F32};
    t->comm->wait(t->comm, t->comm->all_reduce(t->comm, "sum", tensor_1d(x, DTYPE_F32, 8), how));
    int wrong = 0;
    for (int i = 0; i < 8; ++i) wrong += !same_bits(x[i], expected_f32(t->world, 9, i, false));
    EXPECT(t, wrong == 0, "%d of 8 sums", wrong);
}

// The ranks pass different segment lengths: MPI reports a truncated message. The error is kept, later operations do
// nothing, and the group can still be closed.
static void test_failure(Test *t) {
    unsigned char x[2000] = {0};
    CommSegment segment = {.owner = 0, .first = 0, .count = t->rank == 0 ? 1000 : 500};
    t->comm->all_gather(t->comm, "odd", tensor_1d(x, DTYPE_U8, 2000), &segment, 1);
    double later = 5;
    if (t->rank == 1) {
        CommSum how = {.wire = DTYPE_F32};
        t->comm->wait(t->comm, t->comm->all_reduce(t->comm, "later", tensor_1d(&later, DTYPE_F64, 1), how));
    }
    Error err = {""};
    bool ok = t->comm->synchronize(t->comm, &err);
    if (t->rank == 0) EXPECT(t, ok, "%s", err.message);
    if (t->rank == 1) {
        EXPECT(t, !ok && strstr(err.message, "\"odd\" on rank 1: MPI_Testsome: ") != NULL &&
               strstr(err.message, "TRUNCATE") != NULL, "%s", err.message);
        EXPECT(t, later == 5, "later=%g", later);
    }
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(Test *t);
        int64_t owned_elems;  // for which scratch is planned: a small value leads to small pieces
    } TESTS[] = {{"operations", test_operations, 1000000}, {"pieces", test_operations, 1}, {"queue", test_queue, 257},
                 {"status", test_status, 1}, {"groups", test_two_groups, 64}, {"wrong", test_wrong, 8},
                 {"failure", test_failure, 8}};
    Launch launch = {.kind = LAUNCH_MPI};
    CommMpiPlugin plugin;
    Error err = {""};
    if (argc != 2 || !comm_mpi_open(&plugin, &launch, &err)) {
        fprintf(stderr, "comm_ranks TEST: %s\n", err.message);
        return 1;
    }
    Backend *be = backend_cpu_open(1, "auto", &err);
    CHECK(be != NULL, "%s", err.message);
    Test t = {.be = be, .plugin = &plugin, .rank = launch.rank, .world = launch.world};
    uint64_t shared = t.rank == 0 ? 0x123456789abcdefull : 0;
    EXPECT(&t, plugin.api->share(plugin.mpi, &shared, sizeof shared, &err) && shared == 0x123456789abcdefull, "%s",
           err.message);
    EXPECT(&t, launch.local_rank == launch.rank, "local_rank=%d", launch.local_rank);
    bool found = false;
    for (size_t i = 0; i < sizeof TESTS / sizeof TESTS[0]; ++i) {
        if (strcmp(TESTS[i].name, argv[1]) != 0) continue;
        found = true;
        CommSum how = {.wire = DTYPE_F32};
        CommOptions options = {.axis = {t.rank, t.world}, .mpi = &plugin};
        options.scratch_bytes = comm_scratch_bytes("mpi", t.world, 1000000, TESTS[i].owned_elems, how);
        options.scratch = be->alloc(be, options.scratch_bytes, &err);
        if (!comm_open(&t.comm, "mpi", be, &options, &err)) {
            fprintf(stderr, "comm_open: %s\n", err.message);
            return 1;
        }
        if (t.rank == 0) printf("%s: %s\n", t.comm->kind, t.comm->description);
        TESTS[i].run(&t);
        t.comm->close(t.comm);
        be->free(be, options.scratch, options.scratch_bytes);
    }
    EXPECT(&t, found, "there is no test %s", argv[1]);
    be->close(be);
    comm_mpi_close(&plugin);
    return t.failures == 0 ? 0 : 1;
}
