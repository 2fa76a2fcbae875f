// test_gemm.c: Backend.matmul against a naive reference in double: every transpose, dtype and epilogue option, shapes
// that leave every kind of remainder, several blocks of K, few rows, nothing at all, and NaN.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/op_test.h"

typedef enum { ADD_NONE, ADD_OTHER, ADD_OUT } AddMode;

typedef struct {
    int64_t M, N, K;
    bool trans_a, trans_b;
    DType in, out;
    float alpha;  // 0 here stands for 1
    AddMode add;
    bool bias, save_pre;
    Activation act, act_grad;
    Fp8Role fp8;
} Case;

typedef struct {
    Tensor a, b, out, add, bias, pre;
    double *ref, *ref_pre;  // ref_pre: NULL unless the operation writes pre
    MatmulArgs args;
} Operands;

static const DType DTYPES[][2] = {{DTYPE_F32, DTYPE_F32}, {DTYPE_BF16, DTYPE_BF16}, {DTYPE_BF16, DTYPE_F32}};
#define DTYPES_COUNT (sizeof DTYPES / sizeof DTYPES[0])

static double gelu(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
static double gelu_grad(double x) {
    double scale = sqrt(2 / M_PI), t = tanh(scale * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * scale * (1 + 3 * 0.044715 * x * x);
}

static Tensor random_2d(OpTest *t, DType dtype, int64_t rows, int64_t cols) {
    return op_test_random(t, dtype, 2, (int64_t[]){rows, cols}, 1.0);
}

static Tensor batch_entry(Tensor batch, int64_t g) {
    if (tensor_is_none(batch)) return batch;
    Tensor rows = tensor_rows(batch, g, 1);
    return tensor_2d(rows.data, rows.dtype, rows.dim[1], rows.dim[2]);
}

static bool on_emulator(void) {
    const char *device = getenv("TOKAMAK_TEST_DEVICE");
    return device != NULL && strcmp(device, "cudaemu") == 0;
}

static double *transposed(OpTest *t, const double *x, int64_t rows, int64_t cols) {
    double *out = op_test_doubles(t, rows * cols);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j) out[j * rows + i] = x[i * cols + j];
    return out;
}

// The nearest number with `mantissa` bits after the first, ties to even, down to the smallest subnormal.
static double round_to(double x, int mantissa, int least_exponent) {
    if (x == 0) return 0;
    int exponent = 0;
    frexp(x, &exponent);  // |x| in [0.5, 1) * 2^exponent
    double unit = ldexp(1, (exponent - 1 > least_exponent ? exponent - 1 : least_exponent) - mantissa);
    return nearbyint(x / unit) * unit;
}
// What Backend.matmul rounds its inputs to: scaled in fp32 so that the largest magnitude becomes the format's largest
// number, rounded to E4M3 (three bits, least exponent -6, largest 448) or E5M2 (two, -14, 57344), scaled back.
static void round_to_fp8(double *x, int64_t elems, bool e5m2) {
    float most = 0;
    for (int64_t i = 0; i < elems; ++i) most = fmaxf(most, fabsf((float)x[i]));
    const float scale = most > 0 ? (e5m2 ? 57344.0f : 448.0f) / most : 1.0f;
    for (int64_t i = 0; i < elems; ++i)
        x[i] = round_to((double)((float)x[i] * scale), e5m2 ? 2 : 3, e5m2 ? -14 : -6) / (double)scale;
}

static void reference(OpTest *t, Operands *o, const Case *c) {
    double *a = op_test_host(t, o->a), *b = op_test_host(t, o->b);
    if (c->fp8 != FP8_NONE) {
        round_to_fp8(a, c->M * c->K, c->fp8 == FP8_BACKWARD);
        round_to_fp8(b, c->K * c->N, false);
    }
    if (c->trans_b) b = transposed(t, b, c->N, c->K);
    double *add = c->add == ADD_NONE ? NULL : op_test_host(t, o->args.add);
    double *bias = c->bias ? op_test_host(t, o->bias) : NULL;
    double *pre = c->act_grad != ACT_NONE ? op_test_host(t, o->pre) : NULL;
    o->ref = op_test_doubles(t, c->M * c->N);
    if (c->save_pre) o->ref_pre = op_test_doubles(t, c->M * c->N);
    for (int64_t m = 0; m < c->M; ++m) {
        double *row = o->ref + m * c->N;
        for (int64_t k = 0; k < c->K; ++k) {
            double x = c->trans_a ? a[k * c->M + m] : a[m * c->K + k];
            for (int64_t n = 0; n < c->N; ++n) row[n] += x * b[k * c->N + n];
        }
        for (int64_t n = 0; n < c->N; ++n) {
            int64_t at = m * c->N + n;
            double acc = o->args.alpha * row[n] + (add ? o->args.beta * add[at] : 0) + (bias ? bias[n] : 0);
            if (c->save_pre) o->ref_pre[at] = acc;
            if (c->act == ACT_GELU) acc = gelu(acc);
            if (c->act == ACT_RELU2) acc = acc > 0 ? acc * acc : 0;
            if (c->act_grad == ACT_GELU) acc *= gelu_grad(pre[at]);
            if (c->act_grad == ACT_RELU2) acc *= pre[at] > 0 ? 2 * pre[at] : 0;
            row[n] = acc;
        }
    }
}

static Operands operands(OpTest *t, const Case *c) {
    Operands o = {.add = TENSOR_NONE, .bias = TENSOR_NONE, .pre = TENSOR_NONE};
    o.a = random_2d(t, c->in, c->trans_a ? c->K : c->M, c->trans_a ? c->M : c->K);
    o.b = random_2d(t, c->in, c->trans_b ? c->N : c->K, c->trans_b ? c->K : c->N);
    o.out = c->add == ADD_OUT ? random_2d(t, c->out, c->M, c->N)
                              : op_test_tensor(t, c->out, 2, (int64_t[]){c->M, c->N});
    if (c->add == ADD_OTHER) o.add = random_2d(t, c->out, c->M, c->N);
    if (c->add == ADD_OUT) o.add = o.out;
    if (c->bias) o.bias = op_test_random(t, c->in, 1, (int64_t[]){c->N}, 1.0);
    if (c->save_pre) o.pre = op_test_tensor(t, c->out, 2, (int64_t[]){c->M, c->N});
    if (c->act_grad != ACT_NONE) o.pre = random_2d(t, c->out, c->M, c->N);
    o.args = (MatmulArgs){.trans_a = c->trans_a, .trans_b = c->trans_b, .alpha = c->alpha != 0 ? c->alpha : 1.0f,
                          .beta = c->add == ADD_OTHER ? -0.5f : 1.0f, .add = o.add, .bias = o.bias, .act = c->act,
                          .act_grad = c->act_grad, .pre = o.pre, .fp8 = c->fp8};
    return o;
}

// An fp32 sum of K products of N(0,1) grows like sqrt(k) and is rounded at each step: errors add up to about eps *
// sqrt(K/2) of the result, and a few eps more for the epilogue. The activations' exponential has 2e-7. bf16 has 8
// significant bits: rounding changes a number by up to 2^-8 of it, and a matrix may be a single number. A backend may
// round to bf16 before it applies an activation; ReLU^2 doubles a relative error, GELU's passes it on.
static double tolerance(const Case *c) {
    double sum = OP_TEST_EPS_F32 * (sqrt((double)c->K) + 16);
    // Products of 8-bit floats are exact, but tensor cores may keep their sums in as little as 14 bits.
    if (c->fp8 != FP8_NONE && !on_emulator()) sum += 0x1p-11;
    double roundings = c->act == ACT_RELU2 ? 3 : c->act != ACT_NONE || c->act_grad != ACT_NONE ? 2 : 1;
    return sum + (c->out == DTYPE_BF16 ? roundings * 0x1p-8 : 0);
}

static void check_case(OpTest *t, Case c) {
    char label[256];
    snprintf(label, sizeof label,
             "%lldx%lldx%lld trans %d %d, %s to %s, alpha %g add %d bias %d act %d grad %d pre %d", (long long)c.M,
             (long long)c.N, (long long)c.K, c.trans_a, c.trans_b, dtype_name(c.in), dtype_name(c.out),
             (double)c.alpha, c.add, c.bias, (int)c.act, (int)c.act_grad, c.save_pre);
    Operands o = operands(t, &c);
    reference(t, &o, &c);
    t->be->matmul(t->be, o.out, o.a, o.b, o.args);
    op_test_close(t, o.out, o.ref, tolerance(&c), "%s", label);
    c.act = ACT_NONE;
    if (c.save_pre) op_test_close(t, o.pre, o.ref_pre, tolerance(&c), "pre of %s", label);
    op_test_release(t);
}

// Remainders of rows, of vectors, of tiles; one and two sides of every boundary; few rows (1..7), K odd and tiny.
static void test_shapes(OpTest *t) {
    static const int64_t SHAPES[][3] = {
        {1, 1, 1},   {1, 100, 33},  {2, 17, 64}, {3, 5, 7},    {4, 47, 31},   {5, 49, 2},   {6, 33, 129}, {7, 48, 16},
        {8, 48, 32}, {9, 95, 17},   {16, 16, 1}, {17, 32, 65}, {31, 97, 15},  {33, 144, 3}, {40, 1, 50},
        {65, 63, 5}, {100, 24, 40}, {12, 8, 9},  {96, 96, 96}, {49, 192, 100}, {64, 128, 96}};
    for (size_t s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; ++s)
        for (int trans = 0; trans < 4; ++trans)
            for (size_t d = 0; d < DTYPES_COUNT; ++d)
                check_case(t, (Case){.M = SHAPES[s][0], .N = SHAPES[s][1], .K = SHAPES[s][2], .trans_a = trans & 1,
                                     .trans_b = trans & 2, .in = DTYPES[d][0], .out = DTYPES[d][1]});
}

// Shapes with more than one block of K, of rows and of columns, at every level; K odd, so that bf16 pairs end half.
static void test_blocks(OpTest *t) {
    for (size_t d = 0; d < DTYPES_COUNT; ++d) {
        DType in = DTYPES[d][0], out = DTYPES[d][1];
        check_case(t, (Case){.M = 5, .N = 1030, .K = 1539, .trans_a = true, .trans_b = true, .in = in, .out = out,
                             .add = ADD_OUT});
        check_case(t, (Case){.M = 530, .N = 7, .K = 1539, .in = in, .out = out, .bias = true,
                             .act = ACT_GELU, .save_pre = true});
        check_case(t, (Case){.M = 17, .N = 9, .K = 1539, .in = in, .out = out, .add = ADD_OTHER, .act_grad = ACT_GELU,
                             .alpha = 0.1f});
        check_case(t, (Case){.M = 520, .N = 50, .K = 9, .trans_a = true, .in = in, .out = out, .add = ADD_OTHER});
        check_case(t, (Case){.M = 3, .N = 20, .K = 3001, .trans_b = true, .in = in, .out = out, .add = ADD_OUT});
    }
}

static void test_epilogues(OpTest *t) {
    static const int64_t SHAPES[][3] = {{13, 53, 37}, {3, 37, 33}};
    static const struct {
        Activation act, act_grad;
        bool save_pre;
    } ACTS[] = {{ACT_NONE, ACT_NONE, false},  {ACT_GELU, ACT_NONE, true}, {ACT_GELU, ACT_NONE, false},
                {ACT_RELU2, ACT_NONE, true},  {ACT_NONE, ACT_GELU, false}, {ACT_NONE, ACT_RELU2, false}};
    for (size_t s = 0; s < 2; ++s)
        for (size_t d = 0; d < DTYPES_COUNT; ++d)
            for (size_t i = 0; i < sizeof ACTS / sizeof ACTS[0]; ++i)
                for (int option = 0; option < 12; ++option)
                    check_case(t, (Case){.M = SHAPES[s][0], .N = SHAPES[s][1], .K = SHAPES[s][2],
                                         // Scaled so that activations see values where they bend.
                                         .alpha = option & 1 ? -0.3f : 0.25f, .trans_b = s == 1,
                                         .add = (AddMode)(option / 4), .bias = option & 2, .in = DTYPES[d][0],
                                         .out = DTYPES[d][1], .act = ACTS[i].act, .act_grad = ACTS[i].act_grad,
                                         .save_pre = ACTS[i].save_pre});
}

// Without K the product is zero, and the rest of the epilogue still happens; without rows or columns nothing does.
static void test_empty(OpTest *t) {
    for (size_t d = 0; d < DTYPES_COUNT; ++d) {
        check_case(t, (Case){.M = 9, .N = 50, .K = 0, .in = DTYPES[d][0], .out = DTYPES[d][1], .add = ADD_OTHER,
                             .bias = true});
        check_case(t, (Case){.M = 2, .N = 50, .K = 0, .trans_b = true, .in = DTYPES[d][0], .out = DTYPES[d][1]});
        Case none = {.M = 0, .N = 50, .K = 8, .in = DTYPES[d][0], .out = DTYPES[d][1], .add = ADD_OUT};
        Operands o = operands(t, &none);
        t->be->matmul(t->be, o.out, o.a, o.b, o.args);
        none = (Case){.M = 9, .N = 0, .K = 8, .in = DTYPES[d][0], .out = DTYPES[d][1]};
        o = operands(t, &none);
        t->be->matmul(t->be, o.out, o.a, o.b, o.args);
    }
}

// A NaN or an infinity in one row of a (column of b) reaches that row (column) of the output and no other, also from
// the tiles at the edge, which are padded.
static void test_not_finite(OpTest *t) {
    static const int64_t ROWS[] = {2, 43};
    for (size_t d = 0; d < DTYPES_COUNT; ++d)
        for (int i = 0; i < 8; ++i) {
            const int64_t M = ROWS[i & 1], N = 67, K = 35, bad_row = M - 1, bad_col = N - 1;
            const double bad = i & 4 ? INFINITY : NAN;
            Case c = {.M = M, .N = N, .K = K, .trans_b = i & 2, .in = DTYPES[d][0], .out = DTYPES[d][1]};
            Operands o = operands(t, &c);
            double *a = op_test_host(t, o.a), *b = op_test_host(t, o.b);
            a[bad_row * K + K - 1] = bad;
            b[c.trans_b ? bad_col * K : bad_col] = bad;
            op_test_upload(t, o.a, a);
            op_test_upload(t, o.b, b);
            t->be->matmul(t->be, o.out, o.a, o.b, o.args);
            double *out = op_test_host(t, o.out);
            for (int64_t m = 0; m < M; ++m)
                for (int64_t n = 0; n < N; ++n) {
                    bool reached = m == bad_row || n == bad_col;
                    if (isfinite(out[m * N + n]) == reached)
                        fail_msg("%s %lldx67x35: out[%lld][%lld] = %g", dtype_name(c.in), (long long)M, (long long)m,
                                 (long long)n, out[m * N + n]);
                }
            op_test_release(t);
        }
}

// Weights and biases of a linear layer get their gradients from one call; both are overwritten by the first
// micro-batch and added to by the others, each by itself.
static void check_sums(OpTest *t, const int64_t shape[3], DType in, bool add, bool accumulate, Fp8Role fp8) {
    Case c = {.fp8 = fp8, .M = shape[0], .N = shape[1], .K = shape[2], .trans_a = true, .in = in, .out = DTYPE_F32,
              .add = add ? ADD_OUT : ADD_NONE};
    Operands o = operands(t, &c);
    reference(t, &o, &c);
    Tensor sums = accumulate ? op_test_random(t, DTYPE_F32, OP_TEST_DIMS(c.M), 1.0)
                             : op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(c.M));
    double *ref = accumulate ? op_test_host(t, sums) : op_test_doubles(t, c.M), *a = op_test_host(t, o.a);
    for (int64_t k = 0; k < c.K; ++k)
        for (int64_t m = 0; m < c.M; ++m) ref[m] += a[k * c.M + m];
    o.args.sums = sums;
    o.args.accumulate_sums = accumulate;
    t->be->matmul(t->be, o.out, o.a, o.b, o.args);
    op_test_close(t, o.out, o.ref, tolerance(&c), "product with sums, add %d accumulate %d", add, accumulate);
    op_test_close(t, sums, ref, tolerance(&c), "sums, add %d accumulate %d", add, accumulate);
    op_test_release(t);
}
static void test_sums(OpTest *t) {
    static const int64_t SHAPES[][3] = {{24, 16, 40}, {13, 7, 33}, {1, 5, 3}, {130, 3, 600}};
    for (size_t s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; ++s)
        for (int i = 0; i < 8; ++i)
            check_sums(t, SHAPES[s], i & 1 ? DTYPE_BF16 : DTYPE_F32, i & 2, i & 4, FP8_NONE);
    for (int i = 0; i < 4 && t->be->matmul_fp8; ++i)
        check_sums(t, SHAPES[0], DTYPE_BF16, i & 1, i & 2, FP8_BACKWARD);
}

