// embedding.cu: look-up of token and position rows, and the gradients of the tables. Must not know models. An id
// outside its table never becomes an address: its row is NaN in the forward pass, so that the loss becomes NaN, and
// is skipped in the backward pass.
#include "llmc/cuda/backend_cuda.h"
#include "llmc/cuda/workspace.h"
#include "llmc/backend/op_check.h"

// ---- forward ----
#define EMBEDDING_WARPS 8

// One warp per row. Bound: wte's (and wpe's) rows read, out written: 2 (3) * N*C elements; frequent rows come from L2.
template <class T, int W>
static __global__ void __launch_bounds__(EMBEDDING_WARPS *WARP)
    embedding_forward_kernel(T *__restrict__ out, const int32_t *__restrict__ tokens,
                             const int32_t *__restrict__ positions, const T *__restrict__ wte,
                             const T *__restrict__ wpe, int64_t N, int C, int64_t V, int64_t P) {
    int64_t row = (int64_t)blockIdx.x * EMBEDDING_WARPS + threadIdx.x / WARP;
    if (row >= N) return;
    int64_t token = tokens[row], position = wpe != NULL ? positions[row] : 0;
    bool bad = token < 0 || token >= V || (wpe != NULL && (position < 0 || position >= P));
    if (bad) token = position = 0;
#pragma unroll 4
    for (int c = (int)threadIdx.x % WARP * W; c < C; c += WARP * W) {
        float x[W], at_position[W] = {};
        pack_to_floats<W>(x, pack_load<T, W>(wte + token * C + c));
        if (wpe != NULL) pack_to_floats<W>(at_position, pack_load<T, W>(wpe + position * C + c));
#pragma unroll
        for (int i = 0; i < W; ++i) x[i] = bad ? NAN : x[i] + at_position[i];
        pack_store<T, W>(out + row * C + c, pack_from_floats<T, W>(x));
    }
}

template <class T, int W>
static void embedding_forward_launch(Backend *be, Tensor out, Tensor tokens, Tensor positions, Tensor wte,
                                     Tensor wpe) {
    int64_t N = out.dim[0];
    GPU_LAUNCH(be, (embedding_forward_kernel<T, W>), dim3((unsigned)div_up(N, EMBEDDING_WARPS)),
               dim3(EMBEDDING_WARPS * WARP), 0, (T *)out.data, (const int32_t *)tokens.data,
               (const int32_t *)positions.data, (const T *)wte.data, (const T *)wpe.data, N, to_i32(out.dim[1]),
               wte.dim[0], wpe.dim[0]);
}
template <class T>
static void embedding_forward_any(Backend *be, Tensor out, Tensor tokens, Tensor positions, Tensor wte, Tensor wpe) {
    if (out.dim[1] % PACK<T> == 0 && gpu_aligned(out.data) && gpu_aligned(wte.data) && gpu_aligned(wpe.data))
        embedding_forward_launch<T, PACK<T>>(be, out, tokens, positions, wte, wpe);
    else embedding_forward_launch<T, 1>(be, out, tokens, positions, wte, wpe);
}
static void embedding_forward(Backend *be, Tensor out, Tensor tokens, Tensor positions, Tensor wte, Tensor wpe) {
    op_check_embedding("out", out, tokens, positions, "wte", wte, "wpe", wpe, out.dtype);
    if (out.dim[0] == 0) return;
    if (out.dtype == DTYPE_F32) embedding_forward_any<float>(be, out, tokens, positions, wte, wpe);
    else embedding_forward_any<bf16>(be, out, tokens, positions, wte, wpe);
}

// ---- backward: the order of the rows ----
// Rows of one id must be added in increasing i, without atomics. Each row's key is (id << 32 | i): all keys are
// distinct, so any sort gives the required order. This is a merge sort: each key computes its position in the merged
// run independently, by bisection: the number of smaller keys in the neighbouring run. Runs up to EMBEDDING_SORT keys
// are sorted in shared memory, longer ones in L2: log2(N / EMBEDDING_SORT) passes over 8*N bytes, microseconds each.
#define EMBEDDING_SORT 2048
#define EMBEDDING_SORT_THREADS 1024
#define EMBEDDING_NO_ID 0xffffffffu  // sorts last

static __device__ __forceinline__ uint32_t key_id(uint64_t key) { return (uint32_t)(key >> 32); }
static __device__ __forceinline__ int64_t key_row(uint64_t key) { return (int64_t)(uint32_t)key; }

// The first of keys[low, high), which is sorted, that is not below `key`; high if all are.
static __device__ __forceinline__ int lower_bound(const uint64_t *keys, int low, int high, uint64_t key) {
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (keys[middle] < key) low = middle + 1;
        else high = middle;
    }
    return low;
}
// The position of keys[i] after merging pairs of sorted runs of `run` keys.
static __device__ __forceinline__ int merged_index(const uint64_t *keys, int i, int run, int count) {
    int own = i / run * run, other = (i / run ^ 1) * run;
    int low = min(other, count), high = min(other + run, count);
    return min(own, other) + (i - own) + (lower_bound(keys, low, high, keys[i]) - low);
}

