// test_guard.c: bounds compared with a reference computed from the whole history, with late results and after a resume;
// spikes inserted into curves are found and noise is not; counting, rewinding, and the data that is skipped.
#include "llmc/checkpoint/state_file.h"
#include "llmc/train/guard.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "llmc/base/rng.h"

#define STEPS 3000

// ---- simulated runs ----

typedef struct {
    RunConfig config;
    Schedule schedule;
    RunProgress progress;
} Case;

// phases of `phase_steps` steps each.
static Case *case_new(double z, int64_t window, int phases, int64_t phase_steps) {
    Case *c = xcalloc(1, sizeof *c);
    c->config.spike_z = z;
    c->config.spike_window = window;
    c->config.max_bad_steps = 5;
    c->config.phase_count = phases;
    snprintf(c->config.out_dir, sizeof c->config.out_dir, "runs/test");
    for (int p = 0; p < phases; ++p)
        c->config.phase[p] =
            (PhaseConfig){.tokens = phase_steps * 64, .seq_len = 8, .batch_tokens = 64, .batch_rows = 2};
    assert_true(schedule_build(&c->schedule, &c->config, 1, NULL));
    return c;
}

static double uniform(uint64_t stream, int64_t i) {
    return ((double)rng_u32(stream, RNG_STREAM_TEST, (uint64_t)i) + 0.5) * 0x1p-32;
}
static double normal(uint64_t stream, int64_t i) {
    return sqrt(-2 * log(uniform(stream, 2 * i))) * cos(6.283185307179586 * uniform(stream, 2 * i + 1));
}
// A curve like those of training: it falls, with the noise of small batches; norms vary by factors.
static double noisy_loss(int64_t t) { return 2.5 + 8 * exp(-(double)t / 300) + 0.06 * normal(1, t); }
static double noisy_norm(int64_t t) { return (0.5 + 2 * exp(-(double)t / 100)) * exp(0.15 * normal(2, t)); }

// Applies the bounds as a device does, then handles the result as a run does.
static SkipReason decide(double loss, double norm, double skip_loss, double skip_norm) {
    if (!isfinite(loss) || !isfinite(norm)) return SKIP_NOT_FINITE;
    if (norm > skip_norm) return SKIP_NORM;
    return loss > skip_loss ? SKIP_LOSS : SKIP_NOT;
}
static GuardResult step_result(const Case *c, const Guard *guard, int64_t t, double loss, double norm) {
    GuardResult result = {.step = t, .loss = loss, .norm = norm};
    guard_bounds(&result.skip_norm, &result.skip_loss, guard, &c->schedule, t);
    result.skip = decide(loss, norm, result.skip_loss, result.skip_norm);
    return result;
}

// ---- the bounds ----

// From the whole history, in long double.
static double naive_bound(const GuardResult *history, const Case *c, int64_t t, bool norm) {
    long double sum = 0, squares = 0;
    int64_t count = 0, window = c->config.spike_window;
    double kept[1024];
    int64_t phase_first = schedule_phase(&c->schedule, t - 1)->first_step + 1;
    for (int64_t s = t - 2; s >= phase_first && count < window; --s)
        if (history[s].skip == SKIP_NOT) kept[count++] = norm ? history[s].norm : history[s].loss;
    if (count < 8 || 2 * count < window - 1) return INFINITY;
    for (int64_t i = 0; i < count; ++i) sum += (long double)kept[i];
    long double mean = sum / count;
    for (int64_t i = 0; i < count; ++i) squares += ((long double)kept[i] - mean) * ((long double)kept[i] - mean);
    long double deviation = sqrtl(squares / count), least = 1e-3L * fabsl(mean);
    return (double)(mean + (long double)c->config.spike_z * (deviation > least ? deviation : least));
}

// Rounding: a thousand additions of 2^-53 each, and cancellation in the difference from the mean.
static void expect_bound(double found, double wanted, int64_t t) {
    if (isinf(wanted) ? found != wanted : !(fabs(found / wanted - 1) < 1e-11))
        fail_msg("step %lld: expected %.17g, found %.17g", (long long)t, wanted, found);
}

