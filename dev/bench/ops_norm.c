// ops_norm.c: LayerNorm and RMSNorm over rows of activations, forward and backward. Both are bounded by memory.
#include <math.h>
#include <stdlib.h>

#include "dev/bench/registry.h"

#define EPS 1e-5f

// dim: N, C. The kinds of one norm differ by the flag.
#define RMS 1u
#define ADDS 2u  // a residual
enum { OUT, MEAN, RSTD, X, WEIGHT, BIAS, RESIDUAL };                           // forward
enum { DX, DWEIGHT, DBIAS, DOUT, BACK_X, BACK_WEIGHT, BACK_MEAN, BACK_RSTD };  // backward

static void add_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model, unsigned flags) {
    NormKind norm = flags & RMS ? NORM_RMS : NORM_LAYER;
    if (model != NULL && model->config.norm == norm)
        op_add(shapes, OP_DIMS(scale->rows, model->config.C), flags, "%s", model->name);
    if (model == NULL) {
        op_add(shapes, OP_DIMS(min_i64(scale->rows, 1021), 1019), flags, "awkward");
        op_add(shapes, OP_DIMS(min_i64(scale->rows, 64), 8192), flags, "few wide rows");
    }
}
static void layer_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    add_shapes(shapes, scale, model, 0);
}
static void rms_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    add_shapes(shapes, scale, model, RMS);
}
static void layer_adds_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    add_shapes(shapes, scale, model, ADDS);
}
static void rms_adds_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    add_shapes(shapes, scale, model, RMS | ADDS);
}
static bool adds(const OpCase *c) { return c->shape.flags & ADDS; }
static bool is_rms(const OpCase *c) { return c->shape.flags & RMS; }
static NormArgs norm_args(const OpCase *c) { return (NormArgs){.kind = is_rms(c) ? NORM_RMS : NORM_LAYER, .eps = EPS}; }
static Tensor unless_rms(const OpCase *c, Tensor t) { return is_rms(c) ? TENSOR_NONE : t; }

static void forward_lay_out(OpCall *call) {
    int64_t N = call->c->shape.dim[0], C = call->c->shape.dim[1], layer = is_rms(call->c) ? 0 : 1;
    DType dtype = call->c->dtype;
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, dtype, OP_DIMS(N, C));
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(layer * N));
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(N));
    op_operand(call, OP_READ, FILL_NORMAL, 1.5, dtype, OP_DIMS(N, C));
    op_operand(call, OP_READ, FILL_NORMAL, 1, dtype, OP_DIMS(C));
    op_operand(call, OP_READ, FILL_NORMAL, 1, dtype, OP_DIMS(layer * C));
    if (adds(call->c)) op_operand(call, OP_READ, FILL_NORMAL, 1, dtype, OP_DIMS(N, C));
}
static void forward_run(Backend *be, const OpCase *c, const Tensor *t) {
    NormArgs args = norm_args(c);
    if (adds(c)) args.residual = t[RESIDUAL];
    be->norm_forward(be, t[OUT], unless_rms(c, t[MEAN]), t[RSTD], t[X], t[WEIGHT], unless_rms(c, t[BIAS]), args);
}

// mean and rstd of row i of operand `x`, which goes to `row`.
static void row_statistics(const OpCall *call, int x, int64_t i, double *row, double *mean, double *rstd) {
    int64_t C = call->c->shape.dim[1];
    double squares = 0;
    *mean = 0;
    op_values(call, x, i * C, 1, C, row);
    for (int64_t c = 0; c < C && !is_rms(call->c); ++c) *mean += row[c] / (double)C;
    for (int64_t c = 0; c < C; ++c) squares += (row[c] - *mean) * (row[c] - *mean);
    *rstd = 1 / sqrt(squares / (double)C + (double)EPS);
}

static void forward_check(OpCall *call, OpCheck *check) {
    int64_t N = call->c->shape.dim[0], C = call->c->shape.dim[1], at[OP_SAMPLES];
    int count = op_sample(at, N, 8);
    double *out = xmalloc(to_size(C) * sizeof *out), *row = xmalloc(to_size(C) * sizeof *row), mean, rstd, got;
    for (int n = 0; n < count; ++n) {
        row_statistics(call, X, at[n], row, &mean, &rstd);
        for (int64_t c = 0; c < C; ++c) {
            double bias = is_rms(call->c) ? 0 : op_value(call, BIAS, c);
            row[c] = (row[c] - mean) * rstd * op_value(call, WEIGHT, c) + bias;
            if (adds(call->c)) row[c] += op_value(call, RESIDUAL, at[n] * C + c);
        }
        op_download(call, OUT, at[n] * C, C, out);
        op_compare(check, "out", out, row, C, op_tolerance(call->c->dtype));
        op_download(call, RSTD, at[n], 1, &got);
        op_compare(check, "rstd", &got, &rstd, 1, 2e-6);
    }
    free(out);
    free(row);
}

