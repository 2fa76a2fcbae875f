// op_test.h: for tests of backend operations: a backend per case and level, poisoned device tensors, host copies in
// double, relative errors that NaN cannot pass. Operations are called only through backend.h, so the same tests serve
// every backend (TOKAMAK_TEST_DEVICE, default cpu).
//
// Checks that a table can describe are cases of dev/cases, which case_test.h runs. A test file lists the other checks
// for op_test_main, which runs each at every level of the device:
//
//     static void test_add_views(OpTest *t) {
//         Tensor a = op_test_random(t, DTYPE_BF16, OP_TEST_DIMS(3, 7), 1.0), b = ...;
//         Tensor out = op_test_tensor(t, DTYPE_BF16, OP_TEST_DIMS(3, 7));  // NaN until the operation writes it
//         t->be->add(t->be, out, a, b);
//         ... a reference in double from op_test_host(t, a) ...
//         op_test_close(t, out, ref, op_test_tolerance(out.dtype), "add 3x7");
//     }
//     int main(void) {
//         const OpTestCase CASES[] = {OP_TEST_CASE(test_add_views)};
//         return op_test_main(CASES, sizeof CASES / sizeof CASES[0]);
//     }
#ifndef TESTS_OP_TEST_H
#define TESTS_OP_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "dev/cases/cases.h"
#include "llmc/backend/backend.h"

// Unit round-off of the stored dtype: half the distance between 1 and the next number.
#define OP_TEST_EPS_F32 0x1p-24
#define OP_TEST_EPS_BF16 0x1p-8

typedef struct {
    Backend *be;
    uint64_t draws;  // tensors filled so far: each has its own random numbers, equal in every run
    struct OpTestBlock *blocks;
    uint64_t seen;  // hash of all results that the case has read
    bool once;      // true at one level and order only: for checks that do not depend on the device
    bool repeat;    // a further thread order: results must equal those of the first order, which was compared
    const void *data;  // from the OpTestCase
} OpTest;

typedef struct {
    const char *name;
    void (*body)(OpTest *t);
    const void *data;
} OpTestCase;
#define OP_TEST_CASE(function) {#function, function, NULL}

// The two arguments "number of dimensions, dimensions": op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(N, C)).
#define OP_TEST_DIMS(...) \
    (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]) { __VA_ARGS__ }

// Tolerances of operations that round once on store.
static inline double op_test_tolerance(DType dtype) { return op_tolerance(dtype); }

// Returns the number of failed cases: main's exit status.
int op_test_main(const OpTestCase *cases, size_t count);

// ---- device tensors, freed with the case; writing just outside of one fails the case ----
Tensor op_test_tensor(OpTest *t, DType dtype, int ndim, const int64_t *dims);  // poisoned
Tensor op_test_random(OpTest *t, DType dtype, int ndim, const int64_t *dims, double scale);  // scale * N(0,1)
Tensor op_test_from(OpTest *t, DType dtype, int ndim, const int64_t *dims, const double *values);
// Every byte 0xff: NaN as fp32, bf16 or fp64, -1 as int32.
void op_test_poison(OpTest *t, Tensor tensor);
void op_test_upload(OpTest *t, Tensor tensor, const double *values);  // rounded to the tensor's dtype

// Frees all memory of the case, on the device and on the host: for cases over hundreds of shapes, because the emulated
// GPU keeps all of them under guard.
void op_test_release(OpTest *t);

// ---- host memory, freed with the case ----
void *op_test_bytes(OpTest *t, size_t bytes);           // zeroed
void op_test_keep(OpTest *t, void *memory);             // takes ownership of malloc'ed memory
double *op_test_doubles(OpTest *t, int64_t elems);      // zeroed
double *op_test_host(OpTest *t, Tensor tensor);         // the tensor's current elements, exactly

// ---- comparisons ----
// norm(out - ref) / norm(ref); norm(out) if ref is all zero; NaN if either holds a NaN.
double op_test_error(const double *out, const double *ref, int64_t elems);
// Fails the case unless the relative error is at most tolerance. label: what was compared, at which shape.
void op_test_close(OpTest *t, Tensor out, const double *ref, double tolerance, const char *label, ...)
    PRINTF_LIKE(5, 6);
void op_test_same_bits(OpTest *t, Tensor a, Tensor b, const char *label);
// Sets the threads of the backend's operations, if it has host threads; 0: as many as at the start.
void op_test_set_threads(OpTest *t, int threads);

// Whether the test device is the CPU, where a wrong value stops the process; a GPU's kernels cannot do that.
bool op_test_on_cpu(void);

// Fails the case unless run aborts with a message that contains `message`: a CHECK of the operation's contract. Runs in
// a child process; only for backends in host memory, and for sizes too small for threads.
void op_test_aborts(OpTest *t, void (*run)(OpTest *t, void *user), void *user, const char *message);

#endif
