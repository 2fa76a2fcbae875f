// run.c: opening a run, entering its steps, evaluation and samples on the way. Checkpoints are in run_state.c.
#include "llmc/run.h"

#include <glob.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/device.h"
#include "llmc/guard.h"
#include "llmc/hf.h"
#include "llmc/rng.h"
#include "llmc/run_save.h"
#include "llmc/run_state.h"
#include "llmc/shard.h"

// Where measured choices are kept between runs: the user's cache directory. NULL when there is none.
static char *cache_dir(void) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache != NULL && cache[0] == '/') return xasprintf("%s/tokamak", cache);
    return home != NULL && home[0] == '/' ? xasprintf("%s/.cache/tokamak", home) : NULL;
}

Backend *run_open_backend(const RunConfig *config, int local_rank, int threads, char *note, size_t note_bytes,
                          Error *err) {
    char *cache = cache_dir();
    DeviceChoice choice = {.device = config->device,
                           .threads = config->threads > 0 ? (int)config->threads : threads,
                           .cpu_isa = config->cpu_isa,
                           .plugin = {.device_index = local_rank, .attention = config->attention, .cache_dir = cache,
                                      .graphs = config->graphs}};
    Backend *be = device_open(&choice, note, note_bytes, err);
    free(cache);
    return be;
}

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

// True when `ok` is true on every rank. Else err says, on the lowest rank that failed, why, and is empty elsewhere: one
// message is printed.
static bool run_agree(Run *run, const char *what, bool ok, Error *err) {
    if (run->control == NULL) return ok;
    double failed = ok ? 0 : run->launch.world - run->launch.rank;
    if (!control_reduce(run->control, what, NULL, 0, &failed, 1)) return false;
    if (failed == 0) return true;
    run->all_know = true;
    if (ok || run->launch.world - run->launch.rank != (int)failed) err->message[0] = '\0';
    return false;
}

static bool put_parameter(void *context, const ParamSpec *spec, const float *values, Error *err) {
    (void)err;
    model_set_param(context, spec, values);
    return true;
}

// The checkpoint to go on from, "" for none: rank 0 looks, all hear of it.
static bool choose_checkpoint(Run *run, const char *resume, char *out, size_t out_bytes, Error *err) {
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
    if (!choose_checkpoint(run, config->resume, resumed_from, resumed_bytes, err)) return false;
    bool ok = true;
    if (resumed_from[0] != '\0') {
        ok = run_state_load(run, resumed_from, err);
    } else {
        if (config->init_from[0] == '\0') model_init_weights(&run->model, (uint64_t)config->seed);
        else ok = model_file_read(config->init_from, &config->arch, &run->model.params, put_parameter, &run->model, err);
        optimizer_reset(&run->optimizer, &run->model);
    }
    return run_agree(run, "load the weights", ok, err);
}

// A run that was killed may still hold its lock when the launcher starts the next.
#define LOCK_WAIT_SECONDS 3

// What each rank brings to a step's agreement: sums (the weights of its lanes last), then maxima.
enum { VOTE_SECONDS, VOTE_LANES };
enum { VOTE_SIGNAL, VOTE_NO_DATA, VOTE_SAVER, VOTE_MAXIMA = VOTE_SAVER + SAVER_VOTES };

static size_t result_bytes(const Run *run) {
    return sizeof(StepResult) + to_size(run->model.shape.micro_batches) * sizeof(double);
}

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
                   model_config_flops_per_token(&config->arch, phase->T));
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
    run->be = run_open_backend(config, run->launch.local_rank, threads_of_rank(run), run->device_note,
                               sizeof run->device_note, err);
    if (run->be == NULL || !check_fp8(config, run->be, err)) return false;
    run->peak_flops = run->be->measure_peak(run->be, config->dtype);
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
    for (int i = 0; i < RUN_PENDING_STEPS; ++i) {
        run->pending[i].host = run->be->host_alloc(run->be, result_bytes(run), err);
        if (run->pending[i].host == NULL) return false;
    }
    run->vote = xcalloc(to_size(run->model.shape.micro_batches) + VOTE_LANES, sizeof *run->vote);
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
    for (int i = 0; i < RUN_PENDING_STEPS; ++i)
        if (run->pending[i].host != NULL) run->be->host_free(run->be, run->pending[i].host);
    hash_chain_close(&run->chain);
    zero_free(&run->zero);
    control_set_probe(run->control, NULL, NULL);
    if (run->comm != NULL) run->comm->close(run->comm);
    free(run->vote);
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

