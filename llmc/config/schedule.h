// schedule.h: the phase, batch shape and learning rate of each step. Pure functions of the config. Must not know
// devices.
//
// A learning-rate segment begins at the first phase and at every phase with new_lr_segment, and ends where the next
// one begins, or at horizon_steps. Over its N steps, k counted from 0, the factor is
//     k < warmup_steps:  (k + 1) / warmup_steps
//     constant:          1
//     linear, cosine:    from 1 at k = warmup_steps down to final_lr_frac at k = N
//     wsd:               1, then linear over the last round(decay_frac N) steps down to final_lr_frac at k = N
// A decay that would begin inside the warm-up begins at its end. k = N is past the last step, so with final_lr_frac 0
// the learning rate of the last step is still above 0.
//
// Micro-batch and lane: see the glossary in llmc/model/model.h.
#ifndef LLMC_SCHEDULE_H
#define LLMC_SCHEDULE_H

#include "llmc/config/config.h"

typedef struct {
    int index;               // in config->phase
    int64_t first_step, steps;
    int64_t first_tokens;    // tokens of all earlier phases
    int64_t T, B;            // row length; rows of a micro-batch on one rank
    int64_t rows_per_step;   // over all ranks
    int64_t lanes;           // of a step, over all ranks: rows_per_step / B
    int64_t micro_batches;   // of a step, on one rank: lanes / data_world, rounded up; past the last lane: padding
} PhaseSpan;

typedef struct {
    const RunConfig *config; // must outlive the schedule
    int phase_count;
    PhaseSpan phase[CONFIG_MAX_PHASES];
    int64_t total_steps;
    // The step at which the last learning-rate segment ends; equal to total_steps. It is saved in checkpoints because
    // in a run bounded by time it is measured, and then fixed by schedule_set_horizon.
    int64_t horizon_steps;
} Schedule;

// total_steps of a run bounded by time until its horizon is set: more than any run reaches, so that the learning rate
// warms up but does not decay yet.
#define SCHEDULE_OPEN_STEPS ((int64_t)1 << 32)

// data_world: ranks that share a step's lanes. Errors: sizes that are not positive, batch_tokens not a multiple of B*T,
// a budget smaller than one step, a run bounded by time with more than one phase.
bool schedule_build(Schedule *schedule, const RunConfig *config, int data_world, Error *err);
// The phase of step (0-based); the last one for steps at or past the end.
const PhaseSpan *schedule_phase(const Schedule *schedule, int64_t step);
// The factor in [0, 1] by which the segment's peak is multiplied, and the learning rate itself. Steps past the horizon
// have the value at the horizon.
double schedule_lr_factor(const Schedule *schedule, int64_t step);
double schedule_lr(const Schedule *schedule, int64_t step);
// For train_seconds: fixes the end of the (single) phase and of its curve at total_steps > 0.
void schedule_set_horizon(Schedule *schedule, int64_t total_steps);
// Tokens seen before `step`.
int64_t schedule_tokens_before(const Schedule *schedule, int64_t step);
#endif
