// test_ops_optim.c: gradient norm, AdamW, Muon's elementwise steps and hashes; why a step is skipped, the order of
// additions, tensors alone and together with others, stochastic rounding bit for bit and in the mean.
#include <math.h>
#include <string.h>

#include "llmc/base/hash_element.h"
#include "llmc/base/rng.h"
#include "tests/support/case_test.h"

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

// Squares that overflow fp32 do not skip the step; NaN or infinity anywhere does.
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
// The order of additions depends on the length alone, not on the address.
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
// Sums of the pieces of the gradient are added from the first to the last: a single 1 is lost beside 2^60, a sum of
// many is not.
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
// Why a step is skipped. A skipped step does not use the gradient: its scale is 0.
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
        GradStats stats = clip_sums(
            t, sums, 2, now, 3,
            (ClipArgs){
                .max_norm = 2, .skip_norm = CASES[i].skip_norm, .skip_loss = CASES[i].skip_loss, .loss_scale = 0.25});
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
// Hashes of pieces, in any order, add up to that of the whole; NaN and -0 are ordinary bits.
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
        // One changed bit, or two swapped elements, give another sum.
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

// ---- skipping ----
// A skipped step changes nothing except Muon's update, which is zero.
static OpCall *skipped_case(OpTest *t, const char *op, const char *variant, int dims, const int64_t *dim) {
    const GradStats skip = {.scale = 0, .skip = SKIP_NORM};
    OpCall *call = case_test_open(t, op, variant, DTYPE_BF16, 2, dims, dim);  // 2: many tensors, of every storage
    t->be->upload(t->be, call->t[0][1].data, &skip, sizeof skip);
    return call;
}
static void check_untouched(OpTest *t, OpCall *call) {
    uint64_t before = op_call_hash(call);
    case_test_run(t, call);
    if (op_call_hash(call) != before) fail_msg("%s: a skipped step changes something", call->c->kind->op);
}
static void test_skip(OpTest *t) {
    check_untouched(t, skipped_case(t, "AdamW", "plain", OP_TEST_DIMS(43008)));
    check_untouched(t, skipped_case(t, "Muon apply", "plain", OP_TEST_DIMS(3, 3, 11)));
    OpCall *momentum = skipped_case(t, "Muon momentum", "Nesterov", OP_TEST_DIMS(3, 3, 11));
    const double *m = op_test_host(t, momentum->t[0][3]);
    case_test_run(t, momentum);
    op_test_close(t, momentum->t[0][3], m, 0, "a skipped m");
    op_test_close(t, momentum->t[0][4], op_test_doubles(t, 99), 0, "a skipped update");
}

// A tensor's result is the same alone as in a call with more of them than one launch may take.
#define CROWD 2u
#define MANY 4u
#define ALONE 32u
static void check_alone(OpTest *t, const char *op, const char *variant, unsigned flags, int dims,
                        const int64_t *dim) {
    uint64_t hash[2];
    for (unsigned alone = 0; alone < 2; ++alone) {
        OpCall *call = case_test_open(t, op, variant, DTYPE_BF16, flags | alone * ALONE, dims, dim);
        case_test_run(t, call);
        hash[alone] = op_call_hash(call);
    }
    if (hash[0] != hash[1]) fail_msg("%s: other bits together with others than alone", op);
}
static void test_alone(OpTest *t) {
    const int64_t matrices[3] = {110, 5, 7};
    int64_t elems = 0;
    for (int i = 0; i < 110; ++i) elems += i * 37 % 53;
    check_alone(t, "AdamW", "plain", MANY, 1, &elems);
    check_alone(t, "Muon momentum", "Nesterov", CROWD, 3, matrices);
    check_alone(t, "Muon normalize", "plain", CROWD, 3, matrices);
    check_alone(t, "Muon apply", "plain", CROWD, 3, matrices);
}

// ---- stochastic rounding ----
// The rule of rng_philox.h, implemented again from its description.
static uint16_t rounded(float value, uint64_t seed, int64_t step, int64_t elem) {
    uint32_t words[4], bits;
    rng_block(seed, (uint64_t)RNG_STREAM_ROUNDING + 256 * (uint64_t)step, (uint64_t)elem / 8, words);
    uint32_t random16 = words[elem % 8 / 2] >> (elem % 2 == 0 ? 0 : 16) & 0xffffu;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + random16) >> 16);
}
// The weights' bits, and for how many of them the rule differs from rounding to nearest.
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

