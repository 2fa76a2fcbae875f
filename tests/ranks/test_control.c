// test_control.c: real processes (fork) that connect, call collectives, and die, stop, hang or exit in every way that
// control.h describes. Timeouts are a second or two; processes left after a test are killed.
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "llmc/base/tree_sum.h"
#include "llmc/ranks/control.h"
#include "tests/support/file_test.h"

enum { MAX_RANKS = 6, SAID_BYTES = 4096, RUNNING = -1000, GUARD_SECONDS = 20 };

// Memory shared by parent and children.
typedef struct {
    atomic_int stage[MAX_RANKS];
    _Atomic double measured;
    int from_rank_0[MAX_RANKS][2];  // pipes, with which share replaces MPI_Bcast
} Shared;

typedef struct {
    FileTest files;
    Shared *shared;
    pid_t pid[MAX_RANKS];
    int status[MAX_RANKS];  // RUNNING, exit status, or -signal
    char said[MAX_RANKS][SAID_BYTES];
    double timeout_seconds;
    LaunchKind kind;
    bool share;
    int port;
} Team;

// A child's rank.
typedef struct {
    Team *team;
    Shared *shared;
    int rank, world;
    Control *control;
    ControlStatus probe;
    double probe_since;
} Player;
typedef void (*Part)(Player *me);

