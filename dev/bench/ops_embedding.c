// ops_embedding.c: table look-up and its scatter-add. Bytes are of the rows that are touched, not of the tables.
#include <math.h>
#include <stdlib.h>

#include "dev/bench/registry.h"

#define POSITIONS ((int64_t)1024)
#define LEARNED_POSITIONS 1u
// dim: N, C, V.
enum { ROWS, TOKENS, POSITION, WTE, WPE };  // ROWS: out or dout; WTE, WPE: tables or their gradients

static void shapes_of(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model != NULL)
        op_add(shapes, OP_DIMS(scale->rows, model->config.C, model->config.V),
               model->config.position == POSITION_LEARNED ? LEARNED_POSITIONS : 0, "%s", model->name);
    else op_add(shapes, OP_DIMS(min_i64(scale->rows, 333), 509, 11), LEARNED_POSITIONS, "11 tokens, often repeated");
}
static void lay_out(OpCall *call, bool backward) {
    const OpShape *s = &call->c->shape;
    const int64_t *d = s->dim;
    DType table = backward ? DTYPE_F32 : call->c->dtype;
    unsigned access = backward ? OP_READ | OP_WRITE : OP_READ;
    int64_t positions = s->flags & LEARNED_POSITIONS ? POSITIONS : 0;
    op_operand(call, backward ? OP_READ : OP_WRITE, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[0], d[1]));
    op_operand(call, OP_READ, FILL_BELOW, (double)d[2], DTYPE_I32, OP_DIMS(d[0]));
    op_operand(call, OP_READ, FILL_RAMP, (double)POSITIONS, DTYPE_I32, OP_DIMS(d[0]));
    op_operand(call, access, FILL_NORMAL, 1, table, OP_DIMS(d[2], d[1]));
    op_operand(call, access, FILL_NORMAL, 1, table, OP_DIMS(positions, d[1]));
    double passes = backward ? 2 : 1, row = (double)(dtype_bytes(table) * to_size(d[1]));
    double words = fmin((double)d[0], (double)d[2]), places = fmin((double)d[0], (double)positions);
    call->operand[WTE].traffic_bytes = passes * row * (backward ? words : (double)d[0]);
    call->operand[WPE].traffic_bytes = passes * row * places;
}
static void forward_lay_out(OpCall *call) { lay_out(call, false); }
static void backward_lay_out(OpCall *call) { lay_out(call, true); }
static Tensor positions_of(const OpCase *c, const Tensor *t) {
    return c->shape.flags & LEARNED_POSITIONS ? t[WPE] : TENSOR_NONE;
}
static void forward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->embedding_forward(be, t[ROWS], t[TOKENS], t[POSITION], t[WTE], positions_of(c, t));
}
static void backward_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->embedding_backward(be, t[WTE], positions_of(c, t), t[ROWS], t[TOKENS], t[POSITION]);
}

static void forward_check(OpCall *call, OpCheck *check) {
    const int64_t *d = call->c->shape.dim;
    int64_t C = d[1], at[OP_SAMPLES];
    int count = op_sample(at, d[0], 8);
    double *out = xmalloc(to_size(C) * sizeof *out), *ref = xmalloc(to_size(C) * sizeof *ref);
    for (int n = 0; n < count; ++n) {
        op_values(call, WTE, (int64_t)op_value(call, TOKENS, at[n]) * C, 1, C, ref);
        for (int64_t c = 0; c < C && call->c->shape.flags & LEARNED_POSITIONS; ++c)
            ref[c] += op_value(call, WPE, (int64_t)op_value(call, POSITION, at[n]) * C + c);
        op_download(call, ROWS, at[n] * C, C, out);
        op_compare(check, "out", out, ref, C, op_tolerance(call->c->dtype));
    }
    free(out);
    free(ref);
}
// The table rows of some tokens and positions of the batch: what was there plus every row that points at them.
static void backward_check(OpCall *call, OpCheck *check) {
    const int64_t *d = call->c->shape.dim;
    int64_t C = d[1], at[OP_SAMPLES];
    int count = op_sample(at, d[0], 6), tables = call->c->shape.flags & LEARNED_POSITIONS ? 2 : 1;
    double *out = xmalloc(to_size(C) * sizeof *out), *ref = xmalloc(to_size(C) * sizeof *ref);
    double *row = xmalloc(to_size(C) * sizeof *row);
    for (int n = 0; n < count * tables; ++n) {
        int table = n < count ? WTE : WPE, index = n < count ? TOKENS : POSITION;
        int64_t id = (int64_t)op_value(call, index, at[n % count]);
        op_values(call, table, id * C, 1, C, ref);
        for (int64_t i = 0; i < d[0]; ++i) {
            if ((int64_t)op_value(call, index, i) != id) continue;
            op_values(call, ROWS, i * C, 1, C, row);
            for (int64_t c = 0; c < C; ++c) ref[c] += row[c];
        }
        op_download(call, table, id * C, C, out);
        op_compare(check, table == WTE ? "dwte" : "dwpe", out, ref, C, 4e-6);
    }
    free(out);
    free(ref);
    free(row);
}

static const OpKind KINDS[] = {
    {.op = "embedding forward",
     .variant = "plain",
     .fp32 = true,
     .bf16 = true,
     .shapes = shapes_of,
     .lay_out = forward_lay_out,
     .run = forward_run,
     .check = forward_check},
    {.op = "embedding backward",
     .variant = "plain",
     .fp32 = true,
     .bf16 = true,
     .shapes = shapes_of,
     .lay_out = backward_lay_out,
     .run = backward_run,
     .check = backward_check},
};
const OpFamily OPS_EMBEDDING = OP_FAMILY(KINDS);
