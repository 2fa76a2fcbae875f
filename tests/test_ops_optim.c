// test_ops_optim.c: gradient norm, AdamW and Muon's elementwise steps against double precision.
#include "tests/op_test.h"

#include <math.h>

static Tensor stats_tensor(OpTest *t, double scale, bool skip) {
    Tensor memory = op_test_tensor(t, DTYPE_U8, OP_TEST_DIMS((int64_t)sizeof(GradStats)));
    GradStats stats = {.scale = (float)scale, .skip = skip};
    t->be->upload(t->be, memory.data, &stats, sizeof stats);
    return memory;
}

// ---- gradient norm ----
typedef struct {
    Tensor grad, stats;
    float max_norm;
} ClipCase;
static void run_clip(OpTest *t, void *user) {
    const ClipCase *c = user;
    t->be->grad_clip(t->be, c->stats.data, c->grad, c->max_norm);
}
static GradStats clip(OpTest *t, Tensor grad, float max_norm) {
    ClipCase c = {grad, stats_tensor(t, NAN, true), max_norm};
    run_clip(t, &c);
    GradStats stats;
    t->be->download(t->be, &stats, c.stats.data, sizeof stats);
    return stats;
}

static void test_grad_clip(OpTest *t) {
    const int64_t COUNTS[] = {0, 1, 17, 4096, 30001};
    for (size_t i = 0; i < sizeof COUNTS / sizeof COUNTS[0]; ++i) {
        Tensor grad = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(COUNTS[i]), 3.0);
        const double *host = op_test_host(t, grad);
        double sum = 0;
        for (int64_t e = 0; e < COUNTS[i]; ++e) sum += host[e] * host[e];
        GradStats stats = clip(t, grad, 0.25f), wide = clip(t, grad, 1e6f), off = clip(t, grad, 0.0f);
        assert_true(fabs(stats.sum_squares - sum) <= 1e-13 * sum);  // double all the way
        assert_true(fabs((double)stats.norm - sqrt(sum)) <= 1e-7 * sqrt(sum));
        assert_int_equal(stats.skip, 0);
        double expected = sqrt(sum) > 0.25 ? 0.25 / sqrt(sum) : 1;
        assert_true(fabs((double)stats.scale - expected) <= 1e-7 * expected);
        assert_true(wide.scale == 1 && off.scale == 1);
    }
}
// Squares that overflow fp32 are no reason to skip; NaN or infinity anywhere is.
static void test_grad_clip_not_finite(OpTest *t) {
    const int64_t N = 20011;
    double *values = op_test_doubles(t, N);
    values[5] = 1e25;
    GradStats large = clip(t, op_test_from(t, DTYPE_F32, OP_TEST_DIMS(N), values), 1.0f);
    assert_true(large.skip == 0 && fabs((double)large.norm / 1e25 - 1) < 1e-6);
    assert_true(fabs((double)large.scale / 1e-25 - 1) < 1e-6);
    const double bad[3] = {NAN, INFINITY, -INFINITY};
    for (int kind = 0; kind < 3; ++kind)
        for (int64_t at = 0; at < N; at += 4001) {
            values[at] = bad[kind];
            GradStats stats = clip(t, op_test_from(t, DTYPE_F32, OP_TEST_DIMS(N), values), 1.0f);
            assert_true(stats.skip == 1 && stats.scale == 0);
            values[at] = 0;
        }
}
static void test_grad_clip_threads(OpTest *t) {
    ClipCase c = {op_test_random(t, DTYPE_F32, OP_TEST_DIMS(30001), 1.0), stats_tensor(t, 0, false), 1.0f};
    op_test_thread_invariant(t, run_clip, &c, &c.stats, 1, "grad_clip");
}

// ---- AdamW ----
typedef struct {
    int64_t elems;
    float lr, weight_decay;
    bool bf16;  // a bf16 copy of the weights is written
    Tensor master, weight, grad, m, v;
    double *ref_master, *ref_m, *ref_v;
    const double *ref_grad;
} Param;

