// mixture.h: which source, epoch and row a sample index means: pure functions of (seed, phase weights, sample index).
// Called by the loader; knows nothing of files or devices.
//
// The mixture is stratified, not drawn: sample n of a phase belongs to source 0 where round(n p_0) steps up by one;
// the samples left over are dealt to source 1 in the same way with its share of what is left, and so on. So the
// ordinal of a sample within its source needs no history, counts only grow, and every stretch of samples (each step's
// batch) holds the mixture: the first n hold n * weight of each source to within 1 + (sources before it) / 2.
// Which row an ordinal means is random: ordinal k is row permute(seed, source, epoch)(k mod rows) of epoch k / rows,
// so that every row comes once per epoch.
#ifndef LLMC_MIXTURE_H
#define LLMC_MIXTURE_H

#include "llmc/base/common.h"

#define MIXTURE_MAX_SOURCES 32
#define MIXTURE_MAX_EPOCHS ((int64_t)1 << 48)  // of one source, so that source and epoch make one key

typedef struct {
    int source_count;
    uint64_t share[MIXTURE_MAX_SOURCES];         // of what the sources before left, in units of 2^-32
    int64_t first_ordinal[MIXTURE_MAX_SOURCES];  // samples that each source gave in earlier phases
} Mixture;

typedef struct {
    int source;
    int64_t ordinal;  // how many samples of this source came before, earlier phases included
} MixturePick;

// weights >= 0 and finite, not all zero; they need not add up to 1. first_ordinal may be NULL (zeros).
void mixture_init(Mixture *mixture, int source_count, const double *weights, const int64_t *first_ordinal);
MixturePick mixture_pick(const Mixture *mixture, int64_t sample);
// Samples of a source among the first `samples` of the phase (without first_ordinal).
int64_t mixture_count(const Mixture *mixture, int source, int64_t samples);
// Row in [0, rows) of the source's epoch; rows > 0. epoch may be NULL.
int64_t mixture_row(int64_t *epoch, uint64_t seed, int source, int64_t ordinal, int64_t rows);
// The seed of what a format draws for rows of this source in this epoch.
uint64_t mixture_row_seed(uint64_t seed, int source, int64_t epoch);
#endif
