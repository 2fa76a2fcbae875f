// gemm_micro.h: the innermost loops of matrix multiplication: products of packed panels, dot products of rows for
// few-row inputs, and the epilogue that turns a tile of sums into output. Must not know blocking or threads.
#ifndef LLMC_CPU_GEMM_MICRO_H
#define LLMC_CPU_GEMM_MICRO_H

#include "llmc/backend/backend.h"
#include "llmc/cpu/gemm_pack.h"

// The register tile: TILE_ROWS x (TILE_VECTORS * VF_LANES) sums. Each word along K costs TILE_ROWS * TILE_VECTORS
// multiply-adds but only TILE_ROWS + TILE_VECTORS loads. AVX-512: 8 x 48, 24 of 32 registers, 24 multiply-adds for
// 11 loads, and 48 divides every dimension of GPT-2. AVX2: 4 x 24, 12 of 16 registers. Other: 4 x 8, no fused
// multiply-add assumed.
#define TILE_ROWS PART_ROWS
#define TILE_VECTORS (VF_LANES == 4 ? 2 : 3)
#define TILE_COLS (TILE_VECTORS * VF_LANES)

// sum + a * b, per 32-bit word; a pair adds both its products.
SIMD_INLINE vf word_multiply_add(vf sum, vf a, vf b, const DType dtype) {
#if defined(__AVX512BF16__)
    if (dtype == DTYPE_BF16) return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
    (void)dtype;
    return sum + a * b;
}
// A word is copied as an integer: as a float, a pair could be a signalling NaN.
SIMD_INLINE vf word_broadcast(const float *from) {
    int32_t bits;
    memcpy(&bits, from, sizeof bits);
    return (vf)(bits - (vi){0});
}

// Side work of a micro-kernel, once per STEP_WORDS words, in load, store and shuffle slots that the multiply-adds
// leave idle: none, prefetch lines that will be packed soon into L2, or pack a chunk of rows; a tile with as many
// steps as the chunk packs all of it.
#define STEP_WORDS 4
typedef enum { ASIDE_NONE, ASIDE_FETCH, ASIDE_TRANSPOSE, ASIDE_COPY } GemmAsideKind;
typedef struct {
    GemmAsideKind kind;
    const char *from;
    int64_t ld_bytes;
    // ASIDE_FETCH: two lines a step, ld_bytes apart; next_bytes is added every FETCH_TURN steps.
    // ASIDE_TRANSPOSE (a source contiguous along K), ASIDE_COPY: next_bytes is the distance from a square to the next.
    int64_t next_bytes;
    GemmChunk chunk;
} GemmAside;
#define FETCH_TURN 4

SIMD_INLINE void aside_step(GemmAside *aside, int64_t step, const GemmAsideKind kind, const DType dtype) {
    if (kind == ASIDE_FETCH) {
        __builtin_prefetch(aside->from, 0, 2);
        __builtin_prefetch(aside->from + aside->ld_bytes, 0, 2);
        aside->from += 2 * aside->ld_bytes + (step % FETCH_TURN == FETCH_TURN - 1 ? aside->next_bytes : 0);
    } else if (kind != ASIDE_NONE) {
        pack_step(aside->chunk, aside->from, aside->ld_bytes, step % VF_QUADS, kind == ASIDE_TRANSPOSE, dtype);
        if (step % VF_QUADS == VF_QUADS - 1) {
            aside->from += aside->next_bytes;
            aside->chunk.to += VF_LANES * aside->chunk.stride;
        }
    }
}

// tile(TILE_ROWS, vectors * VF_LANES) = sum over steps of a panel of TILE_ROWS rows and one of that many columns.
// Each sum is one chain in the order of K in every tile: results do not depend on how work is divided.
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

// VF_LANES words along K; if not `whole`, only the first `elems` elements exist.
SIMD_INLINE vf load_some_words(const char *from, int64_t elems, const bool whole, const DType dtype) {
    if (whole) return load_words(from, dtype);
    char padded[sizeof(vf)] = {0};
    memcpy(padded, from, (size_t)(elems * elem_bytes(dtype)));
    return load_words(padded, dtype);
}

