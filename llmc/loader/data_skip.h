// data_skip.h: ranges of training data that a run skips after it returned to an earlier checkpoint because of them.
// They are part of the run's progress (state.json).
#ifndef LLMC_DATA_SKIP_H
#define LLMC_DATA_SKIP_H

#include "llmc/base/common.h"

#define DATA_SKIPS_MAX 64

// From step at_step on (0-based), the data of `steps` further steps is skipped.
typedef struct {
    int64_t at_step, steps;
} DataSkip;

// The step whose samples `step` (0-based) reads: step + the steps of data skipped before it.
static inline int64_t data_skip_step(const DataSkip *skips, int count, int64_t step) {
    int64_t shifted = step;
    for (int i = 0; i < count; ++i)
        if (skips[i].at_step <= step) shifted += skips[i].steps;
    return shifted;
}
#endif
