// test_optimizer.c: whole steps of AdamW and Muon compared with a naive double-precision reference, written here from the
// papers; then frozen tensors, skipped steps and memory.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "dev/cases/values.h"
#include "tests/support/model_test.h"

// Wide and tall matrices: q (48,24) k, v (16,24) proj (24,48) gate, up (40,24) down (24,40).
static const char *const LLAMA[] = {"model=llama:d1", "layers=2",     "channels=24",  "heads=3",
                                    "kv_heads=1",     "head_size=16", "ffn=40",       "vocab=61",
                                    "max_seq_len=16", "qk_norm=true", "init_std=0.3", NULL};
static const char *const GPT2[] = {"model=gpt2:d1", "layers=1",       "channels=32",  "heads=2",
                                   "vocab=50",      "max_seq_len=16", "init_std=0.3", NULL};

static void open_shape(ModelTest *t, const char *const *arch, DType dtype, bool no_master, OptimizerKind kind) {
    *t = (ModelTest){0};
    model_test_config(&t->config, arch);
    t->config.optimizer = kind;
    ModelShape shape = {.max_rows = 4, .max_seq_len = 4, .dtype = dtype, .training = true, .no_master = no_master,
                        .ranks = {.muon = kind == OPTIMIZER_MUON}};
    model_test_open(t, &shape, 2);
}
static void open_model(ModelTest *t, const char *const *arch, DType dtype, OptimizerKind kind) {
    open_shape(t, arch, dtype, false, kind);
}

// N(0, scale) for every element, the same on the device and in the returned copy; alignment gaps stay zero. Caller frees.
static float *set_gradient(ModelTest *t, uint64_t draw, double scale) {
    const ParamTable *params = &t->model.params;
    float *grads = xcalloc(to_size(params->total_elems), sizeof *grads);
    for (int i = 0; i < params->count; ++i)
        for (int64_t k = params->spec[i].offset; k < params->spec[i].offset + params->spec[i].elems; ++k)
            grads[k] = (float)scale * rng_normal(draw, RNG_STREAM_TEST, (uint64_t)k);
    t->be->upload(t->be, t->model.grads, grads, to_size(params->total_elems) * sizeof *grads);
    return grads;
}

// ---- the reference ----

// Jordan et al.: X = G / |G|; five times X = a X + (b A + c A^2) X with A = X X^T; the coefficients as fp32 has them.
static void newton_schulz(double *x, int64_t rows, int64_t cols, int64_t steps) {
    const double a = (double)3.4445f, b = (double)-4.7750f, c = (double)2.0315f;
    double sum = 0;
    for (int64_t i = 0; i < rows * cols; ++i) sum += x[i] * x[i];
    for (int64_t i = 0; i < rows * cols; ++i) x[i] /= sqrt(sum) + 1e-7;
    double *gram = xmalloc(to_size(rows * rows) * sizeof *gram), *poly = xmalloc(to_size(rows * rows) * sizeof *poly);
    double *next = xmalloc(to_size(rows * cols) * sizeof *next);
    for (int64_t step = 0; step < steps; ++step) {
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < rows; ++j) {
                gram[i * rows + j] = 0;
                for (int64_t k = 0; k < cols; ++k) gram[i * rows + j] += x[i * cols + k] * x[j * cols + k];
            }
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < rows; ++j) {
                double square = 0;
                for (int64_t k = 0; k < rows; ++k) square += gram[i * rows + k] * gram[k * rows + j];
                poly[i * rows + j] = b * gram[i * rows + j] + c * square;
            }
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < cols; ++j) {
                next[i * cols + j] = a * x[i * cols + j];
                for (int64_t k = 0; k < rows; ++k) next[i * cols + j] += poly[i * rows + k] * x[k * cols + j];
            }
        memcpy(x, next, to_size(rows * cols) * sizeof *x);
    }
    free(gram);
    free(poly);
    free(next);
}

static bool is_hidden_matrix(const ParamSpec *spec) {
    return spec->role == PARAM_QKV_W || spec->role == PARAM_ATTN_PROJ_W || spec->role == PARAM_FC_W ||
           spec->role == PARAM_MLP_PROJ_W;
}

