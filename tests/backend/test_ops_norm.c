// test_ops_norm.c: LayerNorm and RMSNorm against double precision; the reference's gradients against finite
// differences.
#include "tests/support/op_test.h"

#include <math.h>

#define EPS 1e-5

// Several channel counts around the vector widths, one row, no rows, more rows than one summation chunk. On a GPU:
// rows of one warp (up to 4 packs of 16 bytes a lane), of several, wider than a block's registers hold, each in whole
// packs and not, and more rows than blocks times what a block takes at once.
static const int64_t SHAPES[][2] = {{1, 1},    {1, 33},   {3, 7},    {2, 16},   {37, 20},  {0, 8},
                                    {2100, 3}, {11, 64},  {5, 101},  {13, 264}, {3, 1032}, {3, 520},
                                    {3, 700},  {1, 4100}, {1, 8200}, {1, 16392}};
#define SHAPE_COUNT (sizeof SHAPES / sizeof SHAPES[0])
#define SMALL_SHAPES 6  // small enough for finite differences

typedef struct {
    int64_t N, C;
    NormKind kind;
    double *x, *weight, *bias;  // bias may be NULL
    double *residual;           // may be NULL
    const double *dout;
    double *out, *mean, *rstd;
} NormRef;

static void norm_ref_forward(const NormRef *r) {
    for (int64_t i = 0; i < r->N; ++i) {
        const double *x = r->x + i * r->C;
        double mean = 0, squares = 0;
        for (int64_t c = 0; c < r->C; ++c) mean += r->kind == NORM_LAYER ? x[c] / (double)r->C : 0;
        for (int64_t c = 0; c < r->C; ++c) squares += (x[c] - mean) * (x[c] - mean);
        double rstd = 1 / sqrt(squares / (double)r->C + EPS);
        for (int64_t c = 0; c < r->C; ++c)
            r->out[i * r->C + c] = (x[c] - mean) * rstd * r->weight[c] + (r->bias != NULL ? r->bias[c] : 0) +
                                   (r->residual != NULL ? r->residual[i * r->C + c] : 0);
        r->mean[i] = mean;
        r->rstd[i] = rstd;
    }
}
// += the gradients of sum(dout * out).
static void norm_ref_backward(NormRef *r, double *dx, double *dweight, double *dbias) {
    norm_ref_forward(r);
    for (int64_t i = 0; i < r->N; ++i) {
        const double *x = r->x + i * r->C, *dout = r->dout + i * r->C;
        double sum_g = 0, sum_gx = 0, rstd = r->rstd[i], mean = r->mean[i];
        for (int64_t c = 0; c < r->C; ++c) {
            double xhat = (x[c] - mean) * rstd, g = dout[c] * r->weight[c];
            sum_g += r->kind == NORM_LAYER ? g / (double)r->C : 0;
            sum_gx += g * xhat / (double)r->C;
            dweight[c] += dout[c] * xhat;
            if (dbias != NULL) dbias[c] += dout[c];
        }
        for (int64_t c = 0; c < r->C; ++c)
            dx[i * r->C + c] += rstd * (dout[c] * r->weight[c] - sum_g - (x[c] - mean) * rstd * sum_gx);
    }
}
static double norm_ref_loss(void *user) {
    const NormRef *r = user;
    norm_ref_forward(r);
    double loss = 0;
    for (int64_t i = 0; i < r->N * r->C; ++i) loss += r->dout[i] * r->out[i];
    return loss;
}

typedef struct {
    Tensor x, weight, bias, dout, out, mean, rstd, dx, dweight, dbias;
    double *dx_before, *dweight_before, *dbias_before;
    NormArgs args;
    bool accumulate_dx, accumulate_dw;
    NormRef ref;
} NormCase;

