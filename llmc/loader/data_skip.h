// data_skip.h: stretches of training data that a run leaves out after it went back to a checkpoint because of them.
// They are part of a run's progress (state.json); the loader reads around them.
#ifndef LLMC_DATA_SKIP_H
#define LLMC_DATA_SKIP_H

#include "llmc/base/common.h"

#define DATA_SKIPS_MAX 64

// From step at_step on (0-based), the data of `steps` more steps has been left out.
typedef struct {
    int64_t at_step, steps;
} DataSkip;

// The step whose samples step (0-based) reads: itself, and what was left out up to it.
static inline int64_t data_skip_step(const DataSkip *skips, int count, int64_t step) {
    int64_t shifted = step;
    for (int i = 0; i < count; ++i)
        if (skips[i].at_step <= step) shifted += skips[i].steps;
    return shifted;
}
#endif
