// gemm_pack.h: copies parts of a matrix into panels that the micro-kernels of gemm_micro.h read front to back. Only
// gemm_kernels.c includes it. It knows of memory layouts and number formats, not of blocking, threads or epilogues.
//
// A panel holds `width` rows (of op(a), or columns of op(b)) in units of 32-bit words: word w of all rows, then word
// w+1 of all rows, ... A word is one fp32, or two neighbours along K as bf16 where the CPU has dot products of such
// pairs. Rows and K beyond the matrix are zero.
#ifndef LLMC_CPU_GEMM_PACK_H
#define LLMC_CPU_GEMM_PACK_H

#include "llmc/cpu/simd.h"

// How an operand's elements become words.
typedef enum {
    WORD_F32,       // fp32 as it is
    WORD_BF16,      // bf16 widened to fp32: levels without bf16 dot products
    WORD_BF16_PAIR  // two bf16
} GemmWord;

// An operand: element (row, k) is at data[row * ld + k] if k_contiguous, else at data[k * ld + row].
typedef struct {
    const void *data;
    int64_t ld;
    bool k_contiguous;
} GemmSource;

#define VF_QUADS (VF_LANES / 4)  // 128-bit parts of a vector

// __builtin_shufflevector of x and y, the same pattern within each 128-bit part; Y + i names element i of y.
#define Y VF_LANES
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

// A 4 x 4 transpose within each 128-bit part of v[0..4).
SIMD_INLINE void transpose_within_quads(vf v[4]) {
    vf low01 = SHUFFLE_QUADS(v[0], v[1], 0, Y + 0, 1, Y + 1);
    vf high01 = SHUFFLE_QUADS(v[0], v[1], 2, Y + 2, 3, Y + 3);
    vf low23 = SHUFFLE_QUADS(v[2], v[3], 0, Y + 0, 1, Y + 1);
    vf high23 = SHUFFLE_QUADS(v[2], v[3], 2, Y + 2, 3, Y + 3);
    v[0] = SHUFFLE_QUADS(low01, low23, 0, 1, Y + 0, Y + 1);
    v[1] = SHUFFLE_QUADS(low01, low23, 2, 3, Y + 2, Y + 3);
    v[2] = SHUFFLE_QUADS(high01, high23, 0, 1, Y + 0, Y + 1);
    v[3] = SHUFFLE_QUADS(high01, high23, 2, 3, Y + 2, Y + 3);
}

// The transpose of v[0..VF_QUADS) seen as a square of 128-bit parts.
SIMD_INLINE void transpose_quads(vf v[VF_QUADS]) {
#if VF_LANES == 16
#define PARTS(x, y, i, j, k, l)                                                                                    \
    __builtin_shufflevector(x, y, 4 * (i), 4 * (i) + 1, 4 * (i) + 2, 4 * (i) + 3, 4 * (j), 4 * (j) + 1, 4 * (j) + 2, \
                            4 * (j) + 3, 4 * (k), 4 * (k) + 1, 4 * (k) + 2, 4 * (k) + 3, 4 * (l), 4 * (l) + 1,     \
                            4 * (l) + 2, 4 * (l) + 3)
    vf low01 = PARTS(v[0], v[1], 0, 1, 4, 5), high01 = PARTS(v[0], v[1], 2, 3, 6, 7);
    vf low23 = PARTS(v[2], v[3], 0, 1, 4, 5), high23 = PARTS(v[2], v[3], 2, 3, 6, 7);
    v[0] = PARTS(low01, low23, 0, 2, 4, 6);
    v[1] = PARTS(low01, low23, 1, 3, 5, 7);
    v[2] = PARTS(high01, high23, 0, 2, 4, 6);
    v[3] = PARTS(high01, high23, 1, 3, 5, 7);
#undef PARTS
#elif VF_LANES == 8
    vf low = __builtin_shufflevector(v[0], v[1], 0, 1, 2, 3, 8, 9, 10, 11);
    vf high = __builtin_shufflevector(v[0], v[1], 4, 5, 6, 7, 12, 13, 14, 15);
    v[0] = low;
    v[1] = high;
#else
    (void)v;
#endif
}
#undef Y

// to[k * ld + r] = rows[r][k] for all VF_LANES values of k. row_count is VF_LANES, or half of it: then ld = row_count.
SIMD_INLINE void transpose_store(float *to, int64_t ld, vf rows[VF_LANES], const int row_count) {
    const int groups = row_count / 4;
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g) transpose_within_quads(rows + 4 * g);
    // Now rows[4g + q], part L, holds k = 4L + q of the rows of group g.
    const int per_store = VF_QUADS / groups;  // values of k that one vector takes: 1, or 2 if row_count is half
#pragma GCC unroll 4
    for (int q = 0; q < 4; q += per_store) {
        vf parts[VF_QUADS];
#pragma GCC unroll 4
        for (int p = 0; p < VF_QUADS; ++p) parts[p] = rows[4 * (p % groups) + q + p / groups];
        transpose_quads(parts);
#pragma GCC unroll 4
        for (int p = 0; p < VF_QUADS; ++p) vf_store(to + (4 * p + q) * ld, parts[p]);
    }
}

// Elements of the source per word along K.
SIMD_INLINE int64_t word_elems(GemmWord word) { return word == WORD_BF16_PAIR ? 2 : 1; }
SIMD_INLINE size_t word_source_bytes(GemmWord word) { return word == WORD_F32 ? 4 : 2; }