// Rows of the separate matrices that are stored contiguously.
static int matrix_rows(int64_t rows[3], const ModelConfig *c, const ParamSpec *spec) {
    if (spec->role == PARAM_QKV_W) {
        rows[0] = c->NH * c->HS;
        rows[1] = rows[2] = c->NKV * c->HS;
        return 3;
    }
    bool gated = spec->role == PARAM_FC_W && activation_is_gated(c->activation);
    rows[0] = rows[1] = gated ? c->F : spec->dim[0];
    return gated ? 2 : 1;
}

typedef struct {
    double *w, *m, *v;  // flat, with the parameter table's offsets
} Reference;

static void reference_init(Reference *r, const ModelTest *t) {
    int64_t elems = t->model.params.total_elems;
    r->w = xcalloc(to_size(elems), sizeof *r->w);
    r->m = xcalloc(to_size(elems), sizeof *r->m);
    r->v = xcalloc(to_size(elems), sizeof *r->v);
    float *w = model_test_download(t->be, t->model.master, elems);
    for (int64_t i = 0; i < elems; ++i) r->w[i] = (double)w[i];
    free(w);
}
static void reference_free(Reference *r) {
    free(r->w);
    free(r->m);
    free(r->v);
}

static void reference_adamw(Reference *r, const RunConfig *c, const ParamSpec *spec, const float *grads, double scale,
                            double lr, int64_t step) {
    double b1 = (double)(float)c->beta1, b2 = (double)(float)c->beta2;
    double decay = spec->ndim == 2 ? c->weight_decay : 0;
    for (int64_t k = spec->offset; k < spec->offset + spec->elems; ++k) {
        double g = (double)grads[k] * scale;
        r->m[k] = b1 * r->m[k] + (1 - b1) * g;
        r->v[k] = b2 * r->v[k] + (1 - b2) * g * g;
        double root = sqrt(r->v[k] / (1 - pow(b2, (double)step)));
        double update = r->m[k] / (1 - pow(b1, (double)step)) / (root + c->eps);
        r->w[k] -= lr * (update + decay * r->w[k]);
    }
}

static void reference_muon(Reference *r, const RunConfig *c, const ParamSpec *spec, const float *grads, double scale,
                           double lr) {
    int64_t rows[3], cols = spec->dim[1], at = spec->offset;
    int parts = matrix_rows(rows, &c->arch, spec);
    for (int part = 0; part < parts; ++part) {
        int64_t elems = rows[part] * cols;
        double *x = xmalloc(to_size(elems) * sizeof *x);
        for (int64_t k = 0; k < elems; ++k) {
            double g = (double)grads[at + k] * scale, *m = &r->m[at + k];
            *m = c->muon_momentum * *m + g;
            x[k] = c->muon_nesterov ? g + c->muon_momentum * *m : *m;
        }
        newton_schulz(x, rows[part], cols, c->muon_steps);
        double shape = sqrt(fmax(1.0, (double)rows[part] / (double)cols));
        for (int64_t k = 0; k < elems; ++k) r->w[at + k] -= lr * (shape * x[k] + c->weight_decay * r->w[at + k]);
        at += elems;
        free(x);
    }
    assert_int_equal(at, spec->offset + spec->elems);
}

// Returns the norm of the gradient.
static double reference_step(Reference *r, const ModelTest *t, const float *grads, double lr, double lr_factor,
                             int64_t step) {
    const RunConfig *c = &t->config;
    const ParamTable *params = &t->model.params;
    double sum = 0;
    for (int i = 0; i < params->count; ++i)
        for (int64_t k = params->spec[i].offset; k < params->spec[i].offset + params->spec[i].elems; ++k)
            sum += t->optimizer.trainable[i] ? (double)grads[k] * (double)grads[k] : 0;
    double norm = sqrt(sum), scale = c->grad_clip > 0 ? fmin(1, c->grad_clip / norm) : 1;
    for (int i = 0; i < params->count; ++i) {
        const ParamSpec *spec = &params->spec[i];
        if (!t->optimizer.trainable[i]) continue;
        if (c->optimizer == OPTIMIZER_MUON && is_hidden_matrix(spec))
            reference_muon(r, c, spec, grads, scale, c->muon_lr * lr_factor);
        else
            reference_adamw(r, c, spec, grads, scale, lr, step);
    }
    return norm;
}

