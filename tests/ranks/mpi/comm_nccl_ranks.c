// comm_nccl_ranks.c: one rank of the tests of the NCCL group; tests/ranks/test_comm_nccl.sh starts several under mpirun, on
// emulated GPUs, or one on a real GPU (TOKAMAK_TEST_DEVICE=cuda). Every rank knows what every other contributes
// (rank_test_value()), so each compares its results with sums computed here, to the bit. Exit status 0: all as expected.
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/base/tree_sum.h"
#include "llmc/ranks/comm_host.h"
#include "llmc/run/device.h"
#include "llmc/backend/tensor_host.h"
#include "dev/cases/values.h"
#include "tests/support/rank_test.h"

typedef struct {
    Backend *be;
    Control *control;
    int rank, world;
    int failures;
} Test;

// ---- contributions and their sums ----

static double rounded(double x, DType dtype) {
    if (dtype == DTYPE_F64) return x;
    return dtype == DTYPE_BF16 ? (double)bf16_to_f32(bf16_from_f32((float)x)) : (double)(float)x;
}
static double add(double a, double b, DType sums) {
    return sums == DTYPE_F64 ? a + b : (double)((float)a + (float)b);
}
// In the tree; or rank after rank, as the emulated NCCL adds.
static double expected_sum(int world, int salt, int64_t i, DType sums, CommSum how) {
    double x[64] = {0};
    for (int r = 0; r < world; ++r)
        x[r] = rounded(rounded(rank_test_value(r, salt, i), sums), how.wire == DTYPE_BF16 ? DTYPE_BF16 : sums);
    if (!how.tree && how.wire == DTYPE_F32) {
        for (int r = 1; r < world; ++r) x[0] = add(x[0], x[r], sums);
        return x[0];
    }
    if (sums == DTYPE_F64) return tree_sum_f64(x, world);
    float narrow[64] = {0};
    for (int r = 0; r < world; ++r) narrow[r] = (float)x[r];
    return (double)tree_sum_f32(narrow, world);
}

// ---- device memory ----

static Tensor device_tensor(Test *t, DType dtype, int64_t elems) {
    Error err = {""};
    Tensor x = tensor_1d(NULL, dtype, elems);
    x.data = t->be->alloc(t->be, tensor_bytes(x), &err);
    CHECK(x.data != NULL, "%s", err.message);
    return x;
}
static void device_free(Test *t, Tensor x) { t->be->free(t->be, x.data, tensor_bytes(x)); }
static void upload(Test *t, Tensor x, const void *host) { t->be->upload(t->be, x.data, host, tensor_bytes(x)); }
static void *download(Test *t, Tensor x) {
    void *host = xmalloc(tensor_bytes(x) + 8);
    t->be->download(t->be, host, x.data, tensor_bytes(x));
    return host;
}

// Opens a group with exactly the planned scratch memory.
typedef struct {
    Comm *comm;
    Tensor scratch;
} Group;
static Group open_group(Test *t, int64_t elems, int64_t owned, CommSum how) {
    Group group;
    Error err = {""};
    CommOptions options = {.axis = {t->rank, t->world}, .control = t->control};
    options.scratch_bytes = comm_scratch_bytes("nccl", t->world, elems, owned, how);
    group.scratch = device_tensor(t, DTYPE_U8, (int64_t)options.scratch_bytes);
    options.scratch = group.scratch.data;
    bool ok = comm_open(&group.comm, "nccl", t->be, &options, &err);
    if (!ok) {
        fprintf(stderr, "comm_open: %s\n", err.message);
        exit(1);
    }
    return group;
}
static void close_group(Test *t, Group group) {
    Error err = {""};
    EXPECT(t, group.comm->synchronize(group.comm, &err), "%s", err.message);
    group.comm->close(group.comm);
    device_free(t, group.scratch);
}

