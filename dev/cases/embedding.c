// embedding.c: table look-up and its scatter-add. Bytes count the accessed rows, not the tables.
#include <math.h>
#include <stdlib.h>

#include "dev/cases/cases.h"

#define POSITIONS ((int64_t)1024)
#define FEW ((int64_t)7)
#define LEARNED_POSITIONS 1u
#define FEW_POSITIONS 2u  // FEW of them, in any order
// dim: N, C, V.
enum { OUT, TOKENS, POSITION, WTE, WPE, DWTE, DWPE, DOUT };

static void shapes_of(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model != NULL)
        op_add(shapes, OP_DIMS(scale->rows, model->config.C, model->config.V),
               model->config.position == POSITION_LEARNED ? LEARNED_POSITIONS : 0, "%s", model->name);
    else op_add(shapes, OP_DIMS(min_i64(scale->rows, 333), 509, 11), LEARNED_POSITIONS, "11 tokens, often repeated");
}
// Fewer tokens than rows, so tokens repeat. On a GPU the longer shapes sort in several blocks and divide a token's
// rows among an odd number of warps.
static void odd_shapes(OpShapes *shapes) {
    static const int64_t ODD[][2] = {{1, 1},     {5, 7},  {40, 16},  {33, 100}, {0, 9},
                                     {200, 264}, {65, 8}, {4999, 8}, {2100, 3}, {101, 203}};
    for (size_t i = 0; i < sizeof ODD / sizeof ODD[0]; ++i)
        for (unsigned learned = 0; learned < 2; ++learned)
            op_add(shapes, OP_DIMS(ODD[i][0], ODD[i][1], 11), learned * LEARNED_POSITIONS | FEW_POSITIONS, "odd");
}

static bool is_learned(const OpCase *c) { return c->shape.flags & LEARNED_POSITIONS; }
static int64_t positions_of(const OpCase *c) { return c->shape.flags & FEW_POSITIONS ? FEW : POSITIONS; }

static void lay_out(OpCall *call, unsigned out, unsigned tables) {
    const int64_t *d = call->c->shape.dim;
    int64_t positions = positions_of(call->c), learned = is_learned(call->c) ? positions : 0;
    op_operand(call, out, FILL_DERIVED, 1, call->c->dtype, OP_DIMS(d[0], d[1]));
    op_operand(call, OP_READ, FILL_BELOW, (double)d[2], DTYPE_I32, OP_DIMS(d[0]));
    op_operand(call, OP_READ, positions == FEW ? FILL_BELOW : FILL_RAMP, (double)positions, DTYPE_I32, OP_DIMS(d[0]));
    op_operand(call, tables, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[2], d[1]));
    op_operand(call, tables, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(learned, d[1]));
}
// Forward reads a table row per row of out; backward reads and writes once each table row with a gradient.
static void set_traffic(OpCall *call, int wte, int wpe, double passes, double words) {
    const int64_t *d = call->c->shape.dim;
    double row = (double)(dtype_bytes(call->operand[wte].shape.dtype) * to_size(d[1]));
    call->operand[wte].traffic_bytes = passes * row * words;
    call->operand[wpe].traffic_bytes = passes * row * fmin((double)d[0], (double)call->operand[wpe].shape.dim[0]);
}
static void forward_lay_out(OpCall *call) {
    lay_out(call, OP_WRITE, OP_READ);
    set_traffic(call, WTE, WPE, 1, (double)call->c->shape.dim[0]);
}
static void backward_lay_out(OpCall *call) {
    const int64_t *d = call->c->shape.dim;
    lay_out(call, 0, 0);
    op_operand(call, OP_READ | OP_WRITE, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(d[2], d[1]));
    op_operand(call, OP_READ | OP_WRITE, FILL_NORMAL, 1, DTYPE_F32,
               OP_DIMS(is_learned(call->c) ? positions_of(call->c) : 0, d[1]));
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[0], d[1]));
    set_traffic(call, DWTE, DWPE, 2, fmin((double)d[0], (double)d[2]));
}
static void forward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->embedding_forward(be, t[OUT], t[TOKENS], t[POSITION], t[WTE], is_learned(c) ? t[WPE] : TENSOR_NONE);
}
static void backward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->embedding_backward(be, t[DWTE], is_learned(c) ? t[DWPE] : TENSOR_NONE, t[DOUT], t[TOKENS], t[POSITION]);
}

