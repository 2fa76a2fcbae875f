// op_test.c: see op_test.h.
#include "tests/support/op_test.h"

#include <math.h>
#include <omp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "llmc/base/rng.h"
#include "llmc/run/device.h"
#include "llmc/backend/tensor_host.h"

#define OP_TEST_SEED 20240520
#define OP_TEST_THREADS 2

// Device memory is surrounded by fence bytes that no operation may write. Under ASan the end of the allocation is used
// instead: it also catches reads.
#define FENCE_BYTES ((size_t)256)
#define FENCE_VALUE 0xa5
#if defined(__SANITIZE_ADDRESS__)
#define FENCE_AFTER_BYTES ((size_t)0)
#else
#define FENCE_AFTER_BYTES FENCE_BYTES
#endif

// One allocation of the running case: on the device (between fences) or on the host.
typedef struct OpTestBlock {
    struct OpTestBlock *next;
    void *memory;
    size_t bytes;
    bool on_device;
} OpTestBlock;

// ---- backends: one case runs at every level ----
static const char *test_device(void) {
    const char *device = getenv("TOKAMAK_TEST_DEVICE");
    return device != NULL && device[0] != '\0' ? device : "cpu";
}

// A level is one way in which the device runs an operation: an instruction set of the CPU; for a GPU there is one. The
// emulated GPU also runs the threads of a block in three orders, which must give the same bits.
static const char *const CPU_LEVELS[] = {"generic", "avx2", "avx512", "avx512bf16", NULL};
static const char *const DEVICE_LEVELS[] = {"", NULL};
static const char *const THREAD_ORDERS[] = {"forward", "reverse", "random"};
#define THREAD_ORDER_COUNT ((int)(sizeof THREAD_ORDERS / sizeof THREAD_ORDERS[0]))
#define MAX_LEVELS 4

static bool device_is(const char *name) { return strcmp(test_device(), name) == 0; }
static const char *const *device_levels(void) { return device_is("cpu") ? CPU_LEVELS : DEVICE_LEVELS; }

static Backend *open_level(const char *level, Error *err) {
    if (device_is("cpu")) return backend_cpu_open(OP_TEST_THREADS, level, err);
    // Always our own attention: cuDNN has a separate test.
    BackendOptions options = {.attention = "own"};
    return backend_plugin_open(test_device(), &options, err);
}
bool op_test_on_cpu(void) { return device_is("cpu"); }
static void set_thread_order(int order) { setenv("TOKAMAK_EMU_ORDER", THREAD_ORDERS[order], 1); }

typedef struct {
    const OpTestCase *test;
    const char *level;
    bool all_orders;  // run it in every thread order
    bool once;        // this is the first level
} OpTestRun;

static void check_fence(OpTest *t, const unsigned char *start, size_t bytes, const char *where) {
    unsigned char fence[FENCE_BYTES];
    t->be->download(t->be, fence, start, bytes);
    for (size_t i = 0; i < bytes; ++i)
        if (fence[i] != FENCE_VALUE) fail_msg("memory %s a tensor was overwritten: byte %zu of %zu", where, i, bytes);
}
static void check_fences(OpTest *t, const OpTestBlock *block) {
    const unsigned char *start = block->memory;
    check_fence(t, start, FENCE_BYTES, "before");
    check_fence(t, start + FENCE_BYTES + block->bytes, FENCE_AFTER_BYTES, "after");
}

void op_test_release(OpTest *t) {
    Error err = {""};
    if (!t->be->synchronize(t->be, &err)) fail_msg("%s", err.message);
    for (OpTestBlock *block = t->blocks; block != NULL; block = block->next)
        if (block->on_device) check_fences(t, block);
    while (t->blocks != NULL) {
        OpTestBlock *block = t->blocks;
        t->blocks = block->next;
        if (block->on_device)
            t->be->free(t->be, block->memory, FENCE_BYTES + block->bytes + FENCE_AFTER_BYTES);
        else
            free(block->memory);
        free(block);
    }
}

