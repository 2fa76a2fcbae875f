// open_model.c: see open_model.h.
#include "llmc/run/open_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/formats/model_file.h"
#include "llmc/plan/plan.h"
#include "llmc/run/device.h"

static bool load(OpenModel *out, const OpenModelOptions *options, Error *err) {
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
    char note[DEVICE_NOTE_BYTES];
    snprintf(config->device, sizeof config->device, "%s", options->device);
    snprintf(config->cpu_isa, sizeof config->cpu_isa, "auto");
    snprintf(config->attention, sizeof config->attention, "auto");
    config->threads = options->threads;
    out->be = device_open_for(config, 0, 0, note, sizeof note, err);
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
    return model_file_read(options->path, &config->arch, &out->model.params, model_put_param, &out->model, err);
}

bool open_model_load(OpenModel *out, const OpenModelOptions *options, Error *err) {
    *out = (OpenModel){0};
    if (load(out, options, err)) return true;
    open_model_close(out);
    return false;
}

void open_model_close(OpenModel *inference) {
    model_free(&inference->model);
    arena_free(&inference->arena);
    tokenizer_free(inference->tokenizer);
    if (inference->be != NULL) inference->be->close(inference->be);
    *inference = (OpenModel){0};
}
