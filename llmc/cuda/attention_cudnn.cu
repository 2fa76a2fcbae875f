// attention_cudnn.cu: see attention_cudnn.h. Without cudnn.h, and in the emulator, opening reports that cuDNN is
// absent. cudnn_sdpa.cu builds the graphs.
#include "llmc/cuda/attention_cudnn.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/cuda/cudnn_sdpa.h"

// ---- documents ----

#define DOCUMENT_THREADS 1024

// cuDNN counts ragged offsets in elements of their tensor: a document's first row times the elements of a row (as in
// TransformerEngine and PyTorch). If a cuDNN version counts tokens instead, only this must change.
static __device__ __forceinline__ int64_t document_offset(int64_t first_row, int64_t row_elems) {
    return first_row * row_elems;
}

struct DocumentRows {
    int64_t qkv_elems, out_elems, stats_elems;  // per row
};

// One block. Each thread reads its part of doc twice: to count the documents that begin in it and, given the number
// that begin before it, to write their offsets. Bound by the latency of reading 4 bytes per token through one SM, a
// few us.
static __global__ void __launch_bounds__(DOCUMENT_THREADS)
    documents_kernel(DocumentTables tables, const int32_t *doc, int64_t B, int64_t T, int64_t places,
                     DocumentRows rows) {
    SHARED_ARRAY(int32_t, warp_counts, WARP);
    int64_t tokens = B * T, stretch = (tokens + DOCUMENT_THREADS - 1) / DOCUMENT_THREADS;
    int64_t begin = min((int64_t)threadIdx.x * stretch, tokens), end = min(begin + stretch, tokens);
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;

    int32_t count = 0;
    for (int64_t i = begin, t = begin % T; i < end; ++i, t = t + 1 == T ? 0 : t + 1)
        count += t == 0 || doc[i] != doc[i - 1];

    int32_t scan = count;  // of this lane and all lower ones
    for (int distance = 1; distance < WARP; distance *= 2) {
        int32_t other = __shfl_up_sync(FULL_MASK, scan, distance);
        if (lane >= distance) scan += other;
    }
    if (lane == WARP - 1) warp_counts[warp] = scan;
    __syncthreads();
    int64_t before = scan - count, total = 0;
    for (int w = 0; w < DOCUMENT_THREADS / WARP; ++w) {
        if (w < warp) before += warp_counts[w];
        total += warp_counts[w];
    }

    bool served = total <= places;
    int64_t used = served ? total : 0, rest = served ? tokens : 0;
    for (int64_t i = begin, t = begin % T; served && i < end; ++i, t = t + 1 == T ? 0 : t + 1) {
        if (t != 0 && doc[i] == doc[i - 1]) continue;
        tables.offsets_qkv[before] = document_offset(i, rows.qkv_elems);
        tables.offsets_out[before] = document_offset(i, rows.out_elems);
        tables.offsets_stats[before] = document_offset(i, rows.stats_elems);
        ++before;
    }
    for (int64_t place = used + threadIdx.x; place <= places; place += DOCUMENT_THREADS) {
        tables.offsets_qkv[place] = document_offset(rest, rows.qkv_elems);
        tables.offsets_out[place] = document_offset(rest, rows.out_elems);
        tables.offsets_stats[place] = document_offset(rest, rows.stats_elems);
    }
    __syncthreads();
    for (int64_t place = threadIdx.x; place < places; place += DOCUMENT_THREADS)
        tables.lengths[place] = (int32_t)((tables.offsets_stats[place + 1] - tables.offsets_stats[place]) /
                                          document_offset(1, rows.stats_elems));
    if (threadIdx.x == 0) *tables.unserved = !served;
}

void cudnn_attention_documents(Backend *be, DocumentTables tables, Tensor doc, int64_t places, AttentionArgs args) {
    DocumentRows rows = {(args.NH + 2 * args.NKV) * args.HS, args.NH * args.HS, args.NH};
    GPU_LAUNCH(be, documents_kernel, dim3(1), dim3(DOCUMENT_THREADS), 0, tables, (const int32_t *)doc.data, args.B,
               args.T, places, rows);
}