static NormCase norm_case(OpTest *t, int64_t N, int64_t C, NormKind kind, bool bias, DType dtype) {
    NormCase n = {.args = {.kind = kind, .eps = (float)EPS}};
    n.x = op_test_random(t, dtype, OP_TEST_DIMS(N, C), 1.5);
    n.weight = op_test_random(t, dtype, OP_TEST_DIMS(C), 1.0);
    n.bias = bias ? op_test_random(t, dtype, OP_TEST_DIMS(C), 1.0) : TENSOR_NONE;
    n.dout = op_test_random(t, dtype, OP_TEST_DIMS(N, C), 1.0);
    n.out = op_test_tensor(t, dtype, OP_TEST_DIMS(N, C));
    n.mean = kind == NORM_LAYER ? op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(N)) : TENSOR_NONE;
    n.rstd = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(N));
    n.dx = op_test_random(t, dtype, OP_TEST_DIMS(N, C), 1.0);
    n.dweight = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(C), 1.0);
    n.dbias = bias ? op_test_random(t, DTYPE_F32, OP_TEST_DIMS(C), 1.0) : TENSOR_NONE;
    n.dx_before = op_test_host(t, n.dx);
    n.dweight_before = op_test_host(t, n.dweight);
    if (bias) n.dbias_before = op_test_host(t, n.dbias);
    n.ref = (NormRef){.N = N,
                      .C = C,
                      .kind = kind,
                      .x = op_test_host(t, n.x),
                      .weight = op_test_host(t, n.weight),
                      .bias = bias ? op_test_host(t, n.bias) : NULL,
                      .dout = op_test_host(t, n.dout),
                      .out = op_test_doubles(t, N * C),
                      .mean = op_test_doubles(t, N),
                      .rstd = op_test_doubles(t, N)};
    return n;
}

static void run_forward(OpTest *t, void *user) {
    const NormCase *n = user;
    t->be->norm_forward(t->be, n->out, n->mean, n->rstd, n->x, n->weight, n->bias, n->args);
}
// Overwritten gradients are poisoned first, accumulated ones start from the case's random values.
static void run_backward(OpTest *t, void *user) {
    const NormCase *n = user;
    op_test_poison(t, n->dx);
    op_test_poison(t, n->dweight);
    if (n->accumulate_dx) op_test_upload(t, n->dx, n->dx_before);
    if (n->accumulate_dw) op_test_upload(t, n->dweight, n->dweight_before);
    if (!tensor_is_none(n->dbias)) op_test_poison(t, n->dbias);
    if (!tensor_is_none(n->dbias) && n->accumulate_dw) op_test_upload(t, n->dbias, n->dbias_before);
    t->be->norm_backward(t->be, n->dx, n->dweight, n->dbias, n->dout, n->x, n->weight, n->mean, n->rstd,
                         n->accumulate_dx, n->accumulate_dw, n->args);
}

// The sum of a row cancels: its error is relative to the row's elements, not to their mean.
static double mean_tolerance(const NormRef *r) {
    double elems = 0, means = 0;
    for (int64_t i = 0; i < r->N * r->C; ++i) elems += r->x[i] * r->x[i] / (double)r->C;
    for (int64_t i = 0; i < r->N; ++i) means += r->mean[i] * r->mean[i];
    return means > 0 ? 1e-6 * sqrt(elems / means) + 1e-6 : 0;
}
static void check_forward(OpTest *t, int64_t N, int64_t C, NormKind kind, bool bias, DType dtype) {
    NormCase n = norm_case(t, N, C, kind, bias, dtype);
    run_forward(t, &n);
    norm_ref_forward(&n.ref);
    op_test_close(t, n.out, n.ref.out, op_test_tolerance(dtype), "norm_forward kind %d %lldx%lld", (int)kind,
                  (long long)N, (long long)C);
    if (kind == NORM_LAYER)
        op_test_close(t, n.mean, n.ref.mean, mean_tolerance(&n.ref), "mean %lldx%lld", (long long)N, (long long)C);
    op_test_close(t, n.rstd, n.ref.rstd, 2e-6, "rstd");
}

