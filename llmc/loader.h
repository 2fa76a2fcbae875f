// loader.h: shards to batches. The sample at row r of step s is a pure function of (seed, s, r), whatever the world
// size, threads or restarts; seeking is O(1). A thread prepares the next step while the current one is computed.
// Knows rank and world as ints, nothing of devices or models.
#ifndef LLMC_LOADER_H
#define LLMC_LOADER_H

#include "llmc/schedule.h"

#ifdef __cplusplus
extern "C" {
#endif

// Rows of one micro-batch (B, T), host memory owned by the loader.
typedef struct {
    int64_t B, T;
    const int32_t *tokens;   // (B,T)
    const int32_t *targets;  // (B,T)
    const float *weights;    // (B,T) loss weight; 0: not trained on
    const int32_t *doc;      // (B,T) segment id within the row, from 0, non-decreasing; NULL: no document mask
    const uint8_t *prefix;   // (B,T) 1: visible to the whole segment; NULL: causal
    const int32_t *source;   // (B) which source the row is from
} Batch;

// Everything of one optimizer step on this rank.
typedef struct {
    int64_t step;
    int64_t micro_batches;
    const Batch *batch;      // [micro_batches]
    double weight_sum;       // sum of weights over all micro-batches and ALL ranks
    double wait_ms;          // how long the caller waited for the prefetch thread
} StepBatch;

typedef struct Loader Loader;
// Opens and checks every shard of every source: magic, size, ids < vocab, at least one row each, enough tokens for one
// step. eot < 0: documents unknown (then doc_mask is an error). vocab 0: take it from the shards.
bool loader_open(Loader **out, const RunConfig *config, const Schedule *schedule, int64_t vocab, int32_t eot, int rank,
                 int world, Error *err);
void loader_close(Loader *loader);
void loader_seek(Loader *loader, int64_t step);  // the next loader_next returns this step
// Valid until the next call. NULL and err when a shard vanished or cannot be read.
const StepBatch *loader_next(Loader *loader, Error *err);
// Host bytes that the loader holds for its two step buffers, by the config alone (for plan).
size_t loader_plan_bytes(const Schedule *schedule, int world);
int64_t loader_source_tokens(const Loader *loader, int source);

// Held-out text of one source, in order: row k holds tokens [k*T, k*T+T] of the stream; the last row is padded with
// weight 0, so that every token but the first is predicted exactly once.
typedef struct HeldOut HeldOut;
// max_tokens 0: all. Errors as loader_open.
bool heldout_open(HeldOut **out, const SourceConfig *source, int64_t B, int64_t T, int64_t max_tokens, int64_t vocab,
                  int32_t eot, Error *err);
void heldout_close(HeldOut *heldout);
int64_t heldout_batches(const HeldOut *heldout);
// Fills batch k (0-based); valid until the next call.
const Batch *heldout_batch(HeldOut *heldout, int64_t k);

#ifdef __cplusplus
}
#endif
#endif
