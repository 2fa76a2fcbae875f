// ckpt_common.h: the subcommands of `train_gpt ckpt` that have their own files, and the functions that all of them
// share. Must not know devices: weights pass through host memory.
#ifndef LLMC_CKPT_COMMON_H
#define LLMC_CKPT_COMMON_H

#include "llmc/checkpoint/checkpoint.h"
#include "llmc/formats/model_file.h"
#include "llmc/checkpoint/optimizer_file.h"
#include "llmc/checkpoint/state_file.h"

int command_ckpt_reshard(int argc, char **argv);
int command_ckpt_diff(int argc, char **argv);  // 0: equal, 1: different, 2: error
int command_ckpt_average(int argc, char **argv);

// Error: the path exists.
bool ckpt_refuse_existing(const char *to, Error *err);
// Reads the architecture of a directory or llm.c file and builds its parameter table; free it with params_free.
bool ckpt_read_model(ModelConfig *config, ParamTable *params, const char *path, Error *err);
bool ckpt_read_state(StateFile *out, const char *dir, Error *err);
// Verifies a checkpoint against its manifest. A directory without a manifest passes if it has no optimizer state.
bool ckpt_check_source(const char *dir, Error *err);
// Opens the optimizer files and checks that they hold a complete state; *kept says which kinds of values it has.
bool ckpt_open_optimizer(OptimizerFiles **out, StateKept *kept, const char *dir, const ParamTable *params, Error *err);
// Copies the file `name` byte for byte.
bool ckpt_copy_file(const char *from_dir, const char *to_dir, const char *name, Error *err);

#endif
