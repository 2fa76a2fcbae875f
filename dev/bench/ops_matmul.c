// ops_matmul.c: the three products of every linear layer, plain and with the epilogues that training asks for, and
// the column sums that are a bias gradient. Shapes are out's rows, out's columns, and the inner dimension.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/registry.h"

// What the shape's flags ask of MatmulArgs.
#define TRANS_A 1u
#define TRANS_B 2u
#define BIAS 4u
#define RESIDUAL 8u     // add another tensor of out's shape
#define GELU 16u        // the activation, with its input saved
#define GELU_GRAD 32u   // times the derivative at a saved input
#define ACCUMULATE 64u  // out += ...
#define SUMS 128u       // the bias gradient beside dW
#define FORWARD TRANS_B
#define DX 0u
#define DW TRANS_A

enum { OUT, A, B, BIAS_OR_SUMS, EXTRA };  // EXTRA: residual, or the saved input of the activation

typedef struct {
    const char *name;
    int64_t out, in;
    unsigned forward, dx, dw;  // epilogues in training
} Layer;

static int model_layers(Layer layers[5], const ModelConfig *m) {
    bool gelu = m->activation == ACT_GELU;
    unsigned sums = ACCUMULATE | SUMS;
    Layer all[5] = {
        {"qkv", model_config_qkv_width(m), m->C, m->qkv_bias ? BIAS : 0, 0, m->qkv_bias ? sums : ACCUMULATE},
        {"attn_proj", m->C, m->NH * m->HS, RESIDUAL | (m->proj_bias ? BIAS : 0), 0, m->proj_bias ? sums : ACCUMULATE},
        {"fc", gelu ? m->F : 2 * m->F, m->C, (m->mlp_bias ? BIAS : 0) | (gelu ? GELU : 0), 0,
         m->mlp_bias ? sums : ACCUMULATE},
        {"proj", m->C, m->F, RESIDUAL | (m->mlp_bias ? BIAS : 0), gelu ? GELU_GRAD : 0,
         m->mlp_bias ? sums : ACCUMULATE},
        {"head", m->Vp, m->C, 0, 0, ACCUMULATE},
    };
    memcpy(layers, all, sizeof all);
    return 5;
}

static void add_layers(OpShapes *shapes, const OpScale *scale, const OpModel *model, unsigned product, bool fused) {
    Layer layers[5];
    int count = model_layers(layers, &model->config);
    for (int i = 0; i < count; ++i) {
        const Layer *l = &layers[i];
        int64_t rows = strcmp(l->name, "head") == 0 ? scale->head_rows : scale->rows;
        unsigned epilogue = product == FORWARD ? l->forward : product == DX ? l->dx : l->dw;
        if (fused && epilogue == 0) continue;
        unsigned flags = product | (fused ? epilogue : 0);
        if (product == FORWARD) op_add(shapes, OP_DIMS(rows, l->out, l->in), flags, "%s %s", model->name, l->name);
        if (product == DX) op_add(shapes, OP_DIMS(rows, l->in, l->out), flags, "%s %s", model->name, l->name);
        if (product == DW) op_add(shapes, OP_DIMS(l->out, l->in, rows), flags, "%s %s", model->name, l->name);
    }
}

static void forward_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model != NULL) {
        add_layers(shapes, scale, model, FORWARD, false);
        return;
    }
    op_add(shapes, OP_DIMS(min_i64(scale->rows, 256), 3072, 768), FORWARD, "256 rows");
    op_add(shapes, OP_DIMS(min_i64(scale->rows, 2048), 1152, 384), FORWARD, "C=384");
    op_add(shapes, OP_DIMS(1, 3072, 768), FORWARD, "decode fc, 1 row");
    if (scale->rows >= 1021) op_add(shapes, OP_DIMS(1021, 1019, 509), FORWARD, "awkward");
    op_add(shapes, OP_DIMS(33, 65, 129), FORWARD, "awkward");
}
static void forward_fused_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model != NULL) add_layers(shapes, scale, model, FORWARD, true);
}
static void dx_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model != NULL) add_layers(shapes, scale, model, DX, false);
    else op_add(shapes, OP_DIMS(min_i64(scale->rows, 1021), 509, 1019), DX, "awkward");
}
static void dx_fused_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model != NULL) add_layers(shapes, scale, model, DX, true);
}
static void dw_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model != NULL) add_layers(shapes, scale, model, DW, false);
    else op_add(shapes, OP_DIMS(1019, 509, min_i64(scale->rows, 1021)), DW, "awkward");
}
static void dw_fused_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model != NULL) add_layers(shapes, scale, model, DW, true);
}

