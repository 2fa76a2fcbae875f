// optimizer.c: see optimizer.h.
#include "llmc/optimizer.h"

#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>

// Muon's matrices are the parts of hidden matrices.
static bool uses_muon(OptimizerKind kind, const ParamSpec *spec) {
    return kind == OPTIMIZER_MUON && spec->hidden_matrix;
}

// Matrices of rows x cols in a group, of `count` that there are.
static int64_t group_size(int64_t group_elems, int64_t count, int64_t rows, int64_t cols) {
    return min_i64(count, max_i64(1, group_elems / (rows * cols)));
}

// Where Muon's workspace is small beside the rest of the run, or small at all, one call takes many matrices.
#define GROUP_SHARE 8
#define GROUP_MIN_ELEMS ((int64_t)1 << 20)

// Matrices of rows x cols that the model has.
static int64_t count_matrices(const Optimizer *opt, const ParamTable *params, int64_t rows, int64_t cols) {
    int64_t count = 0;
    for (int i = 0; i < params->count; ++i) {
        const ParamSpec *spec = &params->spec[i];
        if (!uses_muon(opt->kind, spec) || spec->dim[1] != cols) continue;
        for (int part = 0; part < spec->part_count; ++part) count += spec->part_rows[part] == rows;
    }
    return count;
}

static void layout_muon(Optimizer *opt, const ParamTable *params, DType dtype, Arena *arena) {
    int64_t total_elems = 0, x_elems = 0, gram_elems = 0;
    for (int i = 0; i < params->count; ++i)
        if (uses_muon(opt->kind, &params->spec[i])) total_elems += params->spec[i].elems;
    if (total_elems == 0) return;
    opt->group_elems = max_i64(total_elems / GROUP_SHARE, GROUP_MIN_ELEMS);
    for (int i = 0; i < params->count; ++i) {
        const ParamSpec *spec = &params->spec[i];
        for (int part = 0; part < spec->part_count && uses_muon(opt->kind, spec); ++part) {
            int64_t rows = spec->part_rows[part], cols = spec->dim[1], side = min_i64(rows, cols);
            int64_t count = group_size(opt->group_elems, count_matrices(opt, params, rows, cols), rows, cols);
            x_elems = max_i64(x_elems, count * rows * cols);
            gram_elems = max_i64(gram_elems, count * side * side);
        }
    }
    opt->x = arena_tensor(arena, "optimizer workspace", dtype, 1, x_elems, 0, 0, 0);
    opt->y = arena_tensor(arena, "optimizer workspace", dtype, 1, x_elems, 0, 0, 0);
    opt->gram = arena_tensor(arena, "optimizer workspace", dtype, 1, gram_elems, 0, 0, 0);
    opt->poly = arena_tensor(arena, "optimizer workspace", dtype, 1, gram_elems, 0, 0, 0);
}

void optimizer_init(Optimizer *opt, const RunConfig *config, const Model *model, Arena *arena) {
    const ParamTable *params = &model->params;
    *opt = (Optimizer){.kind = config->optimizer};
    opt->v_offset = xcalloc(to_size(params->count), sizeof *opt->v_offset);
    opt->trainable = xcalloc(to_size(params->count), sizeof *opt->trainable);
    opt->list = xcalloc(to_size(params->count) * PARAM_MAX_PARTS, sizeof *opt->list);
    opt->matrix = xcalloc(to_size(params->count) * PARAM_MAX_PARTS, sizeof *opt->matrix);
    for (int i = 0; i < params->count; ++i) {
        const ParamSpec *spec = &params->spec[i];
        opt->trainable[i] = true;
        opt->v_offset[i] = -1;
        if (uses_muon(opt->kind, spec)) continue;
        opt->v_offset[i] = opt->v_elems;
        opt->v_elems += round_up(spec->elems, PARAM_ALIGN_ELEMS);
    }
    opt->m = (float *)arena_alloc(arena, to_size(params->total_elems) * sizeof(float), "optimizer moments");
    opt->v = (float *)arena_alloc(arena, to_size(opt->v_elems) * sizeof(float), "optimizer moments");
    opt->stats = (GradStats *)arena_alloc(arena, sizeof(GradStats), "optimizer workspace");
    opt->sums = arena_tensor(arena, "optimizer workspace", DTYPE_F64, 1, 1, 0, 0, 0);
    layout_muon(opt, params, model->shape.dtype, arena);
}

