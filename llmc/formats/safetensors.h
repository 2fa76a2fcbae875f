// safetensors.h: reads and writes safetensors files (https://github.com/huggingface/safetensors): 8-byte header length,
// JSON header, raw little-endian tensors. Files are untrusted: every offset, size, dtype and shape is checked before
// use. Must not know models.
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
    int file;                   // index of its file
} SafeTensor;

typedef struct SafeTensors SafeTensors;
// Opens a .safetensors file, a model.safetensors.index.json, or a directory with either.
bool safetensors_open(SafeTensors **out, const char *path, Error *err);
void safetensors_close(SafeTensors *file);
int safetensors_count(const SafeTensors *file);
const SafeTensor *safetensors_at(const SafeTensors *file, int index);
const SafeTensor *safetensors_find(const SafeTensors *file, const char *name);  // NULL: absent
const char *safetensors_metadata(const SafeTensors *file, const char *key);     // NULL: absent
// Elements [first, first+count) converted to fp32 (from F32, BF16, F16, F64). Other dtypes are errors.
bool safetensors_read_f32(const SafeTensor *tensor, int64_t first, int64_t count, float *out, Error *err);
// Releases the tensor's pages from memory; they can still be read, but slowly.
void safetensors_release(const SafeTensor *tensor);

// A tensor to write. `fetch` returns the bytes of its elements [first, first + count) in host memory, valid until the
// next fetch. It is called in order, for at most SAFETENSORS_CHUNK_ELEMS elements at a time, to keep staging small.
#define SAFETENSORS_CHUNK_ELEMS ((int64_t)1 << 20)
typedef struct {
    const char *name;
    DType dtype;
    int ndim;
    int64_t dim[SAFETENSORS_MAX_DIMS];
} SafeTensorSpec;
typedef const void *(*SafeTensorFetch)(void *context, int index, int64_t first, int64_t count, Error *err);
// The dtype's name in files: "F32", ...
const char *safetensors_dtype_name(DType dtype);
// Writes the file under a temporary name, fsyncs it and renames it to path; on an error an existing file stays.
bool safetensors_write(const char *path, const SafeTensorSpec *specs, int count, const char *metadata_json,
                       SafeTensorFetch fetch, void *context, Error *err);

// model.safetensors.index.json of a model in several files. safetensors_index_write frees the index, also on error.
typedef struct SafeTensorsIndex SafeTensorsIndex;
SafeTensorsIndex *safetensors_index_new(void);
void safetensors_index_add(SafeTensorsIndex *index, const char *tensor, const char *file_name, int64_t bytes);
void safetensors_index_free(SafeTensorsIndex *index);  // only if it is not written
bool safetensors_index_write(SafeTensorsIndex *index, const char *dir, Error *err);
#endif
