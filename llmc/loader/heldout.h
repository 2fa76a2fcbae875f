// heldout.h: the held-out text of a source, as batches. Must not know ranks: callers distribute the batches.
#ifndef LLMC_HELDOUT_H
#define LLMC_HELDOUT_H

#include "llmc/config/config.h"
#include "llmc/loader/batch.h"

// Held-out text of one source, its rows in order, as its format makes them (row_format.h; seed 0). Plain: row k holds
// tokens [k*T, k*T+T] of the stream; the last row is padded with weight 0, so that every token but the first is
// predicted exactly once. The last batch is padded with rows whose weights are 0.
typedef struct HeldOut HeldOut;
// max_tokens: how much text to use, in tokens after the first; 0: all. vocab, eot and errors as in loader_open (with
// vocab 0, and no shard that states one, ids are not checked). The text needs at least two tokens.
bool heldout_open(HeldOut **out, const SourceConfig *source, int64_t B, int64_t T, int64_t max_tokens, int64_t vocab,
                  int32_t eot, Error *err);
void heldout_close(HeldOut *heldout);
int64_t heldout_batches(const HeldOut *heldout);
// Fills batch k (0-based); valid until the next call. batch->source is 0. NULL and err when a shard cannot be read.
const Batch *heldout_batch(HeldOut *heldout, int64_t k, Error *err);
#endif
