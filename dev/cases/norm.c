// norm.c: LayerNorm and RMSNorm over rows of activations, forward and backward. Both are bounded by memory.
#include <math.h>
#include <stdlib.h>

#include "dev/cases/cases.h"

#define EPS 1e-5f

// dim: N, C.
#define RMS 1u
#define NO_BIAS 2u
#define ADD_DW 4u        // dweight and dbias are added to
#define OVERWRITE_DX 8u  // dx is not
#define LARGE_MEAN 16u   // x is about 4096 in steps of a quarter
#define SMALL_X 32u      // so small that eps counts
#define ADDS 64u         // a residual
enum { OUT, MEAN, RSTD, X, WEIGHT, BIAS, DX, DWEIGHT, DBIAS, DOUT };
enum { RESIDUAL = DX };  // of the forward operation

// ---- shapes ----

static void model_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    NormKind norm = op_adding_to(shapes)->flags & RMS ? NORM_RMS : NORM_LAYER;
    if (model != NULL && model->config.norm == norm)
        op_add(shapes, OP_DIMS(scale->rows, model->config.C), 0, "%s", model->name);
    if (model != NULL) return;
    op_add(shapes, OP_DIMS(min_i64(scale->rows, 1021), 1019), 0, "awkward");
    op_add(shapes, OP_DIMS(min_i64(scale->rows, 64), 8192), 0, "few wide rows");
}
// Several channel counts around the vector widths, one row, no rows, more rows than one summation chunk. On a GPU:
// rows of one warp (up to 4 packs of 16 bytes a lane), of several, wider than a block's registers hold, each in whole
// packs and not, and more rows than blocks times what a block takes at once.
static const int64_t ODD[][2] = {{1, 1},    {1, 33},   {3, 7},    {2, 16},    {37, 20},  {0, 8},
                                 {2100, 3}, {11, 64},  {5, 101},  {13, 264},  {3, 1032}, {3, 520},
                                 {3, 700},  {1, 4100}, {1, 8200}, {1, 16392}, {200, 130}};
#define ODD_COUNT ((int)(sizeof ODD / sizeof ODD[0]))
#define SMALL 6  // the first ones, for every variant
static void odd_forward(OpShapes *shapes) {
    bool rms = op_adding_to(shapes)->flags & RMS;
    for (int i = 0; i < ODD_COUNT; ++i) op_add(shapes, 2, ODD[i], 0, "odd");
    for (int i = 0; i < SMALL && !rms; ++i) op_add(shapes, 2, ODD[i], NO_BIAS, "odd");
    op_add(shapes, OP_DIMS(2, 100), SMALL_X, "small");
    // A variance computed as E[x^2] - mean^2 in fp32 would have lost all digits.
    if (!rms && !op_adding_bf16(shapes)) op_add(shapes, OP_DIMS(2, 100), LARGE_MEAN, "large mean");
}
// With one channel a normalized row does not depend on x, and the gradient is all cancellation.
static void odd_backward(OpShapes *shapes) {
    bool rms = op_adding_to(shapes)->flags & RMS;
    for (unsigned no_bias = 0; no_bias < (rms ? 1 : 2); ++no_bias)
        for (int i = 1; i < (no_bias ? SMALL : ODD_COUNT); ++i) {
            op_add(shapes, 2, ODD[i], no_bias * NO_BIAS | OVERWRITE_DX, "odd");
            op_add(shapes, 2, ODD[i], no_bias * NO_BIAS | ADD_DW, "odd, +=");
        }
}

// ---- operands and calls ----

static bool is_rms(const OpCase *c) { return c->shape.flags & RMS; }
static bool adds(const OpCase *c) { return c->shape.flags & ADDS; }
static bool has_bias(const OpCase *c) { return !(c->shape.flags & (RMS | NO_BIAS)); }
static NormArgs norm_args(const OpCase *c) {
    return (NormArgs){.kind = is_rms(c) ? NORM_RMS : NORM_LAYER, .eps = EPS};
}
static Tensor present(bool there, Tensor t) { return there ? t : TENSOR_NONE; }

