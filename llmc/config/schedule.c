// schedule.c: see schedule.h.
#include "llmc/config/schedule.h"

#include <math.h>

static bool phase_shape(PhaseSpan *span, const PhaseConfig *phase, int data_world, Error *err) {
    span->T = phase->seq_len;
    span->B = phase->batch_rows;
    if (span->T <= 0 || span->B <= 0 || phase->batch_tokens <= 0)
        return error_set(err, "phase %s: expected seq_len, batch_rows and batch_tokens above 0, found %lld, %lld and "
                         "%lld", phase->name, (long long)span->T, (long long)span->B, (long long)phase->batch_tokens);
    int64_t micro_tokens;
    if (__builtin_mul_overflow(span->T, span->B, &micro_tokens) || phase->batch_tokens % micro_tokens != 0)
        return error_set(err, "phase %s: expected batch_tokens to be a multiple of batch_rows * seq_len = "
                         "%lld * %lld, found %lld", phase->name, (long long)span->B, (long long)span->T,
                         (long long)phase->batch_tokens);
    span->rows_per_step = phase->batch_tokens / span->T;
    span->lanes = span->rows_per_step / span->B;
    span->micro_batches = div_up(span->lanes, data_world);
    return true;
}

bool schedule_build(Schedule *schedule, const RunConfig *config, int data_world, Error *err) {
    CHECK(data_world > 0 && config->phase_count > 0 && config->phase_count <= CONFIG_MAX_PHASES, "world=%d phases=%d",
          data_world, config->phase_count);
    *schedule = (Schedule){.config = config, .phase_count = config->phase_count};
    bool bounded_by_time = config->train_seconds > 0;
    if (bounded_by_time && config->phase_count != 1)
        return error_set(err, "train_seconds: expected one phase in a run bounded by time, found %d: set tokens in "
                         "each phase instead", config->phase_count);
    int64_t tokens = 0;
    for (int p = 0; p < config->phase_count; ++p) {
        const PhaseConfig *phase = &config->phase[p];
        PhaseSpan *span = &schedule->phase[p];
        *span = (PhaseSpan){.index = p, .first_step = schedule->total_steps, .first_tokens = tokens};
        if (!phase_shape(span, phase, data_world, err)) return false;
        if (!bounded_by_time && phase->tokens < phase->batch_tokens)
            return error_set(err, "phase %s: expected at least the %lld tokens of one step, found tokens = %lld",
                             phase->name, (long long)phase->batch_tokens, (long long)phase->tokens);
        span->steps = bounded_by_time ? SCHEDULE_OPEN_STEPS : 1 + (phase->tokens - 1) / phase->batch_tokens;
        int64_t phase_tokens;
        if (__builtin_mul_overflow(span->steps, phase->batch_tokens, &phase_tokens) ||
            __builtin_add_overflow(tokens, phase_tokens, &tokens))
            return error_set(err, "phase %s: the run's tokens overflow 64 bits: tokens = %lld, batch_tokens = %lld",
                             phase->name, (long long)phase->tokens, (long long)phase->batch_tokens);
        schedule->total_steps += span->steps;
    }
    schedule->horizon_steps = schedule->total_steps;
    return true;
}

const PhaseSpan *schedule_phase(const Schedule *schedule, int64_t step) {
    CHECK(step >= 0, "step=%lld", (long long)step);
    int p = schedule->phase_count - 1;
    while (step < schedule->phase[p].first_step) --p;
    return &schedule->phase[p];
}

// The first phase of the learning-rate segment of `step`, and the step at which the segment ends.
static int segment_of(int64_t *end_step, const Schedule *schedule, int64_t step) {
    const PhaseConfig *phase = schedule->config->phase;
    int first = schedule_phase(schedule, step)->index, after = first + 1;
    while (first > 0 && !phase[first].new_lr_segment) --first;
    while (after < schedule->phase_count && !phase[after].new_lr_segment) ++after;
    *end_step = after < schedule->phase_count ? schedule->phase[after].first_step : schedule->horizon_steps;
    return first;
}

double schedule_lr_factor(const Schedule *schedule, int64_t step) {
    int64_t end_step;
    int first = segment_of(&end_step, schedule, step);
    const LrConfig *lr = &schedule->config->phase[first].lr;
    int64_t k = step - schedule->phase[first].first_step, N = end_step - schedule->phase[first].first_step;
    if (k < lr->warmup_steps) return (double)(k + 1) / (double)lr->warmup_steps;
    int64_t decay_first = lr->warmup_steps;
    if (lr->kind == SCHEDULE_WSD) decay_first = max_i64(decay_first, N - llround(lr->decay_frac * (double)N));
    if (lr->kind == SCHEDULE_CONSTANT || k < decay_first) return 1;
    if (k >= N) return lr->final_lr_frac;
    double done = (double)(k - decay_first) / (double)(N - decay_first);
    double height = lr->kind == SCHEDULE_COSINE ? 0.5 * (1 + cos(3.14159265358979323846 * done)) : 1 - done;
    return lr->final_lr_frac + (1 - lr->final_lr_frac) * height;
}

double schedule_lr(const Schedule *schedule, int64_t step) {
    int64_t end_step;
    int first = segment_of(&end_step, schedule, step);
    return schedule->config->phase[first].lr.lr * schedule_lr_factor(schedule, step);
}

void schedule_set_horizon(Schedule *schedule, int64_t total_steps) {
    CHECK(schedule->phase_count == 1 && total_steps > 0, "phases=%d total_steps=%lld", schedule->phase_count,
          (long long)total_steps);
    schedule->phase[0].steps = schedule->total_steps = schedule->horizon_steps = total_steps;
}

int64_t schedule_tokens_before(const Schedule *schedule, int64_t step) {
    const PhaseSpan *span = schedule_phase(schedule, step);
    return span->first_tokens + (step - span->first_step) * span->rows_per_step * span->T;
}
