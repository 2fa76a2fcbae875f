// matmul.c: the three matmuls of every linear layer, plain and with the epilogues of training. dim: out's rows, out's
// columns, the inner dimension and, for odd shapes, the batch size.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/cases/cases.h"

// Flags of a shape: fields of MatmulArgs. (peer_ops_pytorch.py uses BIAS, RESIDUAL and GELU.)
#define TRANS_A 1u
#define TRANS_B 2u
#define BIAS 4u
#define RESIDUAL 8u     // add another tensor of out's shape
#define GELU 16u        // the activation, with its input saved
#define GELU_GRAD 32u   // times the derivative at a saved input
#define ACCUMULATE 64u  // out += ...
#define SUMS 128u       // the bias gradient beside dW, with +=
#define NEW_SUMS 256u   // the same with =
#define NARROW 512u     // out has the inputs' dtype instead of fp32
#define WIDE 1024u      // out is fp32
#define RELU2 2048u
#define RELU2_GRAD 4096u
#define DROP_PRE 8192u        // the activation's input is not saved
#define HALF_RESIDUAL 16384u  // beta is -1/2
#define SCALED 32768u         // alpha keeps sums of K products where activations are curved
#define NEGATIVE 65536u       // and makes them negative
#define FORWARD TRANS_B
#define DX 0u
#define DW TRANS_A

enum { OUT, A, B, BIAS_OR_SUMS, EXTRA, PRE };  // EXTRA: the residual or the activation's input

// ---- shapes of models ----

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

// Adds the shapes of the kind's matmul, plain or with the epilogues of training.
static void layer_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model, bool fused) {
    unsigned product = op_adding_to(shapes)->flags;
    Layer layers[5];
    int count = model == NULL ? 0 : model_layers(layers, &model->config);
    for (int i = 0; i < count; ++i) {
        const Layer *l = &layers[i];
        int64_t rows = strcmp(l->name, "head") == 0 ? scale->head_rows : scale->rows;
        unsigned epilogue = product == FORWARD ? l->forward
                            : product == DX    ? l->dx
                                               : l->dw,
                 flags = fused ? epilogue : 0;
        if (fused && epilogue == 0) continue;
        if (product == FORWARD) op_add(shapes, OP_DIMS(rows, l->out, l->in), flags, "%s %s", model->name, l->name);
        if (product == DX) op_add(shapes, OP_DIMS(rows, l->in, l->out), flags, "%s %s", model->name, l->name);
        if (product == DW) op_add(shapes, OP_DIMS(l->out, l->in, rows), flags, "%s %s", model->name, l->name);
    }
}
static void fused_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    layer_shapes(shapes, scale, model, true);
}
static void plain_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    unsigned product = op_adding_to(shapes)->flags;
    int64_t rows = min_i64(scale->rows, 1021);
    layer_shapes(shapes, scale, model, false);
    if (model == NULL && product == DX) op_add(shapes, OP_DIMS(rows, 509, 1019), 0, "awkward");
    if (model == NULL && product == DW) op_add(shapes, OP_DIMS(1019, 509, rows), 0, "awkward");
    if (model != NULL || product != FORWARD) return;
    op_add(shapes, OP_DIMS(min_i64(scale->rows, 256), 3072, 768), 0, "256 rows");
    op_add(shapes, OP_DIMS(min_i64(scale->rows, 2048), 1152, 384), 0, "C=384");
    op_add(shapes, OP_DIMS(1, 3072, 768), 0, "decode fc, 1 row");
    if (rows == 1021) op_add(shapes, OP_DIMS(rows, 1019, 509), 0, "awkward");
    op_add(shapes, OP_DIMS(33, 65, 129), 0, "awkward");
}

// ---- odd shapes ----

