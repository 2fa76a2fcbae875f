// ops_optim.c: the gradient's norm, AdamW and Muon's elementwise steps, and hashes, over one large parameter.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/registry.h"
#include "llmc/base/hash_element.h"

#define LR 0.01f
#define DECAY 0.1f
#define MOMENTUM 0.95f
#define STEP 10
#define MATRIX 1024  // columns of what Muon updates
static const AdamwArgs ADAMW = {.beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .t = STEP, .seed = 1};
// Half the gradient, as after clipping.
static const GradStats STATS = {.scale = 0.5f};

enum { GRAD, STATS_BYTES, MASTER, M, V, WEIGHT };  // AdamW; the others have the first of them
enum { UPDATE = MASTER + 2 };                      // Muon: GRAD, STATS_BYTES, MASTER, M, UPDATE

static void flat_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model != NULL) return;
    op_add(shapes, OP_DIMS(scale->optim_elems), 0, "large");
    op_add(shapes, OP_DIMS(min_i64(scale->optim_elems, 100003)), 0, "awkward");
}
static int64_t elems_of(const OpCase *c) {
    int64_t elems = 1;
    for (int i = 0; i < c->shape.dims; ++i) elems *= c->shape.dim[i];
    return elems;
}

static void grad_and_stats(OpCall *call, unsigned stats_access) {
    op_operand(call, OP_READ, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(elems_of(call->c)));
    op_operand(call, stats_access, FILL_DERIVED, 0, DTYPE_U8, OP_DIMS((int64_t)sizeof(GradStats)));
}
static void upload_stats(OpCall *call) {
    call->be->upload(call->be, call->t[0][STATS_BYTES].data, &STATS, sizeof STATS);
}

// ---- gradient norm ----

enum { SUMS = MASTER };
static void clip_lay_out(OpCall *call) {
    grad_and_stats(call, OP_WRITE);
    op_operand(call, OP_WRITE, FILL_CONSTANT, 0, DTYPE_F64, OP_DIMS(1));
}
static void clip_run(Backend *be, const OpCase *c, const Tensor *t) {
    (void)c;
    be->sum_squares(be, t[SUMS], t[GRAD]);
    be->grad_clip(be, t[STATS_BYTES].data, t[SUMS], TENSOR_NONE,
                  (ClipArgs){.max_norm = 1, .skip_norm = INFINITY, .skip_loss = INFINITY});
}
static void clip_check(OpCall *call, OpCheck *check) {
    const OpOperand *grad = &call->operand[GRAD];
    int64_t elems = elems_of(call->c), period = grad->pattern_elems;
    double whole = 0, rest = 0;
    for (int64_t i = 0; i < period; ++i) {
        double square = (double)grad->pattern[i] * (double)grad->pattern[i];
        whole += square;
        if (i < elems % period) rest += square;
    }
    double sum = whole * (double)(elems / period) + rest, norm = sqrt(sum), scale = norm > 1 ? 1 / norm : 1;
    GradStats stats;
    call->be->download(call->be, &stats, call->t[0][STATS_BYTES].data, sizeof stats);
    double got[2] = {(double)stats.norm, (double)stats.scale};
    op_compare(check, "sum of squares", &stats.sum_squares, &sum, 1, 1e-12);
    op_compare(check, "norm", &got[0], &norm, 1, 1e-6);
    op_compare(check, "scale", &got[1], &scale, 1, 1e-6);
}

// ---- hashes ----

enum { HASHED, HASH };
static void hash_lay_out(OpCall *call) {
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(elems_of(call->c)));
    op_operand(call, OP_WRITE, FILL_CONSTANT, 0, DTYPE_F64, OP_DIMS(1));
}
static void hash_run(Backend *be, const OpCase *c, const Tensor *t) {
    (void)c;
    be->hash_sum(be, t[HASH].data, t[HASHED], 0, false);
}
static void hash_check(OpCall *call, OpCheck *check) {
    const OpOperand *x = &call->operand[HASHED];
    uint64_t sum = 0, got;
    for (int64_t i = 0, elems = elems_of(call->c); i < elems; ++i) {
        uint32_t bits;
        memcpy(&bits, &x->pattern[i % x->pattern_elems], sizeof bits);
        sum += hash_element((uint64_t)i, call->c->dtype == DTYPE_F32 ? bits : bits >> 16);
    }
    call->be->download(call->be, &got, call->t[0][HASH].data, sizeof got);
    // A double holds half of the bits exactly; one of them would be 2^-32 of it or more.
    double expected[2] = {(double)(uint32_t)sum, (double)(sum >> 32)};
    double found[2] = {(double)(uint32_t)got, (double)(got >> 32)};
    op_compare(check, "hash", found, expected, 2, 0x1p-40);
}

