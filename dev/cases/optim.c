// optim.c: the gradient's norm, AdamW and Muon's elementwise steps, and hashes: over one large parameter when they
// are timed, over crowds of tensors of every kind of storage in tests.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/cases/cases.h"
#include "llmc/backend/tensor.h"
#include "llmc/base/hash_element.h"

#define LR 0.01f
#define DECAY 0.1f
#define MOMENTUM 0.95f
#define MATRIX 1024  // columns of what Muon updates
// Half the gradient, as after clipping.
static const GradStats STATS = {.scale = 0.5f};

#define NO_MASTER 1u  // no fp32 master behind the bf16 weights, which are then rounded stochastically
#define CROWD 2u      // several tensors of odd sizes, with and without masters and weights, each aligned
#define MANY 4u       // more than one launch may take, one behind the other, wherever 16-byte packs begin
#define PLAIN_MOMENTUM 8u
#define TINY 16u      // gradients so small that eps counts
#define ALONE 32u     // each tensor by itself
#define STEP_SHIFT 8  // which step it is; 0: STEP
#define STEP 10
enum { GRAD, STATS_BYTES, MASTER, M, V, WEIGHT };  // AdamW; the others have the first of them
enum { UPDATE = M + 1 };                           // Muon: GRAD, STATS_BYTES, MASTER, M, UPDATE, WEIGHT

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
static int64_t step_of(const OpCase *c) {
    return c->shape.flags >> STEP_SHIFT > 0 ? c->shape.flags >> STEP_SHIFT : STEP;
}

// Of gradients; moments are scaled alike. The clip and the hash have other flags.
static double scale_of(const OpCase *c) { return c->shape.flags & TINY ? 1e-8 : 1; }
static void grad_and_stats(OpCall *call, unsigned stats_access) {
    op_operand(call, OP_READ, FILL_NORMAL, scale_of(call->c), DTYPE_F32, OP_DIMS(elems_of(call->c)));
    op_operand(call, stats_access, FILL_DERIVED, 0, DTYPE_U8, OP_DIMS((int64_t)sizeof(GradStats)));
}
static void upload_stats(OpCall *call) {
    call->be->upload(call->be, call->t[0][STATS_BYTES].data, &STATS, sizeof STATS);
}

// ---- gradient norm ----

enum { SUMS = MASTER };
static const float MAX_NORMS[] = {1, 0.25f, 1e6f, 0};
static void odd_clip(OpShapes *shapes) {
    static const int64_t COUNTS[] = {0, 1, 17, 4096, 30001};
    for (int i = 0; i < 5; ++i)
        for (unsigned norm = 0; norm < 4; ++norm) op_add(shapes, OP_DIMS(COUNTS[i]), norm, "odd");
}
static void clip_lay_out(OpCall *call) {
    grad_and_stats(call, OP_WRITE);
    op_operand(call, OP_WRITE, FILL_CONSTANT, 0, DTYPE_F64, OP_DIMS(1));
}
static void clip_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->sum_squares(be, t[SUMS], t[GRAD]);
    be->grad_clip(be, t[STATS_BYTES].data, t[SUMS], TENSOR_NONE,
                  (ClipArgs){.max_norm = MAX_NORMS[c->shape.flags], .skip_norm = INFINITY, .skip_loss = INFINITY});
}
static void ref_sum_squares(const OpCall *call, int64_t first, int64_t count, double *ref) {
    const OpOperand *grad = &call->operand[GRAD];
    int64_t elems = elems_of(call->c), period = grad->pattern_elems;
    double whole = 0, rest = 0;
    (void)first, (void)count;
    for (int64_t i = 0; i < period; ++i) {
        double square = grad->pattern[i] * grad->pattern[i];
        whole += square;
        if (i < elems % period) rest += square;
    }
    ref[0] = period > 0 ? whole * (double)(elems / period) + rest : 0;
}
static void clip_check(OpCall *call, OpCheck *check) {
    double sum, most = (double)MAX_NORMS[call->c->shape.flags];
    ref_sum_squares(call, 0, 1, &sum);
    double norm = sqrt(sum), scale = most > 0 && norm > most ? most / norm : 1;
    GradStats stats;
    call->be->download(call->be, &stats, call->t[0][STATS_BYTES].data, sizeof stats);
    double got[2] = {(double)stats.norm, (double)stats.scale}, skip = stats.skip, none = SKIP_NOT;
    op_compare(check, "stats' sum of squares", &stats.sum_squares, &sum, 1, 1e-12);
    op_compare(check, "norm", &got[0], &norm, 1, 1e-7);
    op_compare(check, "scale", &got[1], &scale, 1, scale == 1 ? 0 : 1e-7);
    op_compare(check, "skip", &skip, &none, 1, 0);
}