static void lay_out(OpCall *call, unsigned out, OpFill statistics, unsigned statistics_access) {
    int64_t N = call->c->shape.dim[0], C = call->c->shape.dim[1], layer = is_rms(call->c) ? 0 : 1;
    DType dtype = call->c->dtype;
    bool large = call->c->shape.flags & LARGE_MEAN, small = call->c->shape.flags & SMALL_X;
    op_operand(call, out, FILL_DERIVED, 0, dtype, OP_DIMS(N, C));
    op_operand(call, statistics_access, statistics, 0, DTYPE_F32, OP_DIMS(layer * N));
    op_operand(call, statistics_access, statistics, 0, DTYPE_F32, OP_DIMS(N));
    op_operand(call, OP_READ, large ? FILL_OWN : FILL_NORMAL, small ? 0.002 : 1.5, dtype, OP_DIMS(N, C));
    op_operand(call, OP_READ, FILL_NORMAL, 1, dtype, OP_DIMS(C));
    op_operand(call, out, FILL_NORMAL, 1, dtype, OP_DIMS(has_bias(call->c) ? C : 0));
}
static double fill(const OpCall *call, int operand, int64_t at, double normal) {
    (void)call, (void)operand, (void)at;
    return 4096 + 0.25 * round(6 * normal);
}
static void forward_lay_out(OpCall *call) {
    lay_out(call, OP_WRITE, FILL_NORMAL, OP_WRITE);
    call->operand[BIAS].access = OP_READ;
    if (adds(call->c)) op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, 2, call->operand[OUT].shape.dim);
}
static void backward_lay_out(OpCall *call) {
    const OpShape *s = &call->c->shape;
    int64_t N = s->dim[0], C = s->dim[1], bias = has_bias(call->c) ? 1 : 0;
    unsigned dx = s->flags & OVERWRITE_DX ? OP_WRITE : OP_READ | OP_WRITE;
    unsigned dw = s->flags & ADD_DW ? OP_READ | OP_WRITE : OP_WRITE;
    lay_out(call, 0, FILL_DERIVED, OP_READ);
    op_operand(call, dx, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(N, C));
    op_operand(call, dw, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(C));
    op_operand(call, dw, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(bias * C));
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(N, C));
}
static void forward_run(Backend *be, const OpCase *c, const Tensor *t) {
    NormArgs args = norm_args(c);
    if (adds(c)) args.residual = t[RESIDUAL];
    be->norm_forward(be, t[OUT], present(!is_rms(c), t[MEAN]), t[RSTD], t[X], t[WEIGHT],
                     present(has_bias(c), t[BIAS]), args);
}
static void backward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->norm_backward(be, t[DX], t[DWEIGHT], present(has_bias(c), t[DBIAS]), t[DOUT], t[X], t[WEIGHT],
                      present(!is_rms(c), t[MEAN]), t[RSTD], !(c->shape.flags & OVERWRITE_DX),
                      c->shape.flags & ADD_DW, norm_args(c));
}

// ---- references ----

static void statistics(const OpCall *call, const double *x, double *mean, double *rstd) {
    int64_t C = call->c->shape.dim[1];
    double squares = 0;
    *mean = 0;
    for (int64_t c = 0; c < C && !is_rms(call->c); ++c) *mean += x[c] / (double)C;
    for (int64_t c = 0; c < C; ++c) squares += (x[c] - *mean) * (x[c] - *mean);
    *rstd = 1 / sqrt(squares / (double)C + (double)EPS);
}
static void ref_out(const OpCall *call, int64_t first, int64_t C, double *ref) {
    double *buffer = xmalloc(to_size(C) * sizeof *buffer), mean, rstd;
    const double *x = op_row(call, X, first, C, buffer);
    statistics(call, x, &mean, &rstd);
    for (int64_t c = 0; c < C; ++c)
        ref[c] = (x[c] - mean) * rstd * op_value(call, WEIGHT, c) +
                 (has_bias(call->c) ? op_value(call, BIAS, c) : 0) +
                 (adds(call->c) ? op_value(call, RESIDUAL, first + c) : 0);
    free(buffer);
}
static void ref_statistics(const OpCall *call, int64_t first, int64_t count, double *means, double *rstds) {
    int64_t C = call->c->shape.dim[1];
    double *buffer = xmalloc(to_size(C) * sizeof *buffer), mean, rstd;
    for (int64_t i = 0; i < count; ++i) {
        statistics(call, op_row(call, X, (first + i) * C, C, buffer), &mean, &rstd);
        if (means != NULL) means[i] = mean;
        if (rstds != NULL) rstds[i] = rstd;
    }
    free(buffer);
}
static void ref_mean(const OpCall *call, int64_t first, int64_t count, double *ref) {
    ref_statistics(call, first, count, ref, NULL);
}
static void ref_rstd(const OpCall *call, int64_t first, int64_t count, double *ref) {
    ref_statistics(call, first, count, NULL, ref);
}
static void ref_dx(const OpCall *call, int64_t first, int64_t C, double *ref) {
    double *buffer = xmalloc(to_size(2 * C) * sizeof *buffer), mean, rstd, sum = 0, sum_x = 0;
    const double *x = op_row(call, X, first, C, buffer), *dout = op_row(call, DOUT, first, C, buffer + C);
    statistics(call, x, &mean, &rstd);
    for (int64_t c = 0; c < C; ++c) {
        double g = dout[c] * op_value(call, WEIGHT, c);
        sum += is_rms(call->c) ? 0 : g / (double)C;
        sum_x += g * (x[c] - mean) * rstd / (double)C;
    }
    for (int64_t c = 0; c < C; ++c) {
        double g = dout[c] * op_value(call, WEIGHT, c);
        double before = call->c->shape.flags & OVERWRITE_DX ? 0 : op_value(call, DX, first + c);
        ref[c] = before + rstd * (g - sum - (x[c] - mean) * rstd * sum_x);
    }
    free(buffer);
}
// Columns [first, first + count) of dweight or dbias.
static void ref_columns(const OpCall *call, int operand, int64_t first, int64_t count, double *ref) {
    int64_t N = call->c->shape.dim[0], C = call->c->shape.dim[1];
    double *buffer = xmalloc(to_size(2 * count) * sizeof *buffer);
    for (int64_t c = 0; c < count; ++c)
        ref[c] = call->c->shape.flags & ADD_DW ? op_value(call, operand, first + c) : 0;
    for (int64_t i = 0; i < N; ++i) {
        const double *x = op_row(call, X, i * C + first, count, buffer);
        const double *dout = op_row(call, DOUT, i * C + first, count, buffer + count);
        double mean = is_rms(call->c) ? 0 : op_value(call, MEAN, i), rstd = op_value(call, RSTD, i);
        for (int64_t c = 0; c < count; ++c) ref[c] += operand == DBIAS ? dout[c] : dout[c] * (x[c] - mean) * rstd;
    }
    free(buffer);
}
static void ref_dweight(const OpCall *call, int64_t first, int64_t count, double *ref) {
    ref_columns(call, DWEIGHT, first, count, ref);
}
static void ref_dbias(const OpCall *call, int64_t first, int64_t count, double *ref) {
    ref_columns(call, DBIAS, first, count, ref);
}

