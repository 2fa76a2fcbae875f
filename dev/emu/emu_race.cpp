// emu_race.cpp: the race detector. Kernels compiled by clang++ -fsanitize=thread call the __tsan_ functions below at
// each memory access; libtsan is not linked. Two accesses to a byte race if they are by different
// threads, at least one is a write, at least one is not atomic, and they are not ordered: by a barrier between threads
// of a block, also by __syncwarp between lanes of a warp, never between blocks of a launch. The first race aborts and
// names both threads. An access to host memory, which a kernel cannot reach on a GPU, also aborts.
//
// Threads run one at a time, so the result is deterministic; races that occur only for other inputs are not found.
#include "emu_device.h"
#include "emu_race.h"

#include <dlfcn.h>
#include <memory>
#include <stdio.h>
#include <stdlib.h>
#include <unordered_map>
#include <vector>

#define PAGE_BYTES 4096
#define GRANULE_BYTES 4
#define CACHE_PAGES 256
#define PAGES_LIMIT 4096  // about 300 MiB of shadow memory; more is freed when the next launch begins
#define WARPS_LIMIT (EMU_BLOCK_THREADS_LIMIT / EMU_LANES)

enum Kind { KIND_READ, KIND_WRITE, KIND_ATOMIC, KINDS };
static const char *const KIND_NAMES[KINDS] = {"reads", "writes", "atomically changes"};

// The threads with one kind of access to a byte since the last barrier: lanes of one warp, or several warps.
struct Accesses {
    uint32_t stamp;  // of the block; 0: none
    uint32_t epoch;  // barriers of the block before it
    uint32_t lanes;
    uint32_t clock;  // of the latest of these lanes
    uint8_t warp;
    bool more_warps, more_blocks;
};
struct Cell {
    Accesses by[KINDS];
};
// Four bytes that are mostly accessed together; otherwise `bytes` holds a cell for each.
struct Granule {
    Cell whole;
    Cell *bytes;
};
struct Page {
    uint32_t shared, checked;  // last launch in which it was a block's shared memory, was checked as device memory
    Granule granules[PAGE_BYTES / GRANULE_BYTES];
};
struct Range {
    uintptr_t start;
    size_t bytes;
    bool has(uintptr_t address) const { return address - start < bytes; }
};

struct Races {
    std::unordered_map<uintptr_t, Page *> pages;
    Page *cache[CACHE_PAGES];
    uintptr_t cache_number[CACHE_PAGES];
    std::vector<uint3> blocks;  // of this launch, in the order in which they ran
    Range arguments, stacks, indices;
    uint32_t launch_stamp;  // of the launch's first block
    uint32_t stamp, epoch;
    int thread, warp, lane;
    // clocks[w][a][b]: a vector clock: lane b's time as known to lane a of warp w, counted in __syncwarps.
    uint32_t clocks[WARPS_LIMIT][EMU_LANES][EMU_LANES];

    ~Races() { drop(); }
    void drop() {
        for (auto &entry : pages) {
            for (Granule &granule : entry.second->granules) free(granule.bytes);
            free(entry.second);
        }
        pages.clear();
        memset(cache_number, 0xff, sizeof cache_number);
    }
};
static Races *races(void) {
    // On the heap: a plug-in's thread-local memory is small.
    static thread_local std::unique_ptr<Races> own = std::make_unique<Races>();
    return own.get();
}
// Of the running kernel thread; NULL: none.
static __thread __attribute__((tls_model("initial-exec"))) Races *watching;

// ---- events from emu_exec ----

void emu_race_launch(const void *arguments, size_t arguments_bytes, const void *stacks, size_t stacks_bytes) {
    Races *r = races();
    if (r->pages.size() > PAGES_LIMIT || r->launch_stamp == 0) r->drop();
    r->arguments = {(uintptr_t)arguments, arguments_bytes};
    r->stacks = {(uintptr_t)stacks, stacks_bytes};
    const void *indices[] = {&threadIdx, &blockIdx, &blockDim, &gridDim};
    uintptr_t first = UINTPTR_MAX, last = 0;
    for (const void *index : indices) {
        if ((uintptr_t)index < first) first = (uintptr_t)index;
        if ((uintptr_t)index > last) last = (uintptr_t)index;
    }
    r->indices = {first, last + sizeof(uint3) - first};
    r->blocks.clear();
    r->launch_stamp = r->stamp + 1;
}

