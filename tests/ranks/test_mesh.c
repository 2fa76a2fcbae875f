// test_mesh.c: meshes of many shapes: every rank's coordinates, row-major, and invalid shapes.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "llmc/ranks/mesh.h"

static void expect_axis(MeshAxis axis, int rank, int world) {
    assert_int_equal(axis.rank, rank);
    assert_int_equal(axis.world, world);
}

// Counts the ranks in the order of nested loops over the axes, data outermost, tensor innermost.
static void check_shape(MeshShape shape) {
    const int world = shape.data * shape.expert * shape.context * shape.tensor;
    int rank = 0;
    Error err = {""};
    for (int d = 0; d < shape.data; ++d)
        for (int e = 0; e < shape.expert; ++e)
            for (int c = 0; c < shape.context; ++c)
                for (int t = 0; t < shape.tensor; ++t, ++rank) {
                    MeshShape left_open = shape;
                    if (rank % 2 == 1) left_open.data = 0;
                    Mesh mesh;
                    assert_true(mesh_init(&mesh, &left_open, rank, world, &err));
                    expect_axis(mesh.data.axis, d, shape.data);
                    expect_axis(mesh.expert.axis, e, shape.expert);
                    expect_axis(mesh.context.axis, c, shape.context);
                    expect_axis(mesh.tensor.axis, t, shape.tensor);
                    assert_null(mesh.data.comm);
                    mesh_close(&mesh);
                }
    assert_int_equal(rank, world);
}

static void test_coordinates(void **state) {
    (void)state;
    const MeshShape shapes[] = {{1, 1, 1, 1}, {8, 1, 1, 1}, {1, 1, 1, 8}, {2, 1, 1, 4}, {3, 1, 2, 2},
                                {2, 2, 1, 2}, {2, 3, 4, 5}, {1, 5, 1, 3}, {7, 1, 3, 1}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; ++i) check_shape(shapes[i]);

    // Ranks 8 to 15, a node of eight, are two neighbouring tensor groups of four.
    Error err = {""};
    Mesh mesh;
    assert_true(mesh_init(&mesh, &(MeshShape){.expert = 1, .context = 2, .tensor = 4}, 14, 32, &err));
    expect_axis(mesh.tensor.axis, 2, 4);
    expect_axis(mesh.context.axis, 1, 2);
    expect_axis(mesh.data.axis, 1, 4);
}

static void expect_refused(MeshShape shape, int world, const char *why) {
    Error err = {""};
    Mesh mesh;
    assert_false(mesh_init(&mesh, &shape, 0, world, &err));
    if (strstr(err.message, why) == NULL) fail_msg("expected \"%s\" in: %s", why, err.message);
}

static void test_product_is_the_launch(void **state) {
    (void)state;
    expect_refused((MeshShape){2, 1, 1, 2}, 8, "the launch's 8 ranks, found data 2, expert 1, context 1, tensor 2");
    expect_refused((MeshShape){4, 1, 1, 4}, 8, "found data 4");
    expect_refused((MeshShape){0, 1, 1, 3}, 8, "found data 0, expert 1, context 1, tensor 3");
    expect_refused((MeshShape){0, 1, 1, 16}, 8, "tensor 16");
    expect_refused((MeshShape){8, 0, 1, 1}, 8, "expert 0");
    expect_refused((MeshShape){-8, 1, -1, 1}, 8, "context -1");
    expect_refused((MeshShape){0, -2, -2, 2}, 8, "expert -2");
    // 2^16 to the fourth power is 0 in 64 bits, 2^16 squared is 0 in 32.
    expect_refused((MeshShape){65536, 65536, 65536, 65536}, 1, "65536");
    expect_refused((MeshShape){0, 65536, 65536, 65536}, 8, "65536");
}

static void test_training_takes_data_only(void **state) {
    (void)state;
    const struct {
        MeshShape shape;
        const char *why;  // NULL: accepted
    } cases[] = {{{1, 1, 1, 1}, NULL},
                 {{6, 1, 1, 1}, NULL},
                 {{3, 1, 1, 2}, "expected tensor 1, found 2"},
                 {{3, 1, 2, 1}, "expected context 1, found 2"},
                 {{1, 6, 1, 1}, "expected expert 1, found 6"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        const MeshShape *s = &cases[i].shape;
        Error err = {""};
        Mesh mesh;
        assert_true(mesh_init(&mesh, s, 0, s->data * s->expert * s->context * s->tensor, &err));
        assert_true(mesh_check_data_only(&mesh, &err) == (cases[i].why == NULL));
        if (cases[i].why != NULL && strstr(err.message, cases[i].why) == NULL)
            fail_msg("expected \"%s\" in: %s", cases[i].why, err.message);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coordinates),
        cmocka_unit_test(test_product_is_the_launch),
        cmocka_unit_test(test_training_takes_data_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