// Time-bounded runs: the horizon is where the speed so far leads, so that learning-rate curves follow the clock. seconds:
// of rank 0, the same everywhere.
static bool time_is_left(Run *run, double seconds) {
    double budget = run->config.train_seconds;
    int64_t step = run->progress.step;
    if (step == 0) return true;
    double step_seconds = seconds / (double)step;
    if (seconds + step_seconds > budget) return false;
    schedule_set_horizon(&run->schedule, max_i64((int64_t)(budget / step_seconds), step + 1));
    return true;
}

static bool enter_phase(Run *run, Error *err) {
    const PhaseSpan *phase = schedule_phase(&run->schedule, run->progress.step);
    if (phase->index == run->phase) return true;
    const PhaseConfig *wanted = &run->config.phase[phase->index];
    if (run->config.phase_count > 1)
        logger_message(run->logger, "phase    %s from step %lld: %lld steps of %lld rows x %lld tokens", wanted->name,
                       (long long)run->progress.step, (long long)phase->steps, (long long)phase->rows_per_step,
                       (long long)phase->T);
    run->phase = phase->index;
    return optimizer_set_trainable(&run->optimizer, &run->model.params, wanted->trainable, err);
}

bool run_begin_step(Run *run, int stop_signal, Error *err) {
    if (run->started == 0) run->started = now_seconds();
    run->progress.seconds = run->resumed_seconds + now_seconds() - run->started;
    if (run->progress.step >= run->schedule.total_steps) return false;
    run->batch = loader_next(run->loader, err);
    int64_t lanes = schedule_phase(&run->schedule, run->progress.step)->micro_batches;
    double *sum = run->vote, most[VOTE_MAXIMA] = {stop_signal, run->batch == NULL};
    sum[VOTE_SECONDS] = run->launch.rank == 0 ? run->progress.seconds : 0;
    run_save_vote(run, most + VOTE_SAVER);
    for (int64_t i = 0; i < lanes; ++i) sum[VOTE_LANES + i] = run->batch != NULL ? run->batch->lane_weight[i] : 0;
    control_set_step(run->control, run->progress.step + 1);
    if (!control_reduce(run->control, "step", sum, VOTE_LANES + (int)lanes, most, VOTE_MAXIMA))
        return error_set(err, "the ranks lost each other");
    run->stop_signal = (int)most[VOTE_SIGNAL];
    if (!run_save_poll(run, most + VOTE_SAVER, err)) return false;
    run->all_know = most[VOTE_NO_DATA] > 0;
    if (run->all_know)
        return run->batch == NULL ? false : error_set(err, "another rank cannot read its data; it says why");
    if (run->stop_signal != 0) return false;
    if (run->config.train_seconds > 0 && !time_is_left(run, sum[VOTE_SECONDS])) return false;
    run->weight_sum = zero_sum_rounds(sum + VOTE_LANES, lanes);
    return enter_phase(run, err);
}

// What a step shows to the guard. A spike may end the stretch since the last checkpoint: run->rewind_because.
static bool guard_step(Run *run, const PendingStep *pending, double loss, Error *err) {
    const GradStats *stats = &pending->host->stats;
    const GuardResult result = {.step = pending->step,
                                .skip = (SkipReason)stats->skip,
                                .loss = loss,
                                .norm = (double)stats->norm,
                                .skip_loss = pending->skip_loss,
                                .skip_norm = pending->skip_norm};
    char line[300];
    GuardAction action = guard_count(&run->progress, line, sizeof line, &run->config, &result, run->has_checkpoint, err);
    if (line[0] != '\0') logger_message(run->logger, "%s", line);
    if (action == GUARD_REWIND) run->rewind_because = pending->step;
    Error unsaved = {""};
    if (action == GUARD_STOP) run_save_finish(run, &unsaved);  // all ranks stop here: what was begun is not lost
    return action != GUARD_STOP;
}

