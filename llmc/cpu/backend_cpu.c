// backend_cpu.c: opens the CPU backend: detects the instruction set and fills the function table from the kernel
// files compiled for it and from cpu_memory.c.
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/cpu/cpu_memory.h"
#include "llmc/cpu/partials.h"

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

// Operations are synchronous: every ticket has passed, and a transfer is a copy.
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
// No replay: calls have no launch cost here.
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

// A thread's scratch serves one operation at a time, so the largest need decides: matmul's packed panels (fixed
// blocks of gemm_kernels.c), attention's packed keys, values and their gradients (attention_kernels.c), or the first
// thread's partial sums (partials.h).
static size_t cpu_plan_workspace(const Backend *be, WorkspaceShape shape) {
    const size_t gemm = (size_t)4 << 20;
    int64_t keys = round_up(shape.seq_len, 64), padded = round_up(shape.head_size, 16);
    size_t attention = to_size(4 * keys * padded + 8 * 64 * padded + 2 * 64 * 64 + 8 * keys + 4096) * sizeof(float);
    size_t partials = to_size(partials_chunks(shape.rows) * 2 * shape.widest) * sizeof(float);
    size_t most = gemm > attention ? gemm : attention;
    return (size_t)be->threads * most + (partials > most ? partials - most : 0);
}

static void cpu_close(Backend *be) {
    cpu_state_free(be->impl);
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
        error_set(err, "cpu_isa=%s: expected an instruction set that this CPU has, of auto, generic, avx2, avx512, "
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
    be->impl = cpu_state_new();
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
