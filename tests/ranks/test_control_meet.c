// test_control_meet.c: real processes (fork) that connect as control.h describes (address, directory, broadcast), among
// stale files, strangers and ranks that are missing, late or started twice.
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

#include "tests/support/control_team.h"

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

static void part_early(Player *me) {
    if (me->rank != 1) pause_seconds(0.6);
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
    team_start_all(team, 4, part_greet);
    team_expect_all_well(team, 4);
    for (int rank = 0; rank < MAX_RANKS; ++rank)
        close(team->shared->from_rank_0[rank][0]), close(team->shared->from_rank_0[rank][1]);
}

static void test_tcp(void **state) {
    Team *team = *state;
    team->kind = LAUNCH_TCP;
    for (int world = 2; world <= 4; world += 2) {
        team->port = free_port(NULL);
        for (int rank = world - 1; rank >= 0; --rank) {
            team_start(team, rank, world, part_greet);
            pause_seconds(0.05);
        }
        team_expect_all_well(team, world);
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
    team_start(team, 1, 2, part_greet);  // before the directory exists
    pause_seconds(0.1);
    team_start(team, 0, 2, part_greet);
    team_expect_all_well(team, 2);
    assert_false(file_exists(path));
    // Files of earlier runs, some damaged: their hub is gone.
    static const char *const STALE[] = {
        "", "tokamak hub 1\n", "something else\n",
        ("tokamak hub 1\nnonce 00112233445566778899aabbccddeeff\nworld 2\nhost elsewhere\npid 7\nstarted 2026-01-01 "
         "00:00:00\nport 9\naddress 127.0.0.1\nend\n")};
    for (size_t i = 0; i < sizeof STALE / sizeof STALE[0]; ++i) {
        file_test_write(&team->files, "meet/tokamak-hub-2", STALE[i], strlen(STALE[i]));
        team_start(team, 1, 2, part_greet);
        pause_seconds(0.1);
        team_start(team, 0, 2, part_greet);
        team_expect_all_well(team, 2);
    }
    free(path);
}

// The file of a live run whose ranks are complete, or are still connecting with another nonce.
static void test_foreign_hub(void **state) {
    Team *team = *state;
    char *path = meet_path(team, 2), *text;
    for (int complete = 0; complete < 2; ++complete) {
        team_start(team, 0, 2, part_early);
        await_file(path);
        file_test_expect_ok(&team->files, file_read_all(path, 10000, &text, NULL, &team->files.err));
        if (complete) {
            team_start(team, 1, 2, part_early);
            team_await_stage(team, 1, 1);
        } else {
            char *nonce = strstr(text, "nonce ");
            assert_non_null(nonce);
            memset(nonce + 6, 'a', 32);
        }
        file_test_write(&team->files, "meet/tokamak-hub-2", text, strlen(text));
        free(text);
        team_start_as(team, 3, 1, 2, part_greet);
        pause_seconds(0.2);
        team_start_as(team, 2, 0, 2, part_greet);
        team_expect_end(team, 2, 0, NULL);
        team_expect_end(team, 3, 0, NULL);
        if (!complete) kill(team->pid[0], SIGKILL);
        assert_int_equal(team_finish(team, 0), complete ? 0 : -SIGKILL);
        if (complete) team_expect_end(team, 1, 0, NULL);
    }
    free(path);
}

static void test_same_rank_twice(void **state) {
    Team *team = *state;
    team_start(team, 0, 3, part_greet);
    team_start(team, 1, 3, part_greet);
    pause_seconds(0.5);
    team_start_as(team, 3, 1, 3, part_greet);
    team_expect_end(team, 3, 3, "two processes are rank 1: pid ");
    team_start(team, 2, 3, part_greet);
    team_expect_all_well(team, 3);
}

static void test_other_world(void **state) {
    Team *team = *state;
    team->kind = LAUNCH_TCP;
    team->port = free_port(NULL);
    team_start(team, 0, 2, part_early);
    team_start_as(team, 3, 1, 3, part_early);
    team_expect_end(team, 3, 3, "was started as one of 3, rank 0 (");
    team_start(team, 1, 2, part_early);
    team_await_stage(team, 1, 1);
    // Too late: all ranks of the run have connected.
    team->timeout_seconds = 0.5;
    team_start_as(team, 3, 1, 2, part_early);
    team_expect_end(team, 3, 3, "the run there is complete: its 2 ranks connected after its start at 20");
    team_expect_all_well(team, 2);
}

static void test_missing_ranks(void **state) {
    Team *team = *state;
    team->timeout_seconds = 1;
    team_start(team, 0, 5, part_greet);
    team_start(team, 1, 5, part_greet);
    team_start(team, 4, 5, part_greet);
    for (int i = 0; i < 3; ++i) {
        int rank = i < 2 ? i : 4;
        team_expect_end(team, rank, 3, "2 of 5 ranks did not connect within 1 s: 2-3; rank 0 (");
        team_expect_said(team, rank, ", rank 1 (");
        team_expect_said(team, rank, ", rank 4 (");
    }
    char *path = meet_path(team, 5);
    assert_false(file_exists(path));
    free(path);
    team->timeout_seconds = 0.5;
    team_start(team, 1, 2, part_greet);
    team_expect_end(team, 1, 3, "rank 1 did not find rank 0 through ");
    team_expect_said(team, 1, "No such file");
    team->kind = LAUNCH_TCP;
    team->port = free_port(NULL);
    team_start(team, 1, 2, part_greet);
    team_expect_end(team, 1, 3, "rank 1 did not find rank 0 at MASTER_ADDR=localhost, MASTER_PORT=");
    team_expect_said(team, 1, "Connection refused");
}

// A rank that dies before all have connected may be restarted.
static void test_again_while_meeting(void **state) {
    Team *team = *state;
    team_start(team, 0, 3, part_greet);
    team_start(team, 1, 3, part_greet);
    pause_seconds(0.5);
    kill(team->pid[1], SIGKILL);
    assert_int_equal(team_finish(team, 1), -SIGKILL);
    team_start(team, 1, 3, part_greet);
    pause_seconds(0.2);
    // So may rank 0: the other ranks then find the new one.
    kill(team->pid[0], SIGKILL);
    assert_int_equal(team_finish(team, 0), -SIGKILL);
    team_start(team, 0, 3, part_greet);
    team_start(team, 2, 3, part_greet);
    team_expect_all_well(team, 3);
}

static void test_strangers(void **state) {
    Team *team = *state;
    team->kind = LAUNCH_TCP;
    team->timeout_seconds = 1;
    int listener;
    team->port = free_port(&listener);
    team_start(team, 0, 2, part_greet);
    team_start(team, 1, 2, part_greet);
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fd >= 0 && write(fd, "SSH-2.0-something\r\n", 19) == 19);
    team_expect_end(team, 1, 3, "rank 1 did not find rank 0 at MASTER_ADDR=localhost");
    team_expect_end(team, 0, 3, "cannot listen at port ");
    team_expect_said(team, 0, "Address already in use");
    close(fd);
    close(listener);
    // Connections to the hub that send nothing, garbage, or another program's hello.
    team->timeout_seconds = 5;
    team_start(team, 0, 2, part_early);
    pause_seconds(0.3);
    int silent = connect_to_port(team->port), loud = connect_to_port(team->port);
    assert_int_equal(write(loud, "GET / HTTP/1.1\r\n\r\n", 18), 18);
    char answer[16];
    assert_true(read(loud, answer, sizeof answer) <= 0);  // closed by the hub
    close(loud);
    team_start(team, 1, 2, part_early);
    team_await_stage(team, 1, 1);
    loud = connect_to_port(team->port);
    assert_int_equal(write(loud, "GET / HTTP/1.1\r\n\r\n", 18), 18);
    team_expect_all_well(team, 2);
    close(silent);
    close(loud);
}

static void test_bad_directory(void **state) {
    Team *team = *state;
    file_test_write(&team->files, "meet", "", 0);
    team_start(team, 0, 2, part_greet);
    team_expect_end(team, 0, 3, "meet");
}

int main(void) {
    const struct CMUnitTest tests[] = {
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