static int64_t most_owned(const CommSegment *segments, int count, int world, int64_t elems) {
    int64_t most = 0;
    for (int r = 0; r < world; ++r) most = max_i64(most, comm_segments_check(segments, count, world, elems, r));
    return most;
}
static bool same_bits(float a, double b) {
    float narrow = (float)b;
    return memcmp(&a, &narrow, sizeof a) == 0;
}

// ---- operations ----

static void check_reduce_scatter(Test *t, int64_t elems, int kind, CommSum how, bool in_place) {
    CommSegment segment[64] = {{0}};
    int segments = rank_test_segments(segment, t->world, elems, kind);
    int64_t owned = comm_segments_check(segment, segments, t->world, elems, t->rank);
    Group group = open_group(t, elems, most_owned(segment, segments, t->world, elems), how);
    Tensor x = device_tensor(t, DTYPE_F32, elems), packed = device_tensor(t, DTYPE_F32, owned);
    float *host = xmalloc(to_size(elems) * 4);
    for (int64_t i = 0; i < owned; ++i) host[i] = how.accumulate ? (float)i : NAN;
    upload(t, packed, host);
    for (int64_t i = 0; i < elems; ++i) host[i] = (float)rank_test_value(t->rank, kind, i);
    upload(t, x, host);
    Comm *comm = group.comm;
    comm->wait(comm, comm->reduce_scatter(comm, "reduce", in_place ? x : packed, x, segment, segments, how));
    float *in = download(t, x), *out = download(t, packed);
    for (int64_t i = 0; i < elems; ++i) {
        bool own = false;
        for (int s = 0; s < segments; ++s)
            own |= segment[s].owner == t->rank && i >= segment[s].first && i < segment[s].first + segment[s].count;
        double expected = own && in_place ? expected_sum(t->world, kind, i, DTYPE_F32, how) : (double)host[i];
        EXPECT(t, same_bits(in[i], expected),
               "in: elems=%lld kind=%d tree=%d wire=%d in place=%d i=%lld: %.9g, not %.9g", (long long)elems, kind,
               how.tree, how.wire, in_place, (long long)i, (double)in[i], expected);
    }
    int64_t place = 0;
    for (int s = 0; s < segments && !in_place; ++s) {
        if (segment[s].owner != t->rank) continue;
        for (int64_t i = segment[s].first; i < segment[s].first + segment[s].count; ++i, ++place) {
            double sum = expected_sum(t->world, kind, i, DTYPE_F32, how);
            if (how.accumulate) sum = add((double)(float)place, sum, DTYPE_F32);
            EXPECT(t, same_bits(out[place], sum),
                   "out: elems=%lld kind=%d tree=%d wire=%d accumulate=%d i=%lld: %.9g, not "
                   "%.9g",
                   (long long)elems, kind, how.tree, how.wire, how.accumulate, (long long)i, (double)out[place], sum);
        }
    }
    free(in);
    free(out);
    free(host);
    close_group(t, group);
    device_free(t, x);
    device_free(t, packed);
}

static void check_all_gather(Test *t, int64_t elems, int kind, DType dtype) {
    CommSegment segment[64] = {{0}};
    int segments = rank_test_segments(segment, t->world, elems, kind);
    Group group = open_group(t, elems, 0, (CommSum){.wire = DTYPE_F32});
    size_t bytes = to_size(elems) * dtype_bytes(dtype);
    unsigned char *x = xmalloc(bytes), *expected = xmalloc(bytes);
    for (size_t i = 0; i < bytes; ++i) expected[i] = x[i] = (unsigned char)(t->rank + 100);
    for (int s = 0; s < segments; ++s)
        for (size_t i = to_size(segment[s].first) * dtype_bytes(dtype);
             i < to_size(segment[s].first + segment[s].count) * dtype_bytes(dtype); ++i) {
            expected[i] = (unsigned char)(i * 7 + to_size(segment[s].owner));
            if (segment[s].owner == t->rank) x[i] = expected[i];
        }
    Tensor device = device_tensor(t, dtype, elems);
    upload(t, device, x);
    group.comm->wait(group.comm, group.comm->all_gather(group.comm, "gather", device, segment, segments));
    unsigned char *got = download(t, device);
    EXPECT(t, memcmp(got, expected, bytes) == 0, "elems=%lld kind=%d %s", (long long)elems, kind, dtype_name(dtype));
    close_group(t, group);
    device_free(t, device);
    free(got);
    free(x);
    free(expected);
}