static __global__ void __launch_bounds__(EMBEDDING_SORT_THREADS)
    embedding_sort_kernel(uint64_t *keys, const int32_t *__restrict__ ids, int N, int64_t table_rows) {
    SHARED_ARRAY(uint64_t, shared, 2 * EMBEDDING_SORT);
    int first = (int)blockIdx.x * EMBEDDING_SORT, count = min(EMBEDDING_SORT, N - first);
    uint64_t *from = shared, *to = shared + EMBEDDING_SORT;
    for (int i = (int)threadIdx.x; i < count; i += EMBEDDING_SORT_THREADS) {
        int32_t id = ids[first + i];
        uint64_t high = id >= 0 && id < table_rows ? (uint32_t)id : EMBEDDING_NO_ID;
        from[i] = high << 32 | (uint32_t)(first + i);
    }
    __syncthreads();
    for (int run = 1; run < count; run *= 2) {
        for (int i = (int)threadIdx.x; i < count; i += EMBEDDING_SORT_THREADS)
            to[merged_index(from, i, run, count)] = from[i];
        __syncthreads();
        uint64_t *swap = from;
        from = to;
        to = swap;
    }
    for (int i = (int)threadIdx.x; i < count; i += EMBEDDING_SORT_THREADS) keys[first + i] = from[i];
}
static __global__ void __launch_bounds__(256)
    embedding_merge_kernel(uint64_t *__restrict__ to, const uint64_t *__restrict__ from, int run, int N) {
    int i = (int)(blockIdx.x * 256 + threadIdx.x);
    if (i < N) to[merged_index(from, i, run, N)] = from[i];
}

// ---- backward: the sums ----
// The sorted rows are divided into tiles of EMBEDDING_TILE; a warp sums 32*W columns of a tile, in order. The sum of
// an id that begins in the tile is added to the table immediately: no other tile does that for this id. The sum of an
// id that continues from earlier tiles is stored as the tile's carry, and a second kernel adds an id's carries in the
// order of the tiles. So a frequent token is summed by as many warps as it has tiles. Bound: dout read once, each
// occurring table row read and written in fp32, and one carry row per EMBEDDING_TILE rows.
#define EMBEDDING_ADD_WARPS 4
#define EMBEDDING_FLIGHT 4  // rows in flight

// The tile and columns of this lane. The column chunks of a tile are adjacent blocks: blocks that run together read
// whole rows of dout.
struct EmbeddingPlace {
    int tile, column;
};
static __device__ __forceinline__ EmbeddingPlace embedding_place(int C, int width) {
    int warp = (int)(blockIdx.x * EMBEDDING_ADD_WARPS + threadIdx.x / WARP),
        chunks = (C + WARP * width - 1) / (WARP * width);
    return {warp / chunks, (warp % chunks * WARP + (int)threadIdx.x % WARP) * width};
}
template <int W>
static __device__ __forceinline__ void floats_add(float *to, const float (&sum)[W]) {
    float old[W];
    floats_load<W>(old, to);
#pragma unroll
    for (int i = 0; i < W; ++i) old[i] += sum[i];
    floats_store<W>(to, old);
}

template <class T, int W>
static __global__ void __launch_bounds__(EMBEDDING_ADD_WARPS *WARP)
    embedding_add_kernel(float *table, float *carry, const T *__restrict__ dout, const uint64_t *__restrict__ keys,
                         int N, int C) {
    EmbeddingPlace place = embedding_place(C, W);
    int first = place.tile * EMBEDDING_TILE, end = min(first + EMBEDDING_TILE, N);
    if (first >= N || place.column >= C) return;
    uint32_t id = key_id(keys[first]);
    bool continues = first > 0 && key_id(keys[first - 1]) == id;
    float sum[W] = {};
    for (int at = first; at < end; at += EMBEDDING_FLIGHT) {
        uint32_t ids[EMBEDDING_FLIGHT];
        Pack<T, W> d[EMBEDDING_FLIGHT];
#pragma unroll
        for (int k = 0; k < EMBEDDING_FLIGHT; ++k) {
            uint64_t key = keys[min(at + k, end - 1)];
            ids[k] = key_id(key);
            d[k] = pack_load_once<T, W>(dout + key_row(key) * C + place.column);
        }
#pragma unroll
        for (int k = 0; k < EMBEDDING_FLIGHT; ++k) {
            if (at + k >= end) continue;
            if (ids[k] != id) {
                if (continues) floats_store<W>(carry + (int64_t)place.tile * C + place.column, sum);
                else floats_add<W>(table + (int64_t)id * C + place.column, sum);
                continues = false;
                id = ids[k];
#pragma unroll
                for (int i = 0; i < W; ++i) sum[i] = 0;
            }
            float x[W];
            pack_to_floats<W>(x, d[k]);
#pragma unroll
            for (int i = 0; i < W; ++i) sum[i] += x[i];
        }
    }
    if (continues) floats_store<W>(carry + (int64_t)place.tile * C + place.column, sum);
    else if (id != EMBEDDING_NO_ID) floats_add<W>(table + (int64_t)id * C + place.column, sum);
}