// ---- statistics: ours are (B, NH, T), cuDNN's of ragged documents (B*T, NH) ----

#define LSE_TILE 32
#define LSE_ROWS 8

// Transposes matrices of rows x columns, one per z. Moves 8 bytes per element, a fraction of attention's traffic.
static __global__ void __launch_bounds__(LSE_TILE *LSE_ROWS)
    lse_transpose_kernel(float *to, const float *from, int64_t rows, int64_t columns) {
    SHARED_ARRAY(float, tile, LSE_TILE * (LSE_TILE + 1));
    int64_t row0 = (int64_t)blockIdx.y * LSE_TILE, column0 = (int64_t)blockIdx.x * LSE_TILE;
    to += blockIdx.z * rows * columns;
    from += blockIdx.z * rows * columns;
    int x = (int)threadIdx.x % LSE_TILE, y = (int)threadIdx.x / LSE_TILE;
    for (int r = y; r < LSE_TILE; r += LSE_ROWS)
        if (row0 + r < rows && column0 + x < columns)
            tile[r * (LSE_TILE + 1) + x] = from[(row0 + r) * columns + column0 + x];
    __syncthreads();
    for (int r = y; r < LSE_TILE; r += LSE_ROWS)
        if (column0 + r < columns && row0 + x < rows)
            to[(column0 + r) * rows + row0 + x] = tile[x * (LSE_TILE + 1) + r];
}
static void lse_transpose(Backend *be, float *to, const float *from, int64_t B, int64_t rows, int64_t columns) {
    dim3 grid((unsigned)div_up(columns, LSE_TILE), (unsigned)div_up(rows, LSE_TILE), (unsigned)B);
    GPU_LAUNCH(be, lse_transpose_kernel, grid, dim3(LSE_TILE * LSE_ROWS), 0, to, from, rows, columns);
}
void cudnn_attention_pack_lse(Backend *be, float *packed, const float *lse, AttentionArgs args) {
    lse_transpose(be, packed, lse, args.B, args.NH, args.T);
}
void cudnn_attention_unpack_lse(Backend *be, float *lse, const float *packed, AttentionArgs args) {
    lse_transpose(be, lse, packed, args.B, args.T, args.NH);
}

// TOKAMAK_FAKE_CUDNN: tests/gpu/cudnn has a cuDNN for the emulator that computes graphs node by node.
#if CUDNN_SDPA_BUILT && (!defined(TOKAMAK_EMU) || defined(TOKAMAK_FAKE_CUDNN))

// ---- plans ----

// The decision for a shape.
typedef struct {
    SdpaShape asked;  // the whole call
    SdpaShape slice;  // the part that one execution computes
    bool refused;
    Error text;  // description of the plan, or why cuDNN refuses
    SdpaPlan plan;
} Choice;

struct CudnnAttention {
    CudnnApi api;
    SdpaDevice device;
    bool deterministic;
    int32_t *unserved;  // device memory
    Choice **choices;
    int64_t choice_count;
    const Choice *last;  // the last one used
};

CudnnAttention *cudnn_attention_open(Backend *be, bool deterministic, Error *why) {
    CudnnAttention *cudnn = (CudnnAttention *)xcalloc(1, sizeof *cudnn);
    cudnn->deterministic = deterministic;
    cudnn->device.compute_capability = cuda_state(be)->compute_capability;
    if (!cudnn_api_open(&cudnn->api, why)) {
        free(cudnn);
        return NULL;
    }
    char text[512];
    cudnnStatus_t status = cudnn->api.create(&cudnn->device.handle);
    if (status == CUDNN_STATUS_SUCCESS) status = cudnn->api.set_stream(cudnn->device.handle, cuda_stream(be));
    cudaError_t allocated = cudaMalloc((void **)&cudnn->unserved, sizeof *cudnn->unserved);
    if (status == CUDNN_STATUS_SUCCESS && allocated == cudaSuccess) return cudnn;
    cudnn_api_error(&cudnn->api, status, text, sizeof text);
    error_set(why, "cuDNN cannot be used: %s", allocated == cudaSuccess ? text : cudaGetErrorString(allocated));
    cudnn_attention_close(cudnn);
    return NULL;
}

