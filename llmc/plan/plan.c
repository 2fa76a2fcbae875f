// plan.c: see plan.h.
#include "llmc/plan/plan.h"

#include <stdlib.h>
#include <string.h>

#include "llmc/checkpoint/snapshot.h"
#include "llmc/formats/model_file.h"
#include "llmc/loader/loader.h"
#include "llmc/plan/work.h"

// Resident size of the program before it holds any data: code, shared libraries, stacks of its threads.
#define PLAN_PROGRAM_BYTES ((size_t)12 << 20)

int64_t plan_loss_chunk_rows(const RunConfig *config, int64_t rows) {
    if (config->loss_chunk_rows > 0) return min_i64(config->loss_chunk_rows, rows);
    return plan_fitting_chunk_rows(config->arch.Vp, config->dtype, rows);
}
int64_t plan_fitting_chunk_rows(int64_t Vp, DType dtype, int64_t rows) {
    int64_t fitting = PLAN_LOGITS_BYTES / (Vp * (int64_t)dtype_bytes(dtype)) / 64 * 64;
    return min_i64(rows, max_i64(fitting, 64));
}

static PartitionOptions partition_options(const RunConfig *config, MeshAxis data) {
    return (PartitionOptions){.data = data,
                              .stage = (int)config->zero,
                              .lanes = config->deterministic == DETERMINISTIC_LANES,
                              .muon = config->optimizer == OPTIMIZER_MUON};
}

PlanRank plan_fullest_rank(const RunConfig *config, int data_world, const char *comm) {
    PartitionOptions options = partition_options(config, (MeshAxis){0, data_world});
    ParamTable params;
    params_build(&params, &config->arch);
    options.data.rank = partition_fullest_rank(&params, &options);
    params_free(&params);
    return (PlanRank){options.data, comm};
}

ModelShape plan_model_shape(const RunConfig *config, const Schedule *schedule, PlanRank rank) {
    ModelShape shape = {.dtype = config->dtype, .training = true, .recompute = config->recompute};
    shape.ranks = partition_options(config, rank.data);
    shape.fp8 = config->fp8;
    shape.no_master = config->dtype == DTYPE_BF16 && !config->master_weights;
    for (int i = 0; i < schedule->phase_count; ++i) {
        const PhaseSpan *phase = &schedule->phase[i];
        shape.max_rows = max_i64(shape.max_rows, phase->B * phase->T);
        shape.max_seq_len = max_i64(shape.max_seq_len, phase->T);
        shape.micro_batches = max_i64(shape.micro_batches, phase->micro_batches);
    }
    shape.loss_chunk_rows = plan_loss_chunk_rows(config, shape.max_rows);
    shape.cache_tokens = config->sample_tokens > 0 ? shape.max_seq_len : 0;
    return shape;
}

PlanModels plan_models(const RunConfig *config, const Schedule *schedule, PlanRank rank) {
    return (PlanModels){.model = {{PLAN_STUDENT, config->arch, plan_model_shape(config, schedule, rank)}}, .count = 1};
}

void plan_layout(Model *models, Optimizer *optimizer, Tensor *comm_scratch, const PlanModels *list,
                 const RunConfig *config, PlanRank rank, Backend *be, Arena *arena) {
    for (int i = 0; i < list->count; ++i) {
        const PlanModel *planned = &list->model[i];
        CHECK((i == 0) == (planned->role == PLAN_STUDENT) && planned->shape.training == (i == 0),
              "model %d: role=%d training=%d", i, (int)planned->role, planned->shape.training);
        model_init(&models[i], &planned->config, &planned->shape, be, arena);
        if (i == 0) optimizer_init(optimizer, config, &models[0], arena);
    }
    const Model *model = &models[0];
    // The operands of sums over ranks: buckets of gradients; sums of squares and losses in fp64.
    const Partition *part = &model->part;
    int64_t numbers = 2 * max_i64(part->segments, model->shape.micro_batches);
    CommSum how = {.tree = part->options.lanes, .accumulate = part->options.stage >= 2, .wire = config->reduce_dtype};
    size_t bytes = comm_scratch_bytes(rank.comm, rank.data.world, max_i64(part->largest_bucket_elems, numbers),
                                      max_i64(part->largest_owned_elems, numbers), how);
    *comm_scratch = tensor_1d(bytes > 0 ? arena_alloc(arena, bytes, "communication") : NULL, DTYPE_U8, (int64_t)bytes);
}

