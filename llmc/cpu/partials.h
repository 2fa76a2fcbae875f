// partials.h: sums over the rows of a matrix (parameter gradients), bit-identical for any number of threads: rows are
// divided into chunks whose number depends on the row count alone, each chunk sums its rows in order into its own
// partial row, and the partial rows are added in order.
#ifndef LLMC_CPU_PARTIALS_H
#define LLMC_CPU_PARTIALS_H

#include "llmc/cpu/kernels.h"
#include "llmc/cpu/simd.h"

// Enough chunks for many cores, few enough that the partial rows stay small next to the rows themselves.
#define PARTIALS_MAX_CHUNKS 64
#define PARTIALS_MIN_ROWS 16

static inline int64_t partials_chunks(int64_t rows) {
    return min_i64(PARTIALS_MAX_CHUNKS, max_i64(1, div_up(rows, PARTIALS_MIN_ROWS)));
}
static inline int64_t partials_first_row(int64_t rows, int64_t chunk) { return rows * chunk / partials_chunks(rows); }
// (chunks, width) floats, zeroed, in the calling thread's scratch.
static inline float *partials_zeroed(Backend *be, int64_t rows, int64_t width) {
    size_t bytes = to_size(partials_chunks(rows) * width) * sizeof(float);
    return memset(cpu_scratch(be, 0, bytes), 0, bytes);
}

// out(count) {=, += if accumulate} the sum over chunks of columns [first, first + count) of partials(chunks, width).
static inline void partials_sum(Backend *be, float *out, const float *partials, int64_t rows, int64_t width,
                                int64_t first, int64_t count, bool accumulate) {
    int64_t chunks = partials_chunks(rows);
    (void)be;
#pragma omp parallel for schedule(static) num_threads(be->threads) if (chunks * count > CPU_PARALLEL_ELEMS)
    for (int64_t c = 0; c < count; c += VF_LANES) {
        vf sum = vf_set(0.0f);
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
            sum += vf_load_some(partials + chunk * width + first, c, count - c, DTYPE_F32);
        if (accumulate) sum += vf_load_some(out, c, count - c, DTYPE_F32);
        vf_store_some(out, c, sum, count - c, DTYPE_F32);
    }
}

#endif
