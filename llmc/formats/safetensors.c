// safetensors.c: see safetensors.h. Files are mapped, not copied: SafeTensor.data points into the mapping.
#include "llmc/formats/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "llmc/base/file_writer.h"
#include "llmc/base/json.h"

#define LENGTH_BYTES 8
#define MAX_HEADER_BYTES 100000000  // limit of the format
#define MAX_INDEX_BYTES ((size_t)1 << 28)
#define WEIGHTS_FILE "model.safetensors"
#define INDEX_FILE "model.safetensors.index.json"

typedef struct {
    char *path;
    unsigned char *bytes;  // the whole file
    size_t size;
    const unsigned char *data;  // after the header
    size_t data_size;
    cJSON *metadata;  // "__metadata__", or NULL
} MappedFile;

struct SafeTensors {
    MappedFile *file;
    int file_count;
    SafeTensor *tensor;  // sorted by name
    int count;
};

static const struct {
    const char *name;
    size_t bytes;
} ELEMENT_TYPES[] = {{"F32", 4}, {"BF16", 2}, {"F16", 2},  {"F64", 8},     {"I64", 8},
                     {"I32", 4}, {"I16", 2},  {"I8", 1},   {"U64", 8},     {"U32", 4},
                     {"U16", 2}, {"U8", 1},   {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};

static size_t element_bytes(const char *dtype) {
    for (size_t i = 0; i < sizeof ELEMENT_TYPES / sizeof ELEMENT_TYPES[0]; ++i)
        if (strcmp(ELEMENT_TYPES[i].name, dtype) == 0) return ELEMENT_TYPES[i].bytes;
    return 0;
}

// ---- reading one file ----

static bool map_file(MappedFile *file, const char *path, Error *err) {
    *file = (MappedFile){.path = xstrdup(path)};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return error_set(err, "%s: cannot open: %s", path, strerror(errno));
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(fd);
        return error_set(err, "%s: expected a regular file", path);
    }
    if (info.st_size < LENGTH_BYTES + 2) {
        close(fd);
        return error_set(err, "%s: expected a safetensors file of at least %d bytes, found %lld", path,
                         LENGTH_BYTES + 2, (long long)info.st_size);
    }
    void *bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    int reason = errno;
    close(fd);
    if (bytes == MAP_FAILED) return error_set(err, "%s: cannot map: %s", path, strerror(reason));
    file->bytes = bytes;
    file->size = (size_t)info.st_size;
    return true;
}

static bool read_shape(SafeTensor *tensor, const cJSON *shape, const char *path, Error *err) {
    size_t bytes = element_bytes(tensor->dtype);
    if (!cJSON_IsArray(shape)) return error_set(err, "%s: tensor '%s' has no shape array", path, tensor->name);
    for (const cJSON *dim = shape->child; dim != NULL; dim = dim->next) {
        int64_t value;
        if (tensor->ndim == SAFETENSORS_MAX_DIMS)
            return error_set(err, "%s: tensor '%s' has more than %d dimensions", path, tensor->name,
                             SAFETENSORS_MAX_DIMS);
        if (!json_as_i64(dim, &value) || value < 0)
            return error_set(err, "%s: tensor '%s': expected whole numbers >= 0 as its shape", path, tensor->name);
        tensor->dim[tensor->ndim++] = value;
        if (__builtin_mul_overflow(bytes, (size_t)value, &bytes))
            return error_set(err, "%s: tensor '%s': its shape overflows the address space", path, tensor->name);
    }
    tensor->bytes = bytes;
    return true;
}

static bool read_entry(SafeTensor *tensor, const cJSON *entry, const MappedFile *file, Error *err) {
    const char *path = file->path;
    tensor->name = xstrdup(entry->string);
    const cJSON *dtype = json_find(entry, "dtype"), *offsets = json_find(entry, "data_offsets");
    if (!cJSON_IsObject(entry) || cJSON_GetArraySize(entry) != 3 || !cJSON_IsString(dtype))
        return error_set(err, "%s: tensor '%s': expected exactly dtype, shape and data_offsets", path, tensor->name);
    if (element_bytes(dtype->valuestring) == 0)
        return error_set(err, "%s: tensor '%s' has the unknown dtype '%s'", path, tensor->name, dtype->valuestring);
    snprintf(tensor->dtype, sizeof tensor->dtype, "%s", dtype->valuestring);
    if (!read_shape(tensor, json_find(entry, "shape"), path, err)) return false;
    int64_t begin, end;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 || !json_as_i64(offsets->child, &begin) ||
        !json_as_i64(offsets->child->next, &end) || begin < 0 || end < begin)
        return error_set(err, "%s: tensor '%s': expected data_offsets [begin, end] with 0 <= begin <= end", path,
                         tensor->name);
    if ((size_t)end > file->data_size)
        return error_set(err,
                         "%s: tensor '%s' ends at byte %lld of the data, of which there are %zu (truncated file?)",
                         path, tensor->name, (long long)end, file->data_size);
    if ((size_t)(end - begin) != tensor->bytes)
        return error_set(err, "%s: tensor '%s': its dtype and shape need %zu bytes, its data_offsets span %lld", path,
                         tensor->name, tensor->bytes, (long long)(end - begin));
    tensor->data = file->data + begin;
    return true;
}

