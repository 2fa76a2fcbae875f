// values.h: test data in host memory: normal random numbers, and storing them as any dtype.
#ifndef CASES_VALUES_H
#define CASES_VALUES_H

#include <math.h>

#include "llmc/backend/tensor.h"
#include "llmc/base/rng.h"

// N(0,1), Box-Muller in double.
static inline float rng_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t words[4];
    rng_block(seed, stream, index, words);
    double u = ((double)(((uint64_t)words[1] << 32 | words[0]) >> 11) + 0.5) * 0x1p-53;
    double v = (double)(((uint64_t)words[3] << 32 | words[2]) >> 11) * 0x1p-53;
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586476925 * v));
}

static inline void tensor_host_store(void *host, DType dtype, int64_t i, double value) {
    switch (dtype) {
    case DTYPE_F32: ((float *)host)[i] = (float)value; return;
    case DTYPE_BF16: ((uint16_t *)host)[i] = bf16_from_f32((float)value); return;
    case DTYPE_I32: ((int32_t *)host)[i] = (int32_t)value; return;
    case DTYPE_U8: ((uint8_t *)host)[i] = (uint8_t)value; return;
    case DTYPE_F64: ((double *)host)[i] = value; return;
    case DTYPE_COUNT: break;
    }
    CHECK(false, "dtype=%d", (int)dtype);
}
#endif
