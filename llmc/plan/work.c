// work.c: see work.h.
#include "llmc/plan/work.h"

#include <math.h>
#include <stdlib.h>

// More than any model needs: an arena of addresses takes no memory.
#define ADDRESS_BYTES ((size_t)1 << 62)

typedef struct {
    Counting *counting;
    Counts *forward, *backward;  // [buckets]
} PassCounts;

// The operations issued next are counted for this bucket.
static void count_into_bucket(void *context, int bucket, ModelPass pass) {
    PassCounts *counts = context;
    counts->counting->into = &(pass == PASS_FORWARD ? counts->forward : counts->backward)[bucket];
}
static void ignore_bucket(void *context, int bucket) { (void)context, (void)bucket; }

// One micro-batch: forward and, in training, backward.
static void count_passes(StepWork *work, const WorkShape *shape, Counts *forward, Counts *backward) {
    // Never read: the counting backend reads no values.
    static const int32_t ids[1];
    static const float weights[1];
    PassCounts counts = {&work->counting, forward, backward};
    Batch batch = {.B = shape->B, .T = shape->T, .tokens = ids, .targets = ids, .weights = weights};
    work->model.hooks = (ModelHooks){&counts, count_into_bucket, ignore_bucket, ignore_bucket};
    model_forward(&work->model, &batch, 1, shape->shape.training);
    if (shape->shape.training) model_backward(&work->model);
    work->model.hooks = (ModelHooks){0};
    work->counting.into = &work->counting.counts;
}

static void count_mean_micro_batch(StepWork *work, const WorkShape *shape) {
    const int buckets = work->model.part.buckets;
    const double micro_batches = (double)work->model.shape.micro_batches;
    work->forward = xcalloc((size_t)buckets, sizeof *work->forward);
    work->backward = xcalloc((size_t)buckets, sizeof *work->backward);
    Counts *pass = xcalloc(2 * (size_t)buckets, sizeof *pass);
    model_begin_step(&work->model);
    for (int k = 0; k < 2 && k < micro_batches; ++k) {
        memset(pass, 0, 2 * (size_t)buckets * sizeof *pass);
        count_passes(work, shape, pass, pass + buckets);
        const double share = (k == 0 ? 1 : micro_batches - 1) / micro_batches;
        for (int b = 0; b < buckets; ++b) {
            counts_add(&work->forward[b], &pass[b], share);
            counts_add(&work->backward[b], &pass[buckets + b], share);
        }
    }
    free(pass);
}

static void count_update(StepWork *work, const RunConfig *config) {
    Model *m = &work->model;
    Backend *be = &work->counting.backend;
    work->counting.into = &work->update;
    float *grads = m->owned_grads != NULL ? m->owned_grads : m->grads;
    be->sum_squares(be, tensor_rows(work->optimizer.sums, 0, 1), tensor_1d(grads, DTYPE_F32, m->part.packed_elems));
    const OptimizerStep step = {.t = 1, .lr = 1, .lr_factor = 1, .clip = {.skip_norm = INFINITY, .skip_loss = INFINITY}};
    optimizer_update(&work->optimizer, m, config, &step);
    work->counting.into = &work->counting.counts;
}

void step_work_count(StepWork *out, const WorkShape *shape) {
    *out = (StepWork){0};
    counting_init(&out->counting, NULL);
    Error err = {""};
    CHECK(arena_init(&out->arena, &out->counting.backend, ADDRESS_BYTES, &err), "%s", err.message);
    RunConfig *config = xcalloc(1, sizeof *config);
    config->optimizer = shape->optimizer;
    config->muon_steps = shape->muon_steps;
    model_init(&out->model, &shape->arch, &shape->shape, &out->counting.backend, &out->arena);
    if (shape->shape.training) optimizer_init(&out->optimizer, config, &out->model, &out->arena);
    count_mean_micro_batch(out, shape);
    if (shape->shape.training) count_update(out, config);
    free(config);
}

void step_work_free(StepWork *work) {
    optimizer_free(&work->optimizer);
    model_free(&work->model);
    free(work->forward);
    free(work->backward);
}

void work_bounds_join(WorkspaceShape *to, const WorkspaceShape *from) {
    to->rows = max_i64(to->rows, from->rows);
    to->seq_len = max_i64(to->seq_len, from->seq_len);
    to->head_size = max_i64(to->head_size, from->head_size);
    to->NH = max_i64(to->NH, from->NH);
    to->NKV = max_i64(to->NKV, from->NKV);
    to->widest = max_i64(to->widest, from->widest);
    to->Vp = max_i64(to->Vp, from->Vp);
    to->chunk_rows = max_i64(to->chunk_rows, from->chunk_rows);
    to->tensors = max_i64(to->tensors, from->tensors);
    to->fp8_elems = max_i64(to->fp8_elems, from->fp8_elems);
    to->attention_library |= from->attention_library;
}

size_t work_tag_bytes(const ModelConfig *arch, const ModelShape *shape, const char *tag) {
    Arena arena;
    Model model;
    arena_init_measuring(&arena);
    model_init(&model, arch, shape, NULL, &arena);
    model_free(&model);
    return arena_tag_bytes(&arena, tag);
}

double work_flops_per_token(const ModelConfig *arch, int64_t T) {
    WorkShape shape = {.arch = *arch,
                       .shape = {.max_rows = T, .max_seq_len = T, .loss_chunk_rows = T, .training = true},
                       .B = 1,
                       .T = T};
    shape.arch.Vp = arch->V;
    StepWork work;
    step_work_count(&work, &shape);
    double flops = 0;
    for (int b = 0; b < work.model.part.buckets; ++b)
        flops += counts_total(&work.forward[b]).flops + counts_total(&work.backward[b]).flops;
    step_work_free(&work);
    return flops / (double)T;
}
