// test_comm.c: the group of one rank, and the pure functions of groups in host memory: pieces of segments, sums in the tree.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "llmc/ranks/comm_host.h"

static void test_cursor(void **state) {
    (void)state;
    const CommSegment segment[] = {{1, 0, 5}, {0, 5, 7}, {2, 20, 1}, {0, 30, 3}};
    assert_int_equal(comm_segments_check(segment, 4, 3, 33, 0), 10);
    assert_int_equal(comm_segments_check(segment, 4, 4, 33, 3), 0);
    const CommPiece expected[] = {{5, 0, 3}, {8, 3, 3}, {11, 6, 1}, {30, 7, 3}};
    CommCursor cursor = comm_cursor(segment, 4, 0, 3);
    CommPiece piece;
    for (int i = 0; i < 4; ++i) {
        assert_true(comm_cursor_next(&cursor, &piece));
        assert_memory_equal(&piece, &expected[i], sizeof piece);
    }
    assert_false(comm_cursor_next(&cursor, &piece));
    assert_false(comm_cursor_next(&cursor, &piece));
    cursor = comm_cursor(segment, 4, 3, 3);
    assert_false(comm_cursor_next(&cursor, &piece));
    cursor = comm_cursor(NULL, 0, 0, 3);
    assert_false(comm_cursor_next(&cursor, &piece));
}

static void test_even(void **state) {
    (void)state;
    static const int64_t ELEMS[] = {0, 1, 16, 17, 33, 1000, 12345678901};
    CommSegment segment[7];
    for (int world = 1; world <= 7; ++world) {
        for (int e = 0; e < 7; ++e) {
            int count = comm_segments_even(segment, world, ELEMS[e]);
            assert_true(count <= world);
            int64_t owned = 0, most = 0;
            for (int r = 0; r < world; ++r) {
                int64_t own = comm_segments_check(segment, count, world, ELEMS[e], r);
                owned += own;
                most = max_i64(most, own);
            }
            assert_int_equal(owned, ELEMS[e]);
            assert_true(most < div_up(ELEMS[e], world) + 16);
        }
    }
}

// The tree, written out for each number of terms.
static float by_hand(const float *x, int n) {
    switch (n) {
    case 1: return x[0];
    case 2: return x[0] + x[1];
    case 3: return (x[0] + x[1]) + x[2];
    case 4: return (x[0] + x[1]) + (x[2] + x[3]);
    case 5: return ((x[0] + x[1]) + (x[2] + x[3])) + x[4];
    case 6: return ((x[0] + x[1]) + (x[2] + x[3])) + (x[4] + x[5]);
    case 7: return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + x[6]);
    default: return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
    }
}

#define SUM_ELEMS 2500
static float term_value(int t, int i) { return (float)((t * 7919 + i * 104729) % 100003) * (t % 2 ? 1e-3f : 3.7f); }

static void test_sum_f32(void **state) {
    (void)state;
    float *data = xmalloc(8 * SUM_ELEMS * sizeof *data), *out = xmalloc(SUM_ELEMS * sizeof *out);
    uint16_t *narrow = xmalloc(8 * SUM_ELEMS * sizeof *narrow);
    for (int mode = 0; mode < 4; ++mode) {  // =, +=, in place, bf16 with this rank's contribution rounded here
        for (int count = 1; count <= 8; ++count) {
            CommTerm term[8];
            for (int t = 0; t < count; ++t) {
                float *x = data + t * SUM_ELEMS;
                for (int i = 0; i < SUM_ELEMS; ++i) x[i] = term_value(t, i);
                term[t] = (CommTerm){.data = x, .dtype = DTYPE_F32};
                if (mode < 3) continue;
                comm_round_bf16(narrow + t * SUM_ELEMS, x, SUM_ELEMS);
                if (t == count / 2) term[t].rounded = true;
                else term[t] = (CommTerm){.data = narrow + t * SUM_ELEMS, .dtype = DTYPE_BF16};
            }
            float *to = mode == 2 ? data + count / 2 * SUM_ELEMS : out;
            for (int i = 0; i < SUM_ELEMS && mode != 2; ++i) to[i] = (float)i;
            comm_sum_tree(to, DTYPE_F32, mode == 1, term, count, SUM_ELEMS);
            for (int i = 0; i < SUM_ELEMS; ++i) {
                float x[8];
                for (int t = 0; t < count; ++t) {
                    x[t] = term_value(t, i);
                    if (mode == 3) x[t] = bf16_to_f32(bf16_from_f32(x[t]));
                }
                float expected = mode == 1 ? (float)i + by_hand(x, count) : by_hand(x, count);
                assert_memory_equal(&to[i], &expected, sizeof expected);
            }
        }
    }
    free(data);
    free(out);
    free(narrow);
}

