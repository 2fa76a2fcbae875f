// scaling.h: predicts a run on other machines: bytes of a rank and seconds of a step, from the model's shape, the partition
// of its parameters (partition.h) and the description of a machine (machine.h). `train_gpt plan world=N` prints it.
// Must not know: real devices, the training loop.
//
// Time: the operations of a step are counted (work.h). Each costs its FLOPs at the share of the peak that large operations
// reach, plus its bytes at the memory's bandwidth. The step is then simulated with two streams, one of computation and one
// of collectives in the order in which zero.c issues them. Time for which the computation waits is exposed, the rest hidden.
#ifndef LLMC_SCALING_H
#define LLMC_SCALING_H

#include <stdio.h>

#include "llmc/config/config.h"
#include "llmc/plan/machine.h"

// The model and how it is trained; the first phase of a run.
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
    int64_t T, B;             // row length; most rows of a micro-batch
    int64_t batch_tokens;     // of a step, over all ranks
    int64_t loss_chunk_rows;  // of the config; 0: chosen as in plan.h
    // Only predicted (docs/scaling.md); training has neither.
    int64_t tensor;   // ranks of a node that share every block's matrices and the vocabulary
    int64_t context;  // ranks that share every row
} ScalingJob;
void scaling_job_from_config(ScalingJob *out, const RunConfig *config);

// Bytes of the fullest rank.
typedef struct {
    double weights, gathered, masters, gradients, moments, scratch, activations, logits, cache, total;
} ScalingBytes;

typedef struct {
    int64_t world, nodes;  // of the launch: the product of the axes
    int64_t B, micro_batches, batch_tokens;  // at this world: B shrinks, then the batch grows to a row each
    ScalingBytes bytes;
    bool fits;               // including memory of driver and libraries
    double compute_seconds;  // forward and backward passes of a step without communication
    double exposed_seconds;  // time that collectives add to them
    double comm_seconds;     // time in which collectives are in progress
    double comm_bytes;       // sent by a rank
    double update_seconds;
    double agree_seconds;    // losses, norm, and the part of the hub's time that is not hidden
    double hub_seconds;      // in which rank 0's hub serves all ranks' votes on a step
    double step_seconds;     // the sum of compute, exposed, update and agree
    double tokens_per_second, mfu;
} ScalingPrediction;

// world: of the launch, up to SCALING_MAX_WORLD. Errors: deterministic=lanes with a world size that partition_check
// rejects; tensor or context that does not divide the heads, rows or ranks.
bool scaling_predict(ScalingPrediction *out, const ScalingJob *job, const Machine *machine, int64_t world,
                     Error *err);

// ---- for `train_gpt plan` ----
#define SCALING_MAX_WORLD 65536
typedef struct {
    int64_t world;   // of the launch; 0: no prediction
    char gpu[16];    // "": h100
    int64_t gpus_per_node;                        // 0, here and below: the machine's own figure
    double network_gbits, network_latency_us;     // of a rank and direction
    double node_gbytes, node_latency_us;
    double memory_gib, memory_gbytes, mfu;
    int64_t tensor, context;
} ScalingOptions;
// Removes "key=value" words of these options from argv. Errors name the key, what was expected and what was found.
bool scaling_take_options(ScalingOptions *out, int *argc, char **argv, Error *err);
void scaling_options_help(FILE *out);
// The machine, changed by the options.
bool scaling_machine(Machine *out, const ScalingOptions *options, const RunConfig *config, Error *err);
// Prints the assumptions, a row for each of 1, 2, 4, ... world ranks, and the bytes of the fullest rank.
bool scaling_print(FILE *out, const RunConfig *config, const ScalingOptions *options, Error *err);
#endif
