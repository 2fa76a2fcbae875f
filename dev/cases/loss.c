// loss.c: the fused cross-entropy, which replaces the logits by their gradient.
#include <math.h>
#include <stdlib.h>

#include "dev/cases/cases.h"

#define SOFTCAP 1u
#define MASKED \
    2u  // every third row has weight 0 and an impossible target; columns beyond V hold NaN; the cap is lower
// dim: N, Vp, V.
enum { NLL, LOGITS, TARGETS, WEIGHTS, LOSS_SCALE };

static void model_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model == NULL) op_add(shapes, OP_DIMS(min_i64(scale->head_rows, 333), 1019, 1009), 0, "awkward");
    else if (!(op_adding_to(shapes)->flags & SOFTCAP))
        op_add(shapes, OP_DIMS(scale->head_rows, model->config.Vp, model->config.V), 0, "%s", model->name);
}
static void odd_shapes(OpShapes *shapes) {
    static const int64_t ODD[][3] = {{1, 1, 1},     {1, 8, 5}, {4, 16, 16},     {7, 40, 33},
                                     {3, 128, 100}, {0, 9, 9}, {29, 1024, 1003}};
    for (size_t i = 0; i < sizeof ODD / sizeof ODD[0]; ++i) op_add(shapes, 3, ODD[i], MASKED, "odd");
}
// Vocabularies of real models: larger than the part of a row that a GPU's block keeps, in both dtypes, and in bf16
// between one and two blocks per multiprocessor; one is not a multiple of a pack.
static void odd_and_wide(OpShapes *shapes) {
    static const int64_t WIDE[][3] = {{2, 65024, 65001}, {2, 50304, 50257}, {2, 65537, 65536}, {2, 128256, 128256}};
    bool bf16 = op_adding_bf16(shapes), capped = op_adding_to(shapes)->flags & SOFTCAP;
    odd_shapes(shapes);
    for (int i = 0; i < 4; ++i)
        if ((i > 0) == bf16 && (i == 3) == capped) op_add(shapes, 3, WIDE[i], MASKED, "wide");
}

static double fill(const OpCall *call, int operand, int64_t at, double normal) {
    const int64_t Vp = call->c->shape.dim[1], V = call->c->shape.dim[2];
    if (operand == LOGITS) return at % Vp < V ? 4 * normal : (double)NAN;
    if (operand == WEIGHTS) return at % 3 == 1 ? 0 : normal;
    if (at % 3 == 1) return at % 2 == 0 ? -1 : 1 << 30;
    return floor(fmin(0.5 * erfc(normal * M_SQRT1_2), 0.999999) * (double)V);
}
static void lay_out(OpCall *call) {
    const int64_t *d = call->c->shape.dim;
    bool masked = call->c->shape.flags & MASKED;
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(d[0]));
    op_operand(call, OP_READ | OP_WRITE, masked ? FILL_OWN : FILL_NORMAL, 3, call->c->dtype, OP_DIMS(d[0], d[1]));
    op_operand(call, OP_READ, masked ? FILL_OWN : FILL_BELOW, (double)d[2], DTYPE_I32, OP_DIMS(d[0]));
    op_operand(call, OP_READ, masked ? FILL_OWN : FILL_ABSOLUTE, 1, DTYPE_F32, OP_DIMS(d[0]));
    op_operand(call, OP_READ, FILL_CONSTANT, 0.375, DTYPE_F32, OP_DIMS(1));
}
static float cap_of(const OpCase *c) {
    return !(c->shape.flags & SOFTCAP) ? 0 : c->shape.flags & MASKED ? 5.0f : 15.0f;
}
static CrossEntropyArgs loss_args(const OpCase *c, const Tensor *t) {
    return (CrossEntropyArgs){
        .V = c->shape.dim[2], .softcap = cap_of(c), .want_grad = true, .loss_scale = t[LOSS_SCALE]};
}
static void run(Backend *be, const OpCase *c, const Tensor *t) {
    be->cross_entropy(be, t[NLL], t[LOGITS], t[TARGETS], t[WEIGHTS], loss_args(c, t));
}
static void nll_run(Backend *be, const OpCase *c, const Tensor *t) {
    CrossEntropyArgs args = loss_args(c, t);
    args.want_grad = false;
    be->cross_entropy(be, t[NLL], t[LOGITS], t[TARGETS], t[WEIGHTS], args);
}

