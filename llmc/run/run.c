// run.c: opening and closing a run: what is local to a rank first, then what all ranks do together. Steps are in run_step.c,
// evaluation and reports in run_report.c, checkpoints in run_save.c and run_load.c.
#include "llmc/run/run.h"

#include <glob.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/run/device.h"
#include "llmc/formats/model_file.h"
#include "llmc/plan/work.h"
#include "llmc/base/rng.h"
#include "llmc/run/run_save.h"
#include "llmc/run/run_load.h"
#include "llmc/loader/shard.h"

// dir/tokenizer.json of the directory that holds the first shard of a glob; NULL when there is none.
static char *tokenizer_beside(const char *pattern) {
    glob_t found;
    char *path = NULL;
    if (glob(pattern, 0, NULL, &found) == 0 && found.gl_pathc > 0) {
        const char *slash = strrchr(found.gl_pathv[0], '/');
        int dir_length = slash == NULL ? 1 : (int)(slash - found.gl_pathv[0]);
        path = xasprintf("%.*s/tokenizer.json", dir_length, slash == NULL ? "." : found.gl_pathv[0]);
    }
    globfree(&found);
    if (path != NULL && file_exists(path)) return path;
    free(path);
    return NULL;
}

bool run_find_tokenizer(Tokenizer **out, const RunConfig *config, Error *err) {
    *out = NULL;
    char *path = NULL;
    if (config->tokenizer[0] != '\0') {
        path = xstrdup(config->tokenizer);
    } else if (config->init_from[0] != '\0') {
        path = path_join(config->init_from, "tokenizer.json");
        if (!file_exists(path)) {
            free(path);
            path = NULL;
        }
    }
    if (path == NULL && config->source_count > 0) path = tokenizer_beside(config->source[0].train);
    if (path == NULL) return true;
    *out = tokenizer_load(path, err);
    free(path);
    return *out != NULL;
}

// What the first shard of the run says its vocabulary is; 0: it does not (llm.c's format) or the run has none.
static bool shard_vocab(int64_t *out, const RunConfig *config, Error *err) {
    *out = 0;
    const char *pattern = config->source_count > 0 ? config->source[0].train : "";
    if (pattern[0] == '\0') return true;
    glob_t found;
    if (glob(pattern, 0, NULL, &found) != 0)
        return error_set(err, "train=%s: expected token shards, found no file of that name", pattern);
    Shard shard;
    bool ok = shard_open(&shard, found.gl_pathv[0], err);
    if (ok) *out = shard.vocab;
    if (ok) shard_close(&shard);
    globfree(&found);
    return ok;
}

bool run_resolve_model(RunConfig *config, const Tokenizer *tokenizer, Error *err) {
    ModelConfig *arch = &config->arch;
    if (arch->V == 0 && tokenizer != NULL) arch->V = tokenizer_vocab(tokenizer);
    if (arch->V == 0 && !shard_vocab(&arch->V, config, err)) return false;
    if (arch->V == 0) arch->V = config->preset_vocab;
    if (arch->V == 0)
        return error_set(
            err,
            "the vocabulary is unknown: expected vocab=N, tokenizer=PATH, a tokenizer.json beside the training "
            "shards (train=%s) or shards that state it",
            config->source_count > 0 ? config->source[0].train : "");
    arch->Vp = 0;
    if (!model_config_finish(arch, err)) return false;
    if (tokenizer != NULL && tokenizer_vocab(tokenizer) > arch->V)
        return error_set(
            err, "the tokenizer \"%s\" has %d ids but the model's vocabulary is %lld: set vocab=%d or leave it out",
            tokenizer_name(tokenizer), tokenizer_vocab(tokenizer), (long long)arch->V, tokenizer_vocab(tokenizer));
    return true;
}

