// cases.c: the families of operations, the models and scales that give the timed shapes, and lists of cases.
#include "dev/cases/cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Matmuls come last: they are many, and a time limit should not skip the other operations.
const OpFamily *const OP_FAMILIES[] = {&OPS_NORM,  &OPS_QK,        &OPS_POINTWISE, &OPS_EMBEDDING, &OPS_LOSS,
                                       &OPS_OPTIM, &OPS_ATTENTION, &OPS_REDUCE,    &OPS_MATMUL,    NULL};

const OpKind *op_kind_find(const char *op, const char *variant) {
    for (const OpFamily *const *family = OP_FAMILIES; *family != NULL; ++family)
        for (int i = 0; i < (*family)->count; ++i) {
            const OpKind *kind = &(*family)->kinds[i];
            if (strcmp(kind->op, op) == 0 && strcmp(kind->variant, variant) == 0) return kind;
        }
    CHECK(false, "no operation %s %s", op, variant);
    return NULL;
}

// "tiny" is for the emulator, where every element of a kernel takes a hundred nanoseconds.
static const OpScale SCALES[] = {
    {.name = "cpu",
     .models = "gpt2-124M",
     .rows = 1024,
     .head_rows = 1024,
     .lengths = {256, 1024},
     .attention_tokens = 1024,
     .optim_elems = 1 << 24,
     .rotation_bytes = (size_t)128 << 20,
     .copy_bytes = (size_t)256 << 20,
     .peak_width = 1024,
     .case_seconds = 2},
    {.name = "gpu",
     .models = "all",
     .rows = 16384,
     .head_rows = 2048,
     .lengths = {1024, 4096},
     .attention_tokens = 16384,
     .optim_elems = 1 << 26,
     .rotation_bytes = (size_t)256 << 20,
     .copy_bytes = (size_t)1 << 30,
     .peak_width = 8192,
     .case_seconds = 0.15},
    {.name = "tiny",
     .models = "gpt2-124M,qwen2-0.5B",
     .rows = 8,
     .head_rows = 4,
     .vocab = 640,
     .lengths = {64, 0},
     .attention_tokens = 64,
     .optim_elems = 1 << 14,
     .rotation_bytes = (size_t)1 << 20,
     .copy_bytes = (size_t)1 << 20,
     .peak_width = 64,
     .case_seconds = 0.05},
};
const OpScale *op_scale_find(const char *name) {
    for (size_t i = 0; i < sizeof SCALES / sizeof SCALES[0]; ++i)
        if (strcmp(SCALES[i].name, name) == 0) return &SCALES[i];
    return NULL;
}

// ---- models ----

static const struct {
    const char *name, *preset;
} MODELS[] = {
    {"gpt2-124M", "gpt2:124M"}, {"gpt2-350M", "gpt2:350M"},   {"gpt2-774M", "gpt2:774M"},
    {"gpt2-1.5B", "gpt2:1.5B"}, {"qwen2-0.5B", "qwen2:0.5B"}, {"qwen2-1.5B", "qwen2:1.5B"},
    {"qwen2-3B", "qwen2:3B"},
};
#define MODEL_COUNT ((int)(sizeof MODELS / sizeof MODELS[0]))
_Static_assert(sizeof MODELS / sizeof MODELS[0] <= OP_MAX_MODELS, "raise OP_MAX_MODELS");

static bool is_listed(const char *names, const char *name) {
    size_t length = strlen(name);
    for (const char *p = names; *p != '\0';) {
        size_t span = strcspn(p, ",");
        if (span == length && strncmp(p, name, length) == 0) return true;
        p += span + (p[span] == ',');
    }
    return false;
}

