// test_matmul_cache.c: the CUDA backend's choice of cuBLASLt algorithms: timing changes no operand, and the file of
// choices is written immediately, read again, appended to, and robust against damage. On the emulated GPU
// (TOKAMAK_CUDA_DEVICE=cuda: on a real one); skipped if the plug-in is not built.
#include "tests/support/file_test.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/rng.h"
#include "llmc/run/device.h"

#define M 16
#define N 24
#define K 40
#define CALLS 5  // of different keys, in run_calls

static const char *test_device(void) {
    const char *device = getenv("TOKAMAK_CUDA_DEVICE");
    return device != NULL ? device : "cudaemu";
}
static Backend *open_cached(const FileTest *t) {
    BackendOptions options = {.attention = "own", .cache_dir = t == NULL ? NULL : t->dir};
    Error err = {""};
    Backend *be = backend_plugin_open(test_device(), &options, &err);
    if (be == NULL && strstr(err.message, "is not there") != NULL) {
        printf("%s\n", err.message);
        skip();
    }
    if (be == NULL) fail_msg("%s", err.message);
    return be;
}

// Small whole numbers: their products and sums are exact in any order, so that every algorithm gives the same bits.
static Tensor whole_numbers(Backend *be, int64_t rows, int64_t cols, uint64_t draw) {
    Error err = {""};
    const size_t bytes = to_size(rows * cols) * sizeof(float);
    Tensor t = tensor_2d(be->alloc(be, bytes, &err), DTYPE_F32, rows, cols);
    if (t.data == NULL) fail_msg("%s", err.message);
    float host[K * N];
    assert_true(rows * cols <= K * N);
    for (int64_t i = 0; i < rows * cols; ++i)
        host[i] = (float)(rng_u32(1, RNG_STREAM_TEST, draw << 32 | (uint64_t)i) % 9) - 4;
    be->upload(be, t.data, host, bytes);
    return t;
}

// A training step's products: plain, adding to out, a residual, an activation, a weight's gradient. Three times each:
// timing an algorithm on a real output would have added to it more often.
static void run_calls(Backend *be, float results[CALLS][M * N]) {
    Tensor a = whole_numbers(be, M, K, 0), b = whole_numbers(be, N, K, 1);
    Tensor a_t = whole_numbers(be, K, M, 2), b_t = whole_numbers(be, K, N, 3);
    Tensor add = whole_numbers(be, M, N, 4), pre = whole_numbers(be, M, N, 5);
    for (int call = 0; call < CALLS; ++call) {
        Tensor out = whole_numbers(be, M, N, 7);
        for (int again = 0; again < 3; ++again) {
            MatmulArgs args = {.trans_b = true, .alpha = 1, .beta = 1};
            if (call == 1) args.add = out;
            if (call == 2) args.add = add;
            if (call == 3) args = (MatmulArgs){.trans_b = true, .alpha = 0.01f, .act = ACT_GELU, .pre = pre};
            if (call == 4) args = (MatmulArgs){.trans_a = true, .alpha = 1, .beta = 1, .add = out};
            if (call == 4) be->matmul(be, out, a_t, b_t, args);
            else be->matmul(be, out, a, b, args);
        }
        be->download(be, results[call], out.data, sizeof results[call]);
        be->free(be, out.data, sizeof results[call]);
    }
    const Tensor held[] = {a, b, a_t, b_t, add, pre};
    for (size_t i = 0; i < sizeof held / sizeof held[0]; ++i) be->free(be, held[i].data, tensor_bytes(held[i]));
    Error err = {""};
    if (!be->synchronize(be, &err)) fail_msg("%s", err.message);
}
static void run_and_close(const FileTest *t) {
    Backend *be = open_cached(t);
    float results[CALLS][M * N];
    run_calls(be, results);
    be->close(be);
}

// The one file of the directory; the caller frees both.
static char *read_choices(const FileTest *t, char **path) {
    DIR *dir = opendir(t->dir);
    assert_non_null(dir);
    *path = NULL;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (strncmp(entry->d_name, "matmul-", 7) == 0) {
            assert_null(*path);
            *path = path_join(t->dir, entry->d_name);
        }
    closedir(dir);
    assert_non_null(*path);
    char *text = NULL;
    size_t bytes = 0;
    Error err = {""};
    if (!file_read_all(*path, 1 << 20, &text, &bytes, &err)) fail_msg("%s", err.message);
    return text;
}
static int count_lines(const char *text) {
    int lines = 0;
    for (; *text != '\0'; ++text) lines += *text == '\n';
    return lines;
}