// ---- hashes ----

enum { HASHED, HASH };
static const int64_t FIRST_ELEMS[] = {0, 5, (int64_t)1 << 40};
static void odd_hash(OpShapes *shapes) {
    static const int64_t COUNTS[] = {0, 1, 7, 16, 33, 4099, 150001};
    for (int i = 0; i < 7; ++i)
        for (unsigned first = 0; first < 3; ++first) op_add(shapes, OP_DIMS(COUNTS[i]), first, "odd");
}
static void hash_lay_out(OpCall *call) {
    op_operand(call, OP_READ, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(elems_of(call->c)));
    op_operand(call, OP_WRITE, FILL_CONSTANT, 0, DTYPE_F64, OP_DIMS(1));
}
static void hash_run(Backend *be, const OpCase *c, const Tensor *t) {
    be->hash_sum(be, t[HASH].data, t[HASHED], FIRST_ELEMS[c->shape.flags], false);
}
static void hash_check(OpCall *call, OpCheck *check) {
    const OpOperand *x = &call->operand[HASHED];
    uint64_t sum = 0, got, first = (uint64_t)FIRST_ELEMS[call->c->shape.flags];
    for (int64_t i = 0, elems = elems_of(call->c); i < elems; ++i) {
        float value = (float)x->pattern[i % x->pattern_elems];
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        sum += hash_element(first + (uint64_t)i, call->c->dtype == DTYPE_F32 ? bits : bits >> 16);
    }
    call->be->download(call->be, &got, call->t[0][HASH].data, sizeof got);
    // A double holds half of the bits exactly.
    double expected[2] = {(double)(uint32_t)sum, (double)(sum >> 32)};
    double found[2] = {(double)(uint32_t)got, (double)(got >> 32)};
    op_compare(check, "hash", found, expected, 2, 0);
}

// ---- the tensors of a case, in its flat operands ----

typedef struct {
    int64_t first, elems;
    float lr, decay;
    bool master, weight;
} Part;
#define MAX_PARTS 110
static const int64_t CROWD_ELEMS[] = {1, 7, 0, 4096, 4097, 20003, 5, 4099, 9001};
#define CROWD_PARTS ((int)(sizeof CROWD_ELEMS / sizeof CROWD_ELEMS[0]))
static bool bf16_of(const OpCase *c) { return c->dtype == DTYPE_BF16; }

