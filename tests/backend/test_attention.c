// test_attention.c: attention forward, backward and decoding against a naive reference in double, over odd shapes,
// grouped heads, windows, documents and prefix flags, in fp32 and bf16; the reference's own gradient against finite
// differences; thread invariance; a long sequence.
#include "tests/support/op_test.h"

#include <math.h>
#include <string.h>

#include "llmc/cpu/kernels.h"
#include "llmc/base/rng.h"

// fp32: a dot product of HS <= 128 terms, an exponential (2e-7) and sums over up to T keys, each with random rounding
// errors, stay near ten units of round-off; gradients chain three of them and cancel in dP - dot.
#define FORWARD_TOLERANCE_F32 (32 * OP_TEST_EPS_F32)
#define BACKWARD_TOLERANCE_F32 (64 * OP_TEST_EPS_F32)
// bf16: one rounding on store costs up to one unit; the backward pass also reads the rounded forward output.
#define FORWARD_TOLERANCE_BF16 (1 * OP_TEST_EPS_BF16)
#define BACKWARD_TOLERANCE_BF16 (3 * OP_TEST_EPS_BF16)

typedef struct {
    int64_t B, T, NH, NKV, HS, window;
    bool doc, prefix;
} Shape;

static const Shape SHAPES[] = {
    {1, 1, 1, 1, 8, 0, false, false},     {2, 7, 2, 2, 16, 0, false, false},   {1, 65, 4, 2, 20, 0, false, false},
    {2, 130, 4, 1, 64, 0, false, false},  {1, 64, 3, 3, 80, 0, false, false},  {1, 128, 2, 1, 128, 0, false, false},
    {1, 130, 2, 2, 16, 1, false, false},  {1, 200, 2, 1, 16, 33, false, false}, {2, 130, 2, 1, 20, 0, true, false},
    {2, 150, 4, 4, 8, 0, false, true},    {3, 130, 2, 2, 16, 0, true, true},   {3, 193, 4, 2, 20, 40, true, true},
    {2, 67, 8, 2, 32, 5, true, true},     {2, 7, 4, 1, 8, 2, true, true},      {0, 16, 2, 2, 16, 0, false, false},
    // Around tiles of 16, 64 and 128; groups of 1 to 8 heads; head sizes of models, of one and two 16-byte loads, odd
    // ones, and the largest.
    {1, 15, 2, 1, 96, 0, false, false},   {1, 16, 4, 1, 80, 0, false, true},   {1, 63, 8, 1, 4, 0, false, false},
    {1, 129, 1, 1, 100, 20, true, false}, {1, 127, 2, 1, 48, 0, true, true},   {1, 70, 2, 1, 256, 0, false, false},
    {1, 66, 1, 1, 136, 3, true, true},    {1, 35, 2, 1, 7, 0, false, true},    {1, 257, 2, 1, 8, 100, true, false},
    {1, 33, 1, 1, 1, 0, false, false},
};
#define SHAPE_COUNT (sizeof SHAPES / sizeof SHAPES[0])

// ---- the reference ----

typedef struct {
    Shape s;
    double scale;
    const double *doc, *prefix;  // (B,T) or NULL
    const double *qkv, *dout;
    double *out, *lse, *dqkv;
} Reference;

static bool is_allowed(const Reference *r, int64_t b, int64_t i, int64_t j) {
    int64_t T = r->s.T;
    bool same = r->doc == NULL || r->doc[b * T + i] == r->doc[b * T + j];
    bool before = j <= i || (r->prefix != NULL && r->prefix[b * T + j] != 0);
    return same && before && (r->s.window == 0 || i - j < r->s.window);
}
static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t c = 0; c < n; ++c) sum += a[c] * b[c];
    return sum;
}
static void add_scaled(double *to, const double *from, double factor, int64_t n) {
    for (int64_t c = 0; c < n; ++c) to[c] += factor * from[c];
}

