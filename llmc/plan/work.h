// work.h: counts the operations of one rank's step without computing them: the model's passes and the optimizer's update
// run on the counting backend (counting.h), on tensors that have addresses but no memory. Scaling, the plan's workspaces
// and FLOPs for each token use it, so that they follow every architecture.
// Must not know: machines, seconds, networks.
#ifndef LLMC_WORK_H
#define LLMC_WORK_H

#include "llmc/backend/counting.h"
#include "llmc/train/optimizer.h"

typedef struct {
    ModelConfig arch;  // finished
    ModelShape shape;  // ranks: the rank that is counted. Not training: only a forward pass is counted
    int64_t B, T;      // of a micro-batch, at most shape.max_rows tokens
    OptimizerKind optimizer;
    int64_t muon_steps;
} WorkShape;

typedef struct {
    Counting counting;
    Arena arena;  // bytes by tag, equal to those of the plan's arena
    Model model;
    Optimizer optimizer;
    // [model.part.buckets] of a micro-batch: mean over the shape.micro_batches of a step (the first overwrites gradients,
    // later ones add). The last bucket's forward pass includes the loss and the head's gradients.
    Counts *forward, *backward;
    Counts update;  // the gradient's norm and the update of the elements that this rank owns
} StepWork;

// The result must not be moved: tensors and backend point into it.
void step_work_count(StepWork *out, const WorkShape *shape);
void step_work_free(StepWork *work);
// to = the larger of each bound.
void work_bounds_join(WorkspaceShape *to, const WorkspaceShape *from);
// Bytes that a model of this shape allocates under a tag.
size_t work_tag_bytes(const ModelConfig *arch, const ModelShape *shape, const char *tag);

// Training FLOPs of one token in rows of T, by convention: every product of the forward and backward pass, the head over
// the real vocabulary (V, not Vp), attention over the mean number of keys of a causal query, no recomputation. Used for
// the MFU. Takes about a millisecond.
double work_flops_per_token(const ModelConfig *arch, int64_t T);
#endif
