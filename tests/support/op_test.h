// op_test.h: what all tests of backend operations share: a backend per case and instruction-set level, poisoned
// device tensors, host copies in double, relative errors that NaN cannot pass, numeric gradients. Operations are
// reached only through backend.h, so the same tests serve every backend (TOKAMAK_TEST_DEVICE, default cpu).
//
// What a table can say of an operation is a case of dev/cases, which case_test.h runs. A test file lists what no table
// can say and hands it to op_test_main, which runs each at every level of the device:
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

// Unit round-off of what a result is stored as: half the distance between 1 and the next number.
#define OP_TEST_EPS_F32 0x1p-24
#define OP_TEST_EPS_BF16 0x1p-8

typedef struct {
    Backend *be;
    uint64_t draws;  // tensors filled so far: each gets its own random numbers, the same in every run
    struct OpTestBlock *blocks;
    uint64_t seen;  // hash of all results that the case has read
    bool once;      // in one level and order of the device alone: what does not depend on the device is tested then
    bool repeat;    // in a further thread order: what is seen must be the same as in the first, which was compared
    const void *data;  // of the OpTestCase
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

// Frees all that the case holds so far, on the device and on the host: for a case that goes through hundreds of shapes,
// which an emulated GPU would all keep under guard.
void op_test_release(OpTest *t);

// ---- host memory, freed with the case ----
void *op_test_bytes(OpTest *t, size_t bytes);           // zeroed
void op_test_keep(OpTest *t, void *memory);             // from malloc
double *op_test_doubles(OpTest *t, int64_t elems);      // zeroed
double *op_test_host(OpTest *t, Tensor tensor);         // the tensor's elements now, exactly

// ---- comparisons ----
// norm(out - ref) / norm(ref); norm(out) if ref is all zero; NaN if either holds a NaN.
double op_test_error(const double *out, const double *ref, int64_t elems);
// Fails the case unless the relative error is at most tolerance. The label says what was compared, at which shape.
void op_test_close(OpTest *t, Tensor out, const double *ref, double tolerance, const char *label, ...)
    PRINTF_LIKE(5, 6);
void op_test_same_bits(OpTest *t, Tensor a, Tensor b, const char *label);
// How many threads the backend's operations use from now on, where it has threads; 0: as many as at the start.
void op_test_set_threads(OpTest *t, int threads);

// Whether the device under test is the CPU, where a wrong value stops the process; a GPU's kernels cannot.
bool op_test_on_cpu(void);

// Fails the case unless run aborts with a message that contains `message`: a CHECK of the operation's contract. It runs
// in a child process; only for backends in host memory, and for sizes too small for threads.
void op_test_aborts(OpTest *t, void (*run)(OpTest *t, void *user), void *user, const char *message);

#endif
