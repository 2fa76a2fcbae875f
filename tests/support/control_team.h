// control_team.h: for tests of control.h: child processes, one a rank, and what each wrote to stderr. Timeouts are a second
// or two; processes left after a test are killed.
#ifndef TESTS_CONTROL_TEAM_H
#define TESTS_CONTROL_TEAM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

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

// cmocka setup and teardown; *state is a Team.
int team_setup(void **state);
int team_teardown(void **state);
#define TEAM_TEST(function) cmocka_unit_test_setup_teardown(function, team_setup, team_teardown)

void pause_seconds(double seconds);

// Starts a process, kept in `slot`, that opens its Control as this rank, reaches stage 1, runs the part (NULL: none),
// closes the Control and exits with 0; with 3 and the message on stderr if it cannot open it.
void team_start_as(Team *team, int slot, int rank, int world, Part part);
void team_start(Team *team, int rank, int world, Part part);  // slot = rank
void team_start_all(Team *team, int world, Part part);

void team_await_stage(Team *team, int slot, int stage);
// Sends SIGSTOP and waits until all threads of the process have stopped.
void team_stop(Team *team, int slot);
// Waits for a child's end and returns its status; its stderr is then in team->said.
int team_finish(Team *team, int slot);

// Fail the test unless the process, which has ended, wrote the text to stderr;
void team_expect_said(Team *team, int slot, const char *text);
// unless it ends with `status` and one line on stderr that contains the text (NULL: with nothing on stderr);
void team_expect_end(Team *team, int slot, int status, const char *text);
// unless all ranks end with status 0 and nothing on stderr.
void team_expect_all_well(Team *team, int world);
#endif