// ---- comparisons ----

// Compares the changes since `start`, tensor by tensor.
static void compare(const ModelTest *t, const Reference *r, const double *start, double tolerance) {
    const ParamTable *params = &t->model.params;
    float *w = model_test_download(t->be, t->model.master, params->total_elems);
    for (int i = 0; i < params->count; ++i) {
        const ParamSpec *spec = &params->spec[i];
        double difference = 0, moved = 0;
        for (int64_t k = spec->offset; k < spec->offset + spec->elems; ++k) {
            difference += ((double)w[k] - r->w[k]) * ((double)w[k] - r->w[k]);
            moved += (r->w[k] - start[k]) * (r->w[k] - start[k]);
        }
        assert_true(moved > 0 || !t->optimizer.trainable[i]);
        model_test_within(sqrt(difference), tolerance * sqrt(moved), "%s, which moved by %.3g", spec->name,
                          sqrt(moved));
    }
    free(w);
}

static void check_weights_are_rounded_masters(const ModelTest *t) {
    if (t->model.shape.dtype != DTYPE_BF16) return;
    int64_t elems = t->model.params.total_elems;
    float *master = model_test_download(t->be, t->model.master, elems);
    uint16_t *weights = xmalloc(to_size(elems) * sizeof *weights);
    t->be->download(t->be, weights, t->model.weights, to_size(elems) * sizeof *weights);
    for (int64_t i = 0; i < elems; ++i) assert_int_equal(weights[i], bf16_from_f32(master[i]));
    free(master);
    free(weights);
}

// Four steps with changing rates. Tolerances are relative to the change of a tensor.
static void check_steps(const char *const *arch, DType dtype, OptimizerKind kind, double clip, bool nesterov,
                        double tolerance) {
    ModelTest t;
    Reference r;
    open_model(&t, arch, dtype, kind);
    t.config.grad_clip = clip;
    t.config.muon_nesterov = nesterov;
    t.config.weight_decay = 0.5;
    reference_init(&r, &t);
    int64_t elems = t.model.params.total_elems;
    double *start = xmalloc(to_size(elems) * sizeof *start);
    memcpy(start, r.w, to_size(elems) * sizeof *start);
    for (int64_t step = 1; step <= 4; ++step) {
        float *grads = set_gradient(&t, (uint64_t)step, 0.1 * (double)step);
        double lr = 3e-3 * (double)step, factor = 0.25 * (double)step;
        double norm = reference_step(&r, &t, grads, lr, factor, step);
        optimizer_step(&t.optimizer, &t.model, &t.config, lr, factor, step);
        GradStats stats = model_test_stats(&t.optimizer, &t.model);
        assert_int_equal(stats.skip, 0);
        model_test_within(fabs((double)stats.norm / norm - 1), 1e-6, "gradient norm");
        model_test_within(fabs((double)stats.scale / (clip > 0 ? fmin(1, clip / norm) : 1) - 1), 1e-6, "clip scale");
        check_weights_are_rounded_masters(&t);
        free(grads);
    }
    compare(&t, &r, start, tolerance);
    free(start);
    reference_free(&r);
    model_test_close(&t);
}

// AdamW: fp32 rounding of weights near 0.3 (2e-8) relative to changes of 1e-2; bf16 runs keep masters and moments in fp32.
#define ADAMW_TOLERANCE 2e-5
static void test_adamw(void **state) {
    (void)state;
    check_steps(LLAMA, DTYPE_F32, OPTIMIZER_ADAMW, 0.7, true, ADAMW_TOLERANCE);
    check_steps(LLAMA, DTYPE_BF16, OPTIMIZER_ADAMW, 0, true, ADAMW_TOLERANCE);
    check_steps(GPT2, DTYPE_F32, OPTIMIZER_ADAMW, 1e3, true, ADAMW_TOLERANCE);
}

