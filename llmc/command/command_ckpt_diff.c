// command_ckpt_diff.c: train_gpt ckpt diff: which tensors of two checkpoints differ, and by how much.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/command/ckpt_common.h"

static const char USAGE[] =
    "train_gpt ckpt diff A B\n"
    "\n"
    "Compares two checkpoints or Hugging Face directories: the weights, and the optimizer state if both have it. How\n"
    "they are divided into files does not matter. For every tensor that is not bit-identical it prints the largest\n"
    "absolute difference, the largest relative one (to the larger of the two values), and the norms of both and of\n"
    "the difference. Exit status 0: equal, 1: different, 2: error.\n"
    "\n"
    "example\n"
    "  train_gpt ckpt diff runs/a/step_00000500 runs/b/step_00000500\n";

#define CHUNK_ELEMS SAFETENSORS_CHUNK_ELEMS

typedef struct {
    int64_t elems, differing;      // of the current tensor
    double largest, relative;      // NaN: a value is NaN in one of the two only
    double squares[2], of_difference;
} Difference;

typedef struct {
    float *values[2];
    int tensors, differing;
    double largest;  // over all tensors; where: its tensor
    char where[256];
} Report;

// The maximum, or NaN if a is NaN (so a NaN stays).
static double larger(double a, double b) { return isnan(a) || a > b ? a : b; }

static void add_chunk(Difference *out, const float *a, const float *b, int64_t count) {
    out->elems += count;
    for (int64_t i = 0; i < count; ++i) {
        double x = (double)a[i], y = (double)b[i], d = fabs(x - y), size = fmax(fabs(x), fabs(y));
        out->squares[0] += x * x;
        out->squares[1] += y * y;
        if (memcmp(&a[i], &b[i], sizeof a[i]) == 0) continue;
        ++out->differing;
        out->of_difference += d * d;
        out->largest = larger(out->largest, d);
        out->relative = larger(out->relative, size > 0 ? d / size : d);
    }
}

static void report(Report *all, const char *name, const Difference *d) {
    ++all->tensors;
    if (d->differing == 0) return;
    if (all->differing++ == 0)
        printf("%-44s %22s %10s %10s %10s %10s %10s\n", "tensor", "elements that differ", "largest", "relative",
               "norm of A", "of B", "of A - B");
    printf("%-44s %11lld/%10lld %10.3g %10.3g %10.4g %10.4g %10.3g\n", name, (long long)d->differing,
           (long long)d->elems, d->largest, d->relative, sqrt(d->squares[0]), sqrt(d->squares[1]),
           sqrt(d->of_difference));
    if (all->differing == 1 || larger(d->largest, all->largest) == d->largest || isnan(d->largest)) {
        all->largest = d->largest;
        snprintf(all->where, sizeof all->where, "%s", name);
    }
}

static void report_missing(Report *all, const char *name, const char *path) {
    ++all->tensors;
    ++all->differing;
    printf("%-44s only in %s\n", name, path);
}

// ---- weights, by the names in the files ----

static bool same_shape(const SafeTensor *a, const SafeTensor *b) {
    return a->ndim == b->ndim && memcmp(a->dim, b->dim, (size_t)a->ndim * sizeof a->dim[0]) == 0;
}

static bool compare_weight(Report *all, const SafeTensor *a, const SafeTensor *b, Error *err) {
    if (!same_shape(a, b)) {
        ++all->tensors;
        ++all->differing;
        printf("%-44s has different shapes\n", a->name);
        return true;
    }
    int64_t elems = 1;
    for (int i = 0; i < a->ndim; ++i) elems *= a->dim[i];
    Difference d = {0};
    for (int64_t first = 0; first < elems; first += CHUNK_ELEMS) {
        int64_t count = min_i64(CHUNK_ELEMS, elems - first);
        if (!safetensors_read_f32(a, first, count, all->values[0], err) ||
            !safetensors_read_f32(b, first, count, all->values[1], err))
            return false;
        add_chunk(&d, all->values[0], all->values[1], count);
    }
    safetensors_release(a);
    safetensors_release(b);
    report(all, a->name, &d);
    return true;
}

