// guard.h: detection of loss spikes: bounds for the loss and gradient norm of the next step, counts of skipped steps, and
// the data that a run skips after it rewinds to a checkpoint. Pure functions of RunProgress and the config, so that all
// ranks, and a resumed run, decide alike. The device compares and skips (Backend.grad_clip).
// Must not know: files, ranks, devices.
//
// A loss or a gradient norm is a spike if it is more than spike_z standard deviations above the mean of the last
// spike_window steps, computed
//   * for step t from steps up to t - GUARD_LATE_STEPS: some devices deliver results one step late, others at once, and
//     both must give the same run;
//   * without skipped steps, and within the current phase only, because other data have another loss;
//   * with a deviation of at least GUARD_LEAST_DEVIATION of the mean, so that on a flat curve noise is not a spike.
// There is no bound until the window holds half of spike_window, and at least 8 steps.
#ifndef LLMC_GUARD_H
#define LLMC_GUARD_H

#include "llmc/base/op_types.h"
#include "llmc/config/schedule.h"
#include "llmc/train/progress.h"

#define GUARD_LATE_STEPS 2
#define GUARD_LEAST_DEVIATION 1e-3
#define GUARD_MAX_REWINDS 3  // to one checkpoint

// Bounds for ClipArgs of step t (1 for the first); INFINITY: no bound. The guard must hold the results of all steps up to
// t - GUARD_LATE_STEPS; later ones do not change the result.
void guard_bounds(double *skip_norm, double *skip_loss, const Guard *guard, const Schedule *schedule, int64_t t);

// The result of a step. skip_norm, skip_loss: its bounds.
typedef struct {
    int64_t step;  // 1 for the first
    SkipReason skip;
    double loss, norm, skip_loss, skip_norm;
} GuardResult;
// Adds a result to the window, unless its step was skipped or it is not finite. Steps must increase.
void guard_add(Guard *guard, const RunConfig *config, const GuardResult *result);

typedef enum {
    GUARD_GO_ON,   // continue: the step was applied, or its update was skipped and nothing else must be done
    GUARD_REWIND,  // load the last complete checkpoint, then call guard_rewind
    GUARD_STOP     // err gives the reason
} GuardAction;
// guard_add, then updates the counts of progress. line = a human-readable message about the step, "" if it was ordinary.
// on_spike=rewind rewinds after a spike and after max_bad_steps skipped steps in a row; can_rewind: there is a checkpoint
// to load, otherwise on_spike=rewind acts as on_spike=skip.
GuardAction guard_count(RunProgress *progress, char *line, size_t line_bytes, const RunConfig *config,
                        const GuardResult *result, bool can_rewind, Error *err);

// Call after a rewind because of step t has loaded a checkpoint. progress: on entry the checkpoint's (step c < t), on
// return the one that the run continues with. before: the run's progress until the rewind, which provides the skipped data
// and the counts that only grow. The data of steps c+1..t is added to the skips (for loader_set_skips). line = a
// human-readable message. Errors: GUARD_MAX_REWINDS rewinds to this checkpoint, or DATA_SKIPS_MAX in all.
bool guard_rewind(RunProgress *progress, char *line, size_t line_bytes, const RunProgress *before, int64_t t,
                  Error *err);
#endif
