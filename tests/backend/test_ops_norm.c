// test_ops_norm.c: LayerNorm and RMSNorm.
#include "tests/support/case_test.h"

int main(void) { return case_test_main(&OPS_NORM, NULL, 0); }