// One step of rows_dot: sum[m * columns + n] += a[m] . b[n] over VF_LANES words.
SIMD_INLINE void rows_dot_step(vf sum[VF_LANES], const char *const a[VF_LANES], const char *const b[VF_LANES],
                               int64_t at_bytes, int64_t next_bytes, int64_t elems, const bool whole,
                               const int row_count, const DType dtype) {
    const int columns = VF_LANES / row_count;
    vf row[VF_LANES];
#pragma GCC unroll 16
    for (int m = 0; m < row_count; ++m) row[m] = load_some_words(a[m] + at_bytes, elems, whole, dtype);
#pragma GCC unroll 16
    for (int n = 0; n < columns; ++n) {
        vf column = load_some_words(b[n] + at_bytes, elems, whole, dtype);
        __builtin_prefetch(b[n] + at_bytes + next_bytes, 0, 3);  // for the next rows of b
#pragma GCC unroll 16
        for (int m = 0; m < row_count; ++m)
            sum[m * columns + n] = word_multiply_add(sum[m * columns + n], row[m], column, dtype);
    }
}

// tile[m * tile_ld + n] = a[a_row + m] . b[b_row + n] for row_count rows of a and VF_LANES / row_count rows of b,
// both contiguous along K. b has only `b_rows` rows: the last one is used for the missing ones. b is read once, from
// memory: meant for few rows of a.
SIMD_INLINE void rows_dot(float *tile, int64_t tile_ld, const GemmSource *a, int64_t a_row, const GemmSource *b,
                          int64_t b_row, int64_t b_rows, int64_t elems, const int row_count, const DType dtype) {
    const int64_t step = VF_LANES * word_elems(dtype), bytes = elem_bytes(dtype);
    const int columns = VF_LANES / row_count;
    const int64_t next_bytes = columns * b->ld * bytes;
    const char *a_rows[VF_LANES], *b_columns[VF_LANES];
    vf sum[VF_LANES];
#pragma GCC unroll 16
    for (int i = 0; i < VF_LANES; ++i) {
        sum[i] = (vf){0};
        a_rows[i] = (const char *)a->data + (a_row + min_i64(i, row_count - 1)) * a->ld * bytes;
        b_columns[i] = (const char *)b->data + (b_row + min_i64(i, b_rows - 1)) * b->ld * bytes;
    }
    int64_t k = 0;
    for (; k + step <= elems; k += step)
        rows_dot_step(sum, a_rows, b_columns, k * bytes, next_bytes, step, true, row_count, dtype);
    if (k < elems) rows_dot_step(sum, a_rows, b_columns, k * bytes, next_bytes, elems - k, false, row_count, dtype);
    _Alignas(64) float sums[VF_LANES * VF_LANES], turned[VF_LANES * VF_LANES];
#pragma GCC unroll 16
    for (int i = 0; i < VF_LANES; ++i) vf_store(sums + i * VF_LANES, sum[i]);
    const GemmChunk to = {turned, VF_LANES, PART_ROWS};
    pack_square_as(to, (const char *)sums, VF_LANES * sizeof(float), true, DTYPE_F32);
    vf total = vf_load(turned);
    for (int i = 1; i < VF_LANES; ++i) total += vf_load(turned + i * VF_LANES);
    for (int m = 0; m < row_count; ++m)
        memcpy(tile + m * tile_ld, (const float *)&total + m * columns, (size_t)columns * sizeof(float));
}

// The epilogue's operands; see MatmulArgs.
typedef struct {
    void *out, *pre;
    const void *add, *bias;  // NULL: absent
    DType dtype;             // of out, add and pre
    DType bias_dtype;
    int64_t ld;              // elements of a row of out, add and pre
    float alpha, beta;
    Activation act, act_grad;
} GemmEpilogue;

// A tile's position, and whether it is in the first or last block along K. Between blocks, sums are kept in fp32 in
// `partial`.
typedef struct {
    int64_t row, col, rows, cols;
    float *partial;  // of the tile's first element
    int64_t partial_ld;
    bool first_block, last_block;
} GemmTile;

// Prefetches what tile_finish will read or write, before the tile is multiplied.
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

// The epilogue of `count` elements of row i, from column j of the tile, after all blocks of K are summed.
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

// to(rows, cols) = alpha * tile + beta * from; from may be to, or NULL. No branches in the loop over a full
// tile: if K is small, they would decide how long the multiply-add units are idle between two tiles.
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
