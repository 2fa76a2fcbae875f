// optimizer.h, entry of this room: AdamW for all parameters, or Muon for hidden matrices and AdamW for the rest. The state
// is packed and allocated in the run's arena. The room also has ZeRO, the spike guard, the hash chain and progress.
// Must not know: files of checkpoints, the training loop, which backend it runs on.
//
// AdamW: Loshchilov & Hutter 2019. Muon: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon): the momentum
// of a matrix (r, c) is replaced by the nearest orthogonal matrix, found by a quintic Newton-Schulz iteration, times
// sqrt(max(1, r/c)); q, k, v and gate, up are separate matrices.
#ifndef LLMC_OPTIMIZER_H
#define LLMC_OPTIMIZER_H

#include "llmc/config/config.h"
#include "llmc/model/model.h"

// A matrix that Muon orthogonalizes: rows of a parameter.
typedef struct {
    int64_t rows, cols;
    OptimTensor tensor;
} MuonMatrix;

typedef struct {
    OptimizerKind kind;
    float *m;  // packed (partition.h), [part.packed_elems]: first moment, or Muon's momentum
    float *v;  // [part.v_elems]: second moments of pieces that AdamW updates
    bool *trainable;    // [params.count] in the current phase
    Tensor sums;        // fp64: sums of squares of the gradient's segments, or (1) of the whole gradient
    GradStats *stats;   // on the device
    OptimTensor *list;   // [part.pieces] scratch of a step
    MuonMatrix *matrix;  // [part.pieces] likewise
    // Muon updates equally shaped matrices in groups of at most group_elems elements (but at least one matrix): fewer,
    // larger operations for more memory, with the same bits.
    int64_t group_elems;
    // workspace of a group, dtype of the run
    Tensor x, y;        // (G,r,c) flat
    Tensor gram, poly;  // (G, min(r,c), min(r,c)) flat
} Optimizer;

void optimizer_init(Optimizer *opt, const RunConfig *config, const Model *model, Arena *arena);
void optimizer_free(Optimizer *opt);
// Sets gradients and moments to zero. Call it after the weights are loaded: pages of these arrays are then not resident
// while loading needs its own memory.
void optimizer_reset(Optimizer *opt, Model *model);
// Sets the tensors that a phase trains: comma-separated fnmatch patterns of parameter names. Errors: a pattern that
// matches no parameter.
bool optimizer_set_trainable(Optimizer *opt, const ParamTable *params, const char *patterns, Error *err);
// Sets the gradients of frozen tensors to zero. Call it before the norm is computed, which must not include them.
void optimizer_freeze(const Optimizer *opt, Model *model);

typedef struct {
    int64_t t;         // 1 for the first step
    double lr;         // AdamW's rate
    double lr_factor;  // in [0,1], of muon_lr
    ClipArgs clip;
    Tensor loss_sums;  // of the step's micro-batches; TENSOR_NONE: the loss is not checked
} OptimizerStep;
// Clips by the norm from opt->sums (zero_sum_squares) and updates this rank's pieces.
void optimizer_update(Optimizer *opt, Model *model, const RunConfig *config, const OptimizerStep *step);
#endif