// Learned positions end at max_seq_len; rotary ones do not.
static bool check_lengths(const RunConfig *config, const Schedule *schedule, Error *err) {
    for (int i = 0; i < schedule->phase_count; ++i)
        if (config->arch.position == POSITION_LEARNED && schedule->phase[i].T > config->arch.max_seq_len)
            return error_set(err, "seq_len=%lld is longer than the model's learned positions, max_seq_len=%lld",
                             (long long)schedule->phase[i].T, (long long)config->arch.max_seq_len);
    return true;
}

// 8-bit products want rows of whole 16 elements, and a device that has them.
static bool check_fp8(const RunConfig *config, const Backend *be, Error *err) {
    if (!config->fp8) return true;
    const ModelConfig *arch = &config->arch;
    if (!be->matmul_fp8)
        return error_set(err, "fp8=true: expected a GPU with 8-bit floats (compute capability 8.9 or later: L4, RTX "
                              "4090, H100), found %s", be->description);
    const struct {
        const char *name;
        int64_t width;
    } widths[] = {{"channels", arch->C}, {"heads * head_size", arch->NH * arch->HS},
                  {"(heads + 2 kv_heads) * head_size", model_config_qkv_width(arch)}, {"ffn", arch->F}};
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; ++i)
        if (widths[i].width % 16 != 0)
            return error_set(err, "fp8=true: expected %s to be a multiple of 16, found %lld", widths[i].name,
                             (long long)widths[i].width);
    return true;
}

static bool open_data(Run *run, Error *err) {
    const RunConfig *config = &run->config;
    int32_t eot = run->tokenizer == NULL ? -1 : tokenizer_eot(run->tokenizer);
    if (!loader_open(&run->loader, config, &run->schedule, config->arch.V, eot, run->launch.rank,
                     run->launch.world, err))
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
    // An NCCL group of one costs what it costs: TOKAMAK_COMM=nccl, to measure it.
    const char *wanted_kind = getenv("TOKAMAK_COMM");
    PlanRank rank = {run->launch.rank, run->launch.world,
                     wanted_kind != NULL ? wanted_kind : comm_kind(run->be, run->launch.world)};
    plan_compute(&run->plan, config, &run->schedule, rank, run->be);
    run->be->workspace_limit_bytes = run->plan.workspace_bytes;
    size_t available = run->be->memory_free(run->be), wanted = run->plan.device_bytes;
    if (run->be->shares_host_memory) available /= (size_t)run->local_world;
    bool fits = available == 0 || wanted <= available;
    // Memory may be free and yet not to be had in one piece.
    if (!fits || !arena_init(&run->arena, run->be, run->plan.arena.used_bytes, err)) {
        char options[600];
        plan_suggest(options, sizeof options, config, &run->schedule, rank, run->be, available);
        return error_set(err, "this run needs %.1f MiB of memory and %.1f MiB are free (train_gpt plan shows what for); "
                              "what would fit: %s", (double)wanted / 1048576.0, (double)available / 1048576.0, options);
    }
    Tensor scratch;
    plan_layout(&run->model, &run->optimizer, &scratch, config, &run->schedule, rank, run->be, &run->arena);
    CHECK(run->arena.used_bytes == run->plan.arena.used_bytes, "laid out %zu bytes, planned %zu",
          run->arena.used_bytes, run->plan.arena.used_bytes);
    CommOptions options = {.rank = rank.rank, .world = rank.world, .scratch = scratch.data,
                           .scratch_bytes = tensor_bytes(scratch), .control = run->control, .mpi = &run->mpi};
    if (!comm_open(&run->comm, rank.comm, run->be, &options, err)) return false;
    zero_init(&run->zero, &run->model, run->comm, config->reduce_dtype);
    return run_save_open(run, err);
}

bool run_agree(Run *run, const char *what, bool ok, Error *err) {
    if (run->control == NULL) return ok;
    double failed = ok ? 0 : run->launch.world - run->launch.rank;
    if (!control_reduce(run->control, what, NULL, 0, &failed, 1)) return false;
    if (failed == 0) return true;
    run->all_know = true;
    if (ok || run->launch.world - run->launch.rank != (int)failed) err->message[0] = '\0';
    return false;
}

