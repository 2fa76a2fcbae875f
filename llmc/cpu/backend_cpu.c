// backend_cpu.c: opens the CPU backend: detects the instruction set, fills the function table from the kernel files
// compiled for it, and owns memory and per-thread scratch. Called once by main and by tests.
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "llmc/cpu/partials.h"

#define CPU_MAX_THREADS 512
#define CPU_HUGE_PAGE_BYTES ((size_t)2 << 20)
#define CPU_ALIGN_BYTES ((size_t)256)

typedef struct {
    void *memory;
    size_t bytes;
} CpuScratch;

typedef struct {
    CpuScratch scratch[CPU_MAX_THREADS];
} CpuState;

typedef struct {
    const char *name;
    const char *label;
    bool bf16_native;
    void (*fill)(Backend *be);
} CpuIsa;

#define CPU_CALL_REGISTER(name, isa) name##_register_##isa(be);
static void fill_generic(Backend *be) { (void)be; CPU_KERNEL_FILES(CPU_CALL_REGISTER, generic) }
#if defined(__x86_64__)
static void fill_avx2(Backend *be) { (void)be; CPU_KERNEL_FILES(CPU_CALL_REGISTER, avx2) }
static void fill_avx512(Backend *be) { (void)be; CPU_KERNEL_FILES(CPU_CALL_REGISTER, avx512) }
static void fill_avx512bf16(Backend *be) { (void)be; CPU_KERNEL_FILES(CPU_CALL_REGISTER, avx512bf16) }
#endif

// Best first.
static const CpuIsa ISA_LEVELS[] = {
#if defined(__x86_64__)
    {"avx512bf16", "AVX-512 with BF16 dot products", true, fill_avx512bf16},
    {"avx512", "AVX-512", false, fill_avx512},
    {"avx2", "AVX2", false, fill_avx2},
#endif
    {"generic", "generic vectors", false, fill_generic},
};
#define ISA_LEVEL_COUNT ((int)(sizeof ISA_LEVELS / sizeof ISA_LEVELS[0]))

static bool cpu_supports(const char *isa) {
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (strcmp(isa, "avx2") == 0) return avx2;
    if (strcmp(isa, "avx512") == 0) return avx512;
    if (strcmp(isa, "avx512bf16") == 0) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
    return strcmp(isa, "generic") == 0;
}

