// qk.c: RoPE on q and k between their projection and attention, with and without QK-norm.
#include <math.h>
#include <stdlib.h>

#include "dev/cases/cases.h"

#define EPS 1e-6f

// dim: N, NH, NKV, HS; positions count within rows of length POSITIONS.
enum { N, NH, NKV, HS };
#define QK_NORM 1u
#define NO_ROPE 2u
#define ADD_DW 4u         // the weights' gradients: += instead of =
#define FEW_POSITIONS 8u  // FEW of them, in any order, and tables of as many
#define SMALL_IN 16u      // inputs so small that eps matters
#define POSITIONS ((int64_t)1024)
#define FEW ((int64_t)13)
enum { OUT, RSTD, IN, POSITION, COS, SIN, Q_WEIGHT, K_WEIGHT, DIN, DQ, DK, DOUT };

static void model_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model != NULL && model->config.position == POSITION_ROPE)
        op_add(shapes, OP_DIMS(scale->rows, model->config.NH, model->config.NKV, model->config.HS), 0, "%s",
               model->name);
    if (model == NULL) op_add(shapes, OP_DIMS(min_i64(scale->rows, 333), 5, 1, 40), 0, "awkward");
}
// On a GPU: heads whose halves are whole packs of 16 bytes and not, for one thread up to more than a warp, and more
// rows and heads than one block takes. An odd head size has no pairs to rotate but can be normalized.
static void add_odd(OpShapes *shapes, unsigned flags) {
    static const int64_t ODD[][4] = {{1, 1, 1, 2},    {3, 2, 1, 10},   {2, 4, 2, 32}, {5, 3, 3, 6},   {0, 2, 1, 8},
                                     {3, 3, 1, 64},   {2, 2, 1, 128},  {3, 2, 2, 80}, {2, 1, 1, 136}, {1, 1, 1, 520},
                                     {2, 1, 1, 1024}, {300, 2, 1, 16}, {3, 9, 1, 62}, {70, 6, 2, 34}, {4, 2, 1, 7}};
    for (size_t i = 0; i < sizeof ODD / sizeof ODD[0]; ++i) {
        if (ODD[i][3] % 2 == 0) op_add(shapes, 4, ODD[i], flags | FEW_POSITIONS, "odd");
        op_add(shapes, 4, ODD[i], flags | FEW_POSITIONS | NO_ROPE, "odd, no rope");
    }
}
static void odd_forward(OpShapes *shapes) {
    add_odd(shapes, 0);
    if (op_adding_to(shapes)->flags & QK_NORM)
        op_add(shapes, OP_DIMS(3, 2, 1, 10), FEW_POSITIONS | SMALL_IN, "small");
}
static void odd_backward(OpShapes *shapes) {
    add_odd(shapes, 0);
    if (op_adding_to(shapes)->flags & QK_NORM) add_odd(shapes, ADD_DW);
}

static bool is_normed(const OpCase *c) { return c->shape.flags & QK_NORM; }
static bool is_plain(const OpCase *c) { return !is_normed(c); }
static bool is_rotated(const OpCase *c) { return !(c->shape.flags & NO_ROPE); }
static int64_t width_of(const OpShape *s) { return (s->dim[NH] + 2 * s->dim[NKV]) * s->dim[HS]; }

static void lay_out(OpCall *call, unsigned out, unsigned in, unsigned rstd, unsigned weights) {
    const OpShape *s = &call->c->shape;
    const int64_t *d = s->dim;
    DType dtype = call->c->dtype;
    bool few = s->flags & FEW_POSITIONS;
    int64_t normed = is_normed(call->c) ? 1 : 0, table = is_rotated(call->c) ? few ? FEW : POSITIONS : 0;
    op_operand(call, out, FILL_DERIVED, 0, dtype, OP_DIMS(d[N], width_of(s)));
    op_operand(call, rstd, FILL_DERIVED, 0, DTYPE_F32, OP_DIMS(normed * d[N], d[NH] + d[NKV]));
    op_operand(call, in, FILL_NORMAL, s->flags & SMALL_IN ? 5e-4 : 1, dtype, OP_DIMS(d[N], width_of(s)));
    op_operand(call, OP_READ, few ? FILL_BELOW : FILL_RAMP, (double)(few ? FEW : POSITIONS), DTYPE_I32,
               OP_DIMS(d[N]));
    // Any values: the operation does not use c^2 + s^2 = 1.
    op_operand(call, OP_READ, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(table, d[HS] / 2));
    op_operand(call, OP_READ, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(table, d[HS] / 2));
    op_operand(call, weights, FILL_NORMAL, 1, dtype, OP_DIMS(normed * d[HS]));
    op_operand(call, weights, FILL_NORMAL, 1, dtype, OP_DIMS(normed * d[HS]));
    for (int t = COS; t <= SIN; ++t)  // only the table rows of the used positions
        call->operand[t].traffic_bytes = (double)(min_i64(table, d[N]) * (d[HS] / 2) * 4);
}
static void forward_lay_out(OpCall *call) { lay_out(call, OP_WRITE, OP_READ, OP_WRITE, OP_READ); }
// Without QK-norm the backward pass does not read `in`.
static void backward_lay_out(OpCall *call) {
    const int64_t *d = call->c->shape.dim;
    int64_t normed = is_normed(call->c) ? 1 : 0;
    unsigned grads = call->c->shape.flags & ADD_DW ? OP_READ | OP_WRITE : OP_WRITE;
    lay_out(call, 0, normed ? OP_READ : 0, OP_READ, OP_READ);
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[N], width_of(&call->c->shape)));
    op_operand(call, grads, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(normed * d[HS]));
    op_operand(call, grads, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(normed * d[HS]));
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[N], width_of(&call->c->shape)));
}

