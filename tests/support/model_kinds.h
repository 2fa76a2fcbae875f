// model_kinds.h: tiny models of every kind of architecture, for tests over all of them: each Hugging Face family, its
// variants, and combinations outside all families; and a model's weights in one host array.
#ifndef TESTS_MODEL_KINDS_H
#define TESTS_MODEL_KINDS_H

#include "llmc/model/params.h"

#define MODEL_KIND_COUNT 23
typedef struct {
    const char *name;
    const char *architecture;  // expected result of hf_architecture
    void (*change)(ModelConfig *config);
} ModelKind;
extern const ModelKind MODEL_KINDS[MODEL_KIND_COUNT];

ModelConfig model_kind(int index);       // after model_config_finish
int model_kind_find(const char *name);   // fails the test if there is none
// Fails the test with the name of the first field that differs.
void expect_same_config(const ModelConfig *expected, const ModelConfig *found, const char *what);

typedef struct {
    ModelConfig config;
    ParamTable params;
    float *values;  // flat, params.total_elems
    int puts;       // parameters put so far
} HostModel;

HostModel host_model_empty(const ModelConfig *config);   // all NaN
HostModel host_model_random(const ModelConfig *config);  // vectors too: constants would hide an exchange
void host_model_free(HostModel *model);
// ModelFilePut and ModelFileGet of a HostModel. Parameters must arrive in the table's order; puts < 0: a put fails.
bool host_model_put(void *context, const ParamSpec *spec, const float *values, Error *err);
bool host_model_get(void *context, const ParamSpec *spec, int64_t first, int64_t count, float *out, Error *err);
float host_model_at(const HostModel *model, ParamRole role, int layer, int64_t row, int64_t col);
// Fails unless every element, padding rows included, equals `expected` rounded to dtype.
void host_model_expect_same(const HostModel *expected, const HostModel *found, DType dtype);

#endif
