// attention.c: causal attention: forward, backward and decoding. The reference of the backward pass uses the operation's
// own inputs (out and lse of the forward pass, which has its own check), so any row costs O(T).
#include <math.h>
#include <stdlib.h>

#include "dev/cases/cases.h"
#include "llmc/base/rng.h"

// dim: B, T, NH, NKV, HS and a mask: NO_MASK, random documents, random prefix flags, both, or one of MASKS. Flags:
// the window; the length of documents in tokens, if all are equal; how decoding divides a row (one of STEPS).
#define DOCUMENT_SHIFT 16
#define STEPS_SHIFT 28
enum { B, T, NH, NKV, HS, MASK };
enum { NO_MASK, DOCUMENTS, PREFIXES, DOCUMENTS_AND_PREFIXES, MASKS_FROM };
enum { OUT, LSE, QKV, DOC, PREFIX, DQKV, DOUT };
enum { K_CACHE = DQKV, V_CACHE = DOUT };  // for decoding
static int64_t window_of(const OpShape *s) { return s->flags & ((1u << DOCUMENT_SHIFT) - 1); }
static int64_t document_of(const OpShape *s) { return s->flags >> DOCUMENT_SHIFT & 0xfffu; }
static int64_t qkv_width(const OpShape *s) { return (s->dim[NH] + 2 * s->dim[NKV]) * s->dim[HS]; }

// Hand-written masks at the edges of tiles: documents begin at `begins` (0: end of the list), keys prefix_begin to
// prefix_end-1 have the prefix flag.
static const struct {
    int64_t T, begins[5], prefix_begin, prefix_end;
    unsigned window;
} MASKS[] = {
    {200, {0}, 0, 130, 0},             // a prefix over more than two tiles
    {200, {0}, 0, 130, 3},             // and a window, which does not limit the prefix
    {200, {0}, 199, 200, 0},           // only the last key is visible to all: whole tiles in between are masked
    {130, {1, 64, 65, 128}, 0, 0, 0},  // documents of one token and of one tile
    {192, {64, 128}, 0, 192, 0},       // whole tiles, all flagged
    {193, {100, 190}, 150, 192, 0},    // rows from 100 on attend to nothing in the first tile; flags in two documents
    {260, {130}, 0, 0, 1},             // a token attends to itself only
    {260, {250}, 20, 30, 64},          // a window of one tile
};
static bool has_documents(const OpShape *s) {
    int64_t mask = s->dim[MASK];
    return document_of(s) > 0 || mask == DOCUMENTS || mask >= DOCUMENTS_AND_PREFIXES;
}
static bool has_prefixes(const OpShape *s) { return s->dim[MASK] >= PREFIXES; }

// ---- shapes ----

static void add_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model, unsigned flags) {
    for (int i = 0; i < 2 && model != NULL; ++i) {
        int64_t length = scale->lengths[i];
        const ModelConfig *m = &model->config;
        if (length == 0) continue;
        op_add(shapes, OP_DIMS(max_i64(1, scale->attention_tokens / length), length, m->NH, m->NKV, m->HS), flags,
               "%s T=%lld", model->name, (long long)length);
    }
}
static void causal_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    add_shapes(shapes, scale, model, 0);
    if (model == NULL) op_add(shapes, OP_DIMS(2, min_i64(scale->attention_tokens, 333), 3, 1, 80), 0, "awkward");
}
static void window_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    add_shapes(shapes, scale, model, scale->lengths[0] >= 1024 ? 512 : 32);
}
// Documents of odd length, so that their borders are anywhere in a tile.
static void document_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    add_shapes(shapes, scale, model, (scale->lengths[0] >= 256 ? 173u : 19u) << DOCUMENT_SHIFT);
}

