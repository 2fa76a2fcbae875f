// test_ops_optim.c: gradient norm and skipping, AdamW and Muon's elementwise steps against double precision;
// stochastic rounding to the bit and in the mean; hashes to the bit.
#include "tests/support/op_test.h"

#include <math.h>
#include <string.h>

#include "llmc/base/hash_element.h"
#include "llmc/base/rng.h"

static Tensor stats_tensor(OpTest *t, double scale, bool skip) {
    Tensor memory = op_test_tensor(t, DTYPE_U8, OP_TEST_DIMS((int64_t)sizeof(GradStats)));
    GradStats stats = {.scale = (float)scale, .skip = skip};
    t->be->upload(t->be, memory.data, &stats, sizeof stats);
    return memory;
}

// ---- gradient norm ----
typedef struct {
    Tensor grad, sums, stats;
    float max_norm;
} ClipCase;
static ClipArgs clip_args(float max_norm) {
    return (ClipArgs){.max_norm = max_norm, .skip_norm = INFINITY, .skip_loss = INFINITY};
}
static void run_clip(OpTest *t, void *user) {
    const ClipCase *c = user;
    t->be->sum_squares(t->be, c->sums, c->grad);
    t->be->grad_clip(t->be, c->stats.data, c->sums, TENSOR_NONE, clip_args(c->max_norm));
}
static GradStats read_stats(OpTest *t, Tensor memory) {
    GradStats stats;
    t->be->download(t->be, &stats, memory.data, sizeof stats);
    return stats;
}
static GradStats clip(OpTest *t, Tensor grad, float max_norm) {
    ClipCase c = {grad, op_test_tensor(t, DTYPE_F64, OP_TEST_DIMS(1)), stats_tensor(t, NAN, true), max_norm};
    run_clip(t, &c);
    return read_stats(t, c.stats);
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
        assert_int_equal(stats.skip, SKIP_NOT);
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
    assert_true(large.skip == SKIP_NOT && fabs((double)large.norm / 1e25 - 1) < 1e-6);
    assert_true(fabs((double)large.scale / 1e-25 - 1) < 1e-6);
    const double bad[3] = {NAN, INFINITY, -INFINITY};
    for (int kind = 0; kind < 3; ++kind)
        for (int64_t at = 0; at < N; at += 4001) {
            values[at] = bad[kind];
            GradStats stats = clip(t, op_test_from(t, DTYPE_F32, OP_TEST_DIMS(N), values), 1.0f);
            assert_true(stats.skip == SKIP_NOT_FINITE && stats.scale == 0);
            values[at] = 0;
        }
}
static void test_grad_clip_threads(OpTest *t) {
    Tensor grad = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(30001), 1.0);
    ClipCase c = {grad, op_test_tensor(t, DTYPE_F64, OP_TEST_DIMS(1)), stats_tensor(t, 0, false), 1.0f};
    op_test_thread_invariant(t, run_clip, &c, (Tensor[]){c.stats, c.sums}, 2, "grad_clip");
}
// The order of additions depends on the length alone: not on where the elements lie.
static void test_sum_squares_place(OpTest *t) {
    const int64_t N = 12347, MOST = N + 8;
    Tensor memory = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(MOST), 1.0), grad = memory;
    const double *host = op_test_host(t, memory);
    double *values = op_test_doubles(t, MOST), first = 0;
    grad.dim[0] = N;
    for (int64_t offset = 0; offset < 6; ++offset) {
        for (int64_t i = 0; i < N; ++i) values[offset + i] = host[i];
        op_test_upload(t, memory, values);
        grad.data = (float *)memory.data + offset;
        Tensor out = op_test_tensor(t, DTYPE_F64, OP_TEST_DIMS(1));
        t->be->sum_squares(t->be, out, grad);
        double sum = *op_test_host(t, out);
        if (offset == 0) first = sum;
        assert_true(first > 0 && sum == first);
    }
}

