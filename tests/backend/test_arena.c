// test_arena.c: a measuring arena and a real one allocate the same bytes; the sums of the tags are right.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "llmc/backend/arena.h"
#include "llmc/backend/backend.h"

typedef struct {
    Tensor weights, activations, empty;
    unsigned char *bytes;
} Views;

static Views lay_out(Arena *arena) {
    Views v;
    v.weights = arena_tensor(arena, "parameters", DTYPE_BF16, 2, 3, 5, 0, 0);
    v.activations = arena_tensor(arena, "activations", DTYPE_F32, 3, 2, 3, 4, 0);
    v.empty = arena_tensor(arena, "activations", DTYPE_F32, 1, 0, 0, 0, 0);
    v.bytes = arena_alloc(arena, 1000, "parameters");
    return v;
}

static void test_measured_equals_real(void **state) {
    (void)state;
    Arena plan;
    arena_init_measuring(&plan);
    Views planned = lay_out(&plan);
    assert_null(planned.weights.data);
    assert_null(planned.bytes);
    assert_int_equal(planned.activations.dim[2], 4);
    assert_int_equal(arena_tag_bytes(&plan, "parameters"), 256 + 1024);
    assert_int_equal(arena_tag_bytes(&plan, "activations"), 256);
    assert_int_equal(arena_tag_bytes(&plan, "gradients"), 0);
    assert_int_equal(plan.used_bytes, 256 + 1024 + 256);

    Error err = {""};
    Backend *be = backend_cpu_open(1, "generic", &err);
    assert_non_null(be);
    Arena arena;
    assert_true(arena_init(&arena, be, plan.used_bytes, &err));
    Views real = lay_out(&arena);
    assert_int_equal(arena.used_bytes, plan.used_bytes);
    assert_ptr_equal(real.weights.data, arena.base);
    assert_ptr_equal(real.activations.data, arena.base + 256);
    assert_ptr_equal(real.bytes, arena.base + 512);
    assert_int_equal((uintptr_t)arena.base % ARENA_ALIGN_BYTES, 0);
    memset(real.bytes, 0, 1000);
    arena_free(&arena);
    assert_null(arena.base);
    assert_int_equal(arena.used_bytes, 0);
    be->close(be);
}
static void test_no_memory_is_an_error(void **state) {
    (void)state;
    Error err = {""};
    Backend *be = backend_cpu_open(1, "generic", &err);
    assert_non_null(be);
    Arena arena;
    assert_false(arena_init(&arena, be, SIZE_MAX - 1000, &err));
    assert_non_null(strstr(err.message, "cannot allocate"));
    assert_true(arena_init(&arena, be, 0, &err));
    arena_free(&arena);
    be->close(be);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_measured_equals_real),
                                       cmocka_unit_test(test_no_memory_is_an_error)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
