// reduce.c: column sums (a bias gradient), and the weighted sum of losses.
#include <stdlib.h>

#include "dev/cases/cases.h"

#define ACCUMULATE 1u
// dim: N, C.
enum { DBIAS, DOUT };

static void bias_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model != NULL && model->config.mlp_bias)
        op_add(shapes, OP_DIMS(scale->rows, model->config.F), 0, "%s fc", model->name);
    if (model == NULL) op_add(shapes, OP_DIMS(min_i64(scale->rows, 1021), 1019), 0, "awkward");
}
// On a GPU: several column blocks, whole packs of 16 bytes and not, more rows than all row blocks process at once.
static void odd_bias(OpShapes *shapes) {
    static const int64_t ODD[][2] = {{1, 1},    {3, 7},    {16, 16},   {37, 100}, {130, 33}, {0, 5},
                                     {70, 520}, {70, 301}, {33, 1028}, {8300, 8}, {107, 301}};
    for (size_t i = 0; i < sizeof ODD / sizeof ODD[0]; ++i)
        for (unsigned add = 0; add < 2; ++add) op_add(shapes, 2, ODD[i], add * ACCUMULATE, add ? "odd, +=" : "odd");
}
static unsigned out_access(const OpCall *call) {
    return call->c->shape.flags & ACCUMULATE ? OP_READ | OP_WRITE : OP_WRITE;
}
static void bias_lay_out(OpCall *call) {
    const int64_t *d = call->c->shape.dim;
    op_operand(call, out_access(call), FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(d[1]));
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[0], d[1]));
}
static void bias_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->bias_backward(be, t[DBIAS], t[DOUT], c->shape.flags & ACCUMULATE);
}
static void ref_dbias(const OpCall *call, int64_t first, int64_t count, double *ref) {
    int64_t N = call->c->shape.dim[0], C = call->c->shape.dim[1];
    double *buffer = xmalloc(to_size(count) * sizeof *buffer);
    for (int64_t c = 0; c < count; ++c)
        ref[c] = call->c->shape.flags & ACCUMULATE ? op_value(call, DBIAS, first + c) : 0;
    for (int64_t i = 0; i < N; ++i) {
        const double *dout = op_row(call, DOUT, i * C + first, count, buffer);
        for (int64_t c = 0; c < count; ++c) ref[c] += dout[c];
    }
    free(buffer);
}
static double bias_tolerance(const OpCall *call) { return op_sum_tolerance(call->c->shape.dim[0]); }

// ---- sum of weights[i] * nll[i], in double ----

enum { SUM, LOSSES, WEIGHTS };
static void odd_sum(OpShapes *shapes) {
    static const int64_t SIZES[] = {0, 1, 4, 13, 40, 121, 364, 2049, 9841, 530000};
    for (size_t i = 0; i < sizeof SIZES / sizeof SIZES[0]; ++i)
        for (unsigned add = 0; add < 2; ++add)
            op_add(shapes, OP_DIMS(SIZES[i]), add * ACCUMULATE, add ? "odd, +=" : "odd");
}
static void sum_lay_out(OpCall *call) {
    int64_t N = call->c->shape.dim[0];
    op_operand(call, out_access(call), FILL_NORMAL, 1, DTYPE_F64, OP_DIMS(1));
    op_operand(call, OP_READ, FILL_NORMAL, 3, DTYPE_F32, OP_DIMS(N));
    op_operand(call, OP_READ, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(N));
}
static void sum_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->weighted_sum(be, t[SUM], t[LOSSES], t[WEIGHTS], c->shape.flags & ACCUMULATE);
}
static void ref_sum(const OpCall *call, int64_t first, int64_t count, double *ref) {
    (void)first, (void)count;
    ref[0] = call->c->shape.flags & ACCUMULATE ? op_value(call, SUM, 0) : 0;
    for (int64_t i = 0; i < call->c->shape.dim[0]; ++i)
        ref[0] += op_value(call, LOSSES, i) * op_value(call, WEIGHTS, i);
}

static const OpOutput BIAS_OUTPUTS[] = {
    {.name = "dbias", .operand = DBIAS, .reference = ref_dbias, .tolerance = bias_tolerance, .stretch = 1}, {NULL}};
static const OpOutput SUM_OUTPUTS[] = {{.name = "sum", .operand = SUM, .reference = ref_sum}, {NULL}};

static const OpKind KINDS[] = {{.op = "bias backward",
                                .variant = "plain",
                                .entry = "bias_backward",
                                .fp32 = true,
                                .bf16 = true,
                                .shapes = bias_shapes,
                                .odd_shapes = odd_bias,
                                .lay_out = bias_lay_out,
                                .run = bias_run,
                                .outputs = BIAS_OUTPUTS},
                               {.op = "weighted sum",
                                .variant = "plain",
                                .entry = "weighted_sum",
                                .fp32 = true,
                                .odd_shapes = odd_sum,
                                .lay_out = sum_lay_out,
                                .run = sum_run,
                                .outputs = SUM_OUTPUTS}};
const OpFamily OPS_REDUCE = OP_FAMILY(KINDS);