// The warp of the first tile that continues an id adds the carries of all such tiles.
template <int W>
static __global__ void __launch_bounds__(EMBEDDING_ADD_WARPS *WARP)
    embedding_carry_kernel(float *table, const float *__restrict__ carry, const uint64_t *__restrict__ keys, int N,
                           int C) {
    EmbeddingPlace place = embedding_place(C, W);
    int first = place.tile * EMBEDDING_TILE, before = first - EMBEDDING_TILE;
    if (first == 0 || first >= N || place.column >= C) return;
    uint32_t id = key_id(keys[first]);
    if (id == EMBEDDING_NO_ID || key_id(keys[first - 1]) != id) return;
    if (before > 0 && key_id(keys[before]) == id && key_id(keys[before - 1]) == id) return;
    int last = (lower_bound(keys, first, N, (uint64_t)(id + 1) << 32) - 1) / EMBEDDING_TILE;
    float sum[W] = {};
#pragma unroll 4
    for (int tile = place.tile; tile <= last; ++tile) {
        float part[W];
        floats_load<W>(part, carry + (int64_t)tile * C + place.column);
#pragma unroll
        for (int i = 0; i < W; ++i) sum[i] += part[i];
    }
    floats_add<W>(table + (int64_t)id * C + place.column, sum);
}

// Scratch: two arrays of keys, then the carries.
template <class T, int W>
static void embedding_add_launch(Backend *be, Tensor table, float *carry, Tensor dout, const uint64_t *keys) {
    int64_t N = dout.dim[0], C = dout.dim[1];
    int64_t warps = div_up(N, EMBEDDING_TILE) * div_up(C, WARP * W);
    dim3 grid((unsigned)div_up(warps, EMBEDDING_ADD_WARPS)), block(EMBEDDING_ADD_WARPS * WARP);
    GPU_LAUNCH(be, (embedding_add_kernel<T, W>), grid, block, 0, (float *)table.data, carry, (const T *)dout.data,
               keys, to_i32(N), to_i32(C));
    GPU_LAUNCH(be, (embedding_carry_kernel<W>), grid, block, 0, (float *)table.data, carry, keys, to_i32(N),
               to_i32(C));
}
template <class T>
static void embedding_add_any(Backend *be, Tensor table, float *carry, Tensor dout, const uint64_t *keys) {
    if (dout.dim[1] % PACK<T> == 0 && gpu_aligned(dout.data) && gpu_aligned(table.data))
        embedding_add_launch<T, PACK<T>>(be, table, carry, dout, keys);
    else embedding_add_launch<T, 1>(be, table, carry, dout, keys);
}

static void embedding_table_backward(Backend *be, Tensor table, Tensor dout, Tensor ids, unsigned char *scratch) {
    int64_t N = dout.dim[0];
    size_t keys_bytes = workspace_embedding_keys_bytes(N);
    uint64_t *keys = (uint64_t *)scratch, *other = (uint64_t *)(scratch + keys_bytes);
    float *carry = (float *)(scratch + 2 * keys_bytes);
    GPU_LAUNCH(be, embedding_sort_kernel, dim3((unsigned)div_up(N, EMBEDDING_SORT)), dim3(EMBEDDING_SORT_THREADS), 0,
               keys, (const int32_t *)ids.data, (int)N, table.dim[0]);
    for (int64_t run = EMBEDDING_SORT; run < N; run *= 2) {
        GPU_LAUNCH(be, embedding_merge_kernel, dim3((unsigned)div_up(N, 256)), dim3(256), 0, other, keys, (int)run,
                   (int)N);
        uint64_t *swap = keys;
        keys = other;
        other = swap;
    }
    if (dout.dtype == DTYPE_F32) embedding_add_any<float>(be, table, carry, dout, keys);
    else embedding_add_any<bf16>(be, table, carry, dout, keys);
}

static void embedding_backward(Backend *be, Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens, Tensor positions) {
    op_check_embedding("dout", dout, tokens, positions, "dwte", dwte, "dwpe", dwpe, DTYPE_F32);
    int64_t N = dout.dim[0], C = dout.dim[1];
    CHECK(N <= 1 << 30, "N=%lld rows in one call", (long long)N);
    if (N == 0) return;
    unsigned char *scratch = (unsigned char *)cuda_scratch(be, workspace_embedding_bytes(N, C));
    if (scratch == NULL) return;
    embedding_table_backward(be, dwte, dout, tokens, scratch);
    if (!tensor_is_none(dwpe)) embedding_table_backward(be, dwpe, dout, positions, scratch);
}

void embedding_register_cuda(Backend *be) {
    be->embedding_forward = embedding_forward;
    be->embedding_backward = embedding_backward;
}