// A batch is its products one by one, to the bit or nearly: each is compared with a reference of its own.
static void test_batches(OpTest *t) {
    const int64_t G = 3, M = 10, N = 12, K = 17;
    for (size_t d = 0; d < DTYPES_COUNT; ++d)
        for (int i = 0; i < 12; ++i) {
            Case c = {.M = M, .N = N, .K = K, .trans_a = i & 1, .trans_b = i & 2, .in = DTYPES[d][0],
                      .out = DTYPES[d][1], .alpha = 0.5f, .add = (AddMode)(i / 4)};
            Operands all = operands(t, &c);
            all.a = op_test_random(t, c.in, OP_TEST_DIMS(G, all.a.dim[0], all.a.dim[1]), 1.0);
            all.b = op_test_random(t, c.in, OP_TEST_DIMS(G, all.b.dim[0], all.b.dim[1]), 1.0);
            all.out = c.add == ADD_OUT ? op_test_random(t, c.out, OP_TEST_DIMS(G, M, N), 1.0)
                                       : op_test_tensor(t, c.out, OP_TEST_DIMS(G, M, N));
            if (c.add == ADD_OTHER) all.args.add = op_test_random(t, c.out, OP_TEST_DIMS(G, M, N), 1.0);
            if (c.add == ADD_OUT) all.args.add = all.out;
            double *ref = op_test_doubles(t, G * M * N);
            for (int64_t g = 0; g < G; ++g) {
                Operands one = all;
                one.a = batch_entry(all.a, g);
                one.b = batch_entry(all.b, g);
                one.args.add = batch_entry(all.args.add, g);
                reference(t, &one, &c);
                memcpy(ref + g * M * N, one.ref, to_size(M * N) * sizeof *ref);
            }
            t->be->matmul(t->be, all.out, all.a, all.b, all.args);
            op_test_close(t, all.out, ref, tolerance(&c), "batch, trans %d add %d", i % 4, (int)c.add);
            op_test_release(t);
        }
}

