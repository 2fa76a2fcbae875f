// eval.h: held-out loss, perplexity and bits per byte. The same numbers in the training loop and from a saved
// checkpoint.
#ifndef LLMC_EVAL_H
#define LLMC_EVAL_H

#include "llmc/loader/heldout.h"
#include "llmc/ranks/control.h"
#include "llmc/model/model.h"
#include "llmc/tokenizer/tokenizer.h"

typedef struct {
    int64_t tokens;        // predicted tokens: those of a weight above 0, of which each counts once
    int64_t text_bytes;    // bytes that those tokens stand for; 0 without a tokenizer
    double loss;           // mean -log p, nats a token
    double perplexity;     // exp(loss)
    double bits_per_byte;  // sum of -log2 p over text_bytes; -1 without a tokenizer
} EvalResult;

// One pass over the held-out text with the model's present weights, by all ranks together: rank r of the
// data axis takes the batches k with k % data.world == r, and all run the model equally often. control, which
// joins the ranks of this axis, NULL: data.world is 1. tokenizer may be NULL. Sums in
// double, of each batch and then over batches, both in order: every rank gets the same bits, whatever the world, and
// they do not depend on B but for rounding. False when the shards cannot be read, or control says that the run ends.
bool eval_heldout(EvalResult *result, Model *model, HeldOut *heldout, const Tokenizer *tokenizer, Control *control,
                  MeshAxis data, Error *err);
#endif