// Returns the hash of all results that the case read.
static uint64_t run_once(const OpTestRun *run, bool once, bool repeat) {
    Error err = {""};
    OpTest t = {.be = open_level(run->level, &err), .seen = 14695981039346656037u, .once = once, .repeat = repeat};
    t.data = run->test->data;
    if (t.be == NULL) fail_msg("%s", err.message);
    run->test->body(&t);
    op_test_release(&t);
    t.be->close(t.be);
    return t.seen;
}

// On the emulated GPU in each order of a block's threads: results may not depend on it. (TOKAMAK_EMU_ORDER in the
// environment selects one.)
static void run_case(void **state) {
    const OpTestRun *run = *state;
    if (!run->all_orders) {
        run_once(run, run->once, false);
        return;
    }
    uint64_t seen[THREAD_ORDER_COUNT];
    for (int order = 0; order < THREAD_ORDER_COUNT; ++order) {
        set_thread_order(order);
        seen[order] = run_once(run, run->once && order == 0, order > 0);
        if (seen[order] != seen[0]) fail_msg("threads in %s order gave other bits than in forward order", THREAD_ORDERS[order]);
    }
}

int op_test_main(const OpTestCase *cases, size_t count) {
    OpTestRun runs[MAX_LEVELS * count];
    struct CMUnitTest operations[MAX_LEVELS * count];
    memset(operations, 0, sizeof operations);
    size_t used = 0;
    bool all_orders = device_is("cudaemu") && getenv("TOKAMAK_EMU_ORDER") == NULL;
    for (const char *const *level = device_levels(); *level != NULL; ++level) {
        Error err = {""};
        Backend *be = open_level(*level, &err);
        // A CPU may lack an instruction set; any other device was requested by name.
        if (be == NULL && device_is("cpu")) continue;
        if (be == NULL) {
            fprintf(stderr, "%s\n", err.message);
            return 1;
        }
        be->close(be);
        for (size_t i = 0; i < count; ++i, ++used) {
            runs[used] = (OpTestRun){&cases[i], *level, all_orders, used < count};
            operations[used].name = xasprintf("%s [%s%s]", cases[i].name, device_is("cpu") ? "" : test_device(), *level);
            operations[used].test_func = run_case;
            operations[used].initial_state = &runs[used];
        }
    }
    // An array of exactly these cases: cmocka counts them by sizeof.
    struct CMUnitTest tests[used];
    memcpy(tests, operations, sizeof tests);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    for (size_t i = 0; i < used; ++i) free((void *)(uintptr_t)tests[i].name);
    return failed;
}

// ---- memory ----
static void keep_block(OpTest *t, void *memory, size_t bytes, bool on_device) {
    OpTestBlock *block = xcalloc(1, sizeof *block);
    *block = (OpTestBlock){t->blocks, memory, bytes, on_device};
    t->blocks = block;
}

void *op_test_bytes(OpTest *t, size_t bytes) {
    void *memory = xcalloc(1, bytes);
    keep_block(t, memory, bytes, false);
    return memory;
}
void op_test_keep(OpTest *t, void *memory) { keep_block(t, memory, 0, false); }
double *op_test_doubles(OpTest *t, int64_t elems) { return op_test_bytes(t, to_size(elems) * sizeof(double)); }

Tensor op_test_tensor(OpTest *t, DType dtype, int ndim, const int64_t *dims) {
    Tensor tensor = {NULL, dtype, ndim, {1, 1, 1, 1}};
    for (int i = 0; i < ndim; ++i) tensor.dim[i] = dims[i];
    size_t bytes = tensor_bytes(tensor), fenced_bytes = FENCE_BYTES + bytes + FENCE_AFTER_BYTES;
    Error err = {""};
    unsigned char *memory = t->be->alloc(t->be, fenced_bytes, &err);
    if (memory == NULL) fail_msg("%s", err.message);
    void *fences = xmalloc(fenced_bytes);
    memset(fences, FENCE_VALUE, fenced_bytes);
    t->be->upload(t->be, memory, fences, fenced_bytes);
    free(fences);
    keep_block(t, memory, bytes, true);
    tensor.data = memory + FENCE_BYTES;
    op_test_poison(t, tensor);
    return tensor;
}

