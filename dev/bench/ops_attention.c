// ops_attention.c: causal attention, forward and backward. The backward pass is checked against its own inputs (out
// and lse of the forward pass, which is checked by itself): then any row costs O(T).
#include <math.h>
#include <stdlib.h>

#include "dev/bench/registry.h"

// dim: B, T, NH, NKV, HS. Flags: the window and the length of documents, in tokens; 0: none.
#define DOCUMENT_SHIFT 16
static unsigned window_of(const OpShape *s) { return s->flags & ((1u << DOCUMENT_SHIFT) - 1); }
static unsigned document_of(const OpShape *s) { return s->flags >> DOCUMENT_SHIFT; }
enum { B, T, NH, NKV, HS };
enum { OUT, LSE, QKV, DOC, DOUT, DQKV };

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

// Documents of odd length, so that their borders fall anywhere.
static void document_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    add_shapes(shapes, scale, model, (scale->lengths[0] >= 256 ? 173u : 19u) << DOCUMENT_SHIFT);
}

static AttentionArgs attention_args(const OpShape *s, const Tensor *t) {
    return (AttentionArgs){.B = s->dim[B],
                           .T = s->dim[T],
                           .NH = s->dim[NH],
                           .NKV = s->dim[NKV],
                           .HS = s->dim[HS],
                           .scale = 1.0f / sqrtf((float)s->dim[HS]),
                           .window = window_of(s),
                           .doc = document_of(s) > 0 ? t[DOC] : TENSOR_NONE};
}
static double scale_of(const OpShape *s) { return (double)attention_args(s, &TENSOR_NONE).scale; }
static int64_t qkv_width(const OpShape *s) { return (s->dim[NH] + 2 * s->dim[NKV]) * s->dim[HS]; }

static void add_documents(OpCall *call) {
    const OpShape *s = &call->c->shape;
    bool documents = document_of(s) > 0;
    op_operand(call, OP_READ, FILL_STEPS, documents ? document_of(s) : 1, DTYPE_I32,
               OP_DIMS(documents ? s->dim[B] : 0, s->dim[T]));
}
static void forward_lay_out(OpCall *call) {
    const OpShape *s = &call->c->shape;
    int64_t N = s->dim[B] * s->dim[T];
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(N, s->dim[NH] * s->dim[HS]));
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(s->dim[B], s->dim[NH], s->dim[T]));
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(N, qkv_width(s)));
    add_documents(call);
}
static void forward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->attention_forward(be, t[OUT], t[LSE], t[QKV], attention_args(&c->shape, t));
}

static void backward_lay_out(OpCall *call) {
    const OpShape *s = &call->c->shape;
    int64_t N = s->dim[B] * s->dim[T];
    op_operand(call, OP_READ, FILL_DERIVED, 0, call->c->dtype, OP_DIMS(N, s->dim[NH] * s->dim[HS]));
    op_operand(call, OP_READ, FILL_DERIVED, 0, DTYPE_F32, OP_DIMS(s->dim[B], s->dim[NH], s->dim[T]));
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(N, qkv_width(s)));
    add_documents(call);
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(N, s->dim[NH] * s->dim[HS]));
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(N, qkv_width(s)));
}
static void backward_derive(OpCall *call) { forward_run(call->be, call->c, call->t[0]); }
static void backward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->attention_backward(be, t[DQKV], t[DOUT], t[QKV], t[OUT], t[LSE], attention_args(&c->shape, t));
}

// ---- references ----

// Queries and keys of batch row b. Documents count through all rows; the end of a row ends one too.
static bool is_allowed(const OpShape *s, int64_t b, int64_t i, int64_t j) {
    int64_t window = window_of(s), document = document_of(s), row = b * s->dim[T];
    bool same = document == 0 || (row + i) / document == (row + j) / document;
    return same && j <= i && (window == 0 || i - j < window);
}
static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t c = 0; c < n; ++c) sum += a[c] * b[c];
    return sum;
}
// One head's vector at (b, i): `head` counts q heads, then k heads, then v heads.
static void qkv_at(const OpCall *call, int64_t b, int64_t i, int64_t head, double *out) {
    const OpShape *s = &call->c->shape;
    op_values(call, QKV, (b * s->dim[T] + i) * qkv_width(s) + head * s->dim[HS], 1, s->dim[HS], out);
}
// All rows of one head of QKV or DOUT in batch row b: (T, HS).
static double *head_rows(const OpCall *call, int operand, int64_t b, int64_t head, int64_t width) {
    const OpShape *s = &call->c->shape;
    double *rows = xmalloc(to_size(s->dim[T] * s->dim[HS]) * sizeof *rows);
    for (int64_t i = 0; i < s->dim[T]; ++i)
        op_values(call, operand, (b * s->dim[T] + i) * width + head * s->dim[HS], 1, s->dim[HS],
                  rows + i * s->dim[HS]);
    return rows;
}