static void check_all_reduce(Test *t, int64_t elems, DType dtype, CommSum how) {
    Tensor device = device_tensor(t, dtype, elems);
    // The planned scratch is for fp32, and for fp64 with few elements only.
    Group group = open_group(t, dtype == DTYPE_F64 && elems > 1000 ? 2 * elems + 4096 : elems, 0, how);
    unsigned char *x = xmalloc(tensor_bytes(device));
    for (int64_t i = 0; i < elems; ++i) tensor_host_store(x, dtype, i, rank_test_value(t->rank, 9, i));
    upload(t, device, x);
    group.comm->wait(group.comm, group.comm->all_reduce(group.comm, "sum", device, how));
    unsigned char *out = download(t, device);
    for (int64_t i = 0; i < elems; ++i) {
        double got = tensor_host_load(out, dtype, i), expected = expected_sum(t->world, 9, i, dtype, how);
        EXPECT(t, memcmp(&got, &expected, sizeof got) == 0,
               "elems=%lld %s tree=%d wire=%d i=%lld: %.17g, expected %.17g", (long long)elems, dtype_name(dtype),
               how.tree, how.wire, (long long)i, got, expected);
    }
    close_group(t, group);
    device_free(t, device);
    free(x);
    free(out);
}

static void check_broadcast(Test *t, int64_t elems, DType dtype, int root) {
    Group group = open_group(t, 0, 0, (CommSum){.wire = DTYPE_F32});
    Tensor device = device_tensor(t, dtype, elems);
    size_t bytes = tensor_bytes(device);
    unsigned char *x = xmalloc(bytes);
    for (size_t i = 0; i < bytes; ++i) x[i] = (unsigned char)(i * 3 + to_size(t->rank));
    upload(t, device, x);
    group.comm->wait(group.comm, group.comm->broadcast(group.comm, "broadcast", device, root));
    unsigned char *got = download(t, device);
    bool same = true;
    for (size_t i = 0; i < bytes; ++i) same = same && got[i] == (unsigned char)(i * 3 + to_size(root));
    EXPECT(t, same, "elems=%lld %s root=%d", (long long)elems, dtype_name(dtype), root);
    close_group(t, group);
    device_free(t, device);
    free(x);
    free(got);
}

static void test_operations(Test *t) {
    // Around the pack sizes; the last needs several thread blocks per rank.
    static const int64_t SIZES[] = {1, 3, 17, 1024, 4099};
    for (int s = 0; s < 5; ++s) {
        for (int kind = 0; kind < RANK_TEST_KINDS; ++kind) {
            if (kind == 3 && SIZES[s] < 17) continue;
            for (int mode = 0; mode < 3; ++mode) {
                CommSum how = {.tree = mode == 1, .wire = mode == 2 ? DTYPE_BF16 : DTYPE_F32};
                check_reduce_scatter(t, SIZES[s], kind, how, false);
                check_reduce_scatter(t, SIZES[s], kind, how, true);
                how.accumulate = true;
                check_reduce_scatter(t, SIZES[s], kind, how, false);
            }
            check_all_gather(t, SIZES[s], kind, (DType)((kind + s) % DTYPE_COUNT));
        }
        for (int mode = 0; mode < 3; ++mode) {
            CommSum how = {.tree = mode == 1, .wire = mode == 2 ? DTYPE_BF16 : DTYPE_F32};
            check_all_reduce(t, SIZES[s], DTYPE_F32, how);
            if (mode < 2) check_all_reduce(t, SIZES[s], DTYPE_F64, how);
        }
        for (int root = 0; root < t->world; ++root)
            check_broadcast(t, SIZES[s], (DType)((root + s) % DTYPE_COUNT), root);
    }
}

