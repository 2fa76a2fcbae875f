// run_save.c: see run_save.h.
#include "llmc/run/run_save.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/checkpoint/snapshot.h"

#define ATTACH_SECONDS 30   // a network file system may show rank 0's directory with this delay
#define FINISH_POLL_SECONDS 0.5
#define REASON_BYTES 600
#define WORTH_SAYING_SECONDS 0.1

typedef struct RunSave {
    Saver saver;
    Snapshot snapshot;  // bytes 0: tensors are streamed from the device while training waits
    CheckpointWriter writer;
    bool begun;         // rank 0: the temporary directory exists
    bool copying;       // the snapshot is being copied; the saver begins when it is complete
    bool had_checkpoint;  // before this checkpoint
    int64_t step;
    char *hf_config, *state_text;
    Ticket copy_from;   // the point in the computation that the snapshot shows
    double waited_seconds, copied_seconds, started, written_seconds;  // waited: for the previous checkpoint
    Error not_deleted;  // older checkpoints could not be removed: a warning, not a failure
} RunSave;

// Files are divided along the data axis; rank 0 of the launch begins and commits the checkpoint.
static MeshAxis files_of(const Run *run) { return run->mesh.data.axis; }

// ---------------------------------------------------------------------------------------------------------------
// Files of this rank

// A parameter is complete only while its bucket is gathered; all ranks gather all buckets, in order.
typedef struct {
    Run *run;
    const StatePiece *state;
    float *staging;
    int gathered;
} Stream;

static void gather_up_to(Stream *stream, int bucket) {
    while (stream->gathered < bucket) zero_gather_weights(&stream->run->zero, ++stream->gathered);
}
static bool stream_weights(void *context, const ParamSpec *spec, int64_t first, int64_t count, float *out,
                           Error *err) {
    (void)err;
    Stream *stream = context;
    const Model *model = &stream->run->model;
    gather_up_to(stream, partition_bucket_of(&model->params, (int)(spec - model->params.spec)));
    model_get_param(model, spec, first, count, out);
    return true;
}
static const void *stream_state(void *context, int index, int64_t first, int64_t count, Error *err) {
    (void)err;
    Stream *stream = context;
    Run *run = stream->run;
    const unsigned char *from = snapshot_state_address(&run->model, &run->optimizer, &stream->state[index]);
    size_t width = dtype_bytes(STATE_ROWS[stream->state[index].kind].dtype);
    CHECK(width <= sizeof *stream->staging, "elements of %zu bytes", width);
    run->be->download(run->be, stream->staging, from + to_size(first) * width, to_size(count) * width);
    return stream->staging;
}

static bool write_shards(const Run *run, const char *dir, ModelFileGet get, void *weights, SafeTensorFetch fetch,
                         void *state, const StatePiece *pieces, int count, Error *err) {
    const RunConfig *config = &run->config;
    const ParamTable *params = &run->model.params;
    const MeshAxis files = files_of(run);
    return model_file_write_hf_shard(dir, &config->arch, params, config->dtype, files.rank, files.world, get, weights,
                                     err) &&
           optimizer_file_write(dir, files.rank, files.world, params, pieces, count, fetch, state, err);
}

static bool write_streamed(Run *run, const char *dir, Error *err) {
    StatePiece *list;
    const StateKept kept = state_kept_by(&run->model);
    int count = state_pieces(&list, &run->model.params, &run->model.part.options, &kept);
    Stream stream = {run, list, xmalloc(to_size(SAFETENSORS_CHUNK_ELEMS) * sizeof(float)), -1};
    bool ok = write_shards(run, dir, stream_weights, &stream, stream_state, &stream, list, count, err);
    // Even after an error here, and even if this rank needs none of it: the other ranks wait for its part of the gather.
    gather_up_to(&stream, run->model.part.buckets - 1);
    if (!run->be->wait(run->be, run->be->mark(run->be), ok ? err : NULL)) ok = false;
    free(stream.staging);
    free(list);
    return ok;
}

static bool write_rank(Run *run, const char *dir, Error *err) {
    Snapshot *s = &run->save->snapshot;
    if (s->bytes == 0) return write_streamed(run, dir, err);
    return write_shards(run, dir, snapshot_get_weights, s, snapshot_fetch_state, s, s->state, s->state_count, err);
}

// The files that exist once per checkpoint.
static bool write_common(Run *run, Error *err) {
    RunSave *save = run->save;
    CheckpointWriter *writer = &save->writer;
    const RunConfig *config = &run->config;
    return checkpoint_write_text(writer, "config.json", save->hf_config, err) &&
           (run->tokenizer == NULL || tokenizer_save(run->tokenizer, writer->dir, err)) &&
           checkpoint_write_text(writer, "state.json", save->state_text, err) &&
           (files_of(run).world == 1 ||
            model_file_write_hf_index(writer->dir, &config->arch, &run->model.params, config->dtype,
                                      files_of(run).world, err));
}

