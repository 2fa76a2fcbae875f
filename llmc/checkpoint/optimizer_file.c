// optimizer_file.c: see optimizer_file.h.
#include "llmc/checkpoint/optimizer_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/dir_list.h"
#include "llmc/base/format_version.h"
#include "llmc/formats/model_file.h"

#define STEM "optimizer"

void state_piece_name(char out[STATE_NAME_BYTES], const ParamTable *params, const StatePiece *piece) {
    const ParamSpec *spec = &params->spec[piece->param];
    int used = snprintf(out, STATE_NAME_BYTES, "%s.%s", STATE_ROWS[piece->kind].name, spec->name);
    if (piece->count < spec->elems)
        snprintf(out + used, STATE_NAME_BYTES - (size_t)used, "[%" PRId64 ":%" PRId64 "]", piece->first,
                 piece->first + piece->count);
}

// ---------------------------------------------------------------------------------------------------------------
// Writing

// A piece of a parameter is one tensor in the file for each kind of state that the parameter has.
static void add_kinds(StatePiece *list, int *count, const ParamTable *params, int param, int64_t first, int64_t elems,
                      const StateKept *kept) {
    for (int kind = 0; kind < STATE_KINDS; ++kind)
        if (STATE_ROWS[kind].kept(kept, &params->spec[param]))
            list[(*count)++] = (StatePiece){(StateKind)kind, param, first, elems};
}

int state_pieces(StatePiece **out, const ParamTable *params, const PartitionOptions *options,
                 const StateKept *kept) {
    CHECK(options->muon == kept->muon, "muon=%d and %d", options->muon, kept->muon);
    int count = 0;
    if (options->data.world == 1) {
        *out = xcalloc((size_t)params->count * STATE_KINDS, sizeof **out);
        for (int i = 0; i < params->count; ++i)
            add_kinds(*out, &count, params, i, 0, params->spec[i].elems, kept);
        return count;
    }
    PartitionOptions divided = *options;
    if (divided.stage == 0) divided.stage = 1;
    Partition partition;
    partition_build(&partition, params, &divided);
    *out = xcalloc((size_t)partition.pieces * STATE_KINDS + 1, sizeof **out);  // a rank may have none
    for (int i = 0; i < partition.pieces; ++i) {
        const Piece *piece = &partition.piece[i];
        add_kinds(*out, &count, params, piece->param, piece->first, piece->count, kept);
    }
    partition_free(&partition);
    return count;
}

bool optimizer_file_write(const char *dir, int shard, int shards, const ParamTable *params, const StatePiece *pieces,
                          int count, SafeTensorFetch fetch, void *context, Error *err) {
    SafeTensorSpec *specs = xcalloc((size_t)count + 1, sizeof *specs);
    char(*names)[STATE_NAME_BYTES] = xcalloc((size_t)count + 1, sizeof *names);
    for (int i = 0; i < count; ++i) {
        const ParamSpec *spec = &params->spec[pieces[i].param];
        state_piece_name(names[i], params, &pieces[i]);
        DType dtype = STATE_ROWS[pieces[i].kind].dtype;
        specs[i] = (SafeTensorSpec){names[i], dtype, spec->ndim, {spec->dim[0], spec->dim[1]}};
        if (pieces[i].count < spec->elems) specs[i] = (SafeTensorSpec){names[i], dtype, 1, {pieces[i].count}};
    }
    char *name = hf_shard_name(STEM, shard, shards), *path = path_join(dir, name);
    char *metadata = xasprintf("{\"" FORMAT_VERSION_KEY "\":\"%" PRId64 "\"}", format_version(FORMAT_OPTIMIZER));
    bool ok = safetensors_write(path, specs, count, metadata, fetch, context, err);
    free(metadata);
    free(path);
    free(name);
    free(names);
    free(specs);
    return ok;
}

// ---------------------------------------------------------------------------------------------------------------
// Reading

typedef struct {
    StatePiece piece;
    int file;
    const SafeTensor *tensor;
} FoundPiece;

struct OptimizerFiles {
    const ParamTable *params;
    char *dir;
    SafeTensors **file;
    char **path;
    int file_count;
    FoundPiece *found;  // sorted by kind, parameter, first element; complete and without overlap
    int count;
    int (*first)[STATE_KINDS];  // [params->count]: index in found, -1: none
};

