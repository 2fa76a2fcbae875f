// pool.h: a stream of items worked on by all cores and handed back in order. The calling thread fills and drains;
// workers work; a fixed number of items is in flight, so memory is bounded. Errors are those of the first item in
// order that has one, whatever the threads do. Knows nothing of what an item is.
#ifndef DATA_POOL_H
#define DATA_POOL_H

#include "llmc/base/common.h"

typedef struct {
    void *context;
    // The next item; *end instead when there is none. Calling thread.
    bool (*fill)(void *context, void *item, bool *end, Error *err);
    // Any worker thread, several at a time; worker is its number.
    bool (*work)(void *context, int worker, void *item, Error *err);
    // In the order in which items were filled. Calling thread.
    bool (*drain)(void *context, void *item, Error *err);
} PoolSteps;

// items: item_count pointers, used over and over. Returns when everything was drained, or false at the first error.
bool pool_run(const PoolSteps *steps, int workers, void **items, int item_count, Error *err);

#endif
