// open_model.h: a model without a run, opened from a file for sampling and evaluation. Must not know training.
#ifndef LLMC_OPEN_MODEL_H
#define LLMC_OPEN_MODEL_H

#include "llmc/config/config.h"
#include "llmc/model/model.h"
#include "llmc/tokenizer/tokenizer.h"

// A model for inference from a checkpoint, a Hugging Face directory or an llm.c file. rows, seq_len, cache_tokens: as
// in ModelShape; seq_len 0: the model's maximum. open_model_close frees all of it; tokenizer may be NULL.
typedef struct {
    RunConfig config;  // only dtype, arch and device are meaningful
    Backend *be;
    Arena arena;
    Model model;
    Tokenizer *tokenizer;
} OpenModel;
typedef struct {
    const char *path;
    const char *tokenizer;  // NULL or "": beside the model
    const char *device;     // "auto", ...
    DType dtype;
    int64_t threads;
    int64_t rows, seq_len, cache_tokens;
} OpenModelOptions;
bool open_model_load(OpenModel *out, const OpenModelOptions *options, Error *err);
void open_model_close(OpenModel *inference);
#endif
