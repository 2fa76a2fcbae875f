// run_load.h: loads a checkpoint directory, written by any number of ranks (run_save.h), into a run: weights as a Hugging
// Face model, the optimizer's state (optimizer_file.h) and state.json. All state on which the next step depends is
// restored to the bit.
#ifndef LLMC_RUN_LOAD_H
#define LLMC_RUN_LOAD_H

#include "llmc/run/run.h"

// Weights, moments and progress. The run's dtype and use of master weights may differ from the checkpoint's: masters are
// read from masters, else from the weights; bf16 weights are read as saved, or rounded to nearest from fp32. Errors if
// the checkpoint's architecture, optimizer or tokenizer differs from the run's.
bool run_load(Run *run, const char *dir, Error *err);
#endif
