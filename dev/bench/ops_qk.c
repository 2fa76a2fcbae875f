// ops_qk.c: rotary positions on q and k between their projection and attention, with and without QK-norm.
#include <math.h>
#include <stdlib.h>

#include "dev/bench/registry.h"

#define EPS 1e-6f
#define QK_NORM 1u

// dim: N, NH, NKV, HS; positions run through rows of length POSITIONS.
enum { N, NH, NKV, HS };
#define POSITIONS ((int64_t)1024)
enum { OUT, RSTD, IN, POSITION, COS, SIN, Q_WEIGHT, K_WEIGHT, DQ, DK };  // backward: OUT is din, and DOUT comes last
enum { DOUT = DK + 1 };

static void add_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model, unsigned flags) {
    if (model != NULL && model->config.position == POSITION_ROPE)
        op_add(shapes, OP_DIMS(scale->rows, model->config.NH, model->config.NKV, model->config.HS), flags, "%s",
               model->name);
    if (model == NULL) op_add(shapes, OP_DIMS(min_i64(scale->rows, 333), 5, 1, 40), flags, "awkward");
}
static void rope_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    add_shapes(shapes, scale, model, 0);
}
static void normed_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    add_shapes(shapes, scale, model, QK_NORM);
}
static bool is_normed(const OpCase *c) { return c->shape.flags & QK_NORM; }

static void lay_out(OpCall *call, bool backward) {
    const int64_t *d = call->c->shape.dim;
    DType dtype = call->c->dtype;
    int64_t width = (d[NH] + 2 * d[NKV]) * d[HS], normed = is_normed(call->c) ? 1 : 0, grads = backward ? normed : 0;
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, dtype, OP_DIMS(d[N], width));
    op_operand(call, backward ? OP_READ : OP_WRITE, FILL_DERIVED, 0, DTYPE_F32,
               OP_DIMS(normed * d[N], d[NH] + d[NKV]));
    op_operand(call, OP_READ, FILL_NORMAL, 1, dtype, OP_DIMS(backward ? normed * d[N] : d[N], width));
    op_operand(call, OP_READ, FILL_RAMP, (double)POSITIONS, DTYPE_I32, OP_DIMS(d[N]));
    op_operand(call, OP_READ, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(POSITIONS, d[HS] / 2));
    op_operand(call, OP_READ, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(POSITIONS, d[HS] / 2));
    op_operand(call, OP_READ, FILL_NORMAL, 1, dtype, OP_DIMS(normed * d[HS]));
    op_operand(call, OP_READ, FILL_NORMAL, 1, dtype, OP_DIMS(normed * d[HS]));
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(grads * d[HS]));
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(grads * d[HS]));
    op_operand(call, OP_READ, FILL_NORMAL, 1, dtype, OP_DIMS(backward ? d[N] : 0, width));
    for (int table = COS; table <= SIN; ++table)  // rows of the tables that the positions reach
        call->operand[table].traffic_bytes = (double)(min_i64(POSITIONS, d[N]) * (d[HS] / 2) * 4);
}
static void forward_lay_out(OpCall *call) { lay_out(call, false); }
static void backward_lay_out(OpCall *call) { lay_out(call, true); }

static QkArgs qk_args(const OpCase *c, const Tensor *t) {
    const int64_t *d = c->shape.dim;
    return (QkArgs){.NH = d[NH],
                    .NKV = d[NKV],
                    .HS = d[HS],
                    .use_rope = true,
                    .cos = t[COS],
                    .sin = t[SIN],
                    .q_weight = is_normed(c) ? t[Q_WEIGHT] : TENSOR_NONE,
                    .k_weight = is_normed(c) ? t[K_WEIGHT] : TENSOR_NONE,
                    .eps = EPS};
}
static void forward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->qk_forward(be, t[OUT], is_normed(c) ? t[RSTD] : TENSOR_NONE, t[IN], t[POSITION], qk_args(c, t));
}
static void backward_run(Backend *be, const OpCase *c, const Tensor *t) {
    bool normed = is_normed(c);
    be->qk_backward(be, t[OUT], normed ? t[DQ] : TENSOR_NONE, normed ? t[DK] : TENSOR_NONE, t[DOUT],
                    normed ? t[IN] : t[OUT], normed ? t[RSTD] : TENSOR_NONE, t[POSITION], false, qk_args(c, t));
}

