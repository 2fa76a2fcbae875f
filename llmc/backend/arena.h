// arena.h: planned memory. An Arena is one block of a backend's memory, handed out in order. The same calls run
// twice: first on a measuring arena (nothing is allocated, every view has data == NULL), which is what `train_gpt
// plan` prints, then on a real arena, which must have exactly the same size.
#ifndef LLMC_ARENA_H
#define LLMC_ARENA_H

#include "llmc/backend/tensor.h"

struct Backend;

#define ARENA_ALIGN_BYTES 256
#define ARENA_MAX_TAGS 32

typedef struct {
    const char *tag;  // what the bytes are for, a string literal: "parameters", "activations", ...
    size_t bytes;
} ArenaTag;

typedef struct {
    struct Backend *backend;  // NULL while measuring
    unsigned char *base;      // NULL while measuring
    size_t capacity_bytes;    // 0 while measuring
    size_t used_bytes;
    ArenaTag tags[ARENA_MAX_TAGS];
    int tag_count;
} Arena;

void arena_init_measuring(Arena *arena);
// One allocation of exactly `bytes`, in huge pages where possible; the contract does NOT zero it.
bool arena_init(Arena *arena, struct Backend *backend, size_t bytes, Error *err);
void arena_free(Arena *arena);
// The next `bytes`, aligned; NULL while measuring. Aborts when a real arena would exceed its plan.
void *arena_alloc(Arena *arena, size_t bytes, const char *tag);
// A new tensor; dims beyond ndim are ignored.
Tensor arena_tensor(Arena *arena, const char *tag, DType dtype, int ndim, int64_t d0, int64_t d1, int64_t d2,
                    int64_t d3);
size_t arena_tag_bytes(const Arena *arena, const char *tag);
#endif