// Views that start at any element: the rows of a table of odd width.
static void test_views(OpTest *t) {
    const int64_t M = 16, N = 24, K = 32;
    for (size_t d = 0; d < DTYPES_COUNT; ++d)
        for (int64_t i = 0; i < 5; ++i) {
            Case c = {.M = M, .N = N, .K = K, .trans_b = true, .in = DTYPES[d][0], .out = DTYPES[d][1], .bias = true,
                      .act = ACT_GELU, .save_pre = true};
            Operands o = operands(t, &c);
            Tensor *views[] = {&o.a, &o.b, &o.bias, &o.pre, &o.out};
            Tensor old = *views[i], whole = op_test_random(t, old.dtype, OP_TEST_DIMS(tensor_elems(old) + 1), 1.0);
            views[i]->data = (char *)whole.data + dtype_bytes(old.dtype);
            o.args.bias = o.bias;
            o.args.pre = o.pre;
            reference(t, &o, &c);
            t->be->matmul(t->be, o.out, o.a, o.b, o.args);
            op_test_close(t, o.out, o.ref, tolerance(&c), "operand %d starts at an odd element", (int)i);
            op_test_close(t, o.pre, o.ref_pre, tolerance(&c), "pre, operand %d starts at an odd element", (int)i);
            op_test_release(t);
        }
}