static bool is_state_file(const char *name) {
    size_t length = strlen(name), stem = strlen(STEM), end = strlen(".safetensors");
    return strncmp(name, STEM, stem) == 0 && length >= stem + end &&
           strcmp(name + length - end, ".safetensors") == 0;
}

bool optimizer_files_exist(const char *dir) {
    NameList names;
    if (!dir_list(&names, dir, NULL)) return false;
    bool found = false;
    for (int i = 0; i < names.count; ++i) found = found || is_state_file(names.name[i]);
    name_list_free(&names);
    return found;
}

// The number of files in the set by its first file's name; 0: not a name of this format.
static int set_size(const char *name) {
    int shards;
    if (strcmp(name, STEM ".safetensors") == 0) return 1;
    return sscanf(name, STEM "-%*5d-of-%5d", &shards) == 1 && shards > 1 ? shards : 0;
}

static bool stranger_error(const char *dir, const char *name, int shards, Error *err) {
    return error_set(err, "%s/%s: is not one of the %d files of the set in this directory", dir, name, shards);
}

// out = the names of the files, which must be one whole set, in order.
static bool find_files(NameList *out, const char *dir, Error *err) {
    NameList all;
    *out = (NameList){0};
    if (!dir_list(&all, dir, err)) return false;
    out->name = xcalloc((size_t)all.count + 1, sizeof *out->name);
    for (int i = 0; i < all.count; ++i)
        if (is_state_file(all.name[i])) out->name[out->count++] = xstrdup(all.name[i]);
    name_list_free(&all);
    int shards = out->count == 0 ? 1 : set_size(out->name[0]);
    bool ok = shards > 0 || error_set(err, "%s/%s: expected a name like " STEM "-00001-of-00004.safetensors", dir,
                                      out->name[0]);
    // Order by name is order by number: the first difference from the expected name is a missing or an extra file.
    for (int i = 0; ok && i < shards; ++i) {
        char *expected = hf_shard_name(STEM, i, shards);
        int order = i < out->count ? strcmp(out->name[i], expected) : 1;
        if (order > 0) ok = error_set(err, "%s/%s: missing", dir, expected);
        if (order < 0) ok = stranger_error(dir, out->name[i], shards, err);
        free(expected);
    }
    if (ok && out->count > shards) ok = stranger_error(dir, out->name[shards], shards, err);
    if (!ok) name_list_free(out);
    return ok;
}

static int find_param(const ParamTable *params, const char *name, size_t length) {
    for (int i = 0; i < params->count; ++i)
        if (strlen(params->spec[i].name) == length && strncmp(params->spec[i].name, name, length) == 0) return i;
    return -1;
}

// Parses "first:end]" in exactly the form in which it is written.
static bool parse_range(int64_t *first, int64_t *end, const char *text) {
    char number[2][24] = {"", ""}, expected[64];
    if (sscanf(text, "%23[0-9]:%23[0-9]", number[0], number[1]) != 2) return false;
    if (!parse_i64(number[0], first) || !parse_i64(number[1], end)) return false;
    snprintf(expected, sizeof expected, "%" PRId64 ":%" PRId64 "]", *first, *end);
    return strcmp(text, expected) == 0;
}

static bool parse_name(StatePiece *out, const ParamTable *params, const char *name) {
    const char *dot = strchr(name, '.');
    int kind = 0;
    for (; kind < STATE_KINDS; ++kind)
        if (dot != NULL && strlen(STATE_ROWS[kind].name) == (size_t)(dot - name) &&
            strncmp(name, STATE_ROWS[kind].name, (size_t)(dot - name)) == 0)
            break;
    if (kind == STATE_KINDS) return false;
    const char *rest = dot + 1, *bracket = strchr(rest, '[');
    int param = find_param(params, rest, bracket == NULL ? strlen(rest) : (size_t)(bracket - rest));
    if (param < 0) return false;
    int64_t first = 0, end = params->spec[param].elems;
    if (bracket != NULL && !parse_range(&first, &end, bracket + 1)) return false;
    if (first < 0 || first >= end || end > params->spec[param].elems) return false;
    *out = (StatePiece){(StateKind)kind, param, first, end - first};
    return true;
}