// Muon in fp32: five iterations multiply the smallest singular values, and their errors, by up to 3.4445^5 = 485.
// In bf16 every product is rounded to 2^-9; the iteration contracts errors of singular values in its range, not those
// of singular vectors.
#define MUON_TOLERANCE_F32 1e-4
#define MUON_TOLERANCE_BF16 5e-2
static void test_muon(void **state) {
    (void)state;
    check_steps(LLAMA, DTYPE_F32, OPTIMIZER_MUON, 0.7, true, MUON_TOLERANCE_F32);
    check_steps(LLAMA, DTYPE_F32, OPTIMIZER_MUON, 0, false, MUON_TOLERANCE_F32);
    check_steps(GPT2, DTYPE_F32, OPTIMIZER_MUON, 0.7, true, MUON_TOLERANCE_F32);
    check_steps(LLAMA, DTYPE_BF16, OPTIMIZER_MUON, 0.7, true, MUON_TOLERANCE_BF16);
    check_steps(GPT2, DTYPE_BF16, OPTIMIZER_MUON, 0, false, MUON_TOLERANCE_BF16);
}

// ---- bf16 weights without masters ----

static float *download_weights(const ModelTest *t) {
    const ParamTable *params = &t->model.params;
    float *values = xcalloc(to_size(params->total_elems), sizeof *values);
    for (int i = 0; i < params->count; ++i)
        model_get_param(&t->model, &params->spec[i], 0, params->spec[i].elems, values + params->spec[i].offset);
    return values;
}
// After one step from the same weights, moments and gradient, the value without a master is one of the two bf16
// neighbours of the master, and over all elements the mean rounding error is 0 within five of its standard deviations (for
// each element at most half the distance of two neighbours). After the next step the values may differ more.
static void check_no_master(const char *const *arch, OptimizerKind kind) {
    ModelTest with, without, again;
    open_model(&with, arch, DTYPE_BF16, kind);
    open_shape(&without, arch, DTYPE_BF16, true, kind);
    open_shape(&again, arch, DTYPE_BF16, true, kind);
    assert_null(without.model.master);
    assert_int_equal(arena_tag_bytes(&without.arena, "master weights"), 0);
    const ParamTable *params = &with.model.params;
    size_t bytes = to_size(params->total_elems) * sizeof(float);
    float *rounded = download_weights(&with);  // also the initial masters
    with.be->upload(with.be, with.model.master, rounded, bytes);
    for (ModelTest *const *t = (ModelTest *const[]){&with, &without, &again, NULL}; *t != NULL; ++t) {
        (*t)->config.weight_decay = 0.5;
        free(set_gradient(*t, 1, 0.1));
        optimizer_step(&(*t)->optimizer, &(*t)->model, &(*t)->config, 1e-3, 0.1, 1);
    }
    float *master = model_test_download(with.be, with.model.master, params->total_elems);
    float *weights = download_weights(&without), *twin = download_weights(&again);
    assert_memory_equal(weights, twin, bytes);
    double sum = 0, variance = 0;
    int64_t moved = 0;
    for (int64_t k = 0; k < params->total_elems; ++k) {
        double spacing = master[k] == 0 ? 0 : ldexp(1, ilogb((double)master[k]) - 7);
        double added = (double)weights[k] - (double)master[k];
        if (!(fabs(added) <= spacing))
            fail_msg("%.9g is no neighbour of %.9g", (double)weights[k], (double)master[k]);
        sum += added;
        variance += spacing * spacing / 4;
        moved += weights[k] != rounded[k];
    }
    assert_true(moved > params->total_elems / 4);
    model_test_within(fabs(sum), 5 * sqrt(variance), "sum of what rounding added");
    // Another seed rounds differently.
    again.config.seed += 1;
    for (ModelTest *const *t = (ModelTest *const[]){&without, &again, NULL}; *t != NULL; ++t)
        optimizer_step(&(*t)->optimizer, &(*t)->model, &(*t)->config, 1e-3, 0.1, 2);
    float *other = download_weights(&again);
    free(weights);
    weights = download_weights(&without);
    assert_memory_not_equal(weights, other, bytes);
    free(rounded);
    free(master);
    free(weights);
    free(twin);
    free(other);
    model_test_close(&with);
    model_test_close(&without);
    model_test_close(&again);
}
static void test_without_masters(void **state) {
    (void)state;
    check_no_master(LLAMA, OPTIMIZER_ADAMW);
    check_no_master(LLAMA, OPTIMIZER_MUON);
    check_no_master(GPT2, OPTIMIZER_MUON);
}