// Storage of a crowd's tensors goes round: fp32; bf16 with a master; bf16 alone. In fp32 all are fp32.
static int parts_of(Part parts[MAX_PARTS], const OpCase *c) {
    const OpShape *s = &c->shape;
    bool master = !(s->flags & NO_MASTER), bf16 = bf16_of(c);
    int count = s->dims == 3 ? (int)s->dim[0] : s->flags & CROWD ? CROWD_PARTS : s->flags & MANY ? MAX_PARTS : 1;
    int64_t first = 0, matrix = s->dim[1] * s->dim[2];
    for (int i = 0; i < count; ++i) {
        int64_t elems = s->dims == 3       ? matrix
                        : s->flags & CROWD ? CROWD_ELEMS[i]
                        : s->flags & MANY  ? i * 37 % 53
                                           : s->dim[0];
        parts[i] = (Part){first, elems, LR, DECAY, master, bf16};
        if (s->flags & (CROWD | MANY)) {
            parts[i].lr = LR * (float)(i % 9 + 1);
            parts[i].decay = i % 2 == 0 ? 0.0f : 0.3f;
            parts[i].master = !bf16 || i % 3 != 2;
            parts[i].weight = bf16 && i % 3 != 0;
        }
        first += s->flags & CROWD && s->dims == 1 ? round_up(elems, 128) : elems;
    }
    return count;
}
static int optim_tensors(OptimTensor tensors[MAX_PARTS], const OpCase *c, const Tensor *t, int v, int weight) {
    Part parts[MAX_PARTS];
    int count = parts_of(parts, c);
    for (int i = 0; i < count; ++i) {
        int64_t first = parts[i].first;
        tensors[i] = (OptimTensor){.master = parts[i].master ? (float *)t[MASTER].data + first : NULL,
                                   .weight = parts[i].weight ? (uint16_t *)t[weight].data + first : NULL,
                                   .grad = (const float *)t[GRAD].data + first,
                                   .m = (float *)t[M].data + first,
                                   .v = v > 0 ? (float *)t[v].data + first : NULL,
                                   .elems = parts[i].elems,
                                   .first_elem = first,
                                   .lr = parts[i].lr,
                                   .weight_decay = parts[i].decay};
    }
    return count;
}
static const Part *part_at(const Part *parts, int count, int64_t at) {
    for (int i = 0; i < count; ++i)
        if (at >= parts[i].first && at < parts[i].first + parts[i].elems) return &parts[i];
    return NULL;  // between two of them
}

// What of the optimizer's arrays is left alone is compared with what was there; what is updated comes from `update`,
// which gets the element's value, and its tensor.
typedef double Update(const OpCall *call, const Part *part, int64_t at, double value);
static void ref_values(const OpCall *call, int operand, Update *update, int64_t first, int64_t count, double *ref) {
    Part parts[MAX_PARTS];
    int parts_count = parts_of(parts, call->c);
    bool weights = call->operand[operand].shape.dtype == DTYPE_BF16;
    for (int64_t i = 0; i < count; ++i) {
        int64_t at = first + i;
        const Part *part = part_at(parts, parts_count, at);
        if (part == NULL || (weights ? !part->weight : operand == MASTER && !part->master)) {
            ref[i] = op_value(call, operand, at);
            continue;
        }
        bool value = weights || operand == MASTER;
        ref[i] = update(call, part, at, !value ? 0 : op_value(call, part->master ? MASTER : operand, at));
    }
}

// ---- AdamW ----