void cudnn_attention_close(CudnnAttention *cudnn) {
    if (cudnn == NULL) return;
    for (int64_t i = 0; i < cudnn->choice_count; ++i) {
        cudnn_sdpa_free(&cudnn->choices[i]->plan);
        free(cudnn->choices[i]);
    }
    free(cudnn->choices);
    if (cudnn->device.handle != NULL) cudnn->api.destroy(cudnn->device.handle);
    cudaFree(cudnn->unserved);
    cudnn_api_close(&cudnn->api);
    free(cudnn);
}

const char *cudnn_attention_choice(const CudnnAttention *cudnn) {
    return cudnn->last ? cudnn->last->text.message : "";
}

static bool same_shape(SdpaShape a, SdpaShape b) {
    return a.batch == b.batch && a.T == b.T && a.tokens == b.tokens && a.NH == b.NH && a.NKV == b.NKV &&
           a.HS == b.HS && a.window == b.window && a.ragged == b.ragged && a.backward == b.backward;
}

// Decides for a shape: a slice within the workspace limit, then an engine.
static void choice_make(Choice *choice, CudnnAttention *cudnn) {
    SdpaShape s = cudnn_slice(choice->asked);
    choice->slice = s;
    choice->refused = true;
    if (s.batch == 0) {
        error_set(&choice->text, "cuDNN refuses: its workspace would be %lld MiB, the limit is %lld MiB",
                  (long long)(cudnn_workspace_bytes(choice->asked) >> 20),
                  (long long)(CUDNN_WORKSPACE_LIMIT_BYTES >> 20));
        return;
    }
    if (!cudnn_sdpa_build(&choice->plan, &cudnn->api, cudnn->device, &s, &choice->text)) {
        error_prefix(&choice->text, "cuDNN refuses");
        return;
    }
    if (choice->plan.workspace_bytes > cudnn_engine_bytes(s)) {
        error_set(&choice->text, "cuDNN refuses: its engine needs a workspace of %lld MiB, the plan has %lld MiB",
                  (long long)(choice->plan.workspace_bytes >> 20), (long long)(cudnn_engine_bytes(s) >> 20));
        cudnn_sdpa_free(&choice->plan);
        return;
    }
    choice->refused = false;
    char window[32] = "";
    if (s.window > 0) snprintf(window, sizeof window, ", window %lld", (long long)s.window);
    size_t version = cudnn->api.version;
    error_set(&choice->text, "cuDNN %zu.%zu.%zu: causal%s%s, %lld/%lld heads of %lld, T=%lld%s", version / 10000,
              version / 100 % 100, version % 100, window, s.ragged ? ", documents" : "", (long long)s.row_NH,
              (long long)s.row_NKV, (long long)s.HS, (long long)s.T,
              !s.backward ? "" : s.deterministic ? "; backward in a fixed order" : "; backward in no fixed order");
}

// The cached choice for a call, made now for a new shape. NULL: refused, why is filled.
static const Choice *choice_of(CudnnAttention *cudnn, Tensor qkv, AttentionArgs args, bool backward, Error *why) {
    if (qkv.dtype != DTYPE_BF16) {
        error_set(why, "cuDNN serves bf16 only");
        return NULL;
    }
    if (!tensor_is_none(args.prefix)) {
        error_set(why, "cuDNN refuses: prefix masks");
        return NULL;
    }
    SdpaShape s;
    memset(&s, 0, sizeof s);
    s.ragged = !tensor_is_none(args.doc);
    s.batch = s.ragged ? cudnn_document_places(args.B, args.T) : args.B;
    s.T = args.T;
    s.tokens = args.B * args.T;
    s.NH = s.row_NH = args.NH;
    s.NKV = s.row_NKV = args.NKV;
    s.HS = args.HS;
    s.window = args.window >= args.T ? 0 : args.window;
    s.backward = backward;
    s.deterministic = cudnn->deterministic;
    s.stores_scores = cudnn_sdpa_stores_scores(&cudnn->api, cudnn->device);
    Choice *choice = NULL;
    for (int64_t i = 0; i < cudnn->choice_count && choice == NULL; ++i)
        if (same_shape(cudnn->choices[i]->asked, s)) choice = cudnn->choices[i];
    if (choice == NULL) {
        size_t count = (size_t)++cudnn->choice_count;
        choice = (Choice *)xcalloc(1, sizeof *choice);
        cudnn->choices = (Choice **)xrealloc(cudnn->choices, count * sizeof *cudnn->choices);
        cudnn->choices[count - 1] = choice;
        choice->asked = s;
        choice_make(choice, cudnn);
    }
    if (choice->refused) error_set(why, "%s", choice->text.message);
    else cudnn->last = choice;
    return choice->refused ? NULL : choice;
}