static void check_bounds(int64_t window, int phases) {
    Case *c = case_new(3, window, phases, STEPS / phases);
    GuardResult *history = xcalloc(STEPS + 1, sizeof *history);
    int64_t skipped = 0, bounded = 0;
    for (int64_t t = 1; t <= STEPS; ++t) {
        // A low z and wild values, so that many steps are skipped.
        double loss = noisy_loss(t), norm = t % 101 == 0 ? NAN : t % 17 == 0 ? 9 : noisy_norm(t);
        history[t] = step_result(c, &c->progress.guard, t, loss, norm);
        expect_bound(history[t].skip_norm, naive_bound(history, c, t, true), t);
        expect_bound(history[t].skip_loss, naive_bound(history, c, t, false), t);
        guard_add(&c->progress.guard, &c->config, &history[t]);
        skipped += history[t].skip != SKIP_NOT;
        bounded += isfinite(history[t].skip_norm);
    }
    if (!(skipped > STEPS / 30 && skipped < STEPS / 5)) fail_msg("%lld skipped", (long long)skipped);
    assert_true(bounded > STEPS - phases * (window + 50) && bounded < STEPS - phases * (window / 2 - 1));
    free(history);
    free(c);
}
static void test_bounds(void **state) {
    (void)state;
    const int64_t WINDOWS[] = {8, 9, 31, 128, 1024};
    for (int w = 0; w < 5; ++w) check_bounds(WINDOWS[w], 1);
    check_bounds(128, 3);
}

// The bounds of step t do not depend on whether the results of t-1 and t have been added.
static void test_late_results(void **state) {
    (void)state;
    for (int64_t window = 8; window <= 64; window += 7) {
        Case *c = case_new(2, window, 1, STEPS);
        Guard *early = &c->progress.guard, *late = xcalloc(1, sizeof *late);
        GuardResult last[3];
        for (int64_t t = 1; t < 400; ++t) {
            double early_norm, early_loss, norm, loss;
            // early: all before t; late: all up to t - 2.
            guard_bounds(&early_norm, &early_loss, early, &c->schedule, t);
            guard_bounds(&norm, &loss, late, &c->schedule, t);
            assert_true(norm == early_norm && loss == early_loss);
            last[t % 3] = step_result(c, late, t, noisy_loss(t), noisy_norm(t));
            guard_add(early, &c->config, &last[t % 3]);
            guard_bounds(&early_norm, &early_loss, early, &c->schedule, t);
            assert_true(norm == early_norm && loss == early_loss);
            if (t > 1) guard_add(late, &c->config, &last[(t - 1) % 3]);
        }
        free(late);
        free(c);
    }
}

static void test_corners(void **state) {
    (void)state;
    Case *c = case_new(4, 8, 1, STEPS);
    Guard *guard = &c->progress.guard;
    double norm, loss;
    for (int64_t t = 1; t <= 9; ++t) {
        guard_bounds(&norm, &loss, guard, &c->schedule, t);
        assert_true(norm == INFINITY && loss == INFINITY);
        guard_add(guard, &c->config, &(GuardResult){.step = t, .loss = 2, .norm = 0});
    }
    // Constant values: the least deviation. Norms of 0 give the bound 0, which another 0 does not exceed.
    guard_bounds(&norm, &loss, guard, &c->schedule, 10);
    expect_bound(loss, 2 * (1 + 4e-3), 10);
    assert_true(norm == 0 && decide(2, 0, loss, norm) == SKIP_NOT);
    // Losses below 0 (weighted text may have them): the bound is above the mean.
    for (int64_t t = 10; t <= 20; ++t) guard_add(guard, &c->config, &(GuardResult){.step = t, .loss = -2, .norm = 1});
    guard_bounds(&norm, &loss, guard, &c->schedule, 22);
    expect_bound(loss, -2 * (1 - 4e-3), 22);
    // Sums that overflow give no bound, never NaN.
    for (int64_t t = 21; t <= 40; ++t)
        guard_add(guard, &c->config, &(GuardResult){.step = t, .loss = (double)t * 4e306, .norm = 1e200 * (double)t});
    guard_bounds(&norm, &loss, guard, &c->schedule, 42);
    assert_true(norm == INFINITY && loss == INFINITY);
    // Values that are not finite are not added, even if the device did not skip the step.
    int64_t count = guard->count;
    guard_add(guard, &c->config, &(GuardResult){.step = 41, .loss = NAN, .norm = 1});
    guard_add(guard, &c->config, &(GuardResult){.step = 42, .loss = 1, .norm = INFINITY});
    guard_add(guard, &c->config, &(GuardResult){.step = 43, .loss = 1, .norm = 1, .skip = SKIP_LOSS});
    assert_true(guard->count == count && guard->entry[count - 1].step == 40);
    // A larger window fills up, a smaller one drops entries; without the option nothing is kept.
    c->config.spike_window = 1024;
    for (int64_t t = 50; t < 2000; ++t)
        guard_add(guard, &c->config, &(GuardResult){.step = t, .loss = noisy_loss(t), .norm = 1});
    assert_int_equal(guard->count, GUARD_CAPACITY);
    assert_true(guard->entry[0].step == 2000 - GUARD_CAPACITY && guard->entry[GUARD_CAPACITY - 1].step == 1999);
    c->config.spike_window = 16;
    guard_add(guard, &c->config, &(GuardResult){.step = 2000, .loss = 1, .norm = 1});
    assert_int_equal(guard->count, 18);
    c->config.spike_z = 0;
    guard_bounds(&norm, &loss, guard, &c->schedule, 2001);
    assert_true(norm == INFINITY && loss == INFINITY);
    guard_add(guard, &c->config, &(GuardResult){.step = 2001, .loss = 1, .norm = 1});
    assert_int_equal(guard->count, 0);
    free(c);
}

