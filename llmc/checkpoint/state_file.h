// state_file.h: state.json of a checkpoint: the state besides tensors with which a run resumes. Untrusted when read.
// Must not know: devices, ranks, the checkpoint's other files.
#ifndef LLMC_STATE_FILE_H
#define LLMC_STATE_FILE_H

#include "llmc/train/progress.h"

typedef struct {
    RunProgress progress;
    char optimizer[16];
    char dtype[8];
    bool master_weights;  // bf16: optimizer.safetensors has them. Absent in files older than the option: then true
    uint64_t tokenizer_fingerprint;  // 0: no tokenizer
} StateFile;
char *state_file_write(const StateFile *state, const char *config_json);  // caller frees
// Errors: any key that differs from the form in which it is written; keys that older files lack (spikes, skips, chain,
// guard) may be absent. All values are restored to the bit, except seconds.
bool state_file_parse(StateFile *out, const char *json, const char *path, Error *err);
#endif