static bool write_part(Run *run, Error *err) {
    if (run->launch.world == 1) return true;
    const MeshAxis files = files_of(run);
    char *names[2] = {hf_shard_name("model", files.rank, files.world),
                      hf_shard_name("optimizer", files.rank, files.world)};
    bool ok = checkpoint_write_part(&run->save->writer, run->launch.rank, (const char *const *)names, 2, err);
    free(names[0]);
    free(names[1]);
    return ok;
}

// ---------------------------------------------------------------------------------------------------------------
// The saver's jobs

static bool write_job(void *context, Error *err) {
    Run *run = context;
    CheckpointWriter *writer = &run->save->writer;
    if (run->launch.rank == 0) return write_rank(run, writer->dir, err) && write_common(run, err) && write_part(run, err);
    if (!checkpoint_attach(writer, run->config.out_dir, run->save->step, ATTACH_SECONDS, err)) return false;
    bool ok = write_rank(run, writer->dir, err) && write_part(run, err);
    checkpoint_detach(writer);
    return ok;
}

static bool commit_job(void *context, Error *err) {
    Run *run = context;
    RunSave *save = run->save;
    const CheckpointRetention retention = {run->config.keep_last, run->config.keep_every, save->step};
    save->begun = false;  // commit releases the writer, also on failure
    if (!checkpoint_commit(&save->writer, err)) return false;
    (void)checkpoint_prune(run->config.out_dir, &retention, &save->not_deleted);  // a failure is only a warning
    save->written_seconds = now_seconds() - save->started;
    return true;
}

bool run_save_open(Run *run, Error *err) {
    RunSave *save = run->save = xcalloc(1, sizeof *save);
    const SaverJobs jobs = {write_job, commit_job, run};
    saver_init(&save->saver, &jobs, run->config.async_save, run->launch.rank == 0);
    if (!run->config.async_save) return true;
    const SnapshotShape shape = {&run->config.arch, &run->model.params, run->model.part.options, run->config.dtype,
                                 state_kept_by(&run->model)};
    return snapshot_open(&save->snapshot, &shape, run->be, &save->saver.cancelled, err);
}

static void forget_texts(RunSave *save) {
    free(save->hf_config);
    free(save->state_text);
    save->hf_config = save->state_text = NULL;
}

void run_save_close(Run *run) {
    RunSave *save = run->save;
    if (save == NULL) return;
    Error err = {""};
    if (run->launch.world == 1) run_save_finish(run, &err);  // logs its own errors
    saver_abandon(&save->saver);
    save->copying = false;
    if (save->begun) checkpoint_detach(&save->writer);  // other ranks may still be writing: the next run cleans up
    snapshot_close(&save->snapshot);
    forget_texts(save);
    free(save);
    run->save = NULL;
}

// ---------------------------------------------------------------------------------------------------------------
// Begin, vote, finish

static void make_texts(Run *run) {
    const RunConfig *config = &run->config;
    int32_t eot = run->tokenizer == NULL ? -1 : tokenizer_eot(run->tokenizer);
    StateFile state = {.progress = run->progress,
                       .tokenizer_fingerprint = run->tokenizer == NULL ? 0 : tokenizer_fingerprint(run->tokenizer)};
    snprintf(state.optimizer, sizeof state.optimizer, "%s", word_of(OPTIMIZER_WORDS, (int)config->optimizer));
    snprintf(state.dtype, sizeof state.dtype, "%s", dtype_name(config->dtype));
    state.master_weights = run->model.master != NULL;
    char *run_config = config_to_json(config);
    run->save->hf_config = hf_config_write(&config->arch, config->dtype, eot, eot);
    run->save->state_text = state_file_write(&state, run_config);
    free(run_config);
}

// Copies and begins to write. A failure is passed to the saver and reported like a later one.
static bool begin(Run *run, Error *err) {
    RunSave *save = run->save;
    double started = now_seconds();
    Error why = {""};
    if (!hash_chain_save(&run->chain, &run->progress, err)) return false;
    save->step = run->progress.step;
    save->not_deleted.message[0] = '\0';
    if (run->launch.rank == 0) {
        save->begun = checkpoint_begin(&save->writer, run->config.out_dir, save->step, &why);
        if (save->begun) save->writer.parts = run->launch.world > 1 ? run->launch.world : 0;
        make_texts(run);
    }
    // The other ranks write when the directory exists.
    double failed = why.message[0] != '\0';
    if (!control_reduce(run->control, "begin a checkpoint", NULL, 0, &failed, 1))
        return error_set(err, "the connection to the other ranks is closed");
    // Set now, and a rewind waits for it: whether a rewind is possible must not depend on the speed of a disk.
    save->had_checkpoint = run->has_checkpoint;
    run->has_checkpoint = true;
    save->started = started;
    if (failed != 0) {
        saver_begin_failed(&save->saver, &why);
        return true;
    }
    save->copying = true;
    save->copy_from = run->be->mark(run->be);
    if (save->snapshot.bytes > 0) snapshot_begin(&save->snapshot, &run->model, &run->optimizer, &run->zero);
    if (save->snapshot.bytes == 0 || snapshot_is_there(&save->snapshot)) run_save_copied(run);
    return true;
}