// ---- overlap with the computation ----

#define STEPS 6
#define BUCKETS 3
#define BUCKET_ELEMS 1003

// Steps as in training: gradients are computed from weights, summed bucket by bucket while the next bucket is computed,
// applied to this rank's part, and the weights are gathered. Integers, so the order of sums does not matter. A missing
// wait changes the results in at least one order of the streams.
static void test_steps(Test *t) {
    CommSegment segment[64] = {{0}};
    int segments = rank_test_segments(segment, t->world, BUCKET_ELEMS, 0);
    int64_t owned = comm_segments_check(segment, segments, t->world, BUCKET_ELEMS, t->rank), own_first = 0;
    for (int s = 0; s < segments; ++s)
        if (segment[s].owner == t->rank) own_first = segment[s].first;
    CommSum how = {.tree = true, .wire = DTYPE_F32};
    Group group = open_group(t, BUCKET_ELEMS, most_owned(segment, segments, t->world, BUCKET_ELEMS), how);
    Comm *comm = group.comm;
    Backend *be = t->be;
    Tensor weights[BUCKETS], grad[BUCKETS], shard[BUCKETS], noise = device_tensor(t, DTYPE_F32, BUCKET_ELEMS);
    float host[BUCKET_ELEMS];
    double expected[BUCKETS][BUCKET_ELEMS];
    for (int b = 0; b < BUCKETS; ++b) {
        weights[b] = device_tensor(t, DTYPE_F32, BUCKET_ELEMS);
        grad[b] = device_tensor(t, DTYPE_F32, BUCKET_ELEMS);
        shard[b] = device_tensor(t, DTYPE_F32, owned);
        for (int i = 0; i < BUCKET_ELEMS; ++i) expected[b][i] = host[i] = (float)(i % 7 + b);
        upload(t, weights[b], host);
    }
    for (int i = 0; i < BUCKET_ELEMS; ++i) host[i] = (float)(t->rank + 1);
    upload(t, noise, host);
    for (int step = 0; step < STEPS; ++step) {
        CommEvent summed[BUCKETS], gathered[BUCKETS];
        how.tree = step % 2 == 0;
        for (int b = 0; b < BUCKETS; ++b) {
            be->add(be, grad[b], weights[b], noise);
            summed[b] = comm->reduce_scatter(comm, "reduce", shard[b], grad[b], segment, segments, how);
        }
        for (int b = 0; b < BUCKETS; ++b) {
            comm->wait(comm, summed[b]);
            be->zero(be, grad[b].data, tensor_bytes(grad[b]));
            if (owned > 0) {
                Tensor own = tensor_1d((float *)weights[b].data + own_first, DTYPE_F32, owned);
                be->add(be, own, own, shard[b]);
            }
            gathered[b] = comm->all_gather(comm, "gather", weights[b], segment, segments);
        }
        for (int b = 0; b < BUCKETS; ++b) comm->wait(comm, gathered[b]);
        for (int b = 0; b < BUCKETS; ++b)
            for (int i = 0; i < BUCKET_ELEMS; ++i) {
                double sum = 0;
                for (int r = 0; r < t->world; ++r) sum += expected[b][i] + r + 1;
                expected[b][i] += sum;
            }
    }
    for (int b = 0; b < BUCKETS; ++b) {
        float *got = download(t, weights[b]);
        for (int i = 0; i < BUCKET_ELEMS; ++i)
            EXPECT(t, same_bits(got[i], expected[b][i]), "bucket %d, i=%d: %.9g, expected %.9g", b, i, (double)got[i],
                   expected[b][i]);
        free(got);
        device_free(t, weights[b]);
        device_free(t, grad[b]);
        device_free(t, shard[b]);
    }
    device_free(t, noise);
    close_group(t, group);
}