// Assertions in a child, where cmocka's longjmp would continue the parent's test.
#define EXPECT(condition)                                                       \
    do {                                                                        \
        if (!(condition)) {                                                     \
            fprintf(stderr, "%s:%d: not %s\n", __FILE__, __LINE__, #condition); \
            _exit(99);                                                          \
        }                                                                       \
    } while (0)

static int team_setup(void **state) {
    Team *team = xcalloc(1, sizeof *team);
    void *files;
    if (file_test_setup(&files) != 0) return 1;
    team->files = *(FileTest *)files;
    free(files);
    team->shared = mmap(NULL, sizeof *team->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    team->timeout_seconds = 5;
    team->kind = LAUNCH_DIRECTORY;
    *state = team;
    return team->shared == MAP_FAILED;
}
static int team_teardown(void **state) {
    Team *team = *state;
    for (int rank = 0; rank < MAX_RANKS; ++rank) {
        if (team->pid[rank] > 0 && team->status[rank] == RUNNING) {
            kill(team->pid[rank], SIGKILL);
            waitpid(team->pid[rank], NULL, 0);
        }
    }
    munmap(team->shared, sizeof *team->shared);
    bool ok = remove_tree(team->files.dir, NULL);
    free(team);
    return !ok;
}
#define TEAM_TEST(function) cmocka_unit_test_setup_teardown(function, team_setup, team_teardown)

static void pause_seconds(double seconds) { usleep((useconds_t)(1e6 * seconds)); }

// ---- children ----

static bool share_by_pipe(void *context, void *bytes, size_t count, Error *err) {
    Player *me = context;
    if (me->rank == 0) {
        for (int rank = 1; rank < me->world; ++rank)
            if (write(me->shared->from_rank_0[rank][1], bytes, count) != (ssize_t)count)
                return error_set(err, "pipe to rank %d", rank);
        return true;
    }
    for (size_t have = 0; have < count;) {
        ssize_t got = read(me->shared->from_rank_0[me->rank][0], (char *)bytes + have, count - have);
        if (got <= 0) return error_set(err, "pipe of rank %d", me->rank);
        have += (size_t)got;
    }
    return true;
}

static bool open_player(Player *me, Error *err) {
    Launch launch = {.kind = me->team->kind, .rank = me->rank, .world = me->world, .port = me->team->port};
    gethostname(launch.host, sizeof launch.host - 1);
    snprintf(launch.address, sizeof launch.address, "localhost");
    snprintf(launch.directory, sizeof launch.directory, "%s/meet", me->team->files.dir);
    const ControlOptions options = {me->team->timeout_seconds, me->team->share ? share_by_pipe : NULL, me};
    return control_open(&me->control, &launch, &options, err);
}

_Noreturn static void play(Team *team, int slot, int rank, int world, Part part) {
    char path[300];
    snprintf(path, sizeof path, "%s/said.%d", team->files.dir, slot);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || dup2(fd, STDERR_FILENO) < 0) _exit(98);
    close(fd);
    alarm(GUARD_SECONDS);
    Player *me = xcalloc(1, sizeof *me);
    *me = (Player){.team = team, .shared = team->shared, .rank = rank, .world = world};
    Error err = {""};
    if (!open_player(me, &err)) {
        fprintf(stderr, "%s\n", err.message);
        _exit(3);
    }
    atomic_store(&me->shared->stage[slot], 1);
    if (part != NULL) part(me);
    control_close(me->control);
    free(me);
    exit(0);  // runs the leak checker
}

static void start_as(Team *team, int slot, int rank, int world, Part part) {
    fflush(NULL);
    team->status[slot] = RUNNING;
    atomic_store(&team->shared->stage[slot], 0);
    team->pid[slot] = fork();
    assert_true(team->pid[slot] >= 0);
    if (team->pid[slot] == 0) play(team, slot, rank, world, part);
}
static void start(Team *team, int rank, int world, Part part) { start_as(team, rank, rank, world, part); }
static void start_all(Team *team, int world, Part part) {
    for (int rank = 0; rank < world; ++rank) start(team, rank, world, part);
}

static void await_stage(Team *team, int slot, int stage) {
    for (double until = now_seconds() + GUARD_SECONDS; atomic_load(&team->shared->stage[slot]) < stage;) {
        if (now_seconds() > until) fail_msg("process %d has not reached stage %d", slot, stage);
        pause_seconds(0.002);
    }
}

// Sends SIGSTOP and waits until all threads of the process have stopped.
static void stop(Team *team, int slot) {
    int raw = 0;
    assert_int_equal(kill(team->pid[slot], SIGSTOP), 0);
    assert_int_equal(waitpid(team->pid[slot], &raw, WUNTRACED), team->pid[slot]);
    assert_true(WIFSTOPPED(raw));
}

// Waits for a child's end; its stderr is then in team->said.
static int finish(Team *team, int slot) {
    int raw = 0;
    pid_t ended = 0;
    for (double until = now_seconds() + GUARD_SECONDS; ended == 0 && now_seconds() < until;) {
        ended = waitpid(team->pid[slot], &raw, WNOHANG);
        if (ended == 0) pause_seconds(0.005);
    }
    if (ended != team->pid[slot]) fail_msg("process %d does not end", slot);
    team->status[slot] = WIFEXITED(raw) ? WEXITSTATUS(raw) : -WTERMSIG(raw);
    char name[32];
    snprintf(name, sizeof name, "said.%d", slot);
    char *path = file_test_path(&team->files, name), *text = NULL;
    if (file_exists(path) && file_read_all(path, SAID_BYTES - 1, &text, NULL, NULL))
        snprintf(team->said[slot], SAID_BYTES, "%s", text);
    free(text);
    free(path);
    return team->status[slot];
}
static void expect_said(Team *team, int slot, const char *text) {
    if (strstr(team->said[slot], text) == NULL)
        fail_msg("process %d: expected \"%s\" in: %s", slot, text, team->said[slot]);
}
// The rank ends with `status` and one line on stderr (none for status 0) that contains the text.
static void expect_end(Team *team, int slot, int status, const char *text) {
    int found = finish(team, slot);
    if (found != status)
        fail_msg("process %d: expected status %d, found %d: %s", slot, status, found, team->said[slot]);
    if (text == NULL) {
        assert_string_equal(team->said[slot], "");
        return;
    }
    expect_said(team, slot, text);
    const char *newline = strchr(team->said[slot], '\n');
    if (newline == NULL || newline[1] != '\0') fail_msg("expected one line: %s", team->said[slot]);
}
static void expect_all_well(Team *team, int world) {
    for (int rank = 0; rank < world; ++rank) expect_end(team, rank, 0, NULL);
}

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
        start_all(team, world, part_collectives);
        expect_all_well(team, world);
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
        start_all(team, world, part_latency);
        expect_all_well(team, world);
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
    for (int rank = 0; rank < world; ++rank) await_stage(team, rank, stage);
    pause_seconds(0.1);  // until the ranks are in the next call
}
// All ranks except one end with status 1 and one line each, which begins with their own rank and contains both texts.
static void expect_ended_by(Team *team, int world, int but, const char *text, const char *more) {
    for (int rank = 0; rank < world; ++rank) {
        if (rank == but) continue;
        char own[32];
        snprintf(own, sizeof own, "rank %d: ", rank);
        expect_end(team, rank, 1, text);
        expect_said(team, rank, more);
        if (strncmp(team->said[rank], own, strlen(own)) != 0) fail_msg("rank %d: %s", rank, team->said[rank]);
    }
}