static StepRecord step_record(const Run *run, const PendingStep *pending, double step_ms) {
    int64_t step = pending->step;
    const PhaseSpan *phase = schedule_phase(&run->schedule, step - 1);
    double tokens = (double)(phase->rows_per_step * phase->T);
    double rate = tokens / (step_ms * 1e-3);
    double flops = model_config_flops_per_token(&run->config.arch, phase->T) * rate;
    // Unknown before a run bounded by time has measured its first step.
    int64_t total_steps = run->schedule.total_steps < SCHEDULE_OPEN_STEPS ? run->schedule.total_steps : 0;
    double spent = run->progress.seconds;
    double left = run->config.train_seconds > 0
                      ? run->config.train_seconds - spent
                      : (double)(run->schedule.total_steps - step) * (spent - run->resumed_seconds) /
                            (double)(step - run->resumed_step);
    return (StepRecord){.step = step,
                        .total_steps = total_steps,
                        .tokens = schedule_tokens_before(&run->schedule, step),
                        .loss = zero_sum_rounds(pending->host->loss_sums, pending->micro_batches) * pending->loss_scale,
                        .lr = pending->lr,
                        .grad_norm = (double)pending->host->stats.norm,
                        .tokens_per_second = rate,
                        .peak_share = run->peak_flops > 0 ? flops / run->peak_flops : -1,
                        .step_ms = step_ms,
                        .data_wait_ms = pending->data_wait_ms,
                        .seconds_left = left > 0 ? left : 0,
                        .seconds = spent,
                        .skipped = pending->host->stats.skip != 0,
                        .phase = run->config.phase[phase->index].name};
}

OptimizerStep run_optimizer_step(const Run *run, double loss_scale) {
    int64_t step = run->progress.step;
    OptimizerStep out = {.t = step + 1,
                         .lr = schedule_lr(&run->schedule, step),
                         .lr_factor = schedule_lr_factor(&run->schedule, step),
                         .clip = {.max_norm = (float)run->config.grad_clip, .loss_scale = loss_scale},
                         .loss_sums = tensor_rows(run->model.loss_sums, 0, run->batch->micro_batches)};
    guard_bounds(&out.clip.skip_norm, &out.clip.skip_loss, &run->progress.guard, &run->schedule, out.t);
    return out;
}

bool run_rewind(Run *run, Error *err) {
    int64_t because = run->rewind_because;
    RunProgress before = run->progress;
    if (!run->be->synchronize(run->be, err) || !run_save_finish(run, err)) return false;
    run->reported = run->issued;  // what came after is not looked at any more
    run->rewind_because = 0;
    char newest[CONFIG_PATH_BYTES + 64], line[300];
    if (!choose_checkpoint(run, "auto", newest, sizeof newest, err)) return false;
    bool ok = newest[0] != '\0' ||
              error_set(err, "%s holds no complete checkpoint any more to go back to", run->config.out_dir);
    ok = ok && run_state_load(run, newest, err) &&
         guard_rewind(&run->progress, line, sizeof line, &before, because, err);
    ok = ok && hash_chain_resume(&run->chain, &run->progress, err);
    if (!run_agree(run, "go back", ok, err)) return false;
    zero_send_weights(&run->zero);
    loader_set_skips(run->loader, run->progress.skip, run->progress.skip_count);
    loader_seek(run->loader, run->progress.step);
    run->phase = -1;
    logger_message(run->logger, "%s", line);
    return true;
}

bool run_check_step(Run *run, Error *err) {
    int64_t step = run->progress.step, every = run->config.compare_every;
    if (!hash_chain_link(&run->chain, step, &run->model, &run->optimizer, err)) return false;
    if (run->launch.world == 1 || run->config.zero == 3 || every == 0 || step % every != 0) return true;
    for (int b = 0; b < run->model.part.buckets; ++b) zero_gather_weights(&run->zero, b);
    bool same = replicas_compare(&run->chain, step, &run->model, err);
    return run_agree(run, "compare the replicas", same, err);
}

void run_abort(Run *run, const Error *err) {
    if (run->control != NULL && !run->all_know) control_abort(run->control, err->message);
}

static void note_finished(const Run *run, PendingStep *pending) {
    pending->finished = now_seconds();
    run->comm->stats(run->comm, &pending->comm);
}

