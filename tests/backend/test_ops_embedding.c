// test_ops_embedding.c: table look-up and its scatter-add against double precision.
#include "tests/support/op_test.h"

#include <math.h>

#define V 11
#define P 7

typedef struct {
    int64_t N, C;
    Tensor tokens, positions, wte, wpe, out, dout, dwte, dwpe;
    double *dwte_before, *dwpe_before;
} EmbeddingCase;

static EmbeddingCase embedding_case(OpTest *t, int64_t N, int64_t C, bool wpe, DType dtype) {
    EmbeddingCase e = {.N = N, .C = C};
    e.tokens = op_test_integers(t, OP_TEST_DIMS(N), V);  // fewer tokens than rows: repeats
    e.positions = op_test_integers(t, OP_TEST_DIMS(N), P);
    e.wte = op_test_random(t, dtype, OP_TEST_DIMS(V, C), 1.0);
    e.wpe = wpe ? op_test_random(t, dtype, OP_TEST_DIMS(P, C), 1.0) : TENSOR_NONE;
    e.out = op_test_tensor(t, dtype, OP_TEST_DIMS(N, C));
    e.dout = op_test_random(t, dtype, OP_TEST_DIMS(N, C), 1.0);
    e.dwte = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(V, C), 1.0);
    e.dwpe = wpe ? op_test_random(t, DTYPE_F32, OP_TEST_DIMS(P, C), 1.0) : TENSOR_NONE;
    e.dwte_before = op_test_host(t, e.dwte);
    if (wpe) e.dwpe_before = op_test_host(t, e.dwpe);
    return e;
}
static void run_backward(OpTest *t, void *user) {
    const EmbeddingCase *e = user;
    op_test_upload(t, e->dwte, e->dwte_before);
    if (!tensor_is_none(e->dwpe)) op_test_upload(t, e->dwpe, e->dwpe_before);
    t->be->embedding_backward(t->be, e->dwte, e->dwpe, e->dout, e->tokens, e->positions);
}

static void check_embedding(OpTest *t, int64_t N, int64_t C, bool use_wpe, DType dtype) {
    EmbeddingCase e = embedding_case(t, N, C, use_wpe, dtype);
    const double *token = op_test_host(t, e.tokens), *position = op_test_host(t, e.positions);
    const double *wte = op_test_host(t, e.wte), *wpe = use_wpe ? op_test_host(t, e.wpe) : NULL;
    const double *dout = op_test_host(t, e.dout);
    double *out = op_test_doubles(t, N * C);
    for (int64_t i = 0; i < N; ++i)
        for (int64_t c = 0; c < C; ++c) {
            int64_t te = (int64_t)token[i] * C + c, pe = (int64_t)position[i] * C + c;
            out[i * C + c] = wte[te] + (use_wpe ? wpe[pe] : 0);
        }
    t->be->embedding_forward(t->be, e.out, e.tokens, e.positions, e.wte, e.wpe);
    op_test_close(t, e.out, out, op_test_tolerance(dtype), "embedding_forward %lldx%lld", (long long)N, (long long)C);
    run_backward(t, &e);
    for (int64_t i = 0; i < N; ++i)
        for (int64_t c = 0; c < C; ++c) {
            e.dwte_before[(int64_t)token[i] * C + c] += dout[i * C + c];
            if (use_wpe) e.dwpe_before[(int64_t)position[i] * C + c] += dout[i * C + c];
        }
    op_test_close(t, e.dwte, e.dwte_before, 2e-6, "dwte %lldx%lld", (long long)N, (long long)C);
    if (use_wpe) op_test_close(t, e.dwpe, e.dwpe_before, 2e-6, "dwpe %lldx%lld", (long long)N, (long long)C);
}
// On a GPU the last ones sort in several blocks and give a token's rows to many warps, an odd number of them.
static void test_embedding(OpTest *t) {
    const int64_t SHAPES[][2] = {{1, 1},     {5, 7},  {40, 16},  {33, 100}, {0, 9},
                                 {200, 264}, {65, 8}, {4999, 8}, {2100, 3}};
    for (size_t s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; ++s)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype) {
            check_embedding(t, SHAPES[s][0], SHAPES[s][1], true, dtype);
            check_embedding(t, SHAPES[s][0], SHAPES[s][1], false, dtype);
        }
}
static void test_embedding_backward_threads(OpTest *t) {
    EmbeddingCase e = embedding_case(t, 101, 203, true, DTYPE_F32);
    op_test_thread_invariant(t, run_backward, &e, (Tensor[]){e.dwte, e.dwpe}, 2, "embedding_backward");
}
static void run_forward(OpTest *t, void *user) {
    const EmbeddingCase *e = user;
    t->be->embedding_forward(t->be, e->out, e->tokens, e->positions, e->wte, e->wpe);
}
// An id outside of its table never becomes an address. The CPU stops; a device says so in its row, which is NaN, and
// leaves the row out of the gradient.
static void test_embedding_bad_ids(OpTest *t) {
    EmbeddingCase e = embedding_case(t, 2, 5, true, DTYPE_F32);
    op_test_upload(t, e.tokens, (double[]){3, V});
    if (op_test_on_cpu()) {
        op_test_aborts(t, run_forward, &e, "tokens[1]=11, expected 0 to 10");
        op_test_aborts(t, run_backward, &e, "tokens[1]=11, expected 0 to 10");
        op_test_upload(t, e.tokens, (double[]){0, V - 1});
        op_test_upload(t, e.positions, (double[]){-1, 0});
        op_test_aborts(t, run_forward, &e, "positions[0]=-1, expected 0 to 6");
        e.out.dim[1] = 4;
        op_test_aborts(t, run_forward, &e, "out: expected fp32 (2, 5), found fp32 (2, 4)");
        return;
    }
    op_test_upload(t, e.positions, (double[]){1, -1});
    run_forward(t, &e);
    const double *out = op_test_host(t, e.out), *dout = op_test_host(t, e.dout);
    for (int64_t c = 0; c < e.C; ++c) assert_true(isfinite(out[c]) && isnan(out[e.C + c]));
    run_backward(t, &e);
    for (int64_t c = 0; c < e.C; ++c) {
        e.dwte_before[3 * e.C + c] += dout[c];
        e.dwpe_before[1 * e.C + c] += dout[c];
    }
    op_test_close(t, e.dwte, e.dwte_before, 2e-6, "dwte with a bad token");
    op_test_close(t, e.dwpe, e.dwpe_before, 2e-6, "dwpe with a bad position");
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_embedding), OP_TEST_CASE(test_embedding_backward_threads),
                                OP_TEST_CASE(test_embedding_bad_ids)};
    return op_test_main(CASES, sizeof CASES / sizeof CASES[0]);
}