static bool device_has_fp8(OpTest *t) {
    if (!t->be->matmul_fp8) printf("not tested: this device has no 8-bit floats\n");
    return t->be->matmul_fp8;
}

// The three products of a linear layer with 8-bit inputs, where the device has them: K that is no multiple of 16,
// inputs that are transposed and that are not, remainders of the transposing tile, each epilogue, sums.
static void test_fp8(OpTest *t) {
    if (!device_has_fp8(t)) return;
    static const int64_t SHAPES[][3] = {{32, 48, 64}, {5, 16, 40}, {33, 80, 7}, {130, 144, 150}, {1, 16, 16}};
    for (size_t s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; ++s)
        for (int option = 0; option < 5; ++option) {
            Case c = {.M = SHAPES[s][0], .N = SHAPES[s][1], .K = SHAPES[s][2], .in = DTYPE_BF16, .out = DTYPE_BF16};
            // Forward: x w^T + bias with a residual, or with an activation.
            Case forward = c;
            forward.fp8 = FP8_FORWARD;
            forward.trans_b = true;
            forward.bias = option != 0;
            forward.alpha = 0.25f;
            forward.add = option == 1 ? ADD_OTHER : ADD_NONE;
            forward.act = option == 2 ? ACT_GELU : option == 3 ? ACT_RELU2 : ACT_NONE;
            forward.save_pre = forward.act != ACT_NONE;
            check_case(t, forward);
            // dx = dout w.
            Case input = c;
            input.fp8 = FP8_BACKWARD;
            input.act_grad = option == 2 ? ACT_GELU : option == 3 ? ACT_RELU2 : ACT_NONE;
            check_case(t, input);
            // dw = dout^T x.
            Case weight = c;
            weight.fp8 = FP8_BACKWARD;
            weight.trans_a = true;
            weight.out = DTYPE_F32;
            weight.add = option & 1 ? ADD_OUT : ADD_NONE;
            check_case(t, weight);
        }
}

