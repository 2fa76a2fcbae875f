// state_kinds.h: the state that a run keeps for each parameter besides its weights, as a table: masters and moments. An
// average of weights or a Fisher diagonal is one more row, and a field of StateKept if only some runs have it. The hash
// chain, checkpoints (writer, reader, snapshot and its bytes) and the ckpt commands walk it. Must not know: files.
#ifndef LLMC_STATE_KINDS_H
#define LLMC_STATE_KINDS_H

#include "llmc/train/optimizer.h"

// In the order of a parameter's tensors in files.
typedef enum { STATE_MASTER, STATE_M, STATE_V, STATE_KINDS } StateKind;

// Determines which kinds exist in a run or in a checkpoint's files.
typedef struct {
    bool muon;     // hidden matrices have no second moments
    bool masters;  // bf16 weights have separate fp32 masters
} StateKept;
StateKept state_kept_by(const Model *model);  // also of a model that is only planned

typedef struct {
    const char *name;  // in files: "m" of "m.block.0.attn.qkv.weight"
    DType dtype;
    // A form of the weights: set through model_set_param when a checkpoint is read, and hashed as weights.
    bool is_weight;
    int64_t hash_place;  // added to an element's position in the hash of the optimizer state; differs between kinds
    bool (*kept)(const StateKept *kept, const ParamSpec *spec);  // whether the parameter has this kind, as a whole
    // Address of the piece's elements in backend memory, on a rank that keeps it.
    void *(*address)(const Model *model, const Optimizer *optimizer, const Piece *piece);
} StateKindRow;
extern const StateKindRow STATE_ROWS[STATE_KINDS];

#endif
