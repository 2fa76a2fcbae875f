// objective.h: the quantity that training minimizes: coefficient * sum_i weight_i * loss_i over the rows of a micro-batch.
// It is in this room because model.c computes the loss between the head's products, for one chunk of logits at a time. A
// teacher is another Model, forward only, whose head fills teacher_logits for each chunk: it needs one more kind here, one
// more case in objective.c and the call in model.c's loss_forward. Must not know: the model, the schedule.
#ifndef LLMC_OBJECTIVE_H
#define LLMC_OBJECTIVE_H

#include "llmc/backend/backend.h"

typedef enum { OBJECTIVE_CROSS_ENTROPY } ObjectiveKind;

typedef struct {
    ObjectiveKind kind;
    double coefficient;     // multiplies the gradient, not the reported losses; 1 changes no bit
    Tensor teacher_logits;  // (loss_chunk_rows, Vp); TENSOR_NONE: no teacher, as cross-entropy requires
} Objective;
#define OBJECTIVE_DEFAULT ((Objective){OBJECTIVE_CROSS_ENTROPY, 1, TENSOR_NONE})

// One chunk of n rows. loss (n) fp32 = unweighted losses; logits (n,Vp) activation dtype, overwritten, with args.want_grad
// by their gradient; targets (n) int32; weight (n) fp32. args.loss_scale includes the coefficient.
void objective_loss(const Objective *objective, Backend *be, Tensor loss, Tensor logits, Tensor targets, Tensor weight,
                    CrossEntropyArgs args);
#endif
