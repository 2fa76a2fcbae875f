// test_backend_cpu.c: opening the CPU backend, its memory and its scratch.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "llmc/cpu/kernels.h"

static Backend *open_cpu(int threads) {
    Error err = {""};
    Backend *be = backend_cpu_open(threads, "generic", &err);
    if (be == NULL) fail_msg("%s", err.message);
    return be;
}

static void test_open(void **state) {
    (void)state;
    Error err = {""};
    assert_null(backend_cpu_open(1, "avx1024", &err));
    assert_non_null(strstr(err.message, "avx1024"));
    assert_null(backend_cpu_open(-1, NULL, &err));
    assert_non_null(strstr(err.message, "threads=-1"));
    Backend *be = backend_cpu_open(0, "auto", &err);
    assert_non_null(be);
    assert_string_equal(be->name, "cpu");
    assert_true(be->threads >= 1);
    assert_non_null(strstr(be->description, " thread"));
    be->close(be);
    be = open_cpu(1);
    assert_int_equal(be->threads, 1);
    assert_non_null(strstr(be->description, "1 thread, generic"));
    be->close(be);
}

// Sizes around the threshold for several threads, none of them round; bytes after the end are unchanged.
static void test_zero_and_copy(void **state) {
    (void)state;
    const size_t SIZES[] = {0, 1, 63, 4096, ((size_t)4 << 20) - 1, ((size_t)4 << 20) + 1, ((size_t)9 << 20) + 77};
    for (int threads = 1; threads <= 3; ++threads) {
        Backend *be = open_cpu(threads);
        Error err = {""};
        for (size_t i = 0; i < sizeof SIZES / sizeof SIZES[0]; ++i) {
            size_t bytes = SIZES[i];
            unsigned char *a = be->alloc(be, bytes + 1, &err), *b = be->alloc(be, bytes + 1, &err);
            assert_true(a != NULL && b != NULL && (uintptr_t)a % 256 == 0);
            for (size_t k = 0; k <= bytes; ++k) a[k] = (unsigned char)(k * 31 + k / 256 + 1);
            b[bytes] = 0xa5;
            be->copy(be, b, a, bytes);
            assert_true(memcmp(a, b, bytes) == 0 && b[bytes] == 0xa5);
            unsigned char last = a[bytes];
            be->zero(be, a, bytes);
            for (size_t k = 0; k < bytes; ++k)
                if (a[k] != 0) fail_msg("byte %zu of %zu is not zero", k, bytes);
            assert_int_equal(a[bytes], last);
            be->free(be, a, bytes + 1);
            be->free(be, b, bytes + 1);
        }
        be->close(be);
    }
}

static void test_scratch(void **state) {
    (void)state;
    Backend *be = open_cpu(2);
    assert_int_equal(cpu_scratch_bytes(be), 0);
    void *first = cpu_scratch(be, 0, 1000);
    assert_int_equal((uintptr_t)first % 64, 0);
    assert_ptr_equal(cpu_scratch(be, 0, 500), first);  // kept
    assert_ptr_not_equal(cpu_scratch(be, 1, 100), first);
    assert_int_equal(cpu_scratch_bytes(be), 1100);
    memset(cpu_scratch(be, 0, 5000), 1, 5000);
    assert_int_equal(cpu_scratch_bytes(be), 5100);
    be->close(be);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_open), cmocka_unit_test(test_zero_and_copy),
                                       cmocka_unit_test(test_scratch)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