// ---- Muon's groups ----

// The size of groups changes no bit.
static void check_groups(DType dtype, bool no_master) {
    static const char *const DEEP[] = {"model=llama:d1", "layers=5",     "channels=24",    "heads=3",
                                       "kv_heads=1",     "head_size=16", "ffn=40",         "vocab=61",
                                       "max_seq_len=16", "init_std=0.3", NULL};
    const int64_t GROUP_ELEMS[] = {0, 1, 3 * 24 * 16, 4 * 40 * 24 + 1};  // 0: the optimizer's choice
    float *expected = NULL;
    for (size_t g = 0; g < sizeof GROUP_ELEMS / sizeof GROUP_ELEMS[0]; ++g) {
        ModelTest t;
        open_shape(&t, DEEP, dtype, no_master, OPTIMIZER_MUON);
        assert_true(t.optimizer.group_elems >= 5 * 48 * 24);  // all layers' at once
        if (g > 0) t.optimizer.group_elems = GROUP_ELEMS[g];
        for (int64_t step = 1; step <= 2; ++step) {
            free(set_gradient(&t, (uint64_t)step, 0.1));
            optimizer_step(&t.optimizer, &t.model, &t.config, 1e-2, 1, step);
        }
        float *weights = download_weights(&t);
        if (g == 0) expected = weights;
        else assert_memory_equal(weights, expected, to_size(t.model.params.total_elems) * sizeof *weights);
        if (g > 0) free(weights);
        model_test_close(&t);
    }
    free(expected);
}
static void test_groups(void **state) {
    (void)state;
    check_groups(DTYPE_F32, false);
    check_groups(DTYPE_BF16, false);
    check_groups(DTYPE_BF16, true);
}

// Offset of a parameter's second moments; -1: it has none. The one rank has every parameter whole.
static int64_t v_offset(const ModelTest *t, int param) {
    for (int i = 0; i < t->model.part.pieces; ++i)
        if (t->model.part.piece[i].param == param) return t->model.part.piece[i].v_packed;
    return -1;
}

// ---- values that do not change ----

typedef struct {
    float *w, *m, *v;
} Snapshot;
static Snapshot snapshot(const ModelTest *t) {
    int64_t elems = t->model.params.total_elems;
    return (Snapshot){model_test_download(t->be, t->model.master, elems),
                      model_test_download(t->be, t->optimizer.m, elems),
                      model_test_download(t->be, t->optimizer.v, t->model.part.v_elems)};
}
static void snapshot_free(Snapshot *s) {
    free(s->w);
    free(s->m);
    free(s->v);
}
static bool same(const float *a, const float *b, int64_t first, int64_t elems) {
    return memcmp(a + first, b + first, to_size(elems) * sizeof *a) == 0;
}

static void step_with(ModelTest *t, uint64_t draw, int64_t step) {
    free(set_gradient(t, draw, 0.1));
    optimizer_step(&t->optimizer, &t->model, &t->config, 1e-2, 1, step);
}