// The sixth number of a row is the window.
static void odd_causal(OpShapes *shapes) {
    static const int64_t ODD[][7] = {
        {1, 1, 1, 1, 8, 0, 0},   {2, 7, 2, 2, 16, 0, 0},    {1, 65, 4, 2, 20, 0, 0}, {2, 130, 4, 1, 64, 0, 0},
        {1, 64, 3, 3, 80, 0, 0}, {1, 128, 2, 1, 128, 0, 0}, {0, 16, 2, 2, 16, 0, 0}, {1, 15, 2, 1, 96, 0, 0},
        {1, 63, 8, 1, 4, 0, 0},  {1, 70, 2, 1, 256, 0, 0},  {1, 33, 1, 1, 1, 0, 0},
    };
    for (size_t i = 0; i < sizeof ODD / sizeof ODD[0]; ++i) op_add(shapes, 6, ODD[i], 0, "odd");
}
// Sizes around tiles of 16, 64 and 128; groups of 1 to 8 heads; head sizes of models, of one and two 16-byte loads,
// and odd ones.
static void odd_masked(OpShapes *shapes) {
    static const int64_t ODD[][7] = {
        {2, 130, 2, 1, 20, DOCUMENTS, 0},
        {2, 150, 4, 4, 8, PREFIXES, 0},
        {3, 130, 2, 2, 16, 3, 0},
        {3, 193, 4, 2, 20, 3, 40},
        {2, 67, 8, 2, 32, 3, 5},
        {2, 7, 4, 1, 8, 3, 2},
        {1, 16, 4, 1, 80, PREFIXES, 0},
        {1, 129, 1, 1, 100, DOCUMENTS, 20},
        {1, 127, 2, 1, 48, 3, 0},
        {1, 66, 1, 1, 136, 3, 3},
        {1, 35, 2, 1, 7, PREFIXES, 0},
        {1, 257, 2, 1, 8, DOCUMENTS, 100},
        {1, 9, 4, 2, 3, 3, 4},
        {1, 200, 1, 1, 20, PREFIXES, 0},
        {2, 130, 6, 3, 16, 3, 50},
    };
    for (size_t i = 0; i < sizeof ODD / sizeof ODD[0]; ++i) op_add(shapes, 6, ODD[i], (unsigned)ODD[i][6], "odd");
    for (int64_t i = 0; i < (int64_t)(sizeof MASKS / sizeof MASKS[0]); ++i)
        op_add(shapes, OP_DIMS(1, MASKS[i].T, 2, 1, 16, MASKS_FROM + i), MASKS[i].window, "mask at tile edges");
}
static void odd_window(OpShapes *shapes) {
    op_add(shapes, OP_DIMS(1, 130, 2, 2, 16, NO_MASK), 1, "odd");
    op_add(shapes, OP_DIMS(1, 200, 2, 1, 16, NO_MASK), 33, "odd");
    op_add(shapes, OP_DIMS(1, 12, 2, 1, 4, NO_MASK), 5, "odd");
}

// ---- operands and calls ----

// The document and the prefix flag of position `at` of row b: documents of length 1, short and long, with gaps in
// their ids; flags at document starts and sometimes elsewhere.
static void mask_at(const OpShape *s, int64_t b, int64_t at, int64_t *doc, bool *flag) {
    static const int64_t LONGEST[3] = {1, 5, 40};
    uint64_t counter = (uint64_t)(s->dim[T] * 64 + s->dim[HS]) << 32 | (uint64_t)b << 20;
    int64_t left = 0, flagged = 0, id = -1;
#define DRAW rng_uniform(5, RNG_STREAM_TEST, counter++)
    for (int64_t i = 0; i <= at; ++i, --left, --flagged) {
        if (left == 0) {
            int kind = (int)(DRAW * 4);
            left = 1 + (int64_t)(DRAW * (double)(kind < 3 ? LONGEST[kind] : s->dim[T]));
            flagged = DRAW < 0.5 ? (int64_t)(DRAW * (double)(left + 1)) : 0;
            id += 1 + (int64_t)(DRAW * 3);
        }
        *doc = id;
        *flag = DRAW < 0.02 || flagged > 0;
    }
#undef DRAW
}
static double fill(const OpCall *call, int operand, int64_t at, double normal) {
    const OpShape *s = &call->c->shape;
    int64_t i = at % s->dim[T], mask = s->dim[MASK] - MASKS_FROM, doc = 0;
    bool flag = false;
    (void)normal;
    if (mask < 0) {
        mask_at(s, at / s->dim[T], i, &doc, &flag);
    } else {
        for (int x = 0; x < 5; ++x) doc += MASKS[mask].begins[x] > 0 && i >= MASKS[mask].begins[x];
        flag = i >= MASKS[mask].prefix_begin && i < MASKS[mask].prefix_end;
    }
    return operand == DOC ? (double)doc : flag;
}

