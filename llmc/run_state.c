// run_state.c: see run_state.h.
#include "llmc/run_state.h"

#include <inttypes.h>
#include <stdlib.h>

#include "llmc/hf.h"
#include "llmc/optimizer_file.h"

#define STATE_MAX_BYTES ((size_t)1 << 20)

static const char *optimizer_name(OptimizerKind kind) { return kind == OPTIMIZER_MUON ? "muon" : "adamw"; }

// ---------------------------------------------------------------------------------------------------------------
// The optimizer's state

// Masters that are not the weights themselves.
static bool has_masters_apart(const Model *model) {
    return model->master != NULL && model->shape.dtype == DTYPE_BF16;
}

static PartitionOptions partition_options(const Run *run) { return run->model.part.options; }

// Where the piece lies in backend memory.
static float *state_address(const Run *run, const StatePiece *state) {
    const Partition *part = &run->model.part;
    for (int i = 0; i < part->pieces; ++i) {
        const Piece *piece = &part->piece[i];
        int64_t within = state->first - piece->first;
        if (piece->param != state->param || within < 0 || within >= piece->count) continue;
        // Where one rank has everything, the parts of a parameter lie one behind the other.
        CHECK(within + state->count <= piece->count || part->options.stage == 0, "param %d: elements %lld to %lld",
              state->param, (long long)state->first, (long long)(state->first + state->count));
        if (state->kind == STATE_MASTER) return model_master(&run->model, piece) + within;
        if (state->kind == STATE_M) return run->optimizer.m + piece->packed + within;
        return run->optimizer.v + piece->v_packed + within;
    }
    CHECK(false, "param %d: element %lld is not this rank's", state->param, (long long)state->first);
    return NULL;
}

typedef struct {
    Run *run;
    const StatePiece *list;
    float *staging;
} StateWriter;

static const void *fetch_state(void *context, int index, int64_t first, int64_t count, Error *err) {
    (void)err;
    StateWriter *writer = context;
    Backend *be = writer->run->be;
    be->download(be, writer->staging, state_address(writer->run, &writer->list[index]) + first,
                 to_size(count) * sizeof(float));
    return writer->staging;
}

static bool write_optimizer(Run *run, const char *dir, Error *err) {
    PartitionOptions options = partition_options(run);
    StatePiece *list;
    int count = state_pieces(&list, &run->model.params, &options, has_masters_apart(&run->model));
    StateWriter writer = {run, list, xmalloc(to_size(SAFETENSORS_CHUNK_ELEMS) * sizeof(float))};
    bool ok = optimizer_file_write(dir, options.rank, options.world, &run->model.params, list, count, fetch_state,
                                   &writer, err);
    free(writer.staging);
    free(list);
    return ok;
}

// Masters come before anything else is in memory, so that they may pass through whole.
static bool read_master(Run *run, const OptimizerFiles *files, int param, Error *err) {
    const ParamSpec *spec = &run->model.params.spec[param];
    float *values = xmalloc(to_size(spec->elems) * sizeof *values);
    bool ok = optimizer_files_read(files, STATE_MASTER, param, 0, spec->elems, values, err);
    if (ok) model_set_param(&run->model, spec, values);
    free(values);
    optimizer_files_release(files, STATE_MASTER, param);
    return ok;
}

static bool read_moment(Run *run, const OptimizerFiles *files, const StatePiece *piece, float *staging, Error *err) {
    Backend *be = run->be;
    float *device = state_address(run, piece);
    for (int64_t at = 0; at < piece->count; at += SAFETENSORS_CHUNK_ELEMS) {
        int64_t count = min_i64(SAFETENSORS_CHUNK_ELEMS, piece->count - at);
        if (!optimizer_files_read(files, piece->kind, piece->param, piece->first + at, count, staging, err))
            return false;
        be->upload(be, device + at, staging, to_size(count) * sizeof(float));
    }
    optimizer_files_release(files, piece->kind, piece->param);
    return true;
}

// masters: they are in the file and the run has them. Otherwise what the weights, already loaded, left there is right.
static bool read_optimizer(Run *run, const char *dir, bool masters, Error *err) {
    const ParamTable *params = &run->model.params;
    PartitionOptions options = partition_options(run);
    OptimizerFiles *files;
    if (!optimizer_files_open(&files, dir, params, err)) return false;
    bool ok = optimizer_files_check(files, options.muon, masters, err);
    for (int i = 0; i < params->count && ok && masters; ++i) ok = read_master(run, files, i, err);
    if (ok) optimizer_reset(&run->optimizer, &run->model);
    const Partition *part = &run->model.part;
    float *staging = xmalloc(to_size(SAFETENSORS_CHUNK_ELEMS) * sizeof *staging);
    for (int i = 0; i < part->pieces && ok; ++i) {
        const Piece *piece = &part->piece[i];
        StatePiece state = {STATE_M, piece->param, piece->first, piece->count};
        ok = read_moment(run, files, &state, staging, err);
        state.kind = STATE_V;
        if (piece->v_packed >= 0) ok = ok && read_moment(run, files, &state, staging, err);
    }
    free(staging);
    optimizer_files_close(files);
    return ok;
}

