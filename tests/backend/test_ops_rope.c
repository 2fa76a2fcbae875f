// test_ops_rope.c: QK-norm and rotary embedding against double precision; the reference's gradients against finite
// differences.
#include "tests/support/op_test.h"

#include <math.h>

#define EPS 1e-6
#define P 13

typedef struct {
    int64_t N, NH, NKV, HS;
    bool rope, norm;
    double *in, *q_weight, *k_weight;
    const double *dout, *positions, *cos, *sin;
    double *out, *rstd;
} QkRef;

static void qk_ref_forward(const QkRef *r) {
    int64_t heads = r->NH + r->NKV, half = r->HS / 2, width = (heads + r->NKV) * r->HS;
    double y[1024];
    for (int64_t n = 0; n < r->N; ++n)
        for (int64_t h = 0; h < heads + r->NKV; ++h) {
            const double *x = r->in + n * width + h * r->HS;
            double *out = r->out + n * width + h * r->HS;
            double squares = 0;
            for (int64_t i = 0; i < r->HS; ++i) squares += x[i] * x[i];
            double rstd = r->norm && h < heads ? 1 / sqrt(squares / (double)r->HS + EPS) : 1;
            const double *weight = h < r->NH ? r->q_weight : r->k_weight;
            for (int64_t i = 0; i < r->HS; ++i) out[i] = y[i] = r->norm && h < heads ? x[i] * rstd * weight[i] : x[i];
            if (r->norm && h < heads) r->rstd[n * heads + h] = rstd;
            for (int64_t i = 0; i < half && r->rope && h < heads; ++i) {
                int64_t at = (int64_t)r->positions[n] * half + i;
                double c = r->cos[at], s = r->sin[at];
                out[i] = y[i] * c - y[half + i] * s;
                out[half + i] = y[half + i] * c + y[i] * s;
            }
        }
}
// din = and, with QK-norm, dq and dk (HS) += the gradients of sum(dout * out).
static void qk_ref_backward(const QkRef *r, double *din, double *dq, double *dk) {
    qk_ref_forward(r);
    int64_t heads = r->NH + r->NKV, half = r->HS / 2, width = (heads + r->NKV) * r->HS;
    double dy[1024];
    for (int64_t n = 0; n < r->N; ++n)
        for (int64_t h = 0; h < heads + r->NKV; ++h) {
            const double *dout = r->dout + n * width + h * r->HS, *x = r->in + n * width + h * r->HS;
            double *dx = din + n * width + h * r->HS, *dweight = h < r->NH ? dq : dk;
            const double *weight = h < r->NH ? r->q_weight : r->k_weight;
            for (int64_t i = 0; i < r->HS; ++i) dx[i] = dy[i] = dout[i];
            if (h >= heads) continue;
            for (int64_t i = 0; i < half && r->rope; ++i) {
                int64_t at = (int64_t)r->positions[n] * half + i;
                double c = r->cos[at], s = r->sin[at];
                dx[i] = dy[i] = dout[i] * c + dout[half + i] * s;
                dx[half + i] = dy[half + i] = dout[half + i] * c - dout[i] * s;
            }
            if (!r->norm) continue;
            double rstd = r->rstd[n * heads + h], average = 0;
            for (int64_t i = 0; i < r->HS; ++i) average += dy[i] * weight[i] * x[i] * rstd / (double)r->HS;
            for (int64_t i = 0; i < r->HS; ++i) {
                dweight[i] += dy[i] * x[i] * rstd;
                dx[i] = rstd * (dy[i] * weight[i] - x[i] * rstd * average);
            }
        }
}
static double qk_ref_loss(void *user) {
    const QkRef *r = user;
    qk_ref_forward(r);
    double loss = 0;
    for (int64_t i = 0; i < r->N * (r->NH + 2 * r->NKV) * r->HS; ++i) loss += r->dout[i] * r->out[i];
    return loss;
}

typedef struct {
    int64_t elems;
    Tensor in, out, rstd, dout, din, dq, dk, positions;
    double *dq_before, *dk_before;
    bool accumulate;
    QkArgs args;
    QkRef ref;
} QkCase;

