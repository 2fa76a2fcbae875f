// arena.c: see arena.h.
#include "llmc/backend/arena.h"

#include "llmc/backend/backend.h"

void arena_init_measuring(Arena *arena) { *arena = (Arena){0}; }

bool arena_init(Arena *arena, Backend *backend, size_t bytes, Error *err) {
    *arena = (Arena){0};
    arena->backend = backend;
    if (bytes == 0) return true;
    arena->base = backend->alloc(backend, bytes, err);
    if (arena->base == NULL) return false;
    arena->capacity_bytes = bytes;
    return true;
}

void arena_free(Arena *arena) {
    if (arena->base != NULL) arena->backend->free(arena->backend, arena->base, arena->capacity_bytes);
    *arena = (Arena){0};
}

static ArenaTag *arena_find_tag(Arena *arena, const char *tag) {
    for (int i = 0; i < arena->tag_count; ++i)
        if (strcmp(arena->tags[i].tag, tag) == 0) return &arena->tags[i];
    CHECK(arena->tag_count < ARENA_MAX_TAGS, "more than %d tags at %s", ARENA_MAX_TAGS, tag);
    ArenaTag *slot = &arena->tags[arena->tag_count++];
    slot->tag = tag;
    slot->bytes = 0;
    return slot;
}

void *arena_alloc(Arena *arena, size_t bytes, const char *tag) {
    size_t rounded = (bytes + ARENA_ALIGN_BYTES - 1) / ARENA_ALIGN_BYTES * ARENA_ALIGN_BYTES;
    bool measuring = arena->backend == NULL;
    CHECK(measuring || arena->used_bytes + rounded <= arena->capacity_bytes,
          "%s: %zu + %zu bytes exceed the planned %zu", tag, arena->used_bytes, rounded, arena->capacity_bytes);
    void *pointer = measuring ? NULL : arena->base + arena->used_bytes;
    arena->used_bytes += rounded;
    arena_find_tag(arena, tag)->bytes += rounded;
    return pointer;
}

Tensor arena_tensor(Arena *arena, const char *tag, DType dtype, int ndim, int64_t d0, int64_t d1, int64_t d2,
                    int64_t d3) {
    int64_t dims[TENSOR_MAX_DIMS] = {d0, d1, d2, d3};
    Tensor t = {NULL, dtype, ndim, {1, 1, 1, 1}};
    CHECK(ndim >= 1 && ndim <= TENSOR_MAX_DIMS, "ndim=%d", ndim);
    for (int i = 0; i < ndim; ++i) t.dim[i] = dims[i];
    t.data = arena_alloc(arena, tensor_bytes(t), tag);
    return t;
}

size_t arena_tag_bytes(const Arena *arena, const char *tag) {
    for (int i = 0; i < arena->tag_count; ++i)
        if (strcmp(arena->tags[i].tag, tag) == 0) return arena->tags[i].bytes;
    return 0;
}
