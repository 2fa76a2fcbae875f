// run.c: opening and closing a run: first the steps that are local to a rank, then the collective ones. Agreements among
// ranks are in run_ranks.c, values that the config leaves open in run_resolve.c, steps in run_step.c, evaluation and
// reports in run_report.c, checkpoints in run_save.c and run_load.c.
#include <stdlib.h>
#include <string.h>

#include "llmc/formats/model_file.h"
#include "llmc/plan/work.h"
#include "llmc/run/device.h"
#include "llmc/run/run_impl.h"
#include "llmc/run/run_load.h"
#include "llmc/run/run_save.h"

static bool open_data(Run *run, Error *err) {
    const RunConfig *config = &run->config;
    int32_t eot = run->tokenizer == NULL ? -1 : tokenizer_eot(run->tokenizer);
    if (!loader_open(&run->loader, config, &run->schedule, config->arch.V, eot, run->mesh.data.axis,
                     err))
        return false;
    const PhaseSpan *first = &run->schedule.phase[0];
    for (int s = 0; s < config->source_count; ++s) {
        if (config->source[s].val[0] == '\0') continue;
        if (!heldout_open(&run->heldout[s], &config->source[s], first->B, first->T, config->val_tokens,
                          config->arch.V, eot, err))
            return false;
    }
    return true;
}

static bool open_memory(Run *run, Error *err) {
    const RunConfig *config = &run->config;
    // TOKAMAK_COMM=nccl forces an NCCL group for one rank too, to measure its cost.
    const char *wanted_kind = getenv("TOKAMAK_COMM");
    const MeshAxis data = run->mesh.data.axis;
    PlanRank rank = {data, wanted_kind != NULL ? wanted_kind : comm_kind(run->be, data.world)};
    plan_compute(&run->plan, config, &run->schedule, rank, run->be);
    run->be->workspace_limit_bytes = run->plan.workspace_bytes;
    size_t available = run->be->memory_free(run->be), wanted = run->plan.device_bytes;
    if (run->be->shares_host_memory) available /= (size_t)run->local_world;
    bool fits = available == 0 || wanted <= available;
    // Enough memory may be free but not contiguous.
    if (!fits || !arena_init(&run->arena, run->be, run->plan.arena.used_bytes, err)) {
        char options[600];
        plan_suggest(options, sizeof options, config, &run->schedule, rank, run->be, available);
        return error_set(err, "this run needs %.1f MiB of memory and %.1f MiB are free (train_gpt plan shows the parts); "
                              "what would fit: %s", (double)wanted / 1048576.0, (double)available / 1048576.0, options);
    }
    Tensor scratch;
    const PlanModels models = plan_models(config, &run->schedule, rank);
    CHECK(models.count == 1, "models=%d", models.count);
    plan_layout(&run->model, &run->optimizer, &scratch, &models, config, rank, run->be, &run->arena);
    CHECK(run->arena.used_bytes == run->plan.arena.used_bytes, "laid out %zu bytes, planned %zu",
          run->arena.used_bytes, run->plan.arena.used_bytes);
    CommOptions options = {.axis = data, .scratch = scratch.data, .scratch_bytes = tensor_bytes(scratch),
                           .control = run->control, .mpi = &run->mpi};
    if (!comm_open(&run->mesh.data.comm, rank.comm, run->be, &options, err)) return false;
    zero_init(&run->zero, &run->model, run->mesh.data.comm, config->reduce_dtype);
    return run_save_open(run, err);
}

// Weights: resumed, imported or fresh. resumed_from is "" unless a checkpoint was loaded.
static bool open_weights(Run *run, char *resumed_from, size_t resumed_bytes, Error *err) {
    const RunConfig *config = &run->config;
    if (!run_choose_checkpoint(run, config->resume, resumed_from, resumed_bytes, err)) return false;
    bool ok = true;
    if (resumed_from[0] != '\0') {
        ok = run_load(run, resumed_from, err);
    } else {
        if (config->init_from[0] == '\0') model_init_weights(&run->model, (uint64_t)config->seed);
        else ok = model_file_read(config->init_from, &config->arch, &run->model.params, model_put_param, &run->model, err);
        optimizer_reset(&run->optimizer, &run->model);
    }
    return run_agree(run, "load the weights", ok, err);
}

// A killed run may still hold its lock when the launcher starts the next.
#define LOCK_WAIT_SECONDS 3

