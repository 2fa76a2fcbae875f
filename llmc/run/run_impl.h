// run_impl.h: internal interface of the files of a run (llmc/run/run*.c): agreements among the ranks, values that the
// config leaves open, buffers of the steps. The program and the commands include run.h only.
#ifndef LLMC_RUN_IMPL_H
#define LLMC_RUN_IMPL_H

#include "llmc/run/run.h"

// ---- run_ranks.c, in the order of opening ----

// Finds this process's rank and world, and connects the ranks (control).
bool run_open_ranks(Run *run, Error *err);
// Error on every rank unless all were started with the same options: otherwise they would train different runs. Collective.
bool run_same_config(const Run *run, Error *err);
// Sets up the mesh without its groups. Errors: an axis that training does not support, options that exclude
// deterministic=lanes.
bool run_open_mesh(Run *run, Error *err);
// Threads of this rank if the config does not set them; 0: all of the machine.
int run_threads_of_rank(const Run *run);
// From now on the control thread probes the collectives of the mesh's groups.
void run_watch_comm(Run *run);
// True if `ok` is true on every rank. Otherwise err has the message on the lowest rank that failed and is empty on the
// other ranks, so that one message is printed. Collective.
bool run_agree(Run *run, const char *what, bool ok, Error *err);
// The checkpoint to resume from, "" for none: rank 0 searches and broadcasts. resume: as the option. Collective.
bool run_choose_checkpoint(Run *run, const char *resume, char *out, size_t out_bytes, Error *err);

// ---- run_resolve.c ----

// Error if a phase's rows are longer than max_seq_len and positions are learned; rotary positions have no limit.
bool run_check_lengths(const RunConfig *config, const Schedule *schedule, Error *err);
// fp8 requires row lengths that are multiples of 16, and a device with fp8 matmuls.
bool run_check_fp8(const RunConfig *config, const Backend *be, Error *err);

// ---- run_step.c ----

// Allocates the buffers for results and for the agreement before a step.
bool run_open_steps(Run *run, Error *err);
void run_close_steps(Run *run);
#endif