static const AdamwArgs ADAMW = {.beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .seed = 1};
static void no_master_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    if (model == NULL) op_add(shapes, OP_DIMS(scale->optim_elems), 0, "large");
}
// Sizes around vectors and blocks: shares of the work begin and end inside tensors.
static void odd_adamw(OpShapes *shapes) {
    int64_t crowd = 0, many = 0;
    for (int i = 0; i < CROWD_PARTS; ++i) crowd += round_up(CROWD_ELEMS[i], 128);
    for (int i = 0; i < MAX_PARTS; ++i) many += i * 37 % 53;
    for (unsigned step = 1; step <= 3; ++step) op_add(shapes, OP_DIMS(crowd), CROWD | step << STEP_SHIFT, "crowd");
    op_add(shapes, OP_DIMS(many), MANY, "many");
    op_add(shapes, OP_DIMS(crowd), CROWD | TINY, "small");
}
static void adamw_lay_out(OpCall *call) {
    int64_t elems = elems_of(call->c);
    unsigned flags = call->c->shape.flags;
    bool crowd = flags & (CROWD | MANY);
    double scale = scale_of(call->c);
    unsigned weight = crowd || flags & NO_MASTER ? OP_READ | OP_WRITE : OP_WRITE;
    grad_and_stats(call, OP_READ);
    op_operand(call, OP_READ | OP_WRITE, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(flags & NO_MASTER ? 0 : elems));
    op_operand(call, OP_READ | OP_WRITE, FILL_NORMAL, 0.1 * scale, DTYPE_F32, OP_DIMS(elems));
    op_operand(call, OP_READ | OP_WRITE, FILL_ABSOLUTE, 0.1 * scale * scale, DTYPE_F32, OP_DIMS(elems));
    op_operand(call, weight, FILL_NORMAL, 1, DTYPE_BF16, OP_DIMS(bf16_of(call->c) ? elems : 0));
}
static void adamw_run(Backend *be, const OpCase *c, const Tensor *t) {
    OptimTensor tensors[MAX_PARTS];
    AdamwArgs args = ADAMW;
    int count = optim_tensors(tensors, c, t, V, WEIGHT);
    args.t = step_of(c);
    int together = c->shape.flags & ALONE ? 1 : count;
    for (int i = 0; i < count; i += together) be->adamw(be, tensors + i, together, t[STATS_BYTES].data, args);
}
static double scaled_grad(const OpCall *call, int64_t at) { return op_value(call, GRAD, at) * (double)STATS.scale; }
static double update_m(const OpCall *call, const Part *part, int64_t at, double value) {
    (void)part, (void)value;
    return (double)ADAMW.beta1 * op_value(call, M, at) + (1 - (double)ADAMW.beta1) * scaled_grad(call, at);
}
static double update_v(const OpCall *call, const Part *part, int64_t at, double value) {
    (void)part, (void)value;
    double g = scaled_grad(call, at);
    return (double)ADAMW.beta2 * op_value(call, V, at) + (1 - (double)ADAMW.beta2) * g * g;
}
static double update_adamw(const OpCall *call, const Part *part, int64_t at, double value) {
    double t = (double)step_of(call->c);
    double m = update_m(call, part, at, 0) / (1 - pow((double)ADAMW.beta1, t));
    double v = update_v(call, part, at, 0) / (1 - pow((double)ADAMW.beta2, t));
    return value - (double)part->lr * (m / (sqrt(v) + (double)ADAMW.eps) + (double)part->decay * value);
}
static void ref_master(const OpCall *call, int64_t first, int64_t count, double *ref) {
    ref_values(call, MASTER, update_adamw, first, count, ref);
}
static void ref_m(const OpCall *call, int64_t first, int64_t count, double *ref) {
    ref_values(call, M, update_m, first, count, ref);
}
static void ref_v(const OpCall *call, int64_t first, int64_t count, double *ref) {
    ref_values(call, V, update_v, first, count, ref);
}
static void ref_weight(const OpCall *call, int64_t first, int64_t count, double *ref) {
    ref_values(call, WEIGHT, update_adamw, first, count, ref);
}
// To nearest or stochastic: off by less than one unit in the last place, twice what rounding to nearest is.
static double weight_tolerance(const OpCall *call) {
    return call->c->shape.flags & (CROWD | MANY | NO_MASTER) ? 2 * 0x1p-8 : op_tolerance(DTYPE_BF16);
}
// One by one: a stochastically rounded weight is a neighbour of the reference, and beside a master lies its rounding.
static void check_weights(OpCall *call, OpCheck *check, int operand, Update *update) {
    Part parts[MAX_PARTS];
    int count = parts_of(parts, call->c);
    int64_t elems = tensor_elems(call->operand[operand].shape);
    if (elems == 0 || elems > 1 << 20) return;
    double *weight = xmalloc(to_size(elems) * sizeof *weight), *master = xcalloc(to_size(elems), sizeof *master);
    op_download(call, operand, 0, elems, weight);
    if (tensor_elems(call->operand[MASTER].shape) > 0) op_download(call, MASTER, 0, elems, master);
    for (int p = 0; p < count; ++p)
        for (int64_t i = parts[p].first; i < parts[p].first + parts[p].elems && parts[p].weight; ++i) {
            double nearest = (double)bf16_to_f32(bf16_from_f32((float)master[i]));
            if (parts[p].master) op_compare(check, "a weight beside its master", &weight[i], &nearest, 1, 0);
            if (parts[p].master) continue;
            double ref = update(call, &parts[p], i, op_value(call, operand, i)), off = fabs(weight[i] - ref);
            double zero = 0, units = off / ldexp(1, ilogb(ref) - 7);
            op_compare(check, "a weight's neighbour", &units, &zero, 1, 1 + 1e-4);
        }
    free(weight);
    free(master);
}
static void adamw_check(OpCall *call, OpCheck *check) { check_weights(call, check, WEIGHT, update_adamw); }