bool run_choose_checkpoint(Run *run, const char *resume, char *out, size_t out_bytes, Error *err) {
    const RunConfig *config = &run->config;
    memset(out, 0, out_bytes);
    bool ok = true;
    if (run->launch.rank == 0) {
        char *skipped = NULL, *newest = NULL;
        bool automatic = strcmp(resume, "auto") == 0, never = strcmp(resume, "never") == 0;
        if (automatic || never) newest = checkpoint_newest(config->out_dir, &skipped);
        else if (checkpoint_verify(resume, true, err)) newest = xstrdup(resume);
        else ok = false;
        if (skipped != NULL) fprintf(stderr, "passed over: %s\n", skipped);
        if (never && newest != NULL)
            ok = error_set(err, "%s already holds %s and resume=never: choose another out_dir, or resume=auto to go on "
                                "from it", config->out_dir, newest);
        if (newest != NULL) snprintf(out, out_bytes, "%s", newest);
        free(skipped);
        free(newest);
    }
    return run_agree(run, "choose the checkpoint", ok, err) &&
           control_broadcast(run->control, "checkpoint to go on from", out, out_bytes);
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

// A run that was killed may still hold its lock when the launcher starts the next.
#define LOCK_WAIT_SECONDS 3

static bool open_logger(Run *run, const char *resumed_from, Error *err) {
    const RunConfig *config = &run->config;
    if (!make_dirs(config->out_dir, err)) return false;
    char *json = config_to_json(config);
    bool ok = logger_open(&run->logger, config->out_dir, json, run->progress.step, config->progress_bar, err);
    free(json);
    if (!ok) return false;
    char model[256];
    model_config_describe(&config->arch, model, sizeof model);
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
                       run->comm->description, (long long)config->zero,
                       config->deterministic == DETERMINISTIC_LANES ? "lanes" : "sums repeat with this many ranks",
                       (double)run->plan.device_bytes / 1048576.0);
    if (resumed_from[0] != '\0')
        logger_message(run->logger, "resumed  %s, step %lld", resumed_from, (long long)run->progress.step);
    return true;
}

// ---------------------------------------------------------------------------------------------------------------
// Ranks

// Who this process is, and a line to the others.
static bool open_ranks(Run *run, Error *err) {
    const RunConfig *config = &run->config;
    Launch *launch = &run->launch;
    if (!launch_detect(launch, config->launch, config->rendezvous, err)) return false;
    if (launch->kind == LAUNCH_MPI && !comm_mpi_open(&run->mpi, launch, err)) return false;
    if (!launch_check_mpi(launch, err)) return false;
    run->local_world = 1;
    if (launch->world == 1) return true;
    ControlOptions options = {.timeout_seconds = config->comm_timeout};
    if (launch->kind == LAUNCH_MPI) {
        options.share = run->mpi.api->share;
        options.share_context = run->mpi.mpi;
    }
    if (!control_open(&run->control, launch, &options, err)) return false;
    char(*hosts)[LAUNCH_HOST_BYTES] = xcalloc((size_t)launch->world, sizeof *hosts);
    bool ok = control_gather(run->control, "hosts", hosts, launch->host, sizeof *hosts);
    run->local_world = launch->local_rank = 0;
    for (int r = 0; r < launch->world; ++r) {
        if (strncmp(hosts[r], launch->host, sizeof *hosts) != 0) continue;
        ++run->local_world;
        if (r < launch->rank) ++launch->local_rank;
    }
    free(hosts);
    return ok;
}

// Ranks that were started with different options would train on, each to its own mind.
static bool same_config(const Run *run, Error *err) {
    if (run->control == NULL) return true;
    char *json = config_to_json(&run->config);
    uint64_t mine = rng_hash(json), *all = xcalloc((size_t)run->launch.world, sizeof *all);
    free(json);
    bool ok = control_gather(run->control, "options", all, &mine, sizeof mine);
    char rank[128];
    for (int r = 1; r < run->launch.world && ok; ++r) {
        if (all[r] == all[0]) continue;
        control_describe_rank(run->control, r, rank, sizeof rank);
        ok = error_set(err, "%s was started with other options than rank 0: give every rank the same command and run "
                            "file", rank);
    }
    free(all);
    return ok;
}