static void test_sum_f64(void **state) {
    (void)state;
    // In another order, 1 would be lost in 1e17.
    const double a = 1e17, b = -1e17, c = 1, d = 0.5;
    const CommTerm term[] = {
        {&a, DTYPE_F64, false}, {&b, DTYPE_F64, false}, {&c, DTYPE_F64, false}, {&d, DTYPE_F64, false}};
    const CommTerm swapped[] = {term[0], term[2], term[1], term[3]};
    double sum = 7;
    comm_sum_tree(&sum, DTYPE_F64, false, term, 4, 1);
    assert_true(sum == 1.5);
    comm_sum_tree(&sum, DTYPE_F64, true, term, 3, 1);
    assert_true(sum == 2.5);
    comm_sum_tree(&sum, DTYPE_F64, false, swapped, 4, 1);
    assert_true(sum == 0);
}

static void test_scratch(void **state) {
    (void)state;
    CommSum how = {.wire = DTYPE_F32};
    assert_int_equal(comm_scratch_bytes("none", 1, 1000, 1000, how), 0);
    assert_int_equal(comm_scratch_bytes("mpi", 1, 1000, 1000, how), 0);
    assert_int_equal(comm_scratch_bytes("mpi", 3, 1000, 1, how), 2 * COMM_WINDOW * 4096);
    assert_int_equal(comm_scratch_bytes("mpi", 2, 4000, 2000, how), COMM_WINDOW * 8000);
    assert_int_equal(comm_scratch_bytes("mpi", 4, 1000000000, 250000000, how), 3 * COMM_WINDOW * COMM_PIECE_BYTES);
}

static void test_none(void **state) {
    (void)state;
    Error err = {""};
    Backend *be = backend_cpu_open(1, "auto", &err);
    assert_non_null(be);
    assert_string_equal(comm_kind(be, 1), "none");
    assert_string_equal(comm_kind(be, 2), "mpi");
    Backend gpu = {.name = "cudaemu"};
    assert_string_equal(comm_kind(&gpu, 2), "nccl");

    Comm *comm;
    CommOptions options = {.axis = MESH_ALONE};
    assert_true(comm_open(&comm, "none", be, &options, &err));
    assert_string_equal(comm->kind, "none");
    float in[10], out[6] = {1, 1, 1, 1, 1, 1};
    for (int i = 0; i < 10; ++i) in[i] = (float)i + 0.3f;
    const CommSegment segment[] = {{0, 1, 2}, {0, 5, 4}};
    const float expected[6] = {1.3f, 2.3f, 5.3f, 6.3f, 7.3f, 8.3f};
    // Nothing is sent, so wire bf16 rounds nothing.
    CommSum how = {.wire = DTYPE_BF16};
    Tensor x = tensor_1d(in, DTYPE_F32, 10), sums = tensor_1d(out, DTYPE_F32, 6);
    comm->wait(comm, comm->reduce_scatter(comm, "reduce", sums, x, segment, 2, how));
    assert_memory_equal(out, expected, sizeof out);
    how.accumulate = true;
    comm->wait(comm, comm->reduce_scatter(comm, "reduce", sums, x, segment, 2, how));
    for (int i = 0; i < 6; ++i) assert_true(out[i] == expected[i] + expected[i]);
    how.accumulate = false;
    comm->wait(comm, comm->reduce_scatter(comm, "reduce", x, x, segment, 2, how));
    comm->wait(comm, comm->all_gather(comm, "gather", x, segment, 2));
    comm->wait(comm, comm->all_reduce(comm, "sum", x, how));
    comm->wait(comm, comm->broadcast(comm, "broadcast", x, 0));
    comm->wait(comm, comm->barrier(comm, "barrier"));
    for (int i = 0; i < 10; ++i) assert_true(in[i] == (float)i + 0.3f);
    assert_true(comm->synchronize(comm, &err));
    CommStats stats;
    comm->stats(comm, &stats);
    assert_true(stats.operations == 0 && stats.bytes == 0 && stats.busy_seconds == 0);
    ControlStatus status;
    comm->status(comm, &status);
    assert_true(status.sequence == 0 && status.waiting_seconds < 0);
    comm->close(comm);
    be->close(be);
}

static void test_errors(void **state) {
    (void)state;
    Error err = {""};
    Backend *be = backend_cpu_open(1, "auto", &err);
    Comm *comm;
    CommMpiPlugin closed = {.mpi = NULL};
    CommOptions options = {.axis = {1, 4}};
    assert_false(comm_open(&comm, "mpi", be, &options, &err));
    assert_non_null(strstr(err.message, "4 CPU ranks need MPI"));
    assert_non_null(strstr(err.message, "mpirun"));
    options.mpi = &closed;
    assert_false(comm_open(&comm, "mpi", be, &options, &err));
    assert_null(comm);
    assert_false(comm_open(&comm, "nccl", be, &options, &err));
    assert_non_null(strstr(err.message, "device cpu has no NCCL"));
    comm_mpi_close(&closed);
    be->close(be);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cursor),  cmocka_unit_test(test_even),    cmocka_unit_test(test_sum_f32),
        cmocka_unit_test(test_sum_f64), cmocka_unit_test(test_scratch), cmocka_unit_test(test_none),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
