// test_saver.c: the state machine of saving: several savers in one process, stepped with the maximum of their votes, like
// ranks. They agree on every phase, whichever is slow or fails.
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "llmc/base/rng.h"
#include "llmc/checkpoint/saver.h"

enum { RANKS = 4 };

// A rank's jobs: the test sets how long they take and whether they fail.
typedef struct {
    Saver saver;
    atomic_int hold;  // 1: jobs do not end
    bool fails_to_write, fails_to_commit, heeds_cancel;
    int writes, commits;
    bool signals_open;
    int nice;
} Rank;

static void wait_while_held(Rank *rank) {
    double until = now_seconds() + 20;
    while (atomic_load(&rank->hold) != 0 && now_seconds() < until) {
        if (rank->heeds_cancel && atomic_load(&rank->saver.cancelled)) return;
        usleep(500);
    }
}
static bool write_job(void *context, Error *err) {
    Rank *rank = context;
    ++rank->writes;
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    rank->signals_open = sigismember(&blocked, SIGTERM) == 0 || sigismember(&blocked, SIGUSR1) == 0;
    rank->nice = getpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid));
    wait_while_held(rank);
    if (rank->heeds_cancel && atomic_load(&rank->saver.cancelled)) return error_set(err, "%s", "");
    return rank->fails_to_write ? error_set(err, "disk of %d full", rank->writes) : true;
}
static bool commit_job(void *context, Error *err) {
    Rank *rank = context;
    ++rank->commits;
    wait_while_held(rank);
    return rank->fails_to_commit ? error_set(err, "cannot rename") : true;
}

static void open_ranks(Rank *rank, bool async) {
    for (int r = 0; r < RANKS; ++r) {
        memset(&rank[r], 0, sizeof rank[r]);
        saver_init(&rank[r].saver, &(SaverJobs){write_job, commit_job, &rank[r]}, async, r == 0);
        atomic_init(&rank[r].hold, 0);
    }
}
static void begin_all(Rank *rank) {
    for (int r = 0; r < RANKS; ++r) saver_begin(&rank[r].saver);
}

// One vote of all ranks. They must agree on the event and on the next phase.
static SaverEvent vote(Rank *rank) {
    double most[SAVER_VOTES] = {0};
    for (int r = 0; r < RANKS; ++r) {
        double votes[SAVER_VOTES];
        saver_vote(&rank[r].saver, votes);
        for (int v = 0; v < SAVER_VOTES; ++v) most[v] = votes[v] > most[v] ? votes[v] : most[v];
    }
    SaverEvent event = saver_step(&rank[0].saver, most);
    for (int r = 1; r < RANKS; ++r) {
        assert_int_equal(saver_step(&rank[r].saver, most), event);
        assert_int_equal(rank[r].saver.phase, rank[0].saver.phase);
    }
    return event;
}
static void wait_all(Rank *rank) {
    for (int r = 0; r < RANKS; ++r) saver_wait(&rank[r].saver, 20);
}

static void test_all_write_then_one_commits(void **state) {
    (void)state;
    for (int async = 0; async < 2; ++async) {
        Rank rank[RANKS];
        open_ranks(rank, async);
        assert_int_equal(vote(rank), SAVER_NOTHING);  // idle
        for (int round = 1; round <= 3; ++round) {
            begin_all(rank);
            wait_all(rank);
            assert_int_equal(vote(rank), SAVER_NOTHING);
            assert_int_equal(rank[0].saver.phase, SAVER_COMMITTING);
            wait_all(rank);
            assert_int_equal(vote(rank), SAVER_COMMITTED);
            assert_int_equal(rank[0].saver.phase, SAVER_IDLE);
            for (int r = 0; r < RANKS; ++r) {
                assert_int_equal(rank[r].writes, round);
                assert_int_equal(rank[r].commits, r == 0 ? round : 0);
                assert_string_equal(rank[r].saver.error.message, "");
            }
        }
    }
}

