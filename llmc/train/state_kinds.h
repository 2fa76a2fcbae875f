// state_kinds.h: what a run keeps for each parameter beside its weights, as a table: masters and moments; an average or a
// Fisher diagonal would be a row more (and a field of StateKept, if only some runs have it). The hash chain, checkpoints
// (writer, reader, snapshot and its bytes) and the ckpt commands walk it. Knows nothing of files.
#ifndef LLMC_STATE_KINDS_H
#define LLMC_STATE_KINDS_H

#include "llmc/train/optimizer.h"

// In the order in which a parameter's tensors stand in files.
typedef enum { STATE_MASTER, STATE_M, STATE_V, STATE_KINDS } StateKind;

// What decides which kinds there are: of a run, or of a checkpoint's files.
typedef struct {
    bool muon;     // hidden matrices have no second moments
    bool masters;  // bf16 weights have fp32 masters apart
} StateKept;
StateKept state_kept_by(const Model *model);  // also of a model that is only planned

typedef struct {
    const char *name;  // in files: "m" of "m.block.0.attn.qkv.weight"
    DType dtype;
    // Weights in another form: read through the weights, whole and before all else; hashed as weights.
    bool is_weight;
    int64_t hash_place;  // added to an element's place in the hash of the optimizer's state: no two kinds share one
    bool (*kept)(const StateKept *kept, const ParamSpec *spec);  // whether the parameter, all of it, has this kind
    // The piece's elements in backend memory, of a rank that keeps it.
    void *(*address)(const Model *model, const Optimizer *optimizer, const Piece *piece);
} StateKindRow;
extern const StateKindRow STATE_ROWS[STATE_KINDS];

#endif