static AttentionArgs attention_args(const OpShape *s, const Tensor *t) {
    return (AttentionArgs){.B = s->dim[B],
                           .T = s->dim[T],
                           .NH = s->dim[NH],
                           .NKV = s->dim[NKV],
                           .HS = s->dim[HS],
                           .scale = 1.0f / sqrtf((float)s->dim[HS]),
                           .window = window_of(s),
                           .doc = has_documents(s) ? t[DOC] : TENSOR_NONE,
                           .prefix = has_prefixes(s) ? t[PREFIX] : TENSOR_NONE};
}

// Odd shapes have large scores, so that the softmax is peaked in places.
static void lay_out(OpCall *call, unsigned access) {
    const OpShape *s = &call->c->shape;
    DType dtype = call->c->dtype;
    int64_t N = s->dim[B] * s->dim[T], length = document_of(s);
    int64_t documents = has_documents(s) ? s->dim[B] : 0, prefixes = has_prefixes(s) ? s->dim[B] : 0;
    op_operand(call, access, FILL_DERIVED, 0, dtype, OP_DIMS(N, s->dim[NH] * s->dim[HS]));
    op_operand(call, access, FILL_DERIVED, 0, DTYPE_F32, OP_DIMS(s->dim[B], s->dim[NH], s->dim[T]));
    op_operand(call, OP_READ, FILL_NORMAL, s->dims == 6 ? 1.5 : 1, dtype, OP_DIMS(N, qkv_width(s)));
    op_operand(call, OP_READ, length > 0 ? FILL_STEPS : FILL_OWN, (double)length, DTYPE_I32,
               OP_DIMS(documents, s->dim[T]));
    op_operand(call, OP_READ, FILL_OWN, 1, DTYPE_U8, OP_DIMS(prefixes, s->dim[T]));
}
static void forward_lay_out(OpCall *call) { lay_out(call, OP_WRITE); }
static void forward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->attention_forward(be, t[OUT], t[LSE], t[QKV], attention_args(&c->shape, t));
}
static void backward_lay_out(OpCall *call) {
    const OpShape *s = &call->c->shape;
    int64_t N = s->dim[B] * s->dim[T];
    lay_out(call, OP_READ);
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(N, qkv_width(s)));
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(N, s->dim[NH] * s->dim[HS]));
}
static void backward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->attention_backward(be, t[DQKV], t[DOUT], t[QKV], t[OUT], t[LSE], attention_args(&c->shape, t));
}

// ---- references ----

static bool is_allowed(const OpCall *call, int64_t b, int64_t i, int64_t j) {
    const OpShape *s = &call->c->shape;
    int64_t window = window_of(s), row = b * s->dim[T];
    bool same = !has_documents(s) || op_value(call, DOC, row + i) == op_value(call, DOC, row + j);
    bool seen = j <= i || (has_prefixes(s) && op_value(call, PREFIX, row + j) != 0);
    return same && seen && (window == 0 || i - j < window);
}
static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t c = 0; c < n; ++c) sum += a[c] * b[c];
    return sum;
}
static void add_scaled(double *to, const double *from, double factor, int64_t n) {
    for (int64_t c = 0; c < n; ++c) to[c] += factor * from[c];
}
// The vector of one head at (b, i): of QKV, where `head` counts q, then k, then v heads; or of OUT or DOUT.
static const double *head_of(const OpCall *call, int operand, int64_t b, int64_t i, int64_t head, double *buffer) {
    const OpShape *s = &call->c->shape;
    int64_t width = operand == QKV ? qkv_width(s) : s->dim[NH] * s->dim[HS];
    return op_row(call, operand, (b * s->dim[T] + i) * width + head * s->dim[HS], s->dim[HS], buffer);
}
static int64_t k_head(const OpShape *s, int64_t h) { return s->dim[NH] + h / (s->dim[NH] / s->dim[NKV]); }
static double scale_of(const OpShape *s) { return (double)attention_args(s, (const Tensor[PREFIX + 1]){{0}}).scale; }