static void test_killed_idle(void **state) {
    Team *team = *state;
    start_all(team, 3, part_idle);
    await_all(team, 3, 2);
    char named[64];
    snprintf(named, sizeof named, "pid %d) is missing at step ", (int)team->pid[1]);
    double from = now_seconds();
    kill(team->pid[1], SIGKILL);
    expect_ended_by(team, 3, 1, "rank 1 (", "its connection closed");
    assert_true(now_seconds() - from < 2);
    expect_said(team, 0, named);
    expect_said(team, 2, named);
    assert_int_equal(finish(team, 1), -SIGKILL);
}

static void test_killed_in_call(void **state) {
    Team *team = *state;
    for (int victim = 1; victim <= 2; ++victim) {
        start_all(team, 3, part_waiting);
        await_all(team, 3, 2);
        kill(team->pid[victim], SIGKILL);
        expect_ended_by(team, 3, victim, victim == 1 ? "rank 1 (" : "rank 2 (",
                        victim == 1 ? "it was in \"loss\" #2 (control)"
                                    : "is missing from \"loss\" #2 (control) at step 57: its connection closed");
        if (victim == 2) expect_said(team, 0, "it was past \"grad norm\" #1 (control)");
        assert_int_equal(finish(team, victim), -SIGKILL);
    }
}

static void test_rank_0_killed(void **state) {
    Team *team = *state;
    start_all(team, 3, part_waiting);
    await_all(team, 3, 2);
    kill(team->pid[0], SIGKILL);
    expect_ended_by(team, 3, 0, "rank 0 (", "its connection closed");
    expect_said(team, 1, "missing from \"loss\" #2 (control) at step 57");
    expect_said(team, 1, "; rank 1 was in \"loss\" #2 (control)");
    expect_said(team, 2, "; rank 2 was past \"grad norm\" #1 (control)");
    assert_int_equal(finish(team, 0), -SIGKILL);
}

static void part_leave(Player *me) {
    if (me->rank == 1) exit(0);
    part_idle(me);
}
static void test_exit_without_goodbye(void **state) {
    Team *team = *state;
    start_all(team, 3, part_leave);
    expect_ended_by(team, 3, 1, "rank 1 (", "exited without goodbye");
    assert_int_equal(finish(team, 1), 0);
}

// ---- ranks that stop or hang ----

static void test_stopped(void **state) {
    Team *team = *state;
    team->timeout_seconds = 1;
    for (int victim = 0; victim < 2; ++victim) {
        start_all(team, 3, part_waiting);
        await_all(team, 3, 2);
        // The rank that did not reach #2 would be named for that; here another one stops before the timeout.
        stop(team, victim);
        kill(team->pid[2], SIGKILL);
        if (victim == 1) {
            expect_ended_by(team, 1, -1, "rank 2 (", "connection closed");
            kill(team->pid[1], SIGCONT);
            expect_end(team, 1, 1, "rank 1: rank 2 (");  // it reads the message that arrived while it was stopped
        } else {
            // The hub is stopped, so it cannot report that rank 2 is gone.
            expect_end(team, 1, 1, "rank 1: rank 0 (");
            expect_said(team, 1, "missing from \"loss\" #2 (control) at step 57: silent for 1");
            kill(team->pid[0], SIGCONT);
            assert_int_equal(finish(team, 0), 1);
        }
        finish(team, 2);
    }
}

