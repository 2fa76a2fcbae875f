// zero.h: ZeRO data parallelism: reduces buckets of gradients during the backward pass and gathers weights ahead of their
// use; partition.h says which rank owns what. Registers in the model's hooks. With one rank and deterministic=run it does
// nothing. Must not know: the transport (comm.h), the optimizer, files.
//
//   stage 0, 1   gradients accumulate locally over the micro-batches; in the last one each bucket is reduced as soon as
//                its gradient is complete: to all ranks (0) or to its owners (1)
//   stage 2      each block's gradient is reduced to its owners, +=, in every micro-batch; two block buffers alternate
//   stage 3      in addition weights are gathered one block ahead, in the forward and again in the backward pass, into two
//                block buffers; the buckets outside the blocks stay whole from the forward pass to the update
//   stage 1, 2   updated weights are gathered bucket by bucket, overlapped with the following operations; the next forward
//                pass waits for each bucket just before it reads it
//   lanes        each lane (model.h) has its own gradient. Lanes are added in one fixed binary tree: over the ranks, then
//                over the micro-batches, as a binary counter carries
#ifndef LLMC_ZERO_H
#define LLMC_ZERO_H

#include "llmc/model/model.h"
#include "llmc/ranks/comm.h"

typedef struct {
    Model *model;
    Comm *comm;
    DType wire;
    int64_t micro_batch;        // the current one
    int64_t micro_batches;      // of the step, on each rank
    CommEvent *reduced;         // [buckets] of the last reduction of each bucket
    CommEvent *gathered;        // [buckets] of the last gather of each bucket's weights
    CommEvent slot_reduced[2];  // stage 2 and 3: of the last reduction from each block buffer of gradients
    int64_t *lane_first;        // [buckets] offset of a bucket's segments in the sums of lanes
    int slot_bucket[2];         // stage 3: the bucket whose weights each block buffer holds; -1: none
    bool outside_gathered[2];   // stage 3: bucket 0, the last bucket
} Zero;

// comm: the group of the data axis. model: initialised on a real arena for that rank and world (ModelShape.ranks). wire:
// config.reduce_dtype.
void zero_init(Zero *zero, Model *model, Comm *comm, DType wire);
void zero_free(Zero *zero);

// Call at the beginning of a step, with its micro-batches on each rank, and of each micro-batch, counted from 0.
void zero_begin_step(Zero *zero, int64_t micro_batches);
void zero_begin_micro_batch(Zero *zero, int64_t micro_batch);
// Call after the last backward pass: makes the gradients that the optimizer reads (model_grad) and the loss sums sums over
// all ranks.
void zero_finish_gradients(Zero *zero);
// Call after the update: starts to send the new weights to the ranks that need them.
void zero_send_weights(Zero *zero);
// Makes the weights of a bucket whole on this rank for the operations issued next, until another bucket of the same kind
// is gathered (stage 3: collective, in the same order on every rank). For checkpoints and comparisons.
void zero_gather_weights(Zero *zero, int bucket);
// sums (partition.segments) fp64 = sums of squares of the gradient's segments, with the same bits on every rank. Stage 0
// without lanes: sums (1) = that of the whole gradient. After zero_finish_gradients.
void zero_sum_squares(Zero *zero, Tensor sums);
#endif