// Probabilities (T) of query i of head h; returns the log of their denominator. buffer (2 HS).
static double probabilities(const OpCall *call, int64_t b, int64_t i, int64_t h, double *p, double *buffer) {
    const OpShape *s = &call->c->shape;
    const double *q = head_of(call, QKV, b, i, h, buffer);
    double top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < s->dim[T]; ++j) {
        p[j] = -INFINITY;
        if (!is_allowed(call, b, i, j)) continue;
        p[j] = scale_of(s) * dot(q, head_of(call, QKV, b, j, k_head(s, h), buffer + s->dim[HS]), s->dim[HS]);
        top = fmax(top, p[j]);
    }
    for (int64_t j = 0; j < s->dim[T]; ++j) sum += p[j] = exp(p[j] - top);
    for (int64_t j = 0; j < s->dim[T]; ++j) p[j] /= sum;
    return top + log(sum);
}
static void ref_out(const OpCall *call, int64_t first, int64_t count, double *ref) {
    const OpShape *s = &call->c->shape;
    int64_t size = s->dim[HS], b = first / count / s->dim[T], i = first / count % s->dim[T];
    double *p = xmalloc(to_size(s->dim[T] + 2 * size) * sizeof *p), *buffer = p + s->dim[T];
    for (int64_t h = 0; h < s->dim[NH]; ++h) {
        probabilities(call, b, i, h, p, buffer);
        for (int64_t c = 0; c < size; ++c) ref[h * size + c] = 0;
        for (int64_t j = 0; j < s->dim[T]; ++j)
            if (p[j] > 0)
                add_scaled(ref + h * size, head_of(call, QKV, b, j, k_head(s, h) + s->dim[NKV], buffer), p[j], size);
    }
    free(p);
}
static void ref_lse(const OpCall *call, int64_t first, int64_t count, double *ref) {
    const OpShape *s = &call->c->shape;
    double *p = xmalloc(to_size(s->dim[T] + 2 * s->dim[HS]) * sizeof *p);
    for (int64_t n = first; n < first + count; ++n)
        ref[n - first] = probabilities(call, n / s->dim[T] / s->dim[NH], n % s->dim[T], n / s->dim[T] % s->dim[NH], p,
                                       p + s->dim[T]);
    free(p);
}

// Adds the contribution of query i of head h and key j to dq, dk and dv; each may be NULL. buffer (5 HS).
static void add_pair(const OpCall *call, int64_t b, int64_t h, int64_t i, int64_t j, double *dq, double *dk,
                     double *dv, double *buffer) {
    const OpShape *s = &call->c->shape;
    if (!is_allowed(call, b, i, j)) return;
    int64_t size = s->dim[HS];
    const double *q = head_of(call, QKV, b, i, h, buffer), *k = head_of(call, QKV, b, j, k_head(s, h), buffer + size);
    const double *v = head_of(call, QKV, b, j, k_head(s, h) + s->dim[NKV], buffer + 2 * size);
    const double *out = head_of(call, OUT, b, i, h, buffer + 3 * size);
    const double *dout = head_of(call, DOUT, b, i, h, buffer + 4 * size);
    double lse = op_value(call, LSE, (b * s->dim[NH] + h) * s->dim[T] + i), scale = scale_of(s);
    double p = exp(scale * dot(q, k, size) - lse), ds = p * (dot(dout, v, size) - dot(dout, out, size)) * scale;
    if (dq != NULL) add_scaled(dq, k, ds, size);
    if (dk != NULL) add_scaled(dk, q, ds, size);
    if (dv != NULL) add_scaled(dv, dout, p, size);
}
// All heads of one position, as query and as key.
static void ref_dqkv(const OpCall *call, int64_t first, int64_t count, double *ref) {
    const OpShape *s = &call->c->shape;
    int64_t size = s->dim[HS], b = first / count / s->dim[T], at = first / count % s->dim[T];
    double *buffer = xmalloc(to_size(5 * size) * sizeof *buffer);
    for (int64_t c = 0; c < count; ++c) ref[c] = 0;
    for (int64_t h = 0; h < s->dim[NH]; ++h) {
        double *dk = ref + k_head(s, h) * size, *dv = dk + s->dim[NKV] * size;
        for (int64_t other = 0; other < s->dim[T]; ++other) {
            add_pair(call, b, h, at, other, ref + h * size, NULL, NULL, buffer);
            add_pair(call, b, h, other, at, NULL, dk, dv, buffer);
        }
    }
    free(buffer);
}

