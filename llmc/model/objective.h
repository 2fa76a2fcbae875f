// objective.h: what training minimizes, as a value: sum_i weight_i * loss_i over the rows of a micro-batch, times a
// coefficient. It lies in the model's room and not in train because the loss is taken between the two products of the
// head, chunk by chunk of logits that exist once, within one repeated sequence of operations: model.c would have to call
// a room above it. A teacher is another Model, forward only, whose head fills teacher_logits for each chunk: one more kind
// here, one more case in objective.c and the call in model.c's loss_forward; run and train only choose the value.
#ifndef LLMC_OBJECTIVE_H
#define LLMC_OBJECTIVE_H

#include "llmc/backend/backend.h"

typedef enum { OBJECTIVE_CROSS_ENTROPY } ObjectiveKind;

typedef struct {
    ObjectiveKind kind;
    double coefficient;     // of the gradient, not of the reported losses; 1 changes no bit
    Tensor teacher_logits;  // (loss_chunk_rows, Vp); TENSOR_NONE: no teacher, as cross-entropy wants it
} Objective;
#define OBJECTIVE_DEFAULT ((Objective){OBJECTIVE_CROSS_ENTROPY, 1, TENSOR_NONE})

// One chunk of rows: their losses, unweighted, and where args.want_grad the gradient of the logits in their place.
// loss (n) fp32 =; logits (n,Vp) act, overwritten; targets int32 (n); weight fp32 (n). args.loss_scale has the coefficient.
void objective_loss(const Objective *objective, Backend *be, Tensor loss, Tensor logits, Tensor targets, Tensor weight,
                    CrossEntropyArgs args);
#endif
