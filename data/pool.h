// pool.h: processes a stream of items on all cores and returns them in order. The calling thread fills and drains
// items; worker threads process them. A fixed number of items is in flight, so memory is bounded. The error reported
// is that of the first item in order that has one, for any thread timing. Must not know what an item is.
#ifndef DATA_POOL_H
#define DATA_POOL_H

#include "llmc/base/common.h"

typedef struct {
    void *context;
    // Fills the next item, or sets *end when there is none. Runs on the calling thread.
    bool (*fill)(void *context, void *item, bool *end, Error *err);
    // Runs on any worker thread, several at a time; worker: index of the thread.
    bool (*work)(void *context, int worker, void *item, Error *err);
    // Called in the order of fill. Runs on the calling thread.
    bool (*drain)(void *context, void *item, Error *err);
} PoolSteps;

// items: item_count pointers, reused as a ring. Returns true when all items are drained, false at the first error.
bool pool_run(const PoolSteps *steps, int workers, void **items, int item_count, Error *err);

#endif