// In each dtype of inputs and output: fp32, bf16, and bf16 to fp32.
static void add_odd(OpShapes *shapes, int64_t M, int64_t N, int64_t K, unsigned flags, const char *label) {
    op_add(shapes, OP_DIMS(M, N, K), flags | NARROW, "%s", label);
    if (op_adding_bf16(shapes)) op_add(shapes, OP_DIMS(M, N, K), flags | WIDE, "%s", label);
}
// Remainders of rows, vectors and tiles; sizes around every boundary; few rows (1..7), odd and tiny K. With K = 0 the
// product is zero and the epilogue still runs; without rows or columns nothing runs.
static void odd_plain(OpShapes *shapes) {
    static const int64_t ODD[][3] = {
        {1, 1, 1},   {1, 100, 33}, {2, 17, 64},   {3, 5, 7},   {4, 47, 31},  {5, 49, 2},     {6, 33, 129},
        {7, 48, 16}, {8, 48, 32},  {9, 95, 17},   {16, 16, 1}, {17, 32, 65}, {31, 97, 15},   {33, 144, 3},
        {40, 1, 50}, {65, 63, 5},  {100, 24, 40}, {12, 8, 9},  {96, 96, 96}, {49, 192, 100}, {64, 128, 96}};
    for (size_t i = 0; i < sizeof ODD / sizeof ODD[0]; ++i)
        for (unsigned trans = 0; trans < 4; ++trans) add_odd(shapes, ODD[i][0], ODD[i][1], ODD[i][2], trans, "odd");
    add_odd(shapes, 9, 50, 0, RESIDUAL | HALF_RESIDUAL | BIAS, "empty");
    add_odd(shapes, 2, 50, 0, TRANS_B, "empty");
    add_odd(shapes, 0, 50, 8, ACCUMULATE, "empty");
    add_odd(shapes, 9, 0, 8, 0, "empty");
}
// Every epilogue; then shapes with more than one block of K, rows and columns at every level. K is odd, so that the
// last bf16 pair is incomplete. The last shapes are divided among threads in every way.
static void odd_fused(OpShapes *shapes) {
    static const unsigned ACTS[] = {0, GELU, GELU | DROP_PRE, RELU2, GELU_GRAD, RELU2_GRAD};
    static const unsigned ADDS[] = {0, RESIDUAL | HALF_RESIDUAL, ACCUMULATE};
    static const int64_t THREADED[][3] = {{100, 100, 30}, {600, 20, 20}, {5, 700, 50}, {20, 24, 1700}};
    for (unsigned act = 0; act < 6; ++act)
        for (unsigned option = 0; option < 12; ++option) {
            unsigned flags =
                SCALED | (option & 1 ? NEGATIVE : 0) | (option & 2 ? BIAS : 0) | ADDS[option / 4] | ACTS[act];
            add_odd(shapes, 13, 53, 37, flags, "epilogue");
            add_odd(shapes, 3, 37, 33, flags | TRANS_B, "epilogue");
        }
    add_odd(shapes, 5, 1030, 1539, TRANS_A | TRANS_B | ACCUMULATE, "blocks");
    add_odd(shapes, 530, 7, 1539, BIAS | GELU | SCALED, "blocks");
    add_odd(shapes, 17, 9, 1539, RESIDUAL | HALF_RESIDUAL | GELU_GRAD | SCALED, "blocks");
    add_odd(shapes, 520, 50, 9, TRANS_A | RESIDUAL | HALF_RESIDUAL, "blocks");
    add_odd(shapes, 3, 20, 3001, TRANS_B | ACCUMULATE, "blocks");
    for (unsigned i = 0; i < 16; ++i)
        add_odd(shapes, THREADED[i / 4][0], THREADED[i / 4][1], THREADED[i / 4][2],
                i % 4 | RESIDUAL | HALF_RESIDUAL | BIAS | GELU | SCALED, "threads");
}
// One call computes the gradients of a linear layer's weight and bias. Each is overwritten by the first micro-batch
// and added to by the later ones, independently of the other.
static void odd_sums(OpShapes *shapes) {
    static const int64_t ODD[][3] = {{24, 16, 40}, {13, 7, 33}, {1, 5, 3}, {130, 3, 600}};
    for (size_t i = 0; i < sizeof ODD / sizeof ODD[0]; ++i)
        for (unsigned option = 0; option < 4; ++option)
            op_add(shapes, 3, ODD[i], TRANS_A | SUMS | (option & 1 ? ACCUMULATE : 0) | (option & 2 ? NEW_SUMS : 0),
                   "sums");
}
static void odd_batch(OpShapes *shapes) {
    static const unsigned ADDS[] = {0, RESIDUAL | HALF_RESIDUAL, ACCUMULATE};
    for (unsigned i = 0; i < 12; ++i) {
        unsigned flags = i % 4 | ADDS[i / 4] | SCALED;
        op_add(shapes, OP_DIMS(10, 12, 17, 3), flags | NARROW, "batch");
        if (op_adding_bf16(shapes)) op_add(shapes, OP_DIMS(10, 12, 17, 3), flags | WIDE, "batch");
    }
}
// The three matmuls of a linear layer with 8-bit inputs: K not a multiple of 16, transposed and plain inputs,
// remainders of the transposing tile, each epilogue, sums.
static const int64_t ODD_FP8[][3] = {{32, 48, 64}, {5, 16, 40}, {33, 80, 7}, {130, 144, 150}, {1, 16, 16}};
static void odd_fp8(OpShapes *shapes) {
    static const unsigned EPILOGUES[3][5] = {
        {SCALED, BIAS | RESIDUAL | HALF_RESIDUAL | SCALED, BIAS | GELU, BIAS | RELU2 | SCALED, BIAS},
        {0, GELU_GRAD, RELU2_GRAD, SCALED, RELU2_GRAD | SCALED},
        {0, ACCUMULATE, SUMS, SUMS | NEW_SUMS, SUMS | ACCUMULATE}};
    unsigned product = op_adding_to(shapes)->flags;
    const unsigned *epilogues = EPILOGUES[product == FORWARD ? 0 : product == DX ? 1 : 2];
    for (unsigned i = 0; i < 25; ++i) op_add(shapes, 3, ODD_FP8[i / 5], epilogues[i % 5], "odd");
}

