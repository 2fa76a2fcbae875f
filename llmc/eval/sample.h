// sample.h: generates text from a model, token by token with a KV cache. Must not know files or ranks.
#ifndef LLMC_SAMPLE_H
#define LLMC_SAMPLE_H

#include "llmc/model/model.h"
#include "llmc/tokenizer/tokenizer.h"

typedef struct {
    double temperature;  // 0: greedy (ties go to the smallest id)
    int64_t top_k;       // 0: off
    double top_p;        // 1: off; else sample from the smallest set of tokens whose total probability reaches top_p
    uint64_t seed;       // the token at position i is a function of (seed, i, logits)
    int64_t max_tokens;
} SampleOptions;

// Picks one id from logits[V] for position `position`. scratch [V] is overwritten.
typedef struct {
    float logit;
    int32_t id;
} SampleCandidate;
int32_t sample_pick(const float *logits, int64_t V, const SampleOptions *options, int64_t position,
                    SampleCandidate *scratch);

// Continues prompt[prompt_count] (at least one token) until max_tokens new tokens, the end-of-text id, or a full cache.
// Calls emit with every new token; generation stops when it returns false. Returns the number of new tokens.
typedef bool (*SampleEmit)(void *context, int32_t id);
int64_t sample_continue(Model *model, const int32_t *prompt, int64_t prompt_count, int32_t eot,
                        const SampleOptions *options, SampleEmit emit, void *context);
#endif
