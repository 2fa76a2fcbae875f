// model_test.h: what tests above the model share: a small model laid out in poisoned memory, run configs from
// overrides, shards of given tokens, relative errors that NaN cannot pass.
#ifndef TESTS_MODEL_TEST_H
#define TESTS_MODEL_TEST_H

#include "llmc/train/optimizer.h"

// Defaults, then overrides up to a NULL; the model finished, its vocabulary the preset's unless given.
void model_test_config(RunConfig *config, const char *const *overrides);

// The same of a preset; a vocabulary that it leaves open is GPT-2's.
ModelConfig model_test_preset(const char *name);

typedef struct {
    RunConfig config;  // filled before model_test_open
    Backend *be;
    Arena arena;
    Model model;
    Optimizer optimizer;  // of training models
} ModelTest;

// Lays out config.arch by shape (loss_chunk_rows 0: all rows), every byte 0xff first; the weights are those of seed.
void model_test_open(ModelTest *t, const ModelShape *shape, int threads);
// Puts the weights of a Hugging Face directory into it.
void model_test_load(ModelTest *t, const char *dir);
void model_test_close(ModelTest *t);

// The test device (TOKAMAK_TEST_DEVICE is cpu by default); fails the test where it cannot be opened.
bool model_test_on_cpu(void);  // or on the device that TOKAMAK_TEST_DEVICE names
Backend *model_test_backend(int threads);
// Host copy of device floats; caller frees.
float *model_test_download(Backend *be, const float *device, int64_t elems);
// sum of w*nll since model_begin_step, and what the optimizer's last step saw; they wait for the device.
double model_test_loss_sum(Model *model);
GradStats model_test_stats(const Optimizer *opt, const Model *model);

// norm(out - ref) / norm(ref), NaN if either holds one.
double model_test_error(const float *out, const double *ref, int64_t elems);
double model_test_error_f32(const float *out, const float *ref, int64_t elems);
// Fails the test unless error <= tolerance; NaN fails.
void model_test_within(double error, double tolerance, const char *format, ...) PRINTF_LIKE(3, 4);

#endif