// Threads of this rank where the config leaves them open, 0: what the machine has. Ranks of one host that the launcher
// has not bound to cores of their own share them.
static int threads_of_rank(const Run *run) {
    cpu_set_t mine;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (run->local_world == 1 || sched_getaffinity(0, sizeof mine, &mine) != 0 || CPU_COUNT(&mine) < cores) return 0;
    return (int)max_i64(1, cores / run->local_world);
}

static bool open_local(Run *run, Error *err) {
    RunConfig *config = &run->config;
    if (!run_find_tokenizer(&run->tokenizer, config, err)) return false;
    if (!run_resolve_model(config, run->tokenizer, err)) return false;
    if (!schedule_build(&run->schedule, config, run->launch.world, err)) return false;
    if (!check_lengths(config, &run->schedule, err)) return false;
    if (!open_data(run, err)) return false;
    run->be = device_open_for(config, run->launch.local_rank, threads_of_rank(run), run->device_note,
                               sizeof run->device_note, err);
    if (run->be == NULL || !check_fp8(config, run->be, err)) return false;
    run->peak_flops = run->be->measure_peak(run->be, config->dtype);
    for (int i = 0; i < run->schedule.phase_count; ++i)
        run->flops_per_token[i] = work_flops_per_token(&config->arch, run->schedule.phase[i].T);
    return true;
}

static void probe_comm(void *context, ControlStatus *out) {
    Comm *comm = context;
    comm->status(comm, out);
}

static bool check_ranks(const Run *run, Error *err) {
    PartitionOptions ranks = {.world = run->launch.world, .lanes = run->config.deterministic == DETERMINISTIC_LANES};
    if (!partition_check(&ranks, err)) return false;
    return !ranks.lanes || run->config.reduce_dtype == DTYPE_F32 ||
           error_set(err, "deterministic=lanes: expected reduce_dtype=fp32, found bf16: gradients that travel would be "
                          "rounded and those that do not would not, so results would depend on the number of ranks");
}

// One run at a time writes to a directory; rank 0 holds it.
static bool take_lock(Run *run, Error *err) {
    if (run->launch.rank > 0) return true;
    return run_lock_take(&run->lock, run->config.out_dir, LOCK_WAIT_SECONDS, err);
}

static bool open_all(Run *run, Error *err) {
    RunConfig *config = &run->config;
    if (!config_check_training(config, err) || !open_ranks(run, err)) return false;
    bool ok = same_config(run, err) && check_ranks(run, err) && open_local(run, err);
    if (!run_agree(run, "open the run", ok, err)) return false;
    if (!run_agree(run, "take the memory", open_memory(run, err), err)) return false;
    control_set_probe(run->control, probe_comm, run->comm);
    if (!run_agree(run, "lock the directory", take_lock(run, err), err)) return false;
    char resumed_from[CONFIG_PATH_BYTES + 64];
    if (!open_weights(run, resumed_from, sizeof resumed_from, err)) return false;
    if (!run_agree(run, "open the logs", run->launch.rank > 0 || open_logger(run, resumed_from, err), err)) return false;
    HashChainOptions chain = {.control = run->control, .rank = run->launch.rank, .world = run->launch.world,
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
    run_save_close(run);  // may still have something to say
    if (run->logger != NULL) logger_close(run->logger);
    if (run->loader != NULL) loader_close(run->loader);
    for (int s = 0; s < CONFIG_MAX_SOURCES; ++s)
        if (run->heldout[s] != NULL) heldout_close(run->heldout[s]);
    run_close_steps(run);
    hash_chain_close(&run->chain);
    zero_free(&run->zero);
    control_set_probe(run->control, NULL, NULL);
    if (run->comm != NULL) run->comm->close(run->comm);
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