// ---- alarms ----

static void test_spikes_are_found_and_noise_is_not(void **state) {
    (void)state;
    enum { LONG = 20000 };
    Case *c = case_new(6, 128, 1, LONG);
    int64_t false_alarms = 0, found = 0, put = 0;
    for (int64_t t = 1; t <= LONG; ++t) {
        double loss = noisy_loss(t), norm = noisy_norm(t);
        bool loss_spike = t > 1500 && t % 500 == 0, norm_spike = t > 1500 && t % 500 == 250;
        if (loss_spike) loss += 0.6;  // ten deviations
        if (norm_spike) norm *= 3;
        GuardResult result = step_result(c, &c->progress.guard, t, loss, norm);
        char line[300];
        Error err = {""};
        assert_int_equal(guard_count(&c->progress, line, sizeof line, &c->config, &result, true, &err), GUARD_GO_ON);
        assert_true((line[0] != '\0') == (result.skip != SKIP_NOT));
        put += loss_spike || norm_spike;
        if (loss_spike || norm_spike) found += result.skip == (loss_spike ? SKIP_LOSS : SKIP_NORM);
        else false_alarms += result.skip != SKIP_NOT;
    }
    // Six deviations: one step in 10^9 of normal noise; the distribution of norms is skewed, which costs a few.
    if (!(found == put && put == 75 - 1) || false_alarms > LONG / 5000)
        fail_msg("%lld of %lld found, %lld false alarms", (long long)found, (long long)put, (long long)false_alarms);
    assert_int_equal(c->progress.spikes, found + false_alarms);
    assert_int_equal(c->progress.bad_steps, found + false_alarms);
    free(c);
}

// Stopped anywhere and resumed from state.json, a run has the same bounds, to the bit.
static void test_resume(void **state) {
    (void)state;
    Case *whole = case_new(2.5, 50, 2, 400), *c = case_new(2.5, 50, 2, 400);
    StateFile *file = xcalloc(1, sizeof *file);
    int64_t skipped = 0;
    for (int64_t t = 1; t <= 800; ++t) {
        char line[300];
        Error err = {""};
        GuardResult a = step_result(whole, &whole->progress.guard, t, noisy_loss(t), noisy_norm(t));
        GuardResult b = step_result(c, &c->progress.guard, t, noisy_loss(t), noisy_norm(t));
        assert_memory_equal(&a.skip_loss, &b.skip_loss, sizeof a.skip_loss);
        assert_memory_equal(&a.skip_norm, &b.skip_norm, sizeof a.skip_norm);
        assert_int_equal(a.skip, b.skip);
        skipped += a.skip != SKIP_NOT;
        guard_count(&whole->progress, line, sizeof line, &whole->config, &a, false, &err);
        guard_count(&c->progress, line, sizeof line, &c->config, &b, false, &err);
        c->progress.step = t;
        if (t % 37 != 0 && t % 37 != 1) continue;
        *file = (StateFile){.progress = c->progress, .optimizer = "adamw", .dtype = "fp32"};
        char *text = state_file_write(file, "{}");
        memset(file, 0xee, sizeof *file);
        if (!state_file_parse(file, text, "state.json", &err)) fail_msg("%s", err.message);
        c->progress = file->progress;
        free(text);
    }
    assert_true(skipped > 3);
    assert_true(whole->progress.spikes == c->progress.spikes && whole->progress.bad_steps == c->progress.bad_steps);
    free(file);
    free(whole);
    free(c);
}

// ---- counting ----

static GuardAction count_one(Case *c, char line[300], Error *err, SkipReason skip, bool can_rewind) {
    GuardResult result = {.step = ++c->progress.step, .skip = skip, .loss = 5, .norm = 2, .skip_loss = 4.5,
                          .skip_norm = 1.25};
    if (skip == SKIP_NOT_FINITE) result.norm = NAN;
    err->message[0] = '\0';
    return guard_count(&c->progress, line, 300, &c->config, &result, can_rewind, err);
}
static void expect_mention(const char *text, const char *mention) {
    if (strstr(text, mention) == NULL) fail_msg("'%s' does not mention '%s'", text, mention);
}

