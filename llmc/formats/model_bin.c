// model_bin.c: llm.c's model file: a header of 256 int32, then each kind of tensor over all layers, weights (out, in),
// the embedding padded to Vp rows; all fp32 (version 3) or bf16 (version 5). Little-endian, like all supported CPUs.
#include "llmc/formats/model_bin.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/file_writer.h"

#define MAGIC 20240326
#define VERSION_F32 3
#define VERSION_BF16 5
#define HEADER_INTS 256
enum { H_MAGIC, H_VERSION, H_MAX_T, H_V, H_L, H_NH, H_C, H_VP, H_USED };

// NULL on error.
static FILE *open_and_read_header(int32_t header[HEADER_INTS], const char *path, Error *err) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        error_set(err, "%s: cannot open: %s", path, strerror(errno));
        return NULL;
    }
    size_t got = fread(header, sizeof *header, HEADER_INTS, file);
    if (got != HEADER_INTS)
        error_set(err, "%s: expected a model file with a header of 1024 bytes, found %zu", path, 4 * got);
    else if (header[H_MAGIC] != MAGIC)
        error_set(err, "%s: expected llm.c's model magic %d, found %d", path, MAGIC, header[H_MAGIC]);
    else if (header[H_VERSION] != VERSION_F32 && header[H_VERSION] != VERSION_BF16)
        error_set(err, "%s: expected version %d (fp32) or %d (bf16), found %d", path, VERSION_F32, VERSION_BF16,
                  header[H_VERSION]);
    else return file;
    fclose(file);
    return NULL;
}

bool model_bin_read_config(ModelConfig *out, const char *path, Error *err) {
    int32_t header[HEADER_INTS];
    FILE *file = open_and_read_header(header, path, err);
    if (file == NULL) return false;
    fclose(file);
    ModelConfig config;
    CHECK(model_config_preset(&config, "gpt2:124M", NULL), "preset %s", "gpt2:124M");
    config.max_seq_len = header[H_MAX_T];
    config.V = header[H_V];
    config.L = header[H_L];
    config.NH = header[H_NH];
    config.C = header[H_C];
    if (!model_config_finish(&config, err)) return error_prefix(err, "%s", path);
    if (config.Vp != header[H_VP])
        return error_set(err, "%s: expected the vocabulary %lld padded to %lld rows, found %d", path,
                         (long long)config.V, (long long)config.Vp, header[H_VP]);
    *out = config;
    return true;
}

// Whether the format can hold the model: everything that its header does not state must be as in GPT-2.
static bool check_architecture(const ModelConfig *config, const char *path, Error *err) {
    bool fits = strcmp(hf_architecture(config), "GPT2LMHeadModel") == 0 && config->tied && config->norm_bias &&
                config->qkv_bias && config->proj_bias && config->mlp_bias && config->F == 4 * config->C;
    if (fits) return true;
    return error_set(
        err, "%s: llm.c's format holds GPT-2 only (tied head, all biases, feed-forward 4 C); this model is %s", path,
        hf_architecture(config));
}

// Offset of the tensor in elements after the header. Kinds are in the order of the parameter table, which is llm.c's;
// within a kind, all layers in order.
static int64_t file_offset(const ParamTable *params, const ParamSpec *spec) {
    int64_t offset = 0;
    for (int i = 0; i < params->count; ++i) {
        const ParamSpec *other = &params->spec[i];
        if (other->role < spec->role || (other->role == spec->role && other->layer < spec->layer)) offset += other->elems;
    }
    return offset;
}

static void widen_bf16(float *values, int64_t count) {
    const unsigned char *halves = (const unsigned char *)values;
    for (int64_t i = count - 1; i >= 0; --i) {  // in place: from the end, before the bf16 values are overwritten
        uint16_t bits;
        memcpy(&bits, halves + 2 * i, sizeof bits);
        values[i] = bf16_to_f32(bits);
    }
}

struct ModelBin {
    FILE *file;
    char *path;
    ModelConfig config;
    const ParamTable *params;
    int width;  // bytes per element
};

static bool check_size(const ModelBin *bin, Error *err) {
    int64_t total = 0;
    for (int i = 0; i < bin->params->count; ++i) total += bin->params->spec[i].elems;
    int64_t expected = HEADER_INTS * 4 + total * bin->width;
    if (fseeko(bin->file, 0, SEEK_END) != 0 || ftello(bin->file) != expected)
        return error_set(err, "%s: expected %lld bytes for this model, found %lld", bin->path, (long long)expected,
                         (long long)ftello(bin->file));
    return true;
}