void op_test_poison(OpTest *t, Tensor tensor) {
    size_t bytes = tensor_bytes(tensor);
    void *ones = xmalloc(bytes);
    memset(ones, 0xff, bytes);
    t->be->upload(t->be, tensor.data, ones, bytes);
    free(ones);
}

// ---- values ----
void op_test_upload(OpTest *t, Tensor tensor, const double *values) {
    void *host = xmalloc(tensor_bytes(tensor));
    for (int64_t i = 0; i < tensor_elems(tensor); ++i) tensor_host_store(host, tensor.dtype, i, values[i]);
    t->be->upload(t->be, tensor.data, host, tensor_bytes(tensor));
    free(host);
}

double *op_test_host(OpTest *t, Tensor tensor) {
    void *host = xmalloc(tensor_bytes(tensor));
    t->be->download(t->be, host, tensor.data, tensor_bytes(tensor));
    for (size_t i = 0; i < tensor_bytes(tensor); ++i)  // FNV-1a
        t->seen = (t->seen ^ ((const unsigned char *)host)[i]) * 1099511628211u;
    double *values = op_test_doubles(t, tensor_elems(tensor));
    for (int64_t i = 0; i < tensor_elems(tensor); ++i) values[i] = tensor_host_load(host, tensor.dtype, i);
    free(host);
    return values;
}

Tensor op_test_from(OpTest *t, DType dtype, int ndim, const int64_t *dims, const double *values) {
    Tensor tensor = op_test_tensor(t, dtype, ndim, dims);
    op_test_upload(t, tensor, values);
    return tensor;
}
Tensor op_test_random(OpTest *t, DType dtype, int ndim, const int64_t *dims, double scale) {
    Tensor tensor = op_test_tensor(t, dtype, ndim, dims);
    double *values = op_test_doubles(t, tensor_elems(tensor));
    uint64_t draw = t->draws++;
    for (int64_t i = 0; i < tensor_elems(tensor); ++i)
        values[i] = scale * (double)rng_normal(OP_TEST_SEED, RNG_STREAM_TEST, draw << 32 | (uint64_t)i);
    op_test_upload(t, tensor, values);
    return tensor;
}

// ---- comparisons ----
double op_test_error(const double *out, const double *ref, int64_t elems) { return op_error(out, ref, elems); }

void op_test_close(OpTest *t, Tensor out, const double *ref, double tolerance, const char *label, ...) {
    double error = op_test_error(op_test_host(t, out), ref, tensor_elems(out));
    if (error <= tolerance) return;  // false for NaN
    char text[256];
    va_list args;
    va_start(args, label);
    vsnprintf(text, sizeof text, label, args);
    va_end(args);
    fail_msg("%s (%s): relative error %.3g, at most %.3g allowed", text, dtype_name(out.dtype), error, tolerance);
}

void op_test_same_bits(OpTest *t, Tensor a, Tensor b, const char *label) {
    size_t bytes = tensor_bytes(a);
    assert_int_equal(bytes, tensor_bytes(b));
    void *host_a = op_test_bytes(t, bytes), *host_b = op_test_bytes(t, bytes);
    t->be->download(t->be, host_a, a.data, bytes);
    t->be->download(t->be, host_b, b.data, bytes);
    if (memcmp(host_a, host_b, bytes) != 0) fail_msg("%s: not bit-identical", label);
}

void op_test_set_threads(OpTest *t, int threads) {
    if (t->be->threads == 0) return;  // the device has no host threads
    t->be->threads = threads = threads > 0 ? threads : OP_TEST_THREADS;
    omp_set_num_threads(threads);
}

void op_test_aborts(OpTest *t, void (*run)(OpTest *t, void *user), void *user, const char *message) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        signal(SIGABRT, SIG_DFL);  // the test framework's handler would report a failed case
        run(t, user);
        _exit(0);
    }
    close(ends[1]);
    char text[2048] = "";
    for (size_t used = 0; used + 1 < sizeof text;) {
        ssize_t got = read(ends[0], text + used, sizeof text - 1 - used);
        if (got <= 0) break;
        used += (size_t)got;
    }
    close(ends[0]);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT) fail_msg("expected an abort: %s", message);
    if (strstr(text, message) == NULL) fail_msg("expected a message with \"%s\", found \"%s\"", message, text);
}
