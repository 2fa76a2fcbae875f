// model_file.c: reads and writes the weights of Hugging Face directories through the map of hf_map.c; see model_file.h.
// Also detects the kind of a path. No value is passed to the caller before all tensors of the file are checked.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/formats/model_file.h"
#include "llmc/base/json.h"
#include "llmc/formats/model_bin.h"
#include "llmc/formats/safetensors.h"

#define CONFIG_FILE "config.json"
#define WEIGHTS_STEM "model"
#define MAX_CONFIG_BYTES ((size_t)1 << 24)

// ---- finding tensors ----

static const char *without_prefix(const char *name) {
    if (strncmp(name, "transformer.", 12) == 0) return name + 12;
    if (strncmp(name, "model.", 6) == 0) return name + 6;
    return name;
}

// Base models (without a head) are saved without the prefix that models with a head have.
static const SafeTensor *find_tensor(const SafeTensors *file, const char *name) {
    const SafeTensor *tensor = safetensors_find(file, name);
    return tensor != NULL ? tensor : safetensors_find(file, without_prefix(name));
}

static int index_of(const SafeTensors *file, const SafeTensor *tensor) {
    return (int)(tensor - safetensors_at(file, 0));
}

static bool has_tensor(const SafeTensors *file, const char *name) { return find_tensor(file, name) != NULL; }

// ---- config ----

static bool read_config_text(char **out, const char *dir, Error *err) {
    char *path = path_join(dir, CONFIG_FILE);
    bool ok = file_read_all(path, MAX_CONFIG_BYTES, out, NULL, err);
    free(path);
    return ok;
}

// GPT-2's config.json cannot state that biases are missing; transformers reads absent ones as zeros.
static bool drop_absent_gpt2_biases(ModelConfig *config, const char *dir, Error *err) {
    SafeTensors *file;
    if (!safetensors_open(&file, dir, err)) return false;
    config->norm_bias = config->norm_bias && has_tensor(file, "transformer.h.0.ln_1.bias");
    config->qkv_bias = config->qkv_bias && has_tensor(file, "transformer.h.0.attn.c_attn.bias");
    config->proj_bias = config->proj_bias && has_tensor(file, "transformer.h.0.attn.c_proj.bias");
    config->mlp_bias = config->mlp_bias && has_tensor(file, "transformer.h.0.mlp.c_fc.bias");
    safetensors_close(file);
    return true;
}

bool model_file_read_config(ModelConfig *out, const char *path, Error *err) {
    if (!dir_exists(path)) return model_bin_read_config(out, path, err);
    char *text;
    if (!read_config_text(&text, path, err)) return false;
    char *config_path = path_join(path, CONFIG_FILE);
    ModelConfig config;
    bool ok = hf_config_read(&config, text, config_path, err);
    free(config_path);
    free(text);
    if (!ok) return false;
    if (hf_layout(&config).gpt2_names && !drop_absent_gpt2_biases(&config, path, err)) return false;
    *out = config;
    return true;
}

// The names follow the model_type of the file, because the run's config may differ (a soft cap, a window).
static bool read_gpt2_names(bool *out, const char *dir, Error *err) {
    char *path = path_join(dir, CONFIG_FILE);
    cJSON *root = json_parse_file(path, MAX_CONFIG_BYTES, err);
    free(path);
    if (root == NULL) return false;
    const cJSON *type = json_find(root, "model_type");
    *out = cJSON_IsString(type) && strcmp(type->valuestring, "gpt2") == 0;
    cJSON_Delete(root);
    return true;
}

// ---- import ----

typedef struct {
    const char *path;
    SafeTensors *file;
    HfMap map;
    const SafeTensor **found;  // of each entry of the map; NULL: a zero bias that the file omits
    bool *used;                // of each tensor of the file
} Import;

static bool is_float(const SafeTensor *tensor) {
    static const char *const FLOATS[] = {"F32", "BF16", "F16", "F64"};
    for (int i = 0; i < 4; ++i)
        if (strcmp(tensor->dtype, FLOATS[i]) == 0) return true;
    return false;
}