void emu_race_block(void) {
    Races *r = races();
    r->stamp++;
    r->epoch = 0;
    r->blocks.push_back(blockIdx);
    int warps = (int)(blockDim.x * blockDim.y * blockDim.z + EMU_LANES - 1) / EMU_LANES;
    memset(r->clocks, 0, (size_t)warps * sizeof r->clocks[0]);
}

void emu_race_thread(int thread) {
    Races *r = thread >= 0 ? races() : NULL;
    watching = r;
    if (r == NULL) return;
    r->thread = thread;
    r->warp = thread / EMU_LANES;
    r->lane = thread % EMU_LANES;
}

void emu_race_barrier(void) { races()->epoch++; }

void emu_race_warp(int warp, unsigned lanes) {
    uint32_t(*clocks)[EMU_LANES] = races()->clocks[warp], merged[EMU_LANES] = {};
    for (int a = 0; a < EMU_LANES; a++) {
        if (((lanes >> a) & 1) == 0) continue;
        clocks[a][a]++;
        for (int b = 0; b < EMU_LANES; b++) merged[b] = max(merged[b], clocks[a][b]);
    }
    for (int a = 0; a < EMU_LANES; a++)
        if ((lanes >> a) & 1) memcpy(clocks[a], merged, sizeof merged);
}

static Page *page_of(Races *r, uintptr_t address) {
    uintptr_t number = address / PAGE_BYTES;
    size_t slot = number % CACHE_PAGES;
    if (r->cache_number[slot] == number) return r->cache[slot];
    Page *&page = r->pages[number];
    if (page == NULL) page = (Page *)calloc(1, sizeof(Page));
    if (page == NULL) emu_kernel_abort("race detector: no memory for another page");
    r->cache_number[slot] = number;
    return r->cache[slot] = page;
}

void emu_race_shared(const void *memory, size_t bytes) {
    Races *r = races();
    uintptr_t start = (uintptr_t)memory / PAGE_BYTES * PAGE_BYTES;
    for (uintptr_t at = start; at < (uintptr_t)memory + bytes; at += PAGE_BYTES)
        page_of(r, at)->shared = r->launch_stamp;
}

// ---- accesses ----

// True if an access in the set is by another thread and not ordered before the current one.
static bool races_with(const Races *r, const Page *page, const Accesses *set) {
    if (set->stamp < r->launch_stamp) return false;
    bool same_block = set->stamp == r->stamp;
    if (page->shared == r->launch_stamp) {
        if (!same_block) return false;
    } else if (!same_block || set->more_blocks) {
        return true;
    }
    if (set->epoch != r->epoch) return false;
    if (set->more_warps || set->warp != r->warp) return true;
    const uint32_t *known = r->clocks[r->warp][r->lane];
    for (uint32_t others = set->lanes & ~(1u << r->lane); others != 0; others &= others - 1)
        if (known[__builtin_ctz(others)] <= set->clock) return true;
    return false;
}

static void add_access(const Races *r, const Page *page, Accesses *set) {
    bool launch = set->stamp >= r->launch_stamp, block = set->stamp == r->stamp;
    uint32_t clock = r->clocks[r->warp][r->lane][r->lane], lane = 1u << r->lane;
    if (!block || set->epoch != r->epoch) {
        bool more_blocks = launch && page->shared != r->launch_stamp && (set->more_blocks || !block);
        *set = {r->stamp, r->epoch, lane, clock, (uint8_t)r->warp, false, more_blocks};
        return;
    }
    if (set->warp != r->warp) set->more_warps = true;
    if (set->more_warps) return;
    // Drop lanes whose accesses __syncwarp ordered before this one.
    const uint32_t *known = r->clocks[r->warp][r->lane];
    for (uint32_t others = set->lanes; set->clock < clock && others != 0; others &= others - 1)
        if (known[__builtin_ctz(others)] > set->clock) set->lanes &= ~(others & -others);
    set->lanes |= lane;
    if (clock > set->clock) set->clock = clock;
}

