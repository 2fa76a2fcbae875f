// heap.h: a binary heap of any type: HEAP_DEFINE defines the struct `Heap` (zeros: empty; free its items) and the
// functions
//     static void <name>_push(Heap *heap, Context context, Item item);
//     static Item <name>_pop(Heap *heap, Context context);   removes the first; the heap must not be empty
// "first" by `bool before(Context, Item, Item)`, a strict order of all items in the heap.
#ifndef LLMC_HEAP_H
#define LLMC_HEAP_H

#include "llmc/base/common.h"

#define HEAP_DEFINE(Heap, name, Item, Context, before)                                                           \
    typedef struct {                                                                                             \
        Item *items;                                                                                             \
        int64_t count, capacity;                                                                                 \
    } Heap;                                                                                                      \
    static void name##_push(Heap *heap, Context context, Item item) {                                            \
        if (heap->count == heap->capacity) {                                                                     \
            heap->capacity = 2 * heap->capacity + 64;                                                            \
            heap->items = (Item *)xrealloc(heap->items, to_size(heap->capacity) * sizeof *heap->items);          \
        }                                                                                                        \
        int64_t i = heap->count++;                                                                               \
        for (; i > 0 && before(context, item, heap->items[(i - 1) / 2]); i = (i - 1) / 2)                        \
            heap->items[i] = heap->items[(i - 1) / 2];                                                           \
        heap->items[i] = item;                                                                                   \
    }                                                                                                            \
    static Item name##_pop(Heap *heap, Context context) {                                                        \
        Item top = heap->items[0], item = heap->items[--heap->count];                                            \
        int64_t i = 0;                                                                                           \
        for (int64_t child; (child = 2 * i + 1) < heap->count; i = child) {                                      \
            if (child + 1 < heap->count && before(context, heap->items[child + 1], heap->items[child])) ++child; \
            if (!before(context, heap->items[child], item)) break;                                               \
            heap->items[i] = heap->items[child];                                                                 \
        }                                                                                                        \
        heap->items[i] = item;                                                                                   \
        return top;                                                                                              \
    }

#endif
