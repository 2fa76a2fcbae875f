// run_impl.h: between the files of a run (llmc/run/run*.c): what the ranks settle among themselves, what a config leaves
// open, and what steps take. The program and the commands see run.h only.
#ifndef LLMC_RUN_IMPL_H
#define LLMC_RUN_IMPL_H

#include "llmc/run/run.h"

// ---- run_ranks.c, in the order of opening ----

// Who this process is among all that were launched, and a line to the others (control).
bool run_open_ranks(Run *run, Error *err);
// Error on every rank unless all were started with the same options: they would train on, each to its own mind.
// Collective.
bool run_same_config(const Run *run, Error *err);
// The mesh, without its groups. Errors: an axis that training cannot use, what deterministic=lanes forbids.
bool run_open_mesh(Run *run, Error *err);
// Threads of this rank where the config leaves them open; 0: what the machine has.
int run_threads_of_rank(const Run *run);
// From now on control watches what the mesh's groups wait for.
void run_watch_comm(Run *run);
// True when `ok` is true on every rank. Else err says, on the lowest rank that failed, why, and is empty elsewhere: one
// message is printed. Collective.
bool run_agree(Run *run, const char *what, bool ok, Error *err);
// The checkpoint to go on from, "" for none: rank 0 looks, all hear of it. resume: as the option. Collective.
bool run_choose_checkpoint(Run *run, const char *resume, char *out, size_t out_bytes, Error *err);

// ---- run_resolve.c ----

// Learned positions end at max_seq_len; rotary ones do not.
bool run_check_lengths(const RunConfig *config, const Schedule *schedule, Error *err);
// fp8 wants rows of whole 16 elements, and a device that has 8-bit products.
bool run_check_fp8(const RunConfig *config, const Backend *be, Error *err);

// ---- run_step.c ----

// What reading results and agreeing takes.
bool run_open_steps(Run *run, Error *err);
void run_close_steps(Run *run);
#endif
