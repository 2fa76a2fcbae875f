// bench_comm.c: `bench comm`: the time of collectives by size, and how much of an all_reduce is hidden behind
// concurrent matmuls. Start it like training: mpirun -np 2 build/bench comm. Rank 0 prints its times, each from a
// barrier to the end of the operation on this rank.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/bench.h"
#include "llmc/ranks/comm.h"

#define MAX_ROUNDS 200
#define ROUND_BYTES ((int64_t)256 << 20)  // bytes to move for one row, within the limits on rounds
#define MATMUL_DIM 512

typedef struct {
    Launch launch;
    CommMpiPlugin mpi;
    Control *control;
    Backend *be;
    Comm *comm;
    void *scratch;
    size_t scratch_bytes;
    CommSegment *even;
    Tensor x, a, b, c;  // operand of the collectives; operands of matmuls
} CommBench;

typedef enum {
    ROW_REDUCE_SCATTER,
    ROW_ALL_GATHER,
    ROW_ALL_REDUCE,
    ROW_ALL_REDUCE_BF16,
    ROW_BROADCAST,
    ROW_COUNT
} Row;
static const char *const ROW_NAMES[ROW_COUNT] = {"reduce_scatter", "all_gather", "all_reduce", "all_reduce bf16",
                                                 "broadcast"};

// One segment per rank.
static int split(CommBench *bench, int64_t elems) {
    int64_t each = div_up(elems, bench->comm->world);
    int count = 0;
    for (int64_t first = 0; first < elems; first += each, ++count)
        bench->even[count] = (CommSegment){.owner = count, .first = first, .count = min_i64(each, elems - first)};
    return count;
}

static CommEvent issue(CommBench *bench, Row row, int64_t elems) {
    Comm *comm = bench->comm;
    Tensor x = tensor_1d(bench->x.data, DTYPE_F32, elems);
    int segments = split(bench, elems);
    CommSum sum = {.wire = row == ROW_ALL_REDUCE_BF16 ? DTYPE_BF16 : DTYPE_F32};
    switch (row) {
    case ROW_REDUCE_SCATTER: return comm->reduce_scatter(comm, ROW_NAMES[row], x, x, bench->even, segments, sum);
    case ROW_ALL_GATHER: return comm->all_gather(comm, ROW_NAMES[row], x, bench->even, segments);
    case ROW_ALL_REDUCE:
    case ROW_ALL_REDUCE_BF16: return comm->all_reduce(comm, ROW_NAMES[row], x, sum);
    case ROW_BROADCAST: return comm->broadcast(comm, ROW_NAMES[row], x, 0);
    case ROW_COUNT: break;
    }
    CHECK(false, "row=%d", (int)row);
    return 0;
}

// Waits for the group and for the device.
static bool finish(CommBench *bench, CommEvent event, Error *err) {
    bench->comm->wait(bench->comm, event);
    return bench->be->synchronize(bench->be, err) && bench->comm->synchronize(bench->comm, err);
}
static bool meet(CommBench *bench, Error *err) {
    return finish(bench, bench->comm->barrier(bench->comm, "start"), err);
}

// The least bytes in the busier direction of a rank's link, for an operand of `bytes`: GB/s counts these.
static double link_bytes(Row row, double bytes, int world) {
    double others = (double)(world - 1) / world;
    switch (row) {
    case ROW_REDUCE_SCATTER:
    case ROW_ALL_GATHER: return bytes * others;
    case ROW_ALL_REDUCE: return 2 * bytes * others;
    case ROW_ALL_REDUCE_BF16: return 1.5 * bytes * others;  // sums are sent in fp32
    default: return bytes;
    }
}

static bool measure_row(CommBench *bench, Row row, int64_t bytes, Error *err) {
    int64_t elems = max_i64(1, bytes / 4);
    int rounds = (int)min_i64(MAX_ROUNDS, max_i64(5, ROUND_BYTES / bytes));
    double seconds[MAX_ROUNDS];
    bench->be->zero(bench->be, bench->x.data, tensor_bytes(bench->x));
    for (int i = -2; i < rounds; ++i) {
        if (!meet(bench, err)) return false;
        double start = now_seconds();
        if (!finish(bench, issue(bench, row, elems), err)) return false;
        if (i >= 0) seconds[i] = now_seconds() - start;
    }
    double median = bench_median(seconds, rounds);
    if (bench->comm->rank == 0) {
        printf("%-16s %9.1f KiB  %10.1f us  p10 %10.1f  p90 %10.1f  %7.2f GB/s\n", ROW_NAMES[row],
               (double)bytes / 1024, median * 1e6, bench_quantile(seconds, rounds, 0.1) * 1e6,
               bench_quantile(seconds, rounds, 0.9) * 1e6,
               link_bytes(row, (double)bytes, bench->comm->world) / median / 1e9);
        fflush(stdout);
    }
    return true;
}