static bool has_shape(const SafeTensor *tensor, const StatePiece *piece, const ParamSpec *spec) {
    if (strcmp(tensor->dtype, safetensors_dtype_name(STATE_ROWS[piece->kind].dtype)) != 0) return false;
    if (strchr(tensor->name, '[') != NULL) return tensor->ndim == 1 && tensor->dim[0] == piece->count;
    return tensor->ndim == spec->ndim && tensor->dim[0] == spec->dim[0] &&
           (spec->ndim == 1 || tensor->dim[1] == spec->dim[1]);
}

// Call before the tensors are parsed: a newer file may have other kinds.
static bool check_version(const OptimizerFiles *files, int file, Error *err) {
    const char *version = safetensors_metadata(files->file[file], FORMAT_VERSION_KEY);
    return format_version_parse(FORMAT_OPTIMIZER, version, files->path[file], err);
}

static bool add_tensors(OptimizerFiles *files, int file, Error *err) {
    const char *path = files->path[file];
    int count = safetensors_count(files->file[file]);
    files->found = xrealloc(files->found, (size_t)(files->count + count + 1) * sizeof *files->found);
    for (int i = 0; i < count; ++i) {
        FoundPiece *found = &files->found[files->count++];
        *found = (FoundPiece){.file = file, .tensor = safetensors_at(files->file[file], i)};
        const char *name = found->tensor->name;
        if (!parse_name(&found->piece, files->params, name))
            return error_set(err, "%s: tensor '%s' has no place in this model's optimizer state", path, name);
        if (!has_shape(found->tensor, &found->piece, &files->params->spec[found->piece.param]))
            return error_set(err, "%s: tensor '%s': expected %" PRId64 " %s values%s, found another dtype or shape",
                             path, name, found->piece.count, dtype_name(STATE_ROWS[found->piece.kind].dtype),
                             strchr(name, '[') == NULL ? " in the parameter's shape" : "");
    }
    return true;
}

static int compare_found(const void *a, const void *b) {
    const FoundPiece *x = a, *y = b;
    if (x->piece.kind != y->piece.kind) return (int)x->piece.kind - (int)y->piece.kind;
    if (x->piece.param != y->piece.param) return x->piece.param - y->piece.param;
    if (x->piece.first != y->piece.first) return x->piece.first < y->piece.first ? -1 : 1;
    return x->file - y->file;
}

static bool same_state(const FoundPiece *x, const FoundPiece *y) {
    return x->piece.kind == y->piece.kind && x->piece.param == y->piece.param;
}

static bool gap_error(const OptimizerFiles *files, const FoundPiece *at, int64_t first, int64_t end, Error *err) {
    StatePiece whole = {at->piece.kind, at->piece.param, 0, files->params->spec[at->piece.param].elems};
    char name[STATE_NAME_BYTES];
    state_piece_name(name, files->params, &whole);
    return error_set(err, "%s: elements %" PRId64 " to %" PRId64 " of %s are in none of the %d optimizer files "
                          "(beside '%s' in %s)", files->dir, first, end - 1, name, files->file_count,
                     at->tensor->name, files->path[at->file]);
}

// Checks that each state in the files has every element exactly once.
static bool check_coverage(OptimizerFiles *files, Error *err) {
    const FoundPiece *found = files->found;
    for (int i = 0; i < files->count; ++i) {
        const StatePiece *piece = &found[i].piece;
        bool starts = i == 0 || !same_state(&found[i - 1], &found[i]);
        bool ends = i == files->count - 1 || !same_state(&found[i], &found[i + 1]);
        int64_t expected = starts ? 0 : found[i - 1].piece.first + found[i - 1].piece.count;
        int64_t elems = files->params->spec[piece->param].elems;
        if (piece->first < expected)
            return error_set(err, "%s: tensor '%s' overlaps tensor '%s' of %s", files->path[found[i].file],
                             found[i].tensor->name, found[i - 1].tensor->name, files->path[found[i - 1].file]);
        if (piece->first > expected) return gap_error(files, &found[i], expected, piece->first, err);
        if (ends && piece->first + piece->count < elems)
            return gap_error(files, &found[i], piece->first + piece->count, elems, err);
        if (starts) files->first[piece->param][piece->kind] = i;
    }
    return true;
}

