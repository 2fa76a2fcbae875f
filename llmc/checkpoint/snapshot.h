// snapshot.h: everything that a rank writes of a checkpoint, copied into host memory at one moment, so that it can be
// written while training goes on. The memory is planned and taken before training; taking a snapshot allocates
// nothing. Knows models and optimizers, not files; run_save.c hands its readers to the writers of files.
#ifndef LLMC_SNAPSHOT_H
#define LLMC_SNAPSHOT_H

#include <stdatomic.h>

#include "llmc/formats/model_file.h"
#include "llmc/train/optimizer.h"
#include "llmc/checkpoint/optimizer_file.h"
#include "llmc/train/zero.h"

// What a rank of a run writes follows from these.
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
    size_t *weight_at, *state_at;  // where they lie in the block
    size_t bytes;                  // of the block
    unsigned char *block;
    DownloadPiece *pieces;  // room for a list of them
    Ticket copied;          // of the latest copy
    Backend *be;    // that the block is of
    const atomic_bool *cancelled;  // readers fail once it is true; NULL: never
} Snapshot;

// Bytes of host memory that snapshot_open takes. Nothing is allocated.
size_t snapshot_plan_bytes(const SnapshotShape *shape);
// Takes the memory. shape's arch and params must live as long.
bool snapshot_open(Snapshot *snapshot, const SnapshotShape *shape, Backend *be, const atomic_bool *cancelled,
                   Error *err);
void snapshot_close(Snapshot *snapshot);

// Where a piece of the optimizer's state lies in backend memory: on a rank that keeps it.
void *snapshot_state_address(const Model *model, const Optimizer *optimizer, const StatePiece *piece);
// Begins to copy weights and state as everything issued so far leaves them; the copy leaves the device beside what is
// issued from now on. Collective where weights are sharded (stage 3).
void snapshot_begin(Snapshot *snapshot, const Model *model, const Optimizer *optimizer, Zero *zero);
// Before anything is issued that changes weights or state: it comes after the copy. The host does not wait.
void snapshot_before_update(const Snapshot *snapshot);
// Whether the latest copy is complete (or the device has failed); waits for it. False of wait: the device failed.
bool snapshot_is_there(const Snapshot *snapshot);
bool snapshot_wait(const Snapshot *snapshot, Error *err);

// A ModelFileGet and a SafeTensorFetch (index into snapshot->state) over a Snapshot; any thread, one at a time.
bool snapshot_get_weights(void *snapshot, const ParamSpec *spec, int64_t first, int64_t count, float *out,
                          Error *err);
const void *snapshot_fetch_state(void *snapshot, int index, int64_t first, int64_t count, Error *err);

#endif