// A mean of 4096 is off by 2^-12 at worst.
static double out_tolerance(const OpCall *call) {
    return call->c->shape.flags & LARGE_MEAN ? 1e-3 : op_tolerance(call->c->dtype);
}
static double rstd_tolerance(const OpCall *call) { return call->c->shape.flags & LARGE_MEAN ? 1e-4 : 2e-6; }
// The sum of a row cancels: its error is relative to the row's elements, not to their mean, which is sqrt(C) times
// smaller or, of few rows, any number of times.
static double mean_tolerance(const OpCall *call) {
    int64_t N = min_i64(call->c->shape.dim[0], 2100), C = call->c->shape.dim[1];
    double elems = 0, means = 0, *mean = xcalloc(to_size(N), sizeof *mean);
    ref_mean(call, 0, N, mean);
    for (int64_t i = 0; i < N * C; ++i) elems += pow(op_value(call, X, i), 2) / (double)C;
    for (int64_t i = 0; i < N; ++i) means += mean[i] * mean[i];
    free(mean);
    return 1e-6 * sqrt(elems / means) + 1e-6;
}
static double column_tolerance(const OpCall *call) { return op_sum_tolerance(call->c->shape.dim[0]); }

static const OpOutput FORWARD_OUTPUTS[] = {
    {.name = "out", .operand = OUT, .reference = ref_out, .tolerance = out_tolerance, .upstream = UPSTREAM(DOUT)},
    {.name = "mean", .operand = MEAN, .reference = ref_mean, .tolerance = mean_tolerance, .stretch = 8},
    {.name = "rstd", .operand = RSTD, .reference = ref_rstd, .tolerance = rstd_tolerance, .stretch = 8},
    {NULL}};
static const OpOutput BACKWARD_OUTPUTS[] = {
    {.name = "dx", .operand = DX, .reference = ref_dx, .gradient_of = GRADIENT_OF(X)},
    {.name = "dweight",
     .operand = DWEIGHT,
     .reference = ref_dweight,
     .tolerance = column_tolerance,
     .stretch = 1,
     .gradient_of = GRADIENT_OF(WEIGHT)},
    {.name = "dbias",
     .operand = DBIAS,
     .reference = ref_dbias,
     .tolerance = column_tolerance,
     .stretch = 1,
     .gradient_of = GRADIENT_OF(BIAS)},
    {NULL}};

#define BOTH .fp32 = true, .bf16 = true, .shapes = model_shapes
#define FORWARD                                                                                                 \
    BOTH, .op = "norm forward", .entry = "norm_forward", .odd_shapes = odd_forward, .lay_out = forward_lay_out, \
          .fill = fill, .run = forward_run, .outputs = FORWARD_OUTPUTS, .alias = {{OUT, RESIDUAL, adds}}
#define BACKWARD                                                                                                    \
    BOTH, .op = "norm backward", .entry = "norm_backward", .odd_shapes = odd_backward, .lay_out = backward_lay_out, \
          .run = backward_run, .outputs = BACKWARD_OUTPUTS
static const OpKind KINDS[] = {{FORWARD, .variant = "layer"},
                               {FORWARD, .variant = "rms", .flags = RMS},
                               {FORWARD, .variant = "layer+residual", .flags = ADDS},
                               {FORWARD, .variant = "rms+residual", .flags = RMS | ADDS},
                               {BACKWARD, .variant = "layer", .forward = &KINDS[0]},
                               {BACKWARD, .variant = "rms", .flags = RMS, .forward = &KINDS[1]}};
const OpFamily OPS_NORM = OP_FAMILY(KINDS);