// ---- concurrent with matmuls ----
static void compute(CommBench *bench, int products) {
    MatmulArgs args = {.alpha = 1};
    for (int i = 0; i < products; ++i) bench->be->matmul(bench->be, bench->c, bench->a, bench->b, args);
}

typedef struct {
    double alone, compute, compute_beside, together, exposed;
} Overlap;

static bool measure_overlap_once(CommBench *bench, int products, int64_t elems, Overlap *out, Error *err) {
    if (!meet(bench, err)) return false;
    double start = now_seconds();
    if (!finish(bench, issue(bench, ROW_ALL_REDUCE, elems), err)) return false;
    out->alone = now_seconds() - start;
    if (!meet(bench, err)) return false;
    start = now_seconds();
    compute(bench, products);
    if (!finish(bench, 0, err)) return false;
    out->compute = now_seconds() - start;
    if (!meet(bench, err)) return false;
    CommStats before, after;
    bench->comm->stats(bench->comm, &before);
    start = now_seconds();
    CommEvent event = issue(bench, ROW_ALL_REDUCE, elems);
    compute(bench, products);
    if (!bench->be->synchronize(bench->be, err)) return false;
    out->compute_beside = now_seconds() - start;
    if (!finish(bench, event, err)) return false;
    out->together = now_seconds() - start;
    bench->comm->stats(bench->comm, &after);
    out->exposed = after.exposed_seconds - before.exposed_seconds;
    return true;
}

// Enough matmuls to take about three times as long as the all_reduce.
static bool measure_overlap(CommBench *bench, int64_t bytes, Error *err) {
    enum { ROUNDS = 7 };
    Overlap first, round;
    int products = 4;
    if (!measure_overlap_once(bench, products, bytes / 4, &first, err)) return false;
    double wanted = 3 * first.alone / (first.compute / products) + 1;
    // Equal on every rank; it affects only how long this takes.
    if (!control_reduce(bench->control, "products", NULL, 0, &wanted, 1)) return false;
    products = (int)wanted;
    double alone[ROUNDS], slowdown[ROUNDS], gain[ROUNDS], exposed[ROUNDS];
    for (int i = 0; i < ROUNDS; ++i) {
        if (!measure_overlap_once(bench, products, bytes / 4, &round, err)) return false;
        alone[i] = round.alone;
        slowdown[i] = round.compute_beside / round.compute;
        gain[i] = round.together / (round.alone + round.compute);
        exposed[i] = round.exposed;
    }
    if (bench->comm->rank == 0)
        printf("all_reduce of %.1f MiB with concurrent matmuls: alone %.1f ms; exposed %.1f ms; matmuls %.2fx as "
               "long; both %.2fx of the time in sequence\n", (double)bytes / 1048576,
               bench_median(alone, ROUNDS) * 1e3, bench_median(exposed, ROUNDS) * 1e3,
               bench_median(slowdown, ROUNDS), bench_median(gain, ROUNDS));
    return true;
}