static void ref_out(const OpCall *call, int64_t first, int64_t C, double *ref) {
    int64_t row = first / C;
    for (int64_t c = 0; c < C; ++c) {
        ref[c] = op_value(call, WTE, (int64_t)op_value(call, TOKENS, row) * C + c);
        if (is_learned(call->c)) ref[c] += op_value(call, WPE, (int64_t)op_value(call, POSITION, row) * C + c);
    }
}
// A row of a table's gradient: its old value plus every row of dout of that token or position.
static void ref_table(const OpCall *call, int table, int index, int64_t first, int64_t C, double *ref) {
    double *buffer = xmalloc(to_size(C) * sizeof *buffer);
    for (int64_t c = 0; c < C; ++c) ref[c] = op_value(call, table, first + c);
    for (int64_t i = 0; i < call->c->shape.dim[0]; ++i) {
        if ((int64_t)op_value(call, index, i) != first / C) continue;
        const double *dout = op_row(call, DOUT, i * C, C, buffer);
        for (int64_t c = 0; c < C; ++c) ref[c] += dout[c];
    }
    free(buffer);
}
static void ref_dwte(const OpCall *call, int64_t first, int64_t C, double *ref) {
    ref_table(call, DWTE, TOKENS, first, C, ref);
}
static void ref_dwpe(const OpCall *call, int64_t first, int64_t C, double *ref) {
    ref_table(call, DWPE, POSITION, first, C, ref);
}
// The rows of some tokens and positions of the batch, then the last rows of the tables.
static int64_t sampled_row(const OpCall *call, int table, int index, int i, int count) {
    const int64_t *dim = call->operand[table].shape.dim, N = call->c->shape.dim[0];
    if (i == count - 1) return (dim[0] - 1) * dim[1];
    return (int64_t)op_value(call, index, (N - 1) * i / max_i64(1, count - 2)) * dim[1];
}
static int64_t sample_dwte(const OpCall *call, int i, int count) { return sampled_row(call, DWTE, TOKENS, i, count); }
static int64_t sample_dwpe(const OpCall *call, int i, int count) {
    return sampled_row(call, DWPE, POSITION, i, count);
}

static const OpOutput FORWARD_OUTPUTS[] = {
    {.name = "out", .operand = OUT, .reference = ref_out, .upstream = UPSTREAM(DOUT)}, {NULL}};
static const OpOutput BACKWARD_OUTPUTS[] = {
    {.name = "dwte", .operand = DWTE, .reference = ref_dwte, .sample = sample_dwte, .gradient_of = GRADIENT_OF(WTE)},
    {.name = "dwpe", .operand = DWPE, .reference = ref_dwpe, .sample = sample_dwpe, .gradient_of = GRADIENT_OF(WPE)},
    {NULL}};

#define BOTH .variant = "plain", .fp32 = true, .bf16 = true, .shapes = shapes_of, .odd_shapes = odd_shapes
static const OpKind KINDS[] = {
    {BOTH, .op = "embedding forward", .entry = "embedding_forward", .lay_out = forward_lay_out, .run = forward_run,
     .outputs = FORWARD_OUTPUTS},
    {BOTH, .op = "embedding backward", .entry = "embedding_backward", .lay_out = backward_lay_out,
     .run = backward_run, .outputs = BACKWARD_OUTPUTS, .forward = &KINDS[0]}};
const OpFamily OPS_EMBEDDING = OP_FAMILY(KINDS);
