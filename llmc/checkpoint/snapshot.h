// snapshot.h: a copy, in host memory, of all tensors that a rank writes to a checkpoint, so that training continues while
// it is written. The memory is planned, and allocated before training; a snapshot allocates nothing. Writers of files read
// it through snapshot_get_weights and snapshot_fetch_state. Must not know: files, when a run saves.
#ifndef LLMC_SNAPSHOT_H
#define LLMC_SNAPSHOT_H

#include <stdatomic.h>

#include "llmc/formats/model_file.h"
#include "llmc/train/optimizer.h"
#include "llmc/checkpoint/optimizer_file.h"
#include "llmc/train/zero.h"

// Determines the tensors that a rank writes.
typedef struct {
    const ModelConfig *arch;
    const ParamTable *params;
    PartitionOptions ranks;
    DType dtype;   // of the weights
    StateKept kept;
} SnapshotShape;

typedef struct {
    SnapshotShape shape;
    ParamRange *weights;  // in the order of the file
    StatePiece *state;    // likewise
    int weight_count, state_count;
    size_t *weight_at, *state_at;  // their offsets in the block
    size_t bytes;                  // of the block
    unsigned char *block;
    DownloadPiece *pieces;  // scratch for one list
    Ticket copied;          // of the latest copy
    Backend *be;    // allocated the block
    const atomic_bool *cancelled;  // readers fail once it is true; NULL: never
} Snapshot;

// Bytes of host memory that snapshot_open allocates. Allocates nothing itself.
size_t snapshot_plan_bytes(const SnapshotShape *shape);
// Allocates the memory. shape's arch and params must outlive the snapshot.
bool snapshot_open(Snapshot *snapshot, const SnapshotShape *shape, Backend *be, const atomic_bool *cancelled,
                   Error *err);
void snapshot_close(Snapshot *snapshot);

// Address in backend memory of a piece of the optimizer state, which this rank must keep.
void *snapshot_state_address(const Model *model, const Optimizer *optimizer, const StatePiece *piece);
// Issues the copy of weights and state after all operations issued so far; it overlaps with operations issued later.
// Collective where weights are sharded (stage 3).
void snapshot_begin(Snapshot *snapshot, const Model *model, const Optimizer *optimizer, Zero *zero);
// Call before operations that change weights or state are issued: orders them after the copy. The host does not wait.
void snapshot_before_update(const Snapshot *snapshot);
// Whether the latest copy is complete or the device has failed; and a wait for it, false if the device failed.
bool snapshot_is_there(const Snapshot *snapshot);
bool snapshot_wait(const Snapshot *snapshot, Error *err);

// A ModelFileGet and a SafeTensorFetch (index into snapshot->state) on a Snapshot; from any thread, one at a time.
bool snapshot_get_weights(void *snapshot, const ParamSpec *spec, int64_t first, int64_t count, float *out,
                          Error *err);
const void *snapshot_fetch_state(void *snapshot, int index, int64_t first, int64_t count, Error *err);

#endif
