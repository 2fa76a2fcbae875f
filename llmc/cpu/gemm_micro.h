// gemm_micro.h: the innermost loops of matrix multiplication: products of packed panels, dot products of rows for
// few-row inputs, and the epilogue that turns a tile of sums into output. Only gemm_kernels.c includes it. It knows
// nothing of blocking or threads.
#ifndef LLMC_CPU_GEMM_MICRO_H
#define LLMC_CPU_GEMM_MICRO_H

#include "llmc/backend.h"
#include "llmc/cpu/gemm_pack.h"

// The register tile: TILE_ROWS x (TILE_VECTORS * VF_LANES) sums. Each word along K costs TILE_ROWS * TILE_VECTORS
// multiply-adds but only TILE_ROWS + TILE_VECTORS loads. AVX-512: 8 x 48, 24 of 32 registers, 24 multiply-adds for
// 11 loads, and 48 divides every dimension of GPT-2. AVX2: 4 x 24, 12 of 16 registers. Other: 4 x 8, no fused
// multiply-add assumed.
#if VF_LANES == 16
#define TILE_ROWS 8
#define TILE_VECTORS 3
#elif VF_LANES == 8
#define TILE_ROWS 4
#define TILE_VECTORS 3
#else
#define TILE_ROWS 4
#define TILE_VECTORS 2
#endif
#define TILE_COLS (TILE_VECTORS * VF_LANES)

// sum + a * b, per 32-bit word; a pair adds both its products.
SIMD_INLINE vf word_multiply_add(vf sum, vf a, vf b, const DType dtype) {
#if defined(__AVX512BF16__)
    if (dtype == DTYPE_BF16) return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
    (void)dtype;
    return sum + a * b;
}
// A word is copied as an integer: as a float, a pair could look like a signalling NaN.
SIMD_INLINE vf word_broadcast(const float *from) {
    int32_t bits;
    memcpy(&bits, from, sizeof bits);
    return (vf)(bits - (vi){0});
}

// What a micro-kernel does besides, once per step of STEP_WORDS words, while its multiply-adds keep their units busy
// and leave those of loads, stores and shuffles idle: nothing, fetch lines into L2 that will be packed soon, or pack
// a chunk of b or of a (whose panels are half a vector wide where TILE_ROWS is).
typedef enum {
    ASIDE_NONE,
    ASIDE_FETCH,
    ASIDE_TRANSPOSE_B,  // sources contiguous along K
    ASIDE_TRANSPOSE_A,
    ASIDE_COPY_B,
    ASIDE_COPY_A
} GemmAsideKind;
typedef struct {
    GemmAsideKind kind;
    // ASIDE_FETCH: two lines a step, next_line bytes apart. Every FETCH_TURN steps, next_lines is added.
    const char *line;
    int64_t next_line, next_lines;
    // Packing: see pack_step.
    GemmChunk chunk;
    const void *data;
    int64_t index, ld;
} GemmAside;
#define FETCH_TURN 4

SIMD_INLINE void aside_step(GemmAside *aside, int64_t step, const GemmAsideKind kind, const DType dtype) {
    const bool transpose = kind == ASIDE_TRANSPOSE_A || kind == ASIDE_TRANSPOSE_B;
    const bool halves = (kind == ASIDE_TRANSPOSE_A || kind == ASIDE_COPY_A) && TILE_ROWS < VF_LANES;
    if (kind == ASIDE_FETCH) {
        __builtin_prefetch(aside->line, 0, 2);
        __builtin_prefetch(aside->line + aside->next_line, 0, 2);
        aside->line += 2 * aside->next_line + (step % FETCH_TURN == FETCH_TURN - 1 ? aside->next_lines : 0);
    } else if (kind != ASIDE_NONE) {
        pack_step(aside->chunk, aside->data, aside->index, aside->ld, transpose, halves, dtype);
        aside->chunk.to += STEP_WORDS * aside->chunk.stride;
        aside->index += STEP_WORDS * word_elems(dtype) * (transpose ? 1 : aside->ld);
    }
}

