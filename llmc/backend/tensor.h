// tensor.h: a Tensor is a view: a pointer, a dtype and a shape, contiguous and row-major. Arenas own the bytes. Every
// backend operation takes its operands as Tensors and CHECKs their shapes, so that a wrong call aborts with the
// shapes instead of writing out of bounds.
#ifndef LLMC_TENSOR_H
#define LLMC_TENSOR_H

#include <string.h>

#include "llmc/base/common.h"
#include "llmc/base/op_types.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TENSOR_MAX_DIMS 4
typedef struct {
    void *data;  // memory of the backend in use; NULL in an absent or only planned view
    DType dtype;
    int ndim;
    int64_t dim[TENSOR_MAX_DIMS];
} Tensor;

static const Tensor TENSOR_NONE = {NULL, DTYPE_F32, 0, {0, 0, 0, 0}};

size_t dtype_bytes(DType dtype);
const char *dtype_name(DType dtype);  // "fp32", "bf16", "int32", "uint8", "fp64"
bool dtype_parse(const char *name, DType *out);

Tensor tensor_1d(void *data, DType dtype, int64_t d0);
Tensor tensor_2d(void *data, DType dtype, int64_t d0, int64_t d1);
Tensor tensor_3d(void *data, DType dtype, int64_t d0, int64_t d1, int64_t d2);

int64_t tensor_elems(Tensor t);  // 0 for TENSOR_NONE
size_t tensor_bytes(Tensor t);
// Rows [first, first+count) of the leading dimension, as a view.
Tensor tensor_rows(Tensor t, int64_t first, int64_t count);
static inline bool tensor_is_none(Tensor t) { return t.ndim == 0; }

// bf16 on the host: the upper half of an fp32, rounded to nearest even; NaN stays NaN.
static inline float bf16_to_f32(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}
static inline uint16_t bf16_from_f32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x0040u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#ifdef __cplusplus
}
#endif
#endif
