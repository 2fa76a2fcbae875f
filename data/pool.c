// pool.c: see pool.h. Items form a ring: positions [drained, filled) are in flight, [drained, taken) were taken by a
// worker; Slot.done marks finished ones.
#include "data/pool.h"

#include <pthread.h>
#include <stdlib.h>

typedef struct {
    bool done, ok;
    Error err;
} Slot;

typedef struct {
    const PoolSteps *steps;
    void **items;
    Slot *slots;
    int item_count;
    pthread_mutex_t mutex;
    pthread_cond_t work_there, item_done;
    int64_t filled, taken, drained;
    bool stop;
} Pool;

typedef struct {
    Pool *pool;
    int number;
    pthread_t thread;
} Worker;

static void *worker_main(void *argument) {
    Worker *worker = argument;
    Pool *pool = worker->pool;
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        while (pool->taken == pool->filled && !pool->stop) pthread_cond_wait(&pool->work_there, &pool->mutex);
        if (pool->stop) break;
        int64_t at = pool->taken++ % pool->item_count;
        pthread_mutex_unlock(&pool->mutex);
        Slot *slot = &pool->slots[at];
        bool ok = pool->steps->work(pool->steps->context, worker->number, pool->items[at], &slot->err);
        pthread_mutex_lock(&pool->mutex);
        slot->ok = ok;
        slot->done = true;
        pthread_cond_signal(&pool->item_done);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

// Waits until the oldest item is done, and drains it.
static bool drain_one(Pool *pool, Error *err) {
    int64_t at = pool->drained % pool->item_count;
    Slot *slot = &pool->slots[at];
    pthread_mutex_lock(&pool->mutex);
    while (!slot->done) pthread_cond_wait(&pool->item_done, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
    if (!slot->ok) {
        if (err != NULL) *err = slot->err;
        return false;
    }
    ++pool->drained;
    return pool->steps->drain(pool->steps->context, pool->items[at], err);
}

static bool run_ring(Pool *pool, Error *err) {
    bool end = false;
    while (!end || pool->drained < pool->filled) {
        int64_t at = pool->filled % pool->item_count;
        if (end || pool->filled - pool->drained == pool->item_count) {
            if (!drain_one(pool, err)) return false;
            continue;
        }
        pool->slots[at] = (Slot){0};
        if (!pool->steps->fill(pool->steps->context, pool->items[at], &end, err)) {
            // Items before the failed one are drained first, so that an earlier error is the one reported.
            while (pool->drained < pool->filled)
                if (!drain_one(pool, err)) break;
            return false;
        }
        if (end) continue;
        pthread_mutex_lock(&pool->mutex);
        ++pool->filled;
        pthread_cond_signal(&pool->work_there);
        pthread_mutex_unlock(&pool->mutex);
    }
    return true;
}

bool pool_run(const PoolSteps *steps, int workers, void **items, int item_count, Error *err) {
    CHECK(workers > 0 && item_count > 0, "workers=%d items=%d", workers, item_count);
    Pool pool = {.steps = steps, .items = items, .item_count = item_count};
    pool.slots = xcalloc((size_t)item_count, sizeof *pool.slots);
    pthread_mutex_init(&pool.mutex, NULL);
    pthread_cond_init(&pool.work_there, NULL);
    pthread_cond_init(&pool.item_done, NULL);
    Worker *threads = xcalloc((size_t)workers, sizeof *threads);
    int started = 0;
    for (; started < workers; ++started) {
        threads[started] = (Worker){.pool = &pool, .number = started};
        if (pthread_create(&threads[started].thread, NULL, worker_main, &threads[started]) != 0) break;
    }
    bool ok = started > 0 ? run_ring(&pool, err) : error_set(err, "cannot start a thread");
    pthread_mutex_lock(&pool.mutex);
    pool.stop = true;
    pthread_cond_broadcast(&pool.work_there);
    pthread_mutex_unlock(&pool.mutex);
    for (int i = 0; i < started; ++i) pthread_join(threads[i].thread, NULL);
    pthread_cond_destroy(&pool.item_done);
    pthread_cond_destroy(&pool.work_there);
    pthread_mutex_destroy(&pool.mutex);
    free(threads);
    free(pool.slots);
    return ok;
}
