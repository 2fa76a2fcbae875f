// control.h: the host-side connection of the ranks of a launch: small collectives (the few numbers that a step agrees on),
// liveness, and the reason why a run ends. Rank and world are the launch's here, whatever axes its mesh has. Rank 0 runs a
// hub (a thread with one TCP connection to each rank, its own included); every rank has a thread that reports to the hub.
// Must not know tensors, which comm.h sends: a probe tells the hub which tensor collective a rank is waiting in.
//
// The hub ends the run for all ranks when one rank
//   * loses its connection without a goodbye (killed, crashed): reported at once;
//   * sends nothing for timeout_seconds (stopped, machine gone);
//   * has not reached a collective in which other ranks have been waiting for timeout_seconds (hung);
//   * calls a different collective than the other ranks at the same place (a programming error, or mixed versions);
//   * calls control_abort.
// Every rank then prints one line that names rank, host, pid, the collective and its sequence number, e.g.
//   rank 0: rank 2 (node3, pid 4711) is missing from "reduce block.3" #1234 at step 57: silent for 30 s; ...
// and its process exits with status 1 (_exit: no code runs that could wait for a dead rank), so that the launcher can
// restart the run.
#ifndef LLMC_CONTROL_H
#define LLMC_CONTROL_H

#include "llmc/ranks/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Control Control;  // NULL for a single process: the functions below then work as for world 1

typedef struct {
    double timeout_seconds;  // for silence and for waiting; also for the ranks to connect
    // Broadcasts bytes of rank 0 to all ranks, if the launcher can (MPI); NULL: the launch's address or directory is used.
    bool (*share)(void *context, void *bytes, size_t count, Error *err);
    void *share_context;
} ControlOptions;

// Connects. launch->rank and world must be set. Rank 0 listens at the launch's port, or at any free port that it
// announces through `share` or a file in the launch's directory. A nonce tells starts apart: the hub draws it, and
// `share`, the file or the welcome passes it on. A hub whose ranks have all connected refuses further connections and
// says since when it runs. A file whose hub does not answer with the file's nonce is stale; the rank waits for a new one.
// Errors: ranks that did not connect in time (and the hosts of those that did), two processes with one rank, a
// different WORLD_SIZE, a port in use.
bool control_open(Control **out, const Launch *launch, const ControlOptions *options, Error *err);
// Says goodbye and waits until all ranks have, so that an exit is never taken for a crash. A rank that does not within
// timeout_seconds of another is missing, as from a collective. After control_abort: returns at once.
void control_close(Control *control);

// Collectives on small data; every rank calls the same ones in the same order, from one thread. `what` names the call
// in messages (at most 47 characters). When the hub ends the run they do not return: the process exits while they
// wait. False: this rank has called control_abort. World 1: true at once.
//
// In place: sum[i] = sum over all ranks, in one fixed binary tree over ranks ((0+1)+(2+3))+..., so that the result does
// not depend on the order of arrival; max[i] = maximum over all ranks (NaN if any is NaN). Every rank gets the same bits.
bool control_reduce(Control *control, const char *what, double *sum, int sums, double *max, int maxes);
// bytes (count) = rank 0's.
bool control_broadcast(Control *control, const char *what, void *bytes, size_t count);
// all (world * count) = `mine` (count) of every rank, in rank order.
bool control_gather(Control *control, const char *what, void *all, const void *mine, size_t count);

// The current step of this rank, for messages.
void control_set_step(Control *control, int64_t step);
// The probe reports the state of this rank's tensor collectives. It is called from control's thread a few times a second
// and must not block. NULL removes it: no call of it is in progress when this returns.
typedef struct {
    int64_t sequence;        // number of collectives begun; 0: none
    char what[48];           // the one in progress or the last one
    double waiting_seconds;  // how long the current one has been in progress; < 0: none is
} ControlStatus;
void control_set_probe(Control *control, void (*probe)(void *context, ControlStatus *out), void *context);

// Ends the run for all ranks: they print this rank's reason and exit with status 1. Returns when the hub has received
// it (or after two seconds); the caller then prints its own message and exits.
void control_abort(Control *control, const char *why);

// "rank 2 (node3, pid 4711)"
void control_describe_rank(const Control *control, int rank, char *out, size_t out_bytes);

#ifdef __cplusplus
}
#endif
#endif