// The nll of one row, 0 if its weight is 0; x (V): log softmax, unless NULL.
static double row_nll(const OpCall *call, int64_t row, double *x) {
    const int64_t Vp = call->c->shape.dim[1], V = call->c->shape.dim[2];
    double cap = (double)cap_of(call->c), top = -INFINITY, sum = 0;
    if (op_value(call, WEIGHTS, row) == 0) return 0;
    double *logits = xmalloc(to_size(V) * sizeof *logits);
    for (int64_t v = 0; v < V; ++v) {
        logits[v] = op_value(call, LOGITS, row * Vp + v);
        if (cap > 0) logits[v] = cap * tanh(logits[v] / cap);
        top = fmax(top, logits[v]);
    }
    for (int64_t v = 0; v < V; ++v) sum += exp(logits[v] - top);
    for (int64_t v = 0; v < V && x != NULL; ++v) x[v] = logits[v] - top - log(sum);
    double nll = log(sum) + top - logits[(int64_t)op_value(call, TARGETS, row)];
    free(logits);
    return nll;
}
static void ref_nll(const OpCall *call, int64_t first, int64_t count, double *ref) {
    for (int64_t i = 0; i < count; ++i) ref[i] = row_nll(call, first + i, NULL);
}
static void ref_dlogits(const OpCall *call, int64_t first, int64_t Vp, double *ref) {
    const int64_t row = first / Vp, V = call->c->shape.dim[2];
    double cap = (double)cap_of(call->c), weight = op_value(call, WEIGHTS, row);
    for (int64_t v = 0; v < Vp; ++v) ref[v] = 0;
    if (weight == 0) return;
    row_nll(call, row, ref);
    for (int64_t v = 0; v < V; ++v) {
        double slope = cap > 0 ? 1 - pow(tanh(op_value(call, LOGITS, first + v) / cap), 2) : 1;
        double hit = v == (int64_t)op_value(call, TARGETS, row) ? 1 : 0;
        ref[v] = op_value(call, LOSS_SCALE, 0) * weight * slope * (exp(ref[v]) - hit);
    }
}
static double loss(const OpCall *call) {
    double sum = 0;
    for (int64_t i = 0; i < call->c->shape.dim[0]; ++i)
        sum += op_value(call, LOSS_SCALE, 0) * op_value(call, WEIGHTS, i) * row_nll(call, i, NULL);
    return sum;
}

static const OpOutput OUTPUTS[] = {
    {.name = "nll", .operand = NLL, .reference = ref_nll, .stretch = 1},
    {.name = "dlogits", .operand = LOGITS, .reference = ref_dlogits, .gradient_of = GRADIENT_OF(LOGITS)},
    {NULL}};
static const OpOutput NLL_OUTPUTS[] = {{.name = "nll", .operand = NLL, .reference = ref_nll}, {NULL}};

#define BOTH \
    .op = "cross-entropy", .entry = "cross_entropy", .fp32 = true, .bf16 = true, .lay_out = lay_out, .fill = fill
#define WITH_GRADIENT \
    BOTH, .shapes = model_shapes, .odd_shapes = odd_and_wide, .run = run, .outputs = OUTPUTS, .loss = loss
#define WITHOUT BOTH, .odd_shapes = odd_shapes, .run = nll_run, .outputs = NLL_OUTPUTS
static const OpKind KINDS[] = {{WITH_GRADIENT, .variant = "plain", .forward = &KINDS[0]},
                               {WITH_GRADIENT, .variant = "soft-cap", .flags = SOFTCAP, .forward = &KINDS[1]},
                               {WITHOUT, .variant = "without gradient"},
                               {WITHOUT, .variant = "soft-cap, without gradient", .flags = SOFTCAP}};
const OpFamily OPS_LOSS = OP_FAMILY(KINDS);