static QkCase qk_case(OpTest *t, int64_t N, int64_t NH, int64_t NKV, int64_t HS, bool rope, bool norm, DType dtype) {
    int64_t width = (NH + 2 * NKV) * HS;
    QkCase q = {.elems = N * width, .rstd = TENSOR_NONE, .dq = TENSOR_NONE, .dk = TENSOR_NONE};
    q.args = (QkArgs){.NH = NH, .NKV = NKV, .HS = HS, .use_rope = rope, .eps = (float)EPS};
    q.in = op_test_random(t, dtype, OP_TEST_DIMS(N, width), 1.0);
    q.out = op_test_tensor(t, dtype, OP_TEST_DIMS(N, width));
    q.dout = op_test_random(t, dtype, OP_TEST_DIMS(N, width), 1.0);
    q.din = op_test_tensor(t, dtype, OP_TEST_DIMS(N, width));
    q.positions = op_test_integers(t, OP_TEST_DIMS(N), P);
    q.ref = (QkRef){.N = N, .NH = NH, .NKV = NKV, .HS = HS, .rope = rope, .norm = norm};
    if (rope) {
        // Any angles do: c^2 + s^2 = 1 is not used.
        q.args.cos = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(P, HS / 2), 1.0);
        q.args.sin = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(P, HS / 2), 1.0);
        q.ref.cos = op_test_host(t, q.args.cos);
        q.ref.sin = op_test_host(t, q.args.sin);
    }
    if (norm) {
        q.args.q_weight = op_test_random(t, dtype, OP_TEST_DIMS(HS), 1.0);
        q.args.k_weight = op_test_random(t, dtype, OP_TEST_DIMS(HS), 1.0);
        q.rstd = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(N, NH + NKV));
        q.dq = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(HS), 1.0);
        q.dk = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(HS), 1.0);
        q.dq_before = op_test_host(t, q.dq);
        q.dk_before = op_test_host(t, q.dk);
        q.ref.q_weight = op_test_host(t, q.args.q_weight);
        q.ref.k_weight = op_test_host(t, q.args.k_weight);
    }
    q.ref.in = op_test_host(t, q.in);
    q.ref.dout = op_test_host(t, q.dout);
    q.ref.positions = op_test_host(t, q.positions);
    q.ref.out = op_test_doubles(t, q.elems);
    q.ref.rstd = op_test_doubles(t, N * (NH + NKV));
    return q;
}
static void run_forward(OpTest *t, void *user) {
    const QkCase *q = user;
    t->be->qk_forward(t->be, q->out, q->rstd, q->in, q->positions, q->args);
}
static void run_backward(OpTest *t, void *user) {
    const QkCase *q = user;
    if (q->accumulate && q->ref.norm) {
        op_test_upload(t, q->dq, q->dq_before);
        op_test_upload(t, q->dk, q->dk_before);
    } else if (q->ref.norm) {
        op_test_poison(t, q->dq);
        op_test_poison(t, q->dk);
    }
    t->be->qk_backward(t->be, q->din, q->dq, q->dk, q->dout, q->in, q->rstd, q->positions, q->accumulate, q->args);
}