static void check_backward(OpTest *t, int64_t N, int64_t C, NormKind kind, bool bias, DType dtype, bool accumulate) {
    NormCase n = norm_case(t, N, C, kind, bias, dtype);
    n.accumulate_dx = n.accumulate_dw = accumulate;
    run_forward(t, &n);
    run_backward(t, &n);
    double *dx = accumulate ? n.dx_before : op_test_doubles(t, N * C);
    double *dweight = accumulate ? n.dweight_before : op_test_doubles(t, C);
    double *dbias = bias && accumulate ? n.dbias_before : op_test_doubles(t, C);
    norm_ref_backward(&n.ref, dx, dweight, dbias);
    // Gradients of parameters are fp32 whatever the activations are.
    op_test_close(t, n.dx, dx, op_test_tolerance(dtype), "norm_backward kind %d dx %lldx%lld", (int)kind,
                  (long long)N, (long long)C);
    op_test_close(t, n.dweight, dweight, 2e-6, "dweight %lldx%lld", (long long)N, (long long)C);
    if (bias) op_test_close(t, n.dbias, dbias, 2e-6, "dbias %lldx%lld", (long long)N, (long long)C);
}
static void check_numeric(OpTest *t, NormCase *n, double *x, const double *grad, int64_t elems, const char *name) {
    double *expected = op_test_doubles(t, elems);
    op_test_numeric_gradient(expected, x, elems, 1e-5, norm_ref_loss, &n->ref);
    double error = op_test_error(grad, expected, elems);
    if (!(error <= 1e-8)) fail_msg("the reference's %s: relative error %.3g", name, error);
}
// With one channel a normalized row does not depend on x.
static void test_norm_reference(OpTest *t) {
    for (size_t s = 1; s < SMALL_SHAPES; ++s)
        for (int kind = 0; kind < 2; ++kind) {
            int64_t N = SHAPES[s][0], C = SHAPES[s][1];
            NormCase n = norm_case(t, N, C, kind == 0 ? NORM_LAYER : NORM_RMS, kind == 0, DTYPE_F32);
            double *dx = op_test_doubles(t, N * C), *dweight = op_test_doubles(t, C), *dbias = op_test_doubles(t, C);
            norm_ref_backward(&n.ref, dx, dweight, dbias);
            check_numeric(t, &n, n.ref.x, dx, N * C, "dx");
            check_numeric(t, &n, n.ref.weight, dweight, C, "dweight");
            if (kind == 0) check_numeric(t, &n, n.ref.bias, dbias, C, "dbias");
            // The residual's gradient is dout.
            n.ref.residual = op_test_doubles(t, N * C);
            check_numeric(t, &n, n.ref.residual, n.ref.dout, N * C, "dresidual");
        }
}

