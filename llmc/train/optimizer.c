// optimizer.c: see optimizer.h.
#include "llmc/train/optimizer.h"

#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>

// Each matrix of Muon is one piece.
static bool is_matrix(const Piece *piece) { return piece->part >= 0; }
static int64_t matrix_cols(const Piece *piece, const ParamTable *params) { return params->spec[piece->param].dim[1]; }
static int64_t matrix_rows(const Piece *piece, const ParamTable *params) {
    return piece->count / matrix_cols(piece, params);
}

// Number of matrices of rows x cols in a group, at most `count`.
static int64_t group_size(int64_t group_elems, int64_t count, int64_t rows, int64_t cols) {
    return min_i64(count, max_i64(1, group_elems / (rows * cols)));
}

// A group has 1/GROUP_SHARE of the elements that Muon updates, or GROUP_MIN_ELEMS if that is more: a small workspace.
#define GROUP_SHARE 8
#define GROUP_MIN_ELEMS ((int64_t)1 << 20)

// Number of matrices of rows x cols that this rank updates.
static int64_t count_matrices(const Model *model, int64_t rows, int64_t cols) {
    int64_t count = 0;
    for (int i = 0; i < model->part.pieces; ++i) {
        const Piece *piece = &model->part.piece[i];
        count += is_matrix(piece) && matrix_rows(piece, &model->params) == rows &&
                 matrix_cols(piece, &model->params) == cols;
    }
    return count;
}

static void layout_muon(Optimizer *opt, const Model *model, Arena *arena) {
    const Partition *part = &model->part;
    const DType dtype = model->shape.dtype;
    int64_t total_elems = 0, x_elems = 0, gram_elems = 0;
    for (int i = 0; i < part->pieces; ++i)
        if (is_matrix(&part->piece[i])) total_elems += part->piece[i].count;
    if (total_elems == 0) return;
    opt->group_elems = max_i64(total_elems / GROUP_SHARE, GROUP_MIN_ELEMS);
    for (int i = 0; i < part->pieces; ++i) {
        const Piece *piece = &part->piece[i];
        if (!is_matrix(piece)) continue;
        int64_t rows = matrix_rows(piece, &model->params), cols = matrix_cols(piece, &model->params);
        int64_t side = min_i64(rows, cols);
        int64_t count = group_size(opt->group_elems, count_matrices(model, rows, cols), rows, cols);
        x_elems = max_i64(x_elems, count * rows * cols);
        gram_elems = max_i64(gram_elems, count * side * side);
    }
    opt->x = arena_tensor(arena, "optimizer workspace", dtype, 1, x_elems, 0, 0, 0);
    opt->y = arena_tensor(arena, "optimizer workspace", dtype, 1, x_elems, 0, 0, 0);
    opt->gram = arena_tensor(arena, "optimizer workspace", dtype, 1, gram_elems, 0, 0, 0);
    opt->poly = arena_tensor(arena, "optimizer workspace", dtype, 1, gram_elems, 0, 0, 0);
}

void optimizer_init(Optimizer *opt, const RunConfig *config, const Model *model, Arena *arena) {
    const Partition *part = &model->part;
    CHECK(part->options.muon == (config->optimizer == OPTIMIZER_MUON), "the model was divided for another optimizer%s", "");
    *opt = (Optimizer){.kind = config->optimizer};
    opt->trainable = xcalloc(to_size(model->params.count), sizeof *opt->trainable);
    opt->list = xcalloc((size_t)part->pieces + 1, sizeof *opt->list);
    opt->matrix = xcalloc((size_t)part->pieces + 1, sizeof *opt->matrix);
    for (int i = 0; i < model->params.count; ++i) opt->trainable[i] = true;
    opt->m = (float *)arena_alloc(arena, to_size(part->packed_elems) * sizeof(float), "optimizer moments");
    opt->v = (float *)arena_alloc(arena, to_size(part->v_elems) * sizeof(float), "optimizer moments");
    opt->stats = (GradStats *)arena_alloc(arena, sizeof(GradStats), "optimizer workspace");
    bool by_segment = part->options.stage > 0 || part->options.lanes;
    opt->sums = arena_tensor(arena, "optimizer workspace", DTYPE_F64, 1, by_segment ? part->segments : 1, 0, 0, 0);
    layout_muon(opt, model, arena);
}

