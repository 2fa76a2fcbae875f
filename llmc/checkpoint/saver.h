// saver.h: who writes when, of a checkpoint that several ranks write beside training: a small machine that every rank
// has one of, and that moves only by what all ranks have voted on. Knows nothing of files, models or transports: jobs
// are functions, votes are numbers. Driven by run_save.c.
//
//   idle --begin--> writing --everybody done--> committing (rank 0) --done--> idle: committed
//                      \----------- somebody failed, nobody is at work any more -----------> idle: failed
//
// The phase is the same on all ranks between two votes. Jobs run on a thread of lowest priority with all signals
// blocked, or, without async, inside the call that starts them.
#ifndef LLMC_SAVER_H
#define LLMC_SAVER_H

#include <pthread.h>
#include <stdatomic.h>

#include "llmc/base/common.h"

typedef enum { SAVER_IDLE, SAVER_WRITING, SAVER_COMMITTING } SaverPhase;
typedef enum { SAVER_NOTHING, SAVER_COMMITTED, SAVER_FAILED } SaverEvent;
// What a rank brings to the vote; what counts is the largest over all ranks.
enum { SAVER_VOTE_BUSY, SAVER_VOTE_FAILED, SAVER_VOTES };

typedef struct {
    bool (*write)(void *context, Error *err);   // on every rank
    bool (*commit)(void *context, Error *err);  // on rank 0, when all have written
    void *context;
} SaverJobs;

typedef struct {
    SaverJobs jobs;
    bool async, commits;  // commits: this is rank 0
    SaverPhase phase;
    pthread_t thread;
    bool has_thread;
    atomic_int work;        // of this rank: WORK_* of saver.c
    atomic_bool cancelled;  // somebody failed: a job that looks at it may stop early
    bool (*running)(void *context, Error *err);
    Error error;  // of this rank's job that failed
} Saver;

void saver_init(Saver *saver, const SaverJobs *jobs, bool async, bool commits);
// When idle: starts writing.
void saver_begin(Saver *saver);
// When idle: this rank cannot even begin; it votes as one whose writing failed, with this reason.
void saver_begin_failed(Saver *saver, const Error *why);
void saver_vote(const Saver *saver, double votes[SAVER_VOTES]);
// votes: the largest of all ranks. Tells what has come to its end; after SAVER_FAILED, `error` says why on ranks
// whose own job failed and is empty on the others.
SaverEvent saver_step(Saver *saver, const double votes[SAVER_VOTES]);
// Waits until this rank's job is done, at most so long.
void saver_wait(Saver *saver, double seconds);
// Waits for this rank's job without a limit; afterwards the machine is idle, whatever the others do.
void saver_abandon(Saver *saver);

#endif