static GradStats clip_sums(OpTest *t, const double *sums, int64_t count, const double *losses, int64_t loss_count,
                           ClipArgs args) {
    Tensor memory = stats_tensor(t, NAN, true), loss_sums = TENSOR_NONE;
    if (loss_count > 0) loss_sums = op_test_from(t, DTYPE_F64, OP_TEST_DIMS(loss_count), losses);
    t->be->grad_clip(t->be, memory.data, op_test_from(t, DTYPE_F64, OP_TEST_DIMS(count), sums), loss_sums, args);
    return read_stats(t, memory);
}
// Pieces of the gradient, each with its sum, are added from the first to the last: 1 is lost beside 2^60 until it
// comes in company.
static void test_grad_clip_order(OpTest *t) {
    const int64_t N = 700;
    double *sums = op_test_doubles(t, N);
    for (int64_t i = 0; i < N; ++i) sums[i] = i == 0 || i == 300 ? 0x1p60 : 1;
    assert_true(clip_sums(t, sums, N, NULL, 0, clip_args(1)).sum_squares == 0x1p61);
    for (int64_t i = 0; i < N; ++i) sums[i] = i == N - 1 ? 0x1p60 : 1;
    double expected = 0;
    for (int64_t i = 0; i < N; ++i) expected += sums[i];
    GradStats stats = clip_sums(t, sums, N, NULL, 0, clip_args(1));
    assert_true(expected > 0x1p60 && stats.sum_squares == expected && stats.norm == (float)sqrt(expected));
}
// Why a step is skipped. Of a skipped step nothing of the gradient is used: its scale is 0.
static void test_grad_clip_skip(OpTest *t) {
    const double sums[2] = {9, 16}, losses[3] = {2, 3, 5};  // norm 5, loss 2.5
    const struct {
        double skip_norm, skip_loss, last_loss;
        SkipReason skip;
    } CASES[] = {{5, 2.5, 5, SKIP_NOT},
                 {4.999, 2.5, 5, SKIP_NORM},
                 {5, 2.499, 5, SKIP_LOSS},
                 {4.999, 2.499, 5, SKIP_NORM},
                 {INFINITY, INFINITY, NAN, SKIP_NOT_FINITE},
                 {INFINITY, INFINITY, INFINITY, SKIP_NOT_FINITE},
                 {1, 1, NAN, SKIP_NOT_FINITE},
                 {INFINITY, INFINITY, 5, SKIP_NOT}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        const double now[3] = {losses[0], losses[1], CASES[i].last_loss};
        GradStats stats = clip_sums(t, sums, 2, now, 3,
                                    (ClipArgs){.max_norm = 2, .skip_norm = CASES[i].skip_norm,
                                               .skip_loss = CASES[i].skip_loss, .loss_scale = 0.25});
        assert_int_equal(stats.skip, CASES[i].skip);
        assert_true(stats.norm == 5 && stats.sum_squares == 25);
        assert_true(stats.scale == (CASES[i].skip == SKIP_NOT ? 0.4f : 0.0f));
    }
}