static void matmul_lay_out(OpCall *call) {
    const OpShape *s = &call->c->shape;
    int64_t M = s->dim[0], N = s->dim[1], K = s->dim[2];
    unsigned f = s->flags;
    DType dtype = call->c->dtype, out = f & TRANS_A ? DTYPE_F32 : dtype;  // gradients of parameters are fp32
    op_operand(call, f & ACCUMULATE ? OP_READ | OP_WRITE : OP_WRITE, FILL_NORMAL, 1, out, OP_DIMS(M, N));
    op_operand(call, OP_READ, FILL_NORMAL, 1, dtype, 2, f & TRANS_A ? (int64_t[]){K, M} : (int64_t[]){M, K});
    op_operand(call, OP_READ, FILL_NORMAL, 1, dtype, 2, f & TRANS_B ? (int64_t[]){N, K} : (int64_t[]){K, N});
    if (f & SUMS) op_operand(call, OP_READ | OP_WRITE, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(M));
    else op_operand(call, OP_READ, FILL_NORMAL, 1, dtype, OP_DIMS(f & BIAS ? N : 0));
    bool extra = f & (RESIDUAL | GELU | GELU_GRAD);
    op_operand(call, f & GELU ? OP_WRITE : OP_READ, FILL_NORMAL, 1, out, OP_DIMS(extra ? M : 0, N));
}

// Scaled so that sums of K products stay where activations bend.
static float matmul_alpha(const OpShape *s) {
    return s->flags & (GELU | GELU_GRAD) ? 1.0f / sqrtf((float)s->dim[2]) : 1.0f;
}

static MatmulArgs matmul_args(const OpCase *c, const Tensor *t) {
    unsigned f = c->shape.flags;
    MatmulArgs args = {.trans_a = f & TRANS_A, .trans_b = f & TRANS_B, .alpha = matmul_alpha(&c->shape), .beta = 1};
    args.add = f & ACCUMULATE ? t[OUT] : f & RESIDUAL ? t[EXTRA] : TENSOR_NONE;
    if (f & BIAS) args.bias = t[BIAS_OR_SUMS];
    if (f & SUMS) args.sums = t[BIAS_OR_SUMS];
    args.accumulate_sums = f & SUMS;
    if (f & (GELU | GELU_GRAD)) args.pre = t[EXTRA];
    args.act = f & GELU ? ACT_GELU : ACT_NONE;
    args.act_grad = f & GELU_GRAD ? ACT_GELU : ACT_NONE;
    return args;
}
static void matmul_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->matmul(be, t[OUT], t[A], t[B], matmul_args(c, t));
}
static void matmul_fp8_run(Backend *be, const OpCase *c, const Tensor *t) {
    MatmulArgs args = matmul_args(c, t);
    args.fp8 = c->shape.flags & TRANS_B ? FP8_FORWARD : FP8_BACKWARD;
    be->matmul(be, t[OUT], t[A], t[B], args);
}