// ---- execution ----

// The memory and the scalars of one execution.
typedef struct {
    void *pointer[SDPA_UID_COUNT];
    void *workspace;  // cuDNN's own
    float scale, minus_infinity, window, one;
} Binding;

static void binding_scalars(Binding *b, AttentionArgs args) {
    b->scale = args.scale;
    b->minus_infinity = -INFINITY;
    b->window = (float)args.window;
    b->one = 1;
    b->pointer[SDPA_SCALE] = &b->scale;
    b->pointer[SDPA_MINUS_INFINITY] = &b->minus_infinity;
    b->pointer[SDPA_WINDOW] = &b->window;
    b->pointer[SDPA_ONE] = &b->one;
}

static void binding_execute(Backend *be, const CudnnAttention *cudnn, const Choice *choice, Binding *b) {
    const CudnnApi *api = &cudnn->api;
    int64_t uids[SDPA_UID_COUNT], count = 0;
    void *pointers[SDPA_UID_COUNT];
    if (cuda_failed(be)) return;
    for (int64_t uid = 0; uid < SDPA_UID_COUNT; ++uid) {
        if (!choice->plan.bound[uid]) continue;
        CHECK(b->pointer[uid] != NULL, "tensor %lld of the graph has no memory", (long long)uid);
        uids[count] = uid;
        pointers[count++] = b->pointer[uid];
    }
    cudnnBackendDescriptor_t pack = NULL;
    cudnnStatus_t status = api->make(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    if (status == CUDNN_STATUS_SUCCESS)
        status = api->set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, pointers);
    if (status == CUDNN_STATUS_SUCCESS)
        status = api->set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, uids);
    if (status == CUDNN_STATUS_SUCCESS)
        status = api->set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &b->workspace);
    if (status == CUDNN_STATUS_SUCCESS) status = api->finalize(pack);
    (void)cuda_stream(be);  // the library has the stream; the call ends records (absmax.h)
    if (status == CUDNN_STATUS_SUCCESS) status = api->execute(cudnn->device.handle, choice->plan.plan, pack);
    if (status != CUDNN_STATUS_SUCCESS) {
        char text[512];
        cudnn_api_error(api, status, text, sizeof text);
        cuda_fail(be, "cuDNN attention", text);
    }
    if (pack != NULL) api->drop(pack);
}

// Divides the scratch block of a call into parts aligned to 256 bytes.
typedef struct {
    char *next, *end;
} Scratch;
static Scratch scratch_open(Backend *be, SdpaShape s) {
    size_t bytes = to_size(cudnn_workspace_bytes(s));
    Scratch out;
    out.next = (char *)cuda_scratch(be, bytes);
    out.end = out.next == NULL ? NULL : out.next + bytes;
    return out;
}
static void *scratch_take(Scratch *scratch, int64_t bytes) {
    void *taken = scratch->next;
    scratch->next += round_up(bytes, 256);
    CHECK(scratch->next <= scratch->end, "cudnn_workspace_bytes is too small by %lld",
          (long long)(scratch->next - scratch->end));
    return taken;
}

