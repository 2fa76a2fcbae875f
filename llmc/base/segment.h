// segment.h: the rank that owns each range of a buffer, as exchanged between the partition of a model's elements
// (partition.h) and the collectives that reduce and gather them (comm.h). Must not know transports, tensors or
// models.
#ifndef LLMC_SEGMENT_H
#define LLMC_SEGMENT_H

#include "llmc/base/common.h"

// Rank `owner` owns elements [first, first + count) of a buffer. Lists are ordered and do not overlap; counts > 0.
typedef struct {
    int owner;
    int64_t first, count;
} CommSegment;
#endif