// fp32: a dot product of HS <= 128 terms, an exponential (2e-7) and sums over up to T keys, each with random rounding
// errors, give about ten units of round-off; gradients chain three of them and cancel in dP - dot. bf16: the rounding
// on store is up to one unit; the backward pass also reads the rounded forward output. A library's tensor cores may
// round probabilities to bf16.
static double out_tolerance(const OpCall *call) {
    return call->c->dtype == DTYPE_F32 ? 32 * 0x1p-24 : (call->c->kind->gpu_only ? 1.5 : 1) * 0x1p-8;
}
static double lse_tolerance(const OpCall *call) {
    return call->c->dtype == DTYPE_BF16 && call->c->kind->gpu_only ? 1e-5 : 32 * 0x1p-24;
}
static double dqkv_tolerance(const OpCall *call) { return call->c->dtype == DTYPE_F32 ? 64 * 0x1p-24 : 3 * 0x1p-8; }

static const OpOutput FORWARD_OUTPUTS[] = {
    {.name = "out", .operand = OUT, .reference = ref_out, .tolerance = out_tolerance, .upstream = UPSTREAM(DOUT)},
    {.name = "lse", .operand = LSE, .reference = ref_lse, .tolerance = lse_tolerance, .stretch = 1},
    {NULL}};
static const OpOutput BACKWARD_OUTPUTS[] = {{.name = "dqkv",
                                             .operand = DQKV,
                                             .reference = ref_dqkv,
                                             .tolerance = dqkv_tolerance,
                                             .gradient_of = GRADIENT_OF(QKV)},
                                            {NULL}};

// Counts allowed pairs: a query attends to its document's keys up to itself, within the window. A pair costs HS
// multiply-adds in each matmul: two forward, five backward.
static double pairs(const OpShape *s) {
    double count = 0;
    int64_t window = window_of(s), document = document_of(s);
    for (int64_t row = 0; row < s->dim[B]; ++row)
        for (int64_t i = 0; i < s->dim[T]; ++i) {
            int64_t seen = i + 1;
            if (document > 0) seen = min_i64(seen, (row * s->dim[T] + i) % document + 1);
            if (window > 0) seen = min_i64(seen, window);
            count += (double)seen;
        }
    return count * (double)s->dim[NH];
}
static double forward_flops(const OpShape *s) { return 2 * 2 * pairs(s) * (double)s->dim[HS]; }
static double backward_flops(const OpShape *s) { return 5 * 2 * pairs(s) * (double)s->dim[HS]; }

// ---- decoding: a row in steps of several positions, with caches longer than the row ----

#define BEYOND 3
static const int64_t STEPS[][4] = {{1, 1, 1, 1}, {70, 1, 2, 17}, {5, 1, 66, 3}, {280, 2, 15, 1}, {17, 3, 1, 16}};
static void odd_decode(OpShapes *shapes) {
    static const struct {
        int64_t dim[6];
        unsigned window, steps;
    } ODD[] = {{{1, 1, 2, 1, 8, 0}, 0, 0},     {{1, 20, 4, 2, 20, 0}, 0, 0},   {{1, 150, 4, 1, 64, 0}, 0, 1},
               {{1, 150, 2, 2, 16, 0}, 37, 2}, {{1, 300, 2, 1, 100, 0}, 0, 3}, {{1, 40, 8, 1, 7, 0}, 20, 4}};
    for (size_t i = 0; i < sizeof ODD / sizeof ODD[0]; ++i)
        op_add(shapes, 6, ODD[i].dim, ODD[i].window | ODD[i].steps << STEPS_SHIFT, "odd");
}
static void decode_lay_out(OpCall *call) {
    const OpShape *s = &call->c->shape;
    lay_out(call, OP_WRITE);
    call->operand[LSE].shape.dim[0] = 0;
    for (int cache = 0; cache < 2; ++cache)
        op_operand(call, OP_READ | OP_WRITE, FILL_NORMAL, 1, call->c->dtype,
                   OP_DIMS(s->dim[T] + BEYOND, s->dim[NKV] * s->dim[HS]));
}
static void decode_run(Backend *be, const OpCase *c, const Tensor *t) {
    const int64_t *steps = STEPS[c->shape.flags >> STEPS_SHIFT], length = c->shape.dim[T];
    AttentionArgs args = attention_args(&c->shape, t);
    for (int64_t start = 0, step = 0; start < length; start += args.T, ++step) {
        args.T = min_i64(steps[step % 4], length - start);
        be->attention_decode(be, tensor_rows(t[OUT], start, args.T), t[K_CACHE], t[V_CACHE],
                             tensor_rows(t[QKV], start, args.T), start, args);
    }
}
// Cache rows after the sequence are unchanged.
static void ref_cache(const OpCall *call, int cache, int64_t first, int64_t width, double *ref) {
    const OpShape *s = &call->c->shape;
    int64_t row = first / width, heads = s->dim[NH] + (cache == V_CACHE ? s->dim[NKV] : 0);
    for (int64_t c = 0; c < width; ++c)
        ref[c] = row < s->dim[T] ? op_value(call, QKV, row * qkv_width(s) + heads * s->dim[HS] + c)
                                 : op_value(call, cache, first + c);
}
static void ref_k_cache(const OpCall *call, int64_t first, int64_t count, double *ref) {
    ref_cache(call, K_CACHE, first, count, ref);
}
static void ref_v_cache(const OpCall *call, int64_t first, int64_t count, double *ref) {
    ref_cache(call, V_CACHE, first, count, ref);
}
static double exact(const OpCall *call) {
    (void)call;
    return 0;
}
static const OpOutput DECODE_OUTPUTS[] = {
    {.name = "out", .operand = OUT, .reference = ref_out, .tolerance = out_tolerance},
    {.name = "k_cache", .operand = K_CACHE, .reference = ref_k_cache, .tolerance = exact},
    {.name = "v_cache", .operand = V_CACHE, .reference = ref_v_cache, .tolerance = exact},
    {NULL}};