// One query row: its output, log denominator and, when dqkv is given, what it adds to the gradients.
static void reference_row(const Reference *r, int64_t b, int64_t h, int64_t i, double *p) {
    Shape s = r->s;
    int64_t HS = s.HS, width = (s.NH + 2 * s.NKV) * HS, kv = h / (s.NH / s.NKV);
    int64_t q_at = (b * s.T + i) * width + h * HS, out_at = (b * s.T + i) * s.NH * HS + h * HS;
    int64_t k_at = b * s.T * width + (s.NH + kv) * HS, v_at = k_at + s.NKV * HS;
    double top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < s.T; ++j) {
        p[j] = is_allowed(r, b, i, j) ? r->scale * dot(r->qkv + q_at, r->qkv + k_at + j * width, HS) : -INFINITY;
        top = fmax(top, p[j]);
    }
    for (int64_t j = 0; j < s.T; ++j) sum += p[j] = exp(p[j] - top);
    r->lse[(b * s.NH + h) * s.T + i] = top + log(sum);
    for (int64_t c = 0; c < HS; ++c) r->out[out_at + c] = 0;
    for (int64_t j = 0; j < s.T; ++j) {
        p[j] /= sum;
        add_scaled(r->out + out_at, r->qkv + v_at + j * width, p[j], HS);
    }
    if (r->dqkv == NULL) return;
    double mean = dot(r->dout + out_at, r->out + out_at, HS);
    for (int64_t j = 0; j < s.T; ++j) {
        double dp = dot(r->dout + out_at, r->qkv + v_at + j * width, HS);
        double ds = p[j] * (dp - mean) * r->scale;
        add_scaled(r->dqkv + v_at + j * width, r->dout + out_at, p[j], HS);
        add_scaled(r->dqkv + q_at, r->qkv + k_at + j * width, ds, HS);
        add_scaled(r->dqkv + k_at + j * width, r->qkv + q_at, ds, HS);
    }
}
// dqkv must be zero on entry.
static void reference_run(const Reference *r) {
    double p[r->s.T + 1];
    for (int64_t b = 0; b < r->s.B; ++b)
        for (int64_t h = 0; h < r->s.NH; ++h)
            for (int64_t i = 0; i < r->s.T; ++i) reference_row(r, b, h, i, p);
}

// ---- one case on the device ----

typedef struct {
    Shape s;
    AttentionArgs args;
    Tensor qkv, out, lse, dout, dqkv;
} Case;

static double draw(uint64_t *counter) { return rng_uniform(5, RNG_STREAM_TEST, (*counter)++); }

// Documents of length 1, short and long, with ids that skip; prefix flags at document starts and now and then alone.
static void make_mask(double *doc, double *prefix, int64_t B, int64_t T, uint64_t seed) {
    uint64_t counter = seed << 32;
    for (int64_t b = 0; b < B; ++b) {
        int64_t left = 0, flagged = 0;
        double id = -1;
        for (int64_t i = 0; i < T; ++i) {
            if (left == 0) {
                int64_t longest = (int64_t[]){1, 5, 40, T}[(int)(draw(&counter) * 4)];
                left = 1 + (int64_t)(draw(&counter) * (double)longest);
                flagged = draw(&counter) < 0.5 ? (int64_t)(draw(&counter) * (double)(left + 1)) : 0;
                id += 1 + floor(draw(&counter) * 3);
            }
            doc[b * T + i] = id;
            prefix[b * T + i] = flagged > 0 || draw(&counter) < 0.02;
            --left;
            --flagged;
        }
    }
}

static Case make_case(OpTest *t, Shape s, DType dtype) {
    int64_t N = s.B * s.T, width = (s.NH + 2 * s.NKV) * s.HS;
    Case c = {.s = s, .args = {.B = s.B, .T = s.T, .NH = s.NH, .NKV = s.NKV, .HS = s.HS, .window = s.window,
                               .scale = 1.0f / sqrtf((float)s.HS)}};
    double *doc = op_test_doubles(t, N + 1), *prefix = op_test_doubles(t, N + 1);
    make_mask(doc, prefix, s.B, s.T, t->draws);
    if (s.doc) c.args.doc = op_test_from(t, DTYPE_I32, 2, (int64_t[]){s.B, s.T}, doc);
    if (s.prefix) c.args.prefix = op_test_from(t, DTYPE_U8, 2, (int64_t[]){s.B, s.T}, prefix);
    // Scale 1.5 makes the softmax peaked in places.
    c.qkv = op_test_random(t, dtype, 2, (int64_t[]){N, width}, 1.5);
    c.dout = op_test_random(t, dtype, 2, (int64_t[]){N, s.NH * s.HS}, 1.0);
    c.out = op_test_tensor(t, dtype, 2, (int64_t[]){N, s.NH * s.HS});
    c.lse = op_test_tensor(t, DTYPE_F32, 3, (int64_t[]){s.B, s.NH, s.T});
    c.dqkv = op_test_tensor(t, dtype, 2, (int64_t[]){N, width});
    return c;
}