static QkArgs qk_args(const OpCase *c, const Tensor *t) {
    const int64_t *d = c->shape.dim;
    return (QkArgs){.NH = d[NH],
                    .NKV = d[NKV],
                    .HS = d[HS],
                    .use_rope = is_rotated(c),
                    .cos = is_rotated(c) ? t[COS] : TENSOR_NONE,
                    .sin = is_rotated(c) ? t[SIN] : TENSOR_NONE,
                    .q_weight = is_normed(c) ? t[Q_WEIGHT] : TENSOR_NONE,
                    .k_weight = is_normed(c) ? t[K_WEIGHT] : TENSOR_NONE,
                    .eps = EPS};
}
static Tensor if_normed(const OpCase *c, Tensor t) { return is_normed(c) ? t : TENSOR_NONE; }
static void forward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->qk_forward(be, t[OUT], if_normed(c, t[RSTD]), t[IN], t[POSITION], qk_args(c, t));
}
static void backward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->qk_backward(be, t[DIN], if_normed(c, t[DQ]), if_normed(c, t[DK]), t[DOUT], t[IN], if_normed(c, t[RSTD]),
                    t[POSITION], c->shape.flags & ADD_DW, qk_args(c, t));
}

// ---- references: one head of HS elements at a time ----

static double head_rstd(const OpCall *call, const double *x) {
    int64_t size = call->c->shape.dim[HS];
    double squares = 0;
    for (int64_t i = 0; i < size; ++i) squares += x[i] * x[i];
    return 1 / sqrt(squares / (double)size + (double)EPS);
}
// out = x rotated by the angles of row n, or by their negatives.
static void rotate(const OpCall *call, int64_t n, bool back, const double *x, double *out) {
    int64_t size = call->c->shape.dim[HS], half = size / 2;
    for (int64_t i = 0; i < size && !is_rotated(call->c); ++i) out[i] = x[i];
    for (int64_t i = 0; i < half && is_rotated(call->c); ++i) {
        int64_t at = (int64_t)op_value(call, POSITION, n) * half + i;
        double c = op_value(call, COS, at), s = op_value(call, SIN, at) * (back ? -1 : 1), first = x[i];
        out[i] = first * c - x[half + i] * s;
        out[half + i] = x[half + i] * c + first * s;
    }
}
static void ref_out(const OpCall *call, int64_t first, int64_t count, double *ref) {
    const int64_t *d = call->c->shape.dim, n = first / width_of(&call->c->shape);
    double *buffer = xmalloc(to_size(count) * sizeof *buffer);
    const double *in = op_row(call, IN, first, count, buffer);
    for (int64_t h = 0; h < d[NH] + 2 * d[NKV]; ++h) {
        bool normed = is_normed(call->c) && h < d[NH] + d[NKV];
        double *out = ref + h * d[HS], rstd = normed ? head_rstd(call, in + h * d[HS]) : 1;
        for (int64_t i = 0; i < d[HS]; ++i)
            out[i] = in[h * d[HS] + i] * (normed ? rstd * op_value(call, h < d[NH] ? Q_WEIGHT : K_WEIGHT, i) : 1);
        if (h < d[NH] + d[NKV]) rotate(call, n, false, out, out);
    }
    free(buffer);
}
static void ref_rstd(const OpCall *call, int64_t first, int64_t count, double *ref) {
    const int64_t *d = call->c->shape.dim, n = first / count;
    double *buffer = xmalloc(to_size(d[HS]) * sizeof *buffer);
    for (int64_t h = 0; h < count; ++h)
        ref[h] = head_rstd(call, op_row(call, IN, n * width_of(&call->c->shape) + h * d[HS], d[HS], buffer));
    free(buffer);
}
static void ref_din(const OpCall *call, int64_t first, int64_t count, double *ref) {
    const int64_t *d = call->c->shape.dim, n = first / width_of(&call->c->shape), size = d[HS];
    double *buffer = xmalloc(to_size(2 * count) * sizeof *buffer);
    const double *dout = op_row(call, DOUT, first, count, buffer),
                 *in = op_row(call, IN, first, count, buffer + count);
    for (int64_t h = 0; h < d[NH] + 2 * d[NKV]; ++h) {
        double *dx = ref + h * size, mean = 0;
        const double *x = in + h * size;
        for (int64_t i = 0; i < size; ++i) dx[i] = dout[h * size + i];
        if (h >= d[NH] + d[NKV]) continue;
        rotate(call, n, true, dx, dx);
        if (!is_normed(call->c)) continue;
        double rstd = head_rstd(call, x);
        for (int64_t i = 0; i < size; ++i) {
            dx[i] *= op_value(call, h < d[NH] ? Q_WEIGHT : K_WEIGHT, i);
            mean += dx[i] * x[i] * rstd / (double)size;
        }
        for (int64_t i = 0; i < size; ++i) dx[i] = rstd * (dx[i] - x[i] * rstd * mean);
    }
    free(buffer);
}
static void ref_weight(const OpCall *call, int operand, double *ref) {
    const int64_t *d = call->c->shape.dim, size = d[HS], from = operand == DQ ? 0 : d[NH];
    const int64_t to = operand == DQ ? d[NH] : d[NH] + d[NKV];
    double *buffer = xmalloc(to_size(2 * size) * sizeof *buffer), *dy = xmalloc(to_size(size) * sizeof *dy);
    for (int64_t i = 0; i < size; ++i) ref[i] = call->c->shape.flags & ADD_DW ? op_value(call, operand, i) : 0;
    for (int64_t n = 0; n < d[N]; ++n)
        for (int64_t h = from; h < to; ++h) {
            int64_t at = n * width_of(&call->c->shape) + h * size;
            const double *x = op_row(call, IN, at, size, buffer), *dout = op_row(call, DOUT, at, size, buffer + size);
            double rstd = head_rstd(call, x);
            rotate(call, n, true, dout, dy);
            for (int64_t i = 0; i < size; ++i) ref[i] += dy[i] * x[i] * rstd;
        }
    free(buffer);
    free(dy);
}
static void ref_dq(const OpCall *call, int64_t first, int64_t count, double *ref) {
    (void)first, (void)count;
    ref_weight(call, DQ, ref);
}
static void ref_dk(const OpCall *call, int64_t first, int64_t count, double *ref) {
    (void)first, (void)count;
    ref_weight(call, DK, ref);
}
static double weight_tolerance(const OpCall *call) {
    return op_sum_tolerance(call->c->shape.dim[N] * call->c->shape.dim[NH]);
}

