// ckpt_common.h: the ckpt commands that have files of their own, and what the commands share. Called by
// command_ckpt.c.
#ifndef LLMC_CKPT_COMMON_H
#define LLMC_CKPT_COMMON_H

#include "llmc/checkpoint/checkpoint.h"
#include "llmc/formats/model_file.h"
#include "llmc/checkpoint/optimizer_file.h"
#include "llmc/checkpoint/state_file.h"

int command_ckpt_reshard(int argc, char **argv);
int command_ckpt_diff(int argc, char **argv);  // 0: the same, 1: different, 2: cannot tell
int command_ckpt_average(int argc, char **argv);

// An error when there is anything at this path.
bool ckpt_refuse_existing(const char *to, Error *err);
// Architecture and parameter table of a directory or llm.c file; free the table with params_free.
bool ckpt_read_model(ModelConfig *config, ParamTable *params, const char *path, Error *err);
bool ckpt_read_state(StateFile *out, const char *dir, Error *err);
// An error when the directory has a manifest and is not as it says; a directory without one must be a bare model.
bool ckpt_check_source(const char *dir, Error *err);
// Opens optimizer files and checks that they are a whole optimizer's state; which kinds it has.
bool ckpt_open_optimizer(OptimizerFiles **out, StateKept *kept, const char *dir, const ParamTable *params, Error *err);
// The file `name` of one directory, as it is, into another.
bool ckpt_copy_file(const char *from_dir, const char *to_dir, const char *name, Error *err);

#endif
