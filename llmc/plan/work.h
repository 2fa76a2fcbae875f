// work.h: what one rank's training step takes, counted and not computed: the model's own passes and the optimizer's
// update run over the counting backend (counting.h) on tensors that have addresses but no memory. Scaling, the plan's
// bounds of operations and FLOPs a token come from it, so that they follow every architecture.
// Must not know: machines, seconds, networks.
#ifndef LLMC_WORK_H
#define LLMC_WORK_H

#include "llmc/backend/counting.h"
#include "llmc/train/optimizer.h"

typedef struct {
    ModelConfig arch;  // finished
    ModelShape shape;  // ranks: the rank that is counted. Not training: a forward pass is all there is
    int64_t B, T;      // of a micro-batch, at most shape.max_rows tokens
    OptimizerKind optimizer;
    int64_t muon_steps;
} WorkShape;

typedef struct {
    Counting counting;
    Arena arena;  // bytes by tag, as the plan's arena has them
    Model model;
    Optimizer optimizer;
    // [model.part.buckets] of a micro-batch, mean over the shape.micro_batches of a step (the first overwrites gradients,
    // later ones add). The last bucket's forward pass holds the loss and the head's gradients.
    Counts *forward, *backward;
    Counts update;  // the gradient's norm and the update of what this rank owns
} StepWork;

// The result must not be moved: tensors and backend point into it.
void step_work_count(StepWork *out, const WorkShape *shape);
void step_work_free(StepWork *work);
// The larger of each bound.
void work_bounds_join(WorkspaceShape *to, const WorkspaceShape *from);
// The bytes under a tag that a model of this shape lays out.
size_t work_tag_bytes(const ModelConfig *arch, const ModelShape *shape, const char *tag);

// Training FLOPs of one token in rows of T, by convention: every product of the forward and backward pass, the head over
// the real vocabulary; attention over the keys that a causal query sees on average; nothing that is computed again. The
// MFU divides by it. Costs about a millisecond.
double work_flops_per_token(const ModelConfig *arch, int64_t T);
#endif