static const OpOutput FORWARD_OUTPUTS[] = {
    {.name = "out", .operand = OUT, .reference = ref_out, .upstream = UPSTREAM(DOUT)},
    {.name = "rstd", .operand = RSTD, .reference = ref_rstd},
    {NULL}};
static const OpOutput BACKWARD_OUTPUTS[] = {
    {.name = "din", .operand = DIN, .reference = ref_din, .gradient_of = GRADIENT_OF(IN)},
    {.name = "dq_weight",
     .operand = DQ,
     .reference = ref_dq,
     .tolerance = weight_tolerance,
     .gradient_of = GRADIENT_OF(Q_WEIGHT)},
    {.name = "dk_weight",
     .operand = DK,
     .reference = ref_dk,
     .tolerance = weight_tolerance,
     .gradient_of = GRADIENT_OF(K_WEIGHT)},
    {NULL}};

#define BOTH .fp32 = true, .bf16 = true, .shapes = model_shapes
#define FORWARD                                                                                               \
    BOTH, .op = "rope forward", .entry = "qk_forward", .odd_shapes = odd_forward, .lay_out = forward_lay_out, \
          .run = forward_run, .outputs = FORWARD_OUTPUTS, .alias = {{OUT, IN, is_plain}}
#define BACKWARD                                                                                                  \
    BOTH, .op = "rope backward", .entry = "qk_backward", .odd_shapes = odd_backward, .lay_out = backward_lay_out, \
          .run = backward_run, .outputs = BACKWARD_OUTPUTS, .alias = {{.output = DIN, .input = DOUT}}
static const OpKind KINDS[] = {{FORWARD, .variant = "plain"},
                               {FORWARD, .variant = "QK-norm", .flags = QK_NORM},
                               {BACKWARD, .variant = "plain", .forward = &KINDS[0]},
                               {BACKWARD, .variant = "QK-norm", .flags = QK_NORM, .forward = &KINDS[1]}};
const OpFamily OPS_QK = OP_FAMILY(KINDS);
