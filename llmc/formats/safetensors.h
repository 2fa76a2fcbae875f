// safetensors.h: reading and writing safetensors files (https://github.com/huggingface/safetensors): 8-byte header
// length, JSON header, raw little-endian tensors. Files are untrusted: every offset, size, dtype and shape is checked
// before use.
#ifndef LLMC_SAFETENSORS_H
#define LLMC_SAFETENSORS_H

#include "llmc/backend/tensor.h"

#define SAFETENSORS_MAX_DIMS 8

typedef struct {
    char *name;
    char dtype[8];  // as in the file: "F32", "BF16", "F16", "I32", ...
    int ndim;
    int64_t dim[SAFETENSORS_MAX_DIMS];
    size_t bytes;
    const unsigned char *data;  // into the mapped file
    int file;                   // which shard file it is in
} SafeTensor;

typedef struct SafeTensors SafeTensors;
// A .safetensors file, a model.safetensors.index.json, or a directory that holds either.
bool safetensors_open(SafeTensors **out, const char *path, Error *err);
void safetensors_close(SafeTensors *file);
int safetensors_count(const SafeTensors *file);
const SafeTensor *safetensors_at(const SafeTensors *file, int index);
const SafeTensor *safetensors_find(const SafeTensors *file, const char *name);  // NULL: absent
const char *safetensors_metadata(const SafeTensors *file, const char *key);     // NULL: absent
// Elements [first, first+count) converted to fp32 (from F32, BF16, F16, F64). Error on other dtypes.
bool safetensors_read_f32(const SafeTensor *tensor, int64_t first, int64_t count, float *out, Error *err);
// Tells the system that this tensor's pages are not needed any more; reading it again is possible, and slow.
void safetensors_release(const SafeTensor *tensor);

// One tensor to be written. `fetch` returns the bytes of its elements [first, first + count) in host memory, valid
// until the next fetch; it is called in order, for at most SAFETENSORS_CHUNK_ELEMS at a time, so that staging stays
// small.
#define SAFETENSORS_CHUNK_ELEMS ((int64_t)1 << 20)
typedef struct {
    const char *name;
    DType dtype;
    int ndim;
    int64_t dim[SAFETENSORS_MAX_DIMS];
} SafeTensorSpec;
typedef const void *(*SafeTensorFetch)(void *context, int index, int64_t first, int64_t count, Error *err);
// As files name it: "F32".
const char *safetensors_dtype_name(DType dtype);
// Writes and fsyncs; an error (disk full, ...) removes nothing that was there before under another name.
bool safetensors_write(const char *path, const SafeTensorSpec *specs, int count, const char *metadata_json,
                       SafeTensorFetch fetch, void *context, Error *err);

// model.safetensors.index.json of a model in several files. write frees the index, also on an error.
typedef struct SafeTensorsIndex SafeTensorsIndex;
SafeTensorsIndex *safetensors_index_new(void);
void safetensors_index_add(SafeTensorsIndex *index, const char *tensor, const char *file_name, int64_t bytes);
void safetensors_index_free(SafeTensorsIndex *index);  // of one that is not written
bool safetensors_index_write(SafeTensorsIndex *index, const char *dir, Error *err);
#endif
