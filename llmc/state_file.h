// state_file.h: state.json of a checkpoint, apart from tensors: what a run has to know of itself to go on. Written by
// run_state.c, read by it and by the ckpt commands, and untrusted when read; knows nothing of devices, models or ranks.
#ifndef LLMC_STATE_FILE_H
#define LLMC_STATE_FILE_H

#include "llmc/common.h"

#ifdef __cplusplus
extern "C" {
#endif

// What a checkpoint keeps besides tensors. The data position and the learning rate are functions of step.
typedef struct {
    int64_t step;       // optimizer steps done
    int64_t bad_steps;  // of them skipped for a non-finite gradient
    int64_t bad_in_row;
    double seconds;  // time spent in the loop, earlier runs included
} RunProgress;

typedef struct {
    RunProgress progress;
    char optimizer[16];
    char dtype[8];
    bool master_weights;  // bf16: optimizer.safetensors has them. Not in files older than the option: then true
    uint64_t tokenizer_fingerprint;  // 0: no tokenizer
} StateFile;
char *state_file_write(const StateFile *state, const char *config_json);  // caller frees
bool state_file_parse(StateFile *out, const char *json, const char *path, Error *err);

#ifdef __cplusplus
}
#endif
#endif