// ---- hashes ----
static uint64_t hash_of(OpTest *t, Tensor x, int64_t first_elem) {
    Tensor out = op_test_tensor(t, DTYPE_F64, OP_TEST_DIMS(1));
    uint64_t hash;
    t->be->hash_sum(t->be, out.data, x, first_elem, false);
    t->be->download(t->be, &hash, out.data, sizeof hash);
    return hash;
}
static uint64_t hash_expected(OpTest *t, Tensor x, int64_t first_elem) {
    size_t bytes = tensor_bytes(x);
    unsigned char *host = op_test_bytes(t, bytes + 1);
    uint64_t sum = 0;
    t->be->download(t->be, host, x.data, bytes);
    for (int64_t i = 0; i < tensor_elems(x); ++i) {
        uint32_t bits = 0;
        memcpy(&bits, host + i * (int64_t)dtype_bytes(x.dtype), dtype_bytes(x.dtype));
        sum += hash_element((uint64_t)(first_elem + i), bits);
    }
    return sum;
}
static void test_hash_sum(OpTest *t) {
    const int64_t COUNTS[] = {0, 1, 7, 16, 33, 4099, 150001}, FIRST[] = {0, 5, (int64_t)1 << 40};
    for (int dtype = 0; dtype < 2; ++dtype)
        for (size_t i = 0; i < sizeof COUNTS / sizeof COUNTS[0]; ++i) {
            Tensor x = op_test_random(t, dtype == 0 ? DTYPE_F32 : DTYPE_BF16, OP_TEST_DIMS(COUNTS[i]), 1.0);
            for (size_t f = 0; f < sizeof FIRST / sizeof FIRST[0]; ++f)
                assert_true(hash_of(t, x, FIRST[f]) == hash_expected(t, x, FIRST[f]));
            op_test_release(t);
        }
}
// Pieces at any place, in any order, add up to the whole; NaN and -0 are bits like others.
static void test_hash_sum_pieces(OpTest *t) {
    const int64_t N = 5003, cut[] = {0, 3, 3, 1030, 4096, N};
    double *values = op_test_doubles(t, N);
    for (int64_t i = 0; i < N; ++i) values[i] = i % 7 == 0 ? NAN : i % 7 == 1 ? -0.0 : (double)i;
    for (int dtype = 0; dtype < 2; ++dtype) {
        Tensor x = op_test_from(t, dtype == 0 ? DTYPE_F32 : DTYPE_BF16, OP_TEST_DIMS(N), values);
        Tensor out = op_test_tensor(t, DTYPE_F64, OP_TEST_DIMS(1));
        uint64_t sum;
        for (int piece = 4; piece >= 0; --piece) {
            Tensor part = tensor_1d((char *)x.data + cut[piece] * (int64_t)dtype_bytes(x.dtype), x.dtype,
                                    cut[piece + 1] - cut[piece]);
            t->be->hash_sum(t->be, out.data, part, 100 + cut[piece], piece != 4);
        }
        t->be->download(t->be, &sum, out.data, sizeof sum);
        assert_true(sum == hash_expected(t, x, 100));
        // One bit, or two elements that change places, give another sum.
        values[1] = 0.0;
        op_test_upload(t, x, values);
        assert_true(hash_of(t, x, 100) != sum);
        values[1] = values[2];
        values[2] = -0.0;
        op_test_upload(t, x, values);
        assert_true(hash_of(t, x, 100) != sum);
        values[2] = values[1];
        values[1] = -0.0;
        op_test_upload(t, x, values);
        assert_true(hash_of(t, x, 100) == sum);
    }
}

// ---- parameters ----
typedef enum {
    MASTER,           // fp32 weights
    MASTER_AND_COPY,  // bf16 weights with fp32 masters
    BF16_ONLY,        // bf16 weights, rounded stochastically
    STORAGE_COUNT
} Storage;

typedef struct {
    int64_t elems, first_elem;
    float lr, weight_decay;
    Storage storage;
    Tensor master, weight, grad, m, v;  // master or weight is TENSOR_NONE where the storage has none
    double *ref_value, *ref_m, *ref_v;
    const double *ref_grad;
} Param;

static Param param_case(OpTest *t, int64_t elems, float lr, float weight_decay, Storage storage) {
    Param p = {.elems = elems, .lr = lr, .weight_decay = weight_decay, .storage = storage};
    if (storage == BF16_ONLY) p.weight = op_test_random(t, DTYPE_BF16, OP_TEST_DIMS(elems), 1.0);
    else p.master = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(elems), 1.0);
    if (storage == MASTER_AND_COPY) p.weight = op_test_tensor(t, DTYPE_BF16, OP_TEST_DIMS(elems));
    p.grad = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(elems), 1.0);
    p.m = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(elems), 0.1);
    p.v = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(elems), 0.1);
    p.ref_v = op_test_host(t, p.v);
    for (int64_t i = 0; i < elems; ++i) p.ref_v[i] = fabs(p.ref_v[i]);
    op_test_upload(t, p.v, p.ref_v);
    p.ref_value = op_test_host(t, storage == BF16_ONLY ? p.weight : p.master);
    p.ref_grad = op_test_host(t, p.grad);
    p.ref_m = op_test_host(t, p.m);
    return p;
}
static OptimTensor param_view(const Param *p) {
    return (OptimTensor){.master = p->master.data, .weight = p->weight.data, .grad = p->grad.data, .m = p->m.data,
                         .v = p->v.data, .elems = p->elems, .first_elem = p->first_elem, .lr = p->lr,
                         .weight_decay = p->weight_decay};
}
// Everything back to where the references are now.
static void param_reset(OpTest *t, const Param *p) {
    op_test_upload(t, p->storage == BF16_ONLY ? p->weight : p->master, p->ref_value);
    if (p->storage == MASTER_AND_COPY) op_test_upload(t, p->weight, p->ref_value);
    op_test_upload(t, p->m, p->ref_m);
    op_test_upload(t, p->v, p->ref_v);
}