// ---- opening ----
static bool open_bench(CommBench *bench, const BenchDevice *device, int64_t bytes, Error *err) {
    Launch *launch = &bench->launch;
    if (!launch_detect(launch, "auto", "", err)) return false;
    if (launch->kind == LAUNCH_MPI && !comm_mpi_open(&bench->mpi, launch, err)) return false;
    if (launch->world < 2)
        return error_set(err, "expected several ranks, found one: run mpirun -np 2 bench comm");
    ControlOptions control = {.timeout_seconds = 60};
    if (launch->kind == LAUNCH_MPI) {
        control.share = bench->mpi.api->share;
        control.share_context = bench->mpi.mpi;
    }
    if (!control_open(&bench->control, launch, &control, err)) return false;
    bench->be = bench_device_open(device, err);
    if (bench->be == NULL) return false;
    int64_t elems = bytes / 4, owned = div_up(elems, launch->world);
    const char *kind = comm_kind(bench->be, launch->world);
    for (int wire = 0; wire < 2; ++wire) {
        CommSum how = {.wire = wire == 0 ? DTYPE_F32 : DTYPE_BF16};
        size_t wanted = comm_scratch_bytes(kind, launch->world, elems, owned, how);
        if (wanted > bench->scratch_bytes) bench->scratch_bytes = wanted;
    }
    bench->scratch = bench->be->alloc(bench->be, bench->scratch_bytes, err);
    CommOptions options = {.axis = {launch->rank, launch->world}, .scratch = bench->scratch,
                           .scratch_bytes = bench->scratch_bytes, .control = bench->control, .mpi = &bench->mpi};
    if (bench->scratch == NULL || !comm_open(&bench->comm, kind, bench->be, &options, err)) return false;
    bench->even = xcalloc((size_t)launch->world, sizeof *bench->even);
    Tensor *square[3] = {&bench->a, &bench->b, &bench->c};
    for (int i = 0; i < 3; ++i) {
        *square[i] = tensor_2d(NULL, DTYPE_F32, MATMUL_DIM, MATMUL_DIM);
        square[i]->data = bench->be->alloc(bench->be, tensor_bytes(*square[i]), err);
        if (square[i]->data == NULL) return false;
        bench->be->zero(bench->be, square[i]->data, tensor_bytes(*square[i]));
    }
    WorkspaceShape shape = {.rows = MATMUL_DIM, .seq_len = MATMUL_DIM, .head_size = 64, .NH = 1, .NKV = 1,
                            .widest = MATMUL_DIM, .Vp = MATMUL_DIM, .chunk_rows = MATMUL_DIM, .tensors = 1};
    bench->be->workspace_limit_bytes = bench->be->plan_workspace(bench->be, shape);
    bench->x = tensor_1d(bench->be->alloc(bench->be, to_size(bytes), err), DTYPE_F32, elems);
    return bench->x.data != NULL;
}

static void close_bench(CommBench *bench) {
    Backend *be = bench->be;
    bench->comm->close(bench->comm);
    Tensor *tensors[4] = {&bench->x, &bench->a, &bench->b, &bench->c};
    for (int i = 0; i < 4; ++i) be->free(be, tensors[i]->data, tensor_bytes(*tensors[i]));
    be->free(be, bench->scratch, bench->scratch_bytes);
    be->close(be);
    free(bench->even);
    control_close(bench->control);
    comm_mpi_close(&bench->mpi);
}

static bool run(CommBench *bench, int64_t smallest, int64_t largest, Error *err) {
    if (bench->comm->rank == 0) printf("%s; %s\n", bench->comm->description, bench->be->description);
    for (int row = 0; row < ROW_COUNT; ++row)
        for (int64_t bytes = smallest; bytes <= largest; bytes *= 8)
            if (!measure_row(bench, (Row)row, bytes, err)) return false;
    return measure_overlap(bench, largest, err);
}

int bench_comm_main(int argc, char **argv) {
    BenchDevice device = {.device = "cpu", .isa = "auto", .threads = 1};
    int64_t smallest = 4 << 10, largest = 128 << 20;
    const Option rows[] = {
        {"device", OPTION_TO(device.device), .help = "cpu, cuda or cudaemu"},
        {"threads", OPTION_TO(device.threads), OPTION_WHOLE, 0, 4096,
         .help = "CPU: threads of each rank; 0: all cores"},
        {"smallest", OPTION_TO(smallest), OPTION_WHOLE, 4, 1e15, .help = "bytes of the smallest tensor"},
        {"largest", OPTION_TO(largest), OPTION_WHOLE, 4, 1e15,
         .help = "bytes of the largest, also used with concurrent matmuls"}};
    const OptionTable table = BENCH_OPTIONS(rows, "mpirun -np N bench comm: collectives of a group of ranks");
    int status = options_read(&table, argc, argv);
    if (status >= 0) return status;
    if (largest < smallest) {
        fprintf(stderr, "bench comm: expected smallest <= largest, found %lld and %lld\n", (long long)smallest,
                (long long)largest);
        return 2;
    }
    CommBench bench = {.be = NULL};
    Error err = {""};
    if (!open_bench(&bench, &device, largest, &err) || !run(&bench, smallest, largest, &err)) {
        fprintf(stderr, "bench comm: %s\n", err.message);
        if (bench.control != NULL) control_abort(bench.control, err.message);
        return 1;
    }
    close_bench(&bench);
    return 0;
}