static void test_silent(void **state) {
    Team *team = *state;
    team->timeout_seconds = 1;
    for (int victim = 0; victim < 2; ++victim) {
        start_all(team, 3, part_idle);
        await_all(team, 3, 2);
        pause_seconds(0.4);  // until the step is reported
        double from = now_seconds();
        stop(team, victim);
        expect_ended_by(team, 3, victim, victim == 0 ? "rank 0 (" : "rank 1 (", "at step 57: silent for 1");
        double seconds = now_seconds() - from;
        if (seconds < 0.7 || seconds > 4) fail_msg("after %g s", seconds);
        kill(team->pid[victim], SIGCONT);
        // Rank 0 reads the frames that the other ranks sent before they exited.
        expect_end(team, victim, 1, victim == 0 ? "rank 0: rank 0 (" : "rank 1: rank ");
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
    start_all(team, 3, part_slow);
    await_all(team, 3, 2);
    for (int rank = 0; rank < 3; ++rank) stop(team, rank);
    pause_seconds(2);
    for (int rank = 0; rank < 3; ++rank) kill(team->pid[rank], SIGCONT);
    expect_all_well(team, 3);
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
    start_all(team, 4, part_tensors);
    expect_ended_by(team, 4, -1, "rank 1 (",
                    "is missing from \"reduce block.3\" #5 (tensors) at step 57: other ranks have waited in it for ");
    expect_said(team, 3, "it was past \"gather block.2\" #4 (tensors)");
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
    start_all(team, 3, part_chain);
    expect_ended_by(team, 3, -1, "rank 2 (", "is missing from \"");
}

static void part_stuck(Player *me) {
    set_probe(me, 7, "reduce block.3", true);
    part_idle(me);
}
static void test_all_stuck(void **state) {
    Team *team = *state;
    team->timeout_seconds = 1;
    start_all(team, 2, part_stuck);
    expect_ended_by(team, 2, -1, "\"reduce block.3\" #7 (tensors)", "no rank is missing from it");
}

static void test_hung_in_control(void **state) {
    Team *team = *state;
    team->timeout_seconds = 1;
    start_all(team, 3, part_waiting);
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
    start_all(team, 3, part_busy);
    expect_all_well(team, 3);
    team->timeout_seconds = 1.5;
    start_all(team, 2, part_just_in_time);
    expect_all_well(team, 2);
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
    start_all(team, 3, part_other_name);
    expect_ended_by(team, 3, -1, "called \"other\" #1 (control)", "called \"loss\" #1 (control)");
    start_all(team, 3, part_other_size);
    expect_ended_by(team, 3, -1, "(gather of 8 bytes)", "(gather of 16 bytes)");
    start_all(team, 3, part_other_kind);
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
        start_all(team, 3, part_abort);
        expect_ended_by(team, 3, who, who == 0 ? "rank 0 (" : "rank 1 (", "ends the run at step 3: the disk is full");
        expect_end(team, who, 4, "mine: the disk is full");
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
    start_all(team, 3, part_all_abort);
    for (int rank = 0; rank < 3; ++rank) {
        // A rank that receives the other's abort before its own prints only the other's line.
        int status = finish(team, rank);
        if (status != 4 && status != 1) fail_msg("rank %d: %d, %s", rank, status, team->said[rank]);
        if (status == 4) assert_string_equal(team->said[rank], "mine\n");
        if (status == 1) expect_said(team, rank, "the same mistake everywhere");
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
    start_all(team, 3, part_early);
    expect_all_well(team, 3);
    start_all(team, 3, part_goodbye_instead);
    expect_ended_by(team, 3, -1, "(goodbye)", "called \"loss\" #1");
    team->timeout_seconds = 1;
    start_all(team, 3, part_never);
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
    start_all(team, 2, part_signals);
    await_all(team, 2, 2);
    for (int i = 0; i < 200; ++i) {
        kill(team->pid[i % 2], SIGUSR1);
        pause_seconds(0.002);
    }
    expect_all_well(team, 2);
}

// ---- connecting ----

// Returns the number of a free port; *listener = the socket that listens there (NULL: it is closed).
static int free_port(int *listener) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t bytes = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0 && bind(fd, (struct sockaddr *)&address, bytes) == 0 && listen(fd, 8) == 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &bytes), 0);
    if (listener != NULL) *listener = fd;
    else close(fd);
    return ntohs(address.sin_port);
}
static int connect_to_port(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    return fd;
}

static void part_greet(Player *me) {
    int all[MAX_RANKS];
    EXPECT(control_gather(me->control, "ranks", all, &me->rank, sizeof me->rank));
    for (int rank = 0; rank < me->world; ++rank) EXPECT(all[rank] == rank);
}

