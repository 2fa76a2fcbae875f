// ops_loss.c: the fused cross-entropy, which leaves the gradient where the logits were.
#include <math.h>
#include <stdlib.h>

#include "dev/bench/registry.h"

#define SOFTCAP 1u
#define CAP 15.0f
// dim: N, Vp, V.
enum { NLL, LOGITS, TARGETS, WEIGHTS, LOSS_SCALE };

static void add_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model, unsigned flags) {
    if (model != NULL)
        op_add(shapes, OP_DIMS(scale->head_rows, model->config.Vp, model->config.V), flags, "%s", model->name);
    else op_add(shapes, OP_DIMS(min_i64(scale->head_rows, 333), 1019, 1009), flags, "awkward");
}
static void plain_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    add_shapes(shapes, scale, model, 0);
}
static void softcap_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model == NULL) add_shapes(shapes, scale, model, SOFTCAP);
}
static void lay_out(OpCall *call) {
    const int64_t *d = call->c->shape.dim;
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(d[0]));
    op_operand(call, OP_READ | OP_WRITE, FILL_NORMAL, 3, call->c->dtype, OP_DIMS(d[0], d[1]));
    op_operand(call, OP_READ, FILL_BELOW, (double)d[2], DTYPE_I32, OP_DIMS(d[0]));
    op_operand(call, OP_READ, FILL_ABSOLUTE, 1, DTYPE_F32, OP_DIMS(d[0]));
    op_operand(call, OP_READ, FILL_CONSTANT, 0.375, DTYPE_F32, OP_DIMS(1));
}
static void run(Backend *be, const OpCase *c, const Tensor *t) {
    CrossEntropyArgs args = {.V = c->shape.dim[2], .want_grad = true, .loss_scale = t[LOSS_SCALE]};
    args.softcap = c->shape.flags & SOFTCAP ? CAP : 0;
    be->cross_entropy(be, t[NLL], t[LOGITS], t[TARGETS], t[WEIGHTS], args);
}
static void check_rows(OpCall *call, OpCheck *check) {
    const int64_t *d = call->c->shape.dim;
    int64_t Vp = d[1], V = d[2], at[OP_SAMPLES];
    int count = op_sample(at, d[0], 6);
    double cap = call->c->shape.flags & SOFTCAP ? (double)CAP : 0, scale = op_value(call, LOSS_SCALE, 0);
    double *out = xmalloc(to_size(Vp) * sizeof *out), *ref = xmalloc(to_size(Vp) * sizeof *ref);
    for (int n = 0; n < count; ++n) {
        double top = -INFINITY, sum = 0, weight = op_value(call, WEIGHTS, at[n]), nll, got;
        int64_t target = (int64_t)op_value(call, TARGETS, at[n]);
        op_values(call, LOGITS, at[n] * Vp, 1, Vp, ref);
        for (int64_t v = 0; v < V; ++v) {
            if (cap > 0) ref[v] = cap * tanh(ref[v] / cap);
            top = fmax(top, ref[v]);
        }
        for (int64_t v = 0; v < V; ++v) sum += exp(ref[v] - top);
        nll = log(sum) + top - ref[target];
        for (int64_t v = 0; v < Vp; ++v) {
            double slope = cap > 0 ? 1 - ref[v] / cap * (ref[v] / cap) : 1;
            double p = v < V ? exp(ref[v] - top) / sum : 0;
            ref[v] = v < V ? scale * weight * slope * (p - (v == target ? 1 : 0)) : 0;
        }
        op_download(call, LOGITS, at[n] * Vp, Vp, out);
        op_download(call, NLL, at[n], 1, &got);
        op_compare(check, "dlogits", out, ref, Vp, op_tolerance(call->c->dtype));
        op_compare(check, "nll", &got, &nll, 1, 4e-6);
    }
    free(out);
    free(ref);
}

static const OpKind KINDS[] = {
    {.op = "cross-entropy",
     .variant = "plain",
     .fp32 = true,
     .bf16 = true,
     .shapes = plain_shapes,
     .lay_out = lay_out,
     .run = run,
     .check = check_rows},
    {.op = "cross-entropy",
     .variant = "soft-cap",
     .fp32 = true,
     .bf16 = true,
     .shapes = softcap_shapes,
     .lay_out = lay_out,
     .run = run,
     .check = check_rows},
};
const OpFamily OPS_LOSS = OP_FAMILY(KINDS);