void optimizer_free(Optimizer *opt) {
    free(opt->v_offset);
    free(opt->trainable);
    free(opt->list);
    free(opt->matrix);
    *opt = (Optimizer){0};
}

void optimizer_reset(Optimizer *opt, Model *model) {
    model->be->zero(model->be, model->grads, to_size(model->params.total_elems) * sizeof(float));
    model->be->zero(model->be, opt->m, to_size(model->params.total_elems) * sizeof(float));
    model->be->zero(model->be, opt->v, to_size(opt->v_elems) * sizeof(float));
    model->be->zero(model->be, opt->stats, sizeof *opt->stats);
}

bool optimizer_set_trainable(Optimizer *opt, const ParamTable *params, const char *patterns, Error *err) {
    for (int i = 0; i < params->count; ++i) opt->trainable[i] = false;
    char *copy = xstrdup(patterns), *rest = copy;
    bool ok = true;
    for (char *pattern = strsep(&rest, ","); pattern != NULL && ok; pattern = strsep(&rest, ",")) {
        pattern += strspn(pattern, " \t");
        pattern[strcspn(pattern, " \t")] = '\0';
        int matched = 0;
        for (int i = 0; i < params->count; ++i)
            if (fnmatch(pattern, params->spec[i].name, 0) == 0) {
                opt->trainable[i] = true;
                ++matched;
            }
        if (matched == 0)
            ok = error_set(err, "trainable=%s: the pattern \"%s\" matches no parameter (names look like \"%s\")",
                           patterns, pattern, params->spec[params->count / 2].name);
    }
    free(copy);
    return ok;
}

static OptimTensor optim_tensor(const Optimizer *opt, const Model *model, int index, double lr, double weight_decay) {
    const ParamSpec *spec = &model->params.spec[index];
    bool bf16 = model->shape.dtype == DTYPE_BF16;
    return (OptimTensor){.master = model->master == NULL ? NULL : model->master + spec->offset,
                         .weight = bf16 ? (uint16_t *)model->weights + spec->offset : NULL,
                         .grad = model->grads + spec->offset,
                         .m = opt->m + spec->offset,
                         .v = opt->v_offset[index] < 0 ? NULL : opt->v + opt->v_offset[index],
                         .elems = spec->elems,
                         .first_elem = spec->offset,
                         .lr = (float)lr,
                         .weight_decay = spec->decay ? (float)weight_decay : 0.0f};
}

// Each matrix of x(G,r,c) becomes close to U V^T of its singular value decomposition: x <- a x + (b G + c G^2) x with
// G = x x^T, on the shorter side. The coefficients of Jordan et al. push singular values into about [0.7, 1.2] within
// five steps. The result is in x's memory or in opt->y.
static Tensor orthogonalize(const Optimizer *opt, Backend *be, Tensor x, int64_t steps) {
    static const float A = 3.4445f, B = -4.7750f, C = 2.0315f;
    int64_t count = x.dim[0], rows = x.dim[1], cols = x.dim[2], side = min_i64(rows, cols);
    bool wide = rows <= cols;
    Tensor y = tensor_3d(opt->y.data, x.dtype, count, rows, cols);
    Tensor gram = tensor_3d(opt->gram.data, x.dtype, count, side, side);
    Tensor poly = tensor_3d(opt->poly.data, x.dtype, count, side, side);
    be->frobenius_normalize(be, x, 1e-7f);
    for (int64_t i = 0; i < steps; ++i) {
        be->matmul(be, gram, x, x, (MatmulArgs){.trans_a = !wide, .trans_b = wide, .alpha = 1});
        be->matmul(be, poly, gram, gram, (MatmulArgs){.alpha = C, .beta = B, .add = gram});
        if (wide) be->matmul(be, y, poly, x, (MatmulArgs){.alpha = 1, .beta = A, .add = x});
        else be->matmul(be, y, x, poly, (MatmulArgs){.alpha = 1, .beta = A, .add = x});
        Tensor swap = x;
        x = y;
        y = swap;
    }
    return x;
}

