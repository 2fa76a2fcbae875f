// pointwise.c: activations, the residual sum, conversions and the soft-cap: one pass over memory each.
#include <math.h>
#include <stdlib.h>

#include "dev/cases/cases.h"
#include "llmc/backend/tensor.h"

// dim: N, F. Flags: the Activation.
enum { OUT, IN, DPRE, DOUT };
enum { SECOND = IN + 1 };  // of add

// ---- shapes ----

static void act_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    Activation kind = (Activation)op_adding_to(shapes)->flags;
    if (model != NULL && model->config.activation == kind)
        op_add(shapes, OP_DIMS(scale->rows, model->config.F), 0, "%s", model->name);
    if (model == NULL && kind == ACT_RELU2) op_add(shapes, OP_DIMS(scale->rows, 3072), 0, "wide");
    if (model == NULL && kind != ACT_RELU2) op_add(shapes, OP_DIMS(min_i64(scale->rows, 333), 1019), 0, "awkward");
}
static void row_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model != NULL) op_add(shapes, OP_DIMS(scale->rows, model->config.C), 0, "%s", model->name);
    else op_add(shapes, OP_DIMS(min_i64(scale->rows, 333), 1019), 0, "awkward");
}
// On a GPU the last ones need several blocks, in whole packs of 16 bytes and not; on a CPU several threads take part.
static void odd_shapes(OpShapes *shapes) {
    static const int64_t ODD[][2] = {{1, 1}, {3, 7}, {2, 16}, {5, 33}, {0, 4}, {3, 4104}, {17, 301}, {101, 203}};
    for (size_t i = 0; i < sizeof ODD / sizeof ODD[0]; ++i) op_add(shapes, 2, ODD[i], 0, "odd");
}

// ---- activations ----

static Activation act_of(const OpShape *s) { return (Activation)s->flags; }
static int64_t pre_width(const OpShape *s) { return activation_is_gated(act_of(s)) ? 2 * s->dim[1] : s->dim[1]; }
static bool same_shape(const OpCase *c) { return !activation_is_gated(act_of(&c->shape)); }

static void lay_out(OpCall *call, unsigned out) {
    const OpShape *s = &call->c->shape;
    op_operand(call, out, FILL_DERIVED, 1, call->c->dtype, OP_DIMS(s->dim[0], s->dim[1]));
    op_operand(call, OP_READ, FILL_NORMAL, 2, call->c->dtype, OP_DIMS(s->dim[0], pre_width(s)));
}
static void forward_lay_out(OpCall *call) { lay_out(call, OP_WRITE); }
static void backward_lay_out(OpCall *call) {
    const OpShape *s = &call->c->shape;
    lay_out(call, 0);
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(s->dim[0], pre_width(s)));
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(s->dim[0], s->dim[1]));
}
static void forward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->activation_forward(be, t[OUT], t[IN], act_of(&c->shape));
}
static void backward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->activation_backward(be, t[DPRE], t[DOUT], t[IN], act_of(&c->shape));
}

double op_activation(Activation kind, double x, double up, double *dx, double *dup) {
    double scale = sqrt(2 / M_PI), t, s;
    *dup = 0;
    switch (kind) {
    case ACT_NONE: *dx = 1; return x;
    case ACT_GELU:
        t = tanh(scale * (x + 0.044715 * x * x * x));
        *dx = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * scale * (1 + 3 * 0.044715 * x * x);
        return 0.5 * x * (1 + t);
    case ACT_RELU2: *dx = x > 0 ? 2 * x : 0; return x > 0 ? x * x : 0;
    case ACT_SWIGLU:
        s = 1 / (1 + exp(-x));
        *dx = up * s * (1 + x * (1 - s));
        *dup = x * s;
        return x * s * up;
    }
    CHECK(false, "activation=%d", (int)kind);
    return 0;
}
// A row of the activation (backward false) or of its input's gradient.
static void ref_row(const OpCall *call, int64_t row, bool backward, double *ref) {
    const OpShape *s = &call->c->shape;
    int64_t F = s->dim[1], width = pre_width(s);
    for (int64_t f = 0; f < F; ++f) {
        double up = width == F ? 0 : op_value(call, IN, row * width + F + f), dx, dup;
        double y = op_activation(act_of(s), op_value(call, IN, row * width + f), up, &dx, &dup);
        double dout = backward ? op_value(call, DOUT, row * F + f) : 0;
        ref[f] = backward ? dout * dx : y;
        if (backward && width != F) ref[F + f] = dout * dup;
    }
}
static void ref_out(const OpCall *call, int64_t first, int64_t count, double *ref) {
    ref_row(call, first / count, false, ref);
}
static void ref_dpre(const OpCall *call, int64_t first, int64_t count, double *ref) {
    ref_row(call, first / count, true, ref);
}

// ---- residual sum, conversions, soft-cap ----

static void add_lay_out(OpCall *call) {
    const int64_t *d = call->c->shape.dim;
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[0], d[1]));
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[0], d[1]));
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[0], d[1]));
}
static void add_run(Backend *be, const OpCase *c, const Tensor *t) {
    (void)c;
    be->add(be, t[OUT], t[IN], t[SECOND]);
}
static void ref_sum(const OpCall *call, int64_t first, int64_t count, double *ref) {
    for (int64_t i = 0; i < count; ++i) ref[i] = op_value(call, IN, first + i) + op_value(call, SECOND, first + i);
}