static Param param_case(OpTest *t, int64_t elems, float lr, float weight_decay, bool bf16) {
    Param p = {.elems = elems, .lr = lr, .weight_decay = weight_decay, .bf16 = bf16};
    p.master = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(elems), 1.0);
    p.weight = bf16 ? op_test_tensor(t, DTYPE_BF16, OP_TEST_DIMS(elems)) : TENSOR_NONE;
    p.grad = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(elems), 1.0);
    p.m = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(elems), 0.1);
    p.v = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(elems), 0.1);
    p.ref_v = op_test_host(t, p.v);
    for (int64_t i = 0; i < elems; ++i) p.ref_v[i] = fabs(p.ref_v[i]);
    op_test_upload(t, p.v, p.ref_v);
    p.ref_master = op_test_host(t, p.master);
    p.ref_grad = op_test_host(t, p.grad);
    p.ref_m = op_test_host(t, p.m);
    return p;
}
static OptimTensor param_view(const Param *p) {
    return (OptimTensor){.master = p->master.data, .weight = p->weight.data, .grad = p->grad.data, .m = p->m.data,
                         .v = p->v.data, .elems = p->elems, .lr = p->lr, .weight_decay = p->weight_decay};
}
static void check_weight(OpTest *t, const Param *p) {
    if (!p->bf16) return;
    Tensor expected = op_test_from(t, DTYPE_BF16, OP_TEST_DIMS(p->elems), op_test_host(t, p->master));
    op_test_same_bits(t, p->weight, expected, "the bf16 weights are the rounded master weights");
}

// Sizes around vectors and blocks: shares of the work begin and end inside tensors.
#define PARAM_COUNT 6
static void adamw_params(OpTest *t, Param params[PARAM_COUNT]) {
    const int64_t ELEMS[PARAM_COUNT] = {1, 7, 0, 4096, 4097, 20003};
    for (int i = 0; i < PARAM_COUNT; ++i)
        params[i] = param_case(t, ELEMS[i], 0.01f * (float)(i + 1), i % 2 == 0 ? 0.0f : 0.3f, i % 3 == 1);
}
static void run_adamw(OpTest *t, const Param *params, double scale, bool skip, int64_t step) {
    OptimTensor views[PARAM_COUNT];
    for (int i = 0; i < PARAM_COUNT; ++i) views[i] = param_view(&params[i]);
    AdamwArgs args = {.beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .t = step};
    t->be->adamw(t->be, views, PARAM_COUNT, stats_tensor(t, scale, skip).data, args);
}

static void test_adamw(OpTest *t) {
    Param params[PARAM_COUNT];
    adamw_params(t, params);
    double b1 = (double)0.9f, b2 = (double)0.95f, scale = 0.5;
    for (int64_t step = 1; step <= 3; ++step) {
        double correction1 = 1 - pow(b1, (double)step), correction2 = 1 - pow(b2, (double)step);
        run_adamw(t, params, scale, false, step);
        for (int i = 0; i < PARAM_COUNT; ++i) {
            Param *p = &params[i];
            for (int64_t e = 0; e < p->elems; ++e) {
                double g = p->ref_grad[e] * scale, w = p->ref_master[e];
                double m = p->ref_m[e] = b1 * p->ref_m[e] + (1 - b1) * g;
                double v = p->ref_v[e] = b2 * p->ref_v[e] + (1 - b2) * g * g;
                double update = m / correction1 / (sqrt(v / correction2) + 1e-8);
                p->ref_master[e] = w - (double)p->lr * (update + (double)p->weight_decay * w);
            }
            op_test_close(t, p->master, p->ref_master, 2e-6, "master, step %lld", (long long)step);
            op_test_close(t, p->m, p->ref_m, 2e-6, "m, step %lld", (long long)step);
            op_test_close(t, p->v, p->ref_v, 2e-6, "v, step %lld", (long long)step);
            check_weight(t, p);
        }
    }
}
static void test_adamw_skip(OpTest *t) {
    Param params[PARAM_COUNT];
    adamw_params(t, params);
    for (int i = 0; i < PARAM_COUNT; ++i)
        if (params[i].bf16) op_test_upload(t, params[i].weight, params[i].ref_master);
    Tensor weight_before = op_test_from(t, DTYPE_BF16, OP_TEST_DIMS(7), params[1].ref_master);
    run_adamw(t, params, 0, true, 1);
    for (int i = 0; i < PARAM_COUNT; ++i) {
        op_test_close(t, params[i].master, params[i].ref_master, 0, "skipped master");
        op_test_close(t, params[i].m, params[i].ref_m, 0, "skipped m");
        op_test_close(t, params[i].v, params[i].ref_v, 0, "skipped v");
    }
    op_test_same_bits(t, params[1].weight, weight_before, "skipped bf16 weights");
}
static void run_adamw_again(OpTest *t, void *user) {
    const Param *params = user;
    for (int i = 0; i < PARAM_COUNT; ++i) {
        op_test_upload(t, params[i].master, params[i].ref_master);
        op_test_upload(t, params[i].m, params[i].ref_m);
        op_test_upload(t, params[i].v, params[i].ref_v);
    }
    run_adamw(t, params, 0.5, false, 1);
}
static void test_adamw_threads(OpTest *t) {
    Param params[PARAM_COUNT];
    adamw_params(t, params);
    const Tensor outs[3] = {params[4].master, params[5].v, params[4].weight};
    op_test_thread_invariant(t, run_adamw_again, params, outs, 3, "adamw");
}

