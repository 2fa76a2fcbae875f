// optimizer.h: AdamW for everything, or Muon for hidden matrices with AdamW for the rest. Walks the parameter table;
// the state is flat and laid out in the run's arena. Called once a step by the loop.
//
// AdamW: Loshchilov & Hutter 2019. Muon: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon): the momentum
// of a matrix (r, c) is replaced by the nearest orthogonal matrix, found by a quintic Newton-Schulz iteration, times
// sqrt(max(1, r/c)); q, k, v and gate, up are matrices of their own.
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
    float *v;  // [part.v_elems]: second moments, of pieces that AdamW updates
    bool *trainable;    // [params.count] in the present phase
    Tensor sums;        // fp64: sums of squares of the gradient's segments, or (1) of all of it
    GradStats *stats;   // on the device
    OptimTensor *list;  // [part.pieces] scratch of a step, like the next
    MuonMatrix *matrix;
    // Muon takes equally shaped matrices together, as many as have group_elems elements, at least one: more work for
    // a device at a time, for more memory. It changes no bit.
    int64_t group_elems;
    // workspace of a group, dtype of the run
    Tensor x, y;        // (G,r,c) flat
    Tensor gram, poly;  // (G, min(r,c), min(r,c)) flat
} Optimizer;

void optimizer_init(Optimizer *opt, const RunConfig *config, const Model *model, Arena *arena);
void optimizer_free(Optimizer *opt);
// Gradients and moments to zero. After the weights are there: memory that loading them passes through is then never
// on top of these arrays.
void optimizer_reset(Optimizer *opt, Model *model);
// Which tensors a phase trains: comma-separated fnmatch patterns of parameter names. Errors when a pattern matches
// nothing.
bool optimizer_set_trainable(Optimizer *opt, const ParamTable *params, const char *patterns, Error *err);
// A frozen tensor's gradient counts for nothing, the norm included: to zero, before the norm is taken.
void optimizer_freeze(const Optimizer *opt, Model *model);

typedef struct {
    int64_t t;         // 1 for the first step
    double lr;         // AdamW's rate
    double lr_factor;  // in [0,1], of muon_lr
    ClipArgs clip;
    Tensor loss_sums;  // of the step's micro-batches; TENSOR_NONE: the loss is not looked at
} OptimizerStep;
// Clipping by the norm that opt->sums tell (zero_sum_squares), and the update of this rank's pieces.
void optimizer_update(Optimizer *opt, Model *model, const RunConfig *config, const OptimizerStep *step);
// All of it where one rank has everything and lanes are off: freeze, norm, clipping to config->grad_clip, update.
void optimizer_step(Optimizer *opt, Model *model, const RunConfig *config, double lr, double lr_factor, int64_t t);
#endif