void run_step_issued(Run *run, double started, const OptimizerStep *step) {
    Backend *be = run->be;
    PendingStep *pending = &run->pending[run->issued % RUN_PENDING_STEPS];
    *pending = (PendingStep){.step = ++run->progress.step,
                             .micro_batches = run->batch->micro_batches,
                             .started = started,
                             .loss_scale = step->clip.loss_scale,
                             .lr = step->lr,
                             .skip_norm = step->clip.skip_norm,
                             .skip_loss = step->clip.skip_loss,
                             .data_wait_ms = run->batch->wait_ms,
                             .host = pending->host};
    be->download_begin(be, pending->host->loss_sums, run->model.loss_sums.data,
                       to_size(pending->micro_batches) * sizeof(double));
    pending->read = be->download_begin(be, &pending->host->stats, run->optimizer.stats, sizeof(GradStats));
    ++run->issued;
    // A CPU has done it by now; its result is looked at when those of other devices are.
    if (be->has_passed(be, pending->read)) note_finished(run, pending);
}

// The device's own words, and where to go on.
static bool explain_failure(const Run *run, int64_t step, Error *err) {
    char *skipped, *newest = checkpoint_newest(run->config.out_dir, &skipped);
    free(skipped);
    error_prefix(err, "step %lld", (long long)step);
    size_t used = strlen(err->message);
    if (newest != NULL)
        snprintf(err->message + used, sizeof err->message - used,
                 "; the last complete checkpoint is %s: the same command goes on from there", newest);
    else
        snprintf(err->message + used, sizeof err->message - used, "; %s holds no complete checkpoint",
                 run->config.out_dir);
    free(newest);
    return false;
}

// Known once a step has asked for attention; another shape, or the other direction, may be served by another kernel.
static void report_attention(Run *run) {
    const char *now = run->be->attention_choice;
    if (strcmp(run->attention[0], now) == 0 || strcmp(run->attention[1], now) == 0) return;
    memcpy(run->attention[1], run->attention[0], sizeof run->attention[1]);
    snprintf(run->attention[0], sizeof run->attention[0], "%s", now);
    logger_message(run->logger, "attention: %s", now);
}

bool run_report_steps(Run *run, int64_t may_be_pending, Error *err) {
    Backend *be = run->be;
    while (run->reported < run->issued) {
        PendingStep *pending = &run->pending[run->reported % RUN_PENDING_STEPS];
        // What a result leads to, ranks do in the same step: then they look at it in the same step, too.
        bool at_once = run->launch.world == 1 && be->has_passed(be, pending->read);
        if (run->issued - run->reported <= may_be_pending && !at_once) return true;
        if (!be->wait(be, pending->read, err)) return explain_failure(run, pending->step, err);
        ++run->reported;
        report_attention(run);
        if (pending->finished == 0) note_finished(run, pending);
        double began = fmax(pending->started, run->reported_at);
        run->reported_at = pending->finished;
        run->progress.seconds = run->resumed_seconds + pending->finished - run->started;
        StepRecord record = step_record(run, pending, (pending->finished - began) * 1e3);
        record.comm_ms = (pending->comm.busy_seconds - run->comm_reported.busy_seconds) * 1e3;
        record.comm_exposed_ms = (pending->comm.exposed_seconds - run->comm_reported.exposed_seconds) * 1e3;
        run->comm_reported = pending->comm;
        if (pending->step % run->config.log_every == 0 || record.skipped) {
            DeviceTelemetry device;
            be->telemetry(be, &device);
            record.clock_mhz = device.clock_mhz;
            record.power_watts = device.power_watts;
            record.temperature_celsius = device.temperature_celsius;
            record.device_memory_mib = (double)device.memory_used_bytes / 1048576.0;
            logger_step(run->logger, &record);
        }
        if (!guard_step(run, pending, record.loss, err)) return false;
        if (run->rewind_because > 0) return true;
    }
    return true;
}