bool model_bin_read(ModelBin *bin, const ParamSpec *spec, float *values, Error *err) {
    off_t at = HEADER_INTS * 4 + file_offset(bin->params, spec) * bin->width;
    if (fseeko(bin->file, at, SEEK_SET) != 0 ||
        fread(values, (size_t)bin->width, to_size(spec->elems), bin->file) != to_size(spec->elems))
        return error_set(err, "%s: cannot read tensor %s: %s", bin->path, spec->name, strerror(errno));
    if (bin->width == 2) widen_bf16(values, spec->elems);
    int64_t real = spec->real_rows * spec->dim[1];
    memset(values + real, 0, to_size(spec->elems - real) * sizeof *values);
    return true;
}

void model_bin_close(ModelBin *bin) {
    if (bin == NULL) return;
    fclose(bin->file);
    free(bin->path);
    free(bin);
}

bool model_bin_open(ModelBin **out, const char *path, const ModelConfig *config, const ParamTable *params,
                    Error *err) {
    if (!check_architecture(config, path, err)) return false;
    int32_t header[HEADER_INTS];
    FILE *file = open_and_read_header(header, path, err);
    if (file == NULL) return false;
    ModelBin *bin = xcalloc(1, sizeof *bin);
    *bin = (ModelBin){file, xstrdup(path), *config, params, header[H_VERSION] == VERSION_F32 ? 4 : 2};
    bool ok = header[H_L] == config->L && header[H_C] == config->C && header[H_NH] == config->NH &&
              header[H_V] == config->V && header[H_VP] == config->Vp && header[H_MAX_T] == config->max_seq_len;
    if (!ok)
        error_set(err,
                  "%s: expected layers %lld, width %lld, heads %lld, vocabulary %lld, positions %lld, found %d, %d, "
                  "%d, %d, %d",
                  path, (long long)config->L, (long long)config->C, (long long)config->NH, (long long)config->V,
                  (long long)config->max_seq_len, header[H_L], header[H_C], header[H_NH], header[H_V],
                  header[H_MAX_T]);
    ok = ok && check_size(bin, err);
    if (ok) *out = bin;
    else model_bin_close(bin);
    return ok;
}

static bool write_tensor(FileWriter *writer, const ParamSpec *spec, DType dtype, float *values, uint16_t *halves,
                         ModelFileGet get, void *context, Error *err) {
    if (!get(context, spec, 0, spec->elems, values, err)) {
        file_writer_abort(writer);
        return false;
    }
    int64_t real = spec->real_rows * spec->dim[1];
    memset(values + real, 0, to_size(spec->elems - real) * sizeof *values);
    if (dtype == DTYPE_F32) return file_writer_append(writer, values, to_size(spec->elems) * sizeof *values, err);
    for (int64_t i = 0; i < spec->elems; ++i) halves[i] = bf16_from_f32(values[i]);
    return file_writer_append(writer, halves, to_size(spec->elems) * sizeof *halves, err);
}

bool model_file_write_llmc(const char *path, const ModelConfig *config, const ParamTable *params, DType dtype,
                           ModelFileGet get, void *context, Error *err) {
    CHECK(dtype == DTYPE_F32 || dtype == DTYPE_BF16, "dtype=%s", dtype_name(dtype));
    if (!check_architecture(config, path, err)) return false;
    int32_t header[HEADER_INTS] = {0};
    int version = dtype == DTYPE_F32 ? VERSION_F32 : VERSION_BF16;
    const int64_t used[H_USED] = {MAGIC,     version,    config->max_seq_len, config->V,
                                  config->L, config->NH, config->C,           config->Vp};
    for (int i = 0; i < H_USED; ++i) header[i] = to_i32(used[i]);
    int64_t largest = 0;
    for (int i = 0; i < params->count; ++i) largest = max_i64(largest, params->spec[i].elems);
    float *values = xmalloc(to_size(largest) * sizeof *values);
    uint16_t *halves = xmalloc(to_size(largest) * sizeof *halves);
    FileWriter writer;
    bool ok = file_writer_open(&writer, path, err) && file_writer_append(&writer, header, sizeof header, err);
    for (int role = 0; role < PARAM_ROLE_COUNT; ++role)
        for (int i = 0; i < params->count && ok; ++i)
            if (params->spec[i].role == (ParamRole)role)
                ok = write_tensor(&writer, &params->spec[i], dtype, values, halves, get, context, err);
    free(values);
    free(halves);
    return ok && file_writer_commit(&writer, err);
}