// More operations in flight than the group has events, and ranks that arrive at different times.
static void test_queue(Test *t) {
    enum { N = 100, ELEMS = 257 };
    CommSegment segment[64] = {{0}};
    int segments = rank_test_segments(segment, t->world, ELEMS, 2);
    CommSum how = {.wire = DTYPE_F32, .tree = true};
    Group group = open_group(t, ELEMS, ELEMS, how);
    Comm *comm = group.comm;
    Tensor x = device_tensor(t, DTYPE_F64, N), y = device_tensor(t, DTYPE_F32, N * ELEMS);
    double *x_host = xmalloc(tensor_bytes(x));
    float *y_host = xmalloc(tensor_bytes(y));
    for (int n = 0; n < N; ++n) x_host[n] = t->rank + n;
    for (int i = 0; i < N * ELEMS; ++i) y_host[i] = (float)(t->rank + i);
    upload(t, x, x_host);
    upload(t, y, y_host);
    free(x_host);
    free(y_host);
    CommEvent middle = 0;
    for (int n = 0; n < N; ++n) {
        if ((n * 7 + t->rank * 13) % 23 == 0) usleep((useconds_t)((n * 31 + t->rank * 17) % 5 * 1000));
        how.tree = n % 3 != 0;
        comm->all_reduce(comm, "count", tensor_rows(x, n, 1), how);
        Tensor row = tensor_rows(y, n * ELEMS, ELEMS);
        comm->reduce_scatter(comm, "rows", row, row, segment, segments, how);
        CommEvent event = comm->all_gather(comm, "rows", row, segment, segments);
        if (n % 50 == 25) comm->barrier(comm, "meet");
        if (n == N / 2) middle = event;
        if (n % 10 == 0) comm->wait(comm, event);
    }
    comm->wait(comm, middle);
    double ranks = t->world * (t->world - 1) / 2.0;
    Error err = {""};
    EXPECT(t, comm->synchronize(comm, &err), "%s", err.message);
    x_host = download(t, x);
    y_host = download(t, y);
    for (int n = 0; n < N; ++n) EXPECT(t, x_host[n] == t->world * n + ranks, "n=%d x=%.17g", n, x_host[n]);
    for (int i = 0; i < N * ELEMS; ++i)
        EXPECT(t, y_host[i] == (float)(t->world * i + ranks), "i=%d y=%.9g", i, (double)y_host[i]);
    CommStats stats;
    comm->stats(comm, &stats);
    EXPECT(t, stats.operations == 3 * N + N / 50, "operations=%lld", (long long)stats.operations);
    EXPECT(t, stats.busy_seconds > 0 && stats.exposed_seconds > 0, "busy %g s, exposed %g s", stats.busy_seconds,
           stats.exposed_seconds);
    EXPECT(t, (stats.bytes > 0) == (t->world > 1), "bytes=%lld", (long long)stats.bytes);
    free(x_host);
    free(y_host);
    device_free(t, x);
    device_free(t, y);
    close_group(t, group);
}

