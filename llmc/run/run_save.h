// run_save.h: a run's checkpoints, written by all its ranks beside training. run_save (run.h) copies what is to be
// saved and begins; the loop votes once a step; when every rank has written its files, rank 0 commits. Every function
// here but vote is called by all ranks alike. A failure on any rank (disk full, a directory that vanished) ends this
// checkpoint for all, with one message, and leaves the ones before as they are; config.on_save_error says whether the
// run goes on.
#ifndef LLMC_RUN_SAVE_H
#define LLMC_RUN_SAVE_H

#include "llmc/run/run.h"
#include "llmc/checkpoint/saver.h"

// Takes the memory for copies, if the run is to have one. Local; after the model is laid out.
bool run_save_open(Run *run, Error *err);
// A run of one rank first finishes what it was writing; of several, that is run_save_finish's, called before.
void run_save_close(Run *run);

// After a step has been issued: waits for the copy that was begun before it, and begins to write. The device has that
// step's passes to compute meanwhile, and its update waits for the copy anyway.
void run_save_copied(Run *run);
// What this rank brings to the step's agreement, and what comes of the largest over all ranks. False: a checkpoint
// failed, and the run is to end for it.
void run_save_vote(const Run *run, double votes[SAVER_VOTES]);
bool run_save_poll(Run *run, const double votes[SAVER_VOTES], Error *err);

#endif
