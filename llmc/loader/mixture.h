// mixture.h: maps a sample index to source, epoch and row: pure functions of (seed, phase weights, sample index).
// Must not know files or devices.
//
// The mixture is stratified, not drawn at random: sample n of a phase belongs to source 0 if round(n p_0) increases
// from n to n + 1; the remaining samples are given to source 1 in the same way with its share of the remaining weight,
// and so on. So the ordinal of a sample within its source needs no history, and every range of samples (each step's
// batch) has the mixture's proportions: the first n samples hold n * weight of each source to within
// 1 + (sources before it) / 2.
// The order of rows is random: ordinal k is row permute(seed, source, epoch)(k mod rows) of epoch k / rows, so every
// row is used once per epoch.
#ifndef LLMC_MIXTURE_H
#define LLMC_MIXTURE_H

#include "llmc/base/common.h"

#define MIXTURE_MAX_SOURCES 32
#define MIXTURE_MAX_EPOCHS ((int64_t)1 << 48)  // of one source, so that source and epoch make one key

typedef struct {
    int source_count;
    uint64_t share[MIXTURE_MAX_SOURCES];         // of the samples not given to earlier sources, in units of 2^-32
    int64_t first_ordinal[MIXTURE_MAX_SOURCES];  // samples of each source in earlier phases
} Mixture;

typedef struct {
    int source;
    int64_t ordinal;  // number of earlier samples of this source, including earlier phases
} MixturePick;

// weights >= 0 and finite, not all zero; their sum need not be 1. first_ordinal may be NULL (zeros).
void mixture_init(Mixture *mixture, int source_count, const double *weights, const int64_t *first_ordinal);
MixturePick mixture_pick(const Mixture *mixture, int64_t sample);
// Samples of a source among the first `samples` of the phase (without first_ordinal).
int64_t mixture_count(const Mixture *mixture, int source, int64_t samples);
// Row in [0, rows) of the source's epoch; rows > 0. epoch may be NULL.
int64_t mixture_row(int64_t *epoch, uint64_t seed, int source, int64_t ordinal, int64_t rows);
// The seed of the random numbers that a format draws for rows of this source in this epoch.
uint64_t mixture_row_seed(uint64_t seed, int source, int64_t epoch);
#endif