// Ordering errors that lazy streams must reveal on every rank: 0: a result is used without a wait; 1: an operand is
// overwritten without a wait; 2: the correct version.
static int wrong_elements(Test *t, int fault) {
    enum { ELEMS = 64 };
    CommSum how = {.tree = true, .wire = DTYPE_F32};
    Group group = open_group(t, ELEMS, ELEMS, how);
    CommSegment all = {.owner = 0, .first = 0, .count = ELEMS};
    Tensor in = device_tensor(t, DTYPE_F32, ELEMS), out = device_tensor(t, DTYPE_F32, ELEMS);
    Tensor copy = device_tensor(t, DTYPE_F32, ELEMS);
    float ones[ELEMS];
    for (int i = 0; i < ELEMS; ++i) ones[i] = 1;
    upload(t, in, ones);
    Comm *comm = group.comm;
    Error err = {""};
    comm->reduce_scatter(comm, "reduce", t->rank == 0 ? out : tensor_1d(out.data, DTYPE_F32, 0), in, &all, 1, how);
    CommEvent event = comm->broadcast(comm, "broadcast", out, 0);
    if (fault == 0) t->be->copy(t->be, copy.data, out.data, tensor_bytes(out));
    if (fault == 1) t->be->zero(t->be, in.data, tensor_bytes(in));
    EXPECT(t, t->be->synchronize(t->be, &err), "%s", err.message);
    comm->wait(comm, event);
    if (fault != 0) t->be->copy(t->be, copy.data, out.data, tensor_bytes(out));
    float *got = download(t, copy);
    int wrong = 0;
    for (int i = 0; i < ELEMS; ++i) wrong += !(got[i] == (float)t->world);
    free(got);
    close_group(t, group);
    device_free(t, in);
    device_free(t, out);
    device_free(t, copy);
    return wrong;
}
static void test_planted(Test *t) {
    EXPECT(t, wrong_elements(t, 2) == 0, "the sound twin is wrong");
    EXPECT(t, wrong_elements(t, 0) == 64, "a result that is used without waiting was right");
    EXPECT(t, wrong_elements(t, 1) == 64, "an operand that is overwritten without waiting was right");
}

// ---- status and failures ----

typedef struct {
    Comm *comm;
    atomic_bool stop;
    double longest;  // observed waiting time of "late"
} Watcher;
static void *watch(void *argument) {
    Watcher *watcher = argument;
    while (!watcher->stop) {
        ControlStatus status;
        watcher->comm->status(watcher->comm, &status);
        if (status.sequence == 2 && strcmp(status.what, "a name that is longer than the forty-seven char") == 0 &&
            status.waiting_seconds > watcher->longest)
            watcher->longest = status.waiting_seconds;
        usleep(10000);
    }
    return NULL;
}

// Rank 0 arrives 400 ms late: meanwhile a second thread of each other rank reads from status which operation it waits in.
static void test_status(Test *t) {
    Group group = open_group(t, 0, 0, (CommSum){.wire = DTYPE_F32});
    Comm *comm = group.comm;
    ControlStatus status;
    Error err = {""};
    comm->status(comm, &status);
    EXPECT(t, status.sequence == 0 && status.waiting_seconds < 0, "sequence=%lld", (long long)status.sequence);
    comm->barrier(comm, "start");
    EXPECT(t, comm->synchronize(comm, &err), "%s", err.message);
    comm->status(comm, &status);
    EXPECT(t, status.sequence == 1 && status.waiting_seconds < 0 && strcmp(status.what, "start") == 0,
           "sequence=%lld what=%s", (long long)status.sequence, status.what);
    Watcher watcher = {.comm = comm};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, watch, &watcher) == 0, "no thread");
    if (t->rank == 0) usleep(400000);
    comm->barrier(comm, "a name that is longer than the forty-seven characters that are kept");
    EXPECT(t, comm->synchronize(comm, &err), "%s", err.message);
    watcher.stop = true;
    pthread_join(thread, NULL);
    if (t->rank != 0)
        EXPECT(t, watcher.longest > 0.1 && watcher.longest < 10, "was seen waiting for %g s", watcher.longest);
    CommStats stats;
    comm->stats(comm, &stats);
    if (t->rank != 0) EXPECT(t, stats.busy_seconds >= 0.1, "busy %g s", stats.busy_seconds);
    close_group(t, group);
}

// TOKAMAK_EMU_NCCL_FAIL makes the third call fail: the error is kept, later operations do nothing, synchronize returns it.
static void test_failure(Test *t) {
    Group group = open_group(t, 64, 64, (CommSum){.wire = DTYPE_F32});
    Comm *comm = group.comm;
    Tensor x = device_tensor(t, DTYPE_F32, 64);
    CommSum how = {.wire = DTYPE_F32};
    for (int n = 0; n < 6; ++n) comm->wait(comm, comm->all_reduce(comm, "of failure", x, how));
    Error err = {""}, later = {""};
    EXPECT(t, !comm->synchronize(comm, &err), "no failure");
    EXPECT(t, comm->all_reduce(comm, "later", x, how) == 0, "an operation after a failure");
    EXPECT(t, !t->be->synchronize(t->be, &later) && strcmp(err.message, later.message) == 0, "%s", later.message);
    fprintf(stderr, "%s\n", err.message);
    comm->close(comm);
}

