// test_gemm.c: Backend.matmul: every transpose, dtype and epilogue; NaN and infinity; views; the magnitudes that
// scale 8-bit inputs.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/case_test.h"

enum { OUT, A, B };
// Flags of dev/cases/matmul.c.
#define TRANS_B 2u
#define BIAS 4u
#define GELU 16u
#define NARROW 512u  // out has the inputs' dtype
#define WIDE 1024u   // out is fp32

// In each dtype of inputs and output.
static const struct {
    DType in;
    unsigned out;
} DTYPES[] = {{DTYPE_F32, NARROW}, {DTYPE_BF16, NARROW}, {DTYPE_BF16, WIDE}};

static Tensor random_2d(OpTest *t, DType dtype, int64_t rows, int64_t cols) {
    return op_test_random(t, dtype, 2, (int64_t[]){rows, cols}, 1.0);
}

// A NaN or an infinity in one row of a (column of b) reaches that row (column) of the output and no other, also in the
// padded tiles at the edge.
static void test_not_finite(OpTest *t) {
    static const int64_t ROWS[] = {2, 43};
    for (int d = 0; d < 3; ++d)
        for (unsigned i = 0; i < 8; ++i) {
            const int64_t M = ROWS[i & 1], N = 67, K = 35, bad_row = M - 1, bad_col = N - 1;
            const double bad = i & 4 ? (double)INFINITY : (double)NAN;
            const unsigned trans_b = i & TRANS_B;
            OpCall *call =
                case_test_open(t, "matmul", "plain", DTYPES[d].in, trans_b | DTYPES[d].out, OP_TEST_DIMS(M, N, K));
            call->operand[A].pattern[bad_row * K + K - 1] = bad;
            call->operand[B].pattern[trans_b ? bad_col * K : bad_col] = bad;
            op_call_upload(call, A);
            op_call_upload(call, B);
            case_test_run(t, call);
            double *out = op_test_host(t, call->t[0][OUT]);
            for (int64_t m = 0; m < M; ++m)
                for (int64_t n = 0; n < N; ++n)
                    if (isfinite(out[m * N + n]) == (m == bad_row || n == bad_col))
                        fail_msg("%s %lldx67x35: out[%lld][%lld] = %g", dtype_name(DTYPES[d].in), (long long)M,
                                 (long long)m, (long long)n, out[m * N + n]);
            op_test_release(t);
        }
}

// Views that start at any element: the rows of a table of odd width.
static void test_views(OpTest *t) {
    for (int d = 0; d < 3; ++d) {
        case_test_views(t, "matmul", "epilogues", DTYPES[d].in, TRANS_B | BIAS | GELU | DTYPES[d].out,
                        OP_TEST_DIMS(16, 24, 32));
        op_test_release(t);
    }
}

static bool device_has_fp8(OpTest *t) {
    if (!t->be->matmul_fp8) printf("not tested: this device has no 8-bit floats\n");
    return t->be->matmul_fp8;
}