// ---- AdamW ----

// Flag: no fp32 master behind the bf16 weights, which are then rounded stochastically.
#define NO_MASTER 1u
static void no_master_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model == NULL) op_add(shapes, OP_DIMS(scale->optim_elems), NO_MASTER, "large");
}
static bool has_master(const OpCase *c) { return !(c->shape.flags & NO_MASTER); }
static bool has_weight(const OpCase *c) { return c->dtype == DTYPE_BF16; }

static void adamw_lay_out(OpCall *call) {
    int64_t elems = elems_of(call->c);
    unsigned weight = has_master(call->c) ? OP_WRITE : OP_READ | OP_WRITE;
    grad_and_stats(call, OP_READ);
    op_operand(call, OP_READ | OP_WRITE, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(has_master(call->c) ? elems : 0));
    op_operand(call, OP_READ | OP_WRITE, FILL_NORMAL, 0.1, DTYPE_F32, OP_DIMS(elems));
    op_operand(call, OP_READ | OP_WRITE, FILL_ABSOLUTE, 0.1, DTYPE_F32, OP_DIMS(elems));
    op_operand(call, weight, FILL_NORMAL, 1, DTYPE_BF16, OP_DIMS(has_weight(call->c) ? elems : 0));
}
static void adamw_run(Backend *be, const OpCase *c, const Tensor *t) {
    OptimTensor tensor = {.master = has_master(c) ? t[MASTER].data : NULL,
                          .weight = has_weight(c) ? t[WEIGHT].data : NULL,
                          .grad = t[GRAD].data,
                          .m = t[M].data,
                          .v = t[V].data,
                          .elems = elems_of(c),
                          .lr = LR,
                          .weight_decay = DECAY};
    be->adamw(be, &tensor, 1, t[STATS_BYTES].data, ADAMW);
}

// Some stretches of an array, from its beginning to its end.
#define STRETCHES 8
#define STRETCH ((int64_t)64)
static int stretches(int64_t at[OP_SAMPLES], int64_t elems) {
    return op_sample(at, max_i64(1, elems - STRETCH + 1), STRETCHES);
}
static void adamw_check(OpCall *call, OpCheck *check) {
    int64_t at[OP_SAMPLES], elems = elems_of(call->c), length = min_i64(elems, STRETCH);
    double b1 = (double)ADAMW.beta1, b2 = (double)ADAMW.beta2, out[STRETCH], master[STRETCH], m[STRETCH], v[STRETCH];
    for (int s = 0, count = stretches(at, elems); s < count; ++s) {
        for (int64_t i = 0; i < length; ++i) {
            double g = op_value(call, GRAD, at[s] + i) * (double)STATS.scale;
            double old = op_value(call, has_master(call->c) ? MASTER : WEIGHT, at[s] + i);
            m[i] = b1 * op_value(call, M, at[s] + i) + (1 - b1) * g;
            v[i] = b2 * op_value(call, V, at[s] + i) + (1 - b2) * g * g;
            double step = m[i] / (1 - pow(b1, STEP)) / (sqrt(v[i] / (1 - pow(b2, STEP))) + (double)ADAMW.eps);
            master[i] = old - (double)LR * (step + (double)DECAY * old);
        }
        if (has_master(call->c)) {
            op_download(call, MASTER, at[s], length, out);
            op_compare(check, "master", out, master, length, 1e-6);
        }
        op_download(call, M, at[s], length, out);
        op_compare(check, "m", out, m, length, 1e-6);
        op_download(call, V, at[s], length, out);
        op_compare(check, "v", out, v, length, 1e-6);
        if (!has_weight(call->c)) continue;
        // To nearest or stochastic: off by less than one unit in the last place, twice what rounding to nearest is.
        op_download(call, WEIGHT, at[s], length, out);
        op_compare(check, "bf16 weight", out, master, length, 2 * 0x1p-8);
    }
}