// The values against ref_value. Stochastic rounding may go to either neighbour: less than the distance of two bf16
// numbers away, plus the error of fp32; what is stored goes into ref_value then.
static void check_values(OpTest *t, Param *p, const char *label) {
    if (p->storage != BF16_ONLY) op_test_close(t, p->master, p->ref_value, 2e-6, "%s", label);
    if (p->storage == MASTER_AND_COPY) {
        Tensor expected = op_test_from(t, DTYPE_BF16, OP_TEST_DIMS(p->elems), op_test_host(t, p->master));
        op_test_same_bits(t, p->weight, expected, "the bf16 weights are the rounded master weights");
    }
    if (p->storage != BF16_ONLY) return;
    const double *values = op_test_host(t, p->weight);
    for (int64_t i = 0; i < p->elems; ++i) {
        double spacing = ldexp(1, ilogb(p->ref_value[i]) - 7);
        if (!(fabs(values[i] - p->ref_value[i]) <= spacing * (1 + 1e-4)))
            fail_msg("%s: element %lld is %.9g, expected a neighbour of %.9g", label, (long long)i, values[i],
                     p->ref_value[i]);
        p->ref_value[i] = values[i];
    }
}

// ---- AdamW ----
// Sizes around vectors and blocks: shares of the work begin and end inside tensors.
#define PARAM_COUNT 9
static void adamw_params(OpTest *t, Param params[PARAM_COUNT]) {
    const int64_t ELEMS[PARAM_COUNT] = {1, 7, 0, 4096, 4097, 20003, 5, 4099, 9001};
    int64_t first_elem = 0;
    for (int i = 0; i < PARAM_COUNT; ++i) {
        params[i] = param_case(t, ELEMS[i], 0.01f * (float)(i + 1), i % 2 == 0 ? 0.0f : 0.3f,
                               i < 6 ? (Storage)(i % 3 == 1) : BF16_ONLY);
        params[i].first_elem = first_elem;
        first_elem += round_up(ELEMS[i], 128);
    }
}
static void run_adamw(OpTest *t, const Param *params, double scale, bool skip, int64_t step) {
    OptimTensor views[PARAM_COUNT];
    for (int i = 0; i < PARAM_COUNT; ++i) views[i] = param_view(&params[i]);
    AdamwArgs args = {.beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .t = step, .seed = 5};
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
                double g = p->ref_grad[e] * scale, w = p->ref_value[e];
                double m = p->ref_m[e] = b1 * p->ref_m[e] + (1 - b1) * g;
                double v = p->ref_v[e] = b2 * p->ref_v[e] + (1 - b2) * g * g;
                double update = m / correction1 / (sqrt(v / correction2) + 1e-8);
                p->ref_value[e] = w - (double)p->lr * (update + (double)p->weight_decay * w);
            }
            op_test_close(t, p->m, p->ref_m, 2e-6, "m, step %lld", (long long)step);
            op_test_close(t, p->v, p->ref_v, 2e-6, "v, step %lld", (long long)step);
            check_values(t, p, "adamw");
        }
    }
}
static void check_untouched(OpTest *t, const Param *p) {
    if (p->storage != BF16_ONLY) op_test_close(t, p->master, p->ref_value, 0, "skipped master");
    op_test_close(t, p->m, p->ref_m, 0, "skipped m");
    op_test_close(t, p->v, p->ref_v, 0, "skipped v");
    if (p->storage == MASTER) return;
    Tensor expected = op_test_from(t, DTYPE_BF16, OP_TEST_DIMS(p->elems), p->ref_value);
    op_test_same_bits(t, p->weight, expected, "skipped bf16 weights");
}
static void test_adamw_skip(OpTest *t) {
    Param params[PARAM_COUNT];
    adamw_params(t, params);
    for (int i = 0; i < PARAM_COUNT; ++i) param_reset(t, &params[i]);
    run_adamw(t, params, 0, true, 1);
    for (int i = 0; i < PARAM_COUNT; ++i) check_untouched(t, &params[i]);
}
static void run_adamw_again(OpTest *t, void *user) {
    const Param *params = user;
    for (int i = 0; i < PARAM_COUNT; ++i) param_reset(t, &params[i]);
    run_adamw(t, params, 0.5, false, 1);
}
static void test_adamw_threads(OpTest *t) {
    Param params[PARAM_COUNT];
    adamw_params(t, params);
    const Tensor outs[] = {params[4].master, params[5].v, params[4].weight, params[7].weight, params[8].weight};
    op_test_thread_invariant(t, run_adamw_again, params, outs, sizeof outs / sizeof outs[0], "adamw");
}

