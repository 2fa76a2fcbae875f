// mesh.h: the ranks of a launch as a grid with an axis for each way of dividing the work, made once when a run opens.
// Other rooms use a rank's coordinate on an axis and the group of ranks along that axis (ranks that differ in this
// coordinate only); the launch's own rank and world are for starting, logs and control.h. Must not know what is divided
// or how.
//
//   axis     its ranks divide                                      they exchange
//   data     rows of a step; with ZeRO the model's state too       gradients, once a step and beside the backward pass
//   expert   experts                                               tokens, in layers that have experts
//   context  positions of a row                                    keys and values, in every layer
//   tensor   heads, feed-forward, vocabulary                       activations, several times in every layer
//
// Row-major, data outermost and tensor innermost:
//     launch rank = ((data * expert.world + expert) * context.world + context) * tensor.world + tensor
// Launchers number ranks node by node, so ranks along an inner axis are neighbours and share a node if it has enough
// ranks: the axis that communicates most often is innermost.
#ifndef LLMC_MESH_H
#define LLMC_MESH_H

#include "llmc/base/mesh_axis.h"
#include "llmc/ranks/comm.h"

// Lengths of the axes.
typedef struct {
    int data;  // 0: world / (product of the other axes)
    int expert, context, tensor;
} MeshShape;

typedef struct {
    MeshAxis axis;
    Comm *comm;  // owned by the mesh; NULL: not opened
} MeshGroup;

typedef struct {
    MeshGroup data, expert, context, tensor;
} Mesh;

// Sets the coordinates of a rank of the launch; opens no groups. Errors: a length below 1, a product that is not
// launch_world.
bool mesh_init(Mesh *out, const MeshShape *shape, int launch_rank, int launch_world, Error *err);
// Error unless every axis except data has length 1, which is all that training supports today.
bool mesh_check_data_only(const Mesh *mesh, Error *err);
// Closes the groups that are open.
void mesh_close(Mesh *mesh);
#endif
