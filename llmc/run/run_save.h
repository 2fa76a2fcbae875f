// run_save.h: a run's checkpoints, written by all ranks while training continues. run_save (run.h) copies the state and
// begins; the ranks vote once a step; when every rank has written its files, rank 0 commits. run_save_poll is collective.
// A failure on any rank (disk full, directory removed) ends this checkpoint on all ranks with one message; earlier
// checkpoints stay as they are, and config.on_save_error decides whether the run continues.
#ifndef LLMC_RUN_SAVE_H
#define LLMC_RUN_SAVE_H

#include "llmc/run/run.h"
#include "llmc/checkpoint/saver.h"

// Allocates the host memory for copies if async_save is set. Local; after the model is laid out.
bool run_save_open(Run *run, Error *err);
// A run of one rank first finishes writing; with several ranks, call run_save_finish before.
void run_save_close(Run *run);

// Call after a step has been issued: waits for the copy that began before it, then begins to write. The device computes
// that step's passes meanwhile; its update waits for the copy anyway.
void run_save_copied(Run *run);
// votes: this rank's contribution to the agreement of a step; poll acts on their maxima over all ranks. False: a
// checkpoint failed and the run must end.
void run_save_vote(const Run *run, double votes[SAVER_VOTES]);
bool run_save_poll(Run *run, const double votes[SAVER_VOTES], Error *err);

#endif
