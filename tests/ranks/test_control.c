// test_control.c: real processes (fork) that call collectives, and die, stop, hang or exit in every way that control.h
// describes; test_control_meet.c: how they connect.
#include <math.h>
#include <signal.h>
#include <string.h>

#include "llmc/base/tree_sum.h"
#include "tests/support/control_team.h"

static void probe_player(void *context, ControlStatus *out) {
    const Player *me = context;
    *out = me->probe;
    if (me->probe_since > 0) out->waiting_seconds = now_seconds() - me->probe_since;
}

// The state of this rank's tensor collectives that the probe reports from now on.
static void set_probe(Player *me, int64_t sequence, const char *what, bool waits) {
    control_set_probe(me->control, NULL, NULL);
    me->probe = (ControlStatus){.sequence = sequence, .waiting_seconds = -1};
    snprintf(me->probe.what, sizeof me->probe.what, "%s", what);
    me->probe_since = waits ? now_seconds() : 0;
    control_set_probe(me->control, probe_player, me);
}

// ---- collectives ----

static double term(int rank, int i, int round) { return sin(1 + 100 * rank + 10 * i + round) * pow(10, rank % 4); }
static double expected_sum(int world, int i, int round) {
    double terms[64];
    for (int rank = 0; rank < world; ++rank) terms[rank] = term(rank, i, round);
    return tree_sum_f64(terms, world);
}

static void part_collectives(Player *me) {
    for (int round = 0; round < 40; ++round) {
        double sum[3], max[2] = {-me->rank, me->rank == 1 ? round : -round};
        control_set_step(me->control, round);
        for (int i = 0; i < 3; ++i) sum[i] = term(me->rank, i, round);
        if (round % 7 == me->rank) pause_seconds(0.003);  // vary the order of arrival
        EXPECT(control_reduce(me->control, "numbers", sum, 3, max, 2));
        for (int i = 0; i < 3; ++i) {
            double expected = expected_sum(me->world, i, round);
            EXPECT(memcmp(&sum[i], &expected, sizeof expected) == 0);
        }
        EXPECT(max[0] == 0 && max[1] == (me->world > 1 ? round : -round));
        char text[24] = "";
        if (me->rank == 0) snprintf(text, sizeof text, "round %d", round);
        EXPECT(control_broadcast(me->control, "text", text, sizeof text));
        char expected_text[24];
        snprintf(expected_text, sizeof expected_text, "round %d", round);
        EXPECT(strcmp(text, expected_text) == 0);
        int mine[2] = {me->rank, round}, all[2 * MAX_RANKS];
        EXPECT(control_gather(me->control, "pairs", all, mine, sizeof mine));
        for (int rank = 0; rank < me->world; ++rank) EXPECT(all[2 * rank] == rank && all[2 * rank + 1] == round);
    }
    double max = me->rank == me->world - 1 ? (double)NAN : 1e300;
    EXPECT(control_reduce(me->control, "not a number", NULL, 0, &max, 1) && isnan(max));
    EXPECT(control_reduce(me->control, "barrier", NULL, 0, NULL, 0));
    // More than socket buffers hold, in both directions.
    size_t count = 3000001;
    uint8_t *all = xmalloc(count * (size_t)me->world), *mine = xmalloc(count);
    for (size_t i = 0; i < count; ++i) mine[i] = (uint8_t)(i * 7 + (size_t)me->rank);
    EXPECT(control_gather(me->control, "large", all, mine, count));
    for (int rank = 0; rank < me->world; ++rank)
        for (size_t i = 0; i < count; i += 997)
            EXPECT(all[(size_t)rank * count + i] == (uint8_t)(i * 7 + (size_t)rank));
    free(all);
    free(mine);
    char name[128], expected_name[160];
    control_describe_rank(me->control, me->world - 1, name, sizeof name);
    snprintf(expected_name, sizeof expected_name, "rank %d (", me->world - 1);
    EXPECT(strncmp(name, expected_name, strlen(expected_name)) == 0 && strstr(name, ", pid ") != NULL);
}

static void test_collectives(void **state) {
    Team *team = *state;
    for (int world = 1; world <= 5; ++world) {
        team_start_all(team, world, part_collectives);
        team_expect_all_well(team, world);
    }
}