static void test_norm_forward(OpTest *t) {
    for (size_t s = 0; s < SHAPE_COUNT; ++s)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype) {
            check_forward(t, SHAPES[s][0], SHAPES[s][1], NORM_LAYER, true, dtype);
            if (s < SMALL_SHAPES) check_forward(t, SHAPES[s][0], SHAPES[s][1], NORM_LAYER, false, dtype);
            check_forward(t, SHAPES[s][0], SHAPES[s][1], NORM_RMS, false, dtype);
        }
}
// With one or two channels a normalized row hardly depends on x: the gradient is all cancellation.
static void test_norm_backward(OpTest *t) {
    for (size_t s = 1; s < SHAPE_COUNT; ++s)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype)
            for (int accumulate = 0; accumulate < 2; ++accumulate) {
                check_backward(t, SHAPES[s][0], SHAPES[s][1], NORM_LAYER, true, dtype, accumulate);
                if (s < SMALL_SHAPES)
                    check_backward(t, SHAPES[s][0], SHAPES[s][1], NORM_LAYER, false, dtype, accumulate);
                check_backward(t, SHAPES[s][0], SHAPES[s][1], NORM_RMS, false, dtype, accumulate);
            }
}
// Elements of out that are not their reference rounded once: with fp32 sums next to none, a quarter if the normalized
// row was rounded before the residual was added.
static void check_one_rounding(OpTest *t, const NormCase *n) {
    const double *out = op_test_host(t, n->out);
    int64_t elems = n->ref.N * n->ref.C, off = 0;
    for (int64_t i = 0; i < elems; ++i) off += out[i] != (double)bf16_to_f32(bf16_from_f32((float)n->ref.out[i]));
    if (off > 2 + elems / 100)
        fail_msg("%lld of %lld elements are not rounded once", (long long)off, (long long)elems);
}
// in_place: the residual is out.
static void check_residual(OpTest *t, int64_t N, int64_t C, NormKind kind, bool bias, DType dtype, bool in_place) {
    NormCase n = norm_case(t, N, C, kind, bias, dtype);
    Tensor residual = op_test_random(t, dtype, OP_TEST_DIMS(N, C), 1.0);
    n.ref.residual = op_test_host(t, residual);
    n.args.residual = in_place ? n.out : residual;
    if (in_place) op_test_upload(t, n.out, n.ref.residual);
    run_forward(t, &n);
    norm_ref_forward(&n.ref);
    op_test_close(t, n.out, n.ref.out, op_test_tolerance(dtype), "residual, norm_forward kind %d %lldx%lld", (int)kind,
                  (long long)N, (long long)C);
    if (dtype == DTYPE_BF16) check_one_rounding(t, &n);
    if (!in_place) op_test_close(t, residual, n.ref.residual, 0, "residual after norm_forward");
    // As the caller of such a norm takes it: the gradient of x apart, and dout goes on as the residual's gradient.
    if (C <= 2) return;  // see test_norm_backward
    run_backward(t, &n);
    double *dx = op_test_doubles(t, N * C), *dweight = op_test_doubles(t, C), *dbias = op_test_doubles(t, C);
    norm_ref_backward(&n.ref, dx, dweight, dbias);
    op_test_close(t, n.dx, dx, op_test_tolerance(dtype), "residual, dx %lldx%lld", (long long)N, (long long)C);
    op_test_close(t, n.dout, n.ref.dout, 0, "residual, dout after norm_backward");
}
static void test_norm_residual(OpTest *t) {
    for (size_t s = 0; s < SHAPE_COUNT; ++s)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype)
            for (int in_place = 0; in_place < 2; ++in_place) {
                check_residual(t, SHAPES[s][0], SHAPES[s][1], NORM_LAYER, true, dtype, in_place);
                if (s < SMALL_SHAPES) check_residual(t, SHAPES[s][0], SHAPES[s][1], NORM_LAYER, false, dtype, in_place);
                check_residual(t, SHAPES[s][0], SHAPES[s][1], NORM_RMS, false, dtype, in_place);
                op_test_release(t);
            }
}
static void test_norm_contract(OpTest *t) {
    if (!op_test_on_cpu()) return;
    NormCase n = norm_case(t, 3, 20, NORM_RMS, false, DTYPE_F32);
    n.args.residual = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(3, 19), 1.0);
    op_test_aborts(t, run_forward, &n, "residual");
    n.args.residual = TENSOR_NONE;
    n.dx = n.dout;
    op_test_aborts(t, run_backward, &n, "dx is dout");
}
// A mean far from zero: a variance computed as E[x^2] - mean^2 in fp32 would have lost all digits.
static void test_norm_large_mean(OpTest *t) {
    NormCase n = norm_case(t, 2, 100, NORM_LAYER, true, DTYPE_F32);
    for (int64_t i = 0; i < 200; ++i) n.ref.x[i] = 4096 + 0.25 * round(4 * n.ref.x[i]);
    op_test_upload(t, n.x, n.ref.x);
    run_forward(t, &n);
    norm_ref_forward(&n.ref);
    op_test_close(t, n.rstd, n.ref.rstd, 1e-4, "rstd around mean 4096");  // mean is off by 2^-12 at worst
}
static void test_norm_threads(OpTest *t) {
    NormCase n = norm_case(t, 200, 130, NORM_LAYER, true, DTYPE_F32);
    op_test_thread_invariant(t, run_forward, &n, (Tensor[]){n.out, n.mean, n.rstd}, 3, "norm_forward");
    op_test_thread_invariant(t, run_backward, &n, (Tensor[]){n.dx, n.dweight, n.dbias}, 3, "norm_backward");
    n.args.residual = n.dout;
    op_test_thread_invariant(t, run_forward, &n, (Tensor[]){n.out, n.mean, n.rstd}, 3, "norm_forward, residual");
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_norm_reference), OP_TEST_CASE(test_norm_forward),
                                OP_TEST_CASE(test_norm_backward), OP_TEST_CASE(test_norm_residual),
                                OP_TEST_CASE(test_norm_contract), OP_TEST_CASE(test_norm_large_mean),
                                OP_TEST_CASE(test_norm_threads)};
    return op_test_main(CASES, sizeof CASES / sizeof CASES[0]);
}