bool run_evaluate(Run *run, Error *err) {
    double nll = 0;
    int64_t tokens = 0, sources = 0, bytes = 0;
    int64_t seen = schedule_tokens_before(&run->schedule, run->progress.step);
    for (int s = 0; s < run->config.source_count; ++s) {
        if (run->heldout[s] == NULL) continue;
        EvalResult result;
        if (!eval_heldout(&result, &run->model, run->heldout[s], run->tokenizer, run->control, run->launch.rank,
                          run->launch.world, err))
            return false;
        EvalRecord record = {.step = run->progress.step,
                             .tokens = seen,
                             .source = run->config.source[s].name,
                             .loss = result.loss,
                             .perplexity = result.perplexity,
                             .bits_per_byte = result.bits_per_byte};
        logger_eval(run->logger, &record);
        nll += result.loss * (double)result.tokens;
        tokens += result.tokens;
        bytes += result.text_bytes;
        ++sources;
    }
    if (sources > 1) {
        double mean = nll / (double)tokens;
        EvalRecord record = {.step = run->progress.step,
                             .tokens = seen,
                             .source = "mean",
                             .loss = mean,
                             .perplexity = exp(mean),
                             .bits_per_byte = bytes > 0 ? nll / (0.693147180559945309 * (double)bytes) : -1};
        logger_eval(run->logger, &record);
    }
    return true;
}

typedef struct {
    const Tokenizer *tokenizer;
    char *text;
    size_t length;
} SampleText;

static bool append_token(void *context, int32_t id) {
    SampleText *sample = context;
    int32_t bytes;
    if (id >= tokenizer_vocab(sample->tokenizer)) return true;  // a larger vocabulary than the tokenizer's: no text
    const uint8_t *token = tokenizer_token(sample->tokenizer, id, &bytes);
    sample->text = xrealloc(sample->text, sample->length + (size_t)bytes + 1);
    memcpy(sample->text + sample->length, token, (size_t)bytes);
    sample->length += (size_t)bytes;
    sample->text[sample->length] = '\0';
    return true;
}

void run_sample(Run *run) {
    if (run->tokenizer == NULL || run->model.shape.cache_tokens == 0) return;
    int32_t eot = tokenizer_eot(run->tokenizer);
    TokenList prompt = {0};
    // A text begins after an end-of-text token, as every document of the shards does.
    if (eot >= 0) token_list_push(&prompt, eot);
    tokenizer_encode(run->tokenizer, &prompt, run->config.sample_prompt, (int64_t)strlen(run->config.sample_prompt),
                     false);
    if (prompt.count == 0 || prompt.count >= run->model.shape.cache_tokens) {
        token_list_free(&prompt);
        return;
    }
    SampleOptions options = {.temperature = 0.8,
                             .top_p = 0.95,
                             .seed = (uint64_t)run->config.seed,
                             .max_tokens = run->config.sample_tokens};
    SampleText sample = {.tokenizer = run->tokenizer,
                         .text = xstrdup(run->config.sample_prompt),
                         .length = strlen(run->config.sample_prompt)};
    sample_continue(&run->model, prompt.ids, prompt.count, eot, &options, append_token, &sample);
    logger_sample(run->logger, run->progress.step, sample.text);
    free(sample.text);
    token_list_free(&prompt);
}

// The most memory that this process ever had, "VmHWM" of /proc; 0: not known.
static double peak_resident_bytes(void) {
    char line[256];
    double kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "VmHWM: %lf kB", &kib) == 1) break;
    if (file != NULL) fclose(file);
    return kib * 1024;
}

void run_report_ranks(Run *run) {
    int world = run->launch.world;
    if (world == 1) return;
    const double mine[2] = {peak_resident_bytes(), (double)run->plan.total_bytes};
    double(*all)[2] = xcalloc((size_t)world, sizeof *all);
    if (control_gather(run->control, "memory of ranks", all, mine, sizeof mine)) {
        int off = 0;
        for (int r = 1; r < world; ++r)
            if (fabs(all[r][0] / all[r][1] - 1) > fabs(all[off][0] / all[off][1] - 1)) off = r;
        CommStats stats;
        run->comm->stats(run->comm, &stats);
        double steps = (double)max_i64(1, run->reported);
        logger_message(run->logger,
                       "ranks    communication %.1f ms a step, %.0f %% of it hidden; %.1f MiB sent a step and rank",
                       stats.busy_seconds / steps * 1e3,
                       100 * (1 - stats.exposed_seconds / fmax(stats.busy_seconds, 1e-9)),
                       (double)stats.bytes / steps / 1048576.0);
        if (run->be->shares_host_memory)
            logger_message(run->logger, "memory   rank 0 took %.1f MiB of %.1f planned; farthest off is rank %d: %.1f of "
                                        "%.1f (%+.1f %%)", all[0][0] / 1048576.0, all[0][1] / 1048576.0, off,
                           all[off][0] / 1048576.0, all[off][1] / 1048576.0,
                           100 * (all[off][0] / all[off][1] - 1));
    }
    free(all);
}