// ---- Muon: several equally shaped matrices at once, as of all blocks of a model ----

#define MATRICES 4
static void matrix_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    int64_t rows = max_i64(1, scale->optim_elems / 16 / MATRICES / MATRIX);
    if (model == NULL) op_add(shapes, OP_DIMS(MATRICES, rows, MATRIX), 0, "matrices");
}
static void momentum_lay_out(OpCall *call) {
    const int64_t *d = call->c->shape.dim;
    int64_t elems = elems_of(call->c);
    grad_and_stats(call, OP_READ);
    op_operand(call, OP_READ, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(elems));
    op_operand(call, OP_READ | OP_WRITE, FILL_NORMAL, 0.1, DTYPE_F32, OP_DIMS(elems));
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[0], d[1], d[2]));
    call->operand[MASTER].traffic_bytes = 0;  // it belongs to the tensor; this step leaves it alone
}
static MuonArgs muon_tensors(OptimTensor tensors[MATRICES], const OpCase *c, const Tensor *t) {
    int64_t elems = c->shape.dim[1] * c->shape.dim[2];
    for (int64_t i = 0; i < MATRICES; ++i)
        tensors[i] = (OptimTensor){.master = (float *)t[MASTER].data + i * elems,
                                   .grad = (const float *)t[GRAD].data + i * elems,
                                   .m = (float *)t[M].data + i * elems,
                                   .elems = elems,
                                   .first_elem = i * elems,
                                   .lr = LR,
                                   .weight_decay = DECAY};
    return (MuonArgs){.momentum = MOMENTUM, .nesterov = true, .t = STEP, .seed = 1};
}
static void momentum_run(Backend *be, const OpCase *c, const Tensor *t) {
    OptimTensor tensors[MATRICES];
    MuonArgs args = muon_tensors(tensors, c, t);
    be->muon_momentum(be, t[UPDATE], tensors, MATRICES, t[STATS_BYTES].data, args);
}
static void momentum_check(OpCall *call, OpCheck *check) {
    int64_t at[OP_SAMPLES], elems = elems_of(call->c), length = min_i64(elems, STRETCH);
    double out[STRETCH], m[STRETCH], update[STRETCH], momentum = (double)MOMENTUM;
    for (int s = 0, count = stretches(at, elems); s < count; ++s) {
        for (int64_t i = 0; i < length; ++i) {
            double g = op_value(call, GRAD, at[s] + i) * (double)STATS.scale;
            m[i] = momentum * op_value(call, M, at[s] + i) + g;
            update[i] = g + momentum * m[i];
        }
        op_download(call, M, at[s], length, out);
        op_compare(check, "m", out, m, length, 1e-6);
        op_download(call, UPDATE, at[s], length, out);
        op_compare(check, "update", out, update, length, op_tolerance(call->c->dtype));
    }
}

