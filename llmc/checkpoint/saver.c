// saver.c: see saver.h.
#include "llmc/checkpoint/saver.h"

#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { WORK_NONE, WORK_RUNNING, WORK_DONE, WORK_FAILED };
#define WAIT_POLL_SECONDS 0.002
#define LOWEST_NICE 19

void saver_init(Saver *saver, const SaverJobs *jobs, bool async, bool commits) {
    *saver = (Saver){.jobs = *jobs, .async = async, .commits = commits};
    atomic_init(&saver->work, WORK_NONE);
    atomic_init(&saver->cancelled, false);
}

// Lowers this thread's CPU and I/O priority below training's. Failure is ignored.
static void step_back(void) {
    enum { IOPRIO_WHO_PROCESS = 1, BEST_EFFORT_LOWEST = 2 << 13 | 7 };
    pid_t thread = (pid_t)syscall(SYS_gettid);
    if (setpriority(PRIO_PROCESS, (id_t)thread, LOWEST_NICE) != 0) return;
    (void)!syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, thread, BEST_EFFORT_LOWEST);
}

static void do_work(Saver *saver) {
    bool ok = saver->running(saver->jobs.context, &saver->error);
    atomic_store(&saver->work, ok ? WORK_DONE : WORK_FAILED);
}

static void *thread_main(void *context) {
    step_back();
    do_work(context);
    return NULL;
}

static void start(Saver *saver, bool (*job)(void *context, Error *err)) {
    saver->running = job;
    saver->error.message[0] = '\0';
    atomic_store(&saver->work, WORK_RUNNING);
    if (!saver->async) {
        do_work(saver);
        return;
    }
    sigset_t all, before;
    sigfillset(&all);
    CHECK(pthread_sigmask(SIG_SETMASK, &all, &before) == 0, "signals cannot be blocked");
    int reason = pthread_create(&saver->thread, NULL, thread_main, saver);
    CHECK(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0, "signals cannot be unblocked");
    saver->has_thread = reason == 0;
    if (reason == 0) return;
    error_set(&saver->error, "the writing thread cannot be started: %s", strerror(reason));
    atomic_store(&saver->work, WORK_FAILED);
}

static void join(Saver *saver) {
    if (saver->has_thread) CHECK(pthread_join(saver->thread, NULL) == 0, "a thread cannot be joined");
    saver->has_thread = false;
}

void saver_begin(Saver *saver) {
    CHECK(saver->phase == SAVER_IDLE, "phase=%d", (int)saver->phase);
    saver->phase = SAVER_WRITING;
    atomic_store(&saver->cancelled, false);
    start(saver, saver->jobs.write);
}

void saver_begin_failed(Saver *saver, const Error *why) {
    CHECK(saver->phase == SAVER_IDLE, "phase=%d", (int)saver->phase);
    saver->phase = SAVER_WRITING;
    atomic_store(&saver->cancelled, false);
    saver->error = *why;
    atomic_store(&saver->work, WORK_FAILED);
}

void saver_vote(const Saver *saver, double votes[SAVER_VOTES]) {
    int work = atomic_load(&saver->work);
    votes[SAVER_VOTE_BUSY] = work == WORK_RUNNING;
    votes[SAVER_VOTE_FAILED] = work == WORK_FAILED;
}

SaverEvent saver_step(Saver *saver, const double votes[SAVER_VOTES]) {
    if (saver->phase == SAVER_IDLE) return SAVER_NOTHING;
    bool busy = votes[SAVER_VOTE_BUSY] > 0, failed = votes[SAVER_VOTE_FAILED] > 0;
    if (failed) atomic_store(&saver->cancelled, true);
    if (busy) return SAVER_NOTHING;
    join(saver);
    if (!failed && saver->phase == SAVER_WRITING) {
        saver->phase = SAVER_COMMITTING;
        if (saver->commits) start(saver, saver->jobs.commit);
        else atomic_store(&saver->work, WORK_NONE);
        return SAVER_NOTHING;
    }
    if (atomic_load(&saver->work) != WORK_FAILED) saver->error.message[0] = '\0';
    atomic_store(&saver->work, WORK_NONE);
    saver->phase = SAVER_IDLE;
    return failed ? SAVER_FAILED : SAVER_COMMITTED;
}

void saver_wait(Saver *saver, double seconds) {
    double until = now_seconds() + seconds;
    while (atomic_load(&saver->work) == WORK_RUNNING && now_seconds() < until) {
        const struct timespec pause = {0, (long)(WAIT_POLL_SECONDS * 1e9)};
        nanosleep(&pause, NULL);
    }
}

void saver_abandon(Saver *saver) {
    if (saver->phase == SAVER_IDLE) return;
    atomic_store(&saver->cancelled, true);
    join(saver);
    atomic_store(&saver->work, WORK_NONE);
    saver->phase = SAVER_IDLE;
}