// ---------------------------------------------------------------------------------------------------------------
// The whole

static bool get_parameter(void *context, const ParamSpec *spec, int64_t first, int64_t count, float *out,
                          Error *err) {
    (void)err;
    model_get_param(context, spec, first, count, out);
    return true;
}
static bool put_parameter(void *context, const ParamSpec *spec, const float *values, Error *err) {
    (void)err;
    model_set_param(context, spec, values);
    return true;
}

static bool write_files(Run *run, CheckpointWriter *writer, Error *err) {
    const RunConfig *config = &run->config;
    int32_t eot = run->tokenizer == NULL ? -1 : tokenizer_eot(run->tokenizer);
    StateFile state = {.progress = run->progress,
                       .tokenizer_fingerprint = run->tokenizer == NULL ? 0 : tokenizer_fingerprint(run->tokenizer)};
    snprintf(state.optimizer, sizeof state.optimizer, "%s", optimizer_name(config->optimizer));
    snprintf(state.dtype, sizeof state.dtype, "%s", dtype_name(config->dtype));
    state.master_weights = run->model.master != NULL;
    char *hf_config = hf_config_write(&config->arch, config->dtype, eot, eot);
    char *run_config = config_to_json(config);
    char *state_text = state_file_write(&state, run_config);
    bool ok = model_file_write_hf(writer->dir, &config->arch, &run->model.params, config->dtype, get_parameter,
                                  &run->model, err) &&
              checkpoint_write_text(writer, "config.json", hf_config, err) &&
              (run->tokenizer == NULL || tokenizer_save(run->tokenizer, writer->dir, err)) &&
              write_optimizer(run, writer->dir, err) && checkpoint_write_text(writer, "state.json", state_text, err);
    free(hf_config);
    free(run_config);
    free(state_text);
    return ok;
}

bool run_state_save(Run *run, Error *err) {
    CheckpointWriter writer;
    if (!checkpoint_begin(&writer, run->config.out_dir, run->progress.step, err)) return false;
    if (!write_files(run, &writer, err)) {
        checkpoint_abort(&writer);
        return false;
    }
    CheckpointRetention retention = {run->config.keep_last, run->config.keep_every, run->progress.step};
    return checkpoint_commit(&writer, err) && checkpoint_prune(run->config.out_dir, &retention, err);
}

static bool check_state(const Run *run, const StateFile *state, const char *dir, Error *err) {
    const char *wanted = optimizer_name(run->config.optimizer);
    if (strcmp(state->optimizer, wanted) != 0)
        return error_set(err,
                         "%s: this checkpoint was trained with optimizer=%s, the run asks for %s: to change it, "
                         "start a new run with init_from=%s",
                         dir, state->optimizer, wanted, dir);
    uint64_t fingerprint = run->tokenizer == NULL ? 0 : tokenizer_fingerprint(run->tokenizer);
    if (state->tokenizer_fingerprint != 0 && fingerprint != 0 && state->tokenizer_fingerprint != fingerprint)
        return error_set(err,
                         "%s: this checkpoint was trained with another tokenizer (fingerprint %016" PRIx64
                         ", the run's is %016" PRIx64 ")",
                         dir, state->tokenizer_fingerprint, fingerprint);
    ModelConfig arch;
    if (!model_file_read_config(&arch, dir, err) || !model_config_finish(&arch, err)) return false;
    if (!model_file_same_architecture(&arch, &run->config.arch)) {
        char theirs[256], ours[256];
        model_config_describe(&arch, theirs, sizeof theirs);
        model_config_describe(&run->config.arch, ours, sizeof ours);
        return error_set(err, "%s: this checkpoint is another architecture (%s) than the run (%s)", dir, theirs,
                         ours);
    }
    return true;
}

bool run_state_load(Run *run, const char *dir, Error *err) {
    char *path = path_join(dir, "state.json"), *json = NULL;
    StateFile state;
    bool ok = file_read_all(path, STATE_MAX_BYTES, &json, NULL, err) && state_file_parse(&state, json, path, err);
    free(json);
    free(path);
    if (!ok || !check_state(run, &state, dir, err)) return false;
    if (!model_file_read(dir, &run->config.arch, &run->model.params, put_parameter, &run->model, err)) return false;
    bool masters = strcmp(state.dtype, dtype_name(DTYPE_BF16)) == 0 && state.master_weights;
    if (!read_optimizer(run, dir, masters && run->model.master != NULL, err)) return false;
    run->progress = state.progress;
    return true;
}

bool run_save(Run *run, Error *err) {
    double start = now_seconds();
    if (run_state_save(run, err)) {
        run->has_checkpoint = true;
        logger_message(run->logger, "saved    %s/step_%08" PRId64 " in %.1f s", run->config.out_dir,
                       run->progress.step, now_seconds() - start);
        return true;
    }
    logger_message(run->logger, "NOT SAVED: %s; the previous checkpoint is untouched", err->message);
    if (run->config.on_save_error == ON_SAVE_ERROR_STOP) return false;
    err->message[0] = '\0';
    return true;
}
