// objective.c: one case for each kind of objective; see objective.h. Must not know: how logits and targets were made.
#include "llmc/model/objective.h"

void objective_loss(const Objective *objective, Backend *be, Tensor loss, Tensor logits, Tensor targets, Tensor weight,
                    CrossEntropyArgs args) {
    switch (objective->kind) {
        case OBJECTIVE_CROSS_ENTROPY:
            CHECK(tensor_is_none(objective->teacher_logits), "cross-entropy has no teacher%s", "");
            be->cross_entropy(be, loss, logits, targets, weight, args);
            return;
    }
    CHECK(false, "kind=%d", (int)objective->kind);
}