static void check_frozen(DType dtype, OptimizerKind kind) {
    ModelTest t;
    Reference r;
    Error err = {""};
    open_model(&t, LLAMA, dtype, kind);
    const ParamTable *params = &t.model.params;
    step_with(&t, 1, 1);  // moments that are not zero
    assert_true(optimizer_set_trainable(&t.optimizer, params, "block.0.mlp.*,\twte , *.q_norm.weight", &err));
    Snapshot before = snapshot(&t);
    float *grads = set_gradient(&t, 2, 0.1);
    reference_init(&r, &t);
    double norm = reference_step(&r, &t, grads, 1e-2, 1, 2);
    optimizer_step(&t.optimizer, &t.model, &t.config, 1e-2, 1, 2);
    GradStats stats = model_test_stats(&t.optimizer, &t.model);
    model_test_within(fabs((double)stats.norm / norm - 1), 1e-6, "the norm of what is trained");
    Snapshot after = snapshot(&t);
    int moving = 0;
    for (int i = 0; i < params->count; ++i) {
        const ParamSpec *spec = &params->spec[i];
        bool trained = strncmp(spec->name, "block.0.mlp.", 12) == 0 || strcmp(spec->name, "wte") == 0 ||
                       spec->role == PARAM_Q_NORM_W;
        moving += trained;
        assert_int_equal(!same(before.w, after.w, spec->offset, spec->elems), trained);
        assert_int_equal(!same(before.m, after.m, spec->offset, spec->elems), trained);
        if (v_offset(&t, i) >= 0)
            assert_int_equal(!same(before.v, after.v, v_offset(&t, i), spec->elems), trained);
    }
    assert_int_equal(moving, 5);
    check_weights_are_rounded_masters(&t);
    free(grads);
    reference_free(&r);
    snapshot_free(&before);
    snapshot_free(&after);
    model_test_close(&t);
}
static void test_frozen(void **state) {
    (void)state;
    check_frozen(DTYPE_F32, OPTIMIZER_ADAMW);
    check_frozen(DTYPE_BF16, OPTIMIZER_MUON);
}

// A frozen tensor's gradient that is not finite does not cause a skip: it is ignored.
static void test_frozen_gradient_may_be_nan(void **state) {
    (void)state;
    ModelTest t;
    Error err = {""};
    open_model(&t, LLAMA, DTYPE_F32, OPTIMIZER_MUON);
    assert_true(optimizer_set_trainable(&t.optimizer, &t.model.params, "block.*", &err));
    free(set_gradient(&t, 1, 0.1));
    const ParamSpec *wte = params_find(&t.model.params, PARAM_WTE, -1);
    float bad = NAN;
    t.be->upload(t.be, t.model.grads + wte->offset, &bad, sizeof bad);
    optimizer_step(&t.optimizer, &t.model, &t.config, 1e-2, 1, 1);
    assert_int_equal(model_test_stats(&t.optimizer, &t.model).skip, 0);
    model_test_close(&t);
}

static void check_skip(DType dtype, OptimizerKind kind, float bad) {
    ModelTest t;
    open_model(&t, LLAMA, dtype, kind);
    const ParamTable *params = &t.model.params;
    step_with(&t, 1, 1);
    Snapshot before = snapshot(&t);
    free(set_gradient(&t, 2, 0.1));
    const ParamSpec *spec = &params->spec[params->count - 1];
    t.be->upload(t.be, t.model.grads + spec->offset + spec->elems - 1, &bad, sizeof bad);
    optimizer_step(&t.optimizer, &t.model, &t.config, 1e-2, 1, 2);
    assert_int_equal(model_test_stats(&t.optimizer, &t.model).skip, 1);
    Snapshot after = snapshot(&t);
    assert_true(same(before.w, after.w, 0, params->total_elems));
    for (int i = 0; i < params->count; ++i)
        assert_true(same(before.m, after.m, params->spec[i].offset, params->spec[i].elems));
    assert_true(same(before.v, after.v, 0, t.model.part.v_elems));
    check_weights_are_rounded_masters(&t);
    snapshot_free(&after);
    // The next good step gives the same result as without the bad one.
    step_with(&t, 3, 2);
    after = snapshot(&t);
    ModelTest other;
    open_model(&other, LLAMA, dtype, kind);
    step_with(&other, 1, 1);
    step_with(&other, 3, 2);
    Snapshot expected = snapshot(&other);
    assert_true(same(expected.w, after.w, 0, params->total_elems));
    assert_false(same(before.w, after.w, 0, params->total_elems));
    snapshot_free(&before);
    snapshot_free(&after);
    snapshot_free(&expected);
    model_test_close(&t);
    model_test_close(&other);
}
static void test_skip(void **state) {
    (void)state;
    check_skip(DTYPE_F32, OPTIMIZER_ADAMW, NAN);
    check_skip(DTYPE_BF16, OPTIMIZER_MUON, NAN);
    check_skip(DTYPE_BF16, OPTIMIZER_ADAMW, INFINITY);
    check_skip(DTYPE_F32, OPTIMIZER_MUON, -INFINITY);
}

// ---- memory ----