// ---- incorrect use ----

static void test_captured(Test *t) {
    Group group = open_group(t, 0, 0, (CommSum){.wire = DTYPE_F32});
    for (int pass = 0; pass < 3; ++pass) {
        if (t->be->sequence_begin(t->be, 7)) continue;
        if (pass == 1) group.comm->barrier(group.comm, "in a graph");
        t->be->sequence_end(t->be, 7);
    }
}
static void test_mismatch(Test *t) {
    Group group = open_group(t, 64, 64, (CommSum){.wire = DTYPE_F32});
    Tensor x = device_tensor(t, DTYPE_F32, 64);
    group.comm->broadcast(group.comm, "odd", tensor_rows(x, 0, t->rank == 0 ? 64 : 32), 0);
    Error err = {""};
    group.comm->synchronize(group.comm, &err);
}
// Rank 0 waits for data that rank 1 never sends.
static void test_partner(Test *t) {
    CommSum how = {.tree = true, .wire = DTYPE_F32};
    Group group = open_group(t, 64, 64, how);
    Tensor x = device_tensor(t, DTYPE_F32, 64);
    CommSegment segment = {.owner = t->rank, .first = 0, .count = 64};
    if (t->rank == 0) group.comm->reduce_scatter(group.comm, "alone", x, x, &segment, 1, how);
    Error err = {""};
    group.comm->synchronize(group.comm, &err);
    if (t->rank != 0) sleep(20);
}
static void test_scratch(Test *t) {
    Group group = open_group(t, 64, 64, (CommSum){.wire = DTYPE_F32});
    Tensor x = device_tensor(t, DTYPE_F32, 1000000);
    group.comm->all_reduce(group.comm, "big", x, (CommSum){.tree = true, .wire = DTYPE_F32});
}
// Bandwidth of a group of one rank, compared with a copy of the same tensor (scripts/gpu_check.sh): medians of device time;
// the barrier shows the fixed cost of an operation.
typedef enum { MOVE_COPY, MOVE_REDUCE_SCATTER, MOVE_ACCUMULATE, MOVE_ALL_REDUCE_BF16, MOVE_BARRIER, MOVE_COUNT } Move;
static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double move_ms(Test *t, Comm *comm, Move move, Tensor out, Tensor in) {
    enum { ROUNDS = 9 };
    double ms[ROUNDS];
    const CommSegment all = {.owner = 0, .first = 0, .count = tensor_elems(in)};
    const CommSum plain = {.wire = DTYPE_F32}, add = {.wire = DTYPE_F32, .accumulate = true},
                  half = {.wire = DTYPE_BF16};
    Error err = {""};
    for (int round = -2; round < ROUNDS; ++round) {
        Ticket from = t->be->mark(t->be);
        CommEvent event = 0;
        if (move == MOVE_COPY) t->be->copy(t->be, out.data, in.data, tensor_bytes(in));
        if (move == MOVE_REDUCE_SCATTER) event = comm->reduce_scatter(comm, "copy", out, in, &all, 1, plain);
        if (move == MOVE_ACCUMULATE) event = comm->reduce_scatter(comm, "add", out, in, &all, 1, add);
        if (move == MOVE_ALL_REDUCE_BF16) event = comm->all_reduce(comm, "round", out, half);
        if (move == MOVE_BARRIER) event = comm->barrier(comm, "barrier");
        comm->wait(comm, event);
        Ticket to = t->be->mark(t->be);
        EXPECT(t, comm->synchronize(comm, &err) && t->be->synchronize(t->be, &err), "%s", err.message);
        if (round >= 0) ms[round] = t->be->elapsed_ms(t->be, from, to);
    }
    qsort(ms, ROUNDS, sizeof *ms, compare_doubles);
    return ms[ROUNDS / 2];
}
static void test_bandwidth(Test *t) {
    static const char *const NAMES[MOVE_COUNT] = {"copy", "reduce_scatter", "reduce_scatter +=", "all_reduce bf16",
                                                  "barrier"};
    static const double BYTES[MOVE_COUNT] = {8, 8, 12, 12, 0};  // of memory traffic per element
    int64_t elems = strcmp(t->be->name, "cuda") == 0 ? 64 << 20 : 64 << 10;
    Group group = open_group(t, elems, elems, (CommSum){.wire = DTYPE_BF16});
    Tensor in = device_tensor(t, DTYPE_F32, elems), out = device_tensor(t, DTYPE_F32, elems);
    t->be->zero(t->be, in.data, tensor_bytes(in));
    t->be->zero(t->be, out.data, tensor_bytes(out));
    double copied = 0;
    for (int move = 0; move < MOVE_COUNT; ++move) {
        double ms = move_ms(t, group.comm, (Move)move, out, in), rate = BYTES[move] * (double)elems / ms * 1e-6;
        if (move == MOVE_COPY) copied = rate;
        printf("{\"op\": \"%s\", \"mib\": %.1f, \"us\": %.1f, \"gb_per_s\": %.1f, \"share_of_copy\": %.3f}\n",
               NAMES[move], (double)elems * 4 / 1048576, ms * 1e3, rate, rate / copied);
    }
    device_free(t, in);
    device_free(t, out);
    close_group(t, group);
}
static void test_open(Test *t) { close_group(t, open_group(t, 0, 0, (CommSum){.wire = DTYPE_F32})); }

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(Test *t);
    } TESTS[] = {{"operations", test_operations}, {"steps", test_steps},       {"queue", test_queue},
                 {"planted", test_planted},       {"status", test_status},     {"failure", test_failure},
                 {"captured", test_captured},     {"mismatch", test_mismatch}, {"partner", test_partner},
                 {"scratch", test_scratch},       {"open", test_open},         {"bandwidth", test_bandwidth}};
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *world = getenv("OMPI_COMM_WORLD_SIZE");
    const char *device = getenv("TOKAMAK_TEST_DEVICE"), *directory = getenv("TOKAMAK_TEST_DIR");
    Test t = {.rank = rank != NULL ? atoi(rank) : 0, .world = world != NULL ? atoi(world) : 1};
    Error err = {""};
    BackendOptions options = {.attention = "own", .graphs = true};
    t.be = backend_plugin_open(device != NULL ? device : "cudaemu", &options, &err);
    if (t.be == NULL) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    if (t.world > 1) {
        Launch launch = {.kind = LAUNCH_DIRECTORY, .rank = t.rank, .world = t.world, .local_rank = t.rank};
        ControlOptions control = {.timeout_seconds = 60};
        snprintf(launch.directory, sizeof launch.directory, "%s", directory != NULL ? directory : "");
        if (gethostname(launch.host, sizeof launch.host) != 0 || !control_open(&t.control, &launch, &control, &err)) {
            fprintf(stderr, "control_open: %s\n", err.message);
            return 1;
        }
    }
    bool found = false;
    for (size_t i = 0; i < sizeof TESTS / sizeof TESTS[0]; ++i) {
        if (argc != 2 || strcmp(TESTS[i].name, argv[1]) != 0) continue;
        found = true;
        TESTS[i].run(&t);
    }
    EXPECT(&t, found, "expected the name of a test");
    if (t.rank == 0 && t.failures == 0) printf("passed on %d ranks\n", t.world);
    if (t.control != NULL) control_close(t.control);
    t.be->close(t.be);
    return t.failures == 0 ? 0 : 1;
}
