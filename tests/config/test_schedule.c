// test_schedule.c: spans of phases, every learning-rate curve at its corners, and errors.
#include "llmc/config/schedule.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// A config with `phase_count` equal phases of 10 steps of 64 tokens, constant learning rate 1.
static RunConfig *config_new(int phase_count) {
    RunConfig *config = xcalloc(1, sizeof *config);
    config->phase_count = phase_count;
    for (int p = 0; p < phase_count; ++p) {
        config->phase[p] = (PhaseConfig){.tokens = 640, .seq_len = 8, .batch_tokens = 64, .batch_rows = 2,
                                         .lr = {.kind = SCHEDULE_CONSTANT, .lr = 1, .decay_frac = 0.2}};
        config->phase[p].name[0] = (char)('a' + p);
    }
    return config;
}

static void assert_near(double found, double expected) {
    if (!(fabs(found - expected) <= 1e-14)) fail_msg("expected %.17g, found %.17g", expected, found);
}

static void test_spans(void **state) {
    (void)state;
    RunConfig *config = config_new(3);
    config->phase[1].tokens = 641;  // rounded up to 11 steps
    config->phase[2].seq_len = 16;
    config->phase[2].batch_tokens = 128;
    Schedule schedule;
    Error err = {""};
    assert_true(schedule_build(&schedule, config, 1, &err));
    const PhaseSpan expected[3] = {
        {0, 0, 10, 0, 8, 2, 8, 4, 4}, {1, 10, 11, 640, 8, 2, 8, 4, 4}, {2, 21, 5, 1344, 16, 2, 8, 4, 4}};
    for (int p = 0; p < 3; ++p) {
        const PhaseSpan *span = &schedule.phase[p], *want = &expected[p];
        assert_true(span->index == want->index && span->first_step == want->first_step && span->steps == want->steps);
        assert_true(span->first_tokens == want->first_tokens && span->T == want->T && span->B == want->B);
        assert_true(span->rows_per_step == want->rows_per_step && span->lanes == want->lanes);
        assert_int_equal(span->micro_batches, want->micro_batches);
    }
    assert_true(schedule.total_steps == 26 && schedule.horizon_steps == 26);
    const int64_t steps[] = {0, 9, 10, 20, 21, 25, 26, 1000};
    const int phases[] = {0, 0, 1, 1, 2, 2, 2, 2};
    for (int i = 0; i < 8; ++i) assert_int_equal(schedule_phase(&schedule, steps[i])->index, phases[i]);
    int64_t tokens = 0;
    for (int64_t step = 0; step <= 26; ++step) {
        assert_int_equal(schedule_tokens_before(&schedule, step), tokens);
        tokens += step < 21 ? 64 : 128;
    }
    // More ranks: the same steps and rows, fewer micro-batches each.
    const int64_t micro_batches[6] = {0, 4, 2, 2, 1, 1};
    for (int world = 1; world <= 5; ++world) {
        assert_true(schedule_build(&schedule, config, world, &err));
        assert_true(schedule.total_steps == 26 && schedule.phase[0].rows_per_step == 8);
        assert_true(schedule.phase[0].lanes == 4 && schedule.phase[0].micro_batches == micro_batches[world]);
    }
    free(config);
}

static void expect_factors(const Schedule *schedule, const double *expected, int count) {
    for (int step = 0; step < count; ++step) assert_near(schedule_lr_factor(schedule, step), expected[step]);
}