// ---- operands and calls ----

static int64_t batch_of(const OpShape *s) { return s->dims == 4 ? s->dim[3] : 0; }
static bool has_activation(unsigned f) { return f & (GELU | RELU2 | GELU_GRAD | RELU2_GRAD); }
static bool reads_pre(unsigned f) { return f & (GELU_GRAD | RELU2_GRAD); }
static bool saves_pre(unsigned f) { return f & (GELU | RELU2) && !(f & DROP_PRE); }
// The activation's input uses PRE if EXTRA is the residual.
static int pre_of(unsigned f) { return f & RESIDUAL ? PRE : EXTRA; }

static void matrix(OpCall *call, unsigned access, DType dtype, bool there, int64_t rows, int64_t columns) {
    int64_t batch = batch_of(&call->c->shape);
    if (!there) op_operand(call, access, FILL_NORMAL, 1, dtype, OP_DIMS(0, columns));
    else if (batch > 0) op_operand(call, access, FILL_NORMAL, 1, dtype, OP_DIMS(batch, rows, columns));
    else op_operand(call, access, FILL_NORMAL, 1, dtype, OP_DIMS(rows, columns));
}
static void lay_out(OpCall *call) {
    const OpShape *s = &call->c->shape;
    int64_t M = s->dim[0], N = s->dim[1], K = s->dim[2];
    unsigned f = s->flags;
    DType dtype = call->c->dtype;  // gradients of parameters are fp32
    DType out = f & WIDE || (f & TRANS_A && !(f & NARROW)) ? DTYPE_F32 : dtype;
    unsigned sums = f & NEW_SUMS ? OP_WRITE : OP_READ | OP_WRITE, pre = saves_pre(f) ? OP_WRITE : OP_READ;
    matrix(call, f & ACCUMULATE ? OP_READ | OP_WRITE : OP_WRITE, out, true, M, N);
    matrix(call, OP_READ, dtype, true, f & TRANS_A ? K : M, f & TRANS_A ? M : K);
    matrix(call, OP_READ, dtype, true, f & TRANS_B ? N : K, f & TRANS_B ? K : N);
    if (f & SUMS) op_operand(call, sums, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(M));
    else op_operand(call, OP_READ, FILL_NORMAL, 1, dtype, OP_DIMS(f & BIAS ? N : 0));
    bool has_pre = saves_pre(f) || reads_pre(f), both = has_pre && f & RESIDUAL;
    matrix(call, f & RESIDUAL ? OP_READ : pre, out, has_pre || f & RESIDUAL, M, N);
    matrix(call, pre, out, both, M, N);
}