WorkspaceShape plan_workspace_bounds(const RunConfig *config, const Schedule *schedule, const Model *m) {
    WorkspaceShape bounds = {0};
    StepWork *work = xcalloc(1, sizeof *work);
    for (int i = 0; i < schedule->phase_count; ++i) {
        const PhaseSpan *phase = &schedule->phase[i];
        bool seen = false;
        for (int j = 0; j < i; ++j) seen |= phase->B == schedule->phase[j].B && phase->T == schedule->phase[j].T;
        if (seen) continue;
        WorkShape shape = {.arch = m->config, .shape = m->shape, .B = phase->B, .T = phase->T,
                           .optimizer = config->optimizer, .muon_steps = config->muon_steps};
        shape.shape.loss_chunk_rows = m->shape.max_rows;  // one chunk, so that counting is fast for a batch of any size
        step_work_count(work, &shape);
        work_bounds_join(&bounds, &work->counting.largest);
        step_work_free(work);
    }
    free(work);
    bounds.attention_library = config->dtype == DTYPE_BF16 && strcmp(config->attention, "own") != 0;
    bounds.chunk_rows = m->shape.loss_chunk_rows;
    bounds.tensors = m->shape.training ? max_i64(1, m->part.pieces) : 1;  // an update may list all pieces
    // The gated width for every model: a reserve where there is no gate. The bytes of wide ungated models depend on it.
    bounds.widest = max_i64(bounds.widest, 2 * m->config.F);
    return bounds;
}

void plan_compute(MemoryPlan *plan, const RunConfig *config, const Schedule *schedule, PlanRank rank,
                  const Backend *be) {
    *plan = (MemoryPlan){0};
    const PlanModels list = plan_models(config, schedule, rank);
    Model models[PLAN_MAX_MODELS];
    Optimizer optimizer;
    arena_init_measuring(&plan->arena);
    Tensor comm_scratch;
    plan_layout(models, &optimizer, &comm_scratch, &list, config, rank, NULL, &plan->arena);
    for (int i = 0; i < list.count; ++i) {
        const WorkspaceShape bounds = plan_workspace_bounds(config, schedule, &models[i]);
        size_t bytes = be != NULL ? be->plan_workspace(be, bounds) : backend_cuda_plan_workspace(bounds);
        if (bytes > plan->workspace_bytes) plan->workspace_bytes = bytes;
        plan->transfer_bytes += model_staging_bytes(&models[i]);
    }
    const ModelConfig *arch = &config->arch;
    const Model *student = &models[0];
    plan->staging_bytes = model_file_staging_bytes(arch, &student->params);
    const SnapshotShape snapshot = {arch, &student->params, student->part.options, config->dtype,
                                    state_kept_by(student)};
    plan->snapshot_bytes = config->async_save ? snapshot_plan_bytes(&snapshot) : 0;
    optimizer_free(&optimizer);
    for (int i = 0; i < list.count; ++i) model_free(&models[i]);
    plan->loader_bytes = loader_plan_bytes(schedule);
    plan->program_bytes = PLAN_PROGRAM_BYTES;
    size_t device_bytes = plan->arena.used_bytes + plan->workspace_bytes;
    plan->total_bytes = device_bytes + plan->loader_bytes + plan->transfer_bytes + plan->staging_bytes +
                        plan->snapshot_bytes + plan->program_bytes;
    plan->device_bytes = be != NULL && be->shares_host_memory ? plan->total_bytes : device_bytes;
}

// ---------------------------------------------------------------------------------------------------------------
// Suggestions

// Rows of the largest micro-batch that fits, found by halving; 0: one row does not fit. All phases are halved together.
static int64_t largest_rows(MemoryPlan *plan, const RunConfig *config, const Schedule *schedule, PlanRank rank,
                            const Backend *be, size_t available_bytes) {
    Schedule *smaller = xmalloc(sizeof *smaller);
    *smaller = *schedule;
    int64_t rows = 0;
    for (bool shrunk = true; shrunk && rows == 0;) {
        plan_compute(plan, config, smaller, rank, be);
        if (plan->device_bytes <= available_bytes) rows = smaller->phase[0].B;
        shrunk = false;
        for (int i = 0; i < smaller->phase_count; ++i) {
            PhaseSpan *phase = &smaller->phase[i];
            // Halving keeps the tokens of a step a multiple of the micro-batch.
            if (phase->B % 2 != 0) continue;
            phase->B /= 2;
            phase->lanes *= 2;
            phase->micro_batches = div_up(phase->lanes, rank.data.world);
            shrunk = true;
        }
    }
    free(smaller);
    return rows;
}

