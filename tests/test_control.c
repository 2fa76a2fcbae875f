// test_control.c: real processes (fork) that meet, agree on numbers, and die, stop, hang or leave in every way that
// control.h speaks of. Timeouts are a second or two; whatever is left after a test is killed.
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

#include "llmc/control.h"
#include "tests/file_test.h"

enum { MAX_RANKS = 6, SAID_BYTES = 4096, RUNNING = -1000, GUARD_SECONDS = 20 };

// What parent and children see together.
typedef struct {
    atomic_int stage[MAX_RANKS];
    _Atomic double measured;
    int from_rank_0[MAX_RANKS][2];  // pipes: what share does in place of MPI_Bcast
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

// Of a child: which rank it plays.
typedef struct {
    Team *team;
    Shared *shared;
    int rank, world;
    Control *control;
    ControlStatus probe;
    double probe_since;
} Player;
typedef void (*Part)(Player *me);

// In a child, where cmocka's jumps would lead into the parent's test.
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
    _exit(0);
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
        if (now_seconds() > until) fail_msg("process %d has not come to stage %d", slot, stage);
        pause_seconds(0.002);
    }
}

// Waits for the end of one; what it wrote to stderr is in team->said.
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
// It ends with `status` and one line on stderr (none for 0) that has the text.
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

// ---- collectives ----

static double term(int rank, int i, int round) { return sin(1 + 100 * rank + 10 * i + round) * pow(10, rank % 4); }
// ((0+1)+(2+3))+..., written down by recursion: the left half is the largest power of two below.
static double tree_sum(int first, int count, int i, int round) {
    if (count == 1) return term(first, i, round);
    int left = 1;
    while (2 * left < count) left *= 2;
    return tree_sum(first, left, i, round) + tree_sum(first + left, count - left, i, round);
}

static void part_collectives(Player *me) {
    for (int round = 0; round < 40; ++round) {
        double sum[3], max[2] = {-me->rank, me->rank == 1 ? round : -round};
        control_set_step(me->control, round);
        for (int i = 0; i < 3; ++i) sum[i] = term(me->rank, i, round);
        if (round % 7 == me->rank) pause_seconds(0.003);  // in every order
        EXPECT(control_reduce(me->control, "numbers", sum, 3, max, 2));
        for (int i = 0; i < 3; ++i) {
            double expected = tree_sum(0, me->world, i, round);
            EXPECT(memcmp(&sum[i], &expected, sizeof expected) == 0);
        }
        EXPECT(max[0] == 0 && max[1] == (me->world > 1 ? round : -round));
        char text[16] = "";
        if (me->rank == 0) snprintf(text, sizeof text, "round %d", round);
        EXPECT(control_broadcast(me->control, "text", text, sizeof text));
        char expected_text[16];
        snprintf(expected_text, sizeof expected_text, "round %d", round);
        EXPECT(strcmp(text, expected_text) == 0);
        int mine[2] = {me->rank, round}, all[2 * MAX_RANKS];
        EXPECT(control_gather(me->control, "pairs", all, mine, sizeof mine));
        for (int rank = 0; rank < me->world; ++rank) EXPECT(all[2 * rank] == rank && all[2 * rank + 1] == round);
    }
    double max = me->rank == me->world - 1 ? (double)NAN : 1e300;
    EXPECT(control_reduce(me->control, "not a number", NULL, 0, &max, 1) && isnan(max));
    EXPECT(control_reduce(me->control, "barrier", NULL, 0, NULL, 0));
    // More than sockets take at once, both ways.
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
        assert_true(seconds < 0.01);  // far from the usual, as machines may be busy
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEAM_TEST(test_collectives),
        TEAM_TEST(test_latency),
    };
    (void)probe_player, (void)await_stage;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
