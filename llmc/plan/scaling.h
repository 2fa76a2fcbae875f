// scaling.h: what a run would take on other ranks than there are: bytes of a rank and seconds of a step, predicted
// from the model's shape, the partition of its parameters (partition.h) and the description of a machine (machine.h).
// `train_gpt plan world=N` prints it. No devices, nothing allocated for training.
//
// Time: the operations of a step are counted (work.h); each costs its floating-point work at the share of the peak that
// large ones reach, and its bytes at the memory's bandwidth, one after the other. The step is then played through: one line of computation, one of
// collectives in the order in which zero.c issues them; what a computation waits for is exposed, the rest hidden.
#ifndef LLMC_SCALING_H
#define LLMC_SCALING_H

#include <stdio.h>

#include "llmc/config/config.h"
#include "llmc/plan/machine.h"

// What is trained, and how; of a run's first phase.
typedef struct {
    ModelConfig arch;
    DType dtype;
    bool master_weights, fp8;
    Recompute recompute;
    OptimizerKind optimizer;
    int64_t muon_steps;
    int zero;
    bool lanes;
    DType reduce_dtype;
    int64_t T, B;             // row length; rows of a micro-batch at most
    int64_t batch_tokens;     // of a step, over all ranks
    int64_t loss_chunk_rows;  // as the config has it; 0: chosen as plan.h does
    // On paper (docs/scaling.md); training has neither.
    int64_t tensor;   // ranks of a node that share every block's matrices and the vocabulary
    int64_t context;  // ranks that share every row
} ScalingJob;
void scaling_job_from_config(ScalingJob *out, const RunConfig *config);

// Of the rank that has most.
typedef struct {
    double weights, gathered, masters, gradients, moments, scratch, activations, logits, cache, total;
} ScalingBytes;

typedef struct {
    int64_t world, nodes;  // of the launch: the product of the axes
    int64_t B, micro_batches, batch_tokens;  // at this world: B shrinks, then the batch grows to a row each
    ScalingBytes bytes;
    bool fits;               // with what driver and libraries take
    double compute_seconds;  // forward and backward passes of a step, nothing beside them
    double exposed_seconds;  // that they last longer because of collectives
    double comm_seconds;     // that collectives are in progress
    double comm_bytes;       // that a rank sends
    double update_seconds;
    double agree_seconds;    // losses, norm, and what of the hub's time is not hidden
    double hub_seconds;      // in which rank 0's hub serves everybody's vote on a step
    double step_seconds;     // the sum of compute, exposed, update and agree
    double tokens_per_second, mfu;
} ScalingPrediction;

// world: of the launch. Errors: deterministic=lanes with a world that cannot have it; tensor or context that do not divide what they
// should.
bool scaling_predict(ScalingPrediction *out, const ScalingJob *job, const Machine *machine, int64_t world,
                     Error *err);

// ---- for `train_gpt plan` ----
#define SCALING_MAX_WORLD 65536
typedef struct {
    int64_t world;   // of the launch; 0: not asked for
    char gpu[16];    // "": h100
    int64_t gpus_per_node;                        // 0, and 0 in what follows: as the machine has it
    double network_gbits, network_latency_us;     // of a rank and direction
    double node_gbytes, node_latency_us;
    double memory_gib, memory_gbytes, mfu;
    int64_t tensor, context;
} ScalingOptions;
// Takes "key=value" words of the options above out of argv. Errors name the key, expected and found.
bool scaling_take_options(ScalingOptions *out, int *argc, char **argv, Error *err);
void scaling_options_help(FILE *out);
// The machine as the options change it.
bool scaling_machine(Machine *out, const ScalingOptions *options, const RunConfig *config, Error *err);
// A table for 1, 2, 4, ... world ranks, what it assumes, and the bytes of a rank at the end.
bool scaling_print(FILE *out, const RunConfig *config, const ScalingOptions *options, Error *err);
#endif
