// command_ckpt_reshard.c: train_gpt ckpt reshard: divides a checkpoint into the files of another number of ranks,
// bit for bit. Runs do not need it (they resume from the files of any number of ranks); other programs may want one
// file, or many.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/command/ckpt_common.h"
#include "llmc/command/command.h"

static const char USAGE[] =
    "train_gpt ckpt reshard from=DIR to=DIR ranks=N\n"
    "\n"
    "Rewrites a checkpoint as N ranks would have written it; ranks=1: model.safetensors, optimizer.safetensors. No\n"
    "bit of any value changes. Resuming does not need it: any number of ranks resumes from the files of any other.\n"
    "\n"
    "example\n"
    "  train_gpt ckpt reshard from=runs/big/step_00010000 to=one_file ranks=1\n";

#define MOST_RANKS 99999

// ---- weights: whole tensors, unchanged, in the order of the files ----

static int compare_places(const void *a, const void *b) {
    const SafeTensor *x = *(const SafeTensor *const *)a, *y = *(const SafeTensor *const *)b;
    if (x->file != y->file) return x->file - y->file;
    return (x->data > y->data) - (x->data < y->data);
}

static bool raw_spec(SafeTensorSpec *out, const SafeTensor *tensor, const char *path, Error *err) {
    static const struct {
        const char *name;
        DType dtype;
    } DTYPES[] = {{"F32", DTYPE_F32}, {"BF16", DTYPE_BF16}, {"I32", DTYPE_I32}, {"U8", DTYPE_U8}, {"F64", DTYPE_F64}};
    for (size_t i = 0; i < sizeof DTYPES / sizeof DTYPES[0]; ++i)
        if (strcmp(tensor->dtype, DTYPES[i].name) == 0) {
            *out = (SafeTensorSpec){.name = tensor->name, .dtype = DTYPES[i].dtype, .ndim = tensor->ndim};
            memcpy(out->dim, tensor->dim, sizeof tensor->dim);
            return true;
        }
    return error_set(err, "%s: tensor '%s' has dtype %s, expected F32 or BF16; convert the model with `train_gpt ckpt "
                          "import` first", path, tensor->name, tensor->dtype);
}

static const void *fetch_raw(void *context, int index, int64_t first, int64_t count, Error *err) {
    (void)err;
    (void)count;
    const SafeTensor *const *source = context, *tensor = source[index];
    // The tensor before this one is written: its pages are not needed any more.
    if (first == 0 && index > 0) safetensors_release(source[index - 1]);
    int64_t elems = 1;
    for (int i = 0; i < tensor->ndim; ++i) elems *= tensor->dim[i];
    return tensor->data + to_size(first) * (tensor->bytes / to_size(elems));
}

static bool write_weights(const char *dir, const SafeTensors *file, const char *from, int shards, Error *err) {
    int count = safetensors_count(file), next = 0;
    const SafeTensor **tensor = xcalloc((size_t)count + 1, sizeof *tensor);
    SafeTensorSpec *spec = xcalloc((size_t)count + 1, sizeof *spec);
    int64_t total = 0, at = 0;
    for (int i = 0; i < count; ++i) {
        tensor[i] = safetensors_at(file, i);
        total += (int64_t)tensor[i]->bytes;
    }
    qsort(tensor, (size_t)count, sizeof *tensor, compare_places);
    bool ok = true;
    for (int i = 0; i < count && ok; ++i) ok = raw_spec(&spec[i], tensor[i], from, err);
    SafeTensorsIndex *index = safetensors_index_new();
    for (int shard = 0; shard < shards && ok; ++shard) {
        char *name = hf_shard_name("model", shard, shards), *path = path_join(dir, name);
        int first = next;
        for (; next < count && hf_shard_of(at, (int64_t)tensor[next]->bytes, total, shards) == shard; ++next) {
            at += (int64_t)tensor[next]->bytes;
            safetensors_index_add(index, tensor[next]->name, name, (int64_t)tensor[next]->bytes);
        }
        ok = safetensors_write(path, spec + first, next - first, "{\"format\":\"pt\"}", fetch_raw, tensor + first,
                               err);
        free(path);
        free(name);
    }
    if (ok && shards > 1) ok = safetensors_index_write(index, dir, err);
    else safetensors_index_free(index);
    free(tensor);
    free(spec);
    return ok;
}

// ---- optimizer state: divided as between the ranks of a run with zero=1 ----