// What products of an x of up to N rows and C columns need; made before x is written, since anything in between ends
// a record.
typedef struct {
    Tensor weight, copy, out[2];
} RecordCheck;
static RecordCheck record_check(OpTest *t, int64_t N, int64_t C) {
    RecordCheck check = {.weight = random_2d(t, DTYPE_BF16, 16, C), .copy = random_2d(t, DTYPE_BF16, N, C)};
    for (int i = 0; i < 2; ++i) check.out[i] = op_test_tensor(t, DTYPE_BF16, OP_TEST_DIMS(N, 16));
    return check;
}
// The product of x as it is now, and of a copy of it, of which no record can be: the same bits, or the record is
// wrong.
static void check_fp8_record(OpTest *t, const RecordCheck *check, Tensor x, const char *writer) {
    const MatmulArgs args = {.trans_b = true, .alpha = 1, .fp8 = FP8_FORWARD};
    Tensor weight = check->weight, copy = check->copy;
    weight.dim[1] = copy.dim[1] = x.dim[1];
    t->be->matmul(t->be, check->out[0], x, weight, args);
    t->be->copy(t->be, copy.data, x.data, tensor_bytes(x));
    t->be->matmul(t->be, check->out[1], copy, weight, args);
    op_test_same_bits(t, check->out[0], check->out[1], writer);
}
// The operations that record the magnitude of what they write: with packs and without, rows of one warp and of many.
// Whoever writes x and does not record is among them too.
static void test_fp8_records(OpTest *t) {
    if (!device_has_fp8(t)) return;
    static const int64_t SHAPES[][2] = {{5, 64}, {3, 75}, {37, 1032}, {2, 6000}, {1, 9001}, {300, 96}};
    for (size_t s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; ++s) {
        const int64_t N = SHAPES[s][0], C = SHAPES[s][1];
        Tensor out = random_2d(t, DTYPE_BF16, N, C), x = random_2d(t, DTYPE_BF16, N, C);
        Tensor pre = random_2d(t, DTYPE_BF16, N, 2 * C), dpre = random_2d(t, DTYPE_BF16, N, 2 * C);
        Tensor weight = op_test_random(t, DTYPE_BF16, OP_TEST_DIMS(C), 1.0);
        Tensor mean = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(N), 1.0);
        Tensor rstd = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(N), 1.0);
        Tensor dweight = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(C), 1.0);
        NormArgs norm = {.kind = NORM_LAYER, .eps = 1e-5f};
        const RecordCheck check = record_check(t, N, 2 * C);
        check_fp8_record(t, &check, x, "nobody");
        t->be->norm_forward(t->be, out, mean, rstd, x, weight, TENSOR_NONE, norm);
        check_fp8_record(t, &check, out, "norm_forward");
        for (int accumulate = 0; accumulate < 2; ++accumulate) {
            t->be->norm_backward(t->be, out, dweight, TENSOR_NONE, x, x, weight, mean, rstd, accumulate, true, norm);
            check_fp8_record(t, &check, out, "norm_backward");
        }
        for (Activation kind = ACT_GELU; kind <= ACT_RELU2; ++kind) {
            t->be->activation_forward(t->be, out, x, kind);
            check_fp8_record(t, &check, out, "activation_forward");
            t->be->activation_backward(t->be, out, x, x, kind);
            check_fp8_record(t, &check, out, "activation_backward");
        }
        t->be->activation_forward(t->be, out, pre, ACT_SWIGLU);
        check_fp8_record(t, &check, out, "activation_forward, SwiGLU");
        t->be->activation_backward(t->be, dpre, out, pre, ACT_SWIGLU);
        check_fp8_record(t, &check, dpre, "activation_backward, SwiGLU");
        // The record of out is followed by another tensor at its place.
        t->be->activation_forward(t->be, out, x, ACT_GELU);
        t->be->add(t->be, out, out, x);
        check_fp8_record(t, &check, out, "add");
        // A product that ends in a kernel of ours; its own inputs keep their records.
        if (C % 16 == 0 && C < 1000) {
            Tensor b = random_2d(t, DTYPE_BF16, C, C);
            MatmulArgs args = {.trans_b = true, .alpha = 1, .act = ACT_RELU2, .fp8 = FP8_FORWARD};
            t->be->norm_forward(t->be, x, mean, rstd, out, weight, TENSOR_NONE, norm);
            t->be->matmul(t->be, out, x, b, args);
            check_fp8_record(t, &check, out, "matmul, ReLU^2");
            t->be->matmul(t->be, out, x, b, args);
            check_fp8_record(t, &check, x, "matmul's input");
        }
        op_test_release(t);
    }
}

