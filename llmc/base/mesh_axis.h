// mesh_axis.h: a rank's position along one axis of the mesh of ranks (ranks/mesh.h), for rooms that divide work among
// ranks. The name of a MeshAxis parameter or field says which axis it is. Must not know how ranks communicate.
#ifndef LLMC_MESH_AXIS_H
#define LLMC_MESH_AXIS_H

#include "llmc/base/common.h"

typedef struct {
    int rank, world;  // 0 <= rank < world
} MeshAxis;
// An axis of one rank.
static const MeshAxis MESH_ALONE = {0, 1};

static inline bool mesh_axis_is_valid(MeshAxis axis) { return axis.rank >= 0 && axis.rank < axis.world; }
#endif