// ---- many tensors ----
// More tensors than one launch may take, in flat arrays as a model has them, but not where 16-byte packs begin: a
// tensor's result is the same alone, and nothing beside it is touched.
#define MANY 110
typedef struct {
    Tensor flat[5];  // masters, bf16 weights, gradients, m, v
    OptimTensor list[MANY];
} Crowd;
static Crowd crowd_case(OpTest *t, int64_t same_elems, const Crowd *copied) {
    Crowd crowd;
    int64_t elems[MANY], total = 0;
    for (int i = 0; i < MANY; ++i) total += elems[i] = same_elems > 0 ? same_elems : i * 37 % 53;
    for (int k = 0; k < 5; ++k) {
        DType dtype = k == 1 ? DTYPE_BF16 : DTYPE_F32;
        double *values = op_test_host(t, copied != NULL ? copied->flat[k]
                                                        : op_test_random(t, dtype, OP_TEST_DIMS(total), 1.0));
        for (int64_t i = 0; i < total && k == 4; ++i) values[i] = fabs(values[i]);
        crowd.flat[k] = op_test_from(t, dtype, OP_TEST_DIMS(total), values);
    }
    for (int64_t i = 0, first = 0; i < MANY; first += elems[i++]) {
        void *at[5];
        for (int k = 0; k < 5; ++k) at[k] = tensor_rows(crowd.flat[k], first, elems[i]).data;
        crowd.list[i] = (OptimTensor){.master = i % 3 == BF16_ONLY ? NULL : at[0],
                                      .weight = i % 3 == MASTER ? NULL : at[1], .grad = at[2], .m = at[3], .v = at[4],
                                      .elems = elems[i], .first_elem = first, .lr = 1e-3f * (float)i,
                                      .weight_decay = 0.1f};
    }
    return crowd;
}
static void check_same_crowds(OpTest *t, const Crowd *a, const Crowd *b) {
    static const char *const NAMES[] = {"masters", "weights", "gradients", "m", "v"};
    for (int k = 0; k < 5; ++k) op_test_same_bits(t, a->flat[k], b->flat[k], NAMES[k]);
}
static void test_adamw_many(OpTest *t) {
    Crowd together = crowd_case(t, 0, NULL), alone = crowd_case(t, 0, &together);
    Tensor stats = stats_tensor(t, 0.5, false);
    AdamwArgs args = {.beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .t = 7, .seed = 3};
    t->be->adamw(t->be, together.list, MANY, stats.data, args);
    for (int i = 0; i < MANY; ++i) t->be->adamw(t->be, &alone.list[i], 1, stats.data, args);
    check_same_crowds(t, &together, &alone);
}
static void test_muon_many(OpTest *t) {
    Crowd together = crowd_case(t, 35, NULL), alone = crowd_case(t, 35, &together);
    Tensor stats = stats_tensor(t, 0.5, false);
    Tensor x = op_test_tensor(t, DTYPE_BF16, OP_TEST_DIMS(MANY, 5, 7));
    Tensor x_alone = op_test_tensor(t, DTYPE_BF16, OP_TEST_DIMS(MANY, 5, 7));
    MuonArgs args = {.momentum = 0.95f, .t = 4, .seed = 11};
    t->be->muon_momentum(t->be, x, together.list, MANY, stats.data, args);
    t->be->frobenius_normalize(t->be, x, 1e-7f);
    t->be->muon_apply(t->be, together.list, MANY, x, stats.data, args);
    for (int i = 0; i < MANY; ++i) {
        Tensor one = tensor_rows(x_alone, i, 1);
        t->be->muon_momentum(t->be, one, &alone.list[i], 1, stats.data, args);
        t->be->frobenius_normalize(t->be, one, 1e-7f);
        t->be->muon_apply(t->be, &alone.list[i], 1, one, stats.data, args);
    }
    op_test_same_bits(t, x, x_alone, "orthogonalized");
    check_same_crowds(t, &together, &alone);
}

