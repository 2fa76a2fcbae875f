// optimizer_step.h: one optimizer step without the parts of a run, for tests and benchmarks.
#ifndef BENCH_OPTIMIZER_STEP_H
#define BENCH_OPTIMIZER_STEP_H

#include <math.h>

#include "llmc/train/optimizer.h"

// The whole step on one rank without lanes: freeze, norm, clipping to config->grad_clip, update.
static inline void optimizer_step(Optimizer *opt, Model *model, const RunConfig *config, double lr, double lr_factor,
                                  int64_t t) {
    CHECK(model->part.options.data.world == 1 && !model->part.options.lanes, "%d ranks", model->part.options.data.world);
    optimizer_freeze(opt, model);
    model->be->sum_squares(model->be, opt->sums, tensor_1d(model->grads, DTYPE_F32, model->params.total_elems));
    OptimizerStep step = {.t = t, .lr = lr, .lr_factor = lr_factor,
                          .clip = {.max_norm = (float)config->grad_clip, .skip_norm = INFINITY, .skip_loss = INFINITY}};
    optimizer_update(opt, model, config, &step);
}
#endif