static void format_shape(char *out, size_t out_bytes, const int64_t *dim, int ndim) {
    size_t used = (size_t)snprintf(out, out_bytes, "[");
    for (int i = 0; i < ndim && used < out_bytes; ++i)
        used += (size_t)snprintf(out + used, out_bytes - used, "%s%lld", i > 0 ? ", " : "", (long long)dim[i]);
    if (used < out_bytes) snprintf(out + used, out_bytes - used, "]");
}

static bool check_tensor(const Import *import, const HfTensor *entry, const SafeTensor *tensor, Error *err) {
    bool same = tensor->ndim == entry->ndim;
    for (int i = 0; i < entry->ndim && same; ++i) same = tensor->dim[i] == entry->dim[i];
    if (!same) {
        char expected[64], found[256];
        format_shape(expected, sizeof expected, entry->dim, entry->ndim);
        format_shape(found, sizeof found, tensor->dim, tensor->ndim);
        return error_set(err, "%s: tensor '%s': expected shape %s, found %s", import->path, tensor->name, expected,
                         found);
    }
    if (!is_float(tensor))
        return error_set(err, "%s: tensor '%s': expected F32, BF16, F16 or F64, found %s", import->path, tensor->name,
                         tensor->dtype);
    return true;
}

static bool check_zeros(const Import *import, const SafeTensor *tensor, int64_t count, Error *err) {
    for (int64_t i = 0; i < count; ++i) {
        float value;
        if (!safetensors_read_f32(tensor, i, 1, &value, err)) return false;
        if (!(value == 0))
            return error_set(err, "%s: tensor '%s': expected zeros, because the model has no such bias", import->path,
                             tensor->name);
    }
    return true;
}

static bool find_all(Import *import, Error *err) {
    for (int i = 0; i < import->map.count; ++i) {
        const HfTensor *entry = &import->map.tensor[i];
        const SafeTensor *tensor = import->found[i] = find_tensor(import->file, entry->name);
        if (tensor == NULL && entry->spec == NULL) continue;
        if (tensor == NULL) return error_set(err, "%s: tensor '%s' is missing", import->path, entry->name);
        import->used[index_of(import->file, tensor)] = true;
        if (!check_tensor(import, entry, tensor, err)) return false;
        if (entry->spec == NULL && !check_zeros(import, tensor, entry->dim[0], err)) return false;
    }
    return true;
}

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

