// hash_chain.h: the hash chain, by which two runs can be compared: every hash_every steps rank 0 appends a link to
// out_dir/hashes.jsonl, with hashes of the data since the last link, the weights and the optimizer state (hash_file.h).
// train_gpt verify compares two such files. Ranks communicate through control.h only. Must not know: checkpoints' files,
// the training loop.
//
// Hashes are sums mod 2^64 over elements (hash_element.h) and over rows. Each rank adds the elements that it owns, so a
// link depends neither on the world size nor on the ZeRO stage. Weights: the fp32 masters if there are any.
//
//     hash_chain_add_batch(&chain, step->step, &step->batch[i]);             each micro-batch of a step
//     if (!hash_chain_link(&chain, t, model, optimizer, err)) return false;  after the update of step t
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
    MeshAxis data;                  // the axis of replicas, or of the owners of elements
    int64_t every;          // steps between links; 0: none
    int64_t compare_every;  // steps between comparisons (replicas.h); 0: never
    const char *out_dir;    // must exist
} HashChainOptions;

typedef struct {
    uint64_t data, weights, optimizer;
} HashSums;

typedef struct {
    HashChainOptions options;  // out_dir: a copy
    Backend *be;
    uint64_t *device;  // [2] sums of a link; [0] also the sum of a comparison
    uint64_t *host;    // [2] the same in host memory
    HashSums *all;     // [launch_world]
    int file;          // rank 0: hashes.jsonl; -1: none
    bool failed;       // a write error has been reported
    uint64_t chain;    // of the last link
    uint64_t data;     // hash of this rank's rows since then; on rank 0 it includes the sum that a checkpoint stored
    int64_t since;     // step of the last link, or at which the chain began
    int64_t agreed;    // step of the last comparison; 0: none yet
} HashChain;

// The chain continues from progress: lines of later steps are removed; at step 0 a new file begins. Allocates 16 bytes on
// the device if hashing or comparing is on. Errors: the file, memory.
bool hash_chain_open(HashChain *chain, Backend *be, const HashChainOptions *options, const RunProgress *progress,
                     Error *err);
// Continues from a checkpoint that the run has rewound to.
bool hash_chain_resume(HashChain *chain, const RunProgress *progress, Error *err);
void hash_chain_close(HashChain *chain);  // also after a failed open; before the backend's close

// Adds the rows that this rank trains on in a step (StepBatch.step). Padding rows are not counted: they depend on the
// world size.
void hash_chain_add_batch(HashChain *chain, int64_t step, const Batch *batch);
// If `step` (1 after the first) is due: hashes the elements that this rank owns after all operations issued so far, waits,
// combines over the ranks (collective) and writes the line. A write error is reported once on stderr and is not fatal.
// False: the device failed or the run is ending.
bool hash_chain_link(HashChain *chain, int64_t step, const Model *model, const Optimizer *opt, Error *err);
// Writes the chain's state for a checkpoint into progress, whose step is set already. Collective.
bool hash_chain_save(HashChain *chain, RunProgress *progress, Error *err);
#endif
