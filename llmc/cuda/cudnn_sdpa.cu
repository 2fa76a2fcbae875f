// cudnn_sdpa.cu: see cudnn_sdpa.h. The graphs are those that cuDNN's fused attention engines recognize; the engines
// prescribe the nodes, their order and which tensors are virtual (the composition follows
// scaled_dot_product_flash_attention of NVIDIA's cudnn-frontend library). Host code only.
#include "llmc/base/plugin.h"
#include "llmc/cuda/cudnn_sdpa.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if CUDNN_SDPA_BUILT

typedef cudnnBackendDescriptor_t Desc;

// ---- the library ----

void cudnn_api_error(const CudnnApi *api, cudnnStatus_t status, char *text, size_t bytes) {
    char last[256] = "";
    api->last_error(last, sizeof last);
    last[sizeof last - 1] = '\0';
    snprintf(text, bytes, "%s%s%s%s", api->error_string(status), last[0] ? " (" : "", last, last[0] ? ")" : "");
}

bool cudnn_api_open(CudnnApi *api, Error *err) {
    memset(api, 0, sizeof *api);
    api->library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    if (api->library == NULL) return error_set(err, "cuDNN 9 was not found: %s", dlerror());
    const LibrarySymbol wanted[] = {
        {"cudnnGetVersion", &api->get_version},
        {"cudnnCreate", &api->create},
        {"cudnnDestroy", &api->destroy},
        {"cudnnSetStream", &api->set_stream},
        {"cudnnGetErrorString", &api->error_string},
        {"cudnnGetLastErrorString", &api->last_error},
        {"cudnnBackendCreateDescriptor", &api->make},
        {"cudnnBackendDestroyDescriptor", &api->drop},
        {"cudnnBackendSetAttribute", &api->set},
        {"cudnnBackendGetAttribute", &api->get},
        {"cudnnBackendFinalize", &api->finalize},
        {"cudnnBackendExecute", &api->execute},
    };
    if (!library_symbols(api->library, "libcudnn.so.9", wanted, sizeof wanted / sizeof wanted[0], err)) {
        cudnn_api_close(api);
        return false;
    }
    api->version = api->get_version();
    if (api->version < CUDNN_SDPA_OLDEST) {
        size_t found = api->version;
        cudnn_api_close(api);
        return error_set(err, "cuDNN %zu.%zu.%zu is too old: attention needs 9.10.2 or newer", found / 10000,
                         found / 100 % 100, found % 100);
    }
    return true;
}

void cudnn_api_close(CudnnApi *api) {
    if (api->library != NULL) dlclose(api->library);
    memset(api, 0, sizeof *api);
}

// ---- descriptors ----
// A graph owns the descriptors that it creates; the first failure is kept and later calls do nothing.

#define GRAPH_DESCRIPTORS 320
#define GRAPH_OPERATIONS 48

struct SdpaGraph {
    const CudnnApi *api;
    const SdpaShape *shape;
    SdpaPlan *plan;
    Desc made[GRAPH_DESCRIPTORS];
    int made_count;
    Desc operations[GRAPH_OPERATIONS];
    int operation_count;
    int64_t next_virtual_uid;
    cudnnStatus_t status;
    const char *where;  // the failed call
    char text[512];
};
typedef struct SdpaGraph Graph;

