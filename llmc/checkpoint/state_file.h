// state_file.h: state.json of a checkpoint, apart from tensors: what a run has to know of itself to go on. Written by
// run_load.c, read by it and by the ckpt commands, and untrusted when read; knows nothing of devices or ranks.
#ifndef LLMC_STATE_FILE_H
#define LLMC_STATE_FILE_H

#include "llmc/loader/data_skip.h"

// Losses and gradient norms of the last steps that were not skipped, oldest first; guard.h says what for.
typedef struct {
    int64_t step;  // 1 for the first
    double loss, norm;
} GuardEntry;
#define GUARD_CAPACITY 1026
typedef struct {
    int64_t count;
    GuardEntry entry[GUARD_CAPACITY];
} Guard;

// What a checkpoint keeps besides tensors. The learning rate is a function of step, the data of step and skip.
typedef struct {
    int64_t step;       // optimizer steps done
    int64_t bad_steps;  // of them skipped: a gradient or loss that is not finite, or a spike
    int64_t bad_in_row;
    double seconds;  // time spent in the loop, earlier runs included
    int64_t spikes;  // seen so far, those included that the run went back for
    int skip_count;
    DataSkip skip[DATA_SKIPS_MAX];  // at_step ascends
    uint64_t chain;                 // the hash chain's last link; 0: none
    uint64_t chain_data;            // of the data of the steps since
    int64_t chain_step;             // step of that link, or where the chain begins. Not in older files: then step
    Guard guard;
} RunProgress;

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