static void part_latency(Player *me) {
    enum { CALLS = 2000 };
    double sum[4] = {1, 2, 3, 4}, from = now_seconds();
    for (int i = 0; i < CALLS; ++i) EXPECT(control_reduce(me->control, "step", sum, 4, NULL, 0));
    if (me->rank == 0) atomic_store(&me->shared->measured, (now_seconds() - from) / CALLS);
}
static void test_latency(void **state) {
    Team *team = *state;
    for (int world = 2; world <= 4; ++world) {
        team_start_all(team, world, part_latency);
        team_expect_all_well(team, world);
        double seconds = atomic_load(&team->shared->measured);
        print_message("%d ranks: %.0f us a reduce\n", world, 1e6 * seconds);
        assert_true(seconds < 0.01);  // much more than usual: machines may be busy
    }
}

// ---- ranks that are lost ----

static void part_idle(Player *me) {
    control_set_step(me->control, 57);
    atomic_store(&me->shared->stage[me->rank], 2);
    for (;;) pause_seconds(60);
}
// All ranks are past #1; the last rank does not reach #2.
static void part_waiting(Player *me) {
    control_set_step(me->control, 57);
    double sum = 1;
    EXPECT(control_reduce(me->control, "grad norm", &sum, 1, NULL, 0));
    atomic_store(&me->shared->stage[me->rank], 2);
    if (me->rank < me->world - 1) control_reduce(me->control, "loss", &sum, 1, NULL, 0);
    for (;;) pause_seconds(60);
}
static void await_all(Team *team, int world, int stage) {
    for (int rank = 0; rank < world; ++rank) team_await_stage(team, rank, stage);
    pause_seconds(0.1);  // until the ranks are in the next call
}
// All ranks except one end with status 1 and one line each, which begins with their own rank and contains both texts.
static void expect_ended_by(Team *team, int world, int but, const char *text, const char *more) {
    for (int rank = 0; rank < world; ++rank) {
        if (rank == but) continue;
        char own[32];
        snprintf(own, sizeof own, "rank %d: ", rank);
        team_expect_end(team, rank, 1, text);
        team_expect_said(team, rank, more);
        if (strncmp(team->said[rank], own, strlen(own)) != 0) fail_msg("rank %d: %s", rank, team->said[rank]);
    }
}

static void test_killed_idle(void **state) {
    Team *team = *state;
    team_start_all(team, 3, part_idle);
    await_all(team, 3, 2);
    char named[64];
    snprintf(named, sizeof named, "pid %d) is missing at step ", (int)team->pid[1]);
    double from = now_seconds();
    kill(team->pid[1], SIGKILL);
    expect_ended_by(team, 3, 1, "rank 1 (", "its connection closed");
    assert_true(now_seconds() - from < 2);
    team_expect_said(team, 0, named);
    team_expect_said(team, 2, named);
    assert_int_equal(team_finish(team, 1), -SIGKILL);
}

static void test_killed_in_call(void **state) {
    Team *team = *state;
    for (int victim = 1; victim <= 2; ++victim) {
        team_start_all(team, 3, part_waiting);
        await_all(team, 3, 2);
        kill(team->pid[victim], SIGKILL);
        expect_ended_by(team, 3, victim, victim == 1 ? "rank 1 (" : "rank 2 (",
                        victim == 1 ? "it was in \"loss\" #2 (control)"
                                    : "is missing from \"loss\" #2 (control) at step 57: its connection closed");
        if (victim == 2) team_expect_said(team, 0, "it was past \"grad norm\" #1 (control)");
        assert_int_equal(team_finish(team, victim), -SIGKILL);
    }
}

static void test_rank_0_killed(void **state) {
    Team *team = *state;
    team_start_all(team, 3, part_waiting);
    await_all(team, 3, 2);
    kill(team->pid[0], SIGKILL);
    expect_ended_by(team, 3, 0, "rank 0 (", "its connection closed");
    team_expect_said(team, 1, "missing from \"loss\" #2 (control) at step 57");
    team_expect_said(team, 1, "; rank 1 was in \"loss\" #2 (control)");
    team_expect_said(team, 2, "; rank 2 was past \"grad norm\" #1 (control)");
    assert_int_equal(team_finish(team, 0), -SIGKILL);
}

static void part_leave(Player *me) {
    if (me->rank == 1) exit(0);
    part_idle(me);
}
static void test_exit_without_goodbye(void **state) {
    Team *team = *state;
    team_start_all(team, 3, part_leave);
    expect_ended_by(team, 3, 1, "rank 1 (", "exited without goodbye");
    assert_int_equal(team_finish(team, 1), 0);
}

// ---- ranks that stop or hang ----