static void test_share(void **state) {
    Team *team = *state;
    team->share = true;
    team->kind = LAUNCH_MPI;
    for (int rank = 0; rank < MAX_RANKS; ++rank) assert_int_equal(pipe(team->shared->from_rank_0[rank]), 0);
    start_all(team, 4, part_greet);
    expect_all_well(team, 4);
    for (int rank = 0; rank < MAX_RANKS; ++rank)
        close(team->shared->from_rank_0[rank][0]), close(team->shared->from_rank_0[rank][1]);
}

static void test_tcp(void **state) {
    Team *team = *state;
    team->kind = LAUNCH_TCP;
    for (int world = 2; world <= 4; world += 2) {
        team->port = free_port(NULL);
        for (int rank = world - 1; rank >= 0; --rank) {
            start(team, rank, world, part_greet);
            pause_seconds(0.05);
        }
        expect_all_well(team, world);
    }
}

static char *meet_path(Team *team, int world) {
    char name[64];
    snprintf(name, sizeof name, "meet/tokamak-hub-%d", world);
    return file_test_path(&team->files, name);
}
static void await_file(const char *path) {
    for (double until = now_seconds() + GUARD_SECONDS; !file_exists(path);) {
        if (now_seconds() > until) fail_msg("%s does not appear", path);
        pause_seconds(0.002);
    }
}

static void test_directory(void **state) {
    Team *team = *state;
    char *path = meet_path(team, 2);
    start(team, 1, 2, part_greet);  // before the directory exists
    pause_seconds(0.1);
    start(team, 0, 2, part_greet);
    expect_all_well(team, 2);
    assert_false(file_exists(path));
    // Files of earlier runs, some damaged: their hub is gone.
    static const char *const STALE[] = {
        "", "tokamak hub 1\n", "something else\n",
        "tokamak hub 1\nnonce 00112233445566778899aabbccddeeff\nworld 2\nhost elsewhere\npid 7\nstarted 2026-01-01 "
        "00:00:00\nport 9\naddress 127.0.0.1\nend\n"};
    for (size_t i = 0; i < sizeof STALE / sizeof STALE[0]; ++i) {
        file_test_write(&team->files, "meet/tokamak-hub-2", STALE[i], strlen(STALE[i]));
        start(team, 1, 2, part_greet);
        pause_seconds(0.1);
        start(team, 0, 2, part_greet);
        expect_all_well(team, 2);
    }
    free(path);
}

// The file of a live run whose ranks are complete, or are still connecting with another nonce.
static void test_foreign_hub(void **state) {
    Team *team = *state;
    char *path = meet_path(team, 2), *text;
    for (int complete = 0; complete < 2; ++complete) {
        start(team, 0, 2, part_early);
        await_file(path);
        file_test_expect_ok(&team->files, file_read_all(path, 10000, &text, NULL, &team->files.err));
        if (complete) {
            start(team, 1, 2, part_early);
            await_stage(team, 1, 1);
        } else {
            char *nonce = strstr(text, "nonce ");
            assert_non_null(nonce);
            memset(nonce + 6, 'a', 32);
        }
        file_test_write(&team->files, "meet/tokamak-hub-2", text, strlen(text));
        free(text);
        start_as(team, 3, 1, 2, part_greet);
        pause_seconds(0.2);
        start_as(team, 2, 0, 2, part_greet);
        expect_end(team, 2, 0, NULL);
        expect_end(team, 3, 0, NULL);
        if (!complete) kill(team->pid[0], SIGKILL);
        assert_int_equal(finish(team, 0), complete ? 0 : -SIGKILL);
        if (complete) expect_end(team, 1, 0, NULL);
    }
    free(path);
}

static void test_same_rank_twice(void **state) {
    Team *team = *state;
    start(team, 0, 3, part_greet);
    start(team, 1, 3, part_greet);
    pause_seconds(0.5);
    start_as(team, 3, 1, 3, part_greet);
    expect_end(team, 3, 3, "two processes are rank 1: pid ");
    start(team, 2, 3, part_greet);
    expect_all_well(team, 3);
}

static void test_other_world(void **state) {
    Team *team = *state;
    team->kind = LAUNCH_TCP;
    team->port = free_port(NULL);
    start(team, 0, 2, part_early);
    start_as(team, 3, 1, 3, part_early);
    expect_end(team, 3, 3, "was started as one of 3, rank 0 (");
    start(team, 1, 2, part_early);
    await_stage(team, 1, 1);
    // Too late: all ranks of the run have connected.
    team->timeout_seconds = 0.5;
    start_as(team, 3, 1, 2, part_early);
    expect_end(team, 3, 3, "the run there is complete: its 2 ranks connected after its start at 20");
    expect_all_well(team, 2);
}