static Reference make_reference(OpTest *t, const Case *c) {
    Reference r = {.s = c->s, .scale = (double)c->args.scale};
    r.doc = c->s.doc ? op_test_host(t, c->args.doc) : NULL;
    r.prefix = c->s.prefix ? op_test_host(t, c->args.prefix) : NULL;
    r.qkv = op_test_host(t, c->qkv);
    r.dout = op_test_host(t, c->dout);
    r.out = op_test_doubles(t, tensor_elems(c->out) + 1);
    r.lse = op_test_doubles(t, tensor_elems(c->lse) + 1);
    r.dqkv = op_test_doubles(t, tensor_elems(c->dqkv) + 1);
    return r;
}

// The CPU's scratch holds NaN before the operations run: what they do not write they must not use.
static void poison_scratch(Backend *be) {
    const size_t bytes = (size_t)1 << 20;
    if (strcmp(be->name, "cpu") != 0) return;
    for (int thread = 0; thread < be->threads; ++thread) memset(cpu_scratch(be, thread, bytes), 0xff, bytes);
}

static void run_both(OpTest *t, void *user) {
    const Case *c = user;
    poison_scratch(t->be);
    t->be->attention_forward(t->be, c->out, c->lse, c->qkv, c->args);
    t->be->attention_backward(t->be, c->dqkv, c->dout, c->qkv, c->out, c->lse, c->args);
}

static void check_shapes(OpTest *t, DType dtype) {
    double forward = dtype == DTYPE_F32 ? FORWARD_TOLERANCE_F32 : FORWARD_TOLERANCE_BF16;
    double backward = dtype == DTYPE_F32 ? BACKWARD_TOLERANCE_F32 : BACKWARD_TOLERANCE_BF16;
    for (size_t i = 0; i < SHAPE_COUNT; ++i) {
        Case c = make_case(t, SHAPES[i], dtype);
        Reference r = make_reference(t, &c);
        reference_run(&r);
        run_both(t, &c);
        op_test_close(t, c.out, r.out, forward, "out of shape %zu", i);
        op_test_close(t, c.lse, r.lse, FORWARD_TOLERANCE_F32, "lse of shape %zu", i);
        op_test_close(t, c.dqkv, r.dqkv, backward, "dqkv of shape %zu", i);
    }
}
static void test_against_reference_f32(OpTest *t) { check_shapes(t, DTYPE_F32); }
static void test_against_reference_bf16(OpTest *t) { check_shapes(t, DTYPE_BF16); }

