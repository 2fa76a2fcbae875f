// zero.h: gradients and weights of a model that several ranks train: reduces buckets of gradients while the backward
// pass goes on, gathers weights ahead of their use, and gives every rank its share (partition.h). Hangs itself into the
// model's hooks; the loop calls it at four places of a step. With one rank and deterministic=run there is nothing for it to do.
//
//   stage 0, 1   gradients accumulate locally over the micro-batches; in the last one each bucket is reduced as soon as
//                its gradient is complete: to everybody (0) or to its owners (1)
//   stage 2      each block's gradient is reduced to its owners, +=, in every micro-batch; two block buffers take turns
//   stage 3      and weights are gathered one block ahead, in the forward and again in the backward pass, into two block
//                buffers; the buckets outside the blocks are whole from the forward pass to the update
//   stage 1, 2   updated weights travel bucket by bucket beside what follows; the next forward pass waits for each
//                where it needs it
//   lanes        every micro-batch of every rank is a lane of the step, a gradient of its own: lane = micro-batch * world +
//                rank. Lanes are added in one fixed binary tree: over the ranks, then over the micro-batches, like a
//                binary counter counts
#ifndef LLMC_ZERO_H
#define LLMC_ZERO_H

#include "llmc/model/model.h"
#include "llmc/ranks/comm.h"

typedef struct {
    Model *model;
    Comm *comm;
    DType wire;
    int64_t micro_batch;        // the one at hand
    int64_t micro_batches;      // of the step, on each rank
    CommEvent *reduced;         // [buckets] of the last reduction of each bucket
    CommEvent *gathered;        // [buckets] of the last gather of each bucket's weights
    CommEvent slot_reduced[2];  // stage 2 and 3: of what the block buffers of gradients held last
    int64_t *lane_first;        // [buckets] where a bucket's segments begin in the sums of lanes
    int slot_bucket[2];         // stage 3: whose weights the block buffers hold; -1: nobody's
    bool outside_gathered[2];   // stage 3: bucket 0, the last bucket
} Zero;

// comm: the data axis's group. model: laid out on a real arena for its rank and world (ModelShape.ranks). wire: config.reduce_dtype.
void zero_init(Zero *zero, Model *model, Comm *comm, DType wire);
void zero_free(Zero *zero);

// A step of so many micro-batches a rank begins, and each of them, counted from 0.
void zero_begin_step(Zero *zero, int64_t micro_batches);
void zero_begin_micro_batch(Zero *zero, int64_t micro_batch);
// After the last backward pass: the gradients that the optimizer reads (model_grad) are sums over all ranks, and so are
// the loss sums.
void zero_finish_gradients(Zero *zero);
// After the update: the new weights are on their way to those that need them.
void zero_send_weights(Zero *zero);
// The weights of a bucket are whole on this rank for whatever is issued next, until another bucket of the same kind is
// asked for (stage 3: collective, in the same order on every rank). For checkpoints and comparisons.
void zero_gather_weights(Zero *zero, int bucket);
// sums fp64 (partition.segments) =: sums of squares of the gradient's segments, the same bits on every rank. Where
// nothing is sharded and lanes are off, sums (1): of all of it. After zero_finish_gradients.
void zero_sum_squares(Zero *zero, Tensor sums);
#endif
