// profile.h: a Backend that forwards to an inner one and adds up the time of each kind of operation. For backends
// whose operations finish before they return (the CPU).
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
    Backend outer;      // the one to use
    Backend *inner;     // counts, then computes
    Counting counting;  // counts of the operations since profile_reset
    double seconds[PROFILE_KINDS];
} Profile;

extern const char *const PROFILE_NAMES[PROFILE_KINDS];

void profile_init(Profile *profile, Backend *inner);
void profile_reset(Profile *profile);

#endif
