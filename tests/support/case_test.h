// case_test.h: runs the cases of dev/cases as tests: every odd shape of every kind, in every dtype and at every level
// of the device (op_test.h). Checks: all elements of all outputs equal the reference within tolerance; read-only
// operands and memory around tensors are not written; the same bits with 1, 2 and 3 threads, or twice; the same bits
// in place where allowed; the reference's gradients agree with finite differences.
#ifndef TESTS_CASE_TEST_H
#define TESTS_CASE_TEST_H

#include "tests/support/op_test.h"

// Runs the family's cases, then the `special` ones. Returns the number of failed cases: main's exit status.
int case_test_main(const OpFamily *family, const OpTestCase *special, size_t special_count);

// ---- for special cases ----

// The filled operands of an operation on the device; freed with the case. Set t[0][operand] or upload to change them.
OpCall *case_test_open(OpTest *t, const char *op, const char *variant, DType dtype, unsigned flags, int dims,
                       const int64_t *dim);
// Fills the CPU's scratch memory with NaN, which operations must not read; does nothing on other devices.
void case_test_poison_scratch(OpTest *t);
// Poisons scratch, then runs the operation.
void case_test_run(OpTest *t, OpCall *call);
void case_test_run_user(OpTest *t, void *call);  // the same, for op_test_aborts
// Fails unless the outputs match the reference: every element, or a sample.
void case_test_check(OpTest *t, OpCall *call, bool every_element);
// Runs and checks the case once for each operand, with that operand one element off its alignment.
void case_test_views(OpTest *t, const char *op, const char *variant, DType dtype, unsigned flags, int dims,
                     const int64_t *dim);

#endif
