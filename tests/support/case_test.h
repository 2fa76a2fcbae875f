// case_test.h: runs the cases of dev/cases as tests. Every odd shape of every kind, in every dtype and at every level of
// the device (op_test.h): all elements of all outputs against the reference; what is only read is not written, nothing
// around a tensor is; the same bits with 1, 2 and 3 threads, or twice; in place where an operation may work in place;
// gradients of the reference against finite differences.
#ifndef TESTS_CASE_TEST_H
#define TESTS_CASE_TEST_H

#include "tests/support/op_test.h"

// The family's cases, then `special` ones. Returns the number of failed cases: main's exit status.
int case_test_main(const OpFamily *family, const OpTestCase *special, size_t special_count);

// ---- for special cases ----

// An operation's operands on the device, filled; freed with the case. Set t[0][operand] or upload to change what it sees.
OpCall *case_test_open(OpTest *t, const char *op, const char *variant, DType dtype, unsigned flags, int dims,
                       const int64_t *dim);
// NaN: what operations do not write there they must not use. Nothing on other devices than the CPU.
void case_test_poison_scratch(OpTest *t);
// Poisons scratch and runs it.
void case_test_run(OpTest *t, OpCall *call);
void case_test_run_user(OpTest *t, void *call);  // the same, for op_test_aborts
// Fails unless the outputs are what the reference makes of the patterns: every element, or a sample.
void case_test_check(OpTest *t, OpCall *call, bool every_element);
// Runs and checks the case once for each operand, with that one at an odd element.
void case_test_views(OpTest *t, const char *op, const char *variant, DType dtype, unsigned flags, int dims,
                     const int64_t *dim);

#endif
