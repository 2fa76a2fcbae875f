// test_ops_reduce.c: column sums and the weighted loss.
#include "tests/support/case_test.h"

int main(void) { return case_test_main(&OPS_REDUCE, NULL, 0); }
