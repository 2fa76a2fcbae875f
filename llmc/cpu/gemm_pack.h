// gemm_pack.h: copies parts of a matrix into panels that the micro-kernels of gemm_micro.h read sequentially. Must
// not know blocking, threads or epilogues.
//
// A panel holds some rows of op(a), or columns of op(b) ("rows" here too), in units of 32-bit words: word 0 along K
// of all its rows, then word 1 of all its rows, ... A word is one fp32, or two neighbours along K as bf16 if the
// CPU has dot products of such pairs. Panels are filled by squares of VF_LANES rows and words, a square in VF_QUADS
// steps; elements of a square outside the matrix are zero.
#ifndef LLMC_CPU_GEMM_PACK_H
#define LLMC_CPU_GEMM_PACK_H

#include "llmc/cpu/simd.h"

// Whether a word of bf16 operands is a pair; else it is a single element, widened to fp32.
#if defined(__AVX512BF16__)
#define BF16_PAIRS true
#else
#define BF16_PAIRS false
#endif

// An operand: element (row, k) is at data[row * ld + k] if k_contiguous, else at data[k * ld + row].
typedef struct {
    const void *data;
    int64_t ld;
    bool k_contiguous;
} GemmSource;

// Elements of an operand per word along K.
SIMD_INLINE int64_t word_elems(DType dtype) { return dtype == DTYPE_BF16 && BF16_PAIRS ? 2 : 1; }
SIMD_INLINE int64_t elem_bytes(DType dtype) { return dtype == DTYPE_F32 ? 4 : 2; }

#define VF_QUADS (VF_LANES / 4)  // 128-bit parts of a vector
typedef float vq __attribute__((vector_size(16), may_alias));

// VF_LANES words along K.
SIMD_INLINE vf load_words(const char *from, const DType dtype) {
    if (dtype == DTYPE_BF16 && !BF16_PAIRS) return vf_load_bf16((const uint16_t *)from);
    vf words;
    memcpy(&words, from, sizeof words);
    return words;
}
// One word along K of VF_LANES rows that are adjacent in memory; its second half is next_bytes further.
SIMD_INLINE vf load_row_words(const char *from, int64_t next_bytes, const DType dtype) {
    if (dtype == DTYPE_F32 || !BF16_PAIRS) return load_words(from, dtype);
    vh first, second;
    memcpy(&first, from, sizeof first);
    memcpy(&second, from + next_bytes, sizeof second);
    return (vf)(__builtin_convertvector(first, vu) | (__builtin_convertvector(second, vu) << 16));
}

// The 4 x 4 transpose of v[0..4) within each quad.
#if VF_LANES == 16
#define SHUFFLE_QUADS(x, y, i, j, k, l)                                                                        \
    __builtin_shufflevector(x, y, i, j, k, l, (i) + 4, (j) + 4, (k) + 4, (l) + 4, (i) + 8, (j) + 8, (k) + 8, \
                            (l) + 8, (i) + 12, (j) + 12, (k) + 12, (l) + 12)
#elif VF_LANES == 8
#define SHUFFLE_QUADS(x, y, i, j, k, l) \
    __builtin_shufflevector(x, y, i, j, k, l, (i) + 4, (j) + 4, (k) + 4, (l) + 4)
#else
#define SHUFFLE_QUADS(x, y, i, j, k, l) __builtin_shufflevector(x, y, i, j, k, l)
#endif
#define Y VF_LANES  // Y + i names element i of y
SIMD_INLINE void transpose_quads(vf out[4], const vf v[4]) {
    vf low01 = SHUFFLE_QUADS(v[0], v[1], 0, Y + 0, 1, Y + 1);
    vf high01 = SHUFFLE_QUADS(v[0], v[1], 2, Y + 2, 3, Y + 3);
    vf low23 = SHUFFLE_QUADS(v[2], v[3], 0, Y + 0, 1, Y + 1);
    vf high23 = SHUFFLE_QUADS(v[2], v[3], 2, Y + 2, 3, Y + 3);
    out[0] = SHUFFLE_QUADS(low01, low23, 0, 1, Y + 0, Y + 1);
    out[1] = SHUFFLE_QUADS(low01, low23, 2, 3, Y + 2, Y + 3);
    out[2] = SHUFFLE_QUADS(high01, high23, 0, 1, Y + 0, Y + 1);
    out[3] = SHUFFLE_QUADS(high01, high23, 2, 3, Y + 2, Y + 3);
}
#undef Y
// The quads of v, `stride` floats apart.
SIMD_INLINE void store_quads(float *to, int64_t stride, vf v) {
#define STORE_QUAD(i)                                                                                  \
    do {                                                                                               \
        vq quad = __builtin_shufflevector(v, v, 4 * (i), 4 * (i) + 1, 4 * (i) + 2, 4 * (i) + 3); \
        memcpy(to + (i) * stride, &quad, sizeof quad);                                                 \
    } while (0)
    STORE_QUAD(0);
#if VF_LANES >= 8
    STORE_QUAD(1);
#endif
#if VF_LANES == 16
    STORE_QUAD(2);
    STORE_QUAD(3);
#endif
#undef STORE_QUAD
}