static void test_stopped(void **state) {
    Team *team = *state;
    team->timeout_seconds = 1;
    for (int victim = 0; victim < 2; ++victim) {
        team_start_all(team, 3, part_waiting);
        await_all(team, 3, 2);
        // The rank that did not reach #2 would be named for that; here another one stops before the timeout.
        team_stop(team, victim);
        kill(team->pid[2], SIGKILL);
        if (victim == 1) {
            expect_ended_by(team, 1, -1, "rank 2 (", "connection closed");
            kill(team->pid[1], SIGCONT);
            team_expect_end(team, 1, 1, "rank 1: rank 2 (");  // it reads the message that arrived while it was stopped
        } else {
            // The hub is stopped, so it cannot report that rank 2 is gone.
            team_expect_end(team, 1, 1, "rank 1: rank 0 (");
            team_expect_said(team, 1, "missing from \"loss\" #2 (control) at step 57: silent for 1");
            kill(team->pid[0], SIGCONT);
            assert_int_equal(team_finish(team, 0), 1);
        }
        team_finish(team, 2);
    }
}

static void test_silent(void **state) {
    Team *team = *state;
    team->timeout_seconds = 1;
    for (int victim = 0; victim < 2; ++victim) {
        team_start_all(team, 3, part_idle);
        await_all(team, 3, 2);
        pause_seconds(0.4);  // until the step is reported
        double from = now_seconds();
        team_stop(team, victim);
        expect_ended_by(team, 3, victim, victim == 0 ? "rank 0 (" : "rank 1 (", "at step 57: silent for 1");
        double seconds = now_seconds() - from;
        if (seconds < 0.7 || seconds > 4) fail_msg("after %g s", seconds);
        kill(team->pid[victim], SIGCONT);
        // Rank 0 reads the frames that the other ranks sent before they exited.
        team_expect_end(team, victim, 1, victim == 0 ? "rank 0: rank 0 (" : "rank 1: rank ");
    }
}

// A suspended machine or job does not count as silence.
static void part_slow(Player *me) {
    set_probe(me, me->rank == 1 ? 4 : 5, "block.3", me->rank != 1);
    pause_seconds(0.3);
    atomic_store(&me->shared->stage[me->rank], 2);
    pause_seconds(0.5);
    double sum = 1;
    control_set_probe(me->control, NULL, NULL);
    EXPECT(control_reduce(me->control, "after", &sum, 1, NULL, 0) && sum == me->world);
}
static void test_suspended(void **state) {
    Team *team = *state;
    team->timeout_seconds = 1.5;
    team_start_all(team, 3, part_slow);
    await_all(team, 3, 2);
    for (int rank = 0; rank < 3; ++rank) team_stop(team, rank);
    pause_seconds(2);
    for (int rank = 0; rank < 3; ++rank) kill(team->pid[rank], SIGCONT);
    team_expect_all_well(team, 3);
}

// Rank 1 does not reach tensor collective #5, in which the other ranks wait.
static void part_tensors(Player *me) {
    bool late = me->rank == 1;
    set_probe(me, late ? 4 : 5, late ? "gather block.2" : "reduce block.3", !late);
    part_idle(me);
}
static void test_hung_in_tensors(void **state) {
    Team *team = *state;
    team->timeout_seconds = 1;
    team_start_all(team, 4, part_tensors);
    expect_ended_by(team, 4, -1, "rank 1 (",
                    "is missing from \"reduce block.3\" #5 (tensors) at step 57: other ranks have waited in it for ");
    team_expect_said(team, 3, "it was past \"gather block.2\" #4 (tensors)");
}

// Rank 0 waits in a control call, rank 1 in tensor collective #5; both wait for rank 2, which does nothing.
static void part_chain(Player *me) {
    set_probe(me, me->rank == 2 ? 4 : 5, "block", me->rank == 1);
    double sum = 1;
    if (me->rank == 0) control_reduce(me->control, "loss", &sum, 1, NULL, 0);
    part_idle(me);
}
static void test_hung_chain(void **state) {
    Team *team = *state;
    team->timeout_seconds = 1;
    team_start_all(team, 3, part_chain);
    expect_ended_by(team, 3, -1, "rank 2 (", "is missing from \"");
}

static void part_stuck(Player *me) {
    set_probe(me, 7, "reduce block.3", true);
    part_idle(me);
}
static void test_all_stuck(void **state) {
    Team *team = *state;
    team->timeout_seconds = 1;
    team_start_all(team, 2, part_stuck);
    expect_ended_by(team, 2, -1, "\"reduce block.3\" #7 (tensors)", "no rank is missing from it");
}