static bool compare_weights(Report *all, char **path, Error *err) {
    SafeTensors *file[2] = {NULL, NULL};
    bool ok = safetensors_open(&file[0], path[0], err) && safetensors_open(&file[1], path[1], err);
    for (int i = 0; ok && i < safetensors_count(file[0]); ++i) {
        const SafeTensor *a = safetensors_at(file[0], i), *b = safetensors_find(file[1], a->name);
        if (b == NULL) report_missing(all, a->name, path[0]);
        else ok = compare_weight(all, a, b, err);
    }
    for (int i = 0; ok && i < safetensors_count(file[1]); ++i) {
        const SafeTensor *b = safetensors_at(file[1], i);
        if (safetensors_find(file[0], b->name) == NULL) report_missing(all, b->name, path[1]);
    }
    safetensors_close(file[0]);
    safetensors_close(file[1]);
    return ok;
}

// ---- the optimizer's state, by parameter ----

static bool compare_state(Report *all, OptimizerFiles *const *files, char **path, const ParamTable *params,
                          StateKind kind, int param, Error *err) {
    bool there[2] = {optimizer_files_has(files[0], kind, param), optimizer_files_has(files[1], kind, param)};
    if (!there[0] && !there[1]) return true;
    int64_t elems = params->spec[param].elems;
    char name[STATE_NAME_BYTES];
    state_piece_name(name, params, &(StatePiece){kind, param, 0, elems});
    if (!there[0] || !there[1]) {
        report_missing(all, name, path[there[0] ? 0 : 1]);
        return true;
    }
    Difference d = {0};
    for (int64_t first = 0; first < elems; first += CHUNK_ELEMS) {
        int64_t count = min_i64(CHUNK_ELEMS, elems - first);
        for (int side = 0; side < 2; ++side)
            if (!optimizer_files_read(files[side], kind, param, first, count, all->values[side], err)) return false;
        add_chunk(&d, all->values[0], all->values[1], count);
    }
    for (int side = 0; side < 2; ++side) optimizer_files_release(files[side], kind, param);
    report(all, name, &d);
    return true;
}

static bool compare_optimizers(Report *all, char **path, const ParamTable *params, Error *err) {
    OptimizerFiles *files[2] = {NULL, NULL};
    bool ok = optimizer_files_open(&files[0], path[0], params, err) &&
              optimizer_files_open(&files[1], path[1], params, err);
    for (int i = 0; i < params->count && ok; ++i)
        for (int kind = 0; kind < STATE_KINDS && ok; ++kind)
            ok = compare_state(all, files, path, params, (StateKind)kind, i, err);
    optimizer_files_close(files[0]);
    optimizer_files_close(files[1]);
    return ok;
}

static bool compare_rest(Report *all, char **path, Error *err) {
    bool there[2] = {optimizer_files_exist(path[0]), optimizer_files_exist(path[1])};
    if (!there[0] || !there[1]) {
        if (there[0] != there[1])
            printf("only %s has optimizer state: only the weights are compared\n", path[there[0] ? 0 : 1]);
        return true;
    }
    ModelConfig config[2];
    ParamTable params[2];
    if (!ckpt_read_model(&config[0], &params[0], path[0], err)) return false;
    bool ok = ckpt_read_model(&config[1], &params[1], path[1], err);
    if (ok && !model_file_same_architecture(&config[0], &config[1])) {
        printf("the architectures differ: only the weights are compared\n");
        ++all->differing;
    } else ok = ok && compare_optimizers(all, path, &params[0], err);
    if (ok) params_free(&params[1]);
    params_free(&params[0]);
    return ok;
}

int command_ckpt_diff(int argc, char **argv) {
    bool help = argc == 2 && is_help_word(argv[1]);
    if (argc != 3) {
        fputs(USAGE, help ? stdout : stderr);
        return help ? 0 : 2;
    }
    Report all = {0};
    for (int side = 0; side < 2; ++side) all.values[side] = xmalloc(to_size(CHUNK_ELEMS) * sizeof(float));
    Error err = {""};
    bool ok = compare_weights(&all, argv + 1, &err) && compare_rest(&all, argv + 1, &err);
    for (int side = 0; side < 2; ++side) free(all.values[side]);
    if (!ok) {
        fprintf(stderr, "train_gpt: %s\n", err.message);
        return 2;
    }
    if (all.differing == 0) printf("%d tensors, all the same to the bit\n", all.tensors);
    else if (all.where[0] == '\0') printf("%d of %d tensors differ\n", all.differing, all.tensors);
    else
        printf("%d of %d tensors differ, the most by %.3g in %s\n", all.differing, all.tensors, all.largest,
               all.where);
    return all.differing == 0 ? 0 : 1;
}
