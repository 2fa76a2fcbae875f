// mixture.c: see mixture.h. Counts are integers throughout: with doubles, rounding n * weight could give a sample to
// two sources or to none.
#include "llmc/loader/mixture.h"

#include <math.h>

#include "llmc/base/rng.h"

#define SHARE_ONE ((uint64_t)1 << 32)

void mixture_init(Mixture *mixture, int source_count, const double *weights, const int64_t *first_ordinal) {
    CHECK(source_count > 0 && source_count <= MIXTURE_MAX_SOURCES, "source_count=%d", source_count);
    *mixture = (Mixture){.source_count = source_count};
    double left = 0;  // summed from the end, so that the last source with a weight gets all remaining samples
    for (int s = source_count - 1; s >= 0; --s) {
        CHECK(weights[s] >= 0 && isfinite(weights[s]), "weight[%d]=%g", s, weights[s]);
        left += weights[s];
        mixture->share[s] = weights[s] > 0 ? (uint64_t)llround(weights[s] / left * (double)SHARE_ONE) : 0;
        mixture->first_ordinal[s] = first_ordinal != NULL ? first_ordinal[s] : 0;
    }
    CHECK(left > 0 && isfinite(left), "the weights add up to %g", left);
}

// round(n * share), exactly. When n grows by 1 it grows by 0 or 1, because share <= 1; so does the rest, n - share_of.
static int64_t share_of(int64_t n, uint64_t share) {
    uint64_t high = (uint64_t)n >> 32, low = (uint64_t)n & (SHARE_ONE - 1);
    return (int64_t)(high * share + ((low * share + SHARE_ONE / 2) >> 32));
}

MixturePick mixture_pick(const Mixture *mixture, int64_t sample) {
    CHECK(sample >= 0, "sample=%lld", (long long)sample);
    int64_t n = sample;  // earlier samples that were not given to the sources so far
    for (int s = 0; s < mixture->source_count; ++s) {
        int64_t taken = share_of(n, mixture->share[s]);
        if (share_of(n + 1, mixture->share[s]) != taken)
            return (MixturePick){.source = s, .ordinal = mixture->first_ordinal[s] + taken};
        n -= taken;
    }
    CHECK(false, "no source for sample %lld", (long long)sample);
}

int64_t mixture_count(const Mixture *mixture, int source, int64_t samples) {
    CHECK(source >= 0 && source < mixture->source_count && samples >= 0, "source=%d samples=%lld", source,
          (long long)samples);
    int64_t n = samples;
    for (int s = 0; s < source; ++s) n -= share_of(n, mixture->share[s]);
    return share_of(n, mixture->share[source]);
}

static uint64_t epoch_key(uint64_t seed, RngStream stream, int source, int64_t epoch) {
    return rng_u64(seed, stream, (uint64_t)source * (uint64_t)MIXTURE_MAX_EPOCHS + (uint64_t)epoch);
}

int64_t mixture_row(int64_t *epoch, uint64_t seed, int source, int64_t ordinal, int64_t rows) {
    CHECK(rows > 0 && ordinal >= 0 && source >= 0 && ordinal / rows < MIXTURE_MAX_EPOCHS,
          "source=%d ordinal=%lld rows=%lld", source, (long long)ordinal, (long long)rows);
    int64_t which = ordinal / rows;
    if (epoch != NULL) *epoch = which;
    uint64_t key = epoch_key(seed, RNG_STREAM_DATA_ORDER, source, which);
    return (int64_t)rng_permute(key, (uint64_t)rows, (uint64_t)(ordinal % rows));
}

uint64_t mixture_row_seed(uint64_t seed, int source, int64_t epoch) {
    return epoch_key(seed, RNG_STREAM_ROWS, source, epoch);
}