// tile(TILE_ROWS, vectors * VF_LANES) = sum over steps of a panel of TILE_ROWS rows and one of that many columns.
// Each sum is one chain in order of K, wherever its tile lies: results do not depend on how work is divided.
SIMD_INLINE void tile_multiply(float *tile, const float *a, const float *b, int64_t steps, GemmAside aside,
                               const int vectors, const GemmAsideKind kind, const DType dtype) {
    vf sum[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < TILE_ROWS; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) sum[i][j] = (vf){0};
    for (int64_t s = 0; s < steps; ++s) {
        aside_step(&aside, s, kind, dtype);
#pragma GCC unroll 4
        for (int w = 0; w < STEP_WORDS; ++w) {
            vf column[TILE_VECTORS];
#pragma GCC unroll 4
            for (int j = 0; j < vectors; ++j) column[j] = vf_load(b + j * VF_LANES);
#pragma GCC unroll 8
            for (int i = 0; i < TILE_ROWS; ++i) {
                vf row = word_broadcast(a + i);
#pragma GCC unroll 4
                for (int j = 0; j < vectors; ++j) sum[i][j] = word_multiply_add(sum[i][j], row, column[j], dtype);
            }
            a += TILE_ROWS;
            b += vectors * VF_LANES;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < TILE_ROWS; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) vf_store(tile + (i * vectors + j) * VF_LANES, sum[i][j]);
}

// VF_LANES words along K from element `index`, of which `elems` elements are there (any number; all if enough).
SIMD_INLINE vf load_words(const void *data, int64_t index, int64_t elems, const DType dtype) {
    vf words = {0};
    if (dtype == DTYPE_BF16 && !BF16_PAIRS)
        return elems >= VF_LANES ? vf_load_bf16((const uint16_t *)data + index)
                                 : vf_load_bf16_part((const uint16_t *)data + index, elems);
    const char *from = (const char *)data + index * elem_bytes(dtype);
    if (elems >= VF_LANES * word_elems(dtype))
        memcpy(&words, from, sizeof words);
    else
        memcpy(&words, from, (size_t)(elems * elem_bytes(dtype)));
    return words;
}

// tile[m * tile_ld + n] = a[a_row + m] . b[b_row + n] for row_count rows of a and VF_LANES / row_count rows of b,
// both contiguous along K. Of b, only `b_rows` rows are there: the last one stands in for more. b is read once, from
// memory: meant for few rows of a.
SIMD_INLINE void rows_dot(float *tile, int64_t tile_ld, const GemmSource *a, int64_t a_row, const GemmSource *b,
                          int64_t b_row, int64_t b_rows, int64_t elems, const int row_count, const DType dtype) {
    const int64_t step = VF_LANES * word_elems(dtype);
    const int columns = VF_LANES / row_count;
    vf sum[VF_LANES];
#pragma GCC unroll 16
    for (int i = 0; i < VF_LANES; ++i) sum[i] = (vf){0};
    for (int64_t k = 0; k < elems; k += step) {
        const int64_t there = elems - k;
        vf row[VF_LANES];
#pragma GCC unroll 16
        for (int m = 0; m < row_count; ++m) row[m] = load_words(a->data, (a_row + m) * a->ld + k, there, dtype);
#pragma GCC unroll 16
        for (int n = 0; n < columns; ++n) {
            vf column = load_words(b->data, (b_row + min_i64(n, b_rows - 1)) * b->ld + k, there, dtype);
#pragma GCC unroll 16
            for (int m = 0; m < row_count; ++m)
                sum[m * columns + n] = word_multiply_add(sum[m * columns + n], row[m], column, dtype);
        }
    }
    float turned[VF_LANES * VF_LANES];
    for (int k = 0; k < VF_LANES; k += STEP_WORDS) {
        const GemmChunk to = {turned + k * VF_LANES, VF_LANES, 0};
        pack_step(to, sum, k, VF_LANES, true, false, DTYPE_F32);
    }
    vf total = vf_load(turned);
    for (int i = 1; i < VF_LANES; ++i) total += vf_load(turned + i * VF_LANES);
    for (int m = 0; m < row_count; ++m)
        memcpy(tile + m * tile_ld, (const float *)&total + m * columns, (size_t)columns * sizeof(float));
}

// What happens to sums on their way to the output; see MatmulArgs.
typedef struct {
    void *out, *pre;
    const void *add, *bias;  // NULL: absent
    DType dtype;             // of out, add and pre
    DType bias_dtype;
    int64_t ld;              // elements of a row of out, add and pre
    float alpha, beta;
    Activation act, act_grad;
} GemmEpilogue;

// Where a tile lies and which of the blocks along K it ends. Between blocks, sums wait as fp32 in `partial`.
typedef struct {
    int64_t row, col, rows, cols;
    float *partial;  // of the tile's first element
    int64_t partial_ld;
    bool first_block, last_block;
} GemmTile;

// Fetches what tile_finish will read or write, while the tile is still to be multiplied.
SIMD_INLINE void tile_prefetch(const GemmEpilogue *e, const GemmTile *t) {
    const int64_t bytes = elem_bytes(e->dtype), row_bytes = t->cols * bytes;
    for (int64_t i = 0; i < t->rows; ++i) {
        const int64_t at = ((t->row + i) * e->ld + t->col) * bytes;
        for (int64_t j = 0; j < row_bytes; j += 64) {
            __builtin_prefetch((const char *)e->out + at + j, 1, 3);
            if (e->add != NULL && e->add != e->out) __builtin_prefetch((const char *)e->add + at + j, 0, 3);
            if (e->pre != NULL) __builtin_prefetch((const char *)e->pre + at + j, 1, 3);
        }
    }
}

// GELU in its tanh form is x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
#define GELU_SCALE 0.7978845608f
#define GELU_CUBE 0.044715f
SIMD_INLINE vf epilogue_act(vf x, Activation act) {
    if (act == ACT_RELU2) {
        vf positive = vf_select(x < 0.0f, vf_set(0.0f), x);
        return positive * positive;
    }
    return x * vf_sigmoid(2.0f * GELU_SCALE * (x + GELU_CUBE * x * x * x));
}
SIMD_INLINE vf epilogue_act_grad(vf x, Activation act) {
    if (act == ACT_RELU2) return 2.0f * vf_select(x < 0.0f, vf_set(0.0f), x);
    vf s = vf_sigmoid(2.0f * GELU_SCALE * (x + GELU_CUBE * x * x * x));
    return s + x * s * (1.0f - s) * (2.0f * GELU_SCALE) * (1.0f + 3.0f * GELU_CUBE * x * x);
}

// `count` >= VF_LANES: a whole vector.
SIMD_INLINE vf load_some(const void *base, int64_t index, DType dtype, int64_t count) {
    return count >= VF_LANES ? vf_load_as(base, index, dtype) : vf_load_part_as(base, index, dtype, count);
}
SIMD_INLINE void store_some(void *base, int64_t index, vf v, DType dtype, int64_t count) {
    if (count >= VF_LANES)
        vf_store_as(base, index, v, dtype);
    else
        vf_store_part_as(base, index, v, dtype, count);
}

// The epilogue of `count` neighbours of row i, from column j of the tile on, when all blocks of K are summed.
SIMD_INLINE void epilogue_vector(const GemmEpilogue *e, const GemmTile *t, vf sum, int64_t i, int64_t j,
                                 int64_t count, const DType dtype) {
    const int64_t at = (t->row + i) * e->ld + t->col + j;
    vf acc = e->alpha * sum;
    if (!t->first_block)
        acc += load_some(t->partial, i * t->partial_ld + j, DTYPE_F32, count);
    else if (e->add != NULL)
        acc += e->beta * load_some(e->add, at, dtype, count);
    if (e->bias != NULL) acc += load_some(e->bias, t->col + j, e->bias_dtype, count);
    if (e->act != ACT_NONE) {
        if (e->pre != NULL) store_some(e->pre, at, acc, dtype, count);
        acc = epilogue_act(acc, e->act);
    } else if (e->act_grad != ACT_NONE) {
        acc *= epilogue_act_grad(load_some(e->pre, at, dtype, count), e->act_grad);
    }
    store_some(e->out, at, acc, dtype, count);
}

// to(rows, cols) = alpha * tile + beta * from; from may be to, or NULL. Without branches in the loop over a full
// tile: where K is short, this decides how long the multiply-add units stand idle between two tiles.
SIMD_INLINE void tile_add(void *to, int64_t to_ld, const void *from, int64_t from_ld, const float *tile,
                          int64_t tile_ld, int64_t rows, int64_t cols, float alpha, float beta, const DType to_dtype,
                          const DType from_dtype) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < cols; j += VF_LANES) {
            vf acc = alpha * vf_load(tile + i * tile_ld + j);
            if (from != NULL) acc += beta * load_some(from, i * from_ld + j, from_dtype, cols - j);
            store_some(to, i * to_ld + j, acc, to_dtype, cols - j);
        }
}

