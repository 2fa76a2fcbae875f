// segment.h: who owns which elements of a buffer: the currency between those who divide a model's elements among ranks
// (partition.h) and those who reduce and gather them (comm.h). Must not know of ranks' transports, tensors or models.
#ifndef LLMC_SEGMENT_H
#define LLMC_SEGMENT_H

#include "llmc/base/common.h"

// Elements [first, first + count) of a buffer belong to `owner`. Lists are ordered and do not overlap; counts > 0.
typedef struct {
    int owner;
    int64_t first, count;
} CommSegment;
#endif