// Masks placed by hand at the edges of tiles: documents begin at `begins` (0: no more), keys prefix_begin to
// prefix_end-1 are flagged.
typedef struct {
    int64_t T, begins[5], prefix_begin, prefix_end, window;
} MaskCase;
static const MaskCase MASKS[] = {
    {200, {0}, 0, 130, 0},                 // a prefix over more than two tiles
    {200, {0}, 0, 130, 3},                 // and a window that the prefix does not obey
    {200, {0}, 199, 200, 0},               // the last key alone is seen by all: tiles between are masked as a whole
    {130, {1, 64, 65, 128}, 0, 0, 0},      // documents of one token and of a tile
    {192, {64, 128}, 0, 192, 0},           // whole tiles, all flagged
    {193, {100, 190}, 150, 192, 0},        // rows from 100 on see nothing of the first tile; flags in two documents
    {260, {130}, 0, 0, 1},                 // only itself
    {260, {250}, 20, 30, 64},              // a window as wide as a tile
};
static void check_masks(OpTest *t, DType dtype) {
    for (size_t i = 0; i < sizeof MASKS / sizeof MASKS[0]; ++i) {
        MaskCase mask = MASKS[i];
        Case c = make_case(t, (Shape){1, mask.T, 2, 1, 16, mask.window, true, true}, dtype);
        double *doc = op_test_doubles(t, mask.T), *prefix = op_test_doubles(t, mask.T);
        for (int64_t j = 0; j < mask.T; ++j) {
            for (int x = 0; x < 5; ++x) doc[j] += mask.begins[x] > 0 && j >= mask.begins[x];
            prefix[j] = j >= mask.prefix_begin && j < mask.prefix_end;
        }
        op_test_upload(t, c.args.doc, doc);
        op_test_upload(t, c.args.prefix, prefix);
        Reference r = make_reference(t, &c);
        reference_run(&r);
        run_both(t, &c);
        bool wide = dtype == DTYPE_F32;
        op_test_close(t, c.out, r.out, wide ? FORWARD_TOLERANCE_F32 : FORWARD_TOLERANCE_BF16, "out of mask %zu", i);
        op_test_close(t, c.lse, r.lse, FORWARD_TOLERANCE_F32, "lse of mask %zu", i);
        op_test_close(t, c.dqkv, r.dqkv, wide ? BACKWARD_TOLERANCE_F32 : BACKWARD_TOLERANCE_BF16, "dqkv of mask %zu",
                      i);
    }
}
static void test_masks_at_tile_edges(OpTest *t) {
    check_masks(t, DTYPE_F32);
    check_masks(t, DTYPE_BF16);
}

static void test_thread_invariance(OpTest *t) {
    const Shape shapes[] = {{1, 200, 1, 1, 20, 0, false, true}, {2, 130, 6, 3, 16, 50, true, true}};
    for (int i = 0; i < 2; ++i) {
        Case c = make_case(t, shapes[i], i == 0 ? DTYPE_F32 : DTYPE_BF16);
        const Tensor outs[] = {c.out, c.lse, c.dqkv};
        op_test_thread_invariant(t, run_both, &c, outs, 3, "attention");
    }
}

// ---- the reference's gradient ----

typedef struct {
    Reference r;
    double *p;
} Objective;

static double objective(void *user) {
    Objective *o = user;
    Reference forward = o->r;
    forward.dqkv = NULL;
    reference_run(&forward);
    return dot(forward.out, forward.dout, forward.s.B * forward.s.T * forward.s.NH * forward.s.HS);
}
static void test_reference_gradient(OpTest *t) {
    Case c = make_case(t, (Shape){1, 9, 4, 2, 3, 4, true, true}, DTYPE_F32);
    Objective o = {.r = make_reference(t, &c)};
    reference_run(&o.r);
    int64_t elems = tensor_elems(c.qkv);
    double *numeric = op_test_doubles(t, elems), *x = op_test_host(t, c.qkv);
    o.r.qkv = x;
    op_test_numeric_gradient(numeric, x, elems, 1e-5, objective, &o);
    assert_true(op_test_error(o.r.dqkv, numeric, elems) < 1e-8);
}

// ---- decoding ----