#define FORWARD                                                                                                      \
    .op = "attention forward", .entry = "attention_forward", .bf16 = true, .lay_out = forward_lay_out, .fill = fill, \
    .run = forward_run, .outputs = FORWARD_OUTPUTS, .flops = forward_flops
#define BACKWARD                                                                                          \
    .op = "attention backward", .entry = "attention_backward", .bf16 = true, .lay_out = backward_lay_out, \
    .fill = fill, .run = backward_run, .outputs = BACKWARD_OUTPUTS, .flops = backward_flops, .forward = &KINDS[0]
#define ON_CPU .fp32 = true, .cpu_only = true
#define ON_GPU .fp32 = true, .gpu_only = true, .attention = "own"
#define CUDNN .gpu_only = true, .attention = "cudnn"
static const OpKind KINDS[] = {
    {FORWARD, ON_CPU, .variant = "causal", .shapes = causal_shapes, .odd_shapes = odd_causal},
    {FORWARD, ON_CPU, .variant = "window", .shapes = window_shapes, .odd_shapes = odd_window},
    {FORWARD, ON_CPU, .variant = "documents", .shapes = document_shapes, .odd_shapes = odd_masked},
    {FORWARD, ON_GPU, .variant = "own", .shapes = causal_shapes},
    {FORWARD, ON_GPU, .variant = "own window", .shapes = window_shapes},
    {FORWARD, ON_GPU, .variant = "own documents", .shapes = document_shapes},
    {FORWARD, CUDNN, .variant = "cudnn", .shapes = causal_shapes},
    {BACKWARD, ON_CPU, .variant = "causal", .shapes = causal_shapes, .odd_shapes = odd_causal},
    {BACKWARD, ON_CPU, .variant = "window", .shapes = window_shapes, .odd_shapes = odd_window},
    {BACKWARD, ON_CPU, .variant = "documents", .shapes = document_shapes, .odd_shapes = odd_masked},
    {BACKWARD, ON_GPU, .variant = "own", .shapes = causal_shapes},
    {BACKWARD, ON_GPU, .variant = "own window", .shapes = window_shapes},
    {BACKWARD, ON_GPU, .variant = "own documents", .shapes = document_shapes},
    {BACKWARD, CUDNN, .variant = "cudnn", .shapes = causal_shapes},
    {.op = "attention decode",
     .variant = "in steps",
     .entry = "attention_decode",
     .fp32 = true,
     .bf16 = true,
     .odd_shapes = odd_decode,
     .lay_out = decode_lay_out,
     .run = decode_run,
     .outputs = DECODE_OUTPUTS},
};
const OpFamily OPS_ATTENTION = OP_FAMILY(KINDS);
