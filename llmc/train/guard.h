// guard.h: the guard against spikes: what the losses and gradient norms of recent steps allow the next one, how steps
// that were skipped are counted, and which data a run leaves out when it goes back to a checkpoint. Pure functions of
// RunProgress and the config, so that all ranks, and a run that was resumed, decide alike. Called by run.c; a device
// compares and skips (Backend.grad_clip); knows nothing of files or ranks.
//
// A loss or a gradient norm is a spike if it lies more than spike_z standard deviations above the mean of the last
// spike_window steps, counted
//   * up to step t - GUARD_LATE_STEPS for the bound of step t: results are read one step late on some devices and at
//     once on others, and runs on both are to be the same;
//   * without the steps that were skipped, and from the present phase only: other data have another loss;
//   * with a deviation of at least GUARD_LEAST_DEVIATION of the mean, so that a curve that has become flat does not
//     call its noise a spike.
// Until the window holds half of spike_window, and 8 at least, nothing is.
#ifndef LLMC_GUARD_H
#define LLMC_GUARD_H

#include "llmc/base/op_types.h"
#include "llmc/config/schedule.h"
#include "llmc/train/progress.h"

#define GUARD_LATE_STEPS 2
#define GUARD_LEAST_DEVIATION 1e-3
#define GUARD_MAX_REWINDS 3  // to one checkpoint

// For ClipArgs of step t (1 for the first): INFINITY where there is no bound. The guard holds the results of all
// steps up to t - GUARD_LATE_STEPS; later ones make no difference.
void guard_bounds(double *skip_norm, double *skip_loss, const Guard *guard, const Schedule *schedule, int64_t t);

// What a step has shown. skip_norm, skip_loss: the bounds that it was given.
typedef struct {
    int64_t step;  // 1 for the first
    SkipReason skip;
    double loss, norm, skip_loss, skip_norm;
} GuardResult;
// Takes a result into the window, unless its step was skipped or it is not finite. Steps in increasing order.
void guard_add(Guard *guard, const RunConfig *config, const GuardResult *result);

typedef enum {
    GUARD_GO_ON,   // the step counts, or its update was skipped and that is enough
    GUARD_REWIND,  // back to the last complete checkpoint, then guard_rewind
    GUARD_STOP     // err says why
} GuardAction;
// guard_add, and the counts of progress. line: what to tell people about the step, "" for an ordinary one.
// on_spike=rewind asks to go back after a spike and after max_bad_steps skipped steps in a row; can_rewind: there is
// a checkpoint to go back to, else it is as on_spike=skip.
GuardAction guard_count(RunProgress *progress, char *line, size_t line_bytes, const RunConfig *config,
                        const GuardResult *result, bool can_rewind, Error *err);

// After the state of a checkpoint was loaded, because of step t: progress, as the checkpoint has it (step c < t),
// becomes what the run goes on with. Before, as the run had it, gives it the data that was left out so far and the
// counts that only grow; the data of steps c+1..t is left out from now on (for loader_set_skips). line: for people.
// Errors: the run went back to this checkpoint GUARD_MAX_REWINDS times, or DATA_SKIPS_MAX times in all.
bool guard_rewind(RunProgress *progress, char *line, size_t line_bytes, const RunProgress *before, int64_t t,
                  Error *err);
#endif