void optimizer_free(Optimizer *opt) {
    free(opt->trainable);
    free(opt->list);
    free(opt->matrix);
    *opt = (Optimizer){0};
}

void optimizer_reset(Optimizer *opt, Model *model) {
    Backend *be = model->be;
    model_reset_grads(model);
    be->zero(be, opt->m, to_size(model->part.packed_elems) * sizeof(float));
    be->zero(be, opt->v, to_size(model->part.v_elems) * sizeof(float));
    be->zero(be, opt->stats, sizeof *opt->stats);
    be->zero(be, opt->sums.data, tensor_bytes(opt->sums));
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

static OptimTensor optim_tensor(const Optimizer *opt, const Model *model, const Piece *piece, double lr,
                                double weight_decay) {
    const ParamSpec *spec = &model->params.spec[piece->param];
    bool bf16 = model->shape.dtype == DTYPE_BF16;
    return (OptimTensor){.master = model_master(model, piece),
                         .weight = bf16 ? model_weight(model, piece) : NULL,
                         .grad = model_grad(model, piece),
                         .m = opt->m + piece->packed,
                         .v = piece->v_packed < 0 ? NULL : opt->v + piece->v_packed,
                         .elems = piece->count,
                         .first_elem = spec->offset + piece->first,
                         .lr = (float)lr,
                         .weight_decay = spec->decay ? (float)weight_decay : 0.0f};
}

// Replaces each matrix of x(G,r,c) by an approximation of U V^T of its singular value decomposition: x <- a x +
// (b G + c G^2) x with G = x x^T, or x^T x if that is smaller. The coefficients of Jordan et al. bring singular values into
// about [0.7, 1.2] within five steps. The result is in x's memory or in opt->y.
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

static MuonMatrix muon_matrix(const Optimizer *opt, const Model *model, const RunConfig *config, const Piece *piece,
                              double lr) {
    int64_t rows = matrix_rows(piece, &model->params), cols = matrix_cols(piece, &model->params);
    double shape_scale = sqrt(fmax(1.0, (double)rows / (double)cols));
    return (MuonMatrix){rows, cols,
                        optim_tensor(opt, model, piece, lr * shape_scale, config->weight_decay / shape_scale)};
}

// Moves the matrices of list[0]'s shape, at most a group, from list (count) to opt->list. Returns their number; the
// remaining entries of list become contiguous.
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
    for (int i = 0; i < model->part.pieces; ++i) {
        const Piece *piece = &model->part.piece[i];
        if (opt->trainable[piece->param] && is_matrix(piece))
            opt->matrix[count++] = muon_matrix(opt, model, config, piece, lr);
    }
    while (count > 0) {
        int64_t rows = opt->matrix[0].rows, cols = opt->matrix[0].cols;
        int64_t taken = take_group(opt, opt->matrix, count);
        Tensor update = tensor_3d(opt->x.data, model->shape.dtype, taken, rows, cols);
        be->muon_momentum(be, update, opt->list, taken, opt->stats, args);
        be->muon_apply(be, opt->list, taken, orthogonalize(opt, be, update, config->muon_steps), opt->stats, args);
        count -= taken;
    }
}

void optimizer_freeze(const Optimizer *opt, Model *model) {
    for (int i = 0; i < model->part.pieces; ++i) {
        const Piece *piece = &model->part.piece[i];
        if (!opt->trainable[piece->param])
            model->be->zero(model->be, model_grad(model, piece), to_size(piece->count) * sizeof(float));
    }
}

void optimizer_update(Optimizer *opt, Model *model, const RunConfig *config, const OptimizerStep *step) {
    Backend *be = model->be;
    be->grad_clip(be, opt->stats, opt->sums, step->loss_sums, step->clip);
    muon_step(opt, model, config, config->muon_lr * step->lr_factor, step->t);
    int64_t count = 0;
    for (int i = 0; i < model->part.pieces; ++i) {
        const Piece *piece = &model->part.piece[i];
        if (opt->trainable[piece->param] && !is_matrix(piece))
            opt->list[count++] = optim_tensor(opt, model, piece, step->lr, config->weight_decay);
    }
    be->adamw(be, opt->list, count, opt->stats,
              (AdamwArgs){.beta1 = (float)config->beta1, .beta2 = (float)config->beta2, .eps = (float)config->eps,
                          .t = step->t, .seed = (uint64_t)config->seed});
}
