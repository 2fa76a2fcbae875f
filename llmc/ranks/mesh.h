// mesh.h: the ranks of a launch as a grid with an axis for each way of dividing the work, made once when a run opens.
// A rank's place along an axis and the group of the ranks along it (which differ in that coordinate only) are what the
// rest of the program takes; the launch's own rank and world are for starting, logs and control.h. Must not know what
// is divided or how.
//
//   axis     its ranks divide                                      they exchange
//   data     rows of a step; with ZeRO the model's state too       gradients, once a step and beside the backward pass
//   expert   experts                                               tokens, in layers that have experts
//   context  positions of a row                                    keys and values, in every layer
//   tensor   heads, feed-forward, vocabulary                       activations, several times in every layer
//
// Row-major, data outermost and tensor innermost:
//     launch rank = ((data * expert.world + expert) * context.world + context) * tensor.world + tensor
// Launchers number ranks node by node, so ranks along an inner axis are neighbours and share a node as long as it has
// enough of them: the axis that exchanges most often lies innermost.
#ifndef LLMC_MESH_H
#define LLMC_MESH_H

#include "llmc/base/mesh_axis.h"
#include "llmc/ranks/comm.h"

// Lengths of the axes.
typedef struct {
    int data;  // 0: what the others leave
    int expert, context, tensor;
} MeshShape;

typedef struct {
    MeshAxis axis;
    Comm *comm;  // the mesh's; NULL: not opened
} MeshGroup;

typedef struct {
    MeshGroup data, expert, context, tensor;
} Mesh;

// The place of a rank of the launch; no groups yet. Errors: a length below 1, a product that is not launch_world.
bool mesh_init(Mesh *out, const MeshShape *shape, int launch_rank, int launch_world, Error *err);
// Error unless every axis but data has length 1: what training can do today.
bool mesh_check_data_only(const Mesh *mesh, Error *err);
// Closes the groups that are open.
void mesh_close(Mesh *mesh);
#endif