static int compare_data(const void *a, const void *b) {
    const SafeTensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}
static int compare_names(const void *a, const void *b) {
    return strcmp(((const SafeTensor *)a)->name, ((const SafeTensor *)b)->name);
}

// The tensors must cover the data exactly, without gaps or overlaps, as the format requires.
static bool check_coverage(SafeTensor *tensor, int count, const MappedFile *file, Error *err) {
    if (count > 0) qsort(tensor, (size_t)count, sizeof *tensor, compare_data);
    const unsigned char *expected = file->data;
    for (int i = 0; i < count; ++i) {
        if (tensor[i].data != expected)
            return error_set(err, "%s: tensor '%s' starts at byte %lld of the data, expected %lld (tensors %s)",
                             file->path, tensor[i].name, (long long)(tensor[i].data - file->data),
                             (long long)(expected - file->data),
                             tensor[i].data < expected ? "overlap" : "leave a gap");
        expected += tensor[i].bytes;
    }
    size_t covered = (size_t)(expected - file->data);
    if (covered != file->data_size)
        return error_set(err, "%s: the tensors cover %zu bytes of data, the file has %zu", file->path, covered,
                         file->data_size);
    return true;
}

static bool check_metadata(const cJSON *metadata, const char *path, Error *err) {
    if (!cJSON_IsObject(metadata)) return error_set(err, "%s: __metadata__ is not an object", path);
    for (const cJSON *item = metadata->child; item != NULL; item = item->next)
        if (!cJSON_IsString(item))
            return error_set(err, "%s: __metadata__: expected text as the value of '%s'", path, item->string);
    return true;
}

static bool read_entries(SafeTensors *all, int file_index, cJSON *header, Error *err) {
    MappedFile *file = &all->file[file_index];
    file->metadata = cJSON_DetachItemFromObjectCaseSensitive(header, "__metadata__");
    if (file->metadata != NULL && !check_metadata(file->metadata, file->path, err)) return false;
    int first = all->count, count = cJSON_GetArraySize(header);
    CHECK(count <= INT32_MAX - first, "%d tensors", count);
    all->tensor = xrealloc(all->tensor, (size_t)(first + count) * sizeof *all->tensor);
    for (const cJSON *entry = header->child; entry != NULL; entry = entry->next) {
        SafeTensor *tensor = &all->tensor[all->count++];
        *tensor = (SafeTensor){.file = file_index};
        if (!read_entry(tensor, entry, file, err)) return false;
    }
    return check_coverage(all->tensor + first, count, file, err);
}

static bool open_file(SafeTensors *all, const char *path, Error *err) {
    all->file = xrealloc(all->file, (size_t)(all->file_count + 1) * sizeof *all->file);
    MappedFile *file = &all->file[all->file_count++];
    if (!map_file(file, path, err)) return false;
    uint64_t header_bytes = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; --i) header_bytes = header_bytes << 8 | file->bytes[i];
    if (header_bytes > MAX_HEADER_BYTES || header_bytes > file->size - LENGTH_BYTES)
        return error_set(err, "%s: expected a safetensors header of at most %zu bytes, found the length %llu", path,
                         file->size - LENGTH_BYTES < MAX_HEADER_BYTES ? file->size - LENGTH_BYTES : MAX_HEADER_BYTES,
                         (unsigned long long)header_bytes);
    const char *text = (const char *)file->bytes + LENGTH_BYTES;
    if (header_bytes == 0 || text[0] != '{')
        return error_set(err, "%s: expected a safetensors header that begins with '{'", path);
    file->data = file->bytes + LENGTH_BYTES + header_bytes;
    file->data_size = file->size - LENGTH_BYTES - (size_t)header_bytes;
    cJSON *header = json_parse(text, (size_t)header_bytes, path, err);
    if (header == NULL) return false;
    bool ok = read_entries(all, all->file_count - 1, header, err);
    cJSON_Delete(header);
    return ok;
}