static void test_hung_in_control(void **state) {
    Team *team = *state;
    team->timeout_seconds = 1;
    team_start_all(team, 3, part_waiting);
    expect_ended_by(team, 3, -1, "rank 2 (",
                    "is missing from \"loss\" #2 (control) at step 57: other ranks have waited in it for 1");
}

// No call for longer than the timeout, and waits shorter than it: no rank is missing.
static void part_busy(Player *me) {
    for (int i = 0; i < 3; ++i) {
        pause_seconds(i == 1 ? 1.6 : me->rank == 1 ? 0.5 : 0);
        double sum = 1;
        EXPECT(control_reduce(me->control, "step", &sum, 1, NULL, 0));
    }
}
// The last rank arrives just in time, and then the collective takes a while.
static void part_just_in_time(Player *me) {
    set_probe(me, me->rank == 1 ? 6 : 7, "block", me->rank != 1);
    if (me->rank == 1) {
        pause_seconds(1);
        set_probe(me, 7, "block", true);
    }
    EXPECT(control_reduce(me->control, "all have come", NULL, 0, NULL, 0));
    pause_seconds(0.8);
    set_probe(me, 7, "block", false);
}
static void test_slow_is_not_hung(void **state) {
    Team *team = *state;
    team->timeout_seconds = 1;
    team_start_all(team, 3, part_busy);
    team_expect_all_well(team, 3);
    team->timeout_seconds = 1.5;
    team_start_all(team, 2, part_just_in_time);
    team_expect_all_well(team, 2);
}

// ---- errors and aborts ----

static void part_other_name(Player *me) {
    double sum = 1;
    if (me->rank != 1) pause_seconds(0.1);
    control_reduce(me->control, me->rank == 2 ? "other" : "loss", &sum, 1, NULL, 0);
    part_idle(me);
}
static void part_other_size(Player *me) {
    char bytes[64] = "";
    if (me->rank != 1) pause_seconds(0.1);
    control_gather(me->control, "pairs", bytes, bytes, me->rank == 2 ? 8 : 16);
    part_idle(me);
}
static void part_other_kind(Player *me) {
    double sum = 1;
    if (me->rank == 2) pause_seconds(0.1);
    if (me->rank == 2) control_broadcast(me->control, "loss", &sum, sizeof sum);
    else control_reduce(me->control, "loss", &sum, 1, NULL, 0);
    part_idle(me);
}
static void test_mismatch(void **state) {
    Team *team = *state;
    team_start_all(team, 3, part_other_name);
    expect_ended_by(team, 3, -1, "called \"other\" #1 (control)", "called \"loss\" #1 (control)");
    team_start_all(team, 3, part_other_size);
    expect_ended_by(team, 3, -1, "(gather of 8 bytes)", "(gather of 16 bytes)");
    team_start_all(team, 3, part_other_kind);
    expect_ended_by(team, 3, -1, "(broadcast of 8 bytes)", "(reduce of 1 sums, 0 maxima)");
}

static void part_abort(Player *me) {
    double sum = 1;
    if (me->rank != atomic_load(&me->shared->stage[MAX_RANKS - 1])) {
        control_reduce(me->control, "loss", &sum, 1, NULL, 0);
        EXPECT(false);
    }
    control_set_step(me->control, 3);
    control_abort(me->control, "the disk is full");
    EXPECT(!control_reduce(me->control, "loss", &sum, 1, NULL, 0));
    control_close(me->control);
    free(me);
    fprintf(stderr, "mine: the disk is full\n");
    exit(4);
}
static void test_abort(void **state) {
    Team *team = *state;
    for (int who = 0; who < 2; ++who) {
        double from = now_seconds();
        atomic_store(&team->shared->stage[MAX_RANKS - 1], who);
        team_start_all(team, 3, part_abort);
        expect_ended_by(team, 3, who, who == 0 ? "rank 0 (" : "rank 1 (", "ends the run at step 3: the disk is full");
        team_expect_end(team, who, 4, "mine: the disk is full");
        assert_true(now_seconds() - from < 5);
    }
}

static void part_all_abort(Player *me) {
    control_abort(me->control, "the same mistake everywhere");
    fprintf(stderr, "mine\n");
    _exit(4);
}
static void test_all_abort(void **state) {
    Team *team = *state;
    team_start_all(team, 3, part_all_abort);
    for (int rank = 0; rank < 3; ++rank) {
        // A rank that receives the other's abort before its own prints only the other's line.
        int status = team_finish(team, rank);
        if (status != 4 && status != 1) fail_msg("rank %d: %d, %s", rank, status, team->said[rank]);
        if (status == 4) assert_string_equal(team->said[rank], "mine\n");
        if (status == 1) team_expect_said(team, rank, "the same mistake everywhere");
    }
}

