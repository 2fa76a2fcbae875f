// cpu_memory.c: see cpu_memory.h.
#include "llmc/cpu/cpu_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CPU_HUGE_PAGE_BYTES ((size_t)2 << 20)
#define CPU_ALIGN_BYTES ((size_t)256)

typedef struct {
    void *memory;
    size_t bytes;
} CpuScratch;

typedef struct {
    CpuScratch scratch[CPU_MAX_THREADS];
} CpuState;

// Large blocks are whole huge pages (madvise): otherwise first touch and TLB misses cost more than many kernels.
// Small blocks keep their exact size, so that a memory checker detects an access to the first byte past the end.
void *cpu_alloc(Backend *be, size_t bytes, Error *err) {
    (void)be;
    bool huge = bytes >= CPU_HUGE_PAGE_BYTES;
    size_t align = huge ? CPU_HUGE_PAGE_BYTES : CPU_ALIGN_BYTES;
    size_t rounded = huge ? (bytes + align - 1) / align * align : bytes;
    void *memory = NULL;
    if (rounded < bytes || posix_memalign(&memory, align, rounded ? rounded : 1) != 0) {
        error_set(err, "cannot allocate %.1f MiB of memory; choose a smaller batch or model, or recompute=block",
                  (double)bytes / 1048576.0);
        return NULL;
    }
    if (huge) madvise(memory, rounded, MADV_HUGEPAGE);
    return memory;
}
void cpu_free(Backend *be, void *pointer, size_t bytes) {
    (void)be;
    (void)bytes;
    free(pointer);
}
// Each thread gets one contiguous share: the C library uses its non-temporal versions, which do not read what they
// overwrite, for large blocks only.
#define CPU_SHARE_BYTES ((size_t)4 << 20)
static int cpu_shares(const Backend *be, size_t bytes) { return bytes >= CPU_SHARE_BYTES ? be->threads : 1; }
static size_t cpu_share_start(size_t bytes, int share, int shares) {
    return bytes / (size_t)shares * (size_t)share / 64 * 64;
}
void cpu_zero(Backend *be, void *pointer, size_t bytes) {
    int shares = cpu_shares(be, bytes);
#pragma omp parallel for schedule(static, 1) num_threads(shares) if (shares > 1)
    for (int share = 0; share < shares; ++share) {
        size_t first = cpu_share_start(bytes, share, shares);
        size_t end = share + 1 < shares ? cpu_share_start(bytes, share + 1, shares) : bytes;
        if (end > first) memset((char *)pointer + first, 0, end - first);
    }
}
void cpu_copy(Backend *be, void *to, const void *from, size_t bytes) {
    int shares = cpu_shares(be, bytes);
#pragma omp parallel for schedule(static, 1) num_threads(shares) if (shares > 1)
    for (int share = 0; share < shares; ++share) {
        size_t first = cpu_share_start(bytes, share, shares);
        size_t end = share + 1 < shares ? cpu_share_start(bytes, share + 1, shares) : bytes;
        if (end > first) memcpy((char *)to + first, (const char *)from + first, end - first);
    }
}
size_t cpu_memory_free(Backend *be) {
    (void)be;
    FILE *file = fopen("/proc/meminfo", "r");
    if (file == NULL) return 0;
    char line[256];
    long long kib = 0;
    while (fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "MemAvailable: %lld kB", &kib) == 1) break;
    fclose(file);
    return (size_t)kib * 1024;
}

// ---- scratch ----

void *cpu_state_new(void) { return xcalloc(1, sizeof(CpuState)); }
void cpu_state_free(void *impl) {
    CpuState *state = impl;
    for (int i = 0; i < CPU_MAX_THREADS; ++i) free(state->scratch[i].memory);
    free(state);
}

size_t cpu_scratch_bytes(const Backend *be) {
    const CpuState *state = be->impl;
    size_t total = 0;
    for (int i = 0; i < CPU_MAX_THREADS; ++i) total += state->scratch[i].bytes;
    return total;
}

void *cpu_scratch(Backend *be, int thread, size_t bytes) {
    CHECK(thread >= 0 && thread < CPU_MAX_THREADS, "thread=%d", thread);
    CpuScratch *scratch = &((CpuState *)be->impl)->scratch[thread];
    if (scratch->bytes < bytes) {
        size_t limit = be->workspace_limit_bytes, others = cpu_scratch_bytes(be) - scratch->bytes;
        CHECK(limit == 0 || others + bytes <= limit, "workspace of %zu + %zu bytes, planned %zu", others, bytes,
              limit);
        free(scratch->memory);
        Error err = {""};
        scratch->memory = cpu_alloc(be, bytes, &err);
        CHECK(scratch->memory != NULL, "%s", err.message);
        scratch->bytes = bytes;
    }
    return scratch->memory;
}