static double gelu(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
static double gelu_grad(double x) {
    double scale = sqrt(2 / M_PI), t = tanh(scale * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * scale * (1 + 3 * 0.044715 * x * x);
}

static double product_at(const OpCall *call, int64_t m, int64_t n, double *a, double *b) {
    const OpShape *s = &call->c->shape;
    int64_t M = s->dim[0], N = s->dim[1], K = s->dim[2];
    double sum = 0;
    if (s->flags & TRANS_A) op_values(call, A, m, M, K, a);
    else op_values(call, A, m * K, 1, K, a);
    if (s->flags & TRANS_B) op_values(call, B, n * K, 1, K, b);
    else op_values(call, B, n, N, K, b);
    for (int64_t k = 0; k < K; ++k) sum += a[k] * b[k];
    return sum;
}

#define ROWS 4
#define COLUMNS 48
static void check_products(OpCall *call, OpCheck *check, double tolerance) {
    const OpShape *s = &call->c->shape;
    int64_t M = s->dim[0], N = s->dim[1], K = s->dim[2], rows[OP_SAMPLES], columns[OP_SAMPLES];
    int row_count = op_sample(rows, M, ROWS), column_count = op_sample(columns, N, COLUMNS);
    int count = row_count * column_count;
    double out[ROWS * COLUMNS], ref[ROWS * COLUMNS], pre[ROWS * COLUMNS], pre_ref[ROWS * COLUMNS];
    double alpha = (double)matmul_alpha(s);
#pragma omp parallel
    {
        double *a = xmalloc(to_size(K) * sizeof *a), *b = xmalloc(to_size(K) * sizeof *b);
#pragma omp for
        for (int i = 0; i < count; ++i) {
            int64_t m = rows[i / column_count], n = columns[i % column_count], at = m * N + n;
            double acc = alpha * product_at(call, m, n, a, b);
            if (s->flags & ACCUMULATE) acc += op_value(call, OUT, at);
            if (s->flags & RESIDUAL) acc += op_value(call, EXTRA, at);
            if (s->flags & BIAS) acc += op_value(call, BIAS_OR_SUMS, n);
            pre_ref[i] = acc;
            if (s->flags & GELU) acc = gelu(acc);
            if (s->flags & GELU_GRAD) acc *= gelu_grad(op_value(call, EXTRA, at));
            ref[i] = acc;
        }
        free(a);
        free(b);
    }
    double *row = xmalloc(to_size(N) * sizeof *row);
    for (int r = 0; r < row_count; ++r) {
        op_download(call, OUT, rows[r] * N, N, row);
        for (int i = 0; i < column_count; ++i) out[r * column_count + i] = row[columns[i]];
        if (!(s->flags & GELU)) continue;
        op_download(call, EXTRA, rows[r] * N, N, row);
        for (int i = 0; i < column_count; ++i) pre[r * column_count + i] = row[columns[i]];
    }
    free(row);
    op_compare(check, "out", out, ref, count, tolerance);
    if (s->flags & GELU) op_compare(check, "pre", pre, pre_ref, count, tolerance);
}

static void check_sums(OpCall *call, OpCheck *check) {
    const OpShape *s = &call->c->shape;
    int64_t M = s->dim[0], K = s->dim[2], at[OP_SAMPLES];
    int count = op_sample(at, M, 8);
    double out[OP_SAMPLES], ref[OP_SAMPLES], *column = xmalloc(to_size(K) * sizeof *column);
    for (int i = 0; i < count; ++i) {
        op_values(call, A, at[i], M, K, column);
        ref[i] = op_value(call, BIAS_OR_SUMS, at[i]);
        for (int64_t k = 0; k < K; ++k) ref[i] += column[k];
        op_download(call, BIAS_OR_SUMS, at[i], 1, &out[i]);
    }
    free(column);
    // A sum of K numbers near 1 is about sqrt(K): each addition rounds it by half a unit.
    op_compare(check, "sums", out, ref, count, 0x1p-24 * (sqrt((double)K) + 16));
}

// Rounding errors of an fp32 sum of K products of N(0,1) add up to about eps * sqrt(K/2) of the result, and a few eps
// for the epilogue; bf16 rounds once more on store.
static void matmul_check(OpCall *call, OpCheck *check) {
    double sum = 0x1p-24 * (sqrt((double)call->c->shape.dim[2]) + 16);
    bool narrow = call->operand[OUT].shape.dtype == DTYPE_BF16;
    check_products(call, check, sum + (narrow ? 0x1p-8 : 0));
    if (call->c->shape.flags & SUMS) check_sums(call, check);
}
// E4M3 keeps 3 bits after the leading one: rounding moves a number by 2.6 % in the mean square, E5M2 by 5.2 %. Errors
// of K products average out as the sum does, so that the same share remains: 3.7 % forward, 5.8 % backward; a third
// more is allowed.
static void matmul_fp8_check(OpCall *call, OpCheck *check) {
    check_products(call, check, call->c->shape.flags & TRANS_B ? 0.05 : 0.08);
}

static double matmul_flops(const OpShape *s) { return 2 * (double)s->dim[0] * (double)s->dim[1] * (double)s->dim[2]; }

// ---- bias gradient alone ----

static void bias_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model != NULL && model->config.mlp_bias)
        op_add(shapes, OP_DIMS(scale->rows, model->config.F), 0, "%s fc", model->name);
    if (model == NULL) op_add(shapes, OP_DIMS(min_i64(scale->rows, 1021), 1019), 0, "awkward");
}
static void bias_lay_out(OpCall *call) {
    const int64_t *d = call->c->shape.dim;
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(d[1]));
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[0], d[1]));
}
static void bias_run(Backend *be, const OpCase *c, const Tensor *t) {
    (void)c;
    be->bias_backward(be, t[0], t[1], false);
}
static void bias_check(OpCall *call, OpCheck *check) {
    int64_t N = call->c->shape.dim[0], C = call->c->shape.dim[1], at[OP_SAMPLES];
    int count = op_sample(at, C, 16);
    double out[OP_SAMPLES], ref[OP_SAMPLES], *column = xmalloc(to_size(N) * sizeof *column);
    for (int i = 0; i < count; ++i) {
        op_values(call, 1, at[i], C, N, column);
        ref[i] = 0;
        for (int64_t n = 0; n < N; ++n) ref[i] += column[n];
        op_download(call, 0, at[i], 1, &out[i]);
    }
    free(column);
    op_compare(check, "dbias", out, ref, count, 0x1p-24 * (sqrt((double)N) + 16));
}