#define STRETCH 64
static const OpOutput CLIP_OUTPUTS[] = {{.name = "sum of squares", .operand = SUMS, .reference = ref_sum_squares},
                                        {NULL}};
static const OpOutput ADAMW_OUTPUTS[] = {
    {.name = "master", .operand = MASTER, .reference = ref_master, .stretch = STRETCH},
    {.name = "m", .operand = M, .reference = ref_m, .stretch = STRETCH},
    {.name = "v", .operand = V, .reference = ref_v, .stretch = STRETCH},
    {.name = "bf16 weight",
     .operand = WEIGHT,
     .reference = ref_weight,
     .tolerance = weight_tolerance,
     .stretch = STRETCH},
    {NULL}};

// ---- Muon: several equally shaped matrices at once, as of all blocks of a model ----

#define MATRICES 4
static void matrix_shapes(OpShapes *shapes, const OpScale *scale, const OpModel *model) {
    int64_t rows = max_i64(1, scale->optim_elems / 16 / MATRICES / MATRIX);
    if (model == NULL) op_add(shapes, OP_DIMS(MATRICES, rows, MATRIX), 0, "matrices");
}
static void odd_muon(OpShapes *shapes) {
    static const int64_t ODD[][3] = {{3, 0, 4}, {3, 1, 1}, {3, 3, 11}, {3, 64, 72}, {3, 101, 99}, {MAX_PARTS, 5, 7}};
    for (unsigned i = 0; i < sizeof ODD / sizeof ODD[0]; ++i)
        for (unsigned plain = 0; plain < 2; ++plain)
            op_add(shapes, 3, ODD[i], CROWD | plain * PLAIN_MOMENTUM | 2u << STEP_SHIFT, "odd");
}
static void muon_lay_out(OpCall *call, unsigned grad, unsigned master, unsigned update) {
    const int64_t *d = call->c->shape.dim;
    int64_t elems = elems_of(call->c);
    grad_and_stats(call, OP_READ);
    op_operand(call, OP_READ | master, FILL_NORMAL, 1, DTYPE_F32, OP_DIMS(elems));
    op_operand(call, OP_READ | grad, FILL_NORMAL, 0.1, DTYPE_F32, OP_DIMS(elems));
    op_operand(call, update, FILL_NORMAL, 1, call->c->dtype, OP_DIMS(d[0], d[1], d[2]));
    // What belongs to the tensor but is left alone by this step.
    if (master == 0) call->operand[MASTER].traffic_bytes = 0;
    if (grad == 0) call->operand[GRAD].traffic_bytes = call->operand[M].traffic_bytes = 0;
}
static int muon_tensors(OptimTensor tensors[MAX_PARTS], MuonArgs *args, const OpCase *c, const Tensor *t) {
    *args =
        (MuonArgs){.momentum = MOMENTUM, .nesterov = !(c->shape.flags & PLAIN_MOMENTUM), .t = step_of(c), .seed = 1};
    return optim_tensors(tensors, c, t, 0, WEIGHT);
}
static void momentum_lay_out(OpCall *call) { muon_lay_out(call, OP_WRITE, 0, OP_WRITE); }
static void momentum_run(Backend *be, const OpCase *c, const Tensor *t) {
    OptimTensor tensors[MAX_PARTS];
    MuonArgs args;
    OpCase fp32 = *c;
    fp32.dtype = DTYPE_F32;  // weights take no part
    int count = muon_tensors(tensors, &args, &fp32, t);
    int together = c->shape.flags & ALONE ? 1 : count;
    for (int i = 0; i < count; i += together)
        be->muon_momentum(be, tensor_rows(t[UPDATE], i, together), tensors + i, together, t[STATS_BYTES].data, args);
}
static double update_momentum(const OpCall *call, const Part *part, int64_t at, double value) {
    (void)part, (void)value;
    return (double)MOMENTUM * op_value(call, M, at) + scaled_grad(call, at);
}
static void ref_momentum(const OpCall *call, int64_t first, int64_t count, double *ref) {
    for (int64_t i = 0; i < count; ++i) ref[i] = update_momentum(call, NULL, first + i, 0);
}
static void ref_update(const OpCall *call, int64_t first, int64_t count, double *ref) {
    bool nesterov = !(call->c->shape.flags & PLAIN_MOMENTUM);
    ref_momentum(call, first, count, ref);
    for (int64_t i = 0; i < count && nesterov; ++i) ref[i] = scaled_grad(call, first + i) + (double)MOMENTUM * ref[i];
}
static const OpOutput MOMENTUM_OUTPUTS[] = {
    {.name = "m", .operand = M, .reference = ref_momentum, .stretch = STRETCH},
    {.name = "update", .operand = UPDATE, .reference = ref_update, .stretch = STRETCH},
    {NULL}};