// Large blocks are whole huge pages and ask for them: first touch and TLB misses cost more than many kernels
// otherwise. Small ones keep their exact size, so that a memory checker sees the first byte past the end.
static void *cpu_alloc(Backend *be, size_t bytes, Error *err) {
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
static void cpu_free(Backend *be, void *pointer, size_t bytes) {
    (void)be;
    (void)bytes;
    free(pointer);
}
// Each thread gets one contiguous share: the C library's large-block versions, which do not read what they overwrite,
// are only used for large blocks.
#define CPU_SHARE_BYTES ((size_t)4 << 20)
static int cpu_shares(const Backend *be, size_t bytes) { return bytes >= CPU_SHARE_BYTES ? be->threads : 1; }
static size_t cpu_share_start(size_t bytes, int share, int shares) {
    return bytes / (size_t)shares * (size_t)share / 64 * 64;
}
static void cpu_zero(Backend *be, void *pointer, size_t bytes) {
    int shares = cpu_shares(be, bytes);
#pragma omp parallel for schedule(static, 1) num_threads(shares) if (shares > 1)
    for (int share = 0; share < shares; ++share) {
        size_t first = cpu_share_start(bytes, share, shares);
        size_t end = share + 1 < shares ? cpu_share_start(bytes, share + 1, shares) : bytes;
        if (end > first) memset((char *)pointer + first, 0, end - first);
    }
}
static void cpu_copy(Backend *be, void *to, const void *from, size_t bytes) {
    int shares = cpu_shares(be, bytes);
#pragma omp parallel for schedule(static, 1) num_threads(shares) if (shares > 1)
    for (int share = 0; share < shares; ++share) {
        size_t first = cpu_share_start(bytes, share, shares);
        size_t end = share + 1 < shares ? cpu_share_start(bytes, share + 1, shares) : bytes;
        if (end > first) memcpy((char *)to + first, (const char *)from + first, end - first);
    }
}
static size_t cpu_memory_free(Backend *be) {
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

// Operations are done when they return: every point has passed, and a transfer is a copy.
static void *cpu_host_alloc(Backend *be, size_t bytes, Error *err) { return cpu_alloc(be, bytes, err); }
static void cpu_host_free(Backend *be, void *pointer) { cpu_free(be, pointer, 0); }
static Ticket cpu_mark(Backend *be) {
    (void)be;
    return 0;
}
static Ticket cpu_upload_after(Backend *be, void *device, const void *host, size_t bytes, Ticket after) {
    (void)after;
    cpu_copy(be, device, host, bytes);
    return 0;
}
static Ticket cpu_download_begin(Backend *be, const DownloadPiece *pieces, int64_t count) {
    for (int64_t i = 0; i < count; ++i) cpu_copy(be, pieces[i].host, pieces[i].device, pieces[i].bytes);
    return 0;
}
static void cpu_after(Backend *be, Ticket ticket) {
    (void)be;
    (void)ticket;
}
static bool cpu_has_passed(Backend *be, Ticket ticket) {
    (void)be;
    (void)ticket;
    return true;
}
static bool cpu_wait(Backend *be, Ticket ticket, Error *err) {
    (void)be;
    (void)ticket;
    (void)err;
    return true;
}
static double cpu_elapsed_ms(Backend *be, Ticket from, Ticket to) {
    (void)be;
    (void)from;
    (void)to;
    return -1;
}
// Calls cost nothing here that a replay would save.
static bool cpu_sequence_begin(Backend *be, uint64_t key) {
    (void)be;
    (void)key;
    return false;
}
static void cpu_sequence_end(Backend *be, uint64_t key) {
    (void)be;
    (void)key;
}
static bool cpu_telemetry(Backend *be, DeviceTelemetry *out) {
    (void)be;
    *out = (DeviceTelemetry){0};
    return false;
}
static bool cpu_synchronize(Backend *be, Error *err) {
    (void)be;
    (void)err;
    return true;
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
// A thread's scratch serves one operation at a time, so the neediest decides: matmul's packed panels (fixed blocks of
// gemm_kernels.c), attention's packed keys, values and their gradients (attention_kernels.c), or the first thread's
// partial sums (partials.h).
static size_t cpu_plan_workspace(const Backend *be, WorkspaceShape shape) {
    const size_t gemm = (size_t)4 << 20;
    int64_t keys = round_up(shape.seq_len, 64), padded = round_up(shape.head_size, 16);
    size_t attention = to_size(4 * keys * padded + 8 * 64 * padded + 2 * 64 * 64 + 8 * keys + 4096) * sizeof(float);
    size_t partials = to_size(partials_chunks(shape.rows) * 2 * shape.widest) * sizeof(float);
    size_t most = gemm > attention ? gemm : attention;
    return (size_t)be->threads * most + (partials > most ? partials - most : 0);
}

static void cpu_close(Backend *be) {
    CpuState *state = be->impl;
    for (int i = 0; i < CPU_MAX_THREADS; ++i) free(state->scratch[i].memory);
    free(state);
    free(be);
}

static void cpu_model_name(char *out, size_t out_bytes) {
    snprintf(out, out_bytes, "CPU");
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (file == NULL) return;
    char line[256];
    while (fgets(line, sizeof line, file) != NULL) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || colon == NULL) continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(out, out_bytes, "%.100s", colon + 2);
        break;
    }
    fclose(file);
}

Backend *backend_cpu_open(int threads, const char *isa, Error *err) {
    const CpuIsa *chosen = NULL;
    bool any = isa == NULL || strcmp(isa, "auto") == 0;
    for (int i = 0; i < ISA_LEVEL_COUNT && chosen == NULL; ++i)
        if ((any || strcmp(isa, ISA_LEVELS[i].name) == 0) && cpu_supports(ISA_LEVELS[i].name))
            chosen = &ISA_LEVELS[i];
    if (chosen == NULL) {
        error_set(err, "cpu_isa=%s: this CPU does not have it, or the name is none of auto, generic, avx2, avx512, "
                       "avx512bf16", isa);
        return NULL;
    }
    if (threads < 0 || threads > CPU_MAX_THREADS) {
        error_set(err, "threads=%d: expected 0 (all) to %d", threads, CPU_MAX_THREADS);
        return NULL;
    }
    if (threads > 0) omp_set_num_threads(threads);
    Backend *be = xcalloc(1, sizeof *be);
    be->name = "cpu";
    be->threads = omp_get_max_threads();
    be->bf16_native = chosen->bf16_native;
    be->shares_host_memory = true;
    be->impl = xcalloc(1, sizeof(CpuState));
    be->alloc = cpu_alloc;
    be->free = cpu_free;
    be->zero = cpu_zero;
    be->upload = cpu_copy;
    be->download = cpu_copy;
    be->copy = cpu_copy;
    be->memory_free = cpu_memory_free;
    be->synchronize = cpu_synchronize;
    be->host_alloc = cpu_host_alloc;
    be->host_free = cpu_host_free;
    be->mark = cpu_mark;
    be->upload_after = cpu_upload_after;
    be->download_begin = cpu_download_begin;
    be->after = cpu_after;
    be->has_passed = cpu_has_passed;
    be->wait = cpu_wait;
    be->elapsed_ms = cpu_elapsed_ms;
    be->sequence_begin = cpu_sequence_begin;
    be->sequence_end = cpu_sequence_end;
    be->telemetry = cpu_telemetry;
    be->plan_workspace = cpu_plan_workspace;
    be->close = cpu_close;
    chosen->fill(be);
    char model[128];
    cpu_model_name(model, sizeof model);
    snprintf(be->description, sizeof be->description, "%s, %d thread%s, %s", model, be->threads,
             be->threads == 1 ? "" : "s", chosen->label);
    return be;
}