// ---- several files with an index ----

static int compare_texts(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// Opens every file that the weight map names, once, in name order. The index is untrusted: only plain file names are
// allowed, so that it cannot refer to files outside its directory.
static bool open_indexed_files(SafeTensors *all, const cJSON *weight_map, const char *path, Error *err) {
    const char *slash = strrchr(path, '/');
    char *dir = slash == NULL ? xstrdup(".") : xasprintf("%.*s", (int)(slash - path + 1), path);
    size_t count = (size_t)cJSON_GetArraySize(weight_map), used = 0;
    const char **name = xmalloc(count * sizeof *name);
    bool ok = true;
    for (const cJSON *item = weight_map->child; item != NULL && ok; item = item->next) {
        if (!cJSON_IsString(item))
            ok = error_set(err, "%s: expected a file name for tensor '%s'", path, item->string);
        else if (item->valuestring[0] == '.' || item->valuestring[0] == '\0' ||
                 strchr(item->valuestring, '/') != NULL)
            ok = error_set(err, "%s: tensor '%s': expected the name of a file in this directory, found '%s'", path,
                           item->string, item->valuestring);
        else name[used++] = item->valuestring;
    }
    if (used > 1) qsort(name, used, sizeof *name, compare_texts);
    for (size_t i = 0; i < used && ok; ++i) {
        if (i > 0 && strcmp(name[i - 1], name[i]) == 0) continue;
        char *file_path = path_join(dir, name[i]);
        ok = open_file(all, file_path, err);
        free(file_path);
    }
    free(name);
    free(dir);
    return ok;
}

// Every tensor of the index must be in its file, and the files must have no other tensors.
static bool check_index(const SafeTensors *all, const cJSON *weight_map, const char *path, Error *err) {
    int64_t named = cJSON_GetArraySize(weight_map);
    for (const cJSON *item = weight_map->child; item != NULL; item = item->next) {
        const SafeTensor *tensor = safetensors_find(all, item->string);
        const char *file_path = tensor == NULL ? "" : all->file[tensor->file].path;
        const char *slash = strrchr(file_path, '/');
        if (strcmp(slash == NULL ? file_path : slash + 1, item->valuestring) != 0)
            return error_set(err, "%s: tensor '%s' is not in '%s'", path, item->string, item->valuestring);
    }
    if (named != all->count)
        return error_set(err, "%s: the files hold %d tensors, the index names %lld", path, all->count,
                         (long long)named);
    return true;
}

static bool sort_and_check_names(SafeTensors *all, const char *path, Error *err) {
    if (all->count > 0) qsort(all->tensor, (size_t)all->count, sizeof *all->tensor, compare_names);
    for (int i = 1; i < all->count; ++i)
        if (strcmp(all->tensor[i - 1].name, all->tensor[i].name) == 0)
            return error_set(err, "%s: expected each tensor once, found '%s' twice", path, all->tensor[i].name);
    return true;
}

static bool open_index(SafeTensors *all, const char *path, Error *err) {
    cJSON *root = json_parse_file(path, MAX_INDEX_BYTES, err);
    if (root == NULL) return false;
    const cJSON *weight_map = json_find(root, "weight_map");
    bool ok = cJSON_IsObject(weight_map) || error_set(err, "%s: expected an object 'weight_map'", path);
    ok = ok && open_indexed_files(all, weight_map, path, err) && sort_and_check_names(all, path, err) &&
         check_index(all, weight_map, path, err);
    cJSON_Delete(root);
    return ok;
}

// ---- the interface ----

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

bool safetensors_open(SafeTensors **out, const char *path, Error *err) {
    char *file = NULL;
    if (dir_exists(path)) {
        file = path_join(path, WEIGHTS_FILE);
        if (!file_exists(file)) {
            free(file);
            file = path_join(path, INDEX_FILE);
        }
        if (!file_exists(file)) {
            free(file);
            return error_set(err, "%s: expected %s or %s in this directory", path, WEIGHTS_FILE, INDEX_FILE);
        }
    } else file = xstrdup(path);
    SafeTensors *all = xcalloc(1, sizeof *all);
    bool ok = ends_with(file, ".json") ? open_index(all, file, err)
                                       : open_file(all, file, err) && sort_and_check_names(all, file, err);
    free(file);
    if (ok) *out = all;
    else safetensors_close(all);
    return ok;
}

void safetensors_close(SafeTensors *all) {
    if (all == NULL) return;
    for (int i = 0; i < all->count; ++i) free(all->tensor[i].name);
    for (int i = 0; i < all->file_count; ++i) {
        if (all->file[i].bytes != NULL) munmap(all->file[i].bytes, all->file[i].size);
        cJSON_Delete(all->file[i].metadata);
        free(all->file[i].path);
    }
    free(all->tensor);
    free(all->file);
    free(all);
}

int safetensors_count(const SafeTensors *all) { return all->count; }

const SafeTensor *safetensors_at(const SafeTensors *all, int index) {
    CHECK(index >= 0 && index < all->count, "index=%d count=%d", index, all->count);
    return &all->tensor[index];
}

const SafeTensor *safetensors_find(const SafeTensors *all, const char *name) {
    int low = 0, high = all->count;
    while (low < high) {
        int middle = low + (high - low) / 2, order = strcmp(name, all->tensor[middle].name);
        if (order == 0) return &all->tensor[middle];
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

const char *safetensors_metadata(const SafeTensors *all, const char *key) {
    for (int i = 0; i < all->file_count; ++i) {
        const cJSON *item = all->file[i].metadata == NULL ? NULL : json_find(all->file[i].metadata, key);
        if (item != NULL) return item->valuestring;
    }
    return NULL;
}

static float f16_to_f32(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, fraction = bits & 0x3ffu;
    if (exponent == 0) {  // zero or subnormal: fraction * 2^-24, exact in fp32
        float value = (float)fraction * 0x1p-24f;
        return sign != 0 ? -value : value;
    }
    uint32_t wide = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

bool safetensors_read_f32(const SafeTensor *tensor, int64_t first, int64_t count, float *out, Error *err) {
    size_t width = element_bytes(tensor->dtype);
    int64_t elems = (int64_t)(tensor->bytes / width);
    CHECK(first >= 0 && count >= 0 && first <= elems && count <= elems - first,
          "%s: first=%lld count=%lld elems=%lld", tensor->name, (long long)first, (long long)count, (long long)elems);
    const unsigned char *from = tensor->data + to_size(first) * width;  // may be unaligned: memcpy only
    if (count == 0) return true;
    if (strcmp(tensor->dtype, "F32") == 0) {
        memcpy(out, from, to_size(count) * sizeof *out);
    } else if (strcmp(tensor->dtype, "F64") == 0) {
        for (int64_t i = 0; i < count; ++i) {
            double value;
            memcpy(&value, from + 8 * i, sizeof value);
            out[i] = (float)value;
        }
    } else if (strcmp(tensor->dtype, "BF16") == 0 || strcmp(tensor->dtype, "F16") == 0) {
        bool brain = tensor->dtype[0] == 'B';
        for (int64_t i = 0; i < count; ++i) {
            uint16_t bits;
            memcpy(&bits, from + 2 * i, sizeof bits);
            out[i] = brain ? bf16_to_f32(bits) : f16_to_f32(bits);
        }
    } else {
        return error_set(err, "tensor '%s': expected F32, BF16, F16 or F64, found %s", tensor->name, tensor->dtype);
    }
    return true;
}

// ---- writing ----

const char *safetensors_dtype_name(DType dtype) {
    static const char *NAMES[DTYPE_COUNT] = {"F32", "BF16", "I32", "U8", "F64"};
    CHECK(dtype < DTYPE_COUNT, "dtype=%d", (int)dtype);
    return NAMES[dtype];
}

static size_t spec_bytes(const SafeTensorSpec *spec) {
    size_t bytes = dtype_bytes(spec->dtype);
    CHECK(spec->ndim >= 0 && spec->ndim <= SAFETENSORS_MAX_DIMS, "%s: ndim=%d", spec->name, spec->ndim);
    for (int i = 0; i < spec->ndim; ++i)
        CHECK(!__builtin_mul_overflow(bytes, to_size(spec->dim[i]), &bytes), "%s: shape overflows", spec->name);
    return bytes;
}

// The header's JSON, padded with spaces so that the data that follows is 8-byte aligned.
static char *build_header(const SafeTensorSpec *specs, int count, const char *metadata_json) {
    cJSON *root = cJSON_CreateObject();
    if (metadata_json != NULL) {
        cJSON *metadata = json_parse(metadata_json, strlen(metadata_json), "metadata", NULL);
        CHECK(metadata != NULL && check_metadata(metadata, "metadata", NULL), "metadata=%s", metadata_json);
        cJSON_AddItemToObject(root, "__metadata__", metadata);
    }
    size_t offset = 0;
    for (int i = 0; i < count; ++i) {
        cJSON *entry = cJSON_CreateObject();
        cJSON_AddStringToObject(entry, "dtype", safetensors_dtype_name(specs[i].dtype));
        cJSON *shape = cJSON_AddArrayToObject(entry, "shape"),
              *offsets = cJSON_AddArrayToObject(entry, "data_offsets");
        for (int d = 0; d < specs[i].ndim; ++d)
            cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)specs[i].dim[d]));
        cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)offset));
        offset += spec_bytes(&specs[i]);
        cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)offset));
        cJSON_AddItemToObject(root, specs[i].name, entry);
    }
    char *text = cJSON_PrintUnformatted(root);
    CHECK(text != NULL, "header of %d tensors", count);
    cJSON_Delete(root);
    char *padded = xasprintf("%s%*s", text, (int)((8 - strlen(text) % 8) % 8), "");
    cJSON_free(text);
    return padded;
}

