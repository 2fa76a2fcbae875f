// run_load.h: a run out of a checkpoint directory, which any number of ranks may have written (run_save.h): weights
// as a Hugging Face model, the optimizer's state (optimizer_file.h) and state.json. Loading gives back every bit that
// the next step depends on.
#ifndef LLMC_RUN_LOAD_H
#define LLMC_RUN_LOAD_H

#include "llmc/run/run.h"

// Weights, moments and progress. The run may have another dtype and other master weights than the checkpoint: masters
// come from masters, else from the weights; bf16 weights are what they were, or rounded to nearest. Errors when the
// checkpoint's architecture, optimizer or tokenizer is another one.
bool run_load(Run *run, const char *dir, Error *err);
#endif