int op_models_parse(OpModel models[OP_MAX_MODELS], const char *names, const OpScale *scale, Error *err) {
    bool all = strcmp(names, "all") == 0;
    int count = 0, listed = names[0] != '\0';
    for (const char *p = names; *p != '\0'; ++p) listed += *p == ',';
    for (int i = 0; i < MODEL_COUNT; ++i) {
        if (!all && !is_listed(names, MODELS[i].name)) continue;
        OpModel *model = &models[count++];
        model->name = MODELS[i].name;
        if (!model_config_preset(&model->config, MODELS[i].preset, err)) return -1;
        if (scale->vocab > 0) model->config.V = min_i64(model->config.V, scale->vocab);
        if (!model_config_finish(&model->config, err)) return -1;
    }
    if (all || count == listed) return count;
    char known[256] = "";
    for (int i = 0; i < MODEL_COUNT; ++i) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", MODELS[i].name);
    }
    error_set(err, "--models %s: expected \"all\" or names out of %s, without repetition", names, known);
    return -1;
}

// ---- the list ----

struct OpShapes {
    OpList *list;
    const OpFilter *filter;
    const OpKind *kind;
};

void op_shape_text(char *out, size_t out_bytes, const OpShape *shape) {
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < shape->dims && used < out_bytes; ++i)
        used += (size_t)snprintf(out + used, out_bytes - used, "%s%lld", i ? "x" : "", (long long)shape->dim[i]);
}

static void add_case(OpShapes *shapes, const OpShape *shape, DType dtype) {
    const OpFilter *filter = shapes->filter;
    char text[96], whole[256];
    op_shape_text(text, sizeof text, shape);
    snprintf(whole, sizeof whole, "%s %s %s %s", shapes->kind->op, shapes->kind->variant, shape->label, text);
    if (strstr(whole, filter->only) == NULL) return;
    OpList *list = shapes->list;
    if (list->count == list->capacity) {
        list->capacity = list->capacity == 0 ? 64 : 2 * list->capacity;
        list->cases = xrealloc(list->cases, (size_t)list->capacity * sizeof *list->cases);
    }
    list->cases[list->count++] = (OpCase){shapes->kind, dtype, *shape};
}

void op_add(OpShapes *shapes, int dims, const int64_t *dim, unsigned flags, const char *label, ...) {
    OpShape shape = {.dims = dims, .flags = flags | shapes->kind->flags};
    CHECK(dims <= OP_MAX_DIMS, "%d dimensions", dims);
    for (int i = 0; i < dims; ++i) shape.dim[i] = dim[i];
    va_list args;
    va_start(args, label);
    vsnprintf(shape.label, sizeof shape.label, label, args);
    va_end(args);
    if (shapes->kind->fp32 && shapes->filter->fp32) add_case(shapes, &shape, DTYPE_F32);
    if (shapes->kind->bf16 && shapes->filter->bf16) add_case(shapes, &shape, DTYPE_BF16);
}

const OpKind *op_adding_to(const OpShapes *shapes) { return shapes->kind; }
bool op_adding_bf16(const OpShapes *shapes) { return shapes->filter->bf16; }

OpList op_list_build(const OpFilter *filter) {
    OpList list = {0};
    for (const OpFamily *const *family = OP_FAMILIES; *family != NULL; ++family)
        for (int k = 0; k < (*family)->count; ++k) {
            const OpKind *kind = &(*family)->kinds[k];
            if (kind->shapes == NULL || (filter->on_gpu ? kind->cpu_only : kind->gpu_only)) continue;
            OpShapes shapes = {&list, filter, kind};
            for (int m = 0; m < filter->model_count; ++m) kind->shapes(&shapes, filter->scale, &filter->models[m]);
            kind->shapes(&shapes, filter->scale, NULL);
        }
    return list;
}
OpList op_list_odd(const OpKind *kind, DType dtype) {
    OpList list = {0};
    OpFilter filter = {.only = "", .fp32 = dtype == DTYPE_F32, .bf16 = dtype == DTYPE_BF16};
    OpShapes shapes = {&list, &filter, kind};
    if (kind->odd_shapes != NULL) kind->odd_shapes(&shapes);
    return list;
}
void op_list_free(OpList *list) {
    free(list->cases);
    *list = (OpList){0};
}