void safetensors_release(const SafeTensor *tensor) {
    const uintptr_t page = 4096, first = (uintptr_t)tensor->data / page * page,
                    end = (uintptr_t)tensor->data + tensor->bytes;
    // The mapping is private and was never written, so released pages are read from the file again.
    madvise((void *)first, end / page * page - first, MADV_DONTNEED);
}

bool safetensors_write(const char *path, const SafeTensorSpec *specs, int count, const char *metadata_json,
                       SafeTensorFetch fetch, void *context, Error *err) {
    char *header = build_header(specs, count, metadata_json);
    size_t header_bytes = strlen(header);
    if (header_bytes > MAX_HEADER_BYTES) {
        free(header);
        return error_set(err, "%s: the header needs %zu bytes, safetensors allows %d", path, header_bytes,
                         MAX_HEADER_BYTES);
    }
    unsigned char length[LENGTH_BYTES];
    for (int i = 0; i < LENGTH_BYTES; ++i) length[i] = (unsigned char)((uint64_t)header_bytes >> (8 * i));
    FileWriter writer;
    bool ok = file_writer_open(&writer, path, err) && file_writer_append(&writer, length, sizeof length, err) &&
              file_writer_append(&writer, header, header_bytes, err);
    free(header);
    for (int i = 0; i < count && ok; ++i) {
        size_t elem_bytes = dtype_bytes(specs[i].dtype);
        int64_t elems = (int64_t)(spec_bytes(&specs[i]) / elem_bytes);
        for (int64_t first = 0; first < elems && ok; first += SAFETENSORS_CHUNK_ELEMS) {
            int64_t chunk = min_i64(SAFETENSORS_CHUNK_ELEMS, elems - first);
            const void *bytes = fetch(context, i, first, chunk, err);
            if (bytes == NULL) file_writer_abort(&writer);
            ok = bytes != NULL && file_writer_append(&writer, bytes, to_size(chunk) * elem_bytes, err);
        }
    }
    return ok && file_writer_commit(&writer, err);
}

