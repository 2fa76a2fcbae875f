// eval.h: held-out loss, perplexity and bits per byte; sample.h generates text. The results are the same in the
// training loop and from a saved checkpoint. Must not know optimizers, checkpoints or the training loop.
#ifndef LLMC_EVAL_H
#define LLMC_EVAL_H

#include "llmc/loader/heldout.h"
#include "llmc/ranks/control.h"
#include "llmc/model/model.h"
#include "llmc/tokenizer/tokenizer.h"

typedef struct {
    int64_t tokens;        // predicted tokens with weight > 0; each counts once, whatever its weight
    int64_t text_bytes;    // bytes of text that those tokens stand for; 0 without a tokenizer
    double loss;           // mean -log p, nats per token
    double perplexity;     // exp(loss)
    double bits_per_byte;  // sum of -log2 p over text_bytes; -1 without a tokenizer
} EvalResult;

// The result for nll = the sum of -log p (nats) over `tokens` tokens that stand for text_bytes bytes.
EvalResult eval_result(double nll, int64_t tokens, int64_t text_bytes);

// One pass over the held-out text with the model's current weights. All ranks must call it: rank r of the data axis
// takes the batches k with k % data.world == r, and every rank runs the model equally often. control joins the ranks of
// this axis; NULL if data.world is 1. tokenizer may be NULL. Sums are in double, over each batch and then over batches,
// in order: every rank gets the same bits for any world size, and B changes the result only by rounding. False and err
// when the shards cannot be read or the run is ending on another rank.
bool eval_heldout(EvalResult *result, Model *model, HeldOut *heldout, const Tokenizer *tokenizer, Control *control,
                  MeshAxis data, Error *err);
#endif