__attribute__((noreturn, noinline)) static void report(const Races *r, const Page *page, uintptr_t address,
                                                       enum Kind kind, enum Kind other_kind, const Accesses *set,
                                                       const void *pc) {
    char other[160], location[512] = "";
    uint3 block = r->blocks[set->stamp - r->launch_stamp];
    if (set->stamp != r->stamp || set->more_warps || (set->more_blocks && page->shared != r->launch_stamp)) {
        if (set->stamp == r->stamp && !set->more_blocks)
            snprintf(other, sizeof other, "several warps of the block, one of them warp %d,", set->warp);
        else if (set->stamp == r->stamp) snprintf(other, sizeof other, "an earlier block");
        else
            snprintf(other, sizeof other, "block (%u,%u,%u), warp %d, lanes 0x%08x", block.x, block.y, block.z,
                     set->warp, set->lanes);
    } else {
        uint32_t lanes = set->warp == r->warp ? set->lanes & ~(1u << r->lane) : set->lanes;
        unsigned t = (unsigned)(set->warp * EMU_LANES + __builtin_ctz(lanes));
        snprintf(other, sizeof other, "thread (%u,%u,%u)", t % blockDim.x, t / blockDim.x % blockDim.y,
                 t / blockDim.x / blockDim.y);
    }
    Dl_info info;
    if (dladdr(pc, &info) != 0)
        snprintf(location, sizeof location, "; at %s+0x%zx (addr2line -Cfie names the line)", info.dli_fname,
                 (size_t)((uintptr_t)pc - 1 - (uintptr_t)info.dli_fbase));
    emu_kernel_abort("race: this thread %s %s memory at %p, which %s %s with no barrier between%s", KIND_NAMES[kind],
                     page->shared == r->launch_stamp ? "shared" : "global", (void *)address, other,
                     KIND_NAMES[other_kind], location);
}

static inline void access_cell(Races *r, const Page *page, Cell *cell, uintptr_t address, enum Kind kind,
                               const void *pc) {
    static const bool CONFLICT[KINDS][KINDS] = {{false, true, true}, {true, true, true}, {true, true, false}};
    for (int other = 0; other < KINDS; other++)
        if (CONFLICT[kind][other] && races_with(r, page, &cell->by[other]))
            report(r, page, address, kind, (enum Kind)other, &cell->by[other], pc);
    add_access(r, page, &cell->by[kind]);
}

static void split(Granule *granule) {
    granule->bytes = (Cell *)malloc(GRANULE_BYTES * sizeof(Cell));
    if (granule->bytes == NULL) emu_kernel_abort("race detector: no memory for another granule");
    for (int i = 0; i < GRANULE_BYTES; i++) granule->bytes[i] = granule->whole;
}

// The first access of a launch to a page: checks whether the kernel may access it.
__attribute__((noinline)) static void check_page(Races *r, Page *page, uintptr_t address, enum Kind kind,
                                                 const void *pc) {
    Dl_info info;
    bool fine = page->shared == r->launch_stamp || emu_is_device_memory((const void *)address, 1) ||
                emu_is_mapped_memory((const void *)address);
    // Constants of the program.
    if (!fine && kind == KIND_READ) fine = dladdr((const void *)address, &info) != 0;
    if (!fine)
        emu_kernel_abort("illegal address: this thread %s %p, which is host memory (from code at %p)",
                         KIND_NAMES[kind], (void *)address, pc);
    page->checked = r->launch_stamp;
}

static inline void access(const volatile void *memory, size_t bytes, enum Kind kind, const void *pc) {
    Races *r = watching;
    if (r == NULL) return;
    uintptr_t address = (uintptr_t)memory, end = address + bytes;
    if (r->stacks.has(address) || r->indices.has(address) || r->arguments.has(address)) return;
    while (address < end) {
        Page *page = page_of(r, address);
        if (page->checked != r->launch_stamp) check_page(r, page, address, kind, pc);
        Granule *granule = &page->granules[address % PAGE_BYTES / GRANULE_BYTES];
        size_t first = address % GRANULE_BYTES, count = GRANULE_BYTES - first;
        if (count > end - address) count = end - address;
        if (granule->bytes == NULL && count < GRANULE_BYTES) split(granule);
        if (granule->bytes == NULL) access_cell(r, page, &granule->whole, address, kind, pc);
        else
            for (size_t i = 0; i < count; i++)
                access_cell(r, page, &granule->bytes[first + i], address + i, kind, pc);
        address += count;
    }
}

#define HERE __builtin_return_address(0)
void emu_race_read(const void *memory, size_t bytes) { access(memory, bytes, KIND_READ, HERE); }
void emu_race_write(const void *memory, size_t bytes) { access(memory, bytes, KIND_WRITE, HERE); }

// ---- functions called by clang's instrumentation ----