static void test_timing_disturbs_nothing(void **state) {
    FileTest *t = *state;
    float expected[CALLS][M * N], found[CALLS][M * N];
    Backend *plain = open_cached(NULL);
    run_calls(plain, expected);
    plain->close(plain);
    Backend *be = open_cached(t);
    run_calls(be, found);
    be->close(be);
    for (int call = 0; call < CALLS; ++call)
        for (int i = 0; i < M * N; ++i) {
            // The library's GELU and ours may differ in the rounding of the exponential.
            float allowed = call == 3 ? 1e-5f : 0;
            if (!(found[call][i] >= expected[call][i] - allowed && found[call][i] <= expected[call][i] + allowed))
                fail_msg("call %d, element %d: %g with timing, %g without", call, i, (double)found[call][i],
                         (double)expected[call][i]);
        }
}

static void test_choices_are_kept(void **state) {
    FileTest *t = *state;
    run_and_close(t);
    char *path, *path_again;
    char *first = read_choices(t, &path);
    assert_int_equal(count_lines(first), CALLS);
    run_and_close(t);
    char *second = read_choices(t, &path_again);
    assert_string_equal(path, path_again);
    assert_string_equal(first, second);
    free(first);
    free(second);
    free(path);
    free(path_again);
}

// A killed process keeps its measurements: the file exists before the backend is closed.
static void test_choices_are_written_at_once(void **state) {
    FileTest *t = *state;
    Backend *be = open_cached(t);
    float results[CALLS][M * N];
    run_calls(be, results);
    char *path, *text = read_choices(t, &path);
    assert_int_equal(count_lines(text), CALLS);
    free(text);
    free(path);
    be->close(be);
}

// Another process measured the same key at the same time: both write, the first is valid, and neither fails.
static void test_two_processes(void **state) {
    FileTest *t = *state;
    float one_results[CALLS][M * N], other_results[CALLS][M * N];
    Backend *one = open_cached(t), *other = open_cached(t);
    run_calls(one, one_results);
    run_calls(other, other_results);
    assert_memory_equal(one_results, other_results, sizeof one_results);
    one->close(one);
    other->close(other);
    char *path, *text = read_choices(t, &path);
    assert_true(count_lines(text) >= CALLS && count_lines(text) <= 2 * CALLS);
    free(text);
    free(path);
}

static void test_damage(void **state) {
    FileTest *t = *state;
    run_and_close(t);
    char *path, *text = read_choices(t, &path);
    // A flipped bit in the first line, a foreign line, and a truncated end.
    text[40] = text[40] == '1' ? '2' : '1';
    char *damaged = xasprintf("not a choice\n%.*s", (int)strlen(text) - 20, text);
    Error err = {""};
    assert_true(file_write_atomic(path, damaged, strlen(damaged), &err));
    free(text);
    free(path);
    run_and_close(t);
    char *mended = read_choices(t, &path);
    // Both lost choices were measured again; the incomplete line was ended first.
    assert_int_equal(count_lines(mended), 1 + CALLS + 2);
    assert_memory_equal(mended, damaged, strlen(damaged));
    free(path);
    run_and_close(t);
    char *again = read_choices(t, &path);
    assert_string_equal(mended, again);
    free(damaged);
    free(mended);
    free(again);
    free(path);
}

// In a directory without write permission the choices are lost, but the run continues.
static void test_no_place(void **state) {
    FileTest *t = *state;
    file_test_write(t, "file", "", 0);
    char *below = file_test_path(t, "file/below");
    BackendOptions options = {.attention = "own", .cache_dir = below};
    Error err = {""};
    Backend *probe = open_cached(NULL);
    probe->close(probe);
    Backend *be = backend_plugin_open(test_device(), &options, &err);
    assert_non_null(be);
    float results[CALLS][M * N];
    run_calls(be, results);
    be->close(be);
    free(below);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FILE_TEST(test_timing_disturbs_nothing), FILE_TEST(test_choices_are_kept),
        FILE_TEST(test_choices_are_written_at_once), FILE_TEST(test_two_processes),
        FILE_TEST(test_damage), FILE_TEST(test_no_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