// One bf16 parameter without a master.
typedef struct {
    Tensor weight, grad, m, v;
    double *values;  // of weight at the start
    OptimTensor view;
} Param;
static Param param_case(OpTest *t, int64_t elems, float lr) {
    Param p = {.weight = op_test_random(t, DTYPE_BF16, OP_TEST_DIMS(elems), 1.0),
               .grad = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(elems), 1.0),
               .m = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(elems), 0.1),
               .v = op_test_from(t, DTYPE_F32, OP_TEST_DIMS(elems), op_test_doubles(t, elems))};
    p.values = op_test_host(t, p.weight);
    p.view = (OptimTensor){
        .weight = p.weight.data, .grad = p.grad.data, .m = p.m.data, .v = p.v.data, .elems = elems, .lr = lr};
    return p;
}

// Updates that fp32 computes with one rounding, whatever the order and the contraction of its operations: a learning
// rate of a power of two, no decay; in AdamW gradients of powers of two, betas and eps of zero.
static void check_rounding_bits(OpTest *t, int64_t elems, uint64_t seed, int64_t step, int64_t first_elem) {
    const float lr = 0x1p-10f;
    Param p = param_case(t, elems, lr);
    p.view.first_elem = first_elem;
    Tensor stats = stats_tensor(t, 1, false), x = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(1, 1, elems), 1.0);
    const double *update = op_test_host(t, x);
    float *values = op_test_bytes(t, (size_t)elems * sizeof *values);
    for (int64_t i = 0; i < elems; ++i) values[i] = (float)p.values[i] - lr * (float)update[i];
    t->be->muon_apply(t->be, &p.view, 1, x, stats.data, (MuonArgs){.t = step, .seed = seed});
    int other = check_rounded(t, p.weight, values, seed, step, first_elem);
    // The old value is the nearest in most cases: a step is a fraction of the distance between two bf16 numbers.
    assert_true(elems < 1000 || other > elems / 50);

    double *grad = op_test_doubles(t, elems);
    for (int64_t i = 0; i < elems; ++i) grad[i] = ldexp(i % 3 == 0 ? -1 : 1, (int)(i % 5) - 7);
    op_test_upload(t, p.grad, grad);
    op_test_upload(t, p.weight, p.values);
    for (int64_t i = 0; i < elems; ++i) values[i] = (float)p.values[i] - (grad[i] > 0 ? lr : -lr);
    t->be->adamw(t->be, &p.view, 1, stats.data, (AdamwArgs){.t = step, .seed = seed});
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

// Many small updates, each a fraction of the distance between two bf16 numbers, move weights by their sum on average:
// rounding to nearest would keep them all at 1. One update is rounded with a variance of at most (2^-8 / 2)^2, so
// the mean over n elements after s steps has a standard deviation of at most 2^-9 sqrt(s / n); the bound is five.
static void test_rounding_is_unbiased(OpTest *t) {
    enum { ELEMS = 8192, STEPS = 150 };
    Param p = param_case(t, ELEMS, 0x1p-13f);
    double *values = op_test_doubles(t, ELEMS);
    Tensor x = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(1, 1, ELEMS)), stats = stats_tensor(t, 1, false);
    for (int i = 0; i < ELEMS; ++i) values[i] = 1;
    op_test_upload(t, p.weight, values);
    op_test_upload(t, x, values);
    for (int64_t step = 1; step <= STEPS; ++step) {
        t->be->muon_apply(t->be, &p.view, 1, x, stats.data, (MuonArgs){.t = step, .seed = 21});
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
    Param p = param_case(t, ELEMS, 1);
    double *values = op_test_doubles(t, ELEMS);
    for (int i = 0; i < ELEMS; ++i) values[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
    Tensor x = op_test_from(t, DTYPE_F32, OP_TEST_DIMS(1, 3, 7), values);
    for (int64_t step = 1; step <= 8; ++step) {
        op_test_upload(t, p.weight, p.values);
        t->be->muon_apply(t->be, &p.view, 1, x, stats_tensor(t, 1, false).data, (MuonArgs){.t = step});
        const double *now = op_test_host(t, p.weight);
        for (int i = 0; i < ELEMS; ++i) assert_true(i % 3 == 0 ? isnan(now[i]) : now[i] == -values[i]);
    }
}

int main(void) {
    const OpTestCase SPECIAL[] = {OP_TEST_CASE(test_grad_clip_not_finite),
                                  OP_TEST_CASE(test_sum_squares_place),
                                  OP_TEST_CASE(test_grad_clip_order),
                                  OP_TEST_CASE(test_grad_clip_skip),
                                  OP_TEST_CASE(test_hash_sum_pieces),
                                  OP_TEST_CASE(test_skip),
                                  OP_TEST_CASE(test_alone),
                                  OP_TEST_CASE(test_rounding_bits),
                                  OP_TEST_CASE(test_rounding_is_unbiased),
                                  OP_TEST_CASE(test_rounding_not_finite)};
    return case_test_main(&OPS_OPTIM, SPECIAL, sizeof SPECIAL / sizeof SPECIAL[0]);
}