static void forward_check(OpCall *call, OpCheck *check) {
    const OpShape *s = &call->c->shape;
    int64_t length = s->dim[T], size = s->dim[HS], at[OP_SAMPLES];
    int count = op_sample(at, s->dim[B] * s->dim[NH] * length, 12);
    double *out = xcalloc(to_size(size) * OP_SAMPLES, sizeof *out);
    double *ref = xcalloc(to_size(size) * OP_SAMPLES, sizeof *ref);
    double *q = xmalloc(to_size(size) * sizeof *q), *kv = xmalloc(to_size(size) * sizeof *kv);
    double *p = xmalloc(to_size(length) * sizeof *p), scale = scale_of(s);
    double lse[OP_SAMPLES], lse_ref[OP_SAMPLES];
    for (int n = 0; n < count; ++n) {
        int64_t i = at[n] % length, h = at[n] / length % s->dim[NH], b = at[n] / length / s->dim[NH];
        int64_t kv_head = s->dim[NH] + h / (s->dim[NH] / s->dim[NKV]);
        double top = -INFINITY, sum = 0;
        qkv_at(call, b, i, h, q);
        for (int64_t j = 0; j <= i; ++j) {
            qkv_at(call, b, j, kv_head, kv);
            p[j] = is_allowed(s, b, i, j) ? scale * dot(q, kv, size) : -INFINITY;
            top = fmax(top, p[j]);
        }
        for (int64_t j = 0; j <= i; ++j) sum += p[j] = exp(p[j] - top);
        for (int64_t j = 0; j <= i; ++j) {
            qkv_at(call, b, j, kv_head + s->dim[NKV], kv);
            for (int64_t c = 0; c < size; ++c) ref[n * size + c] += p[j] / sum * kv[c];
        }
        lse_ref[n] = top + log(sum);
        op_download(call, LSE, (b * s->dim[NH] + h) * length + i, 1, &lse[n]);
        op_download(call, OUT, (b * length + i) * s->dim[NH] * size + h * size, size, out + n * size);
    }
    // fp32: dot products, an exponential and sums over up to T keys, each with random rounding errors. bf16: one
    // rounding on store, and probabilities that a tensor core takes as bf16.
    bool wide = call->c->dtype == DTYPE_F32;
    op_compare(check, "out", out, ref, count * size, wide ? 32 * 0x1p-24 : 1.5 * 0x1p-8);
    op_compare(check, "lse", lse, lse_ref, count, wide ? 32 * 0x1p-24 : 1e-5);
    free(out);
    free(ref);
    free(q);
    free(kv);
    free(p);
}

// Of one key/value head of one batch row: gradients of some queries of its first head, and of some keys and values.
typedef struct {
    const OpShape *s;
    int64_t b, kv;
    double *k, *v;                      // (T,HS)
    double **q, **dout, **lse, **mean;  // [group]: (T,HS), (T,HS), (T), (T) = dout . out
} HeadGroup;

static void group_open(HeadGroup *g, const OpCall *call, int64_t b, int64_t kv) {
    const OpShape *s = &call->c->shape;
    int64_t group = s->dim[NH] / s->dim[NKV], length = s->dim[T], size = s->dim[HS], width = s->dim[NH] * size;
    *g = (HeadGroup){.s = s, .b = b, .kv = kv};
    g->k = head_rows(call, QKV, b, s->dim[NH] + kv, qkv_width(s));
    g->v = head_rows(call, QKV, b, s->dim[NH] + s->dim[NKV] + kv, qkv_width(s));
    double **lists[4] = {NULL};
    for (int i = 0; i < 4; ++i) lists[i] = xcalloc(to_size(group), sizeof **lists);
    g->q = lists[0];
    g->dout = lists[1];
    g->lse = lists[2];
    g->mean = lists[3];
    double *out = xmalloc(to_size(length * width) * sizeof *out);
    op_download(call, OUT, b * length * width, length * width, out);
    for (int64_t r = 0; r < group; ++r) {
        int64_t h = kv * group + r;
        g->q[r] = head_rows(call, QKV, b, h, qkv_width(s));
        g->dout[r] = head_rows(call, DOUT, b, h, width);
        g->lse[r] = xmalloc(to_size(length) * sizeof(double));
        g->mean[r] = xmalloc(to_size(length) * sizeof(double));
        op_download(call, LSE, (b * s->dim[NH] + h) * length, length, g->lse[r]);
        for (int64_t i = 0; i < length; ++i)
            g->mean[r][i] = dot(g->dout[r] + i * size, out + i * width + h * size, size);
    }
    free(out);
}
static void group_close(HeadGroup *g) {
    int64_t group = g->s->dim[NH] / g->s->dim[NKV];
    for (int64_t r = 0; r < group; ++r) {
        free(g->q[r]);
        free(g->dout[r]);
        free(g->lse[r]);
        free(g->mean[r]);
    }
    free(g->q);
    free(g->dout);
    free(g->lse);
    free(g->mean);
    free(g->k);
    free(g->v);
}