typedef struct {
    const OptimizerFiles *files;
    const StatePiece *list;
    float *staging;
} StateSource;

static const void *fetch_state(void *context, int index, int64_t first, int64_t count, Error *err) {
    StateSource *source = context;
    const StatePiece *piece = &source->list[index];
    if (!optimizer_files_read(source->files, piece->kind, piece->param, piece->first + first, count, source->staging,
                              err))
        return NULL;
    if (first + count == piece->count) optimizer_files_release(source->files, piece->kind, piece->param);
    return source->staging;
}

static bool write_state(const char *dir, const char *from, int shards, Error *err) {
    ModelConfig config;
    ParamTable params;
    if (!ckpt_read_model(&config, &params, from, err)) return false;
    OptimizerFiles *files = NULL;
    PartitionOptions options = {.data.world = shards, .stage = 1};
    StateKept kept;
    bool ok = ckpt_open_optimizer(&files, &kept, from, &params, err);
    options.muon = ok && kept.muon;
    float *staging = xmalloc(to_size(SAFETENSORS_CHUNK_ELEMS) * sizeof *staging);
    for (options.data.rank = 0; options.data.rank < shards && ok; ++options.data.rank) {
        StatePiece *list;
        int count = state_pieces(&list, &params, &options, &kept);
        StateSource source = {files, list, staging};
        ok = optimizer_file_write(dir, options.data.rank, shards, &params, list, count, fetch_state, &source, err);
        free(list);
    }
    free(staging);
    optimizer_files_close(files);
    params_free(&params);
    return ok;
}

// ---- the rest ----

static bool is_divided(const char *name) {
    static const char *const STEMS[] = {"model", "optimizer"};
    if (strcmp(name, "model.safetensors.index.json") == 0 || strcmp(name, CHECKPOINT_MANIFEST) == 0) return true;
    size_t length = strlen(name), end = strlen(".safetensors");
    for (int i = 0; i < 2; ++i)
        if (strncmp(name, STEMS[i], strlen(STEMS[i])) == 0 && length > end &&
            strcmp(name + length - end, ".safetensors") == 0)
            return true;
    return false;
}

static bool copy_others(const char *dir, const char *from, Error *err) {
    NameList names;
    if (!dir_list(&names, from, err)) return false;
    bool ok = true;
    for (int i = 0; i < names.count && ok; ++i) {
        char *path = path_join(from, names.name[i]);
        if (file_exists(path) && !is_divided(names.name[i])) ok = ckpt_copy_file(from, dir, names.name[i], err);
        free(path);
    }
    name_list_free(&names);
    return ok;
}

static bool reshard(const char *from, const char *to, int shards, Error *err) {
    SafeTensors *weights = NULL;
    CheckpointWriter writer;
    if (!ckpt_refuse_existing(to, err) || !ckpt_check_source(from, err) || !safetensors_open(&weights, from, err))
        return false;
    bool ok = checkpoint_begin_at(&writer, to, err);
    if (ok) {
        ok = write_weights(writer.dir, weights, from, shards, err) &&
             (!optimizer_files_exist(from) || write_state(writer.dir, from, shards, err)) &&
             copy_others(writer.dir, from, err);
        if (ok) ok = checkpoint_commit(&writer, err);
        else checkpoint_abort(&writer);
    }
    safetensors_close(weights);
    return ok;
}

int command_ckpt_reshard(int argc, char **argv) {
    const char *from = NULL, *to = NULL;
    int64_t ranks = 0;
    const Option rows[] = {
        {"from", OPTION_TO(from), .help = "checkpoint or Hugging Face directory"},
        {"to", OPTION_TO(to), .help = "directory to write; must not exist"},
        {"ranks", OPTION_TO(ranks), OPTION_WHOLE, 1, MOST_RANKS, .help = "number of files"}};
    const OptionTable table = {OPTION_ROWS(rows), OPTIONS_KEYS, .program = "train_gpt ckpt", .about = USAGE};
    int status = options_read(&table, argc, argv);
    if (status != OPTIONS_CONTINUE) return status;
    if (from == NULL || to == NULL || ranks == 0) {
        fprintf(stderr, "train_gpt ckpt reshard: expected from=DIR, to=DIR and ranks=N, see --help\n");
        return 2;
    }
    Error err = {""};
    if (!reshard(from, to, (int)ranks, &err)) return command_fail(&err);
    printf("wrote %s for %lld rank%s\n", to, (long long)ranks, ranks == 1 ? "" : "s");
    return 0;
}