static void test_counting(void **state) {
    (void)state;
    Case *c = case_new(6, 16, 1, 100);
    char line[300];
    Error err = {""};
    c->config.max_bad_steps = 3;
    assert_int_equal(count_one(c, line, &err, SKIP_NOT, false), GUARD_GO_ON);
    assert_string_equal(line, "");
    assert_int_equal(count_one(c, line, &err, SKIP_NOT_FINITE, false), GUARD_GO_ON);
    assert_string_equal(line, "step 2 skipped: the gradient is not finite (1 in a row, 1 in all)");
    assert_int_equal(count_one(c, line, &err, SKIP_NORM, false), GUARD_GO_ON);
    assert_string_equal(line, "step 3 skipped: the gradient norm 2 is above the bound 1.25 (2 in a row, 2 in all)");
    assert_int_equal(count_one(c, line, &err, SKIP_NOT, false), GUARD_GO_ON);
    assert_true(c->progress.bad_in_row == 0 && c->progress.bad_steps == 2 && c->progress.spikes == 1);
    assert_int_equal(count_one(c, line, &err, SKIP_LOSS, true), GUARD_GO_ON);
    assert_string_equal(line, "step 5 skipped: the loss 5 is above the bound 4.5 (1 in a row, 3 in all)");
    assert_int_equal(count_one(c, line, &err, SKIP_LOSS, true), GUARD_GO_ON);
    assert_string_equal(err.message, "");
    assert_int_equal(count_one(c, line, &err, SKIP_NORM, true), GUARD_STOP);
    expect_mention(line, "step 7 skipped");
    expect_mention(err.message, "stopped at step 7: 3 steps in a row were skipped (max_bad_steps=3)");
    expect_mention(err.message, "norm 2 is above the bound 1.25");
    expect_mention(err.message, "a larger spike_z");
    expect_mention(err.message, "runs/test");
    GuardResult loss_only = {.step = 9, .skip = SKIP_NOT_FINITE, .loss = INFINITY, .norm = 1};
    c->progress.bad_in_row = 0;
    assert_int_equal(guard_count(&c->progress, line, sizeof line, &c->config, &loss_only, false, &err), GUARD_GO_ON);
    expect_mention(line, "the loss is not finite");
    free(c);
}

// on_spike=rewind: a spike rewinds at once, values that are not finite after max_bad_steps in a row; without a checkpoint
// it acts as skip.
static void test_when_to_go_back(void **state) {
    (void)state;
    Case *c = case_new(6, 16, 1, 100);
    char line[300];
    Error err = {""};
    c->config.on_spike = ON_SPIKE_REWIND;
    c->config.max_bad_steps = 3;
    assert_int_equal(count_one(c, line, &err, SKIP_NOT, true), GUARD_GO_ON);
    assert_int_equal(count_one(c, line, &err, SKIP_LOSS, true), GUARD_REWIND);
    c->progress.bad_in_row = 0;
    assert_int_equal(count_one(c, line, &err, SKIP_NOT_FINITE, true), GUARD_GO_ON);
    assert_int_equal(count_one(c, line, &err, SKIP_NOT_FINITE, true), GUARD_GO_ON);
    assert_int_equal(count_one(c, line, &err, SKIP_NOT_FINITE, true), GUARD_REWIND);
    assert_string_equal(err.message, "");
    c->progress.bad_in_row = 0;
    assert_int_equal(count_one(c, line, &err, SKIP_LOSS, false), GUARD_GO_ON);
    assert_int_equal(count_one(c, line, &err, SKIP_NORM, false), GUARD_GO_ON);
    assert_int_equal(count_one(c, line, &err, SKIP_NORM, false), GUARD_STOP);
    free(c);
}

// ---- rewinding ----

// Rewinds from step t to the run's checkpoint of step c.
static bool go_back(RunProgress *run, int64_t c, int64_t t, char line[300], Error *err) {
    RunProgress *before = xmalloc(sizeof *before);
    *before = *run;
    before->step = t + 1;  // another step has been issued already
    *run = (RunProgress){.step = c, .bad_steps = 1, .seconds = 10, .chain = 77};
    bool ok = guard_rewind(run, line, 300, before, t, err);
    free(before);
    return ok;
}

