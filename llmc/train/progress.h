// progress.h: the progress of a run: all state besides tensors that its next step depends on. Pure data; state.json of a
// checkpoint stores it. Must not know: files, devices, ranks.
#ifndef LLMC_PROGRESS_H
#define LLMC_PROGRESS_H

#include "llmc/loader/data_skip.h"

// Losses and gradient norms of the last steps that were not skipped, oldest first; see guard.h.
typedef struct {
    int64_t step;  // 1 for the first
    double loss, norm;
} GuardEntry;
#define GUARD_CAPACITY 1026
typedef struct {
    int64_t count;
    GuardEntry entry[GUARD_CAPACITY];
} Guard;

// The learning rate is a function of step, the data a function of step and skip.
typedef struct {
    int64_t step;       // optimizer steps done
    int64_t bad_steps;  // skipped ones among them: a gradient or loss that is not finite, or a spike
    int64_t bad_in_row;
    double seconds;  // time spent in the loop, including before a resume
    int64_t spikes;  // so far, including those that caused a rewind
    int skip_count;
    DataSkip skip[DATA_SKIPS_MAX];  // at_step ascends
    uint64_t chain;                 // the hash chain's last link; 0: none
    uint64_t chain_data;            // hash of the data of the steps since
    int64_t chain_step;             // step of that link, or where the chain begins. Absent in older files: then step
    Guard guard;
} RunProgress;
#endif