// The magnitudes that scale inputs are of this call's inputs, whatever was at the same place before, and whoever
// wrote it.
static void test_fp8_scales(OpTest *t) {
    if (!device_has_fp8(t)) return;
    Case c = {.M = 24, .N = 32, .K = 48, .trans_b = true, .in = DTYPE_BF16, .out = DTYPE_BF16, .fp8 = FP8_FORWARD};
    Operands o = operands(t, &c);
    Tensor small = op_test_random(t, DTYPE_BF16, OP_TEST_DIMS(c.M, c.K), 1e-6);
    for (int i = 0; i < 4; ++i) {
        if (i == 1) t->be->copy(t->be, o.a.data, small.data, tensor_bytes(small));
        if (i == 2) op_test_upload(t, o.a, op_test_host(t, random_2d(t, DTYPE_BF16, c.M, c.K)));
        if (i == 3) t->be->zero(t->be, o.a.data, tensor_bytes(o.a));
        reference(t, &o, &c);
        op_test_poison(t, o.out);
        t->be->matmul(t->be, o.out, o.a, o.b, o.args);
        op_test_close(t, o.out, o.ref, tolerance(&c), "a written again, %d", i);
    }
    // Inputs that are not finite may not come out as numbers.
    double *a = op_test_host(t, small);
    a[7] = INFINITY;
    op_test_upload(t, o.a, a);
    t->be->matmul(t->be, o.out, o.a, o.b, o.args);
    double *out = op_test_host(t, o.out);
    for (int64_t n = 0; n < c.N; ++n)
        if (isfinite(out[n])) fail_msg("an infinite input, out[%lld] = %g", (long long)n, out[n]);
    a[7] = NAN;
    op_test_upload(t, o.a, a);
    t->be->matmul(t->be, o.out, o.a, o.b, o.args);
    out = op_test_host(t, o.out);
    for (int64_t n = 0; n < c.N; ++n)
        if (!isnan(out[n])) fail_msg("an input that is not a number, out[%lld] = %g", (long long)n, out[n]);
}