static bool graph_ok(Graph *g, cudnnStatus_t status, const char *where) {
    if (g->status != CUDNN_STATUS_SUCCESS) return false;
    if (status == CUDNN_STATUS_SUCCESS) return true;
    g->status = status;
    g->where = where;
    cudnn_api_error(g->api, status, g->text, sizeof g->text);
    return false;
}
static bool graph_refuse(Graph *g, const char *why) {
    if (g->status == CUDNN_STATUS_SUCCESS) g->where = why;
    g->status = CUDNN_STATUS_NOT_SUPPORTED;
    return false;
}
static Desc graph_make(Graph *g, cudnnBackendDescriptorType_t type) {
    Desc made = NULL;
    if (g->status != CUDNN_STATUS_SUCCESS) return NULL;
    CHECK(g->made_count < GRAPH_DESCRIPTORS, "%d descriptors", g->made_count);
    if (graph_ok(g, g->api->make(type, &made), "create descriptor")) g->made[g->made_count++] = made;
    return made;
}
static void graph_set(Graph *g, Desc desc, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                      int64_t count, const void *values) {
    if (g->status == CUDNN_STATUS_SUCCESS) graph_ok(g, g->api->set(desc, name, type, count, values), "set attribute");
}
static void graph_set_desc(Graph *g, Desc desc, cudnnBackendAttributeName_t name, Desc value) {
    graph_set(g, desc, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}
static void graph_get(Graph *g, Desc desc, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                      void *value) {
    int64_t count = 0;
    if (g->status != CUDNN_STATUS_SUCCESS) return;
    graph_ok(g, g->api->get(desc, name, type, 1, &count, value), "get attribute");
}
static void graph_finalize(Graph *g, Desc desc, const char *what) {
    if (g->status == CUDNN_STATUS_SUCCESS) graph_ok(g, g->api->finalize(desc), what);
}
void cudnn_sdpa_free(SdpaPlan *plan) {
    SdpaGraph *g = plan->graph;
    plan->graph = NULL;
    plan->plan = NULL;
    if (g == NULL) return;
    while (g->made_count > 0) g->api->drop(g->made[--g->made_count]);
    free(g);
}

// ---- tensors: always four dimensions (batch, head, row, column) ----

typedef struct {
    int64_t dim[4], stride[4];
} Layout;

static Layout layout(int64_t d0, int64_t d1, int64_t d2, int64_t d3, int64_t s0, int64_t s1, int64_t s2, int64_t s3) {
    Layout out = {{d0, d1, d2, d3}, {s0, s1, s2, s3}};
    return out;
}
static Layout layout_packed(int64_t d0, int64_t d1, int64_t d2, int64_t d3) {
    return layout(d0, d1, d2, d3, d1 * d2 * d3, d2 * d3, d3, 1);
}
// Last two dimensions swapped: the same memory as the transposed matrix.
static Layout layout_transposed(Layout l) {
    return layout(l.dim[0], l.dim[1], l.dim[3], l.dim[2], l.stride[0], l.stride[1], l.stride[3], l.stride[2]);
}

static Desc graph_tensor(Graph *g, cudnnDataType_t dtype, Layout l, int64_t uid, bool is_virtual, bool by_value,
                         Desc ragged_offsets) {
    Desc tensor = graph_make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    const int64_t alignment_bytes = 16;
    graph_set(g, tensor, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &dtype);
    graph_set(g, tensor, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, l.dim);
    graph_set(g, tensor, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, l.stride);
    graph_set(g, tensor, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    graph_set(g, tensor, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment_bytes);
    if (is_virtual) graph_set(g, tensor, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    if (by_value) graph_set(g, tensor, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    if (ragged_offsets != NULL) graph_set_desc(g, tensor, CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, ragged_offsets);
    graph_finalize(g, tensor, "tensor");
    return tensor;
}
// A value between two nodes, which stays on chip.
static Desc graph_virtual(Graph *g, cudnnDataType_t dtype, Layout l) {
    return graph_tensor(g, dtype, l, g->next_virtual_uid++, true, false, NULL);
}
static Desc graph_bound(Graph *g, SdpaUid uid, cudnnDataType_t dtype, Layout l, Desc ragged_offsets) {
    g->plan->bound[uid] = true;
    return graph_tensor(g, dtype, l, uid, false, false, ragged_offsets);
}
static Desc graph_scalar(Graph *g, SdpaUid uid) {
    g->plan->bound[uid] = true;
    return graph_tensor(g, CUDNN_DATA_FLOAT, layout(1, 1, 1, 1, 1, 1, 1, 1), uid, false, true, NULL);
}

// ---- nodes ----

static void graph_add(Graph *g, Desc operation, const char *what) {
    graph_finalize(g, operation, what);
    CHECK(g->operation_count < GRAPH_OPERATIONS, "%d operations", g->operation_count);
    g->operations[g->operation_count++] = operation;
}

// y = x (mode) b, or x where t and b elsewhere; b and t may be NULL. axis: of CUDNN_POINTWISE_GEN_INDEX.
static Desc graph_pointwise_into(Graph *g, Desc y, cudnnPointwiseMode_t mode, cudnnDataType_t compute, Desc x, Desc b,
                                 Desc t, int64_t axis) {
    Desc how = graph_make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    graph_set(g, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    graph_set(g, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &compute);
    if (mode == CUDNN_POINTWISE_GEN_INDEX) graph_set(g, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    graph_finalize(g, how, "pointwise");
    Desc operation = graph_make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b != NULL) graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    if (t != NULL) graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t);
    graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    graph_add(g, operation, "pointwise operation");
    return y;
}
// The common case: fp32 input, a new fp32 output.
static Desc graph_pointwise(Graph *g, cudnnPointwiseMode_t mode, Layout l, Desc x, Desc b) {
    return graph_pointwise_into(g, graph_virtual(g, CUDNN_DATA_FLOAT, l), mode, CUDNN_DATA_FLOAT, x, b, NULL, 0);
}

static Desc graph_reduce_into(Graph *g, Desc y, cudnnReduceTensorOp_t mode, Desc x) {
    const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    Desc how = graph_make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    graph_set(g, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode);
    graph_set(g, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
    graph_finalize(g, how, "reduction");
    Desc operation = graph_make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    graph_add(g, operation, "reduction operation");
    return y;
}

// The real sizes of each batch entry where they differ from the tensors' (ragged graphs), else NULL.
typedef struct {
    Desc m, n, k;
} Sizes;

static Desc graph_matmul_into(Graph *g, Desc c, Desc a, Desc b, Sizes sizes) {
    const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    Desc how = graph_make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    graph_set(g, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
    graph_finalize(g, how, "matmul");
    Desc operation = graph_make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    if (sizes.m) graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, sizes.m);
    if (sizes.n) graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, sizes.n);
    if (sizes.k) graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, sizes.k);
    graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    graph_add(g, operation, "matmul operation");
    return c;
}

// The same elements with other dimensions and strides: how the graphs express a transpose.
static Desc graph_reshape_into(Graph *g, Desc y, Desc x) {
    Desc operation = graph_make(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    graph_set_desc(g, operation, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    graph_add(g, operation, "reshape operation");
    return y;
}

// ---- attention ----

// Inputs of both directions: the layouts of a shape, the scores' scalars and the sequence lengths.
typedef struct {
    Layout q, kv, out, stats, scores;
    Desc offsets_qkv, offsets_out, offsets_stats;  // ragged, else NULL
    Desc lengths_q, lengths_kv;                    // ragged, else NULL
    Desc scale, minus_infinity;
} Sdpa;

static Sdpa sdpa_begin(Graph *g) {
    const SdpaShape *s = g->shape;
    int64_t B = s->batch, T = s->T, HS = s->HS, QKV = (s->row_NH + 2 * s->row_NKV) * HS, OUT = s->row_NH * HS;
    Sdpa out;
    memset(&out, 0, sizeof out);
    out.q = layout(B, s->NH, T, HS, T * QKV, HS, QKV, 1);
    out.kv = layout(B, s->NKV, T, HS, T * QKV, HS, QKV, 1);
    out.out = layout(B, s->NH, T, HS, T * OUT, HS, OUT, 1);
    out.stats = layout(B, s->NH, T, 1, s->row_NH * T, T, 1, 1);
    out.scores = layout_packed(B, s->NH, T, T);
    if (s->ragged) {
        out.stats = layout(B, s->NH, T, 1, T * s->NH, 1, s->NH, 1);
        Layout offsets = layout(B + 1, 1, 1, 1, 1, 1, 1, 1), lengths = layout(B, 1, 1, 1, 1, 1, 1, 1);
        out.offsets_qkv = graph_bound(g, SDPA_OFFSETS_QKV, CUDNN_DATA_INT64, offsets, NULL);
        out.offsets_out = graph_bound(g, SDPA_OFFSETS_OUT, CUDNN_DATA_INT64, offsets, NULL);
        out.offsets_stats = graph_bound(g, SDPA_OFFSETS_STATS, CUDNN_DATA_INT64, offsets, NULL);
        out.lengths_q = graph_bound(g, SDPA_LENGTHS_Q, CUDNN_DATA_INT32, lengths, NULL);
        out.lengths_kv = graph_bound(g, SDPA_LENGTHS_KV, CUDNN_DATA_INT32, lengths, NULL);
    }
    out.scale = graph_scalar(g, SDPA_SCALE);
    out.minus_infinity = graph_scalar(g, SDPA_MINUS_INFINITY);
    return out;
}

static Desc sdpa_index(Graph *g, const Sdpa *a, Desc scores, int64_t axis, cudnnDataType_t compute) {
    return graph_pointwise_into(g, graph_virtual(g, CUDNN_DATA_INT32, a->scores), CUDNN_POINTWISE_GEN_INDEX, compute,
                                scores, NULL, NULL, axis);
}
static Desc sdpa_compare(Graph *g, const Sdpa *a, cudnnPointwiseMode_t mode, Desc x, Desc b) {
    return graph_pointwise_into(g, graph_virtual(g, CUDNN_DATA_BOOLEAN, a->scores), mode, CUDNN_DATA_BOOLEAN, x, b,
                                NULL, 0);
}
static Desc sdpa_select(Graph *g, const Sdpa *a, Desc scores, Desc keep) {
    return graph_pointwise_into(g, graph_virtual(g, CUDNN_DATA_FLOAT, a->scores), CUDNN_POINTWISE_BINARY_SELECT,
                                CUDNN_DATA_FLOAT, scores, a->minus_infinity, keep, 0);
}
// Masks rows and columns beyond an entry's length.
static Desc sdpa_mask_lengths(Graph *g, const Sdpa *a, Desc scores) {
    if (a->lengths_q == NULL) return scores;
    Desc row = sdpa_index(g, a, scores, 2, CUDNN_DATA_INT32);
    Desc column = sdpa_index(g, a, scores, 3, CUDNN_DATA_INT32);
    Desc row_in = sdpa_compare(g, a, CUDNN_POINTWISE_CMP_LT, row, a->lengths_q);
    Desc column_in = sdpa_compare(g, a, CUDNN_POINTWISE_CMP_LT, column, a->lengths_kv);
    return sdpa_select(g, a, scores, sdpa_compare(g, a, CUDNN_POINTWISE_LOGICAL_AND, row_in, column_in));
}
// j <= i, and with a window j + window > i.
static Desc sdpa_mask_causal(Graph *g, const Sdpa *a, Desc scores) {
    Desc row = sdpa_index(g, a, scores, 2, CUDNN_DATA_FLOAT);
    Desc column = sdpa_index(g, a, scores, 3, CUDNN_DATA_FLOAT);
    scores = sdpa_select(g, a, scores, sdpa_compare(g, a, CUDNN_POINTWISE_CMP_GE, row, column));
    if (g->shape->window == 0) return scores;
    row = sdpa_index(g, a, scores, 2, CUDNN_DATA_FLOAT);
    column = sdpa_index(g, a, scores, 3, CUDNN_DATA_FLOAT);
    Desc reach = graph_pointwise(g, CUDNN_POINTWISE_ADD, a->scores, column, graph_scalar(g, SDPA_WINDOW));
    return sdpa_select(g, a, scores, sdpa_compare(g, a, CUDNN_POINTWISE_CMP_GT, reach, row));
}

static void sdpa_forward(Graph *g) {
    Sdpa a = sdpa_begin(g);
    Desc q = graph_bound(g, SDPA_Q, CUDNN_DATA_BFLOAT16, a.q, a.offsets_qkv);
    Desc kt = graph_bound(g, SDPA_K, CUDNN_DATA_BFLOAT16, layout_transposed(a.kv), a.offsets_qkv);
    Desc v = graph_bound(g, SDPA_V, CUDNN_DATA_BFLOAT16, a.kv, a.offsets_qkv);
    Desc out = graph_bound(g, SDPA_O, CUDNN_DATA_BFLOAT16, a.out, a.offsets_out);
    Desc stats = graph_bound(g, SDPA_STATS, CUDNN_DATA_FLOAT, a.stats, a.offsets_stats);
    Layout row = layout_packed(a.scores.dim[0], a.scores.dim[1], a.scores.dim[2], 1);

    Desc scores = graph_virtual(g, CUDNN_DATA_FLOAT, a.scores);
    graph_matmul_into(g, scores, q, kt, Sizes{a.lengths_q, a.lengths_kv, NULL});
    scores = graph_pointwise(g, CUDNN_POINTWISE_MUL, a.scores, scores, a.scale);
    scores = sdpa_mask_lengths(g, &a, scores);
    scores = sdpa_mask_causal(g, &a, scores);

    Desc most = graph_reduce_into(g, graph_virtual(g, CUDNN_DATA_FLOAT, row), CUDNN_REDUCE_TENSOR_MAX, scores);
    Desc below = graph_pointwise(g, CUDNN_POINTWISE_SUB, a.scores, scores, most);
    Desc weight = graph_pointwise(g, CUDNN_POINTWISE_EXP, a.scores, below, NULL);
    Desc sum = graph_reduce_into(g, graph_virtual(g, CUDNN_DATA_FLOAT, row), CUDNN_REDUCE_TENSOR_ADD, weight);
    Desc log_sum = graph_pointwise(g, CUDNN_POINTWISE_LOG, row, sum, NULL);
    graph_pointwise_into(g, stats, CUDNN_POINTWISE_ADD, CUDNN_DATA_FLOAT, most, log_sum, NULL, 0);
    Desc probability = graph_virtual(g, CUDNN_DATA_BFLOAT16, a.scores);
    graph_pointwise_into(g, probability, CUDNN_POINTWISE_DIV, CUDNN_DATA_FLOAT, weight, sum, NULL, 0);

    graph_matmul_into(g, out, probability, v, Sizes{a.lengths_q, NULL, a.lengths_kv});
}

// dkv = transposed(x) right, summed over the query heads that share a key/value head.
static void sdpa_kv_gradient(Graph *g, const Sdpa *a, SdpaUid uid, Desc x, Desc right) {
    const SdpaShape *s = g->shape;
    Desc gradient = graph_bound(g, uid, CUDNN_DATA_BFLOAT16, a->kv, a->offsets_qkv);
    Desc transposed = graph_virtual(g, CUDNN_DATA_BFLOAT16, layout_transposed(a->scores));
    graph_reshape_into(g, transposed, x);
    Sizes sizes = {a->lengths_kv, NULL, a->lengths_q};
    if (s->NH == s->NKV) {
        graph_matmul_into(g, gradient, transposed, right, sizes);
        return;
    }
    Desc heads = graph_virtual(g, CUDNN_DATA_BFLOAT16, layout_packed(s->batch, s->NH, s->T, s->HS));
    graph_matmul_into(g, heads, transposed, right, sizes);
    graph_reduce_into(g, gradient, CUDNN_REDUCE_TENSOR_ADD, heads);
}

static void sdpa_backward(Graph *g) {
    const SdpaShape *s = g->shape;
    Sdpa a = sdpa_begin(g);
    Desc q = graph_bound(g, SDPA_Q, CUDNN_DATA_BFLOAT16, a.q, a.offsets_qkv);
    Desc kt = graph_bound(g, SDPA_K, CUDNN_DATA_BFLOAT16, layout_transposed(a.kv), a.offsets_qkv);
    Desc vt = graph_bound(g, SDPA_V, CUDNN_DATA_BFLOAT16, layout_transposed(a.kv), a.offsets_qkv);
    Desc out = graph_bound(g, SDPA_O, CUDNN_DATA_BFLOAT16, a.out, a.offsets_out);
    Desc dout = graph_bound(g, SDPA_DO, CUDNN_DATA_BFLOAT16, a.out, a.offsets_out);
    Desc stats = graph_bound(g, SDPA_STATS, CUDNN_DATA_FLOAT, a.stats, a.offsets_stats);
    Desc dq = graph_bound(g, SDPA_DQ, CUDNN_DATA_BFLOAT16, a.q, a.offsets_qkv);
    Layout row = layout_packed(s->batch, s->NH, s->T, 1);

    // row_sum = sum over the head of dout * out
    Desc product = graph_pointwise(g, CUDNN_POINTWISE_MUL,
                                   layout(s->batch, s->NH, s->T, s->HS, s->NH * s->T * s->HS, s->T * s->HS,
                                          s->NH * s->HS, 1),
                                   dout, out);
    Desc reduced = graph_reduce_into(g, graph_virtual(g, CUDNN_DATA_FLOAT, row), CUDNN_REDUCE_TENSOR_ADD, product);
    Desc row_sum = graph_bound(g, SDPA_ROW_SUM, CUDNN_DATA_FLOAT, s->ragged ? a.stats : row, a.offsets_stats);
    graph_pointwise_into(g, row_sum, CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT, reduced, graph_scalar(g, SDPA_ONE), NULL,
                         0);

    // p = exp(masked scores - log-sum-exp); dV = p^T dout
    Desc scores = graph_virtual(g, CUDNN_DATA_FLOAT, a.scores);
    graph_matmul_into(g, scores, q, kt, Sizes{a.lengths_q, a.lengths_kv, NULL});
    scores = graph_pointwise(g, CUDNN_POINTWISE_MUL, a.scores, scores, a.scale);
    scores = sdpa_mask_lengths(g, &a, scores);
    scores = graph_pointwise(g, CUDNN_POINTWISE_SUB, a.scores, scores, stats);
    scores = sdpa_mask_causal(g, &a, scores);
    Desc p = graph_pointwise(g, CUDNN_POINTWISE_EXP, a.scores, scores, NULL);
    sdpa_kv_gradient(g, &a, SDPA_DV, p, dout);

    // ds = scale * p * (dout v^T - row_sum); dK = ds^T q
    Desc dp = graph_virtual(g, CUDNN_DATA_FLOAT, a.scores);
    graph_matmul_into(g, dp, dout, vt, Sizes{a.lengths_q, a.lengths_kv, NULL});
    dp = graph_pointwise(g, CUDNN_POINTWISE_SUB, a.scores, dp, row_sum);
    Desc ds = graph_pointwise(g, CUDNN_POINTWISE_MUL, a.scores, dp, p);
    ds = graph_pointwise(g, CUDNN_POINTWISE_MUL, a.scores, ds, a.scale);
    sdpa_kv_gradient(g, &a, SDPA_DK, ds, q);

    // dQ = ds k; without a fixed order its parts are added in fp32 in memory and then rounded
    Sizes sizes = {a.lengths_q, NULL, a.lengths_kv};
    Desc k = graph_tensor(g, CUDNN_DATA_BFLOAT16, a.kv, g->next_virtual_uid++, true, false, a.offsets_qkv);
    graph_reshape_into(g, k, kt);
    if (s->deterministic) {
        graph_matmul_into(g, dq, ds, k, sizes);
        return;
    }
    Layout sum_layout = s->ragged ? a.q : layout_packed(s->batch, s->NH, s->T, s->HS);
    Desc dq_sum = graph_bound(g, SDPA_DQ_SUM, CUDNN_DATA_FLOAT, sum_layout, a.offsets_qkv);
    graph_matmul_into(g, dq_sum, ds, k, sizes);
    graph_pointwise_into(g, dq, CUDNN_POINTWISE_IDENTITY, CUDNN_DATA_FLOAT, dq_sum, NULL, NULL, 0);
}

// Why a shape is refused without asking cuDNN: shapes that it computes wrongly or is not made for. NULL: not refused.
static const char *sdpa_unfit(const CudnnApi *api, SdpaDevice device, const SdpaShape *s) {
    int major = device.compute_capability / 10;
    if (s->HS % 8 != 0) return "heads are not a multiple of 8 wide";
    if (s->T < CUDNN_SHORTEST_T) return "sequences are shorter than 64 tokens";
    if (s->backward && !s->ragged && s->T % CUDNN_TILE != 0 && api->version < 91600)
        return "before 9.16 sequences must be a multiple of 128 tokens";
    if (s->ragged && major != 9 && major != 10) return "documents need a GPU like the H100 or B200";
    if (s->ragged && s->backward && s->HS % 16 != 0) return "documents need heads that are a multiple of 16 wide";
    // cuDNN would keep dK and dV of each query head, in rows wider than qkv's by the group size.
    if (s->ragged && s->backward && s->NH != s->NKV) return "documents, backward, with shared key/value heads";
    return NULL;
}

// ---- engines and plans ----

#define MAX_ENGINES 16

// True if an engine's notes do not include nondeterminism.
static bool engine_is_deterministic(Graph *g, Desc engine) {
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    int64_t count = 0;
    g->api->get(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, CUDNN_NUMERICAL_NOTE_TYPE_COUNT,
                &count, notes);
    for (int64_t i = 0; i < count; ++i)
        if (notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) return false;
    return true;
}

// cuDNN's proposals for the graph, best first: a configuration is an engine with its settings.
static int64_t graph_engines(Graph *g, Desc operation_graph, Desc device, Desc configs[MAX_ENGINES]) {
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    Desc heuristics = graph_make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    graph_set_desc(g, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, operation_graph);
    graph_set(g, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (device != NULL) graph_set_desc(g, heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device);
    graph_finalize(g, heuristics, "engine heuristics");
    for (int i = 0; i < MAX_ENGINES; ++i) configs[i] = graph_make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    int64_t count = 0;
    if (g->status == CUDNN_STATUS_SUCCESS)
        graph_ok(g, g->api->get(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, MAX_ENGINES,
                                &count, configs),
                 "engine heuristics' results");
    return g->status == CUDNN_STATUS_SUCCESS ? count : 0;
}

bool cudnn_sdpa_stores_scores(const CudnnApi *api, SdpaDevice device) {
    return device.compute_capability / 10 != 10 || api->version < 91800;
}

// B200: the heuristics propose its backward engine only for unordered sums; the settings also select an ordered mode
// (as in NVIDIA's frontend). NULL if this cuDNN has no such engine.
static Desc graph_ordered_config(Graph *g, SdpaDevice device, Desc operation_graph) {
    static const int64_t SETTINGS_918[][2] = {{CUDNN_KNOB_TYPE_KERNEL_CFG, 31}, {CUDNN_KNOB_TYPE_STAGES, 2}};
    static const int64_t SETTINGS_923[][2] = {
        {CUDNN_KNOB_TYPE_TILE_M, 3},   {CUDNN_KNOB_TYPE_TILE_N, 2},     {CUDNN_KNOB_TYPE_KERNEL_CFG, 2},
        {CUDNN_KNOB_TYPE_STREAM_K, 0}, {CUDNN_KNOB_TYPE_TILE_CGA_M, 0}, {CUDNN_KNOB_TYPE_STAGES, 2}};
    if (cudnn_sdpa_stores_scores(g->api, device) || g->status != CUDNN_STATUS_SUCCESS) return NULL;
    bool newer = g->api->version >= 92300;
    const int64_t(*settings)[2] = newer ? SETTINGS_923 : SETTINGS_918;
    int count = newer ? 6 : 2;
    const int64_t number = 5;
    Desc engine = graph_make(g, CUDNN_BACKEND_ENGINE_DESCRIPTOR), choices[6];
    graph_set_desc(g, engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, operation_graph);
    graph_set(g, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &number);
    if (device.description != NULL) graph_set_desc(g, engine, CUDNN_ATTR_ENGINE_DEVICEPROP, device.description);
    graph_finalize(g, engine, "engine");
    for (int i = 0; i < count; ++i) {
        cudnnBackendKnobType_t type = (cudnnBackendKnobType_t)settings[i][0];
        choices[i] = graph_make(g, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
        graph_set(g, choices[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &type);
        graph_set(g, choices[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &settings[i][1]);
        graph_finalize(g, choices[i], "engine setting");
    }
    Desc config = graph_make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    graph_set_desc(g, config, CUDNN_ATTR_ENGINECFG_ENGINE, engine);
    graph_set(g, config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR, count, choices);
    graph_finalize(g, config, "engine configuration");
    bool known = g->status == CUDNN_STATUS_SUCCESS;
    g->status = CUDNN_STATUS_SUCCESS;
    g->text[0] = '\0';
    return known ? config : NULL;
}

// Tries one configuration. Fills the plan and returns true if cuDNN supports it; otherwise the graph keeps the reason.
static bool graph_try(Graph *g, SdpaDevice device, Desc config) {
    SdpaPlan *out = g->plan;
    Desc engine = graph_make(g, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    graph_get(g, config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, &engine);
    graph_get(g, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, &out->engine);
    if (g->shape->deterministic && !engine_is_deterministic(g, engine))
        return graph_refuse(g, "no engine adds in a fixed order");
    if (device.handle == NULL) {
        graph_get(g, config, CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE, CUDNN_TYPE_INT64, &out->workspace_bytes);
        return g->status == CUDNN_STATUS_SUCCESS;
    }
    Desc plan = graph_make(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    graph_set(g, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &device.handle);
    graph_set_desc(g, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    graph_finalize(g, plan, "execution plan");
    graph_get(g, plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, &out->workspace_bytes);
    if (g->status == CUDNN_STATUS_SUCCESS) out->plan = plan;
    return g->status == CUDNN_STATUS_SUCCESS;
}

// Tries the configurations in turn.
static bool graph_choose(Graph *g, SdpaDevice device, Desc operation_graph) {
    Desc configs[MAX_ENGINES + 1];
    int64_t count = graph_engines(g, operation_graph, device.description, configs + 1);
    bool ordered = g->shape->backward && g->shape->deterministic;
    configs[0] = ordered ? graph_ordered_config(g, device, operation_graph) : NULL;
    for (int64_t i = 0; i <= count; ++i) {
        if (configs[i] == NULL) continue;
        g->status = CUDNN_STATUS_SUCCESS;
        g->text[0] = '\0';
        if (graph_try(g, device, configs[i])) return true;
    }
    return graph_refuse(g, "no engine for it");
}

bool cudnn_sdpa_build(SdpaPlan *plan, const CudnnApi *api, SdpaDevice device, const SdpaShape *shape, Error *err) {
    memset(plan, 0, sizeof *plan);
    const char *unfit = sdpa_unfit(api, device, shape);
    if (unfit != NULL) return error_set(err, "%s", unfit);
    Graph *g = (Graph *)xcalloc(1, sizeof *g);
    g->api = api;
    g->shape = shape;
    g->plan = plan;
    g->next_virtual_uid = SDPA_UID_COUNT;
    if (shape->backward) sdpa_backward(g);
    else sdpa_forward(g);
    Desc graph = graph_make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    if (device.handle != NULL)
        graph_set(g, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &device.handle);
    graph_set(g, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->operation_count,
              g->operations);
    graph_finalize(g, graph, "operation graph");
    bool ok = g->status == CUDNN_STATUS_SUCCESS && graph_choose(g, device, graph);
    if (!ok) error_set(err, "%s%s%s", g->where, g->text[0] ? ": " : "", g->text);
    plan->graph = g;
    if (plan->plan == NULL) cudnn_sdpa_free(plan);
    return ok;
}

#endif