static void check_decode(OpTest *t, Shape s, DType dtype, const int64_t *steps) {
    Case c = make_case(t, s, dtype);
    t->be->attention_forward(t->be, c.out, c.lse, c.qkv, c.args);
    const double *expected = op_test_host(t, c.out), *qkv = op_test_host(t, c.qkv);
    int64_t kv = s.NKV * s.HS, width = c.qkv.dim[1];
    Tensor k_cache = op_test_tensor(t, dtype, 2, (int64_t[]){s.T + 3, kv});
    Tensor v_cache = op_test_tensor(t, dtype, 2, (int64_t[]){s.T + 3, kv});
    Tensor out = op_test_tensor(t, dtype, 2, (int64_t[]){s.T, s.NH * s.HS});
    AttentionArgs args = c.args;
    for (int64_t start = 0, step = 0; start < s.T; start += args.T, ++step) {
        args.T = min_i64(steps[step % 4], s.T - start);
        poison_scratch(t->be);
        t->be->attention_decode(t->be, tensor_rows(out, start, args.T), k_cache, v_cache,
                                tensor_rows(c.qkv, start, args.T), start, args);
    }
    // The row path sums in another order than blocks do: the two differ by a rounding on store.
    double tolerance = dtype == DTYPE_F32 ? FORWARD_TOLERANCE_F32 : FORWARD_TOLERANCE_BF16;
    op_test_close(t, out, expected, tolerance, "decode T=%lld HS=%lld", (long long)s.T, (long long)s.HS);
    const double *k = op_test_host(t, k_cache), *v = op_test_host(t, v_cache);
    for (int64_t i = 0; i < s.T; ++i)
        for (int64_t x = 0; x < kv; ++x) {
            assert_true(k[i * kv + x] == qkv[i * width + s.NH * s.HS + x]);
            assert_true(v[i * kv + x] == qkv[i * width + s.NH * s.HS + kv + x]);
        }
    for (int64_t x = s.T * kv; x < tensor_elems(k_cache); ++x) assert_true(isnan(k[x]) && isnan(v[x]));
}
static void test_decode(OpTest *t) {
    for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype) {
        check_decode(t, (Shape){1, 1, 2, 1, 8, 0, false, false}, dtype, (int64_t[]){1, 1, 1, 1});
        check_decode(t, (Shape){1, 20, 4, 2, 20, 0, false, false}, dtype, (int64_t[]){1, 1, 1, 1});
        check_decode(t, (Shape){1, 150, 4, 1, 64, 0, false, false}, dtype, (int64_t[]){70, 1, 2, 17});
        check_decode(t, (Shape){1, 150, 2, 2, 16, 37, false, false}, dtype, (int64_t[]){5, 1, 66, 3});
        check_decode(t, (Shape){1, 300, 2, 1, 100, 0, false, false}, dtype, (int64_t[]){280, 2, 15, 1});
        check_decode(t, (Shape){1, 40, 8, 1, 7, 20, false, false}, dtype, (int64_t[]){17, 3, 1, 16});
    }
}

// ---- long sequences ----

// A matrix (T,T) would take 16 MiB; what the calls leave in the CPU's scratch is a few rows per position. Some rows
// are compared; their gradients of q depend on no other row.
static void test_long_sequence(OpTest *t) {
    const int64_t T = 2048, HS = 16;
    Case c = make_case(t, (Shape){1, T, 1, 1, HS, 0, false, false}, DTYPE_F32);
    run_both(t, &c);
    if (strcmp(t->be->name, "cpu") == 0) assert_true(cpu_scratch_bytes(t->be) < (size_t)4 << 20);
    Reference r = make_reference(t, &c);
    const double *out = op_test_host(t, c.out), *lse = op_test_host(t, c.lse), *dqkv = op_test_host(t, c.dqkv);
    double *p = op_test_doubles(t, T);
    const int64_t rows[] = {0, 63, 64, 1025, T - 1};
    for (size_t x = 0; x < sizeof rows / sizeof rows[0]; ++x) {
        int64_t i = rows[x];
        reference_row(&r, 0, 0, i, p);
        assert_true(op_test_error(out + i * HS, r.out + i * HS, HS) < FORWARD_TOLERANCE_F32);
        assert_true(fabs(lse[i] - r.lse[i]) < 1e-5);
        assert_true(i == 0 || op_test_error(dqkv + i * 3 * HS, r.dqkv + i * 3 * HS, HS) < BACKWARD_TOLERANCE_F32);
    }
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_against_reference_f32), OP_TEST_CASE(test_against_reference_bf16),
                                OP_TEST_CASE(test_masks_at_tile_edges),   OP_TEST_CASE(test_thread_invariance),
                                OP_TEST_CASE(test_reference_gradient),    OP_TEST_CASE(test_decode),
                                OP_TEST_CASE(test_long_sequence)};
    return op_test_main(CASES, sizeof CASES / sizeof CASES[0]);
}