static bool open_logger(Run *run, const char *resumed_from, Error *err) {
    const RunConfig *config = &run->config;
    if (!make_dirs(config->out_dir, err)) return false;
    char *json = config_to_json(config);
    bool ok = logger_open(&run->logger, config->out_dir, json, run->progress.step, config->progress_bar, err);
    free(json);
    if (!ok) return false;
    char model[256];
    params_describe(&config->arch, model, sizeof model);
    logger_message(run->logger, "model    %s, %s", model, dtype_name(config->dtype));
    if (run->device_note[0] != '\0') logger_message(run->logger, "%s", run->device_note);
    if (run->lock.note[0] != '\0') logger_message(run->logger, "%s", run->lock.note);
    logger_message(run->logger, "device   %s; peak %.0f GFLOP/s (%s)", run->be->description, run->peak_flops * 1e-9,
                   run->be->peak_source);
    if (config->dtype == DTYPE_BF16 && !run->be->bf16_native)
        logger_message(run->logger,
                       "         no bf16 dot products on this CPU: bf16 is converted to fp32 inside matmuls");
    if (run->be->shares_host_memory)
        logger_message(run->logger, "memory   %.1f MiB planned", (double)run->plan.total_bytes / 1048576.0);
    else
        logger_message(run->logger, "memory   %.1f MiB planned on the GPU; the driver and libraries took %.1f MiB more "
                                    "(measured)", (double)run->plan.device_bytes / 1048576.0,
                       (double)run->be->library_bytes / 1048576.0);
    const PhaseSpan *phase = schedule_phase(&run->schedule, run->progress.step);
    logger_message(run->logger, "flops    %.4g a token: 6 x weights in products + 12 L NH HS T/2 for causal attention; "
                                "their share of the peak is the MFU",
                   run->flops_per_token[phase->index]);
    logger_message(run->logger, "batch    %lld rows x %lld tokens a step, micro-batches of %lld rows",
                   (long long)phase->rows_per_step, (long long)phase->T, (long long)phase->B);
    if (run->tokenizer == NULL)
        logger_message(run->logger, "         no tokenizer found: no bits per byte and no samples");
    if (run->launch.world > 1)
        logger_message(run->logger, "ranks    %d (%s), zero=%lld, %s; rank 0 takes %.1f MiB", run->launch.world,
                       run->mesh.data.comm->description, (long long)config->zero,
                       config->deterministic == DETERMINISTIC_LANES ? "lanes" : "sums repeat with this many ranks",
                       (double)run->plan.device_bytes / 1048576.0);
    if (resumed_from[0] != '\0')
        logger_message(run->logger, "resumed  %s, step %lld", resumed_from, (long long)run->progress.step);
    return true;
}

static bool open_local(Run *run, Error *err) {
    RunConfig *config = &run->config;
    if (!run_find_tokenizer(&run->tokenizer, config, err)) return false;
    if (!run_resolve_model(config, run->tokenizer, err)) return false;
    if (!schedule_build(&run->schedule, config, run->mesh.data.axis.world, err)) return false;
    if (!run_check_lengths(config, &run->schedule, err)) return false;
    if (!open_data(run, err)) return false;
    run->be = device_open_for(config, run->launch.local_rank, run_threads_of_rank(run), run->device_note,
                               sizeof run->device_note, err);
    if (run->be == NULL || !run_check_fp8(config, run->be, err)) return false;
    run->peak_flops = run->be->measure_peak(run->be, config->dtype);
    for (int i = 0; i < run->schedule.phase_count; ++i)
        run->flops_per_token[i] = work_flops_per_token(&config->arch, run->schedule.phase[i].T);
    return true;
}

// At most one run writes to a directory; rank 0 holds the lock.
static bool take_lock(Run *run, Error *err) {
    if (run->launch.rank > 0) return true;
    return run_lock_take(&run->lock, run->config.out_dir, LOCK_WAIT_SECONDS, err);
}

static bool open_all(Run *run, Error *err) {
    RunConfig *config = &run->config;
    if (!config_check_training(config, err) || !run_open_ranks(run, err)) return false;
    bool ok = run_same_config(run, err) && run_open_mesh(run, err) && open_local(run, err);
    if (!run_agree(run, "open the run", ok, err)) return false;
    if (!run_agree(run, "take the memory", open_memory(run, err), err)) return false;
    run_watch_comm(run);
    if (!run_agree(run, "lock the directory", take_lock(run, err), err)) return false;
    char resumed_from[CONFIG_PATH_BYTES + 64];
    if (!open_weights(run, resumed_from, sizeof resumed_from, err)) return false;
    if (!run_agree(run, "open the logs", run->launch.rank > 0 || open_logger(run, resumed_from, err), err)) return false;
    HashChainOptions chain = {.control = run->control, .launch_rank = run->launch.rank,
                              .launch_world = run->launch.world, .data = run->mesh.data.axis,
                              .every = config->hash_every, .compare_every = config->compare_every,
                              .out_dir = config->out_dir};
    ok = hash_chain_open(&run->chain, run->be, &chain, &run->progress, err);
    if (!run_agree(run, "open the hash chain", ok, err)) return false;
    if (!run_open_steps(run, err)) return false;
    run->resumed_seconds = run->progress.seconds;
    run->resumed_step = run->progress.step;
    run->phase = -1;
    run->has_checkpoint = resumed_from[0] != '\0';
    loader_set_skips(run->loader, run->progress.skip, run->progress.skip_count);
    loader_seek(run->loader, run->progress.step);
    return true;
}

bool run_open(Run *run, const RunConfig *config, Error *err) {
    *run = (Run){.lock = {.fd = -1}};
    run->config = *config;
    return open_all(run, err);
}

void run_close(Run *run) {
    run_save_close(run);  // may still write to the log
    if (run->logger != NULL) logger_close(run->logger);
    if (run->loader != NULL) loader_close(run->loader);
    for (int s = 0; s < CONFIG_MAX_SOURCES; ++s)
        if (run->heldout[s] != NULL) heldout_close(run->heldout[s]);
    run_close_steps(run);
    hash_chain_close(&run->chain);
    zero_free(&run->zero);
    control_set_probe(run->control, NULL, NULL);
    mesh_close(&run->mesh);
    optimizer_free(&run->optimizer);
    model_free(&run->model);
    arena_free(&run->arena);
    tokenizer_free(run->tokenizer);
    if (run->be != NULL) run->be->close(run->be);
    run_lock_release(&run->lock);
    control_close(run->control);
    comm_mpi_close(&run->mpi);
    *run = (Run){.lock = {.fd = -1}};
}