// The scratch parts of both directions; packed statistics only if documents are ragged.
static void binding_scratch(Backend *be, CudnnAttention *cudnn, Binding *b, Scratch *scratch, const Choice *choice,
                            AttentionArgs args, const int32_t **unserved) {
    SdpaShape s = choice->slice;
    b->workspace = scratch_take(scratch, choice->plan.workspace_bytes);
    *unserved = NULL;
    if (!s.ragged) return;
    DocumentTables tables;
    tables.lengths = (int32_t *)scratch_take(scratch, s.batch * 4);
    tables.offsets_qkv = (int64_t *)scratch_take(scratch, (s.batch + 1) * 8);
    tables.offsets_out = (int64_t *)scratch_take(scratch, (s.batch + 1) * 8);
    tables.offsets_stats = (int64_t *)scratch_take(scratch, (s.batch + 1) * 8);
    tables.unserved = cudnn->unserved;
    cudnn_attention_documents(be, tables, args.doc, s.batch, args);
    b->pointer[SDPA_LENGTHS_Q] = b->pointer[SDPA_LENGTHS_KV] = tables.lengths;
    b->pointer[SDPA_OFFSETS_QKV] = tables.offsets_qkv;
    b->pointer[SDPA_OFFSETS_OUT] = tables.offsets_out;
    b->pointer[SDPA_OFFSETS_STATS] = tables.offsets_stats;
    b->pointer[SDPA_STATS] = scratch_take(scratch, cudnn_row_bytes(s));
    *unserved = cudnn->unserved;
}

// The operands, starting at row `first` and key/value head `head`.
static void binding_slice(Binding *b, const SdpaShape *s, Tensor qkv, Tensor out, Tensor lse, int64_t first,
                          int64_t head) {
    int64_t group = s->row_NH / s->row_NKV, HS = s->HS;
    bf16 *row = (bf16 *)qkv.data + first * (s->row_NH + 2 * s->row_NKV) * HS;
    b->pointer[SDPA_Q] = row + head * group * HS;
    b->pointer[SDPA_K] = row + (s->row_NH + head) * HS;
    b->pointer[SDPA_V] = row + (s->row_NH + s->row_NKV + head) * HS;
    b->pointer[SDPA_O] = (bf16 *)out.data + (first * s->row_NH + head * group) * HS;
    if (!s->ragged) b->pointer[SDPA_STATS] = (float *)lse.data + first * s->row_NH + head * group * s->T;
}

static void check_operands(Tensor qkv, Tensor out, Tensor lse, AttentionArgs args) {
    int64_t rows = args.B * args.T, QKV = (args.NH + 2 * args.NKV) * args.HS;
    CHECK(qkv.ndim == 2 && qkv.dim[0] == rows && qkv.dim[1] == QKV, "qkv is (%lld,%lld), expected (%lld,%lld)",
          (long long)qkv.dim[0], (long long)qkv.dim[1], (long long)rows, (long long)QKV);
    CHECK(tensor_elems(out) == rows * args.NH * args.HS && out.dtype == qkv.dtype, "out has %lld elements",
          (long long)tensor_elems(out));
    CHECK(tensor_elems(lse) == rows * args.NH && lse.dtype == DTYPE_F32, "lse has %lld elements",
          (long long)tensor_elems(lse));
    CHECK(rows <= INT32_MAX, "%lld rows", (long long)rows);
}
// The graphs declare operands as aligned to 16 bytes.
static bool operands_aligned(const Tensor *operands, int count, Error *why) {
    for (int i = 0; i < count; ++i)
        if (!gpu_aligned(operands[i].data)) return error_set(why, "cuDNN refuses: operands not aligned to 16 bytes");
    return true;
}

bool cudnn_attention_forward(CudnnAttention *cudnn, Backend *be, Tensor out, Tensor lse, Tensor qkv,
                             AttentionArgs args, const int32_t **unserved, Error *why) {
    check_operands(qkv, out, lse, args);
    const Tensor operands[] = {qkv, out, lse};
    const Choice *choice = operands_aligned(operands, 3, why) ? choice_of(cudnn, qkv, args, false, why) : NULL;
    if (choice == NULL) return false;
    Scratch scratch = scratch_open(be, choice->slice);
    if (scratch.next == NULL) return true;
    Binding b;
    memset(&b, 0, sizeof b);
    binding_scalars(&b, args);
    binding_scratch(be, cudnn, &b, &scratch, choice, args, unserved);
    const SdpaShape *s = &choice->slice;
    for (int64_t first = 0; first < args.B * args.T; first += s->tokens) {
        for (int64_t head = 0; head < args.NKV; head += s->NKV) {
            binding_slice(&b, s, qkv, out, lse, first, head);
            binding_execute(be, cudnn, choice, &b);
        }
    }
    if (s->ragged) cudnn_attention_unpack_lse(be, (float *)lse.data, (const float *)b.pointer[SDPA_STATS], args);
    return true;
}

