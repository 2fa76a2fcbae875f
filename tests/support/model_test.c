// model_test.c: see model_test.h.
#include "tests/support/model_test.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <math.h>

#include "llmc/formats/model_file.h"
#include "llmc/loader/shard.h"
#include "llmc/run/device.h"

void model_test_config(RunConfig *config, const char *const *overrides) {
    Error err = {""};
    int count = 0;
    char *copies[64] = {NULL};
    for (; overrides[count] != NULL; ++count) {
        assert_true(count < 64);
        copies[count] = xstrdup(overrides[count]);
    }
    bool ok = config_load(config, NULL, count, copies, NULL, &err);
    while (count > 0) free(copies[--count]);
    if (!ok) fail_msg("%s", err.message);
    if (config->arch.V == 0) config->arch.V = config->preset_vocab;
    config->arch.Vp = 0;
    if (!model_config_finish(&config->arch, &err)) fail_msg("%s", err.message);
}

bool model_test_on_cpu(void) {
    const char *device = getenv("TOKAMAK_TEST_DEVICE");
    return device == NULL || strcmp(device, "cpu") == 0;
}

Backend *model_test_backend(int threads) {
    Error err = {""};
    const char *device = getenv("TOKAMAK_TEST_DEVICE");
    bool cpu = model_test_on_cpu();
    BackendOptions options = {.attention = "own", .graphs = true};
    Backend *be = cpu ? backend_cpu_open(threads, NULL, &err) : backend_plugin_open(device, &options, &err);
    if (be == NULL) fail_msg("%s", err.message);
    return be;
}

static void layout(ModelTest *t, const ModelShape *shape, Backend *be, Arena *arena) {
    model_init(&t->model, &t->config.arch, shape, be, arena);
    if (shape->training) optimizer_init(&t->optimizer, &t->config, &t->model, arena);
}

ModelConfig model_test_preset(const char *name) {
    ModelConfig config;
    Error err = {""};
    if (!model_config_preset(&config, name, &err)) fail_msg("%s: %s", name, err.message);
    if (config.V == 0) config.V = 50257;
    if (!model_config_finish(&config, &err)) fail_msg("%s: %s", name, err.message);
    return config;
}

void model_test_open(ModelTest *t, const ModelShape *shape, int threads) {
    Error err = {""};
    ModelShape whole = *shape;
    if (whole.loss_chunk_rows == 0) whole.loss_chunk_rows = whole.max_rows;
    t->be = model_test_backend(threads);
    Arena measure;
    arena_init_measuring(&measure);
    layout(t, &whole, NULL, &measure);
    optimizer_free(&t->optimizer);
    model_free(&t->model);
    if (!arena_init(&t->arena, t->be, measure.used_bytes, &err)) fail_msg("%s", err.message);
    // Nothing may rely on zeroed memory.
    void *poison = xmalloc(measure.used_bytes);
    memset(poison, 0xff, measure.used_bytes);
    t->be->upload(t->be, t->arena.base, poison, measure.used_bytes);
    free(poison);
    layout(t, &whole, t->be, &t->arena);
    model_init_weights(&t->model, (uint64_t)t->config.seed);
    if (shape->training) optimizer_reset(&t->optimizer, &t->model);
}

void model_test_load(ModelTest *t, const char *dir) {
    Error err = {""};
    if (!model_file_read(dir, &t->config.arch, &t->model.params, model_put_param, &t->model, &err))
        fail_msg("%s", err.message);
}

void model_test_close(ModelTest *t) {
    optimizer_free(&t->optimizer);
    model_free(&t->model);
    arena_free(&t->arena);
    t->be->close(t->be);
}

float *model_test_download(Backend *be, const float *device, int64_t elems) {
    float *host = xmalloc(to_size(elems) * sizeof *host);
    be->download(be, host, device, to_size(elems) * sizeof *host);
    return host;
}

double model_test_loss_sum(Model *m) {
    double sum = 0, *sums = xmalloc(tensor_bytes(m->loss_sums));
    m->be->download(m->be, sums, m->loss_sums.data, tensor_bytes(m->loss_sums));
    for (int64_t i = 0; i < m->shape.micro_batches; ++i) sum += sums[i];
    free(sums);
    return sum;
}

GradStats model_test_stats(const Optimizer *opt, const Model *model) {
    GradStats stats;
    model->be->download(model->be, &stats, opt->stats, sizeof stats);
    return stats;
}

double model_test_error(const float *out, const double *ref, int64_t elems) {
    double difference = 0, reference = 0;
    for (int64_t i = 0; i < elems; ++i) {
        difference += ((double)out[i] - ref[i]) * ((double)out[i] - ref[i]);
        reference += ref[i] * ref[i];
    }
    return reference > 0 ? sqrt(difference / reference) : sqrt(difference);
}
double model_test_error_f32(const float *out, const float *ref, int64_t elems) {
    double *wide = xmalloc(to_size(elems) * sizeof *wide);
    for (int64_t i = 0; i < elems; ++i) wide[i] = (double)ref[i];
    double error = model_test_error(out, wide, elems);
    free(wide);
    return error;
}

void model_test_within(double error, double tolerance, const char *format, ...) {
    if (error <= tolerance) return;
    char what[256];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    fail_msg("%s: error %.3g, tolerance %.3g", what, error, tolerance);
}