// Tensors that older versions of transformers saved although they follow from the others.
static bool is_harmless(const Import *import, const SafeTensor *tensor) {
    const char *name = tensor->name;
    if (ends_with(name, ".rotary_emb.inv_freq")) return true;
    if (ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias")) return true;
    const SafeTensor *embedding = import->found[0];
    return strcmp(name, "lm_head.weight") == 0 && strcmp(tensor->dtype, embedding->dtype) == 0 &&
           tensor->bytes == embedding->bytes && memcmp(tensor->data, embedding->data, tensor->bytes) == 0;
}

static bool check_leftovers(const Import *import, Error *err) {
    for (int i = 0; i < safetensors_count(import->file); ++i) {
        const SafeTensor *tensor = safetensors_at(import->file, i);
        if (import->used[i] || is_harmless(import, tensor)) continue;
        if (strcmp(tensor->name, "lm_head.weight") == 0)
            return error_set(err, "%s: head and embedding are tied in the config (tie_word_embeddings), but "
                             "'lm_head.weight' differs from the embedding", import->path);
        return error_set(err, "%s: tensor '%s' does not belong to this model", import->path, tensor->name);
    }
    return true;
}

// to(cols, rows) = from(rows, cols) transposed, in tiles that stay in the first-level cache.
static void transpose(float *to, const float *from, int64_t rows, int64_t cols) {
    const int64_t TILE = 32;
    for (int64_t r0 = 0; r0 < rows; r0 += TILE)
        for (int64_t c0 = 0; c0 < cols; c0 += TILE)
            for (int64_t r = r0; r < min_i64(r0 + TILE, rows); ++r)
                for (int64_t c = c0; c < min_i64(c0 + TILE, cols); ++c) to[c * rows + r] = from[r * cols + c];
}

int64_t model_file_largest_param(const ParamTable *params) {
    int64_t largest = 0;
    for (int i = 0; i < params->count; ++i) largest = max_i64(largest, params->spec[i].elems);
    return largest;
}

static bool read_entry(const Import *import, int index, float *values, Error *err) {
    const HfTensor *entry = &import->map.tensor[index];
    int64_t cols = entry->spec->dim[1], elems = entry->rows * cols;
    float *to = values + entry->first_row * cols;
    float *scratch = entry->transposed ? xmalloc(to_size(elems) * sizeof *scratch) : NULL;
    bool ok = safetensors_read_f32(import->found[index], 0, elems, scratch != NULL ? scratch : to, err) ||
              error_prefix(err, "%s", import->path);
    if (ok && scratch != NULL) transpose(to, scratch, cols, entry->rows);
    free(scratch);
    safetensors_release(import->found[index]);
    return ok;
}

struct ModelReader {
    ModelBin *bin;  // an llm.c file; NULL: a Hugging Face directory, with the fields below
    Import import;
    char *path;
    int *first;  // [params->count]: first entry of the map for a parameter
    const ParamTable *params;
};

void model_reader_close(ModelReader *reader) {
    if (reader == NULL) return;
    model_bin_close(reader->bin);
    free(reader->import.found);
    free(reader->import.used);
    hf_map_free(&reader->import.map);
    safetensors_close(reader->import.file);
    free(reader->path);
    free(reader->first);
    free(reader);
}

static bool open_import(ModelReader *reader, Error *err) {
    Import *import = &reader->import;
    const ParamTable *params = reader->params;
    HfLayout layout = {false, true, true, true, true};
    import->path = reader->path;
    if (!read_gpt2_names(&layout.gpt2_names, reader->path, err) ||
        !safetensors_open(&import->file, reader->path, err))
        return false;
    hf_map_build_as(&import->map, params, layout);
    import->found = xcalloc((size_t)import->map.count, sizeof *import->found);
    import->used = xcalloc((size_t)safetensors_count(import->file) + 1, sizeof *import->used);
    reader->first = xcalloc((size_t)params->count, sizeof *reader->first);
    for (int i = import->map.count - 1; i >= 0; --i)
        if (import->map.tensor[i].spec != NULL) reader->first[import->map.tensor[i].spec - params->spec] = i;
    return find_all(import, err) && check_leftovers(import, err);
}

bool model_reader_open(ModelReader **out, const char *path, const ModelConfig *config, const ParamTable *params,
                       Error *err) {
    ModelReader *reader = xcalloc(1, sizeof *reader);
    reader->path = xstrdup(path);
    reader->params = params;
    bool ok = dir_exists(path) ? open_import(reader, err) : model_bin_open(&reader->bin, path, config, params, err);
    if (ok) *out = reader;
    else model_reader_close(reader);
    return ok;
}

bool model_reader_read(ModelReader *reader, const ParamSpec *spec, float *values, Error *err) {
    if (reader->bin != NULL) return model_bin_read(reader->bin, spec, values, err);
    const Import *import = &reader->import;
    const HfMap *map = &import->map;
    for (int i = reader->first[spec - reader->params->spec]; i < map->count && map->tensor[i].spec == spec; ++i)
        if (!read_entry(import, i, values, err)) return false;
    int64_t real = spec->real_rows * spec->dim[1];
    memset(values + real, 0, to_size(spec->elems - real) * sizeof *values);
    return true;
}

// init_std is not compared: it does not affect weights that exist.
bool model_file_same_architecture(const ModelConfig *a, const ModelConfig *theirs) {
    ModelConfig b = *theirs;
    b.init_std = a->init_std;
    char *x = hf_config_write(a, DTYPE_F32, -1, -1), *y = hf_config_write(&b, DTYPE_F32, -1, -1);
    bool same = strcmp(x, y) == 0;
    free(x);
    free(y);
    return same;
}

bool model_file_read(const char *path, const ModelConfig *config, const ParamTable *params, ModelFilePut put,
                     void *context, Error *err) {
    ModelReader *reader;
    if (!model_reader_open(&reader, path, config, params, err)) return false;
    float *values = xmalloc(to_size(model_file_largest_param(params)) * sizeof *values);
    bool ok = true;
    for (int i = 0; i < params->count && ok; ++i)
        ok = model_reader_read(reader, &params->spec[i], values, err) && put(context, &params->spec[i], values, err);
    free(values);
    model_reader_close(reader);
    return ok;
}

// ---- export ----

typedef struct {
    const HfTensor *entry;    // of this file
    DType dtype;
    ModelFileGet get;
    void *context;
    int transposed;           // the entry whose transpose is in `whole`, -1: none
    float *whole, *scratch;   // the largest transposed matrix, twice
    float *chunk;             // SAFETENSORS_CHUNK_ELEMS
    uint16_t *halves;
} Export;

static int64_t largest_transposed(const HfMap *map) {
    int64_t largest = 0;
    for (int i = 0; i < map->count; ++i)
        if (map->tensor[i].transposed) largest = max_i64(largest, map->tensor[i].dim[0] * map->tensor[i].dim[1]);
    return largest;
}

size_t model_file_staging_bytes(const ModelConfig *config, const ParamTable *params) {
    HfMap map;
    hf_map_build(&map, params, config);
    int64_t elems = 2 * largest_transposed(&map);
    hf_map_free(&map);
    return to_size(elems) * sizeof(float) + to_size(SAFETENSORS_CHUNK_ELEMS) * (sizeof(float) + sizeof(uint16_t));
}

static const float *fetch_values(Export *export, int index, int64_t first, int64_t count, Error *err) {
    const HfTensor *entry = &export->entry[index];
    if (entry->spec == NULL) return memset(export->chunk, 0, to_size(count) * sizeof *export->chunk);
    int64_t cols = entry->spec->dim[1], start = entry->first_row * cols;
    if (!entry->transposed)
        return export->get(export->context, entry->spec, start + first, count, export->chunk, err) ? export->chunk
                                                                                                   : NULL;
    if (export->transposed != index) {
        export->transposed = -1;
        if (!export->get(export->context, entry->spec, start, entry->rows * cols, export->scratch, err)) return NULL;
        transpose(export->whole, export->scratch, entry->rows, cols);
        export->transposed = index;
    }
    return export->whole + first;
}

static const void *fetch_tensor(void *context, int index, int64_t first, int64_t count, Error *err) {
    Export *export = context;
    const float *from = fetch_values(export, index, first, count, err);
    if (from == NULL || export->dtype == DTYPE_F32) return from;
    for (int64_t i = 0; i < count; ++i) export->halves[i] = bf16_from_f32(from[i]);
    return export->halves;
}

// ---- shards ----

char *hf_shard_name(const char *stem, int shard, int shards) {
    CHECK(shard >= 0 && shard < shards, "shard=%d shards=%d", shard, shards);
    if (shards == 1) return xasprintf("%s.safetensors", stem);
    return xasprintf("%s-%05d-of-%05d.safetensors", stem, shard + 1, shards);
}

int hf_shard_of(int64_t first, int64_t bytes, int64_t total_bytes, int shards) {
    double middle = (double)first + 0.5 * (double)bytes;
    int shard = total_bytes == 0 ? 0 : (int)(middle / (double)total_bytes * shards);
    return shard < shards ? shard : shards - 1;
}

static int64_t entry_elems(const HfTensor *entry) { return entry->dim[0] * (entry->ndim == 2 ? entry->dim[1] : 1); }

static int64_t map_elems(const HfMap *map) {
    int64_t total = 0;
    for (int i = 0; i < map->count; ++i) total += entry_elems(&map->tensor[i]);
    return total;
}

// Entries [*first, end) of the map belong to the shard; returns end. Counts elements instead of bytes, because there is
// only one dtype.
static int shard_entries(int *first, const HfMap *map, int shard, int shards) {
    int64_t total = map_elems(map), at = 0;
    int end = 0;
    *first = 0;
    for (; end < map->count; ++end) {
        int64_t elems = entry_elems(&map->tensor[end]);
        int of = hf_shard_of(at, elems, total, shards);
        if (of > shard) break;
        if (of < shard) *first = end + 1;
        at += elems;
    }
    return end;
}

int model_file_shard_ranges(ParamRange **out, const ModelConfig *config, const ParamTable *params, int shard,
                            int shards) {
    HfMap map;
    hf_map_build(&map, params, config);
    int i, end = shard_entries(&i, &map, shard, shards), count = 0;
    *out = xcalloc((size_t)params->count, sizeof **out);
    for (; i < end; ++i) {
        const HfTensor *entry = &map.tensor[i];
        if (entry->spec == NULL) continue;
        int param = (int)(entry->spec - params->spec);
        int64_t cols = entry->spec->dim[1];
        if (count > 0 && (*out)[count - 1].param == param) (*out)[count - 1].count += entry->rows * cols;
        else (*out)[count++] = (ParamRange){param, entry->first_row * cols, entry->rows * cols};
    }
    hf_map_free(&map);
    return count;
}

bool model_file_write_hf_shard(const char *dir, const ModelConfig *config, const ParamTable *params, DType dtype,
                               int shard, int shards, ModelFileGet get, void *context, Error *err) {
    CHECK(dtype == DTYPE_F32 || dtype == DTYPE_BF16, "dtype=%s", dtype_name(dtype));
    HfMap map;
    hf_map_build(&map, params, config);
    int first, count = shard_entries(&first, &map, shard, shards) - first;
    SafeTensorSpec *specs = xcalloc((size_t)count + 1, sizeof *specs);
    for (int i = 0; i < count; ++i) {
        const HfTensor *entry = &map.tensor[first + i];
        specs[i] = (SafeTensorSpec){entry->name, dtype, entry->ndim, {entry->dim[0], entry->dim[1]}};
    }
    size_t largest = to_size(largest_transposed(&map));
    Export export = {.entry = map.tensor + first, .dtype = dtype, .get = get, .context = context, .transposed = -1};
    export.whole = xmalloc(largest * sizeof *export.whole);
    export.scratch = xmalloc(largest * sizeof *export.scratch);
    export.chunk = xmalloc(to_size(SAFETENSORS_CHUNK_ELEMS) * sizeof *export.chunk);
    export.halves = xmalloc(to_size(SAFETENSORS_CHUNK_ELEMS) * sizeof *export.halves);
    char *name = hf_shard_name(WEIGHTS_STEM, shard, shards), *path = path_join(dir, name);
    // transformers rejects a file whose metadata lacks the framework.
    bool ok = safetensors_write(path, specs, count, "{\"format\":\"pt\"}", fetch_tensor, &export, err);
    free(path);
    free(name);
    free(export.whole);
    free(export.scratch);
    free(export.chunk);
    free(export.halves);
    free(specs);
    hf_map_free(&map);
    return ok;
}

bool model_file_write_hf(const char *dir, const ModelConfig *config, const ParamTable *params, DType dtype,
                         ModelFileGet get, void *context, Error *err) {
    return model_file_write_hf_shard(dir, config, params, dtype, 0, 1, get, context, err);
}

bool model_file_write_hf_index(const char *dir, const ModelConfig *config, const ParamTable *params, DType dtype,
                               int shards, Error *err) {
    HfMap map;
    hf_map_build(&map, params, config);
    SafeTensorsIndex *index = safetensors_index_new();
    for (int shard = 0; shard < shards; ++shard) {
        int i, end = shard_entries(&i, &map, shard, shards);
        char *name = hf_shard_name(WEIGHTS_STEM, shard, shards);
        for (; i < end; ++i)
            safetensors_index_add(index, map.tensor[i].name, name,
                                  entry_elems(&map.tensor[i]) * (int64_t)dtype_bytes(dtype));
        free(name);
    }
    hf_map_free(&map);
    return safetensors_index_write(index, dir, err);
}