bool cudnn_attention_backward(CudnnAttention *cudnn, Backend *be, Tensor dqkv, Tensor dout, Tensor qkv, Tensor out,
                              Tensor lse, AttentionArgs args, const int32_t **unserved, Error *why) {
    check_operands(qkv, out, lse, args);
    CHECK(tensor_elems(dqkv) == tensor_elems(qkv) && dqkv.dtype == qkv.dtype, "dqkv has %lld elements",
          (long long)tensor_elems(dqkv));
    CHECK(tensor_elems(dout) == tensor_elems(out) && dout.dtype == qkv.dtype, "dout has %lld elements",
          (long long)tensor_elems(dout));
    const Tensor operands[] = {dqkv, dout, qkv, out, lse};
    const Choice *choice = operands_aligned(operands, 5, why) ? choice_of(cudnn, qkv, args, true, why) : NULL;
    if (choice == NULL) return false;
    const SdpaShape *s = &choice->slice;
    Scratch scratch = scratch_open(be, *s);
    if (scratch.next == NULL) return true;
    Binding b;
    memset(&b, 0, sizeof b);
    binding_scalars(&b, args);
    binding_scratch(be, cudnn, &b, &scratch, choice, args, unserved);
    b.pointer[SDPA_ROW_SUM] = scratch_take(&scratch, cudnn_row_bytes(*s));
    b.pointer[SDPA_DQ_SUM] = scratch_take(&scratch, cudnn_dq_sum_bytes(*s));
    if (s->ragged) cudnn_attention_pack_lse(be, (float *)b.pointer[SDPA_STATS], (const float *)lse.data, args);
    for (int64_t first = 0; first < args.B * args.T; first += s->tokens) {
        for (int64_t head = 0; head < args.NKV; head += s->NKV) {
            binding_slice(&b, s, qkv, out, lse, first, head);
            // A gradient is at its operand's offset.
            b.pointer[SDPA_DQ] = (char *)dqkv.data + ((char *)b.pointer[SDPA_Q] - (char *)qkv.data);
            b.pointer[SDPA_DK] = (char *)dqkv.data + ((char *)b.pointer[SDPA_K] - (char *)qkv.data);
            b.pointer[SDPA_DV] = (char *)dqkv.data + ((char *)b.pointer[SDPA_V] - (char *)qkv.data);
            b.pointer[SDPA_DO] = (char *)dout.data + ((char *)b.pointer[SDPA_O] - (char *)out.data);
            binding_execute(be, cudnn, choice, &b);
        }
    }
    return true;
}

#else

CudnnAttention *cudnn_attention_open(Backend *be, bool deterministic, Error *why) {
    (void)be, (void)deterministic;
#ifdef TOKAMAK_EMU
    error_set(why, "the emulator has no cuDNN");
#else
    error_set(why, "this program was built without cuDNN: cudnn.h was not found");
#endif
    return NULL;
}
void cudnn_attention_close(CudnnAttention *cudnn) { CHECK(cudnn == NULL, "cuDNN was never opened"); }
bool cudnn_attention_forward(CudnnAttention *, Backend *, Tensor, Tensor, Tensor, AttentionArgs, const int32_t **,
                             Error *) {
    CHECK(false, "cuDNN was never opened");
}
bool cudnn_attention_backward(CudnnAttention *, Backend *, Tensor, Tensor, Tensor, Tensor, Tensor, AttentionArgs,
                              const int32_t **, Error *) {
    CHECK(false, "cuDNN was never opened");
}
const char *cudnn_attention_choice(const CudnnAttention *) { return ""; }

#endif