void plan_suggest(char *out, size_t out_bytes, const RunConfig *config, const Schedule *schedule, PlanRank rank,
                  const Backend *be, size_t available_bytes) {
    RunConfig *other = xmalloc(sizeof *other);
    int found = 0;
    int64_t rows_before = 0;
    out[0] = '\0';
    // If the device's memory is the host's, first suggest to save without the snapshot.
    MemoryPlan whole, without_copy;
    *other = *config;
    other->async_save = false;
    plan_compute(&whole, config, schedule, rank, be);
    plan_compute(&without_copy, other, schedule, rank, be);
    const bool copy_counts = without_copy.device_bytes < whole.device_bytes;
    if (copy_counts && without_copy.device_bytes <= available_bytes)
        found = snprintf(out, out_bytes, "async_save=false (%.1f MiB)",
                         (double)without_copy.device_bytes / 1048576.0) > 0;
    // The run's dtype, then bf16, then also without master weights; and without the snapshot if that alone does not suffice.
    for (int state = 0; state < 3; ++state)
        for (int level = (int)config->recompute; level <= (int)RECOMPUTE_BLOCK; ++level) {
            *other = *config;
            other->recompute = (Recompute)level;
            if (copy_counts && found == 0) other->async_save = false;
            if (state > 0) other->dtype = DTYPE_BF16;
            if (state == 2) other->master_weights = false;
            if ((state == 1 && config->dtype == DTYPE_BF16) || (state == 2 && (found > 0 || !config->master_weights)))
                continue;
            MemoryPlan plan;
            int64_t rows = largest_rows(&plan, other, schedule, rank, be, available_bytes);
            // More recomputation is only worth it for a larger micro-batch.
            if (rows <= rows_before || found == 4) continue;
            rows_before = rows;
            char options[128] = "";
            if (other->dtype != config->dtype) snprintf(options, sizeof options, "dtype=bf16 ");
            size_t used = strlen(options);
            if (other->async_save != config->async_save)
                used += (size_t)snprintf(options + used, sizeof options - used, "async_save=false ");
            if (other->master_weights != config->master_weights)
                used += (size_t)snprintf(options + used, sizeof options - used, "master_weights=false ");
            if (other->recompute != config->recompute)
                used += (size_t)snprintf(options + used, sizeof options - used, "recompute=%s ",
                                         word_of(RECOMPUTE_WORDS, level));
            if (rows != schedule->phase[0].B)
                snprintf(options + used, sizeof options - used, "batch_rows=%lld ", (long long)rows);
            size_t written = strlen(out);
            snprintf(out + written, out_bytes - written, "%s%s(%.1f MiB)", found++ > 0 ? ", or " : "", options,
                     (double)plan.device_bytes / 1048576.0);
        }
    free(other);
    if (found == 0) snprintf(out, out_bytes, "a smaller model: one row does not fit, even with recompute=block");
}

// ---------------------------------------------------------------------------------------------------------------
// The table

static void print_row(FILE *out, const char *what, size_t bytes, size_t total) {
    fprintf(out, "  %-24s %16zu  %9.1f MiB  %5.1f %%\n", what, bytes, (double)bytes / 1048576.0,
            100.0 * (double)bytes / (double)total);
}

void plan_print(FILE *out, const MemoryPlan *plan, const RunConfig *config, size_t available_bytes) {
    char model[256];
    params_describe(&config->arch, model, sizeof model);
    fprintf(out, "%s\n%s%s, optimizer %s, recompute %s\n", model, dtype_name(config->dtype),
            config->dtype == DTYPE_BF16 && !config->master_weights ? " without master weights" : "",
            word_of(OPTIMIZER_WORDS, (int)config->optimizer), word_of(RECOMPUTE_WORDS, (int)config->recompute));
    fprintf(out, "  %-24s %16s\n", "what", "bytes");
    for (int i = 0; i < plan->arena.tag_count; ++i)
        print_row(out, plan->arena.tags[i].tag, plan->arena.tags[i].bytes, plan->total_bytes);
    print_row(out, "operation workspaces", plan->workspace_bytes, plan->total_bytes);
    print_row(out, "loader", plan->loader_bytes, plan->total_bytes);
    print_row(out, "batches in transfer", plan->transfer_bytes, plan->total_bytes);
    print_row(out, "checkpoint staging", plan->staging_bytes, plan->total_bytes);
    print_row(out, "snapshot", plan->snapshot_bytes, plan->total_bytes);
    print_row(out, "program (estimate)", plan->program_bytes, plan->total_bytes);
    print_row(out, "total", plan->total_bytes, plan->total_bytes);
    if (available_bytes == 0) {
        if (plan->device_bytes != plan->total_bytes)
            fprintf(out, "on the GPU %.1f MiB, plus memory of the driver and libraries\n",
                    (double)plan->device_bytes / 1048576.0);
        return;
    }
    bool fits = plan->device_bytes <= available_bytes;
    if (plan->device_bytes != plan->total_bytes)
        fprintf(out, "on the GPU %.1f MiB; ", (double)plan->device_bytes / 1048576.0);
    fprintf(out, "available %.1f MiB: %s\n", (double)available_bytes / 1048576.0, fits ? "fits" : "does not fit");
}
