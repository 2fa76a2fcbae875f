// run_state.c: see run_state.h.
#include "llmc/run_state.h"

#include <inttypes.h>
#include <stdlib.h>

#include "llmc/hf.h"
#include "llmc/safetensors.h"

#define STATE_MAX_BYTES ((size_t)1 << 20)

static const char *optimizer_name(OptimizerKind kind) { return kind == OPTIMIZER_MUON ? "muon" : "adamw"; }

// ---------------------------------------------------------------------------------------------------------------
// optimizer.safetensors

typedef enum { STATE_MASTER, STATE_M, STATE_V } StateKind;
static const char *const STATE_PREFIX[] = {"master", "m", "v"};

typedef struct {
    StateKind kind;
    const ParamSpec *spec;
    float *device;  // spec->elems floats of backend memory
    char name[96];
} StateTensor;

// Masters that are not the weights themselves.
static bool has_masters_apart(const Model *model) {
    return model->master != NULL && model->shape.dtype == DTYPE_BF16;
}

// Every tensor of the optimizer's file, in the order of the file, with or without masters. Returns the count.
static int state_tensors(const Run *run, bool masters, StateTensor **out) {
    const Model *model = &run->model;
    const Optimizer *opt = &run->optimizer;
    StateTensor *list = xcalloc(to_size(model->params.count) * 3, sizeof *list);
    int count = 0;
    for (int i = 0; i < model->params.count; ++i) {
        const ParamSpec *spec = &model->params.spec[i];
        float *parts[3] = {masters ? model->master + spec->offset : NULL, opt->m + spec->offset,
                           opt->v_offset[i] < 0 ? NULL : opt->v + opt->v_offset[i]};
        for (int kind = STATE_MASTER; kind <= STATE_V; ++kind) {
            if (parts[kind] == NULL) continue;
            StateTensor *t = &list[count++];
            *t = (StateTensor){.kind = (StateKind)kind, .spec = spec, .device = parts[kind]};
            snprintf(t->name, sizeof t->name, "%s.%s", STATE_PREFIX[kind], spec->name);
        }
    }
    *out = list;
    return count;
}

typedef struct {
    Run *run;
    const StateTensor *list;
    float *staging;
} StateWriter;

static const void *fetch_state(void *context, int index, int64_t first, int64_t count, Error *err) {
    (void)err;
    StateWriter *writer = context;
    Backend *be = writer->run->be;
    be->download(be, writer->staging, writer->list[index].device + first, to_size(count) * sizeof(float));
    return writer->staging;
}

static bool write_optimizer(Run *run, const char *dir, Error *err) {
    StateTensor *list;
    int count = state_tensors(run, has_masters_apart(&run->model), &list);
    SafeTensorSpec *specs = xcalloc((size_t)count, sizeof *specs);
    for (int i = 0; i < count; ++i)
        specs[i] = (SafeTensorSpec){.name = list[i].name,
                                    .dtype = DTYPE_F32,
                                    .ndim = list[i].spec->ndim,
                                    .dim = {list[i].spec->dim[0], list[i].spec->dim[1]}};
    StateWriter writer = {run, list, xmalloc(to_size(SAFETENSORS_CHUNK_ELEMS) * sizeof(float))};
    char *path = path_join(dir, "optimizer.safetensors");
    bool ok = safetensors_write(path, specs, count, NULL, fetch_state, &writer, err);
    free(path);
    free(writer.staging);
    free(specs);
    free(list);
    return ok;
}

// Masters come before anything else is in memory, so that they may pass through whole.
static bool read_master(Run *run, const ParamSpec *spec, const SafeTensor *tensor, Error *err) {
    float *values = xmalloc(to_size(spec->elems) * sizeof *values);
    bool ok = safetensors_read_f32(tensor, 0, spec->elems, values, err);
    if (ok) model_set_param(&run->model, spec, values);
    free(values);
    return ok;
}

static bool read_moment(Backend *be, float *device, int64_t elems, const SafeTensor *tensor, float *staging,
                        Error *err) {
    for (int64_t first = 0; first < elems; first += SAFETENSORS_CHUNK_ELEMS) {
        int64_t count = min_i64(SAFETENSORS_CHUNK_ELEMS, elems - first);
        if (!safetensors_read_f32(tensor, first, count, staging, err)) return false;
        be->upload(be, device + first, staging, to_size(count) * sizeof(float));
    }
    return true;
}

static bool is_f32_of(const SafeTensor *tensor, const ParamSpec *spec) {
    return strcmp(tensor->dtype, "F32") == 0 && tensor->ndim == spec->ndim && tensor->dim[0] == spec->dim[0] &&
           (spec->ndim == 1 || tensor->dim[1] == spec->dim[1]);
}

static bool read_state_tensor(Run *run, const StateTensor *t, const SafeTensors *file, const char *path,
                              float *staging, Error *err) {
    const SafeTensor *tensor = safetensors_find(file, t->name);
    int64_t elems = t->spec->elems;
    if (tensor == NULL || !is_f32_of(tensor, t->spec))
        return error_set(err, "%s: expected tensor %s with %" PRId64 " fp32 values, found %s", path, t->name, elems,
                         tensor == NULL ? "none" : "another dtype or shape");
    bool ok = t->kind == STATE_MASTER ? read_master(run, t->spec, tensor, err)
                                      : read_moment(run->be, t->device, elems, tensor, staging, err);
    safetensors_release(tensor);
    return ok;
}

// masters: they are in the file and the run has them. Otherwise what the weights, already loaded, left there is right.
static bool read_optimizer(Run *run, const char *dir, bool masters, Error *err) {
    char *path = path_join(dir, "optimizer.safetensors");
    SafeTensors *file = NULL;
    StateTensor *list = NULL;
    float *staging = NULL;
    bool ok = safetensors_open(&file, path, err);
    int count = ok ? state_tensors(run, masters, &list) : 0;
    if (ok) staging = xmalloc(to_size(SAFETENSORS_CHUNK_ELEMS) * sizeof *staging);
    for (int i = 0; i < count && ok; ++i)
        if (list[i].kind == STATE_MASTER) ok = read_state_tensor(run, &list[i], file, path, staging, err);
    if (ok) optimizer_reset(&run->optimizer, &run->model);
    for (int i = 0; i < count && ok; ++i)
        if (list[i].kind != STATE_MASTER) ok = read_state_tensor(run, &list[i], file, path, staging, err);
    free(staging);
    free(list);
    safetensors_close(file);
    free(path);
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
    return checkpoint_commit(&writer, err) && checkpoint_prune(run->config.out_dir, run->config.keep_last, err);
}

// How fresh weights would be drawn does not matter to weights that are there.
static bool same_architecture(const ModelConfig *a, const ModelConfig *theirs) {
    ModelConfig renamed = *theirs, *b = &renamed;
    b->init_std = a->init_std;
    char *x = hf_config_write(a, DTYPE_F32, -1, -1), *y = hf_config_write(b, DTYPE_F32, -1, -1);
    bool same = strcmp(x, y) == 0;
    free(x);
    free(y);
    return same;
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
    if (!same_architecture(&arch, &run->config.arch)) {
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
        logger_message(run->logger, "saved    %s/step_%08" PRId64 " in %.1f s", run->config.out_dir,
                       run->progress.step, now_seconds() - start);
        return true;
    }
    logger_message(run->logger, "NOT SAVED: %s; the previous checkpoint is untouched", err->message);
    if (run->config.on_save_error == ON_SAVE_ERROR_STOP) return false;
    err->message[0] = '\0';
    return true;
}