// ---- Muon ----
static void check_momentum(OpTest *t, int64_t elems, DType dtype, bool nesterov) {
    Param p = param_case(t, elems, 0.02f, 0.1f, dtype == DTYPE_BF16);
    Tensor update = op_test_tensor(t, dtype, OP_TEST_DIMS(elems)), stats = stats_tensor(t, 0.5, false);
    double *ref = op_test_doubles(t, elems), momentum = (double)0.95f;
    for (int64_t i = 0; i < elems; ++i) {
        double g = 0.5 * p.ref_grad[i];
        p.ref_m[i] = momentum * p.ref_m[i] + g;
        ref[i] = nesterov ? g + momentum * p.ref_m[i] : p.ref_m[i];
    }
    t->be->muon_momentum(t->be, update, param_view(&p), stats.data, 0.95f, nesterov);
    op_test_close(t, p.m, p.ref_m, 2e-6, "momentum of %lld", (long long)elems);
    op_test_close(t, update, ref, op_test_tolerance(dtype), "update of %lld", (long long)elems);

    t->be->muon_apply(t->be, param_view(&p), update, stats.data);
    const double *x = op_test_host(t, update);
    for (int64_t i = 0; i < elems; ++i)
        p.ref_master[i] -= (double)p.lr * (x[i] + (double)p.weight_decay * p.ref_master[i]);
    op_test_close(t, p.master, p.ref_master, 2e-6, "muon_apply of %lld", (long long)elems);
    check_weight(t, &p);
}
static void test_muon(OpTest *t) {
    const int64_t COUNTS[] = {0, 1, 33, 20001};
    for (size_t i = 0; i < sizeof COUNTS / sizeof COUNTS[0]; ++i)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype) {
            check_momentum(t, COUNTS[i], dtype, false);
            check_momentum(t, COUNTS[i], dtype, true);
        }
}
static void test_muon_skip(OpTest *t) {
    Param p = param_case(t, 33, 0.02f, 0.1f, true);
    Tensor update = op_test_tensor(t, DTYPE_BF16, OP_TEST_DIMS(33)), stats = stats_tensor(t, 0, true);
    t->be->muon_momentum(t->be, update, param_view(&p), stats.data, 0.95f, true);
    op_test_close(t, update, op_test_doubles(t, 33), 0, "a skipped update is zero");
    t->be->muon_apply(t->be, param_view(&p), update, stats.data);
    op_test_close(t, p.m, p.ref_m, 0, "skipped momentum");
    op_test_close(t, p.master, p.ref_master, 0, "skipped master");
    const double *weight = op_test_host(t, p.weight);
    assert_true(isnan(weight[0]) && isnan(weight[32]));  // still poison
}
static void test_frobenius_normalize(OpTest *t) {
    const int64_t SHAPES[][2] = {{1, 1}, {3, 7}, {130, 200}, {0, 4}};
    for (size_t s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; ++s)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype) {
            int64_t elems = SHAPES[s][0] * SHAPES[s][1];
            Tensor x = op_test_random(t, dtype, 2, SHAPES[s], 2.0);
            double *ref = op_test_host(t, x), sum = 0;
            for (int64_t i = 0; i < elems; ++i) sum += ref[i] * ref[i];
            for (int64_t i = 0; i < elems; ++i) ref[i] /= sqrt(sum) + 0.125;
            t->be->frobenius_normalize(t->be, x, 0.125f);
            op_test_close(t, x, ref, op_test_tolerance(dtype), "frobenius_normalize %lld", (long long)elems);
        }
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_grad_clip),         OP_TEST_CASE(test_grad_clip_not_finite),
                                OP_TEST_CASE(test_grad_clip_threads), OP_TEST_CASE(test_adamw),
                                OP_TEST_CASE(test_adamw_skip),        OP_TEST_CASE(test_adamw_threads),
                                OP_TEST_CASE(test_muon),              OP_TEST_CASE(test_muon_skip),
                                OP_TEST_CASE(test_frobenius_normalize)};
    return op_test_main(CASES, sizeof CASES / sizeof CASES[0]);
}
