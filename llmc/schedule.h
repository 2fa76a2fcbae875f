// schedule.h: the timetable of a run: which phase, batch shape and learning rate belong to a step. Pure functions of
// the config; knows nothing of devices.
#ifndef LLMC_SCHEDULE_H
#define LLMC_SCHEDULE_H

#include "llmc/config.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int index;               // in config->phase
    int64_t first_step, steps;
    int64_t first_tokens;    // tokens of all phases before
    int64_t T, B;            // row length; rows of a micro-batch on one rank
    int64_t rows_per_step;   // over all ranks
    int64_t micro_batches;   // per rank and step: rows_per_step / (B * world)
} PhaseSpan;

typedef struct {
    const RunConfig *config;
    int phase_count;
    PhaseSpan phase[CONFIG_MAX_PHASES];
    int64_t total_steps;
    // The step count that learning-rate curves end at; differs from the plan only in runs bounded by time, where it
    // is measured, then frozen, and kept in the checkpoint.
    int64_t horizon_steps;
} Schedule;

// Errors: batch_tokens not a multiple of B*T*world, a budget smaller than one step, ...
bool schedule_build(Schedule *schedule, const RunConfig *config, int world, Error *err);
// The phase of step (0-based); the last one for steps at or past the end.
const PhaseSpan *schedule_phase(const Schedule *schedule, int64_t step);
// Multiplier in [0, 1] of the segment's peak, and the learning rate itself.
double schedule_lr_factor(const Schedule *schedule, int64_t step);
double schedule_lr(const Schedule *schedule, int64_t step);
// For train_seconds: fixes the end of the (single) phase at total_steps.
void schedule_set_horizon(Schedule *schedule, int64_t total_steps);
// Tokens seen before `step`.
int64_t schedule_tokens_before(const Schedule *schedule, int64_t step);

#ifdef __cplusplus
}
#endif
#endif
