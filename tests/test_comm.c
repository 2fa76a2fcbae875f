// test_comm.c: one rank: sums are what is there already, and nothing else is accepted.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "llmc/comm.h"

static void test_one_rank(void **state) {
    (void)state;
    Comm comm;
    comm_init(&comm);
    assert_int_equal(comm.rank, 0);
    assert_int_equal(comm.world, 1);
    assert_true(comm_sum_scalar(&comm, 0.1) == 0.1);
    float values[3] = {1.5f, -2.0f, 0.1f};
    const float before[3] = {1.5f, -2.0f, 0.1f};
    comm_all_reduce_sum(&comm, tensor_1d(values, DTYPE_F32, 3));
    assert_memory_equal(values, before, sizeof before);
    double sum = 0.1;
    comm_all_reduce_sum(&comm, tensor_1d(&sum, DTYPE_F64, 1));
    assert_true(sum == 0.1);
    comm_all_reduce_sum(&comm, tensor_1d(NULL, DTYPE_F32, 0));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_rank)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