static void check_qk(OpTest *t, int64_t N, int64_t NH, int64_t NKV, int64_t HS, bool rope, bool norm, DType dtype) {
    QkCase q = qk_case(t, N, NH, NKV, HS, rope, norm, dtype);
    run_forward(t, &q);
    qk_ref_forward(&q.ref);
    op_test_close(t, q.out, q.ref.out, op_test_tolerance(dtype),
                  "qk_forward N %lld NH %lld NKV %lld HS %lld rope %d "
                  "norm %d",
                  (long long)N, (long long)NH, (long long)NKV, (long long)HS, rope, norm);
    if (norm) op_test_close(t, q.rstd, q.ref.rstd, 2e-6, "rstd");
    for (int accumulate = 0; accumulate < 2; ++accumulate) {
        q.accumulate = accumulate;
        op_test_poison(t, q.din);
        run_backward(t, &q);
        double *din = op_test_doubles(t, q.elems);
        double *dq = norm && accumulate ? q.dq_before : op_test_doubles(t, HS);
        double *dk = norm && accumulate ? q.dk_before : op_test_doubles(t, HS);
        qk_ref_backward(&q.ref, din, dq, dk);
        op_test_close(t, q.din, din, op_test_tolerance(dtype), "qk_backward NH %lld NKV %lld HS %lld rope %d norm %d",
                      (long long)NH, (long long)NKV, (long long)HS, rope, norm);
        if (!norm) continue;
        op_test_close(t, q.dq, dq, 2e-6, "q_weight's gradient, HS %lld", (long long)HS);
        op_test_close(t, q.dk, dk, 2e-6, "k_weight's gradient, HS %lld", (long long)HS);
    }
    // In place: the gradient always, the forward without QK-norm.
    Tensor dout = q.dout;
    t->be->qk_backward(t->be, dout, q.dq, q.dk, dout, q.in, q.rstd, q.positions, false, q.args);
    op_test_same_bits(t, dout, q.din, "qk_backward in place");
    if (norm) return;
    t->be->qk_forward(t->be, q.in, q.rstd, q.in, q.positions, q.args);
    op_test_same_bits(t, q.in, q.out, "qk_forward in place");
}
static void check_numeric(OpTest *t, QkCase *q, double *x, const double *grad, int64_t elems, const char *name) {
    double *expected = op_test_doubles(t, elems);
    op_test_numeric_gradient(expected, x, elems, 1e-5, qk_ref_loss, &q->ref);
    double error = op_test_error(grad, expected, elems);
    if (!(error <= 1e-8)) fail_msg("the reference's %s: relative error %.3g", name, error);
}
static void test_qk_reference(OpTest *t) {
    for (int variant = 0; variant < 4; ++variant) {
        QkCase q = qk_case(t, 3, 2, 1, 10, variant & 1, variant & 2, DTYPE_F32);
        double *din = op_test_doubles(t, q.elems), *dq = op_test_doubles(t, 10), *dk = op_test_doubles(t, 10);
        qk_ref_backward(&q.ref, din, dq, dk);
        check_numeric(t, &q, q.ref.in, din, q.elems, "din");
        if (!q.ref.norm) continue;
        check_numeric(t, &q, q.ref.q_weight, dq, 10, "q_weight gradient");
        check_numeric(t, &q, q.ref.k_weight, dk, 10, "k_weight gradient");
    }
}
// On a GPU: heads whose halves are whole packs of 16 bytes and not, from one lane to all of a warp and beyond, more
// rows than a block takes up, and more heads.
static void test_qk(OpTest *t) {
    const int64_t SHAPES[][4] = {{1, 1, 1, 2},    {3, 2, 1, 10},   {2, 4, 2, 32}, {5, 3, 3, 6},   {0, 2, 1, 8},
                                 {3, 3, 1, 64},   {2, 2, 1, 128},  {3, 2, 2, 80}, {2, 1, 1, 136}, {1, 1, 1, 520},
                                 {2, 1, 1, 1024}, {300, 2, 1, 16}, {3, 9, 1, 62}};
    for (size_t s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; ++s)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype)
            for (int variant = 0; variant < 4; ++variant)
                check_qk(t, SHAPES[s][0], SHAPES[s][1], SHAPES[s][2], SHAPES[s][3], variant & 1, variant & 2, dtype);
}
// Of a position outside of the tables a device makes NaN, the CPU stops.
static void test_qk_bad_position(OpTest *t) {
    QkCase q = qk_case(t, 2, 2, 1, 8, true, false, DTYPE_F32);
    op_test_upload(t, q.positions, (double[]){P, 2});
    if (op_test_on_cpu()) {
        op_test_aborts(t, run_forward, &q, "positions[0]=13, expected 0 to 12");
        return;
    }
    run_forward(t, &q);
    const double *out = op_test_host(t, q.out);
    for (int64_t i = 0; i < 24; ++i) assert_true(isnan(out[i]) && isfinite(out[32 + i]));
}
// An odd head size has no pairs to rotate but can be normalized.
static void test_qk_odd_head(OpTest *t) { check_qk(t, 4, 2, 1, 7, false, true, DTYPE_F32); }
static void test_qk_threads(OpTest *t) {
    QkCase q = qk_case(t, 70, 6, 2, 34, true, true, DTYPE_F32);
    op_test_thread_invariant(t, run_forward, &q, (Tensor[]){q.out, q.rstd}, 2, "qk_forward");
    op_test_thread_invariant(t, run_backward, &q, (Tensor[]){q.din, q.dq, q.dk}, 3, "qk_backward");
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_qk_reference), OP_TEST_CASE(test_qk),
                                OP_TEST_CASE(test_qk_odd_head), OP_TEST_CASE(test_qk_bad_position),
                                OP_TEST_CASE(test_qk_threads)};
    return op_test_main(CASES, sizeof CASES / sizeof CASES[0]);
}