// From fp32 to the case's dtype: what makes bf16 weights of master weights. Or back, or a copy.
static void cast_lay_out(OpCall *call) {
    const int64_t *d = call->c->shape.dim;
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[0], d[1]));
    op_operand(call, OP_READ, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(d[0], d[1]));
}
static void uncast_lay_out(OpCall *call) {
    cast_lay_out(call);
    call->operand[OUT].shape.dtype = DTYPE_F32;
    call->operand[IN].shape.dtype = call->c->dtype;
}
static void cast_run(Backend *be, const OpCase *c, const Tensor *t) {
    (void)c;
    be->cast(be, t[OUT], t[IN]);
}
// To the bit: to nearest, ties to even.
static void ref_cast(const OpCall *call, int64_t first, int64_t count, double *ref) {
    bool narrow = call->operand[OUT].shape.dtype == DTYPE_BF16;
    for (int64_t i = 0; i < count; ++i) {
        ref[i] = op_value(call, IN, first + i);
        if (narrow) ref[i] = (double)bf16_to_f32(bf16_from_f32((float)ref[i]));
    }
}
static double exact(const OpCall *call) {
    (void)call;
    return 0;
}

#define CAP 15.0f
static void softcap_lay_out(OpCall *call) {
    const int64_t *d = call->c->shape.dim;
    op_operand(call, OP_READ | OP_WRITE, FILL_NORMAL, 20, call->c->dtype, OP_DIMS(d[0], d[1]));
}
static void softcap_run(Backend *be, const OpCase *c, const Tensor *t) {
    (void)c;
    be->softcap(be, t[OUT], CAP);
}
static void ref_softcap(const OpCall *call, int64_t first, int64_t count, double *ref) {
    for (int64_t i = 0; i < count; ++i) ref[i] = (double)CAP * tanh(op_value(call, OUT, first + i) / (double)CAP);
}

static const OpOutput FORWARD_OUTPUTS[] = {
    {.name = "out", .operand = OUT, .reference = ref_out, .upstream = UPSTREAM(DOUT)}, {NULL}};
static const OpOutput BACKWARD_OUTPUTS[] = {
    {.name = "dpre", .operand = DPRE, .reference = ref_dpre, .gradient_of = GRADIENT_OF(IN)}, {NULL}};
static const OpOutput ADD_OUTPUTS[] = {{.name = "out", .operand = OUT, .reference = ref_sum}, {NULL}};
static const OpOutput CAST_OUTPUTS[] = {{.name = "out", .operand = OUT, .reference = ref_cast, .tolerance = exact},
                                        {NULL}};
static const OpOutput SOFTCAP_OUTPUTS[] = {{.name = "logits", .operand = OUT, .reference = ref_softcap}, {NULL}};

#define ODD .bf16 = true, .odd_shapes = odd_shapes
#define BOTH ODD, .fp32 = true
#define FORWARD                                                                            \
    BOTH, .op = "activation forward", .entry = "activation_forward", .shapes = act_shapes, \
          .lay_out = forward_lay_out, .run = forward_run, .outputs = FORWARD_OUTPUTS
#define BACKWARD                                                                             \
    BOTH, .op = "activation backward", .entry = "activation_backward", .shapes = act_shapes, \
          .lay_out = backward_lay_out, .run = backward_run, .outputs = BACKWARD_OUTPUTS,     \
          .alias = {{.output = DPRE, .input = IN}, {DPRE, DOUT, same_shape}}
static const OpKind KINDS[] = {{FORWARD, .variant = "GELU", .flags = ACT_GELU},
                               {BACKWARD, .variant = "GELU", .flags = ACT_GELU, .forward = &KINDS[0]},
                               {FORWARD, .variant = "SwiGLU", .flags = ACT_SWIGLU},
                               {BACKWARD, .variant = "SwiGLU", .flags = ACT_SWIGLU, .forward = &KINDS[2]},
                               {FORWARD, .variant = "ReLU2", .flags = ACT_RELU2},
                               {BACKWARD, .variant = "ReLU2", .flags = ACT_RELU2, .forward = &KINDS[4]},
                               {BOTH, .op = "add", .variant = "residual", .entry = "add", .shapes = row_shapes,
                                .lay_out = add_lay_out, .run = add_run, .outputs = ADD_OUTPUTS,
                                .alias = {{.output = OUT, .input = IN}, {.output = OUT, .input = SECOND}}},
                               {ODD, .op = "cast", .variant = "from fp32", .entry = "cast", .shapes = row_shapes,
                                .lay_out = cast_lay_out, .run = cast_run, .outputs = CAST_OUTPUTS},
                               {BOTH, .op = "cast", .variant = "to fp32", .entry = "cast", .lay_out = uncast_lay_out,
                                .run = cast_run, .outputs = CAST_OUTPUTS},
                               {BOTH, .op = "softcap", .variant = "plain", .entry = "softcap",
                                .lay_out = softcap_lay_out, .run = softcap_run, .outputs = SOFTCAP_OUTPUTS}};
const OpFamily OPS_POINTWISE = OP_FAMILY(KINDS);