// ---- Muon ----
// x's matrix `index` as a flat view.
static Tensor flat_matrix(Tensor x, int64_t index) {
    Tensor one = tensor_rows(x, index, 1);
    return tensor_1d(one.data, one.dtype, one.dim[1] * one.dim[2]);
}
#define MATRICES 3
static void check_muon(OpTest *t, int64_t rows, int64_t cols, DType dtype, bool nesterov) {
    Param params[MATRICES];
    OptimTensor views[MATRICES];
    int64_t elems = rows * cols;
    for (int i = 0; i < MATRICES; ++i) {
        params[i] = param_case(t, elems, 0.02f * (float)(i + 1), 0.1f * (float)i,
                               dtype == DTYPE_F32 ? MASTER : i == 2 ? BF16_ONLY : MASTER_AND_COPY);
        params[i].first_elem = 1000 + i * elems;
        views[i] = param_view(&params[i]);
    }
    Tensor update = op_test_tensor(t, dtype, OP_TEST_DIMS(MATRICES, rows, cols)), stats = stats_tensor(t, 0.5, false);
    MuonArgs args = {.momentum = 0.95f, .nesterov = nesterov, .t = 2, .seed = 9};
    double *ref = op_test_doubles(t, elems), momentum = (double)0.95f;
    t->be->muon_momentum(t->be, update, views, MATRICES, stats.data, args);
    for (int m = 0; m < MATRICES; ++m) {
        Param *p = &params[m];
        for (int64_t i = 0; i < elems; ++i) {
            double g = 0.5 * p->ref_grad[i];
            p->ref_m[i] = momentum * p->ref_m[i] + g;
            ref[i] = nesterov ? g + momentum * p->ref_m[i] : p->ref_m[i];
        }
        op_test_close(t, p->m, p->ref_m, 2e-6, "momentum of %lld", (long long)elems);
        op_test_close(t, flat_matrix(update, m), ref, op_test_tolerance(dtype), "update of %lld", (long long)elems);
    }
    t->be->muon_apply(t->be, views, MATRICES, update, stats.data, args);
    for (int m = 0; m < MATRICES; ++m) {
        Param *p = &params[m];
        const double *x = op_test_host(t, flat_matrix(update, m));
        for (int64_t i = 0; i < elems; ++i)
            p->ref_value[i] -= (double)p->lr * (x[i] + (double)p->weight_decay * p->ref_value[i]);
        check_values(t, p, "muon_apply");
    }
}
static void test_muon(OpTest *t) {
    const int64_t SHAPES[][2] = {{0, 4}, {1, 1}, {3, 11}, {64, 72}, {101, 99}};
    for (size_t i = 0; i < sizeof SHAPES / sizeof SHAPES[0]; ++i)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype)
            check_muon(t, SHAPES[i][0], SHAPES[i][1], dtype, (i + dtype) % 2 == 0);
}
static void test_muon_skip(OpTest *t) {
    Param params[2] = {param_case(t, 33, 0.02f, 0.1f, MASTER_AND_COPY), param_case(t, 33, 0.02f, 0.1f, BF16_ONLY)};
    const OptimTensor views[2] = {param_view(&params[0]), param_view(&params[1])};
    Tensor update = op_test_tensor(t, DTYPE_BF16, OP_TEST_DIMS(2, 3, 11)), stats = stats_tensor(t, 0, true);
    MuonArgs args = {.momentum = 0.95f, .nesterov = true, .t = 1};
    op_test_upload(t, params[0].weight, params[0].ref_value);
    t->be->muon_momentum(t->be, update, views, 2, stats.data, args);
    op_test_close(t, update, op_test_doubles(t, 66), 0, "a skipped update is zero");
    t->be->muon_apply(t->be, views, 2, update, stats.data, args);
    for (int i = 0; i < 2; ++i) check_untouched(t, &params[i]);
}
static void test_frobenius_normalize(OpTest *t) {
    const int64_t SHAPES[][3] = {{1, 1, 1}, {2, 3, 7}, {3, 130, 200}, {5, 8, 16}, {0, 3, 4}, {2, 0, 4}};
    for (size_t s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; ++s)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype) {
            int64_t elems = SHAPES[s][1] * SHAPES[s][2];
            Tensor x = op_test_random(t, dtype, 3, SHAPES[s], 2.0);
            double *ref = op_test_host(t, x);
            for (int64_t g = 0; g < SHAPES[s][0]; ++g) {
                double sum = 0;
                for (int64_t i = 0; i < elems; ++i) sum += ref[g * elems + i] * ref[g * elems + i];
                for (int64_t i = 0; i < elems; ++i) ref[g * elems + i] /= sqrt(sum) + 0.125;
            }
            t->be->frobenius_normalize(t->be, x, 0.125f);
            op_test_close(t, x, ref, op_test_tolerance(dtype), "frobenius_normalize of %lld", (long long)elems);
        }
}
static void run_normalize(OpTest *t, void *user) {
    const Tensor *x = user;
    op_test_upload(t, x[0], op_test_host(t, x[1]));
    t->be->frobenius_normalize(t->be, x[0], 1e-7f);
}
static void test_frobenius_threads(OpTest *t) {
    Tensor from = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(2, 150, 190), 1.0);
    Tensor x[2] = {op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(2, 150, 190)), from};
    op_test_thread_invariant(t, run_normalize, x, x, 1, "frobenius_normalize");
}

