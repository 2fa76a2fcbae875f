// optimizer.c: see optimizer.h.
#include "llmc/optimizer.h"

#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>

// Muon's matrices: every part of a hidden matrix.
static bool uses_muon(OptimizerKind kind, const ParamSpec *spec) {
    return kind == OPTIMIZER_MUON && spec->hidden_matrix;
}

void optimizer_init(Optimizer *opt, const RunConfig *config, const Model *model, Arena *arena) {
    const ParamTable *params = &model->params;
    *opt = (Optimizer){.kind = config->optimizer};
    opt->v_offset = xcalloc(to_size(params->count), sizeof *opt->v_offset);
    opt->trainable = xcalloc(to_size(params->count), sizeof *opt->trainable);
    opt->list = xcalloc(to_size(params->count), sizeof *opt->list);
    int64_t matrix_elems = 0, gram_elems = 0;
    for (int i = 0; i < params->count; ++i) {
        const ParamSpec *spec = &params->spec[i];
        opt->trainable[i] = true;
        opt->v_offset[i] = -1;
        if (!uses_muon(opt->kind, spec)) {
            opt->v_offset[i] = opt->v_elems;
            opt->v_elems += round_up(spec->elems, PARAM_ALIGN_ELEMS);
            continue;
        }
        for (int part = 0; part < spec->part_count; ++part) {
            int64_t rows = spec->part_rows[part], cols = spec->dim[1], side = min_i64(rows, cols);
            matrix_elems = max_i64(matrix_elems, rows * cols);
            gram_elems = max_i64(gram_elems, side * side);
        }
    }
    opt->m = (float *)arena_alloc(arena, to_size(params->total_elems) * sizeof(float), "optimizer moments");
    opt->v = (float *)arena_alloc(arena, to_size(opt->v_elems) * sizeof(float), "optimizer moments");
    opt->stats = (GradStats *)arena_alloc(arena, sizeof(GradStats), "optimizer workspace");
    if (matrix_elems > 0) {
        DType dtype = model->shape.dtype;
        opt->x = arena_tensor(arena, "optimizer workspace", dtype, 1, matrix_elems, 0, 0, 0);
        opt->y = arena_tensor(arena, "optimizer workspace", dtype, 1, matrix_elems, 0, 0, 0);
        opt->gram = arena_tensor(arena, "optimizer workspace", dtype, 1, gram_elems, 0, 0, 0);
        opt->poly = arena_tensor(arena, "optimizer workspace", dtype, 1, gram_elems, 0, 0, 0);
    }
}

void optimizer_free(Optimizer *opt) {
    free(opt->v_offset);
    free(opt->trainable);
    free(opt->list);
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
    return (OptimTensor){.master = model->master + spec->offset,
                         .weight = bf16 ? (uint16_t *)model->weights + spec->offset : NULL,
                         .grad = model->grads + spec->offset,
                         .m = opt->m + spec->offset,
                         .v = opt->v_offset[index] < 0 ? NULL : opt->v + opt->v_offset[index],
                         .elems = spec->elems,
                         .lr = (float)lr,
                         .weight_decay = spec->decay ? (float)weight_decay : 0.0f};
}

// x(r,c) becomes close to U V^T of its singular value decomposition: x <- a x + (b G + c G^2) x with G = x x^T, on
// the shorter side. The coefficients of Jordan et al. push singular values into about [0.7, 1.2] within five steps.
static Tensor orthogonalize(const Optimizer *opt, Model *model, int64_t rows, int64_t cols, int64_t steps) {
    static const float A = 3.4445f, B = -4.7750f, C = 2.0315f;
    Backend *be = model->be;
    DType dtype = model->shape.dtype;
    bool wide = rows <= cols;
    int64_t side = min_i64(rows, cols);
    Tensor x = tensor_2d(opt->x.data, dtype, rows, cols), y = tensor_2d(opt->y.data, dtype, rows, cols);
    Tensor gram = tensor_2d(opt->gram.data, dtype, side, side), poly = tensor_2d(opt->poly.data, dtype, side, side);
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

static void muon_step(const Optimizer *opt, Model *model, const RunConfig *config, int index, double lr) {
    Backend *be = model->be;
    const ParamSpec *spec = &model->params.spec[index];
    int64_t first_row = 0, cols = spec->dim[1];
    for (int part = 0; part < spec->part_count; ++part) {
        int64_t rows = spec->part_rows[part], skip = first_row * cols;
        double shape_scale = sqrt(fmax(1.0, (double)rows / (double)cols));
        OptimTensor t = optim_tensor(opt, model, index, lr * shape_scale, config->weight_decay / shape_scale);
        t.master += skip;
        t.grad += skip;
        t.m += skip;
        if (t.weight != NULL) t.weight += skip;
        t.elems = rows * cols;
        Tensor update = tensor_1d(opt->x.data, model->shape.dtype, t.elems);
        be->muon_momentum(be, update, t, opt->stats, (float)config->muon_momentum, config->muon_nesterov);
        Tensor x = orthogonalize(opt, model, rows, cols, config->muon_steps);
        be->muon_apply(be, t, tensor_1d(x.data, x.dtype, t.elems), opt->stats);
        first_row += rows;
    }
}

void optimizer_step(Optimizer *opt, Model *model, const RunConfig *config, double lr, double lr_factor, int64_t t) {
    Backend *be = model->be;
    const ParamTable *params = &model->params;
    // A frozen tensor's gradient counts for nothing, the norm included.
    for (int i = 0; i < params->count; ++i)
        if (!opt->trainable[i])
            be->zero(be, model->grads + params->spec[i].offset, to_size(params->spec[i].elems) * sizeof(float));
    be->grad_clip(be, opt->stats, tensor_1d(model->grads, DTYPE_F32, params->total_elems), (float)config->grad_clip);

    int64_t count = 0;
    for (int i = 0; i < params->count; ++i) {
        if (!opt->trainable[i]) continue;
        if (uses_muon(opt->kind, &params->spec[i])) muon_step(opt, model, config, i, config->muon_lr * lr_factor);
        else opt->list[count++] = optim_tensor(opt, model, i, lr, config->weight_decay);
    }
    be->adamw(be, opt->list, count, opt->stats,
              (AdamwArgs){(float)config->beta1, (float)config->beta2, (float)config->eps, t});
}

GradStats optimizer_stats(const Optimizer *opt, const Model *model) {
    GradStats stats;
    model->be->download(model->be, &stats, opt->stats, sizeof stats);
    return stats;
}