static void run_product(OpTest *t, void *user) {
    Operands *o = user;
    t->be->matmul(t->be, o->out, o->a, o->b, o->args);
}
static void test_threads(OpTest *t) {
    static const int64_t SHAPES[][3] = {{100, 100, 30}, {600, 20, 20}, {5, 700, 50}, {20, 24, 1700}};
    for (size_t s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; ++s)
        for (int trans = 0; trans < 4; ++trans)
            for (size_t d = 0; d < DTYPES_COUNT; ++d) {
                Case c = {.M = SHAPES[s][0], .N = SHAPES[s][1], .K = SHAPES[s][2], .trans_a = trans & 1,
                          .trans_b = trans & 2, .in = DTYPES[d][0], .out = DTYPES[d][1], .alpha = 0.7f,
                          .add = ADD_OTHER, .bias = true, .act = ACT_GELU, .save_pre = true};
                Operands o = operands(t, &c);
                const Tensor outs[] = {o.out, o.pre};
                op_test_thread_invariant(t, run_product, &o, outs, 2, "matmul");
            }
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_shapes),     OP_TEST_CASE(test_blocks),
                                OP_TEST_CASE(test_epilogues),  OP_TEST_CASE(test_empty),
                                OP_TEST_CASE(test_not_finite), OP_TEST_CASE(test_sums),
                                OP_TEST_CASE(test_batches),    OP_TEST_CASE(test_views),
                                OP_TEST_CASE(test_fp8),        OP_TEST_CASE(test_fp8_scales),
                                OP_TEST_CASE(test_fp8_records),
                                OP_TEST_CASE(test_threads)};
    return op_test_main(CASES, sizeof CASES / sizeof CASES[0]);
}
