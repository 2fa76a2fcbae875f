// hash_chain.h: what a run leaves so that another one can be held against it: every hash_every steps a link, the
// hashes of the data since the last link, of the weights and of the optimizer state, chained (hash_file.h) and
// appended to out_dir/hashes.jsonl by rank 0; train_gpt verify compares two such files. And the comparison of replicas,
// which finds the rank whose weights have drifted. Called by the training loop; ranks meet through control.h alone.
//
// Hashes are sums mod 2^64 over elements (hash_element.h) and over rows: each rank adds what it owns, so a link
// depends neither on the world size nor on the ZeRO stage. Weights: the fp32 masters, or where there are none the
// weights.
//
//     hash_chain_add_batch(&chain, step->step, &step->batch[i]);             each micro-batch of a step
//     if (!hash_chain_link(&chain, t, model, optimizer, err)) return false;  after the update of step t
//     if (!replicas_compare(&chain, t, model, err)) return false;            when the weights are whole
//     if (!hash_chain_save(&chain, &progress, err)) return false;            before a checkpoint
#ifndef LLMC_HASH_CHAIN_H
#define LLMC_HASH_CHAIN_H

#include "llmc/ranks/control.h"
#include "llmc/train/hash_file.h"
#include "llmc/train/optimizer.h"
#include "llmc/train/progress.h"

typedef struct {
    Control *control;  // NULL: one process
    int launch_rank, launch_world;  // control's
    MeshAxis data;                  // along it lie replicas, or the owners of elements
    int64_t every;          // steps between links; 0: none
    int64_t compare_every;  // steps between comparisons; 0: never
    const char *out_dir;    // it exists
} HashChainOptions;

typedef struct {
    uint64_t data, weights, optimizer;
} HashSums;

typedef struct {
    HashChainOptions options;  // out_dir: a copy
    Backend *be;
    uint64_t *device;  // [2] sums of a link
    uint64_t *host;    // [2] the same in memory for transfers
    HashSums *all;     // [launch_world]
    int file;          // rank 0: hashes.jsonl; -1: none
    bool failed;       // a write error has been reported
    uint64_t chain;    // of the last link
    uint64_t data;     // of this rank's rows since then; what a checkpoint brought counts for rank 0
    int64_t since;     // step of the last link, or where the chain began
    int64_t agreed;    // step of the last comparison; 0: none yet
} HashChain;

// The chain goes on from progress: lines of later steps are cut off; at step 0 a new file begins. Takes 16 bytes of
// the device where there is something to do. Errors: the file, memory.
bool hash_chain_open(HashChain *chain, Backend *be, const HashChainOptions *options, const RunProgress *progress,
                     Error *err);
// Once more from a checkpoint, when a run has gone back to it.
bool hash_chain_resume(HashChain *chain, const RunProgress *progress, Error *err);
void hash_chain_close(HashChain *chain);  // also after a failed open; before the backend's close

// The rows that this rank trains on in a step (StepBatch.step). Padding rows count for nothing: they are there for
// some world sizes only.
void hash_chain_add_batch(HashChain *chain, int64_t step, const Batch *batch);
// Where `step` (1 after the first) is due: hashes what this rank owns as everything issued so far leaves it, waits
// for it, combines over the ranks (collective) and writes the line; else returns at once. A line that cannot be
// written is reported on stderr, once, and training goes on. False: the device failed or the run is ending.
bool hash_chain_link(HashChain *chain, int64_t step, const Model *model, const Optimizer *opt, Error *err);
// What the next checkpoint has to know goes into progress (step is set already). Collective.
bool hash_chain_save(HashChain *chain, RunProgress *progress, Error *err);

// Where `step` is due and several ranks hold all weights (ZeRO stage below 3): whether they hold the same bits.
// The weights must be whole (zero_gather_weights, every bucket). Collective; false on every rank, with the same
// message, which names those that have drifted, or because the device failed or the run is ending.
bool replicas_compare(HashChain *chain, int64_t step, const Model *model, Error *err);
// odd[r] =: rank r's hash is not the one that more than half of the ranks have; where there is no such hash, all are
// odd. Returns how many are.
int replicas_judge(bool *odd, const uint64_t *hashes, int launch_world);
#endif