// value -= lr * (update + weight_decay * value)
static void apply_lay_out(OpCall *call) {
    momentum_lay_out(call);
    call->operand[GRAD].traffic_bytes = call->operand[M].traffic_bytes = 0;
    call->operand[M].access = OP_READ;
    call->operand[MASTER].access = OP_READ | OP_WRITE;
    call->operand[MASTER].traffic_bytes = 2 * (double)tensor_bytes(call->operand[MASTER].shape);
    call->operand[UPDATE].access = OP_READ;
    op_operand(call, OP_WRITE, FILL_NORMAL, 1, DTYPE_BF16, OP_DIMS(has_weight(call->c) ? elems_of(call->c) : 0));
}
static void apply_run(Backend *be, const OpCase *c, const Tensor *t) {
    OptimTensor tensors[MATRICES];
    MuonArgs args = muon_tensors(tensors, c, t);
    int64_t elems = c->shape.dim[1] * c->shape.dim[2];
    for (int64_t i = 0; i < MATRICES && has_weight(c); ++i)
        tensors[i].weight = (uint16_t *)t[UPDATE + 1].data + i * elems;
    be->muon_apply(be, tensors, MATRICES, t[UPDATE], t[STATS_BYTES].data, args);
}
static void apply_check(OpCall *call, OpCheck *check) {
    int64_t at[OP_SAMPLES], elems = elems_of(call->c), length = min_i64(elems, STRETCH);
    double out[STRETCH], ref[STRETCH];
    for (int s = 0, count = stretches(at, elems); s < count; ++s) {
        for (int64_t i = 0; i < length; ++i) {
            double old = op_value(call, MASTER, at[s] + i);
            ref[i] = old - (double)LR * (op_value(call, UPDATE, at[s] + i) + (double)DECAY * old);
        }
        op_download(call, MASTER, at[s], length, out);
        op_compare(check, "master", out, ref, length, 1e-6);
        if (!has_weight(call->c)) continue;
        op_download(call, UPDATE + 1, at[s], length, out);
        op_compare(check, "bf16 weight", out, ref, length, op_tolerance(DTYPE_BF16));
    }
}

static void frobenius_lay_out(OpCall *call) {
    const int64_t *d = call->c->shape.dim;
    op_operand(call, OP_READ | OP_WRITE, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[0], d[1], d[2]));
}
static void frobenius_run(Backend *be, const OpCase *c, const Tensor *t) {
    (void)c;
    be->frobenius_normalize(be, t[0], 1e-7f);
}
static void frobenius_check(OpCall *call, OpCheck *check) {
    int64_t elems = call->c->shape.dim[1] * call->c->shape.dim[2], length = min_i64(elems, STRETCH);
    double out[STRETCH], ref[STRETCH];
    for (int64_t matrix = 0; matrix < MATRICES; ++matrix) {
        double squares = 0;
        for (int64_t i = 0; i < elems; ++i) {
            double x = op_value(call, 0, matrix * elems + i);
            squares += x * x;
        }
        for (int64_t i = 0; i < length; ++i)
            ref[i] = op_value(call, 0, (matrix + 1) * elems - length + i) / (sqrt(squares) + 1e-7);
        op_download(call, 0, (matrix + 1) * elems - length, length, out);
        op_compare(check, "x", out, ref, length, op_tolerance(call->c->dtype));
    }
}

static const OpKind KINDS[] = {
    {.op = "gradient norm",
     .variant = "plain",
     .fp32 = true,
     .shapes = flat_shapes,
     .lay_out = clip_lay_out,
     .run = clip_run,
     .check = clip_check},
    {.op = "hash sum",
     .variant = "plain",
     .fp32 = true,
     .bf16 = true,
     .shapes = flat_shapes,
     .lay_out = hash_lay_out,
     .run = hash_run,
     .check = hash_check},
    {.op = "AdamW",
     .variant = "plain",
     .fp32 = true,
     .bf16 = true,
     .shapes = flat_shapes,
     .lay_out = adamw_lay_out,
     .derive = upload_stats,
     .run = adamw_run,
     .check = adamw_check},
    {.op = "AdamW",
     .variant = "no master",
     .bf16 = true,
     .shapes = no_master_shapes,
     .lay_out = adamw_lay_out,
     .derive = upload_stats,
     .run = adamw_run,
     .check = adamw_check},
    {.op = "Muon momentum",
     .variant = "Nesterov",
     .fp32 = true,
     .bf16 = true,
     .shapes = matrix_shapes,
     .lay_out = momentum_lay_out,
     .derive = upload_stats,
     .run = momentum_run,
     .check = momentum_check},
    {.op = "Muon apply",
     .variant = "plain",
     .fp32 = true,
     .bf16 = true,
     .shapes = matrix_shapes,
     .lay_out = apply_lay_out,
     .derive = upload_stats,
     .run = apply_run,
     .check = apply_check},
    {.op = "Muon normalize",
     .variant = "plain",
     .fp32 = true,
     .bf16 = true,
     .shapes = matrix_shapes,
     .lay_out = frobenius_lay_out,
     .run = frobenius_run,
     .check = frobenius_check},
};
const OpFamily OPS_OPTIM = OP_FAMILY(KINDS);