static void part_early(Player *me) {
    if (me->rank != 1) pause_seconds(0.6);
}
static void part_never(Player *me) {
    if (me->rank == 2) part_idle(me);
}
static void part_goodbye_instead(Player *me) {
    double sum = 1;
    if (me->rank == 1) return;
    pause_seconds(0.1);
    control_reduce(me->control, "loss", &sum, 1, NULL, 0);
    part_idle(me);
}
static void test_goodbye(void **state) {
    Team *team = *state;
    team_start_all(team, 3, part_early);
    team_expect_all_well(team, 3);
    team_start_all(team, 3, part_goodbye_instead);
    expect_ended_by(team, 3, -1, "(goodbye)", "called \"loss\" #1");
    team->timeout_seconds = 1;
    team_start_all(team, 3, part_never);
    expect_ended_by(team, 3, -1, "rank 2 (", "is missing from \"goodbye\" #1 (control)");
}

// ---- signals ----

static atomic_int signals_elsewhere, signals_seen;
static void on_signal(int number) {
    (void)number;
    atomic_fetch_add(&signals_seen, 1);
    if (gettid() != getpid()) atomic_fetch_add(&signals_elsewhere, 1);
}
static void part_signals(Player *me) {
    struct sigaction action = {.sa_handler = on_signal};  // without SA_RESTART: interrupted calls must be resumed
    EXPECT(sigaction(SIGUSR1, &action, NULL) == 0);
    atomic_store(&me->shared->stage[me->rank], 2);
    double sum = 1;
    EXPECT(control_reduce(me->control, "begin", &sum, 1, NULL, 0));
    for (double enough = 0; enough == 0;) {
        sum = 1;
        EXPECT(control_reduce(me->control, "loss", &sum, 1, NULL, 0) && sum == me->world);
        enough = atomic_load(&signals_seen) >= 50;
        EXPECT(control_reduce(me->control, "enough", NULL, 0, &enough, 1));
    }
    EXPECT(atomic_load(&signals_elsewhere) == 0);
}
static void test_signals(void **state) {
    Team *team = *state;
    team_start_all(team, 2, part_signals);
    await_all(team, 2, 2);
    for (int i = 0; i < 200; ++i) {
        kill(team->pid[i % 2], SIGUSR1);
        pause_seconds(0.002);
    }
    team_expect_all_well(team, 2);
}

// ---- one rank ----

static void test_one_rank(void **state) {
    (void)state;
    Control *control = (Control *)1;
    const Launch launch = {.kind = LAUNCH_SINGLE, .world = 1};
    const ControlOptions options = {.timeout_seconds = 1};
    assert_true(control_open(&control, &launch, &options, NULL));
    assert_null(control);
    double sum = 3, max = -2, all = 0;
    assert_true(control_reduce(control, "x", &sum, 1, &max, 1) && sum == 3 && max == -2);
    assert_true(control_broadcast(control, "x", &sum, sizeof sum) && sum == 3);
    assert_true(control_gather(control, "x", &all, &sum, sizeof sum) && all == 3);
    control_set_step(control, 1);
    control_set_probe(control, probe_player, NULL);
    char name[100];
    control_describe_rank(control, 0, name, sizeof name);
    assert_true(strncmp(name, "rank 0 (", 8) == 0);
    control_abort(control, "nobody listens");
    control_close(control);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEAM_TEST(test_collectives),
        TEAM_TEST(test_latency),
        TEAM_TEST(test_killed_idle),
        TEAM_TEST(test_killed_in_call),
        TEAM_TEST(test_rank_0_killed),
        TEAM_TEST(test_exit_without_goodbye),
        TEAM_TEST(test_stopped),
        TEAM_TEST(test_silent),
        TEAM_TEST(test_suspended),
        TEAM_TEST(test_hung_in_tensors),
        TEAM_TEST(test_hung_chain),
        TEAM_TEST(test_all_stuck),
        TEAM_TEST(test_hung_in_control),
        TEAM_TEST(test_slow_is_not_hung),
        TEAM_TEST(test_mismatch),
        TEAM_TEST(test_abort),
        TEAM_TEST(test_all_abort),
        TEAM_TEST(test_goodbye),
        TEAM_TEST(test_signals),
        cmocka_unit_test(test_one_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
