// run_load.c: see run_load.h.
#include "llmc/run/run_load.h"

#include <inttypes.h>
#include <stdlib.h>

#include "llmc/checkpoint/checkpoint.h"
#include "llmc/formats/model_file.h"
#include "llmc/checkpoint/snapshot.h"

#define STATE_MAX_BYTES ((size_t)1 << 20)

// ---------------------------------------------------------------------------------------------------------------
// The optimizer's state

// Masters are read before the other state is in memory, so a whole tensor may be buffered.
static bool read_master(Run *run, const OptimizerFiles *files, StateKind kind, int param, Error *err) {
    const ParamSpec *spec = &run->model.params.spec[param];
    float *values = xmalloc(to_size(spec->elems) * sizeof *values);
    bool ok = optimizer_files_read(files, kind, param, 0, spec->elems, values, err);
    if (ok) model_set_param(&run->model, spec, values);
    free(values);
    optimizer_files_release(files, kind, param);
    return ok;
}

static bool read_moment(Run *run, const OptimizerFiles *files, const StatePiece *piece, float *staging, Error *err) {
    Backend *be = run->be;
    float *device = snapshot_state_address(&run->model, &run->optimizer, piece);
    CHECK(STATE_ROWS[piece->kind].dtype == DTYPE_F32, "%s is not fp32", STATE_ROWS[piece->kind].name);
    for (int64_t at = 0; at < piece->count; at += SAFETENSORS_CHUNK_ELEMS) {
        int64_t count = min_i64(SAFETENSORS_CHUNK_ELEMS, piece->count - at);
        if (!optimizer_files_read(files, piece->kind, piece->param, piece->first + at, count, staging, err))
            return false;
        be->upload(be, device + at, staging, to_size(count) * sizeof(float));
    }
    optimizer_files_release(files, piece->kind, piece->param);
    return true;
}

// kept: the state that both the file and the run have. Masters that the file lacks were already set from the weights.
static bool read_optimizer(Run *run, const char *dir, const StateKept *kept, Error *err) {
    const ParamTable *params = &run->model.params;
    OptimizerFiles *files;
    if (!optimizer_files_open(&files, dir, params, err)) return false;
    bool ok = optimizer_files_check(files, kept, err);
    for (int i = 0; i < params->count; ++i)
        for (int kind = 0; kind < STATE_KINDS && ok; ++kind)
            if (STATE_ROWS[kind].is_weight && STATE_ROWS[kind].kept(kept, &params->spec[i]))
                ok = read_master(run, files, (StateKind)kind, i, err);
    if (ok) optimizer_reset(&run->optimizer, &run->model);
    const Partition *part = &run->model.part;
    float *staging = xmalloc(to_size(SAFETENSORS_CHUNK_ELEMS) * sizeof *staging);
    for (int i = 0; i < part->pieces && ok; ++i) {
        const Piece *piece = &part->piece[i];
        for (int kind = 0; kind < STATE_KINDS && ok; ++kind) {
            StatePiece state = {(StateKind)kind, piece->param, piece->first, piece->count};
            if (!STATE_ROWS[kind].is_weight && STATE_ROWS[kind].kept(kept, &params->spec[piece->param]))
                ok = read_moment(run, files, &state, staging, err);
        }
    }
    free(staging);
    optimizer_files_close(files);
    return ok;
}

// ---------------------------------------------------------------------------------------------------------------
// The whole checkpoint

static bool check_state(const Run *run, const StateFile *state, const char *dir, Error *err) {
    const char *wanted = word_of(OPTIMIZER_WORDS, (int)run->config.optimizer);
    if (strcmp(state->optimizer, wanted) != 0)
        return error_set(err,
                         "%s: this checkpoint was trained with optimizer=%s, the run has optimizer=%s: to change it, "
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
        params_describe(&arch, theirs, sizeof theirs);
        params_describe(&run->config.arch, ours, sizeof ours);
        return error_set(err, "%s: this checkpoint has another architecture (%s) than the run (%s)", dir, theirs,
                         ours);
    }
    return true;
}

bool run_load(Run *run, const char *dir, Error *err) {
    if (!checkpoint_verify(dir, false, err)) return false;  // hashes were checked when it was chosen
    char *path = path_join(dir, "state.json"), *json = NULL;
    StateFile state;
    bool ok = file_read_all(path, STATE_MAX_BYTES, &json, NULL, err) && state_file_parse(&state, json, path, err);
    free(json);
    free(path);
    if (!ok || !check_state(run, &state, dir, err)) return false;
    if (!model_file_read(dir, &run->config.arch, &run->model.params, model_put_param, &run->model, err)) return false;
    bool masters = strcmp(state.dtype, dtype_name(DTYPE_BF16)) == 0 && state.master_weights;
    // What the files have, of what this run keeps: an fp32 run takes masters as its weights.
    StateKept kept = state_kept_by(&run->model);
    kept.masters = masters && run->model.master != NULL;
    if (!read_optimizer(run, dir, &kept, err)) return false;
    run->progress = state.progress;
    return true;
}
