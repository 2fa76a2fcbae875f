// attention_block.h: the block arithmetic of attention_kernels.c: packing heads into fp32 rows, transposing a block,
// small matrix products in register tiles, and the mask as one interval of keys per query. Must not know batches,
// heads or threads.
//
// Scores are stored transposed, keys down and queries across: a vector holds one key against VF_LANES queries, so the
// softmax reduces vertically, without sums or maxima across lanes, and one product shape (broadcast rows of the left
// operand, vector rows of the right one) serves all seven products of forward and backward.
#ifndef LLMC_CPU_ATTENTION_BLOCK_H
#define LLMC_CPU_ATTENTION_BLOCK_H

#include "llmc/cpu/simd.h"

// Queries and keys of a block. Three blocks of scores and operands at head size 64 fill a typical L1 cache.
#define BLOCK 64
// A register tile: TILE_ROWS x TILE_VECTORS accumulators. TILE_ROWS divides VF_LANES (see block_query_range).
#define TILE_ROWS (VF_LANES == 16 ? 8 : 4)
#define TILE_VECTORS 2
// Columns of a tile.
#define GROUP (TILE_VECTORS * VF_LANES)

// The rows of one head in a wider matrix: row r starts at element r*stride.
typedef struct {
    void *data;
    DType dtype;
    int64_t stride;
} HeadRows;

SIMD_INLINE HeadRows head_rows(Tensor t, int64_t row, int64_t column) {
    int64_t stride = t.dim[t.ndim - 1];
    size_t offset_bytes = to_size(row * stride + column) * dtype_bytes(t.dtype);
    return (HeadRows){(unsigned char *)t.data + offset_bytes, t.dtype, stride};
}

// to(padded_rows, padded_columns) fp32 = from's rows [first, first+rows), `columns` wide; the padding is 0, so that
// tiles may run over it.
static void pack_rows(float *to, HeadRows from, int64_t first, int64_t rows, int64_t padded_rows, int64_t columns,
                      int64_t padded_columns) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; c += VF_LANES)
            vf_store(to + r * padded_columns + c,
                     vf_load_some(from.data, (first + r) * from.stride + c, columns - c, from.dtype));
    if (rows < padded_rows)
        memset(to + rows * padded_columns, 0, to_size((padded_rows - rows) * padded_columns) * sizeof(float));
}

// The reverse: to's rows [first, first+rows) = scale[r] * from, rounded to the destination's dtype. scale may be
// NULL.
static void unpack_rows(HeadRows to, int64_t first, const float *from, const float *scale, int64_t rows,
                        int64_t columns, int64_t padded_columns) {
    for (int64_t r = 0; r < rows; ++r) {
        vf factor = vf_set(scale != NULL ? scale[r] : 1.0f);
        for (int64_t c = 0; c < columns; c += VF_LANES)
            vf_store_some(to.data, (first + r) * to.stride + c, vf_load(from + r * padded_columns + c) * factor,
                          columns - c, to.dtype);
    }
}

// Interleave the lower (upper) halves of a and b: a0 b0 a1 b1 ...
#if VF_LANES == 16
#define LOW_LANES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH_LANES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif VF_LANES == 8
#define LOW_LANES 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH_LANES 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW_LANES 0, 4, 1, 5
#define HIGH_LANES 2, 6, 3, 7
#endif
#if defined(__clang__)
SIMD_INLINE vf interleave_low(vf a, vf b) { return __builtin_shufflevector(a, b, LOW_LANES); }
SIMD_INLINE vf interleave_high(vf a, vf b) { return __builtin_shufflevector(a, b, HIGH_LANES); }
#else
SIMD_INLINE vf interleave_low(vf a, vf b) { return __builtin_shuffle(a, b, (vi){LOW_LANES}); }
SIMD_INLINE vf interleave_high(vf a, vf b) { return __builtin_shuffle(a, b, (vi){HIGH_LANES}); }
#endif

