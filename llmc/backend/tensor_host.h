// tensor_host.h: reads single elements of a tensor in host memory, of any dtype: for printed logits, tests and
// benchmarks, not for computation.
#ifndef LLMC_TENSOR_HOST_H
#define LLMC_TENSOR_HOST_H

#include "llmc/backend/tensor.h"

static inline double tensor_host_load(const void *host, DType dtype, int64_t i) {
    switch (dtype) {
    case DTYPE_F32: return (double)((const float *)host)[i];
    case DTYPE_BF16: return (double)bf16_to_f32(((const uint16_t *)host)[i]);
    case DTYPE_I32: return (double)((const int32_t *)host)[i];
    case DTYPE_U8: return (double)((const uint8_t *)host)[i];
    case DTYPE_F64: return ((const double *)host)[i];
    case DTYPE_COUNT: break;
    }
    CHECK(false, "dtype=%d", (int)dtype);
    return 0;
}

#endif