#define MATMUL(name, variant_name, shapes_function)                                                 \
    {                                                                                               \
        .op = name, .variant = variant_name, .fp32 = true, .bf16 = true, .shapes = shapes_function, \
        .lay_out = matmul_lay_out, .run = matmul_run, .check = matmul_check, .flops = matmul_flops  \
    }
#define MATMUL_FP8(name, shapes_function)                                                                     \
    {                                                                                                         \
        .op = name, .variant = "fp8", .bf16 = true, .gpu_only = true, .fp8 = true, .shapes = shapes_function, \
        .lay_out = matmul_lay_out, .run = matmul_fp8_run, .check = matmul_fp8_check, .flops = matmul_flops    \
    }
static const OpKind KINDS[] = {
    MATMUL("matmul forward", "plain", forward_shapes),
    MATMUL("matmul forward", "fused", forward_fused_shapes),
    MATMUL("matmul dX", "plain", dx_shapes),
    MATMUL("matmul dX", "fused", dx_fused_shapes),
    MATMUL("matmul dW", "plain", dw_shapes),
    MATMUL("matmul dW", "fused", dw_fused_shapes),
    MATMUL_FP8("matmul forward", forward_shapes),
    MATMUL_FP8("matmul dX", dx_shapes),
    MATMUL_FP8("matmul dW", dw_shapes),
    {.op = "bias backward",
     .variant = "plain",
     .fp32 = true,
     .bf16 = true,
     .shapes = bias_shapes,
     .lay_out = bias_lay_out,
     .run = bias_run,
     .check = bias_check},
};
const OpFamily OPS_MATMUL = OP_FAMILY(KINDS);