// Elements of the matrices of one shape that Muon takes in this model, all together.
static int64_t elems_of_shape(const ModelTest *t, int64_t r, int64_t c) {
    int64_t sum = 0;
    for (int i = 0; i < t->model.params.count; ++i) {
        const ParamSpec *spec = &t->model.params.spec[i];
        int64_t rows[3];
        int parts = is_hidden_matrix(spec) ? matrix_rows(rows, &t->config.arch, spec) : 0;
        for (int p = 0; p < parts; ++p) sum += rows[p] == r && spec->dim[1] == c ? r * c : 0;
    }
    return sum;
}

static void test_memory(void **state) {
    (void)state;
    for (int kind = OPTIMIZER_ADAMW; kind <= OPTIMIZER_MUON; ++kind) {
        ModelTest t;
        open_model(&t, LLAMA, DTYPE_BF16, (OptimizerKind)kind);
        const ParamTable *params = &t.model.params;
        int64_t end = 0, x = 0, gram = 0, muon_elems = 0;
        for (int i = 0; i < params->count; ++i) {
            const ParamSpec *spec = &params->spec[i];
            if (kind == OPTIMIZER_MUON && is_hidden_matrix(spec)) {
                int64_t rows[3];
                int parts = matrix_rows(rows, &t.config.arch, spec);
                for (int p = 0; p < parts; ++p) {
                    int64_t elems = elems_of_shape(&t, rows[p], spec->dim[1]), side = min_i64(rows[p], spec->dim[1]);
                    x = max_i64(x, elems);
                    gram = max_i64(gram, elems / (rows[p] * spec->dim[1]) * side * side);
                }
                muon_elems += spec->elems;
                assert_int_equal(v_offset(&t, i), -1);
                continue;
            }
            assert_true(v_offset(&t, i) >= end);  // in order, without overlap: only AdamW has second moments
            end = v_offset(&t, i) + spec->elems;
        }
        assert_true(t.model.part.v_elems >= end && t.model.part.v_elems < end + PARAM_ALIGN_ELEMS);
        size_t moments = to_size(params->total_elems + t.model.part.v_elems) * sizeof(float);
        size_t planned = arena_tag_bytes(&t.arena, "optimizer moments");
        assert_true(planned >= moments && planned < moments + 2 * ARENA_ALIGN_BYTES);
        // In this small model Muon's scratch holds all equally shaped matrices, in the dtype of the run.
        size_t scratch = to_size(2 * (x + gram)) * dtype_bytes(DTYPE_BF16) + sizeof(GradStats) + sizeof(double);
        planned = arena_tag_bytes(&t.arena, "optimizer workspace");
        assert_true(planned >= scratch && planned < scratch + 6 * ARENA_ALIGN_BYTES);
        model_test_close(&t);
    }
}

// In a large model, planned only, Muon's scratch is a small share of its weights, but holds the largest matrix.
static void test_memory_of_large_model(void **state) {
    (void)state;
    RunConfig config;
    Model model;
    Optimizer optimizer;
    Arena arena;
    model_test_config(&config, (const char *const[]){"model=gpt2:1558M", "optimizer=muon", NULL});
    arena_init_measuring(&arena);
    ModelShape shape = {.max_rows = 4, .max_seq_len = 4, .loss_chunk_rows = 4, .dtype = DTYPE_BF16, .training = true,
                        .ranks = {.muon = true}};
    model_init(&model, &config.arch, &shape, NULL, &arena);
    optimizer_init(&optimizer, &config, &model, &arena);
    size_t scratch = arena_tag_bytes(&arena, "optimizer workspace");
    size_t weights = arena_tag_bytes(&arena, "parameters");
    assert_true(scratch > (size_t)2 * 6400 * 1600 * 2 && scratch < weights / 2);
    optimizer_free(&optimizer);
    model_free(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw),  cmocka_unit_test(test_muon),
        cmocka_unit_test(test_frozen), cmocka_unit_test(test_frozen_gradient_may_be_nan),
        cmocka_unit_test(test_skip),   cmocka_unit_test(test_without_masters),
        cmocka_unit_test(test_groups), cmocka_unit_test(test_memory),
        cmocka_unit_test(test_memory_of_large_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