void run_save_before_update(const Run *run) {
    if (run->save->copying) snapshot_before_update(&run->save->snapshot);
}

void run_save_copied(Run *run) {
    RunSave *save = run->save;
    Snapshot *snapshot = &save->snapshot;
    if (!save->copying) return;
    save->copying = false;
    Error why = {""};
    bool ok = snapshot->bytes == 0 || snapshot_wait(snapshot, &why);
    double now = now_seconds();
    // Measured on the device: the host has issued a step since.
    double ms = snapshot->bytes > 0 ? run->be->elapsed_ms(run->be, save->copy_from, snapshot->copied) : -1;
    save->copied_seconds = ms >= 0 ? 1e-3 * ms : now - save->started;
    save->started = now;
    if (ok) saver_begin(&save->saver);
    else saver_begin_failed(&save->saver, &why);
}

// Gathers which rank failed and why, sets err on all ranks, and removes the incomplete checkpoint.
static bool give_up(Run *run, Error *err) {
    RunSave *save = run->save;
    char mine[REASON_BYTES], who[160];
    char(*all)[REASON_BYTES] = xcalloc((size_t)run->launch.world, sizeof *all);
    memset(mine, 0, sizeof mine);
    snprintf(mine, sizeof mine, "%.*s", REASON_BYTES - 1, save->saver.error.message);
    bool heard = control_gather(run->control, "reason of the save error", all, mine, sizeof mine);
    int first = 0;
    while (heard && first < run->launch.world && all[first][0] == '\0') ++first;
    if (!heard || first == run->launch.world) error_set(err, "%s: not saved", run->config.out_dir);
    else if (run->launch.world == 1) error_set(err, "%s", all[0]);
    else {
        control_describe_rank(run->control, first, who, sizeof who);
        error_set(err, "%s: %s", who, all[first]);
    }
    if (save->begun) checkpoint_abort(&save->writer);
    save->begun = false;
    run->has_checkpoint = save->had_checkpoint;
    free(all);
    return false;
}

static void report_saved(Run *run) {
    RunSave *save = run->save;
    if (save->snapshot.bytes == 0)
        logger_message(run->logger, "saved    %s/step_%08" PRId64 " in %.1f s", run->config.out_dir, save->step,
                       save->written_seconds);
    else
        logger_message(run->logger, "saved    %s/step_%08" PRId64 ": copied in %.2f s, written in %.1f s beside "
                                    "training", run->config.out_dir, save->step, save->copied_seconds,
                       save->written_seconds);
    if (save->waited_seconds >= WORTH_SAYING_SECONDS)
        logger_message(run->logger, "         training waited %.1f s for the checkpoint before it to be written",
                       save->waited_seconds);
    if (save->not_deleted.message[0] != '\0') logger_message(run->logger, "warning: %s", save->not_deleted.message);
}

// Acts on the votes' maxima. False: the checkpoint failed; err says why.
static bool advance(Run *run, const double votes[SAVER_VOTES], Error *err) {
    SaverEvent event = saver_step(&run->save->saver, votes);
    if (event == SAVER_NOTHING) return true;
    forget_texts(run->save);
    if (event == SAVER_FAILED) return give_up(run, err);
    report_saved(run);
    return true;
}

static bool finish(Run *run, Error *err) {
    Saver *saver = &run->save->saver;
    bool ok = true;
    run_save_copied(run);
    while (saver->phase != SAVER_IDLE && ok) {
        double votes[SAVER_VOTES];
        saver_wait(saver, FINISH_POLL_SECONDS);
        saver_vote(saver, votes);
        ok = control_reduce(run->control, "finish a checkpoint", NULL, 0, votes, SAVER_VOTES) ||
             error_set(err, "the connection to the other ranks is closed");
        ok = ok && advance(run, votes, err);
    }
    return ok;
}

// False: the run must end.
static bool settle(Run *run, bool ok, Error *err) {
    if (ok) return true;
    logger_message(run->logger, "NOT SAVED: %s; the previous checkpoint is untouched", err->message);
    if (run->config.on_save_error != ON_SAVE_ERROR_STOP) {
        err->message[0] = '\0';
        return true;
    }
    run->all_know = true;
    return run->launch.rank == 0 ? false : error_set(err, "the checkpoint is not saved; rank 0 prints the reason");
}

void run_save_vote(const Run *run, double votes[SAVER_VOTES]) {
    saver_vote(&run->save->saver, votes);
    if (run->save->copying) votes[SAVER_VOTE_BUSY] = 1;
}

bool run_save_poll(Run *run, const double votes[SAVER_VOTES], Error *err) {
    return settle(run, advance(run, votes, err), err);
}

bool run_save_finish(Run *run, Error *err) { return settle(run, finish(run, err), err); }

bool run_save(Run *run, Error *err) {
    double started = now_seconds();
    if (!run_save_finish(run, err)) return false;
    run->save->waited_seconds = now_seconds() - started;
    if (!begin(run, err)) return false;
    return run->config.async_save || run_save_finish(run, err);
}