// value -= lr * (update + weight_decay * value)
static void apply_lay_out(OpCall *call) {
    bool crowd = call->c->shape.flags & CROWD;
    muon_lay_out(call, 0, OP_WRITE, OP_READ);
    op_operand(call, crowd ? OP_READ | OP_WRITE : OP_WRITE, FILL_NORMAL, 1, DTYPE_BF16,
               OP_DIMS(bf16_of(call->c) ? elems_of(call->c) : 0));
}
static void apply_run(Backend *be, const OpCase *c, const Tensor *t) {
    OptimTensor tensors[MAX_PARTS];
    MuonArgs args;
    int count = muon_tensors(tensors, &args, c, t);
    int together = c->shape.flags & ALONE ? 1 : count;
    for (int i = 0; i < count; i += together)
        be->muon_apply(be, tensors + i, together, tensor_rows(t[UPDATE], i, together), t[STATS_BYTES].data, args);
}
static double update_muon(const OpCall *call, const Part *part, int64_t at, double value) {
    return value - (double)part->lr * (op_value(call, UPDATE, at) + (double)part->decay * value);
}
static void ref_muon_master(const OpCall *call, int64_t first, int64_t count, double *ref) {
    ref_values(call, MASTER, update_muon, first, count, ref);
}
static void ref_muon_weight(const OpCall *call, int64_t first, int64_t count, double *ref) {
    ref_values(call, WEIGHT, update_muon, first, count, ref);
}
static void apply_check(OpCall *call, OpCheck *check) { check_weights(call, check, WEIGHT, update_muon); }
static const OpOutput APPLY_OUTPUTS[] = {
    {.name = "master", .operand = MASTER, .reference = ref_muon_master, .stretch = STRETCH},
    {.name = "bf16 weight",
     .operand = WEIGHT,
     .reference = ref_muon_weight,
     .tolerance = weight_tolerance,
     .stretch = STRETCH},
    {NULL}};

