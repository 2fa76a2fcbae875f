// state_file.h: state.json of a checkpoint, apart from tensors: what a run has to know of itself to go on. Written by
// run_load.c, read by it and by the ckpt commands, and untrusted when read; knows nothing of devices or ranks.
#ifndef LLMC_STATE_FILE_H
#define LLMC_STATE_FILE_H

#include "llmc/train/progress.h"

typedef struct {
    RunProgress progress;
    char optimizer[16];
    char dtype[8];
    bool master_weights;  // bf16: optimizer.safetensors has them. Not in files older than the option: then true
    uint64_t tokenizer_fingerprint;  // 0: no tokenizer
} StateFile;
char *state_file_write(const StateFile *state, const char *config_json);  // caller frees
// Errors: anything that is not as it is written; what older files did not have (spikes, skips, chain, guard) may be
// absent. What is read is what was written, to the bit, but for seconds.
bool state_file_parse(StateFile *out, const char *json, const char *path, Error *err);
#endif