bool optimizer_files_open(OptimizerFiles **out, const char *dir, const ParamTable *params, Error *err) {
    NameList names;
    if (!find_files(&names, dir, err)) return false;
    OptimizerFiles *files = xcalloc(1, sizeof *files);
    files->params = params;
    files->dir = xstrdup(dir);
    files->file = xcalloc((size_t)names.count, sizeof *files->file);
    files->path = xcalloc((size_t)names.count, sizeof *files->path);
    files->first = xcalloc((size_t)params->count, sizeof *files->first);
    for (int i = 0; i < params->count; ++i)
        for (int kind = 0; kind < STATE_KINDS; ++kind) files->first[i][kind] = -1;
    bool ok = true;
    for (int i = 0; i < names.count && ok; ++i) {
        files->path[i] = path_join(dir, names.name[i]);
        files->file_count = i + 1;
        ok = safetensors_open(&files->file[i], files->path[i], err) && check_version(files, i, err) &&
             add_tensors(files, i, err);
    }
    name_list_free(&names);
    if (ok && files->count > 0) qsort(files->found, (size_t)files->count, sizeof *files->found, compare_found);
    ok = ok && check_coverage(files, err);
    if (ok) *out = files;
    else optimizer_files_close(files);
    return ok;
}

void optimizer_files_close(OptimizerFiles *files) {
    if (files == NULL) return;
    for (int i = 0; i < files->file_count; ++i) {
        safetensors_close(files->file[i]);
        free(files->path[i]);
    }
    free(files->file);
    free(files->path);
    free(files->found);
    free(files->first);
    free(files->dir);
    free(files);
}

int optimizer_files_count(const OptimizerFiles *files) { return files->file_count; }

bool optimizer_files_has(const OptimizerFiles *files, StateKind kind, int param) {
    CHECK(param >= 0 && param < files->params->count, "param=%d", param);
    return files->first[param][kind] >= 0;
}

StateKept optimizer_files_kept(const OptimizerFiles *files) {
    StateKept kept = {.masters = optimizer_files_has(files, STATE_MASTER, 0)};
    for (int i = 0; i < files->params->count; ++i)
        kept.muon = kept.muon || (files->params->spec[i].hidden_matrix && !optimizer_files_has(files, STATE_V, i));
    return kept;
}

bool optimizer_files_check(const OptimizerFiles *files, const StateKept *kept, Error *err) {
    for (int i = 0; i < files->params->count; ++i) {
        const ParamSpec *spec = &files->params->spec[i];
        for (int kind = 0; kind < STATE_KINDS; ++kind) {
            const StateKindRow *row = &STATE_ROWS[kind];
            if (row->kept(kept, spec) && !optimizer_files_has(files, (StateKind)kind, i))
                return error_set(err, "%s: expected tensor %s.%s with %" PRId64 " %s values, found none",
                                 files->file_count == 1 ? files->path[0] : files->dir, row->name, spec->name,
                                 spec->elems, dtype_name(row->dtype));
        }
    }
    return true;
}

bool optimizer_files_read(const OptimizerFiles *files, StateKind kind, int param, int64_t first, int64_t count,
                          float *out, Error *err) {
    CHECK(optimizer_files_has(files, kind, param) && first >= 0 && count >= 0 &&
              first + count <= files->params->spec[param].elems,
          "%s.%s first=%" PRId64 " count=%" PRId64, STATE_ROWS[kind].name, files->params->spec[param].name, first, count);
    for (int i = files->first[param][kind]; count > 0; ++i) {
        const FoundPiece *found = &files->found[i];
        int64_t skip = first - found->piece.first;
        if (skip >= found->piece.count) continue;
        int64_t here = min_i64(count, found->piece.count - skip);
        if (!safetensors_read_f32(found->tensor, skip, here, out, err))
            return error_prefix(err, "%s", files->path[found->file]);
        out += here;
        first += here;
        count -= here;
    }
    return true;
}

void optimizer_files_release(const OptimizerFiles *files, StateKind kind, int param) {
    for (int i = files->first[param][kind]; i >= 0 && i < files->count; ++i) {
        if (!same_state(&files->found[i], &files->found[files->first[param][kind]])) return;
        safetensors_release(files->found[i].tensor);
    }
}