#define NORM_EPS(c) ((c)->shape.flags != 0 ? 0.125f : 1e-7f)
static void odd_normalize(OpShapes *shapes) {
    static const int64_t ODD[][3] = {{1, 1, 1}, {2, 3, 7}, {3, 130, 200}, {5, 8, 16},
                                     {0, 3, 4}, {2, 0, 4}, {2, 150, 190}};
    for (size_t i = 0; i < sizeof ODD / sizeof ODD[0]; ++i) op_add(shapes, 3, ODD[i], CROWD, "odd");
}
static void normalize_lay_out(OpCall *call) {
    const int64_t *d = call->c->shape.dim;
    op_operand(call, OP_READ | OP_WRITE, FILL_NORMAL, call->c->shape.flags != 0 ? 2 : 1, call->c->dtype,
               OP_DIMS(d[0], d[1], d[2]));
}
static void normalize_run(Backend *be, const OpCase *c, const Tensor *t) {
    int64_t matrices = c->shape.dim[0], together = c->shape.flags & ALONE ? 1 : max_i64(1, matrices);
    for (int64_t i = 0; i < max_i64(1, matrices); i += together)
        be->frobenius_normalize(be, tensor_rows(t[0], i, min_i64(together, matrices)), NORM_EPS(c));
}
static void ref_normalized(const OpCall *call, int64_t first, int64_t count, double *ref) {
    int64_t elems = call->c->shape.dim[1] * call->c->shape.dim[2], matrix = first / elems * elems;
    double squares = 0;
    for (int64_t i = 0; i < elems; ++i) squares += op_value(call, 0, matrix + i) * op_value(call, 0, matrix + i);
    for (int64_t i = 0; i < count; ++i)
        ref[i] = op_value(call, 0, first + i) / (sqrt(squares) + (double)NORM_EPS(call->c));
}
static const OpOutput NORMALIZE_OUTPUTS[] = {{.name = "x", .operand = 0, .reference = ref_normalized}, {NULL}};

#define BOTH .fp32 = true, .bf16 = true
#define MUON BOTH, .shapes = matrix_shapes
#define ADAMW_ROW                                                                                        \
    .op = "AdamW", .entry = "adamw", .lay_out = adamw_lay_out, .derive = upload_stats, .run = adamw_run, \
    .outputs = ADAMW_OUTPUTS
static const OpKind KINDS[] = {
    {.op = "gradient norm",
     .variant = "plain",
     .entry = "sum_squares grad_clip",
     .fp32 = true,
     .shapes = flat_shapes,
     .odd_shapes = odd_clip,
     .lay_out = clip_lay_out,
     .run = clip_run,
     .outputs = CLIP_OUTPUTS,
     .check = clip_check},
    {BOTH, .op = "hash sum", .variant = "plain", .entry = "hash_sum", .shapes = flat_shapes, .odd_shapes = odd_hash,
     .lay_out = hash_lay_out, .run = hash_run, .check = hash_check},
    {BOTH, ADAMW_ROW, .variant = "plain", .shapes = flat_shapes, .odd_shapes = odd_adamw, .check = adamw_check},
    {.bf16 = true, ADAMW_ROW, .variant = "no master", .flags = NO_MASTER, .shapes = no_master_shapes},
    {MUON, .op = "Muon momentum", .variant = "Nesterov", .entry = "muon_momentum", .odd_shapes = odd_muon,
     .lay_out = momentum_lay_out, .derive = upload_stats, .run = momentum_run, .outputs = MOMENTUM_OUTPUTS},
    {MUON, .op = "Muon apply", .variant = "plain", .entry = "muon_apply", .odd_shapes = odd_muon,
     .lay_out = apply_lay_out, .derive = upload_stats, .run = apply_run, .outputs = APPLY_OUTPUTS,
     .check = apply_check},
    {MUON, .op = "Muon normalize", .variant = "plain", .entry = "frobenius_normalize", .odd_shapes = odd_normalize,
     .lay_out = normalize_lay_out, .run = normalize_run, .outputs = NORMALIZE_OUTPUTS}};
const OpFamily OPS_OPTIM = OP_FAMILY(KINDS);