static float alpha_of(const OpShape *s) {
    bool scaled = s->flags & (GELU | GELU_GRAD | SCALED);
    float alpha = scaled ? 1.0f / sqrtf((float)max_i64(1, s->dim[2])) : 1.0f;
    return s->flags & NEGATIVE ? -2 * alpha : alpha;
}
static float beta_of(unsigned f) { return f & HALF_RESIDUAL ? -0.5f : 1.0f; }
static Activation act_of(unsigned f) { return f & GELU ? ACT_GELU : f & RELU2 ? ACT_RELU2 : ACT_NONE; }
static Activation act_grad_of(unsigned f) { return f & GELU_GRAD ? ACT_GELU : f & RELU2_GRAD ? ACT_RELU2 : ACT_NONE; }

static void run(Backend *be, const OpCase *c, const Tensor *t) {
    unsigned f = c->shape.flags;
    MatmulArgs args = {
        .trans_a = f & TRANS_A, .trans_b = f & TRANS_B, .alpha = alpha_of(&c->shape), .beta = beta_of(f)};
    args.add = f & ACCUMULATE ? t[OUT] : f & RESIDUAL ? t[EXTRA] : TENSOR_NONE;
    if (f & BIAS) args.bias = t[BIAS_OR_SUMS];
    if (f & SUMS) args.sums = t[BIAS_OR_SUMS];
    args.accumulate_sums = f & SUMS && !(f & NEW_SUMS);
    if (saves_pre(f) || reads_pre(f)) args.pre = t[pre_of(f)];
    args.act = act_of(f);
    args.act_grad = act_grad_of(f);
    if (c->kind->fp8) args.fp8 = f & TRANS_A || !(f & TRANS_B) ? FP8_BACKWARD : FP8_FORWARD;
    be->matmul(be, t[OUT], t[A], t[B], args);
}

// ---- references ----

