// test_ops_reduce.c: column sums and the weighted loss against double precision.
#include "tests/support/op_test.h"

typedef struct {
    Tensor dbias, dout;
} BiasCase;
static void run_bias(OpTest *t, void *user) {
    const BiasCase *b = user;
    t->be->bias_backward(t->be, b->dbias, b->dout, false);
}

static void test_bias_backward(OpTest *t) {
    // On a GPU: several column blocks, whole packs of 16 bytes and not, more rows than all row blocks take at once.
    const int64_t SHAPES[][2] = {{1, 1}, {3, 7},    {16, 16},  {37, 100},  {130, 33},
                                 {0, 5}, {70, 520}, {70, 301}, {33, 1028}, {8300, 8}};
    for (size_t s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; ++s)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype) {
            int64_t N = SHAPES[s][0], C = SHAPES[s][1];
            Tensor dout = op_test_random(t, dtype, OP_TEST_DIMS(N, C), 1.0);
            Tensor dbias = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(C));
            const double *host = op_test_host(t, dout);
            double *ref = op_test_doubles(t, C), *twice = op_test_doubles(t, C);
            for (int64_t i = 0; i < N * C; ++i) ref[i % C] += host[i];
            for (int64_t c = 0; c < C; ++c) twice[c] = 2 * ref[c];
            // Inputs are exact in both dtypes and the sum is fp32: one tolerance.
            t->be->bias_backward(t->be, dbias, dout, false);
            op_test_close(t, dbias, ref, 2e-6, "bias_backward %lldx%lld", (long long)N, (long long)C);
            t->be->bias_backward(t->be, dbias, dout, true);
            op_test_close(t, dbias, twice, 2e-6, "bias_backward += %lldx%lld", (long long)N, (long long)C);
        }
}
static void test_bias_backward_threads(OpTest *t) {
    BiasCase b = {op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(301)),
                  op_test_random(t, DTYPE_F32, OP_TEST_DIMS(107, 301), 1.0)};
    op_test_thread_invariant(t, run_bias, &b, &b.dbias, 1, "bias_backward");
}

static void test_weighted_sum(OpTest *t) {
    const int64_t SIZES[] = {0, 1, 4, 13, 40, 121, 364, 2049, 9841, 530000};
    for (size_t i = 0; i < sizeof SIZES / sizeof SIZES[0]; ++i) {
        int64_t N = SIZES[i];
        Tensor nll = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(N), 3.0);
        Tensor weights = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(N), 1.0);
        Tensor out = op_test_tensor(t, DTYPE_F64, OP_TEST_DIMS(1));
        const double *loss = op_test_host(t, nll), *weight = op_test_host(t, weights);
        double sum = 0;
        for (int64_t k = 0; k < N; ++k) sum += loss[k] * weight[k];
        double twice = 2 * sum;
        t->be->weighted_sum(t->be, out, nll, weights, false);
        op_test_close(t, out, &sum, 1e-12, "weighted_sum of %lld", (long long)N);
        t->be->weighted_sum(t->be, out, nll, weights, true);
        op_test_close(t, out, &twice, 1e-12, "weighted_sum += of %lld", (long long)N);
    }
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_bias_backward), OP_TEST_CASE(test_bias_backward_threads),
                                OP_TEST_CASE(test_weighted_sum)};
    return op_test_main(CASES, sizeof CASES / sizeof CASES[0]);
}