static void test_missing_ranks(void **state) {
    Team *team = *state;
    team->timeout_seconds = 1;
    start(team, 0, 5, part_greet);
    start(team, 1, 5, part_greet);
    start(team, 4, 5, part_greet);
    for (int i = 0; i < 3; ++i) {
        int rank = i < 2 ? i : 4;
        expect_end(team, rank, 3, "2 of 5 ranks did not connect within 1 s: 2-3; rank 0 (");
        expect_said(team, rank, ", rank 1 (");
        expect_said(team, rank, ", rank 4 (");
    }
    char *path = meet_path(team, 5);
    assert_false(file_exists(path));
    free(path);
    team->timeout_seconds = 0.5;
    start(team, 1, 2, part_greet);
    expect_end(team, 1, 3, "rank 1 did not find rank 0 through ");
    expect_said(team, 1, "No such file");
    team->kind = LAUNCH_TCP;
    team->port = free_port(NULL);
    start(team, 1, 2, part_greet);
    expect_end(team, 1, 3, "rank 1 did not find rank 0 at MASTER_ADDR=localhost, MASTER_PORT=");
    expect_said(team, 1, "Connection refused");
}

// A rank that dies before all have connected may be restarted.
static void test_again_while_meeting(void **state) {
    Team *team = *state;
    start(team, 0, 3, part_greet);
    start(team, 1, 3, part_greet);
    pause_seconds(0.5);
    kill(team->pid[1], SIGKILL);
    assert_int_equal(finish(team, 1), -SIGKILL);
    start(team, 1, 3, part_greet);
    pause_seconds(0.2);
    // So may rank 0: the other ranks then find the new one.
    kill(team->pid[0], SIGKILL);
    assert_int_equal(finish(team, 0), -SIGKILL);
    start(team, 0, 3, part_greet);
    start(team, 2, 3, part_greet);
    expect_all_well(team, 3);
}

static void test_strangers(void **state) {
    Team *team = *state;
    team->kind = LAUNCH_TCP;
    team->timeout_seconds = 1;
    int listener;
    team->port = free_port(&listener);
    start(team, 0, 2, part_greet);
    start(team, 1, 2, part_greet);
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fd >= 0 && write(fd, "SSH-2.0-something\r\n", 19) == 19);
    expect_end(team, 1, 3, "rank 1 did not find rank 0 at MASTER_ADDR=localhost");
    expect_end(team, 0, 3, "cannot listen at port ");
    expect_said(team, 0, "Address already in use");
    close(fd);
    close(listener);
    // Connections to the hub that send nothing, garbage, or another program's hello.
    team->timeout_seconds = 5;
    start(team, 0, 2, part_early);
    pause_seconds(0.3);
    int silent = connect_to_port(team->port), loud = connect_to_port(team->port);
    assert_int_equal(write(loud, "GET / HTTP/1.1\r\n\r\n", 18), 18);
    char answer[16];
    assert_true(read(loud, answer, sizeof answer) <= 0);  // closed by the hub
    close(loud);
    start(team, 1, 2, part_early);
    await_stage(team, 1, 1);
    loud = connect_to_port(team->port);
    assert_int_equal(write(loud, "GET / HTTP/1.1\r\n\r\n", 18), 18);
    expect_all_well(team, 2);
    close(silent);
    close(loud);
}

static void test_bad_directory(void **state) {
    Team *team = *state;
    file_test_write(&team->files, "meet", "", 0);
    start(team, 0, 2, part_greet);
    expect_end(team, 0, 3, "meet");
}

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
        TEAM_TEST(test_share),
        TEAM_TEST(test_tcp),
        TEAM_TEST(test_directory),
        TEAM_TEST(test_foreign_hub),
        TEAM_TEST(test_same_rank_twice),
        TEAM_TEST(test_other_world),
        TEAM_TEST(test_missing_ranks),
        TEAM_TEST(test_again_while_meeting),
        TEAM_TEST(test_strangers),
        TEAM_TEST(test_bad_directory),
        cmocka_unit_test(test_one_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