// VF_LANES words along K from element `index`, of which `elems` elements are there (any number; all if enough).
SIMD_INLINE vf load_words(const void *data, int64_t index, int64_t elems, const GemmWord word) {
    if (word == WORD_F32) {
        const float *from = (const float *)data + index;
        return elems >= VF_LANES ? vf_load(from) : vf_load_part(from, elems);
    }
    const uint16_t *from = (const uint16_t *)data + index;
    if (word == WORD_BF16) return elems >= VF_LANES ? vf_load_bf16(from) : vf_load_bf16_part(from, elems);
    vf pairs = {0};
    if (elems >= 2 * VF_LANES)
        memcpy(&pairs, from, sizeof pairs);
    else
        memcpy(&pairs, from, (size_t)elems * sizeof(uint16_t));
    return pairs;
}

// VF_LANES words of neighbouring rows from a source that is not k_contiguous: one word along K (elems = 2, or 1 at an
// odd end, matter for pairs only), of which `rows` rows are there.
SIMD_INLINE vf load_row_words(const void *data, int64_t ld, int64_t index, int64_t rows, int64_t elems,
                              const GemmWord word) {
    if (word != WORD_BF16_PAIR) return load_words(data, index, rows, word);
    const uint16_t *from = (const uint16_t *)data + index;
    vh first = {0}, second = {0};
    if (rows >= VF_LANES) {
        memcpy(&first, from, sizeof first);
        if (elems > 1) memcpy(&second, from + ld, sizeof second);
    } else {
        memcpy(&first, from, (size_t)rows * sizeof(uint16_t));
        if (elems > 1) memcpy(&second, from + ld, (size_t)rows * sizeof(uint16_t));
    }
    return (vf)(__builtin_convertvector(first, vu) | (__builtin_convertvector(second, vu) << 16));
}

// A k_contiguous source: squares of row_count x VF_LANES words are transposed in registers. `width` is a multiple of
// row_count, which is the smaller of width and VF_LANES.
SIMD_INLINE void pack_transposed(float *panel, const GemmSource *source, int64_t row, int64_t rows, int64_t k,
                                 int64_t count, const int width, const int row_count, const GemmWord word) {
    const int64_t step = VF_LANES * word_elems(word);
    const int64_t words = (count + word_elems(word) - 1) / word_elems(word);
    for (int first = 0; first < width; first += row_count) {
        const int64_t there = rows - first;
        const int64_t base = (row + first) * source->ld + k;
        int64_t done = 0;
        if (there >= row_count) {
            for (; done + step <= count; done += step) {
                vf square[VF_LANES];
#pragma GCC unroll 16
                for (int r = 0; r < row_count; ++r)
                    square[r] = load_words(source->data, base + r * source->ld + done, step, word);
                transpose_store(panel + done / word_elems(word) * width + first, width, square, row_count);
            }
        }
        for (; done < count; done += step) {
            vf square[VF_LANES];
            float turned[VF_LANES * VF_LANES];
            for (int r = 0; r < row_count; ++r)
                square[r] = r < there ? load_words(source->data, base + r * source->ld + done, count - done, word)
                                      : (vf){0};
            transpose_store(turned, row_count, square, row_count);
            const int64_t first_word = done / word_elems(word);
            for (int64_t w = first_word; w < min_i64(first_word + VF_LANES, words); ++w)
                memcpy(panel + w * width + first, turned + (w - first_word) * row_count,
                       (size_t)row_count * sizeof(float));
        }
    }
}

// Any other source: rows are neighbours in memory and are copied. A vector of them fills one panel's chunk, or two
// panels' words where a panel is half a vector wide. At most PACK_COPY_ROWS rows at a time, so that the panels
// written and the lines read stay within the ways of the L1 cache.
#define PACK_COPY_ROWS (3 * VF_LANES)
SIMD_INLINE void pack_copied(float *panel, int64_t panel_words, const GemmSource *source, int64_t row, int64_t rows,
                             int64_t k, int64_t count, const int width, const GemmWord word) {
    const int64_t elems = word_elems(word);
    for (int64_t group = 0; group < rows; group += PACK_COPY_ROWS) {
        const int64_t group_rows = min_i64(rows - group, PACK_COPY_ROWS);
        for (int64_t done = 0; done < count; done += elems) {
            const int64_t base = (k + done) * source->ld + row + group;
            for (int64_t r = 0; r < group_rows; r += VF_LANES) {
                vf words = load_row_words(source->data, source->ld, base + r, group_rows - r, count - done, word);
                float *to = panel + (group + r) / width * panel_words + done / elems * width + (group + r) % width;
                if (width >= VF_LANES) {
                    vf_store(to, words);
                } else {
                    memcpy(to, &words, (size_t)width * sizeof(float));
                    if (group_rows - r > width)
                        memcpy(to + panel_words, (const float *)&words + width, (size_t)width * sizeof(float));
                }
            }
        }
    }
}

// Packs rows [row, row + rows) and elements [k, k + count) of K into successive panels of `width` rows, each
// panel_words long. width is half of VF_LANES, or that number of whole vectors that leaves less than a vector unused.
SIMD_INLINE void pack_panels(float *panels, int64_t panel_words, const GemmSource *source, int64_t row, int64_t rows,
                             int64_t k, int64_t count, const int width, const GemmWord word) {
    if (source->k_contiguous) {
        const int row_count = width < VF_LANES ? width : VF_LANES;
        for (int64_t r = 0; r < rows; r += width)
            pack_transposed(panels + r / width * panel_words, source, row + r, min_i64(rows - r, width), k, count,
                            width, row_count, word);
    } else {
        pack_copied(panels, panel_words, source, row, rows, k, count, width, word);
    }
}

#endif