// 1 / RMS of one head of `in`, which goes to x.
static double head_rstd(const OpCall *call, int64_t n, int64_t h, double *x) {
    const int64_t *d = call->c->shape.dim;
    double squares = 0;
    op_values(call, IN, n * (d[NH] + 2 * d[NKV]) * d[HS] + h * d[HS], 1, d[HS], x);
    for (int64_t i = 0; i < d[HS]; ++i) squares += x[i] * x[i];
    return 1 / sqrt(squares / (double)d[HS] + (double)EPS);
}
static void backward_derive(OpCall *call) {
    const int64_t *d = call->c->shape.dim;
    if (!is_normed(call->c)) return;
    int64_t heads = d[NH] + d[NKV];
    float *rstd = xmalloc(to_size(d[N] * heads) * sizeof *rstd);
#pragma omp parallel
    {
        double *x = xmalloc(to_size(d[HS]) * sizeof *x);
#pragma omp for
        for (int64_t i = 0; i < d[N] * heads; ++i) rstd[i] = (float)head_rstd(call, i / heads, i % heads, x);
        free(x);
    }
    call->be->upload(call->be, call->t[0][RSTD].data, rstd, tensor_bytes(call->t[0][RSTD]));
    free(rstd);
}

// One head of one row: y = norm(x) * weight, then rotated by +angle (forward) or its gradient.
static void reference_head(const OpCall *call, int64_t n, int64_t h, bool backward, double *out) {
    const int64_t *d = call->c->shape.dim;
    int64_t size = d[HS], half = size / 2, width = (d[NH] + 2 * d[NKV]) * size, heads = d[NH] + d[NKV];
    op_values(call, backward ? DOUT : IN, n * width + h * size, 1, size, out);
    if (h >= heads) return;
    bool normed = is_normed(call->c);
    int weight = h < d[NH] ? Q_WEIGHT : K_WEIGHT;
    double *x = xmalloc(to_size(size) * sizeof *x), rstd = normed ? head_rstd(call, n, h, x) : 1, mean = 0;
    for (int64_t i = 0; i < size && normed && !backward; ++i) out[i] = x[i] * rstd * op_value(call, weight, i);
    for (int64_t i = 0; i < half; ++i) {
        int64_t at = n % POSITIONS * half + i;
        double c = op_value(call, COS, at), s = op_value(call, SIN, at) * (backward ? -1 : 1);
        double first = out[i], second = out[half + i];
        out[i] = first * c - second * s;
        out[half + i] = second * c + first * s;
    }
    if (normed && backward) {
        for (int64_t i = 0; i < size; ++i) mean += out[i] * op_value(call, weight, i) * x[i] * rstd / (double)size;
        for (int64_t i = 0; i < size; ++i) out[i] = rstd * (out[i] * op_value(call, weight, i) - x[i] * rstd * mean);
    }
    free(x);
}

static void check_heads(OpCall *call, OpCheck *check, bool backward) {
    const int64_t *d = call->c->shape.dim;
    int64_t all = d[NH] + 2 * d[NKV], size = d[HS], at[OP_SAMPLES];
    int count = op_sample(at, d[N] * all, OP_SAMPLES);
    double *out = xmalloc(to_size(size) * sizeof *out), *ref = xmalloc(to_size(size) * sizeof *ref);
    for (int n = 0; n < count; ++n) {
        reference_head(call, at[n] / all, at[n] % all, backward, ref);
        op_download(call, OUT, at[n] * size, size, out);
        op_compare(check, backward ? "din" : "out", out, ref, size, op_tolerance(call->c->dtype));
    }
    free(out);
    free(ref);
}
static void forward_check(OpCall *call, OpCheck *check) { check_heads(call, check, false); }
static void backward_check(OpCall *call, OpCheck *check) { check_heads(call, check, true); }

#define FORWARD                                                                                       \
    .op = "rope forward", .fp32 = true, .bf16 = true, .lay_out = forward_lay_out, .run = forward_run, \
    .check = forward_check
#define BACKWARD                                                                                               \
    .op = "rope backward", .fp32 = true, .bf16 = true, .lay_out = backward_lay_out, .derive = backward_derive, \
    .run = backward_run, .check = backward_check
static const OpKind KINDS[] = {
    {FORWARD, .variant = "plain", .shapes = rope_shapes},
    {FORWARD, .variant = "QK-norm", .shapes = normed_shapes},
    {BACKWARD, .variant = "plain", .shapes = rope_shapes},
    {BACKWARD, .variant = "QK-norm", .shapes = normed_shapes},
};
const OpFamily OPS_QK = OP_FAMILY(KINDS);