// The matrices of a parameter, behind those in opt->matrix; returns their number.
static int64_t add_matrices(const Optimizer *opt, const Model *model, const RunConfig *config, int index, double lr,
                            MuonMatrix *list) {
    const ParamSpec *spec = &model->params.spec[index];
    int64_t first_row = 0, cols = spec->dim[1];
    for (int part = 0; part < spec->part_count; ++part) {
        int64_t rows = spec->part_rows[part], skip = first_row * cols;
        double shape_scale = sqrt(fmax(1.0, (double)rows / (double)cols));
        OptimTensor t = optim_tensor(opt, model, index, lr * shape_scale, config->weight_decay / shape_scale);
        if (t.master != NULL) t.master += skip;
        if (t.weight != NULL) t.weight += skip;
        t.grad += skip;
        t.m += skip;
        t.first_elem += skip;
        t.elems = rows * cols;
        list[part] = (MuonMatrix){rows, cols, t};
        first_row += rows;
    }
    return spec->part_count;
}

// Takes the matrices of list[0]'s shape out of list[count], as many as a group holds, into opt->list. Returns their
// number; the others move up.
static int64_t take_group(const Optimizer *opt, MuonMatrix *list, int64_t count) {
    int64_t rows = list[0].rows, cols = list[0].cols, limit = group_size(opt->group_elems, count, rows, cols);
    int64_t taken = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (taken < limit && list[i].rows == rows && list[i].cols == cols) opt->list[taken++] = list[i].tensor;
        else list[i - taken] = list[i];
    }
    return taken;
}

static void muon_step(const Optimizer *opt, Model *model, const RunConfig *config, double lr, int64_t t) {
    Backend *be = model->be;
    MuonArgs args = {.momentum = (float)config->muon_momentum, .nesterov = config->muon_nesterov, .t = t,
                     .seed = (uint64_t)config->seed};
    int64_t count = 0;
    for (int i = 0; i < model->params.count; ++i)
        if (opt->trainable[i] && uses_muon(opt->kind, &model->params.spec[i]))
            count += add_matrices(opt, model, config, i, lr, opt->matrix + count);
    while (count > 0) {
        int64_t rows = opt->matrix[0].rows, cols = opt->matrix[0].cols;
        int64_t taken = take_group(opt, opt->matrix, count);
        Tensor update = tensor_3d(opt->x.data, model->shape.dtype, taken, rows, cols);
        be->muon_momentum(be, update, opt->list, taken, opt->stats, args);
        be->muon_apply(be, opt->list, taken, orthogonalize(opt, be, update, config->muon_steps), opt->stats, args);
        count -= taken;
    }
}

void optimizer_step(Optimizer *opt, Model *model, const RunConfig *config, double lr, double lr_factor, int64_t t) {
    Backend *be = model->be;
    const ParamTable *params = &model->params;
    // A frozen tensor's gradient counts for nothing, the norm included.
    for (int i = 0; i < params->count; ++i)
        if (!opt->trainable[i])
            be->zero(be, model->grads + params->spec[i].offset, to_size(params->spec[i].elems) * sizeof(float));
    be->sum_squares(be, opt->sums, tensor_1d(model->grads, DTYPE_F32, params->total_elems));
    be->grad_clip(be, opt->stats, opt->sums, TENSOR_NONE,
                  (ClipArgs){.max_norm = (float)config->grad_clip, .skip_norm = INFINITY, .skip_loss = INFINITY});

    muon_step(opt, model, config, config->muon_lr * lr_factor, t);
    int64_t count = 0;
    for (int i = 0; i < params->count; ++i)
        if (opt->trainable[i] && !uses_muon(opt->kind, &params->spec[i]))
            opt->list[count++] = optim_tensor(opt, model, i, lr, config->weight_decay);
    be->adamw(be, opt->list, count, opt->stats,
              (AdamwArgs){.beta1 = (float)config->beta1, .beta2 = (float)config->beta2, .eps = (float)config->eps,
                          .t = t, .seed = (uint64_t)config->seed});
}

GradStats optimizer_stats(const Optimizer *opt, const Model *model) {
    GradStats stats;
    model->be->download(model->be, &stats, opt->stats, sizeof stats);
    return stats;
}