struct SafeTensorsIndex {
    cJSON *root, *weight_map;
    int64_t total_bytes;
};

SafeTensorsIndex *safetensors_index_new(void) {
    SafeTensorsIndex *index = xcalloc(1, sizeof *index);
    index->root = cJSON_CreateObject();
    index->weight_map = cJSON_CreateObject();
    cJSON_AddItemToObject(index->root, "weight_map", index->weight_map);
    return index;
}

void safetensors_index_free(SafeTensorsIndex *index) {
    cJSON_Delete(index->root);
    free(index);
}

void safetensors_index_add(SafeTensorsIndex *index, const char *tensor, const char *file_name, int64_t bytes) {
    cJSON_AddStringToObject(index->weight_map, tensor, file_name);
    index->total_bytes += bytes;
}

bool safetensors_index_write(SafeTensorsIndex *index, const char *dir, Error *err) {
    cJSON *metadata = cJSON_AddObjectToObject(index->root, "metadata");
    cJSON_AddNumberToObject(metadata, "total_size", (double)index->total_bytes);
    char *text = cJSON_Print(index->root), *path = path_join(dir, INDEX_FILE);
    CHECK(text != NULL, "index of %s", dir);
    bool ok = file_write_atomic(path, text, strlen(text), err);
    cJSON_free(text);
    free(path);
    safetensors_index_free(index);
    return ok;
}