// The result before the activation: columns [n, n + count) of row m of batch entry g.
static void ref_sum(const OpCall *call, int64_t first, int64_t count, double *ref) {
    const OpShape *s = &call->c->shape;
    int64_t M = s->dim[0], N = s->dim[1], K = s->dim[2], n = first % N, m = first / N % M, g = first / N / M;
    unsigned f = s->flags;
    double *buffer = xmalloc(to_size(2 * K + count) * sizeof *buffer), *row = buffer + K, alpha = (double)alpha_of(s);
    const double *a = f & TRANS_A ? buffer : op_row(call, A, (g * M + m) * K, K, buffer);
    for (int64_t k = 0; k < K && f & TRANS_A; ++k) buffer[k] = op_value(call, A, (g * K + k) * M + m);
    for (int64_t i = 0; i < count; ++i) ref[i] = 0;
    for (int64_t i = 0; i < count && f & TRANS_B; ++i) {
        const double *b = op_row(call, B, (g * N + n + i) * K, K, row);
        for (int64_t k = 0; k < K; ++k) ref[i] += a[k] * b[k];
    }
    for (int64_t k = 0; k < K && !(f & TRANS_B); ++k) {
        const double *b = op_row(call, B, (g * K + k) * N + n, count, row);
        for (int64_t i = 0; i < count; ++i) ref[i] += a[k] * b[i];
    }
    for (int64_t i = 0; i < count; ++i) {
        ref[i] *= alpha;
        if (f & ACCUMULATE) ref[i] += (double)beta_of(f) * op_value(call, OUT, first + i);
        else if (f & RESIDUAL) ref[i] += (double)beta_of(f) * op_value(call, EXTRA, first + i);
        if (f & BIAS) ref[i] += op_value(call, BIAS_OR_SUMS, n + i);
    }
    free(buffer);
}
static void ref_out(const OpCall *call, int64_t first, int64_t count, double *ref) {
    unsigned f = call->c->shape.flags;
    double dx, dup;
    ref_sum(call, first, count, ref);
    for (int64_t i = 0; i < count && has_activation(f); ++i) {
        ref[i] = op_activation(act_of(f), ref[i], 0, &dx, &dup);
        if (!reads_pre(f)) continue;
        op_activation(act_grad_of(f), op_value(call, pre_of(f), first + i), 0, &dx, &dup);
        ref[i] *= dx;
    }
}
static void ref_sums(const OpCall *call, int64_t first, int64_t count, double *ref) {
    int64_t M = call->c->shape.dim[0], K = call->c->shape.dim[2];
    double *a = xmalloc(to_size(K * count + 1) * sizeof *a);
    for (int64_t k = 0; k < K; ++k)  // values on the device: the sums use 8-bit inputs before rounding
        if (call->c->kind->fp8) op_download(call, A, k * M + first, count, a + k * count);
        else memcpy(a + k * count, op_row(call, A, k * M + first, count, a + k * count), to_size(count) * sizeof *a);
    for (int64_t i = 0; i < count; ++i) {
        ref[i] = call->c->shape.flags & NEW_SUMS ? 0 : op_value(call, BIAS_OR_SUMS, first + i);
        for (int64_t k = 0; k < K; ++k) ref[i] += a[k * count + i];
    }
    free(a);
}

static bool on_emulator(const OpCall *call) { return strcmp(call->be->name, "cudaemu") == 0; }
// An fp32 sum of K products of N(0,1) grows like sqrt(k) and is rounded at each step: the relative error is about
// eps * sqrt(K/2), plus a few eps for the epilogue.
static double sum_tolerance(const OpCall *call) {
    int64_t K = call->c->shape.dim[2];
    double sum = 0x1p-24 * (sqrt((double)K) + 16);
    // Products of 8-bit floats are exact, but tensor cores may keep their sums in as little as 14 bits.
    if (call->c->kind->fp8 && !on_emulator(call)) sum += 0x1p-11 * (1 + (double)K / 512);
    return sum;
}
// bf16 has 8 significant bits: the relative rounding error is up to 2^-8, and a matrix may be a single number. A
// backend may round to bf16 before an activation; ReLU^2 doubles a relative error, GELU keeps it.
static double out_tolerance(const OpCall *call) {
    unsigned f = call->c->shape.flags;
    double roundings = f & RELU2 ? 3 : has_activation(f) ? 2 : 1;
    return sum_tolerance(call) + (call->operand[OUT].shape.dtype == DTYPE_BF16 ? roundings * 0x1p-8 : 0);
}
static double pre_tolerance(const OpCall *call) {
    return sum_tolerance(call) + (call->operand[OUT].shape.dtype == DTYPE_BF16 ? 0x1p-8 : 0);
}
#define STRETCH 16
static const OpOutput OUTPUTS[] = {
    {.name = "out", .operand = OUT, .reference = ref_out, .tolerance = out_tolerance, .stretch = STRETCH},
    {.name = "pre", .operand = EXTRA, .reference = ref_sum, .tolerance = pre_tolerance, .stretch = STRETCH},
    {.name = "pre", .operand = PRE, .reference = ref_sum, .tolerance = pre_tolerance, .stretch = STRETCH},
    {.name = "sums", .operand = BIAS_OR_SUMS, .reference = ref_sums, .tolerance = sum_tolerance, .stretch = 1},
    {NULL}};

