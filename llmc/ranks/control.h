// control.h: what the ranks of a launch tell each other besides tensors: the few numbers that every step agrees on, who
// is alive, and why the run ends. Rank and world are the launch's here, whatever axes its mesh has. Rank 0 keeps a hub
// (a thread with one TCP connection to each rank, itself included); every rank has a thread that keeps the hub informed.
// Tensors travel by comm.h, which knows nothing of this file; the hub learns through the probe what each rank's
// collectives wait for.
//
// The hub watches. A rank ends the run for all when it
//   * loses its connection without having said goodbye (killed, crashed): named at once;
//   * says nothing for timeout_seconds (stopped, machine gone);
//   * has not reached the collective that others have been waiting in for timeout_seconds (hung);
//   * calls another collective than the others at the same place (a programmer's mistake, or mixed versions);
//   * calls control_abort.
// Everybody then prints one line that names rank, host, pid, the collective and its sequence number, e.g.
//   rank 0: rank 2 (node3, pid 4711) is missing from "reduce block.3" #1234 at step 57: silent for 30 s; ...
// and the process exits with status 1 (_exit: nothing that could wait for the dead is run), so that the launcher can
// start the run again.
#ifndef LLMC_CONTROL_H
#define LLMC_CONTROL_H

#include "llmc/ranks/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Control Control;  // NULL for a single process: every function below then does what one rank would

typedef struct {
    double timeout_seconds;  // of silence and of waiting; also of the first meeting
    // Hands bytes of rank 0 to all, where the launcher has a means of its own (MPI); else NULL and the launch's
    // address or directory is used.
    bool (*share)(void *context, void *bytes, size_t count, Error *err);
    void *share_context;
} ControlOptions;

// Connects. launch->rank and world must be known by now. Rank 0 listens: at the launch's port, or anywhere and says
// where through `share` or a file in the launch's directory. A connection counts only when it proves to belong to
// this very start: the hub draws a nonce, which share, the file or the first hello hands over; a hub that is complete
// refuses others and says since when it runs, a file whose hub does not answer with its nonce is stale and the
// newcomer waits for a new one. Errors: who did not come within the time (ranks, and of those that came: hosts), two
// processes of one rank, another WORLD_SIZE, a port in use.
bool control_open(Control **out, const Launch *launch, const ControlOptions *options, Error *err);
// Says goodbye and waits until all have, so that leaving is never taken for dying; a rank that does not say it within
// timeout_seconds of another is missing, as from a collective. After control_abort: at once.
void control_close(Control *control);

// Collectives on small data; every rank calls the same ones in the same order, from one thread. `what` names the call
// in messages (at most 47 characters). When the run is ended by the watcher they do not return: the process exits
// while they wait; false: this rank has called control_abort. World 1: true at once.
//
// In place: sum[i] over all ranks, combined in one fixed binary tree over ranks ((0+1)+(2+3))+..., so that the result
// does not depend on who came first; max[i] over all ranks (not a number if any is). Every rank gets the same bits.
bool control_reduce(Control *control, const char *what, double *sum, int sums, double *max, int maxes);
// bytes of rank 0 to all.
bool control_broadcast(Control *control, const char *what, void *bytes, size_t count);
// all (world * count): what every rank brought, in rank order.
bool control_gather(Control *control, const char *what, void *all, const void *mine, size_t count);

// For messages: the step that this rank is in.
void control_set_step(Control *control, int64_t step);
// What the tensor collectives of this rank are doing; called from control's thread, a few times a second; it must not
// block. NULL takes the probe away: no call of it is in progress any more when this returns.
typedef struct {
    int64_t sequence;        // how many were begun; 0: none
    char what[48];           // the one in progress or the last one
    double waiting_seconds;  // how long that one has been in progress; < 0: none is
} ControlStatus;
void control_set_probe(Control *control, void (*probe)(void *context, ControlStatus *out), void *context);

// Tells everybody why this rank is leaving; they print it and exit with status 1. Returns when the hub has it (or
// after two seconds); the caller then prints its own message and exits.
void control_abort(Control *control, const char *why);

// "rank 2 (node3, pid 4711)"
void control_describe_rank(const Control *control, int rank, char *out, size_t out_bytes);

#ifdef __cplusplus
}
#endif
#endif
