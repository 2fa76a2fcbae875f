// ops_pointwise.c: activations, the residual sum and conversions: one pass over memory each.
#include <math.h>
#include <stdlib.h>

#include "dev/bench/registry.h"

// dim: N, F. Flags: the Activation.
enum { OUT, IN, SECOND };  // backward: dpre, pre, dout

static void act_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model, Activation kind) {
    if (model != NULL && model->config.activation == kind)
        op_add(shapes, OP_DIMS(scale->rows, model->config.F), kind, "%s", model->name);
    if (model == NULL) op_add(shapes, OP_DIMS(min_i64(scale->rows, 333), 1019), kind, "awkward");
}
static void gelu_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    act_shapes(shapes, scale, model, ACT_GELU);
}
static void swiglu_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    act_shapes(shapes, scale, model, ACT_SWIGLU);
}
static void relu2_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model == NULL) op_add(shapes, OP_DIMS(scale->rows, 3072), ACT_RELU2, "wide");
}
static void row_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model != NULL) op_add(shapes, OP_DIMS(scale->rows, model->config.C), 0, "%s", model->name);
    else op_add(shapes, OP_DIMS(min_i64(scale->rows, 333), 1019), 0, "awkward");
}

static int64_t pre_width(const OpShape *s) { return s->flags == ACT_SWIGLU ? 2 * s->dim[1] : s->dim[1]; }
static void forward_lay_out(OpCall *call) {
    const OpShape *s = &call->c->shape;
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(s->dim[0], s->dim[1]));
    op_operand(call, OP_READ, FILL_NORMAL, 2, call->c->dtype, OP_DIMS(s->dim[0], pre_width(s)));
}
static void backward_lay_out(OpCall *call) {
    const OpShape *s = &call->c->shape;
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(s->dim[0], pre_width(s)));
    op_operand(call, OP_READ, FILL_NORMAL, 2, call->c->dtype, OP_DIMS(s->dim[0], pre_width(s)));
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(s->dim[0], s->dim[1]));
}
static void forward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->activation_forward(be, t[OUT], t[IN], (Activation)c->shape.flags);
}
static void backward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->activation_backward(be, t[OUT], t[SECOND], t[IN], (Activation)c->shape.flags);
}

// The activation of (x, up) and its derivatives; up only for SwiGLU.
static double activation(Activation kind, double x, double up, double *dx, double *dup) {
    double scale = sqrt(2 / M_PI), t, s;
    *dup = 0;
    switch (kind) {
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
    case ACT_NONE: break;
    }
    CHECK(false, "activation=%d", (int)kind);
    return 0;
}
static void check_activation(OpCall *call, OpCheck *check, bool backward) {
    const OpShape *s = &call->c->shape;
    int64_t F = s->dim[1], width = pre_width(s), out_width = backward ? width : F, at[OP_SAMPLES];
    int count = op_sample(at, s->dim[0], 6);
    double *out = xmalloc(to_size(out_width) * sizeof *out), *ref = xmalloc(to_size(width) * sizeof *ref), dx, dup;
    for (int n = 0; n < count; ++n) {
        for (int64_t f = 0; f < F; ++f) {
            double up = width == F ? 0 : op_value(call, IN, at[n] * width + F + f);
            double y = activation((Activation)s->flags, op_value(call, IN, at[n] * width + f), up, &dx, &dup);
            double dout = backward ? op_value(call, SECOND, at[n] * F + f) : 0;
            ref[f] = backward ? dout * dx : y;
            if (backward && width != F) ref[F + f] = dout * dup;
        }
        op_download(call, OUT, at[n] * out_width, out_width, out);
        op_compare(check, backward ? "dpre" : "out", out, ref, out_width, op_tolerance(call->c->dtype));
    }
    free(out);
    free(ref);
}
static void forward_check(OpCall *call, OpCheck *check) { check_activation(call, check, false); }
static void backward_check(OpCall *call, OpCheck *check) { check_activation(call, check, true); }

// ---- residual sum, conversion ----

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
// From fp32 to the case's dtype: what makes bf16 weights of master weights.
static void cast_lay_out(OpCall *call) {
    const int64_t *d = call->c->shape.dim;
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[0], d[1]));
    op_operand(call, OP_READ, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(d[0], d[1]));
}
static void cast_run(Backend *be, const OpCase *c, const Tensor *t) {
    (void)c;
    be->cast(be, t[OUT], t[IN]);
}
static void sum_check(OpCall *call, OpCheck *check) {
    const int64_t *d = call->c->shape.dim;
    int64_t at[OP_SAMPLES];
    int count = op_sample(at, d[0], 6);
    double *out = xmalloc(to_size(d[1]) * sizeof *out), *ref = xmalloc(to_size(d[1]) * sizeof *ref);
    for (int n = 0; n < count; ++n) {
        for (int64_t f = 0; f < d[1]; ++f) {
            ref[f] = op_value(call, IN, at[n] * d[1] + f);
            if (call->count > SECOND) ref[f] += op_value(call, SECOND, at[n] * d[1] + f);
        }
        op_download(call, OUT, at[n] * d[1], d[1], out);
        op_compare(check, "out", out, ref, d[1], op_tolerance(call->c->dtype));
    }
    free(out);
    free(ref);
}

#define ACTIVATION(variant_name, shapes_function)                                                                    \
    {.op = "activation forward",                                                                                     \
     .variant = variant_name,                                                                                        \
     .fp32 = true,                                                                                                   \
     .bf16 = true,                                                                                                   \
     .shapes = shapes_function,                                                                                      \
     .lay_out = forward_lay_out,                                                                                     \
     .run = forward_run,                                                                                             \
     .check = forward_check},                                                                                        \
    {                                                                                                                \
        .op = "activation backward", .variant = variant_name, .fp32 = true, .bf16 = true, .shapes = shapes_function, \
        .lay_out = backward_lay_out, .run = backward_run, .check = backward_check                                    \
    }
static const OpKind KINDS[] = {
    ACTIVATION("GELU", gelu_shapes),
    ACTIVATION("SwiGLU", swiglu_shapes),
    ACTIVATION("ReLU2", relu2_shapes),
    {.op = "add",
     .variant = "residual",
     .fp32 = true,
     .bf16 = true,
     .shapes = row_shapes,
     .lay_out = add_lay_out,
     .run = add_run,
     .check = sum_check},
    {.op = "cast",
     .variant = "from fp32",
     .bf16 = true,
     .shapes = row_shapes,
     .lay_out = cast_lay_out,
     .run = cast_run,
     .check = sum_check},
};
const OpFamily OPS_POINTWISE = OP_FAMILY(KINDS);