static void test_curves(void **state) {
    (void)state;
    RunConfig *config = config_new(1);
    LrConfig *lr = &config->phase[0].lr;
    Schedule schedule;
    assert_true(schedule_build(&schedule, config, 1, NULL));
    expect_factors(&schedule, (double[]){1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 12);
    lr->warmup_steps = 4;
    expect_factors(&schedule, (double[]){0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 12);
    lr->kind = SCHEDULE_LINEAR;
    lr->warmup_steps = 2;
    lr->final_lr_frac = 0.2;
    expect_factors(&schedule, (double[]){0.5, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2}, 12);
    lr->kind = SCHEDULE_COSINE;
    const double r = sqrt(0.5) / 2, q = 0.2 + 0.8 * (0.5 + r), p = 0.2 + 0.8 * (0.5 - r);
    double cosine[12] = {0.5, 1, 1, 0, q, 0, 0.6, 0, p, 0, 0.2, 0.2};  // the other angles have no simple cosine
    for (int step = 0; step < 12; ++step)
        if (step < 3 || step % 2 == 0 || step > 9) assert_near(schedule_lr_factor(&schedule, step), cosine[step]);
    assert_true(schedule_lr_factor(&schedule, 3) < 1 && schedule_lr_factor(&schedule, 3) > q);
    lr->kind = SCHEDULE_WSD;
    lr->final_lr_frac = 0;
    lr->decay_frac = 0.4;
    expect_factors(&schedule, (double[]){0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0}, 12);
    lr->decay_frac = 1;  // the decay begins where the warm-up ends
    expect_factors(&schedule, (double[]){0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0}, 11);
    lr->decay_frac = 0;
    expect_factors(&schedule, (double[]){0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0}, 11);
    lr->warmup_steps = 20;  // a run that ends inside its warm-up
    expect_factors(&schedule, (double[]){0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5}, 10);
    lr->lr = 3e-4;
    assert_near(schedule_lr(&schedule, 1), 3e-5);
    free(config);
}

// Every kind decreases monotonically after its warm-up and stays in [final, 1].
static void test_curves_fall(void **state) {
    (void)state;
    RunConfig *config = config_new(1);
    config->phase[0].tokens = 64 * 997;
    LrConfig *lr = &config->phase[0].lr;
    lr->warmup_steps = 31;
    lr->final_lr_frac = 0.1;
    Schedule schedule;
    assert_true(schedule_build(&schedule, config, 1, NULL));
    for (lr->kind = SCHEDULE_CONSTANT; lr->kind <= SCHEDULE_WSD; ++lr->kind) {
        double last = 1;
        for (int64_t step = 31; step < 1100; ++step) {
            double factor = schedule_lr_factor(&schedule, step);
            assert_true(factor <= last && factor >= 0.1 - 1e-15);
            last = factor;
        }
        assert_near(last, lr->kind == SCHEDULE_CONSTANT ? 1 : 0.1);
    }
    free(config);
}

static void test_segments(void **state) {
    (void)state;
    // Phases a b | c d: one curve over a and b, a second one over c and d.
    RunConfig *config = config_new(4);
    for (int p = 0; p < 4; ++p) config->phase[p].lr = (LrConfig){.kind = SCHEDULE_LINEAR, .lr = 100 + p};
    config->phase[0].lr.lr = 2;
    config->phase[2].new_lr_segment = true;
    config->phase[2].lr = (LrConfig){.kind = SCHEDULE_LINEAR, .lr = 3, .warmup_steps = 4, .final_lr_frac = 0.5};
    Schedule schedule;
    assert_true(schedule_build(&schedule, config, 1, NULL));
    for (int step = 0; step < 20; ++step) assert_near(schedule_lr(&schedule, step), 2 * (1 - step / 20.0));
    for (int k = 0; k < 4; ++k) assert_near(schedule_lr(&schedule, 20 + k), 3 * (k + 1) / 4.0);
    for (int k = 4; k < 20; ++k) assert_near(schedule_lr(&schedule, 20 + k), 3 * (1 - 0.5 * (k - 4) / 16.0));
    assert_near(schedule_lr(&schedule, 40), 1.5);
    free(config);
}

static void test_runs_bounded_by_time(void **state) {
    (void)state;
    RunConfig *config = config_new(1);
    config->train_seconds = 90;
    config->phase[0].tokens = 0;
    config->phase[0].lr = (LrConfig){.kind = SCHEDULE_COSINE, .lr = 1, .warmup_steps = 2};
    Schedule schedule;
    Error err = {""};
    assert_true(schedule_build(&schedule, config, 1, &err));
    assert_near(schedule_lr_factor(&schedule, 0), 0.5);
    assert_near(schedule_lr_factor(&schedule, 100), 1);  // nothing decays before the horizon is known
    schedule_set_horizon(&schedule, 12);
    assert_true(schedule.total_steps == 12 && schedule.horizon_steps == 12 && schedule.phase[0].steps == 12);
    assert_near(schedule_lr_factor(&schedule, 7), 0.5);
    assert_near(schedule_lr_factor(&schedule, 12), 0);
    free(config);
    config = config_new(2);
    config->train_seconds = 1;
    assert_false(schedule_build(&schedule, config, 1, &err));
    assert_non_null(strstr(err.message, "train_seconds"));
    free(config);
}

static void expect_refused(const PhaseConfig *phase, const char *fragment) {
    RunConfig *config = config_new(2);
    config->phase[1] = *phase;
    strcpy(config->phase[1].name, "cooldown");
    Schedule schedule;
    Error err = {""};
    assert_false(schedule_build(&schedule, config, 1, &err));
    if (strstr(err.message, "phase cooldown") == NULL || strstr(err.message, fragment) == NULL)
        fail_msg("expected \"%s\" in: %s", fragment, err.message);
    free(config);
}
static void test_refusals(void **state) {
    (void)state;
    RunConfig *config = config_new(1);
    PhaseConfig good = config->phase[0], bad = good;
    free(config);
    bad.batch_tokens = 65;
    expect_refused(&bad, "multiple of batch_rows * seq_len = 2 * 8, found 65");
    bad = good;
    bad.batch_rows = 16;
    expect_refused(&bad, "16 * 8, found 64");
    bad = good;
    bad.tokens = 63;
    expect_refused(&bad, "at least the 64 tokens of one step, found tokens = 63");
    bad = good;
    bad.seq_len = 0;
    expect_refused(&bad, "above 0");
    bad = good;
    bad.batch_rows = -1;
    expect_refused(&bad, "above 0");
    bad = good;
    bad.batch_tokens = 0;
    expect_refused(&bad, "above 0");
    bad = good;
    bad.seq_len = INT64_MAX;
    expect_refused(&bad, "multiple");
    bad = good;
    bad.tokens = INT64_MAX;
    expect_refused(&bad, "64 bits");
}

int main(void) {
    const struct CMUnitTest TESTS[] = {
        cmocka_unit_test(test_spans),    cmocka_unit_test(test_curves), cmocka_unit_test(test_curves_fall),
        cmocka_unit_test(test_segments), cmocka_unit_test(test_runs_bounded_by_time), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(TESTS, NULL, NULL);
}