// Destination of squares: row r and word w go to to[w * stride + r / PART_ROWS * next_part + r % PART_ROWS]. In a
// panel of PART_ROWS rows, such as those of a, the next part is another panel; in a wider one it follows directly.
#define PART_ROWS (VF_LANES == 4 ? 4 : VF_LANES / 2)
typedef struct {
    float *to;
    int64_t stride, next_part;
} GemmChunk;

// One of the VF_QUADS steps of a square whose first element is at `from`. If the source is contiguous along K, a step
// is all words of four rows: whole lines are read, because lines of many rows at once would map to one set of the L1
// cache if ld is a power of two. Otherwise a step is four words of all rows.
SIMD_INLINE void pack_step(GemmChunk chunk, const char *from, int64_t ld_bytes, int64_t step, const bool k_contiguous,
                           const DType dtype) {
    if (k_contiguous) {
        vf v[4], out[4];
        float *to = chunk.to + 4 * step / PART_ROWS * chunk.next_part + 4 * step % PART_ROWS;
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) v[r] = load_words(from + (4 * step + r) * ld_bytes, dtype);
        transpose_quads(out, v);
#pragma GCC unroll 4
        for (int w = 0; w < 4; ++w) store_quads(to + w * chunk.stride, 4 * chunk.stride, out[w]);
    } else {
#pragma GCC unroll 4
        for (int w = 0; w < 4; ++w) {
            const int64_t at = (4 * step + w) * word_elems(dtype) * ld_bytes;
            vf words = load_row_words(from + at, ld_bytes, dtype);
            float *to = chunk.to + (4 * step + w) * chunk.stride;
#pragma GCC unroll 2
            for (int part = 0; part < VF_LANES / PART_ROWS; ++part)
                memcpy(to + part * chunk.next_part, (const float *)&words + part * PART_ROWS,
                       PART_ROWS * sizeof(float));
        }
    }
}

// Bytes from the first element of a square to that of the next along K.
SIMD_INLINE int64_t square_bytes(const GemmSource *source, DType dtype) {
    return VF_LANES * word_elems(dtype) * (source->k_contiguous ? 1 : source->ld) * elem_bytes(dtype);
}
SIMD_INLINE const char *source_at(const GemmSource *source, int64_t row, int64_t k, DType dtype) {
    const int64_t index = source->k_contiguous ? row * source->ld + k : k * source->ld + row;
    return (const char *)source->data + index * elem_bytes(dtype);
}

SIMD_INLINE void pack_square_as(GemmChunk chunk, const char *from, int64_t ld_bytes, const bool k_contiguous,
                                const DType dtype) {
    for (int step = 0; step < VF_QUADS; ++step) pack_step(chunk, from, ld_bytes, step, k_contiguous, dtype);
}
static void pack_square(GemmChunk chunk, const char *from, int64_t ld_bytes, bool k_contiguous, DType dtype) {
    if (k_contiguous && dtype == DTYPE_F32) pack_square_as(chunk, from, ld_bytes, true, DTYPE_F32);
    if (k_contiguous && dtype == DTYPE_BF16) pack_square_as(chunk, from, ld_bytes, true, DTYPE_BF16);
    if (!k_contiguous && dtype == DTYPE_F32) pack_square_as(chunk, from, ld_bytes, false, DTYPE_F32);
    if (!k_contiguous && dtype == DTYPE_BF16) pack_square_as(chunk, from, ld_bytes, false, DTYPE_BF16);
}

// A chunk: rows [row, row + rows), padded to VF_LANES, and `elems` elements from k.
static void pack_chunk(GemmChunk chunk, const GemmSource *source, int64_t row, int64_t rows, int64_t k, int64_t elems,
                       DType dtype) {
    const int64_t square_elems = VF_LANES * word_elems(dtype), bytes = elem_bytes(dtype);
    const char *from = source_at(source, row, k, dtype);
    for (int64_t done = 0; done < elems; done += square_elems) {
        if (rows >= VF_LANES && done + square_elems <= elems) {
            pack_square(chunk, from, source->ld * bytes, source->k_contiguous, dtype);
        } else {
            // The matrix ends in this square: its elements are copied into zeros first.
            char padded[2 * VF_LANES * VF_LANES * sizeof(float)] = {0};
            const int64_t there_rows = min_i64(rows, VF_LANES), there_elems = min_i64(elems - done, square_elems);
            const int64_t lines = source->k_contiguous ? there_rows : there_elems;
            const int64_t line_bytes = (source->k_contiguous ? there_elems : there_rows) * bytes;
            const int64_t padded_ld = (source->k_contiguous ? square_elems : VF_LANES) * bytes;
            for (int64_t i = 0; i < lines; ++i)
                memcpy(padded + i * padded_ld, from + i * source->ld * bytes, (size_t)line_bytes);
            pack_square(chunk, padded, padded_ld, source->k_contiguous, dtype);
        }
        from += square_bytes(source, dtype);
        chunk.to += VF_LANES * chunk.stride;
    }
}

#endif