// ---- stochastic rounding ----
// The rule of rng_philox.h, written down once more from its description.
static uint16_t rounded(float value, uint64_t seed, int64_t step, int64_t elem) {
    uint32_t words[4], bits;
    rng_block(seed, (uint64_t)RNG_STREAM_ROUNDING + 256 * (uint64_t)step, (uint64_t)elem / 8, words);
    uint32_t random16 = words[elem % 8 / 2] >> (elem % 2 == 0 ? 0 : 16) & 0xffffu;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + random16) >> 16);
}
// The weights' bits, and how many of them the rule sets elsewhere than rounding to nearest would.
static int check_rounded(OpTest *t, Tensor weight, const float *values, uint64_t seed, int64_t step, int64_t first) {
    int64_t elems = tensor_elems(weight);
    uint16_t *bits = op_test_bytes(t, tensor_bytes(weight));
    int other = 0;
    t->be->download(t->be, bits, weight.data, tensor_bytes(weight));
    for (int64_t i = 0; i < elems; ++i) {
        assert_int_equal(bits[i], rounded(values[i], seed, step, first + i));
        other += bits[i] != bf16_from_f32(values[i]);
    }
    return other;
}

// Updates that fp32 computes with one rounding, whatever the order and the contraction of its operations: a learning
// rate of a power of two, no decay; in AdamW gradients of powers of two, betas and eps of zero.
static void check_rounding_bits(OpTest *t, int64_t elems, uint64_t seed, int64_t step, int64_t first_elem) {
    const float lr = 0x1p-10f;
    Param p = param_case(t, elems, lr, 0, BF16_ONLY);
    p.first_elem = first_elem;
    OptimTensor view = param_view(&p);
    Tensor stats = stats_tensor(t, 1, false), x = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(1, 1, elems), 1.0);
    const double *update = op_test_host(t, x);
    float *values = op_test_bytes(t, (size_t)elems * sizeof *values);
    for (int64_t i = 0; i < elems; ++i) values[i] = (float)p.ref_value[i] - lr * (float)update[i];
    t->be->muon_apply(t->be, &view, 1, x, stats.data, (MuonArgs){.t = step, .seed = seed});
    int other = check_rounded(t, p.weight, values, seed, step, first_elem);
    // The old value is the nearest in most cases: a step is a fraction of the distance of two bf16 numbers.
    assert_true(elems < 1000 || other > elems / 50);

    double *grad = op_test_doubles(t, elems);
    for (int64_t i = 0; i < elems; ++i) grad[i] = ldexp(i % 3 == 0 ? -1 : 1, (int)(i % 5) - 7);
    op_test_upload(t, p.grad, grad);
    op_test_upload(t, p.weight, p.ref_value);
    for (int64_t i = 0; i < elems; ++i) values[i] = (float)p.ref_value[i] - (grad[i] > 0 ? lr : -lr);
    t->be->adamw(t->be, &view, 1, stats.data, (AdamwArgs){.t = step, .seed = seed});
    check_rounded(t, p.weight, values, seed, step, first_elem);
}
static void test_rounding_bits(OpTest *t) {
    check_rounding_bits(t, 1, 1, 1, 0);
    check_rounding_bits(t, 13, 1, 1, 3);
    check_rounding_bits(t, 1031, 0xfedcba9876543210u, 12345678901, 128);
    check_rounding_bits(t, 9000, 7, 2, ((int64_t)1 << 36) - 4000);  // block numbers on both sides of 2^33
    check_rounding_bits(t, 8203, 7, 3, 8 * 1001 + 4);
    check_rounding_bits(t, 5000, 7, 3, 8 * 1001 + 2);
}