static void test_going_back(void **state) {
    (void)state;
    RunProgress *run = xcalloc(1, sizeof *run);
    char line[300];
    Error err = {""};
    run->seconds = 123;
    run->spikes = 4;
    assert_true(go_back(run, 20, 27, line, &err));
    assert_true(run->step == 20 && run->bad_steps == 1 && run->chain == 77);  // as the checkpoint has it
    assert_true(run->seconds == 123 && run->spikes == 4);
    assert_true(run->skip_count == 1 && run->skip[0].at_step == 20 && run->skip[0].steps == 7);
    expect_mention(line, "back to step 20 because of step 27: the data of steps 21 to 27");
    expect_mention(line, "(steps 21 to 27 of");
    assert_int_equal(data_skip_step(run->skip, 1, 19), 19);  // step 20 (from 1) is done and stays
    assert_int_equal(data_skip_step(run->skip, 1, 20), 27);
    // Again, to the same checkpoint: data 28 to 30 were read up to step 23.
    assert_true(go_back(run, 20, 23, line, &err));
    assert_true(run->skip_count == 2 && run->skip[1].at_step == 20 && run->skip[1].steps == 3);
    expect_mention(line, "the data of steps 21 to 23 (steps 28 to 30 of");
    // To a later one, then to that of step 20 again, because the later one is damaged: one skip covers both.
    assert_true(go_back(run, 30, 35, line, &err));
    assert_true(run->skip_count == 3 && run->skip[2].at_step == 30 && run->skip[2].steps == 5);
    int64_t last = data_skip_step(run->skip, 3, 39);
    assert_true(go_back(run, 20, 40, line, &err));
    assert_int_equal(run->skip_count, 3);
    assert_int_equal(data_skip_step(run->skip, 3, 20), last + 1);
    assert_int_equal(data_skip_step(run->skip, 3, 19), 19);
    // A fourth rewind to this checkpoint is refused.
    assert_false(go_back(run, 20, 21, line, &err));
    expect_mention(err.message, "stopped at step 21: the run went back to the checkpoint of step 20 3 times");
    free(run);
}

// For any sequence of rewinds: no step of data is read twice, none that was skipped is read, and no others are lost.
static void test_data_of_many_rewinds(void **state) {
    (void)state;
    enum { DATA = 4000 };
    for (uint64_t seed = 1; seed <= 20; ++seed) {
        RunProgress *run = xcalloc(1, sizeof *run);
        int8_t used[DATA] = {0}, left_out[DATA] = {0};
        char line[300];
        Error err = {""};
        int64_t step = 0, draw = 0, rewinds = 0;
        while (step < 600) {
            int64_t data = data_skip_step(run->skip, run->skip_count, step);
            assert_true(data < DATA && !used[data] && !left_out[data]);
            used[data] = 1;
            ++step;
            if (uniform(seed, draw++) > 0.06) continue;
            // Rewind to a multiple of 10, mostly the last one.
            int64_t c = max_i64(0, (step - 1) / 10 - (uniform(seed, draw++) < 0.2)) * 10;
            int64_t first = data_skip_step(run->skip, run->skip_count, c);
            RunProgress before = *run;
            if (!go_back(run, c, step, line, &err)) {
                *run = before;  // too many rewinds to this checkpoint: here the run just continues
                continue;
            }
            for (int64_t d = first; d <= data; ++d) {
                left_out[d] = 1;
                used[d] = 0;
            }
            step = c;
            ++rewinds;
        }
        assert_true(rewinds > 5);
        // In the end every step of data up to the last was used or skipped.
        int64_t end = data_skip_step(run->skip, run->skip_count, step - 1);
        for (int64_t d = 0; d <= end; ++d) assert_int_equal(used[d] + left_out[d], 1);
        free(run);
    }
}

static void test_most_stretches(void **state) {
    (void)state;
    RunProgress *run = xcalloc(1, sizeof *run);
    char line[300];
    Error err = {""};
    for (int i = 0; i < DATA_SKIPS_MAX; ++i) assert_true(go_back(run, 10 * i, 10 * i + 5, line, &err));
    assert_int_equal(data_skip_step(run->skip, run->skip_count, 10000), 10000 + 5 * DATA_SKIPS_MAX);
    assert_false(go_back(run, 10000, 10005, line, &err));
    expect_mention(err.message, "64 times");
    free(run);
}

int main(void) {
    const struct CMUnitTest TESTS[] = {
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_late_results),
        cmocka_unit_test(test_corners),
        cmocka_unit_test(test_spikes_are_found_and_noise_is_not),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_counting),
        cmocka_unit_test(test_when_to_go_back),
        cmocka_unit_test(test_going_back),
        cmocka_unit_test(test_data_of_many_rewinds),
        cmocka_unit_test(test_most_stretches),
    };
    return cmocka_run_group_tests(TESTS, NULL, NULL);
}