static void backward_lay_out(OpCall *call) {
    int64_t N = call->c->shape.dim[0], C = call->c->shape.dim[1], layer = is_rms(call->c) ? 0 : 1;
    DType dtype = call->c->dtype;
    op_operand(call, OP_READ | OP_WRITE, FILL_NORMAL, 1, dtype, OP_DIMS(N, C));
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(C));
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(layer * C));
    op_operand(call, OP_READ, FILL_NORMAL, 1, dtype, OP_DIMS(N, C));
    op_operand(call, OP_READ, FILL_NORMAL, 1.5, dtype, OP_DIMS(N, C));
    op_operand(call, OP_READ, FILL_NORMAL, 1, dtype, OP_DIMS(C));
    op_operand(call, OP_READ, FILL_DERIVED, 0, DTYPE_F32, OP_DIMS(layer * N));
    op_operand(call, OP_READ, FILL_DERIVED, 0, DTYPE_F32, OP_DIMS(N));
}
static void backward_derive(OpCall *call) {
    int64_t N = call->c->shape.dim[0], C = call->c->shape.dim[1];
    float *means = xmalloc(to_size(N) * sizeof *means), *rstds = xmalloc(to_size(N) * sizeof *rstds);
#pragma omp parallel
    {
        double *row = xmalloc(to_size(C) * sizeof *row), mean, rstd;
#pragma omp for
        for (int64_t i = 0; i < N; ++i) {
            row_statistics(call, BACK_X, i, row, &mean, &rstd);
            means[i] = (float)mean;
            rstds[i] = (float)rstd;
        }
        free(row);
    }
    const Tensor *t = call->t[0];
    call->be->upload(call->be, t[BACK_MEAN].data, means, tensor_bytes(t[BACK_MEAN]));
    call->be->upload(call->be, t[BACK_RSTD].data, rstds, tensor_bytes(t[BACK_RSTD]));
    free(means);
    free(rstds);
}
static void backward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->norm_backward(be, t[DX], t[DWEIGHT], unless_rms(c, t[DBIAS]), t[DOUT], t[BACK_X], t[BACK_WEIGHT],
                      unless_rms(c, t[BACK_MEAN]), t[BACK_RSTD], true, false, norm_args(c));
}

static void check_dx(OpCall *call, OpCheck *check) {
    int64_t N = call->c->shape.dim[0], C = call->c->shape.dim[1], at[OP_SAMPLES];
    int count = op_sample(at, N, 8);
    double *out = xmalloc(to_size(C) * sizeof *out), *x = xmalloc(to_size(C) * sizeof *x), mean, rstd;
    for (int n = 0; n < count; ++n) {
        row_statistics(call, BACK_X, at[n], x, &mean, &rstd);
        double sum = 0, sum_x = 0;
        for (int64_t c = 0; c < C; ++c) {
            double g = op_value(call, DOUT, at[n] * C + c) * op_value(call, BACK_WEIGHT, c);
            sum += is_rms(call->c) ? 0 : g / (double)C;
            sum_x += g * (x[c] - mean) * rstd / (double)C;
        }
        for (int64_t c = 0; c < C; ++c) {
            double g = op_value(call, DOUT, at[n] * C + c) * op_value(call, BACK_WEIGHT, c);
            x[c] = op_value(call, DX, at[n] * C + c) + rstd * (g - sum - (x[c] - mean) * rstd * sum_x);
        }
        op_download(call, DX, at[n] * C, C, out);
        op_compare(check, "dx", out, x, C, op_tolerance(call->c->dtype));
    }
    free(out);
    free(x);
}
static void backward_check(OpCall *call, OpCheck *check) {
    int64_t N = call->c->shape.dim[0], C = call->c->shape.dim[1], at[OP_SAMPLES];
    check_dx(call, check);
    // Columns of the weight's gradient need every row's statistics, which derive has put there.
    int count = op_sample(at, C, 16);
    double *x = xmalloc(to_size(N) * sizeof *x), *dout = xmalloc(to_size(N) * sizeof *dout);
    double *mean = xcalloc(to_size(N), sizeof *mean), *rstd = xmalloc(to_size(N) * sizeof *rstd);
    double dweight[OP_SAMPLES], dbias[OP_SAMPLES], weight_ref[OP_SAMPLES] = {0}, bias_ref[OP_SAMPLES] = {0};
    if (!is_rms(call->c)) op_download(call, BACK_MEAN, 0, N, mean);
    op_download(call, BACK_RSTD, 0, N, rstd);
    for (int n = 0; n < count; ++n) {
        op_values(call, BACK_X, at[n], C, N, x);
        op_values(call, DOUT, at[n], C, N, dout);
        for (int64_t i = 0; i < N; ++i) {
            weight_ref[n] += dout[i] * (x[i] - mean[i]) * rstd[i];
            bias_ref[n] += dout[i];
        }
        op_download(call, DWEIGHT, at[n], 1, &dweight[n]);
        if (!is_rms(call->c)) op_download(call, DBIAS, at[n], 1, &dbias[n]);
    }
    // Sums of N numbers near 1, rounded at each addition, and a few units for each of them.
    double tolerance = 0x1p-24 * (sqrt((double)N) + 32);
    op_compare(check, "dweight", dweight, weight_ref, count, tolerance);
    if (!is_rms(call->c)) op_compare(check, "dbias", dbias, bias_ref, count, tolerance);
    free(x);
    free(dout);
    free(mean);
    free(rstd);
}

#define FORWARD                                                                                       \
    .op = "norm forward", .fp32 = true, .bf16 = true, .lay_out = forward_lay_out, .run = forward_run, \
    .check = forward_check
#define BACKWARD                                                                                               \
    .op = "norm backward", .fp32 = true, .bf16 = true, .lay_out = backward_lay_out, .derive = backward_derive, \
    .run = backward_run, .check = backward_check
static const OpKind KINDS[] = {
    {FORWARD, .variant = "layer", .shapes = layer_shapes},
    {FORWARD, .variant = "rms", .shapes = rms_shapes},
    {FORWARD, .variant = "layer+residual", .shapes = layer_adds_shapes},
    {FORWARD, .variant = "rms+residual", .shapes = rms_adds_shapes},
    {BACKWARD, .variant = "layer", .shapes = layer_shapes},
    {BACKWARD, .variant = "rms", .shapes = rms_shapes},
};
const OpFamily OPS_NORM = OP_FAMILY(KINDS);
