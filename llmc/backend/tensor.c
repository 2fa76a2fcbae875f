// tensor.c: see tensor.h.
#include "llmc/backend/tensor.h"

#include "llmc/base/words.h"

static const size_t DTYPE_BYTES[DTYPE_COUNT] = {
    [DTYPE_F32] = 4, [DTYPE_BF16] = 2, [DTYPE_I32] = 4, [DTYPE_U8] = 1, [DTYPE_F64] = 8};

size_t dtype_bytes(DType dtype) {
    CHECK(dtype < DTYPE_COUNT, "dtype=%d", (int)dtype);
    return DTYPE_BYTES[dtype];
}
const char *dtype_name(DType dtype) { return word_of(DTYPE_WORDS, (int)dtype); }
bool dtype_parse(const char *name, DType *out) {
    int value;
    if (!word_find(&value, DTYPE_WORDS, name)) return false;
    *out = (DType)value;
    return true;
}

static Tensor tensor_make(void *data, DType dtype, int ndim, int64_t d0, int64_t d1, int64_t d2, int64_t d3) {
    Tensor t = {data, dtype, ndim, {d0, d1, d2, d3}};
    for (int i = 0; i < ndim; ++i) CHECK(t.dim[i] >= 0, "dim[%d]=%lld", i, (long long)t.dim[i]);
    return t;
}
Tensor tensor_1d(void *data, DType dtype, int64_t d0) { return tensor_make(data, dtype, 1, d0, 1, 1, 1); }
Tensor tensor_2d(void *data, DType dtype, int64_t d0, int64_t d1) { return tensor_make(data, dtype, 2, d0, d1, 1, 1); }
Tensor tensor_3d(void *data, DType dtype, int64_t d0, int64_t d1, int64_t d2) {
    return tensor_make(data, dtype, 3, d0, d1, d2, 1);
}

int64_t tensor_elems(Tensor t) {
    int64_t elems = t.ndim > 0 ? 1 : 0;
    for (int i = 0; i < t.ndim; ++i) elems *= t.dim[i];
    return elems;
}
size_t tensor_bytes(Tensor t) { return to_size(tensor_elems(t)) * dtype_bytes(t.dtype); }

Tensor tensor_rows(Tensor t, int64_t first, int64_t count) {
    CHECK(t.ndim >= 1 && first >= 0 && count >= 0 && first + count <= t.dim[0], "first=%lld count=%lld of %lld",
          (long long)first, (long long)count, (long long)t.dim[0]);
    int64_t row_elems = 1;
    for (int i = 1; i < t.ndim; ++i) row_elems *= t.dim[i];
    if (t.data != NULL) t.data = (unsigned char *)t.data + to_size(first * row_elems) * dtype_bytes(t.dtype);
    t.dim[0] = count;
    return t;
}