// Many small updates, each a fraction of the distance of two bf16 numbers, move weights by their sum in the mean:
// rounding to nearest would leave them all at 1. One update is rounded with a variance of at most (2^-8 / 2)^2, so
// the mean over n elements after s steps has a standard deviation of at most 2^-9 sqrt(s / n); the bound is five.
static void test_rounding_is_unbiased(OpTest *t) {
    enum { ELEMS = 8192, STEPS = 150 };
    Param p = param_case(t, ELEMS, 0x1p-13f, 0, BF16_ONLY);
    OptimTensor view = param_view(&p);
    double *values = op_test_doubles(t, ELEMS);
    Tensor x = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(1, 1, ELEMS)), stats = stats_tensor(t, 1, false);
    for (int i = 0; i < ELEMS; ++i) values[i] = 1;
    op_test_upload(t, p.weight, values);
    op_test_upload(t, x, values);
    for (int64_t step = 1; step <= STEPS; ++step) {
        t->be->muon_apply(t->be, &view, 1, x, stats.data, (MuonArgs){.t = step, .seed = 21});
        if (step != 1 && step != STEPS) continue;
        const double *now = op_test_host(t, p.weight);
        double mean = 0;
        for (int i = 0; i < ELEMS; ++i) mean += now[i] / ELEMS;
        double deviation = mean - (1 - (double)step * 0x1p-13);
        if (!(fabs(deviation) <= 5 * 0x1p-9 * sqrt((double)step / ELEMS)))
            fail_msg("after %lld steps the mean is off by %.3g", (long long)step, deviation);
    }
}

static void test_rounding_not_finite(OpTest *t) {
    enum { ELEMS = 21 };
    Param p = param_case(t, ELEMS, 1, 0, BF16_ONLY);
    OptimTensor view = param_view(&p);
    double *values = op_test_doubles(t, ELEMS);
    for (int i = 0; i < ELEMS; ++i) values[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
    Tensor x = op_test_from(t, DTYPE_F32, OP_TEST_DIMS(1, 3, 7), values);
    for (int64_t step = 1; step <= 8; ++step) {
        op_test_upload(t, p.weight, p.ref_value);
        t->be->muon_apply(t->be, &view, 1, x, stats_tensor(t, 1, false).data, (MuonArgs){.t = step});
        const double *now = op_test_host(t, p.weight);
        for (int i = 0; i < ELEMS; ++i) assert_true(i % 3 == 0 ? isnan(now[i]) : now[i] == -values[i]);
    }
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_grad_clip),           OP_TEST_CASE(test_grad_clip_not_finite),
                                OP_TEST_CASE(test_grad_clip_threads),   OP_TEST_CASE(test_sum_squares_place),
                                OP_TEST_CASE(test_grad_clip_order),     OP_TEST_CASE(test_grad_clip_skip),
                                OP_TEST_CASE(test_hash_sum),            OP_TEST_CASE(test_hash_sum_pieces),
                                OP_TEST_CASE(test_adamw),
                                OP_TEST_CASE(test_adamw_skip),          OP_TEST_CASE(test_adamw_threads),
                                OP_TEST_CASE(test_adamw_many),          OP_TEST_CASE(test_muon),
                                OP_TEST_CASE(test_muon_skip),           OP_TEST_CASE(test_muon_many),
                                OP_TEST_CASE(test_frobenius_normalize), OP_TEST_CASE(test_frobenius_threads),
                                OP_TEST_CASE(test_rounding_bits),       OP_TEST_CASE(test_rounding_is_unbiased),
                                OP_TEST_CASE(test_rounding_not_finite)};
    return op_test_main(CASES, sizeof CASES / sizeof CASES[0]);
}
