// gemm_pack.h: copies parts of a matrix into panels that the micro-kernels of gemm_micro.h read front to back. Only
// the gemm files include it. It knows of memory layouts and number formats, not of blocking, threads or epilogues.
//
// A panel holds some rows of op(a), or columns of op(b) ("rows" here too), in units of 32-bit words: word 0 along K
// of all its rows, then word 1 of all its rows, ... A word is one fp32, or two neighbours along K as bf16 where the
// CPU has dot products of such pairs. Panels are filled in chunks of VF_LANES rows and steps of STEP_WORDS words;
// what the matrix lacks of a chunk or a step is zero.
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

// ---- transposition of VF_LANES rows x STEP_WORDS words ----

#define STEP_WORDS 4
// Four words: what one row gives to a step. A vector is VF_QUADS of them.
typedef float vq __attribute__((vector_size(16), may_alias));
#define VF_QUADS (VF_LANES / 4)

#if VF_LANES == 16
SIMD_INLINE vf join_quads(const vq q[VF_QUADS]) {
    typedef float vo __attribute__((vector_size(32), may_alias));
    vo low = __builtin_shufflevector(q[0], q[1], 0, 1, 2, 3, 4, 5, 6, 7);
    vo high = __builtin_shufflevector(q[2], q[3], 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
// The same shuffle of x and y within each quad; Y + i names element i of y.
#define SHUFFLE_QUADS(x, y, i, j, k, l)                                                                        \
    __builtin_shufflevector(x, y, i, j, k, l, (i) + 4, (j) + 4, (k) + 4, (l) + 4, (i) + 8, (j) + 8, (k) + 8, \
                            (l) + 8, (i) + 12, (j) + 12, (k) + 12, (l) + 12)
#elif VF_LANES == 8
SIMD_INLINE vf join_quads(const vq q[VF_QUADS]) {
    return __builtin_shufflevector(q[0], q[1], 0, 1, 2, 3, 4, 5, 6, 7);
}
#define SHUFFLE_QUADS(x, y, i, j, k, l) \
    __builtin_shufflevector(x, y, i, j, k, l, (i) + 4, (j) + 4, (k) + 4, (l) + 4)
#else
SIMD_INLINE vf join_quads(const vq q[VF_QUADS]) { return q[0]; }
#define SHUFFLE_QUADS(x, y, i, j, k, l) __builtin_shufflevector(x, y, i, j, k, l)
#endif

// v[i] holds words 0..3 of row i, of row i + 4, ...; out[w] gets word w of all rows in order.
#define Y VF_LANES
SIMD_INLINE void transpose_quads(vf out[STEP_WORDS], const vf v[4]) {
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

// ---- packing ----

// Four words along K from element `index`.
SIMD_INLINE vq load_quad(const void *data, int64_t index, const DType dtype) {
    const char *from = (const char *)data + index * elem_bytes(dtype);
    vq quad;
    if (dtype == DTYPE_BF16 && !BF16_PAIRS) {
        typedef uint16_t half_quad __attribute__((vector_size(8), may_alias));
        typedef uint32_t wide_quad __attribute__((vector_size(16), may_alias));
        half_quad half;
        memcpy(&half, from, sizeof half);
        return (vq)(__builtin_convertvector(half, wide_quad) << 16);
    }
    memcpy(&quad, from, sizeof quad);
    return quad;
}

// One word of VF_LANES rows that are neighbours in memory, from element `index`; the word's second half is a row of
// ld elements further on.
SIMD_INLINE vf load_row_words(const void *data, int64_t index, int64_t ld, const DType dtype) {
    if (dtype == DTYPE_F32) return vf_load((const float *)data + index);
    const uint16_t *from = (const uint16_t *)data + index;
    if (!BF16_PAIRS) return vf_load_bf16(from);
    vh first, second;
    memcpy(&first, from, sizeof first);
    memcpy(&second, from + ld, sizeof second);
    return (vf)(__builtin_convertvector(first, vu) | (__builtin_convertvector(second, vu) << 16));
}

// Where a chunk is written: word w of its rows to to[w * stride]. Panels of half a vector take half of the rows each:
// then half_offset leads from the first to the second, and is 0 otherwise.
typedef struct {
    float *to;
    int64_t stride, half_offset;
} GemmChunk;

// One step of a chunk, from element `index` of the source: its first row and word.
SIMD_INLINE void pack_step(GemmChunk chunk, const void *data, int64_t index, int64_t ld, const bool k_contiguous,
                           const bool halves, const DType dtype) {
    vf out[STEP_WORDS];
    if (k_contiguous) {
        vf v[4];
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            vq quads[VF_QUADS];
#pragma GCC unroll 4
            for (int q = 0; q < VF_QUADS; ++q) quads[q] = load_quad(data, index + (r + 4 * q) * ld, dtype);
            v[r] = join_quads(quads);
        }
        transpose_quads(out, v);
    } else {
#pragma GCC unroll 4
        for (int w = 0; w < STEP_WORDS; ++w)
            out[w] = load_row_words(data, index + w * word_elems(dtype) * ld, ld, dtype);
    }
#pragma GCC unroll 4
    for (int w = 0; w < STEP_WORDS; ++w) {
        float *to = chunk.to + w * chunk.stride;
        if (halves) {
            memcpy(to, &out[w], sizeof(vf) / 2);
            memcpy(to + chunk.half_offset, (const float *)&out[w] + VF_LANES / 2, sizeof(vf) / 2);
        } else {
            vf_store(to, out[w]);
        }
    }
}

// A step that the matrix does not fill: `rows` rows and `elems` elements along K are there.
static void pack_edge(GemmChunk chunk, const GemmSource *source, int64_t index, int64_t rows, int64_t elems,
                      const bool halves, DType dtype) {
    unsigned char padded[2 * STEP_WORDS * VF_LANES * 4] = {0};
    const size_t bytes = (size_t)elem_bytes(dtype);
    const int64_t lines = source->k_contiguous ? rows : elems;
    const int64_t line_elems = source->k_contiguous ? elems : rows;
    const int64_t ld = source->k_contiguous ? STEP_WORDS * word_elems(dtype) : VF_LANES;
    for (int64_t i = 0; i < lines; ++i)
        memcpy(padded + (size_t)(i * ld) * bytes,
               (const unsigned char *)source->data + (size_t)(index + i * source->ld) * bytes,
               (size_t)line_elems * bytes);
#define PACK_EDGE(contiguous, kind)                              \
    if (source->k_contiguous == contiguous && dtype == kind) \
        pack_step(chunk, padded, 0, ld, contiguous, halves, kind);
    PACK_EDGE(true, DTYPE_F32) PACK_EDGE(true, DTYPE_BF16) PACK_EDGE(false, DTYPE_F32) PACK_EDGE(false, DTYPE_BF16)
#undef PACK_EDGE
}

// Rows [row, row + rows), at most VF_LANES of them, and `elems` elements from k on.
SIMD_INLINE void pack_chunk_as(GemmChunk chunk, const GemmSource *source, int64_t row, int64_t rows, int64_t k,
                               int64_t elems, const bool k_contiguous, const bool halves, const DType dtype) {
    const int64_t step = STEP_WORDS * word_elems(dtype);
    const int64_t stride = k_contiguous ? 1 : source->ld;
    int64_t index = k_contiguous ? row * source->ld + k : k * source->ld + row;
    for (int64_t done = 0; done < elems; done += step) {
        if (rows >= VF_LANES && done + step <= elems)
            pack_step(chunk, source->data, index, source->ld, k_contiguous, halves, dtype);
        else
            pack_edge(chunk, source, index, min_i64(rows, VF_LANES), min_i64(elems - done, step), halves, dtype);
        index += step * stride;
        chunk.to += STEP_WORDS * chunk.stride;
    }
}
static void pack_chunk(GemmChunk chunk, const GemmSource *source, int64_t row, int64_t rows, int64_t k, int64_t elems,
                       DType dtype) {
#define PACK_CHUNK(contiguous, halves, kind)                                                         \
    if (source->k_contiguous == contiguous && (chunk.half_offset != 0) == halves && dtype == kind) \
        pack_chunk_as(chunk, source, row, rows, k, elems, contiguous, halves, kind);
#define PACK_CHUNKS(kind)                                                    \
    PACK_CHUNK(true, true, kind) PACK_CHUNK(true, false, kind)               \
    PACK_CHUNK(false, true, kind) PACK_CHUNK(false, false, kind)
    PACK_CHUNKS(DTYPE_F32) PACK_CHUNKS(DTYPE_BF16)
#undef PACK_CHUNKS
#undef PACK_CHUNK
}

#endif