// Operands for products of an x of up to N rows and C columns; created before x is written, since any operation in
// between ends a record.
typedef struct {
    Tensor weight, copy, out[2];
} RecordCheck;
static RecordCheck record_check(OpTest *t, int64_t N, int64_t C) {
    RecordCheck check = {.weight = random_2d(t, DTYPE_BF16, 16, C), .copy = random_2d(t, DTYPE_BF16, N, C)};
    for (int i = 0; i < 2; ++i) check.out[i] = op_test_tensor(t, DTYPE_BF16, OP_TEST_DIMS(N, 16));
    return check;
}
// The products of x and of a copy of it, which has no record: the same bits, or the record is wrong.
static void check_fp8_record(OpTest *t, const RecordCheck *check, Tensor x, const char *writer) {
    const MatmulArgs args = {.trans_b = true, .alpha = 1, .fp8 = FP8_FORWARD};
    Tensor weight = check->weight, copy = check->copy;
    weight.dim[1] = copy.dim[1] = x.dim[1];
    t->be->matmul(t->be, check->out[0], x, weight, args);
    t->be->copy(t->be, copy.data, x.data, tensor_bytes(x));
    t->be->matmul(t->be, check->out[1], copy, weight, args);
    op_test_same_bits(t, check->out[0], check->out[1], writer);
}
// The operations that record the magnitude of their output: with packs and without, rows of one warp and of many.
// Also operations that write x without a record.
static void test_fp8_records(OpTest *t) {
    if (!device_has_fp8(t)) return;
    static const int64_t SHAPES[][2] = {{5, 64}, {3, 75}, {37, 1032}, {2, 6000}, {1, 9001}, {300, 96}};
    for (size_t s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; ++s) {
        const int64_t N = SHAPES[s][0], C = SHAPES[s][1];
        Tensor out = random_2d(t, DTYPE_BF16, N, C), x = random_2d(t, DTYPE_BF16, N, C);
        Tensor pre = random_2d(t, DTYPE_BF16, N, 2 * C), dpre = random_2d(t, DTYPE_BF16, N, 2 * C);
        Tensor weight = op_test_random(t, DTYPE_BF16, OP_TEST_DIMS(C), 1.0);
        Tensor mean = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(N), 1.0);
        Tensor rstd = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(N), 1.0);
        Tensor dweight = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(C), 1.0);
        NormArgs norm = {.kind = NORM_LAYER, .eps = 1e-5f};
        const RecordCheck check = record_check(t, N, 2 * C);
        check_fp8_record(t, &check, x, "nobody");
        t->be->norm_forward(t->be, out, mean, rstd, x, weight, TENSOR_NONE, norm);
        check_fp8_record(t, &check, out, "norm_forward");
        for (int accumulate = 0; accumulate < 2; ++accumulate) {
            t->be->norm_backward(t->be, out, dweight, TENSOR_NONE, x, x, weight, mean, rstd, accumulate, true, norm);
            check_fp8_record(t, &check, out, "norm_backward");
        }
        for (Activation kind = ACT_GELU; kind <= ACT_RELU2; ++kind) {
            t->be->activation_forward(t->be, out, x, kind);
            check_fp8_record(t, &check, out, "activation_forward");
            t->be->activation_backward(t->be, out, x, x, kind);
            check_fp8_record(t, &check, out, "activation_backward");
        }
        t->be->activation_forward(t->be, out, pre, ACT_SWIGLU);
        check_fp8_record(t, &check, out, "activation_forward, SwiGLU");
        t->be->activation_backward(t->be, dpre, out, pre, ACT_SWIGLU);
        check_fp8_record(t, &check, dpre, "activation_backward, SwiGLU");
        // The record of out is followed by another tensor at its place.
        t->be->activation_forward(t->be, out, x, ACT_GELU);
        t->be->add(t->be, out, out, x);
        check_fp8_record(t, &check, out, "add");
        // A product with our kernel as epilogue; its inputs keep their records.
        if (C % 16 == 0 && C < 1000) {
            Tensor b = random_2d(t, DTYPE_BF16, C, C);
            MatmulArgs args = {.trans_b = true, .alpha = 1, .act = ACT_RELU2, .fp8 = FP8_FORWARD};
            t->be->norm_forward(t->be, x, mean, rstd, out, weight, TENSOR_NONE, norm);
            t->be->matmul(t->be, out, x, b, args);
            check_fp8_record(t, &check, out, "matmul, ReLU^2");
            t->be->matmul(t->be, out, x, b, args);
            check_fp8_record(t, &check, x, "matmul's input");
        }
        op_test_release(t);
    }
}

// The magnitudes that scale inputs are those of this call's inputs, not of earlier data at the same address.
static void test_fp8_scales(OpTest *t) {
    if (!device_has_fp8(t)) return;
    const int64_t dim[3] = {24, 32, 48}, M = dim[0], N = dim[1], K = dim[2];
    OpCall *call = case_test_open(t, "matmul forward", "fp8", DTYPE_BF16, TRANS_B, 3, dim);
    Tensor a = call->t[0][A], small = op_test_random(t, DTYPE_BF16, OP_TEST_DIMS(M, K), 1e-6);
    for (int i = 0; i < 4; ++i) {
        if (i == 1) t->be->copy(t->be, a.data, small.data, tensor_bytes(small));
        if (i == 2) op_test_upload(t, a, op_test_host(t, random_2d(t, DTYPE_BF16, M, K)));
        if (i == 3) t->be->zero(t->be, a.data, tensor_bytes(a));
        op_download(call, A, 0, M * K, call->operand[A].pattern);
        call->c->kind->derive(call);
        op_call_reset(call);
        case_test_run(t, call);
        case_test_check(t, call, true);
    }
    // Non-finite inputs must not give finite outputs.
    double *values = op_test_host(t, small);
    for (int i = 0; i < 2; ++i) {
        values[7] = i == 0 ? (double)INFINITY : (double)NAN;
        op_test_upload(t, a, values);
        case_test_run(t, call);
        double *out = op_test_host(t, call->t[0][OUT]);
        for (int64_t n = 0; n < N; ++n)
            if (i == 0 ? isfinite(out[n]) : !isnan(out[n]))
                fail_msg("input %g, out[%lld] = %g", values[7], (long long)n, out[n]);
    }
}

int main(void) {
    const OpTestCase SPECIAL[] = {OP_TEST_CASE(test_not_finite), OP_TEST_CASE(test_views),
                                  OP_TEST_CASE(test_fp8_scales), OP_TEST_CASE(test_fp8_records)};
    return case_test_main(&OPS_MATMUL, SPECIAL, sizeof SPECIAL / sizeof SPECIAL[0]);
}
