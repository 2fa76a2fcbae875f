// model_test.h: for tests of and above the model: a small model in poisoned memory, run configs from overrides,
// relative errors that NaN cannot pass.
#ifndef TESTS_MODEL_TEST_H
#define TESTS_MODEL_TEST_H

#include "dev/bench/optimizer_step.h"

// The defaults with overrides (NULL-terminated); the model is finished, its vocabulary the preset's unless given.
void model_test_config(RunConfig *config, const char *const *overrides);

// The same for a preset; an unset vocabulary becomes GPT-2's.
ModelConfig model_test_preset(const char *name);

typedef struct {
    RunConfig config;  // filled before model_test_open
    Backend *be;
    Arena arena;
    Model model;
    Optimizer optimizer;  // only for training
} ModelTest;

// Lays out config.arch by shape (loss_chunk_rows 0: all rows) in memory of 0xff bytes; initializes weights from seed.
void model_test_open(ModelTest *t, const ModelShape *shape, int threads);
// Loads the weights of a Hugging Face directory.
void model_test_load(ModelTest *t, const char *dir);
void model_test_close(ModelTest *t);

// Opens the test device (TOKAMAK_TEST_DEVICE, default cpu); fails the test if it cannot.
bool model_test_on_cpu(void);  // whether the test device is the CPU
Backend *model_test_backend(int threads);
// Host copy of device floats; caller frees.
float *model_test_download(Backend *be, const float *device, int64_t elems);
// Sum of w*nll since model_begin_step, and the gradient norm of the optimizer's last step; wait for the device.
double model_test_loss_sum(Model *model);
GradStats model_test_stats(const Optimizer *opt, const Model *model);

// norm(out - ref) / norm(ref); NaN if either holds a NaN.
double model_test_error(const float *out, const double *ref, int64_t elems);
double model_test_error_f32(const float *out, const float *ref, int64_t elems);
// Fails the test unless error <= tolerance; NaN fails.
void model_test_within(double error, double tolerance, const char *format, ...) PRINTF_LIKE(3, 4);

#endif
