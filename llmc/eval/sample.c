// sample.c: see sample.h.
#include "llmc/eval/sample.h"

#include <math.h>
#include <stdlib.h>

#include "llmc/base/rng.h"

static int compare_candidates(const void *a, const void *b) {
    const SampleCandidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int32_t pick_greedy(const float *logits, int64_t V) {
    int64_t best = 0;
    for (int64_t v = 1; v < V; ++v)
        if (logits[v] > logits[best]) best = v;
    return (int32_t)best;
}

int32_t sample_pick(const float *logits, int64_t V, const SampleOptions *options, int64_t position,
                    SampleCandidate *scratch) {
    if (options->temperature <= 0) return pick_greedy(logits, V);
    for (int64_t v = 0; v < V; ++v) scratch[v] = (SampleCandidate){logits[v], (int32_t)v};
    int64_t count = V;
    bool sorted = options->top_k > 0 || options->top_p < 1;
    if (sorted) qsort(scratch, to_size(V), sizeof *scratch, compare_candidates);
    if (options->top_k > 0) count = min_i64(count, options->top_k);
    float top = scratch[0].logit;
    for (int64_t i = 1; i < count; ++i) top = scratch[i].logit > top ? scratch[i].logit : top;

    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += exp((double)(scratch[i].logit - top) / options->temperature);
    if (options->top_p < 1) {
        double kept = 0;
        int64_t i = 0;
        while (i < count && kept < options->top_p * total)
            kept += exp((double)(scratch[i++].logit - top) / options->temperature);
        count = max_i64(i, 1);
        total = kept > 0 ? kept : 1;
    }
    double threshold = rng_uniform(options->seed, RNG_STREAM_SAMPLE, (uint64_t)position) * total;
    for (int64_t i = 0; i < count; ++i) {
        threshold -= exp((double)(scratch[i].logit - top) / options->temperature);
        if (threshold < 0) return scratch[i].id;
    }
    return scratch[count - 1].id;
}

int64_t sample_continue(Model *model, const int32_t *prompt, int64_t prompt_count, int32_t eot,
                        const SampleOptions *options, SampleEmit emit, void *context) {
    int64_t V = model->config.V, room = model->shape.cache_tokens, made = 0;
    CHECK(prompt_count > 0 && prompt_count <= room, "prompt of %lld tokens, cache of %lld", (long long)prompt_count,
          (long long)room);
    float *logits = xmalloc(to_size(V) * sizeof *logits);
    SampleCandidate *scratch = xmalloc(to_size(V) * sizeof *scratch);
    int64_t position = 0;
    for (; position < prompt_count; position += min_i64(model->shape.max_rows, prompt_count - position))
        model_decode(model, prompt + position, min_i64(model->shape.max_rows, prompt_count - position), position,
                     logits);
    while (made < options->max_tokens) {
        int32_t id = sample_pick(logits, V, options, position, scratch);
        if (id == eot) break;
        ++made;
        if (!emit(context, id) || position == room || made == options->max_tokens) break;
        model_decode(model, &id, 1, position++, logits);
    }
    free(logits);
    free(scratch);
    return made;
}