static void test_the_slowest_is_waited_for(void **state) {
    (void)state;
    Rank rank[RANKS];
    open_ranks(rank, true);
    atomic_store(&rank[2].hold, 1);
    begin_all(rank);
    for (int r = 0; r < RANKS; ++r)
        if (r != 2) saver_wait(&rank[r].saver, 20);
    double started = now_seconds();
    saver_wait(&rank[2].saver, 0.05);
    assert_true(now_seconds() - started >= 0.05);
    for (int i = 0; i < 5; ++i) assert_int_equal(vote(rank), SAVER_NOTHING);
    assert_int_equal(rank[0].saver.phase, SAVER_WRITING);
    assert_int_equal(rank[0].commits, 0);
    atomic_store(&rank[2].hold, 0);
    wait_all(rank);
    atomic_store(&rank[0].hold, 1);  // now the commit is slow
    assert_int_equal(vote(rank), SAVER_NOTHING);
    for (int i = 0; i < 5; ++i) assert_int_equal(vote(rank), SAVER_NOTHING);
    assert_int_equal(rank[3].saver.phase, SAVER_COMMITTING);
    atomic_store(&rank[0].hold, 0);
    wait_all(rank);
    assert_int_equal(vote(rank), SAVER_COMMITTED);
}

static void test_one_fails(void **state) {
    (void)state;
    for (int failing = 0; failing < RANKS; ++failing) {
        Rank rank[RANKS];
        open_ranks(rank, true);
        int slow = (failing + 1) % RANKS;
        rank[failing].fails_to_write = true;
        atomic_store(&rank[slow].hold, 1);
        begin_all(rank);
        saver_wait(&rank[failing].saver, 20);
        // No rank ends the save while another may still be writing, but the job of that one is cancelled.
        assert_false(atomic_load(&rank[slow].saver.cancelled));
        assert_int_equal(vote(rank), SAVER_NOTHING);
        assert_true(atomic_load(&rank[slow].saver.cancelled));
        assert_int_equal(rank[0].saver.phase, SAVER_WRITING);
        atomic_store(&rank[slow].hold, 0);
        wait_all(rank);
        assert_int_equal(vote(rank), SAVER_FAILED);
        assert_int_equal(rank[0].saver.phase, SAVER_IDLE);
        for (int r = 0; r < RANKS; ++r)
            assert_string_equal(rank[r].saver.error.message, r == failing ? "disk of 1 full" : "");
        assert_int_equal(rank[0].commits, 0);
        // The next save starts afresh.
        rank[failing].fails_to_write = false;
        begin_all(rank);
        assert_false(atomic_load(&rank[slow].saver.cancelled));
        wait_all(rank);
        assert_int_equal(vote(rank), SAVER_NOTHING);
        wait_all(rank);
        assert_int_equal(vote(rank), SAVER_COMMITTED);
        assert_string_equal(rank[failing].saver.error.message, "");
    }
}

// A cancelled job stops early and has no error message.
static void test_the_cancelled_have_no_reason(void **state) {
    (void)state;
    Rank rank[RANKS];
    open_ranks(rank, true);
    rank[3].fails_to_write = true;
    rank[1].heeds_cancel = true;
    atomic_store(&rank[1].hold, 1);
    begin_all(rank);
    saver_wait(&rank[3].saver, 20);
    assert_int_equal(vote(rank), SAVER_NOTHING);
    wait_all(rank);
    assert_int_equal(vote(rank), SAVER_FAILED);
    assert_string_equal(rank[1].saver.error.message, "");
    assert_string_equal(rank[3].saver.error.message, "disk of 1 full");
}

static void test_the_commit_fails(void **state) {
    (void)state;
    Rank rank[RANKS];
    open_ranks(rank, true);
    rank[0].fails_to_commit = true;
    begin_all(rank);
    wait_all(rank);
    assert_int_equal(vote(rank), SAVER_NOTHING);
    wait_all(rank);
    assert_int_equal(vote(rank), SAVER_FAILED);
    for (int r = 0; r < RANKS; ++r)
        assert_string_equal(rank[r].saver.error.message, r == 0 ? "cannot rename" : "");
}