// ---- 8-bit inputs ----

// Rounds to `mantissa` bits after the leading one, ties to even, down to the smallest subnormal.
static double round_to(double x, int mantissa, int least_exponent) {
    if (x == 0) return 0;
    int exponent = 0;
    frexp(x, &exponent);  // |x| in [0.5, 1) * 2^exponent
    double unit = ldexp(1, (exponent - 1 > least_exponent ? exponent - 1 : least_exponent) - mantissa);
    return nearbyint(x / unit) * unit;
}
// Replaces the reference's inputs by the values that Backend.matmul rounds them to: scaled in fp32 so that the largest
// magnitude becomes the format's maximum, rounded to E4M3 (3 mantissa bits, least exponent -6, maximum 448) or E5M2
// (2, -14, 57344), scaled back.
static void round_inputs(OpCall *call) {
    unsigned f = call->c->shape.flags;
    for (int input = A; input <= B; ++input) {
        OpOperand *o = &call->operand[input];
        bool e5m2 = input == A && (f & TRANS_A || !(f & TRANS_B));
        float most = 0;
        for (int64_t i = 0; i < o->pattern_elems; ++i) most = fmaxf(most, fabsf((float)o->pattern[i]));
        const float scale = most > 0 ? (e5m2 ? 57344.0f : 448.0f) / most : 1.0f;
        for (int64_t i = 0; i < o->pattern_elems; ++i)
            o->pattern[i] =
                round_to((double)((float)o->pattern[i] * scale), e5m2 ? 2 : 3, e5m2 ? -14 : -6) / (double)scale;
    }
}

static double flops(const OpShape *s) { return 2 * (double)s->dim[0] * (double)s->dim[1] * (double)s->dim[2]; }

#define MATMUL .entry = "matmul", .bf16 = true, .lay_out = lay_out, .run = run, .outputs = OUTPUTS, .flops = flops
#define PLAIN MATMUL, .fp32 = true, .variant = "plain"
#define FUSED MATMUL, .fp32 = true, .variant = "fused", .shapes = fused_shapes
#define FP8                                                                                                  \
    MATMUL, .variant = "fp8", .gpu_only = true, .fp8 = true, .derive = round_inputs, .shapes = plain_shapes, \
            .odd_shapes = odd_fp8
static const OpKind KINDS[] = {
    {PLAIN, .op = "matmul forward", .shapes = plain_shapes, .flags = FORWARD},
    {FUSED, .op = "matmul forward", .flags = FORWARD},
    {PLAIN, .op = "matmul dX", .shapes = plain_shapes, .flags = DX},
    {FUSED, .op = "matmul dX", .flags = DX},
    {PLAIN, .op = "matmul dW", .shapes = plain_shapes, .flags = DW},
    {FUSED, .op = "matmul dW", .flags = DW, .odd_shapes = odd_sums},
    {FP8, .op = "matmul forward", .flags = FORWARD},
    {FP8, .op = "matmul dX", .flags = DX},
    {FP8, .op = "matmul dW", .flags = DW},
    {PLAIN, .op = "matmul", .odd_shapes = odd_plain},
    {MATMUL, .fp32 = true, .op = "matmul", .variant = "epilogues", .odd_shapes = odd_fused},
    {MATMUL, .fp32 = true, .op = "matmul", .variant = "batch", .odd_shapes = odd_batch}};
const OpFamily OPS_MATMUL = OP_FAMILY(KINDS);
