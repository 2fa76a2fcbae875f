// model_kinds.h: tiny models of every kind of architecture, for tests that go through all of them: each Hugging Face
// family, the variants within it, and what none of them computes.
#ifndef TESTS_MODEL_KINDS_H
#define TESTS_MODEL_KINDS_H

#include "llmc/model_config.h"

#define MODEL_KIND_COUNT 23
typedef struct {
    const char *name;
    const char *architecture;  // expected of hf_architecture
    void (*change)(ModelConfig *config);
} ModelKind;
extern const ModelKind MODEL_KINDS[MODEL_KIND_COUNT];

ModelConfig model_kind(int index);       // finished
int model_kind_find(const char *name);   // fails the test when there is none
// Fails the test naming the first field that differs.
void expect_same_config(const ModelConfig *expected, const ModelConfig *found, const char *what);

#endif
