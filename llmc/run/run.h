// run.h: the entry of llmc/run: a training run with all its parts (ranks, device, memory, model, data, logs), what happens
// around a step (agreement of the ranks, results, evaluation, samples) and its checkpoints. Parts are opened in an order
// that finds user mistakes before the expensive work. Must not know the loop (train_gpt.cu), commands or a backend's
// kernels. Beside it: device.h opens a backend, open_model.h a model without a run.
#ifndef LLMC_RUN_H
#define LLMC_RUN_H

#include "llmc/checkpoint/checkpoint.h"
#include "llmc/checkpoint/state_file.h"
#include "llmc/eval/eval.h"
#include "llmc/eval/sample.h"
#include "llmc/loader/heldout.h"
#include "llmc/loader/loader.h"
#include "llmc/log/logger.h"
#include "llmc/plan/plan.h"
#include "llmc/ranks/mesh.h"
#include "llmc/run/device.h"
#include "llmc/run/run_lock.h"
#include "llmc/train/hash_chain.h"
#include "llmc/train/zero.h"

// Results of a step on the device, read back while later steps run.
typedef struct {
    GradStats stats;
    double loss_sums[];  // [micro_batches], each over all ranks
} StepResult;
// A step that was issued and whose result has not been read yet. The device computes while the host prepares the next
// step: results are read one step late, so that neither waits for the other.
#define RUN_PENDING_STEPS 2
typedef struct {
    int64_t step;       // 1 for the first
    int64_t micro_batches;
    double started;     // now_seconds() when the host began to issue it
    double loss_scale;  // 1 / sum of weights
    double lr, data_wait_ms;
    double skip_norm, skip_loss;  // its bounds for skipping the update
    double finished;              // now_seconds() when its result arrived; 0: not yet
    CommStats comm;               // the group's totals at that time
    StepResult *host;  // host_alloc memory
    Ticket read;
} PendingStep;

typedef struct {
    RunConfig config;
    Schedule schedule;
    Launch launch;        // this process's rank and world; rank 0 writes the logs and makes the common decisions
    int local_world;      // ranks on this host
    CommMpiPlugin mpi;
    Control *control;
    Mesh mesh;            // this rank's coordinates, and the groups of ranks that communicate
    RunLock lock;         // held by rank 0
    Backend *be;
    char device_note[DEVICE_NOTE_BYTES];  // why device=auto uses the CPU; "": it does not
    double peak_flops;                 // of the matmul dtype
    double flops_per_token[CONFIG_MAX_PHASES];  // of each phase's row length
    MemoryPlan plan;
    Arena arena;
    Model model;
    Optimizer optimizer;
    Zero zero;
    HashChain chain;
    Tokenizer *tokenizer;  // NULL: not found; then there are no bits per byte and no samples
    struct RunSave *save;  // run_save.c
    Loader *loader;
    HeldOut *heldout[CONFIG_MAX_SOURCES];
    Logger *logger;  // rank 0; NULL on other ranks
    RunProgress progress;
    double resumed_seconds;  // progress.seconds when this process started
    int64_t resumed_step;
    double started;  // now_seconds() when the loop began
    int phase;       // the phase whose trainable mask is set
    const StepBatch *batch;  // of the current step
    double weight_sum;       // of the current batch, over all ranks
    bool has_checkpoint;     // out_dir or resume had one, or this process wrote one: a rewind is possible
    int64_t rewind_because;  // the step with a spike for which run_rewind must be called; 0: none
    bool all_know;           // the ranks agreed that one of them failed: every rank ends without run_abort
    int stop_signal;         // a signal that some rank received; 0: none
    double *vote;            // [1 + micro_batches] summed over the ranks before a step
    PendingStep pending[RUN_PENDING_STEPS];
    int64_t issued, reported;  // steps of this process
    double reported_at;        // now_seconds() of the last report
    CommStats comm_reported;   // the group's totals at that time
    char attention[2][160];    // the last logged lines about the backend's choice of attention kernel
} Run;

// Everything before the first step: schedule, tokenizer, shards (checked), memory (planned, then allocated), weights
// (fresh, imported or resumed), logger. On an error the files of an existing run are unchanged. Print the error before
// run_close, which waits for the other ranks.
bool run_open(Run *run, const RunConfig *config, Error *err);
void run_close(Run *run);

// The tokenizer of a config: option tokenizer, else tokenizer.json of init_from, else the one beside the first source's
// shards, else NULL (no error).
bool run_find_tokenizer(Tokenizer **out, const RunConfig *config, Error *err);
// If the vocabulary is not set, takes it from the tokenizer, the shards or the preset; then model_config_finish.
bool run_resolve_model(RunConfig *config, const Tokenizer *tokenizer, Error *err);

// Whether the schedule has steps left. Sets progress.seconds to the time until this call.
bool run_has_steps(Run *run);
// The ranks' agreement before a step: whether every rank has its batch (run->batch; NULL: this rank could not read it),
// the sum of weights (run->weight_sum), whether any rank received a signal (stop_signal: this rank's, 0: none), and, in
// runs bounded by time, the horizon at the measured speed. Enters the phase (trainable mask). False: the run is over: its
// time is up, run->stop_signal is set, or, with err, some rank could not read its data. Collective.
bool run_begin_step(Run *run, int stop_signal, Error *err);
// Learning rate and bounds of the current step.
OptimizerStep run_optimizer_step(const Run *run, double loss_scale);
// After all operations of the step on run->batch were issued: counts the step and begins to read back its results.
void run_step_issued(Run *run, double started, const OptimizerStep *step);
// After a step, where due: adds a link to the hash chain, compares the replicas. False: a rank's weights differ, or the
// device failed.
bool run_check_step(Run *run, Error *err);
// Logs the steps whose results have arrived and waits until at most may_be_pending have not. False: the device failed (the
// message names the last complete checkpoint), or too many gradients in a row were not finite.
bool run_report_steps(Run *run, int64_t may_be_pending, Error *err);
// Returns to the last complete checkpoint because of a spike (run->rewind_because); the data since then is skipped.
bool run_rewind(Run *run, Error *err);
// Held-out loss of every source that has held-out text, and their mean weighted by tokens, logged.
bool run_evaluate(Run *run, Error *err);
// A continuation of config.sample_prompt, logged.
void run_sample(Run *run);
// Begins to copy the state of the current step and, when the copy is complete, to write it as a checkpoint. Later steps
// vote on it (run_begin_step); when all ranks have written, rank 0 commits it and prunes old ones. With async_save=false
// all of this happens before it returns. on_save_error decides whether an error ends the run.
bool run_save(Run *run, Error *err);
// Call before the weights change: operations issued from now on run after the copy. The host does not wait.
void run_save_before_update(const Run *run);
// Waits until the checkpoint in progress is committed or has failed; required before the run ends.
bool run_save_finish(Run *run, Error *err);

// Reports to the other ranks why this one ends with an error; no effect with one rank.
void run_abort(Run *run, const Error *err);
// Exit status after SIGTERM or SIGUSR1: the run was saved and should be restarted (Slurm: scontrol requeue).
#define RUN_EXIT_REQUEUE 75

// Logs the cost of the ranks' communication and the peak memory of each rank; nothing with one rank.
void run_report_ranks(Run *run);
// Prints the files of the run and commands to try next, on stdout of rank 0.
void run_print_summary(const Run *run);
#endif