static void tile_finish(const GemmEpilogue *e, const GemmTile *t, const float *tile, int64_t tile_ld) {
    const bool transformed = e->bias != NULL || e->act != ACT_NONE || e->act_grad != ACT_NONE;
    if (t->last_block && transformed) {
        for (int64_t i = 0; i < t->rows; ++i)
            for (int64_t j = 0; j < t->cols; j += VF_LANES) {
                const vf sum = vf_load(tile + i * tile_ld + j);
                if (e->dtype == DTYPE_F32)
                    epilogue_vector(e, t, sum, i, j, t->cols - j, DTYPE_F32);
                else
                    epilogue_vector(e, t, sum, i, j, t->cols - j, DTYPE_BF16);
            }
        return;
    }
    const int64_t at = (t->row * e->ld + t->col) * elem_bytes(e->dtype);
    const DType from_dtype = t->first_block ? e->dtype : DTYPE_F32, to_dtype = t->last_block ? e->dtype : DTYPE_F32;
    const void *from = t->partial;
    if (t->first_block) from = e->add == NULL ? NULL : (const char *)e->add + at;
    void *to = t->last_block ? (void *)((char *)e->out + at) : t->partial;
    const int64_t from_ld = t->first_block ? e->ld : t->partial_ld, to_ld = t->last_block ? e->ld : t->partial_ld;
    const float beta = t->first_block ? e->beta : 1.0f;
#define TILE_ADD(to_type, from_type)                                                                               \
    if (to_dtype == to_type && from_dtype == from_type) {                                                          \
        if (t->cols == TILE_COLS)                                                                                  \
            tile_add(to, to_ld, from, from_ld, tile, TILE_COLS, t->rows, TILE_COLS, e->alpha, beta, to_type,       \
                     from_type);                                                                                   \
        else                                                                                                       \
            tile_add(to, to_ld, from, from_ld, tile, tile_ld, t->rows, t->cols, e->alpha, beta, to_type, from_type); \
    }
    TILE_ADD(DTYPE_F32, DTYPE_F32)
    TILE_ADD(DTYPE_F32, DTYPE_BF16)
    TILE_ADD(DTYPE_BF16, DTYPE_F32)
    TILE_ADD(DTYPE_BF16, DTYPE_BF16)
#undef TILE_ADD
}

#endif
