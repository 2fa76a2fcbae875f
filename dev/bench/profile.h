// profile.h: a backend that times another one, operation by operation. It is a Backend itself, so that whatever runs
// on the inner one runs on it unchanged. For backends whose operations finish before they return (the CPU).
#ifndef BENCH_PROFILE_H
#define BENCH_PROFILE_H

#include "llmc/backend/counting.h"

typedef enum {
    PROFILE_MATMUL,
    PROFILE_ATTENTION,
    PROFILE_LOSS,
    PROFILE_OPTIMIZER,
    PROFILE_NORM,
    PROFILE_POINTWISE,
    PROFILE_EMBEDDING,
    PROFILE_MEMORY,
    PROFILE_KINDS
} ProfileKind;

typedef struct {
    Backend outer;  // what to hand to the model
    Backend *inner;     // counts, then computes
    Counting counting;  // its counts are of what was timed since profile_reset
    double seconds[PROFILE_KINDS];
} Profile;

extern const char *const PROFILE_NAMES[PROFILE_KINDS];

void profile_init(Profile *profile, Backend *inner);
void profile_reset(Profile *profile);

#endif
