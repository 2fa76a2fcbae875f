// progress.h: how far a run is: everything that its next step depends on besides tensors. Pure data: the loop advances it,
// the guard judges by it, the checkpoint's state.json carries it. Must not know of files, devices or ranks.
#ifndef LLMC_PROGRESS_H
#define LLMC_PROGRESS_H

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
#endif