static void test_one_cannot_begin(void **state) {
    (void)state;
    Rank rank[RANKS];
    open_ranks(rank, true);
    const Error why = {"no directory"}, none = {""};
    for (int r = 0; r < RANKS; ++r) saver_begin_failed(&rank[r].saver, r == 0 ? &why : &none);
    assert_int_equal(vote(rank), SAVER_FAILED);
    assert_string_equal(rank[0].saver.error.message, "no directory");
    assert_string_equal(rank[1].saver.error.message, "");
    for (int r = 0; r < RANKS; ++r) assert_int_equal(rank[r].writes, 0);
    // Some began, one could not.
    for (int r = 0; r < RANKS; ++r) {
        if (r == 2) saver_begin_failed(&rank[r].saver, &why);
        else saver_begin(&rank[r].saver);
    }
    wait_all(rank);
    assert_int_equal(vote(rank), SAVER_FAILED);
    assert_string_equal(rank[2].saver.error.message, "no directory");
}

static void test_the_thread_steps_back(void **state) {
    (void)state;
    Rank rank[RANKS];
    open_ranks(rank, true);
    int here = getpriority(PRIO_PROCESS, 0);
    begin_all(rank);
    wait_all(rank);
    for (int r = 0; r < RANKS; ++r) {
        assert_false(rank[r].signals_open);  // the training thread handles signals
        assert_int_equal(rank[r].nice, 19);
    }
    assert_int_equal(getpriority(PRIO_PROCESS, 0), here);
    sigset_t blocked;
    assert_int_equal(pthread_sigmask(SIG_SETMASK, NULL, &blocked), 0);
    assert_int_equal(sigismember(&blocked, SIGTERM), 0);
    vote(rank);
    wait_all(rank);
    assert_int_equal(vote(rank), SAVER_COMMITTED);
}

static void test_abandon(void **state) {
    (void)state;
    Rank rank[RANKS];
    open_ranks(rank, true);
    saver_abandon(&rank[0].saver);  // idle: nothing
    for (int r = 0; r < RANKS; ++r) {
        rank[r].heeds_cancel = true;
        atomic_store(&rank[r].hold, 1);
    }
    begin_all(rank);
    for (int r = 0; r < RANKS; ++r) {
        saver_abandon(&rank[r].saver);
        assert_int_equal(rank[r].saver.phase, SAVER_IDLE);
    }
    assert_int_equal(vote(rank), SAVER_NOTHING);
}

// Any mix of slow and failing ranks: the phases agree, and a checkpoint is committed if and only if no rank failed.
static void test_any_order(void **state) {
    (void)state;
    uint64_t draws = 0;
    for (int round = 0; round < 100; ++round) {
        Rank rank[RANKS];
        open_ranks(rank, true);
        bool fails = false;
        for (int r = 0; r < RANKS; ++r) {
            rank[r].fails_to_write = rng_u32(1, RNG_STREAM_TEST, draws++) % 8 == 0;
            rank[r].heeds_cancel = rng_u32(1, RNG_STREAM_TEST, draws++) % 2 == 0;
            atomic_store(&rank[r].hold, (int)(rng_u32(1, RNG_STREAM_TEST, draws++) % 2));
            fails = fails || rank[r].fails_to_write;
        }
        rank[0].fails_to_commit = rng_u32(1, RNG_STREAM_TEST, draws++) % 4 == 0;
        begin_all(rank);
        SaverEvent event = SAVER_NOTHING;
        double until = now_seconds() + 20;
        while (event == SAVER_NOTHING && now_seconds() < until) {
            usleep(100);  // the jobs' threads have the lowest priority
            uint32_t released = rng_u32(1, RNG_STREAM_TEST, draws++) % (4 * RANKS);
            if (released < RANKS) atomic_store(&rank[released].hold, 0);
            event = vote(rank);
        }
        assert_int_equal(event, fails || rank[0].fails_to_commit ? SAVER_FAILED : SAVER_COMMITTED);
        assert_int_equal(rank[0].commits, !fails);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_write_then_one_commits), cmocka_unit_test(test_the_slowest_is_waited_for),
        cmocka_unit_test(test_one_fails), cmocka_unit_test(test_the_cancelled_have_no_reason),
        cmocka_unit_test(test_the_commit_fails), cmocka_unit_test(test_one_cannot_begin),
        cmocka_unit_test(test_the_thread_steps_back), cmocka_unit_test(test_abandon),
        cmocka_unit_test(test_any_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
