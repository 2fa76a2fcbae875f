// control_team.c: see control_team.h.
#include "tests/support/control_team.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

int team_setup(void **state) {
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
int team_teardown(void **state) {
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

void pause_seconds(double seconds) { usleep((useconds_t)(1e6 * seconds)); }

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

void team_start_as(Team *team, int slot, int rank, int world, Part part) {
    fflush(NULL);
    team->status[slot] = RUNNING;
    atomic_store(&team->shared->stage[slot], 0);
    team->pid[slot] = fork();
    assert_true(team->pid[slot] >= 0);
    if (team->pid[slot] == 0) play(team, slot, rank, world, part);
}
void team_start(Team *team, int rank, int world, Part part) { team_start_as(team, rank, rank, world, part); }
void team_start_all(Team *team, int world, Part part) {
    for (int rank = 0; rank < world; ++rank) team_start(team, rank, world, part);
}

void team_await_stage(Team *team, int slot, int stage) {
    for (double until = now_seconds() + GUARD_SECONDS; atomic_load(&team->shared->stage[slot]) < stage;) {
        if (now_seconds() > until) fail_msg("process %d has not reached stage %d", slot, stage);
        pause_seconds(0.002);
    }
}

void team_stop(Team *team, int slot) {
    int raw = 0;
    assert_int_equal(kill(team->pid[slot], SIGSTOP), 0);
    assert_int_equal(waitpid(team->pid[slot], &raw, WUNTRACED), team->pid[slot]);
    assert_true(WIFSTOPPED(raw));
}

int team_finish(Team *team, int slot) {
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
void team_expect_said(Team *team, int slot, const char *text) {
    if (strstr(team->said[slot], text) == NULL)
        fail_msg("process %d: expected \"%s\" in: %s", slot, text, team->said[slot]);
}
void team_expect_end(Team *team, int slot, int status, const char *text) {
    int found = team_finish(team, slot);
    if (found != status)
        fail_msg("process %d: expected status %d, found %d: %s", slot, status, found, team->said[slot]);
    if (text == NULL) {
        assert_string_equal(team->said[slot], "");
        return;
    }
    team_expect_said(team, slot, text);
    const char *newline = strchr(team->said[slot], '\n');
    if (newline == NULL || newline[1] != '\0') fail_msg("expected one line: %s", team->said[slot]);
}
void team_expect_all_well(Team *team, int world) {
    for (int rank = 0; rank < world; ++rank) team_expect_end(team, rank, 0, NULL);
}