void run_print_summary(const Run *run) {
    if (run->launch.rank > 0) return;
    const char *dir = run->config.out_dir;
    char checkpoint[CONFIG_PATH_BYTES + 32];
    snprintf(checkpoint, sizeof checkpoint, "%s/step_%08lld", dir, (long long)run->progress.step);
    printf("\nstep %lld, %.1f s of training\n", (long long)run->progress.step, run->progress.seconds);
    printf("  checkpoint   %s   (a Hugging Face model directory)\n", checkpoint);
    printf("  loss curve   %s/loss.svg\n", dir);
    printf("  metrics      %s/metrics.jsonl, and TensorBoard events beside it: tensorboard --logdir %s\n", dir, dir);
    printf("try next\n");
    if (run->tokenizer != NULL) printf("  train_gpt sample ckpt=%s prompt=\"Once\"\n", checkpoint);
    if (run->config.source_count > 0 && run->config.source[0].val[0] != '\0')
        printf("  train_gpt eval ckpt=%s data='%s'\n", checkpoint, run->config.source[0].val);
    printf("  train_gpt ckpt verify %s\n", checkpoint);
}

// ---------------------------------------------------------------------------------------------------------------
// Models for inference

static bool inference_load(InferenceModel *out, const InferenceOptions *options, Error *err) {
    RunConfig *config = &out->config;
    if (!model_file_read_config(&config->arch, options->path, err) || !model_config_finish(&config->arch, err))
        return false;
    bool given = options->tokenizer != NULL && options->tokenizer[0] != '\0';
    char *beside = path_join(options->path, "tokenizer.json");
    bool ok = true;
    if (given || file_exists(beside)) {
        out->tokenizer = tokenizer_load(given ? options->tokenizer : beside, err);
        ok = out->tokenizer != NULL;
    }
    free(beside);
    if (!ok) return false;
    char note[RUN_NOTE_BYTES];
    snprintf(config->device, sizeof config->device, "%s", options->device);
    snprintf(config->cpu_isa, sizeof config->cpu_isa, "auto");
    snprintf(config->attention, sizeof config->attention, "auto");
    config->threads = options->threads;
    out->be = run_open_backend(config, 0, 0, note, sizeof note, err);
    if (out->be == NULL) return false;
    if (note[0] != '\0') fprintf(stderr, "%s\n", note);
    int64_t seq_len = options->seq_len > 0 ? options->seq_len : config->arch.max_seq_len;
    if (config->arch.position == POSITION_LEARNED && seq_len > config->arch.max_seq_len)
        return error_set(err, "seq_len=%lld is longer than the model's learned positions, max_seq_len=%lld",
                         (long long)seq_len, (long long)config->arch.max_seq_len);
    config->dtype = options->dtype;
    ModelShape shape = {.max_rows = options->rows,
                        .max_seq_len = max_i64(seq_len, options->cache_tokens),
                        .dtype = options->dtype,
                        .cache_tokens = options->cache_tokens};
    shape.loss_chunk_rows = plan_loss_chunk_rows(config, shape.max_rows);
    Arena measure;
    arena_init_measuring(&measure);
    model_init(&out->model, &config->arch, &shape, NULL, &measure);
    model_free(&out->model);
    if (!arena_init(&out->arena, out->be, measure.used_bytes, err)) return false;
    model_init(&out->model, &config->arch, &shape, out->be, &out->arena);
    return model_file_read(options->path, &config->arch, &out->model.params, put_parameter, &out->model, err);
}

bool inference_open(InferenceModel *out, const InferenceOptions *options, Error *err) {
    *out = (InferenceModel){0};
    if (inference_load(out, options, err)) return true;
    inference_close(out);
    return false;
}

void inference_close(InferenceModel *inference) {
    model_free(&inference->model);
    arena_free(&inference->arena);
    tokenizer_free(inference->tokenizer);
    if (inference->be != NULL) inference->be->close(inference->be);
    *inference = (InferenceModel){0};
}
