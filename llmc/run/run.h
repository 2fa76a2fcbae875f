// run.h: a training run with everything it needs, opened in the order in which mistakes are cheap, and its state in
// and out of checkpoints. train_gpt's loop drives it; eval, sample and ckpt use the parts that read models.
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

// What a step leaves behind on the device, read back beside the steps that follow.
typedef struct {
    GradStats stats;
    double loss_sums[];  // [micro_batches], each over all ranks
} StepResult;
// A step that was issued and whose result has not been looked at yet. A device computes while the host prepares what
// comes next: its results are read one step late, so that neither waits for the other.
#define RUN_PENDING_STEPS 2
typedef struct {
    int64_t step;       // 1 for the first
    int64_t micro_batches;
    double started;     // now_seconds() when it began to be issued
    double loss_scale;  // 1 / sum of weights
    double lr, data_wait_ms;
    double skip_norm, skip_loss;  // the bounds that it was given
    double finished;              // now_seconds() when its result was there; 0: not known yet
    CommStats comm;               // the group's, then
    StepResult *host;  // host_alloc memory
    Ticket read;
} PendingStep;

typedef struct {
    RunConfig config;
    Schedule schedule;
    Launch launch;        // this process among all; rank 0 keeps the logs and decides what all have to do alike
    int local_world;      // ranks on this host
    CommMpiPlugin mpi;
    Control *control;
    Mesh mesh;            // this rank's place among all, and the groups of ranks that communicate
    RunLock lock;         // rank 0's
    Backend *be;
    char device_note[DEVICE_NOTE_BYTES];  // why device=auto took the CPU; "": it did not
    double peak_flops;                 // of the matmul dtype
    double flops_per_token[CONFIG_MAX_PHASES];  // of each phase's row length
    MemoryPlan plan;
    Arena arena;
    Model model;
    Optimizer optimizer;
    Zero zero;
    HashChain chain;
    Tokenizer *tokenizer;  // NULL when unknown: then no bits per byte, no samples
    struct RunSave *save;  // run_save.c
    Loader *loader;
    HeldOut *heldout[CONFIG_MAX_SOURCES];
    Logger *logger;  // rank 0; elsewhere NULL
    RunProgress progress;
    double resumed_seconds;  // progress when this process began
    int64_t resumed_step;
    double started;  // now_seconds() when the loop began
    int phase;       // whose trainable mask is in force
    const StepBatch *batch;  // of the step at hand
    double weight_sum;       // of it, over all ranks
    bool has_checkpoint;     // out_dir or resume had one, or this process wrote one: there is something to go back to
    int64_t rewind_because;  // a spike in this step: run_rewind is to be called; 0: none was
    bool all_know;           // the ranks agreed that one of them failed: each ends by itself
    int stop_signal;         // that some rank was sent; 0: none
    double *vote;            // [1 + micro_batches] what ranks add up before a step
    PendingStep pending[RUN_PENDING_STEPS];
    int64_t issued, reported;  // steps of this process
    double reported_at;        // now_seconds() of the last report
    CommStats comm_reported;   // the group's, then
    char attention[2][160];    // what was said last of the backend's choice of attention
} Run;

// Everything before the first step: schedule, tokenizer, shards (checked), memory (planned, then taken), weights
// (fresh, imported or resumed), logger. On an error, which is to be printed before run_close (that waits for the
// other ranks), nothing of an existing run was touched.
bool run_open(Run *run, const RunConfig *config, Error *err);
void run_close(Run *run);

// The tokenizer of a config: the option, else tokenizer.json of init_from, else the one beside the first source's
// shards, else NULL (no error).
bool run_find_tokenizer(Tokenizer **out, const RunConfig *config, Error *err);
// The vocabulary, if it was left open, from the tokenizer, the shards or the preset; then model_config_finish.
bool run_resolve_model(RunConfig *config, const Tokenizer *tokenizer, Error *err);

// Whether the schedule has steps left. progress.seconds is the time until this call.
bool run_has_steps(Run *run);
// What all ranks agree on before a step: every rank has its batch (run->batch, NULL: this one could not read it;
// run->weight_sum), none was sent a signal (stop_signal: this rank's, 0: none), and, in runs bounded by time, the horizon
// that the measured speed leads to. Enters the phase (trainable mask). False: the run is over, by its time, by
// run->stop_signal, or, with err, by data that some rank could not read.
bool run_begin_step(Run *run, int stop_signal, Error *err);
// Learning rate and bounds of the step at hand.
OptimizerStep run_optimizer_step(const Run *run, double loss_scale);
// The step of run->batch has been issued as a whole: counts it and begins to read its results back.
void run_step_issued(Run *run, double started, const OptimizerStep *step);
// After a step: its link of the hash chain and the comparison of the replicas, where they are due. False: a rank's
// weights have drifted, or the device failed.
bool run_check_step(Run *run, Error *err);
// Logs the steps whose results are there and waits until at most may_be_pending are not. False: the device failed (the
// message names the last complete checkpoint), or too many gradients in a row were not finite.
bool run_report_steps(Run *run, int64_t may_be_pending, Error *err);
// Back to the last complete checkpoint because of a spike (run->rewind_because); its data is left out from then on.
bool run_rewind(Run *run, Error *err);
// Held-out loss of every source that has held-out text, and their mean weighted by tokens, logged.
bool run_evaluate(Run *run, Error *err);
// A continuation of config.sample_prompt, logged.
void run_sample(Run *run);
// Begins to copy the present step's state and, when the copy is there, to write it as a checkpoint; steps that follow
// vote on it (run_begin_step), and rank 0 commits it and prunes when all ranks have written. With async_save=false: all
// of it now. What on_save_error says decides whether an error ends the run.
bool run_save(Run *run, Error *err);
// Before the weights change: what is issued from now on comes after the copy. The host does not wait.
void run_save_before_update(const Run *run);
// Until nothing is being written any more; before the run ends.
bool run_save_finish(Run *run, Error *err);

// Tells the other ranks why this one ends with an error; nothing in a run of one rank.
void run_abort(Run *run, const Error *err);
// Exit status after SIGTERM or SIGUSR1: the run was saved and wants to be started again (Slurm: scontrol requeue).
#define RUN_EXIT_REQUEUE 75

// What the ranks' communication cost and how much memory each took at most, logged; nothing in a run of one rank.
void run_report_ranks(Run *run);
// What the run left and what to do with it, on stdout of rank 0.
void run_print_summary(const Run *run);
#endif
