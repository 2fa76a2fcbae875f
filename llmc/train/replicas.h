// replicas.h: the comparison of replicas, which finds ranks whose weights have drifted. It uses the ranks, the device sums
// and the step of the last comparison (`agreed`) of a HashChain. Ranks communicate through control.h only. Must not know:
// checkpoints' files, the training loop.
#ifndef LLMC_REPLICAS_H
#define LLMC_REPLICAS_H

#include "llmc/train/hash_chain.h"

// If `step` is due and several ranks hold all weights (ZeRO stage below 3): checks that they hold the same bits. The
// weights must be whole (zero_gather_weights, every bucket). Collective. False, with the same message on every rank, if
// some have drifted; also if the device failed or the run is ending.
bool replicas_compare(HashChain *chain, int64_t step, const Model *model, Error *err);
// odd (launch_world) = whether rank r's hash differs from that of the majority (more than half of the ranks); without a
// majority all are odd. Returns the number of odd ranks.
int replicas_judge(bool *odd, const uint64_t *hashes, int launch_world);
#endif
