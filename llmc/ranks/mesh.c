// mesh.c: see mesh.h.
#include "llmc/ranks/mesh.h"

#define AXES 4

bool mesh_init(Mesh *out, const MeshShape *shape, int launch_rank, int launch_world, Error *err) {
    CHECK(launch_rank >= 0 && launch_rank < launch_world, "rank=%d world=%d", launch_rank, launch_world);
    *out = (Mesh){.data = {.comm = NULL}};
    // Innermost axis first: coordinate = rest % length, then rest /= length.
    MeshAxis *const axis[AXES] = {&out->tensor.axis, &out->context.axis, &out->expert.axis, &out->data.axis};
    int length[AXES] = {shape->tensor, shape->context, shape->expert, shape->data};
    int64_t product = 1;
    int rest = launch_rank;
    for (int i = 0; i < AXES && product <= launch_world; ++i) {
        if (axis[i] == &out->data.axis && length[i] == 0) length[i] = (int)(launch_world / product);
        if (length[i] < 1) {
            product = 0;
            break;
        }
        *axis[i] = (MeshAxis){rest % length[i], length[i]};
        rest /= length[i];
        product *= length[i];
    }
    if (product == launch_world) return true;
    return error_set(err, "mesh: expected the lengths of its axes, each 1 or more, to multiply to the launch's %d ranks, "
                          "found data %d, expert %d, context %d, tensor %d", launch_world, shape->data, shape->expert,
                     shape->context, shape->tensor);
}

bool mesh_check_data_only(const Mesh *mesh, Error *err) {
    const struct {
        const char *name;
        int world;
    } others[] = {{"expert", mesh->expert.axis.world},
                  {"context", mesh->context.axis.world},
                  {"tensor", mesh->tensor.axis.world}};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; ++i)
        if (others[i].world != 1)
            return error_set(err, "mesh: expected %s 1, found %d: training divides its work along the data axis only",
                             others[i].name, others[i].world);
    return true;
}

void mesh_close(Mesh *mesh) {
    MeshGroup *const groups[AXES] = {&mesh->data, &mesh->expert, &mesh->context, &mesh->tensor};
    for (int i = 0; i < AXES; ++i) {
        if (groups[i]->comm != NULL) groups[i]->comm->close(groups[i]->comm);
        groups[i]->comm = NULL;
    }
}
