// mixture.h: which source, epoch and row a sample index means: pure functions of (seed, phase, sample index). Knows
// nothing of files or devices.
//
// Within a phase, samples come in blocks of MIXTURE_BLOCK. In block b source s gets exactly
// floor((b+1) Q C_s) - floor(b Q C_s) minus the same with C_{s-1} of them (C: cumulative shares, Q the block size), so
// the mixture is exact to one sample at every block end and the ordinal of a sample within its source needs no history.
// A keyed permutation shuffles the order inside a block. Ordinal k of a source is row permute(seed, source, epoch)(k mod n)
// of epoch k / n: every row once per epoch.
#ifndef LLMC_MIXTURE_H
#define LLMC_MIXTURE_H

#include "llmc/common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MIXTURE_BLOCK 4096
#define MIXTURE_MAX_SOURCES 32

typedef struct {
    int source_count;
    double cumulative[MIXTURE_MAX_SOURCES + 1];  // 0 ... 1
    int64_t first_ordinal[MIXTURE_MAX_SOURCES];  // samples that each source gave in earlier phases
    uint64_t seed;
    int phase;
} Mixture;

typedef struct {
    int source;
    int64_t ordinal;  // how many samples of this source came before, earlier phases included
} MixturePick;

// weights >= 0, not all zero. first_ordinal may be NULL (zeros).
void mixture_init(Mixture *mixture, uint64_t seed, int phase, int source_count, const double *weights,
                  const int64_t *first_ordinal);
MixturePick mixture_pick(const Mixture *mixture, int64_t sample);
// Samples of source s among the first `samples` of the phase (without first_ordinal).
int64_t mixture_count(const Mixture *mixture, int source, int64_t samples);
// Row of the source's epoch: rows > 0.
int64_t mixture_row(uint64_t seed, int source, int64_t ordinal, int64_t rows, int64_t *epoch);

#ifdef __cplusplus
}
#endif
#endif