// What the pair (query i of head r, key j) adds to dq, dk and dv; each may be NULL.
static void add_pair(const HeadGroup *g, int64_t r, int64_t i, int64_t j, double *dq, double *dk, double *dv) {
    int64_t size = g->s->dim[HS];
    const double *q = g->q[r] + i * size, *dout = g->dout[r] + i * size, *k = g->k + j * size, *v = g->v + j * size;
    if (!is_allowed(g->s, g->b, i, j)) return;
    double scale = scale_of(g->s);
    double p = exp(scale * dot(q, k, size) - g->lse[r][i]), ds = p * (dot(dout, v, size) - g->mean[r][i]) * scale;
    for (int64_t c = 0; c < size && dq != NULL; ++c) dq[c] += ds * k[c];
    for (int64_t c = 0; c < size && dk != NULL; ++c) dk[c] += ds * q[c];
    for (int64_t c = 0; c < size && dv != NULL; ++c) dv[c] += p * dout[c];
}

static void backward_check(OpCall *call, OpCheck *check) {
    const OpShape *s = &call->c->shape;
    int64_t length = s->dim[T], size = s->dim[HS], group = s->dim[NH] / s->dim[NKV], at[OP_SAMPLES];
    int count = op_sample(at, length, 6);
    HeadGroup g;
    group_open(&g, call, s->dim[B] - 1, s->dim[NKV] - 1);
    int64_t heads[3] = {g.kv * group, s->dim[NH] + g.kv, s->dim[NH] + s->dim[NKV] + g.kv};  // q, k, v
    const char *names[3] = {"dq", "dk", "dv"};
    double *out[3], *ref[3];
    for (int part = 0; part < 3; ++part) {
        out[part] = xcalloc(to_size(size) * OP_SAMPLES, sizeof(double));
        ref[part] = xcalloc(to_size(size) * OP_SAMPLES, sizeof(double));
    }
    for (int n = 0; n < count; ++n) {
        for (int64_t j = 0; j <= at[n]; ++j) add_pair(&g, 0, at[n], j, ref[0] + n * size, NULL, NULL);
        for (int64_t r = 0; r < group; ++r)
            for (int64_t i = at[n]; i < length; ++i)
                add_pair(&g, r, i, at[n], NULL, ref[1] + n * size, ref[2] + n * size);
        for (int part = 0; part < 3; ++part)
            op_download(call, DQKV, (g.b * length + at[n]) * qkv_width(s) + heads[part] * size, size,
                        out[part] + n * size);
    }
    for (int part = 0; part < 3; ++part) {
        op_compare(check, names[part], out[part], ref[part], count * size,
                   call->c->dtype == DTYPE_F32 ? 64 * 0x1p-24 : 3 * 0x1p-8);
        free(out[part]);
        free(ref[part]);
    }
    group_close(&g);
}

// Allowed pairs: a query sees its document's keys up to itself, within the window. A pair costs HS multiply-adds in
// each product: two forward, five backward.
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

#define FORWARD(variant_name, takes_fp32, shapes_function)                                                           \
    .op = "attention forward", .variant = variant_name, .fp32 = takes_fp32, .bf16 = true, .shapes = shapes_function, \
    .lay_out = forward_lay_out, .run = forward_run, .check = forward_check, .flops = forward_flops
#define BACKWARD(variant_name, takes_fp32, shapes_function)                                                 \
    .op = "attention backward", .variant = variant_name, .fp32 = takes_fp32, .bf16 = true,                  \
    .shapes = shapes_function, .lay_out = backward_lay_out, .derive = backward_derive, .run = backward_run, \
    .check = backward_check, .flops = backward_flops
static const OpKind KINDS[] = {
    {FORWARD("causal", true, causal_shapes), .cpu_only = true},
    {FORWARD("window", true, window_shapes), .cpu_only = true},
    {FORWARD("documents", true, document_shapes), .cpu_only = true},
    {FORWARD("own", true, causal_shapes), .gpu_only = true, .attention = "own"},
    {FORWARD("own window", true, window_shapes), .gpu_only = true, .attention = "own"},
    {FORWARD("own documents", true, document_shapes), .gpu_only = true, .attention = "own"},
    {FORWARD("cudnn", false, causal_shapes), .gpu_only = true, .attention = "cudnn"},
    {BACKWARD("causal", true, causal_shapes), .cpu_only = true},
    {BACKWARD("window", true, window_shapes), .cpu_only = true},
    {BACKWARD("documents", true, document_shapes), .cpu_only = true},
    {BACKWARD("own", true, causal_shapes), .gpu_only = true, .attention = "own"},
    {BACKWARD("own window", true, window_shapes), .gpu_only = true, .attention = "own"},
    {BACKWARD("own documents", true, document_shapes), .gpu_only = true, .attention = "own"},
    {BACKWARD("cudnn", false, causal_shapes), .gpu_only = true, .attention = "cudnn"},
};
const OpFamily OPS_ATTENTION = OP_FAMILY(KINDS);
