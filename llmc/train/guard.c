// guard.c: see guard.h.
#include "llmc/train/guard.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

// ---------------------------------------------------------------------------------------------------------------
// The window

_Static_assert(GUARD_CAPACITY >= 1024 + GUARD_LATE_STEPS, "the largest spike_window and the late steps fit");

static double value_of(const GuardEntry *entry, bool norm) { return norm ? entry->norm : entry->loss; }

// Two passes over the window, oldest first: the same additions in the same order on every call.
static double bound(const GuardEntry *entry, int64_t count, bool norm, double z) {
    double mean = 0, squares = 0;
    for (int64_t i = 0; i < count; ++i) mean += value_of(&entry[i], norm);
    mean /= (double)count;
    for (int64_t i = 0; i < count; ++i) {
        double off = value_of(&entry[i], norm) - mean;
        squares += off * off;
    }
    double deviation = fmax(sqrt(squares / (double)count), GUARD_LEAST_DEVIATION * fabs(mean));
    double result = mean + z * deviation;
    return isfinite(result) ? result : INFINITY;
}

void guard_bounds(double *skip_norm, double *skip_loss, const Guard *guard, const Schedule *schedule, int64_t t) {
    const RunConfig *config = schedule->config;
    *skip_norm = *skip_loss = INFINITY;
    if (!(config->spike_z > 0)) return;
    int64_t phase_first = schedule_phase(schedule, t - 1)->first_step + 1;
    int64_t end = guard->count;
    while (end > 0 && guard->entry[end - 1].step > t - GUARD_LATE_STEPS) --end;
    int64_t first = max_i64(0, end - config->spike_window);
    while (first < end && guard->entry[first].step < phase_first) ++first;
    int64_t count = end - first;
    if (count < max_i64(config->spike_window / 2, 8)) return;
    *skip_norm = bound(guard->entry + first, count, true, config->spike_z);
    *skip_loss = bound(guard->entry + first, count, false, config->spike_z);
}

void guard_add(Guard *guard, const RunConfig *config, const GuardResult *result) {
    CHECK(guard->count == 0 || guard->entry[guard->count - 1].step < result->step, "step %lld after step %lld",
          (long long)result->step, (long long)guard->entry[guard->count - 1].step);
    if (!(config->spike_z > 0)) {  // the entries would be too old when the option is set again
        guard->count = 0;
        return;
    }
    if (result->skip != SKIP_NOT || !isfinite(result->loss) || !isfinite(result->norm)) return;
    int64_t kept = min_i64(guard->count, config->spike_window + GUARD_LATE_STEPS - 1);
    CHECK(kept < GUARD_CAPACITY, "spike_window=%lld", (long long)config->spike_window);
    memmove(guard->entry, guard->entry + guard->count - kept, to_size(kept) * sizeof *guard->entry);
    guard->entry[kept] = (GuardEntry){.step = result->step, .loss = result->loss, .norm = result->norm};
    guard->count = kept + 1;
}

// ---------------------------------------------------------------------------------------------------------------
// Counting

static void describe_reason(char *out, size_t out_bytes, const GuardResult *result) {
    if (result->skip == SKIP_NORM)
        snprintf(out, out_bytes, "the gradient norm %.6g is above the bound %.6g", result->norm, result->skip_norm);
    else if (result->skip == SKIP_LOSS)
        snprintf(out, out_bytes, "the loss %.6g is above the bound %.6g", result->loss, result->skip_loss);
    else
        snprintf(out, out_bytes, "the %s is not finite",
                 isfinite(result->norm) && !isfinite(result->loss) ? "loss" : "gradient");
}

GuardAction guard_count(RunProgress *progress, char *line, size_t line_bytes, const RunConfig *config,
                        const GuardResult *result, bool can_rewind, Error *err) {
    guard_add(&progress->guard, config, result);
    line[0] = '\0';
    if (result->skip == SKIP_NOT) {
        progress->bad_in_row = 0;
        return GUARD_GO_ON;
    }
    bool spike = result->skip != SKIP_NOT_FINITE;
    ++progress->bad_steps;
    ++progress->bad_in_row;
    progress->spikes += spike;
    char reason[160];
    describe_reason(reason, sizeof reason, result);
    snprintf(line, line_bytes, "step %" PRId64 " skipped: %s (%" PRId64 " in a row, %" PRId64 " in all)",
             result->step, reason, progress->bad_in_row, progress->bad_steps);
    bool last = progress->bad_in_row >= config->max_bad_steps;
    if (config->on_spike == ON_SPIKE_REWIND && can_rewind && (spike || last)) return GUARD_REWIND;
    if (!last) return GUARD_GO_ON;
    error_set(err,
              "stopped at step %" PRId64 ": %" PRId64 " steps in a row were skipped (max_bad_steps=%" PRId64 "), the "
              "last one because %s; resume from the last checkpoint in %s with a lower lr, a longer warm-up, %s or "
              "other data",
              result->step, progress->bad_in_row, config->max_bad_steps, reason, config->out_dir,
              spike ? "a larger spike_z" : "a lower grad_clip");
    return GUARD_STOP;
}

// ---------------------------------------------------------------------------------------------------------------
// Rewinding

bool guard_rewind(RunProgress *progress, char *line, size_t line_bytes, const RunProgress *before, int64_t t,
                  Error *err) {
    int64_t c = progress->step;
    CHECK(c >= 0 && c < t && t <= before->step, "back to step %lld because of step %lld, at step %lld", (long long)c,
          (long long)t, (long long)before->step);
    // Data that was already skipped after step c is part of the range that is skipped now.
    int kept = 0, here = 0;
    for (; kept < before->skip_count && before->skip[kept].at_step <= c; ++kept)
        here += before->skip[kept].at_step == c;
    if (here == GUARD_MAX_REWINDS)
        return error_set(err,
                         "stopped at step %" PRId64 ": the run went back to the checkpoint of step %" PRId64
                         " %d times, each time with other data, and there was a spike again: use a lower lr or a "
                         "larger spike_z",
                         t, c, here);
    if (kept == DATA_SKIPS_MAX)
        return error_set(err,
                         "stopped at step %" PRId64 ": the run went back to a checkpoint %d times, which is the "
                         "limit: use a lower lr or a larger spike_z",
                         t, kept);
    int64_t first = data_skip_step(before->skip, kept, c);
    int64_t last = data_skip_step(before->skip, before->skip_count, t - 1);
    memcpy(progress->skip, before->skip, to_size(kept) * sizeof *progress->skip);
    progress->skip[kept] = (DataSkip){.at_step = c, .steps = last - first + 1};
    progress->skip_count = kept + 1;
    progress->spikes = before->spikes;
    progress->seconds = before->seconds;
    snprintf(line, line_bytes,
             "back to step %" PRId64 " because of step %" PRId64 ": the data of steps %" PRId64 " to %" PRId64
             " (steps %" PRId64 " to %" PRId64 " of the data order) is skipped",
             c, t, c + 1, t, first + 1, last + 1);
    return true;
}