extern "C" {
void __tsan_init(void) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
void __tsan_ignore_thread_begin(void) {}
void __tsan_ignore_thread_end(void) {}
void __tsan_vptr_read(void **address) { access(address, sizeof *address, KIND_READ, HERE); }
void __tsan_vptr_update(void **address, void *) { access(address, sizeof *address, KIND_WRITE, HERE); }
void __tsan_read_range(void *address, unsigned long bytes) { access(address, bytes, KIND_READ, HERE); }
void __tsan_write_range(void *address, unsigned long bytes) { access(address, bytes, KIND_WRITE, HERE); }

#define ACCESSES(bytes)                                                                             \
    void __tsan_read##bytes(void *address) { access(address, bytes, KIND_READ, HERE); }             \
    void __tsan_write##bytes(void *address) { access(address, bytes, KIND_WRITE, HERE); }           \
    void __tsan_unaligned_read##bytes(void *address) { access(address, bytes, KIND_READ, HERE); }   \
    void __tsan_unaligned_write##bytes(void *address) { access(address, bytes, KIND_WRITE, HERE); } \
    void __tsan_read_write##bytes(void *address) { access(address, bytes, KIND_WRITE, HERE); }      \
    void __tsan_unaligned_read_write##bytes(void *address) { access(address, bytes, KIND_WRITE, HERE); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

#define ATOMIC(address) access(address, sizeof *(address), KIND_ATOMIC, HERE)
#define ATOMICS(bits)                                                                                                \
    typedef uint##bits##_t Word##bits;                                                                               \
    Word##bits __tsan_atomic##bits##_load(const volatile Word##bits *at, int) {                                      \
        ATOMIC(at);                                                                                                  \
        return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                                                \
    }                                                                                                                \
    void __tsan_atomic##bits##_store(volatile Word##bits *at, Word##bits value, int) {                               \
        ATOMIC(at);                                                                                                  \
        __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                                               \
    }                                                                                                                \
    Word##bits __tsan_atomic##bits##_exchange(volatile Word##bits *at, Word##bits value, int) {                      \
        ATOMIC(at);                                                                                                  \
        return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);                                                     \
    }                                                                                                                \
    Word##bits __tsan_atomic##bits##_fetch_add(volatile Word##bits *at, Word##bits value, int) {                     \
        ATOMIC(at);                                                                                                  \
        return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);                                                      \
    }                                                                                                                \
    Word##bits __tsan_atomic##bits##_fetch_sub(volatile Word##bits *at, Word##bits value, int) {                     \
        ATOMIC(at);                                                                                                  \
        return __atomic_fetch_sub(at, value, __ATOMIC_SEQ_CST);                                                      \
    }                                                                                                                \
    Word##bits __tsan_atomic##bits##_fetch_or(volatile Word##bits *at, Word##bits value, int) {                      \
        ATOMIC(at);                                                                                                  \
        return __atomic_fetch_or(at, value, __ATOMIC_SEQ_CST);                                                       \
    }                                                                                                                \
    Word##bits __tsan_atomic##bits##_fetch_and(volatile Word##bits *at, Word##bits value, int) {                     \
        ATOMIC(at);                                                                                                  \
        return __atomic_fetch_and(at, value, __ATOMIC_SEQ_CST);                                                      \
    }                                                                                                                \
    Word##bits __tsan_atomic##bits##_fetch_xor(volatile Word##bits *at, Word##bits value, int) {                     \
        ATOMIC(at);                                                                                                  \
        return __atomic_fetch_xor(at, value, __ATOMIC_SEQ_CST);                                                      \
    }                                                                                                                \
    Word##bits __tsan_atomic##bits##_compare_exchange_val(volatile Word##bits *at, Word##bits old, Word##bits value, \
                                                          int, int) {                                                \
        ATOMIC(at);                                                                                                  \
        __atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                     \
        return old;                                                                                                  \
    }
ATOMICS(8)
ATOMICS(16)
ATOMICS(32)
ATOMICS(64)
void __tsan_atomic_thread_fence(int) {}
void __tsan_atomic_signal_fence(int) {}

// clang copies structs by memcpy; the race build renames it in the kernels' objects to these.
void *emu_race_memcpy(void *to, const void *from, size_t bytes) {
    access(from, bytes, KIND_READ, HERE);
    access(to, bytes, KIND_WRITE, HERE);
    return memcpy(to, from, bytes);
}
void *emu_race_memmove(void *to, const void *from, size_t bytes) {
    access(from, bytes, KIND_READ, HERE);
    access(to, bytes, KIND_WRITE, HERE);
    return memmove(to, from, bytes);
}
void *emu_race_memset(void *to, int value, size_t bytes) {
    access(to, bytes, KIND_WRITE, HERE);
    return memset(to, value, bytes);
}
}