// to(columns, BLOCK) = scale * from(BLOCK, columns)^T; columns is a multiple of VF_LANES. A square of VF_LANES is
// transposed by log2(VF_LANES) perfect shuffles of its rows.
static void transpose_block(float *to, const float *from, int64_t columns, float scale) {
    for (int64_t r = 0; r < BLOCK; r += VF_LANES)
        for (int64_t c = 0; c < columns; c += VF_LANES) {
            vf square[VF_LANES], shuffled[VF_LANES];
            for (int i = 0; i < VF_LANES; ++i) square[i] = vf_load(from + (r + i) * columns + c) * scale;
            for (int width = 1; width < VF_LANES; width *= 2) {
                for (int i = 0; i < VF_LANES / 2; ++i) {
                    shuffled[2 * i] = interleave_low(square[i], square[i + VF_LANES / 2]);
                    shuffled[2 * i + 1] = interleave_high(square[i], square[i + VF_LANES / 2]);
                }
                memcpy(square, shuffled, sizeof square);
            }
            for (int i = 0; i < VF_LANES; ++i) vf_store(to + (c + i) * BLOCK + r, square[i]);
        }
}

// c(TILE_ROWS, vectors*VF_LANES) {=, += if accumulate} a(TILE_ROWS, depth) b(depth, ...), where a's element (r,k) is
// a[r*a_row + k*a_column]: a transposed left operand costs nothing. `vectors` and `accumulate` are constants.
SIMD_INLINE void tile_multiply(float *c, int64_t c_stride, const float *a, int64_t a_row, int64_t a_column,
                               const float *b, int64_t b_stride, int64_t depth, int vectors, bool accumulate) {
    vf sum[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < TILE_ROWS; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v)
            sum[r][v] = accumulate ? vf_load(c + r * c_stride + v * VF_LANES) : vf_set(0.0f);
    for (int64_t k = 0; k < depth; ++k) {
        vf right[TILE_VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) right[v] = vf_load(b + k * b_stride + v * VF_LANES);
#pragma GCC unroll 8
        for (int r = 0; r < TILE_ROWS; ++r) {
            vf left = vf_set(a[r * a_row + k * a_column]);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) sum[r][v] += left * right[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < TILE_ROWS; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) vf_store(c + r * c_stride + v * VF_LANES, sum[r][v]);
}

// c(TILE_ROWS, columns) += a(TILE_ROWS, depth) b(depth, columns): a strip of rows as wide as a head. c and b have
// `columns` as stride, a multiple of VF_LANES.
SIMD_INLINE void strip_multiply_add(float *c, const float *a, int64_t a_row, int64_t a_column, const float *b,
                                    int64_t columns, int64_t depth) {
    int64_t n = 0;
    for (; n + GROUP <= columns; n += GROUP)
        tile_multiply(c + n, columns, a, a_row, a_column, b + n, columns, depth, TILE_VECTORS, true);
    for (; n < columns; n += VF_LANES)
        tile_multiply(c + n, columns, a, a_row, a_column, b + n, columns, depth, 1, true);
}

// ---- the mask ----

// Query i may attend to key j <=> low[i] <= j <= (prefix[j] ? high[i] : position[i]). low, high and position do not
// decrease with i, so the keys allowed for consecutive queries form one interval given by the first and last query,
// and likewise the queries of consecutive keys. The arrays are padded to whole blocks with copies of the last query.
typedef struct {
    int32_t *low;
    int32_t *high;
    int32_t *position;
    const uint8_t *prefix;  // per key; NULL: none
} KeySpans;

typedef struct {
    int64_t begin, end;  // [begin, end), relative to a block's start; begin <= end
} Range;

// The spans of `queries` queries at positions first, first+1, ... doc (NULL: one document) is indexed by query, so it
// and prefix need first == 0. window 0: no limit.
static void key_spans_fill(KeySpans *spans, const int32_t *doc, const uint8_t *prefix, int64_t queries, int64_t first,
                           int64_t window) {
    int64_t start = 0;
    for (int64_t i = 0; i < queries; ++i) {
        if (doc != NULL && i > 0 && doc[i] != doc[i - 1]) start = i;
        int64_t position = first + i;
        spans->low[i] = (int32_t)(window > 0 ? max_i64(start, position - window + 1) : start);
        spans->position[i] = (int32_t)position;
    }
    int64_t last_prefix = -1;
    for (int64_t i = queries - 1; i >= 0; --i) {
        if (doc != NULL && i + 1 < queries && doc[i] != doc[i + 1]) last_prefix = -1;
        if (prefix != NULL && prefix[i] && last_prefix < 0) last_prefix = i;
        spans->high[i] = (int32_t)max_i64(first + i, last_prefix);
    }
    for (int64_t i = queries; i < round_up(queries, BLOCK); ++i) {
        spans->low[i] = spans->low[queries - 1];
        spans->high[i] = spans->high[queries - 1];
        spans->position[i] = spans->position[queries - 1];
    }
    spans->prefix = prefix;
}

// The keys of block j0 that some query of [i, i+count) may attend to.
SIMD_INLINE Range block_key_range(const KeySpans *spans, int64_t i, int64_t count, int64_t j0) {
    int64_t begin = min_i64(max_i64(spans->low[i] - j0, 0), BLOCK);
    int64_t end = min_i64(spans->high[i + count - 1] + 1 - j0, BLOCK);
    return (Range){begin, max_i64(begin, end)};
}

// The same for the vector of queries starting at i, widened to whole strips.
SIMD_INLINE Range block_strip_range(const KeySpans *spans, int64_t i, int64_t j0) {
    Range range = block_key_range(spans, i, VF_LANES, j0);
    return (Range){range.begin / TILE_ROWS * TILE_ROWS, round_up(range.end, TILE_ROWS)};
}

// Among the first `count` queries of block i0, those that may attend to some key of the strip [j, j+TILE_ROWS). The
// strip is in the block_strip_range of each of them, because the interval of a vector contains those of its queries.
SIMD_INLINE Range block_query_range(const KeySpans *spans, int64_t i0, int64_t count, int64_t j) {
    Range range = {0, count};
    while (range.begin < count && spans->high[i0 + range.begin] < j) ++range.begin;
    while (range.end > range.begin && spans->low[i0 + range.end - 1] >= j + TILE_ROWS) --range.end;
    return range;
}

// scores(BLOCK keys, BLOCK queries) = -inf where the mask forbids, in the strip of keys from j and the vector of
// queries from i.
static void mask_scores(float *scores, const KeySpans *spans, int64_t i, int64_t j) {
    if (j >= spans->low[i + VF_LANES - 1] && j + TILE_ROWS - 1 <= spans->position[i]) return;
    vi low, high, position;
    memcpy(&low, spans->low + i, sizeof low);
    memcpy(&high, spans->high + i, sizeof high);
    memcpy(&position, spans->position + i, sizeof position);
    for (int r = 0; r < TILE_ROWS; ++r) {
        int32_t key = (int32_t)j + r;
        // Padding keys are after every position; prefix has no entry for them.
        bool ahead = spans->prefix != NULL && key <= spans->high[i + VF_LANES - 1] && spans->prefix[key];
        vi allowed = (low <= key) & ((ahead ? high : position) >= key);
        vf_store(scores + r * BLOCK, vf_select(allowed, vf_load(scores + r * BLOCK), vf_set(-INFINITY)));
    }
}

// to(BLOCK keys, BLOCK queries) = keys(BLOCK, padded) . queries(head_size, BLOCK) for the first `count` queries of
// block i0, within the mask: for each vector of queries its block_strip_range. Other elements are unchanged.
static void block_multiply(float *to, const float *keys, const float *queries, const KeySpans *spans, int64_t i0,
                           int64_t count, int64_t j0, int64_t head_size, int64_t padded) {
    for (int64_t column = 0; column < count; column += GROUP) {
        int64_t next = column + VF_LANES;
        Range left = block_strip_range(spans, i0 + column, j0);
        Range right = next < count ? block_strip_range(spans, i0 + next, j0) : (Range){left.end, left.end};
        for (int64_t r = left.begin; r < right.end; r += TILE_ROWS) {
            float *strip = to + r * BLOCK;
            const float *rows = keys + r * padded;
            if (r < left.end && r >= right.begin)
                tile_multiply(strip + column, BLOCK, rows, padded, 1, queries + column, BLOCK, head_size, 2, false);
            else if (r < left.end)
                tile_multiply(strip + column, BLOCK, rows, padded, 1, queries + column, BLOCK, head_size, 1, false);
            else if (r >= right.begin)
                tile_multiply(strip + next, BLOCK, rows, padded, 1, queries + next, BLOCK, head_size, 1, false);
        }
    }
}

#endif
