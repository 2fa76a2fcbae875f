// saver.h: a state machine for a checkpoint that several ranks write during training. Every rank has one; it changes its
// phase only by votes of all ranks. Jobs are functions, votes are numbers.
// Must not know: files, models, communication.
//
//   idle --begin--> writing --all ranks done--> committing (rank 0) --done--> idle: committed
//                      \----------- a rank failed, and all jobs have ended -----------> idle: failed
//
// Between two votes the phase is the same on all ranks. Jobs run on a thread of lowest priority with all signals
// blocked, or, without async, inside the call that starts them.
#ifndef LLMC_SAVER_H
#define LLMC_SAVER_H

#include <pthread.h>
#include <stdatomic.h>

#include "llmc/base/common.h"

typedef enum { SAVER_IDLE, SAVER_WRITING, SAVER_COMMITTING } SaverPhase;
typedef enum { SAVER_NOTHING, SAVER_COMMITTED, SAVER_FAILED } SaverEvent;
// Each rank's votes; the result is the maximum over all ranks.
enum { SAVER_VOTE_BUSY, SAVER_VOTE_FAILED, SAVER_VOTES };

typedef struct {
    bool (*write)(void *context, Error *err);   // on every rank
    bool (*commit)(void *context, Error *err);  // on rank 0, after all ranks have written
    void *context;
} SaverJobs;

typedef struct {
    SaverJobs jobs;
    bool async, commits;  // commits: this is rank 0
    SaverPhase phase;
    pthread_t thread;
    bool has_thread;
    atomic_int work;        // of this rank: WORK_* of saver.c
    atomic_bool cancelled;  // a rank failed: a job may check it and stop early
    bool (*running)(void *context, Error *err);
    Error error;  // of this rank's job that failed
} Saver;

void saver_init(Saver *saver, const SaverJobs *jobs, bool async, bool commits);
// Starts writing. The phase must be idle.
void saver_begin(Saver *saver);
// The same for a rank that cannot begin: it votes as if its job had failed for the reason `why`.
void saver_begin_failed(Saver *saver, const Error *why);
// votes = this rank's.
void saver_vote(const Saver *saver, double votes[SAVER_VOTES]);
// votes: the maximum over all ranks. Returns what has ended. After SAVER_FAILED, saver->error gives the reason on ranks
// whose own job failed; it is empty on the others.
SaverEvent saver_step(Saver *saver, const double votes[SAVER_VOTES]);
// Waits until this rank's job is done, at most `seconds`.
void saver_wait(Saver *saver, double seconds);
// Cancels this rank's job and waits for it without a limit; then the phase is idle, whatever that of the other ranks is.
void saver_abandon(Saver *saver);

#endif
