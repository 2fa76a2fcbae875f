// gemm_kernels.c: matrix multiplication on the CPU: blocking for the caches and division among threads around the
// packing of gemm_pack.h and the micro-kernels of gemm_micro.h. Called through Backend.matmul only.
//
// out(M,N) is cut into one region per thread; threads share nothing and never wait for each other until the end. In a
// region (Goto & van de Geijn, "Anatomy of high-performance matrix multiplication"; the figures are fp32, AVX-512):
//
//   for ROW_BLOCK rows, for COL_BLOCK columns, for a block of K (<= BLOCK_WORDS words):
//       pack the rows of a                          512 * 768 words = 1.5 MB, in L3 (or L2, if smaller)
//       for each panel of TILE_COLS columns:
//           pack the panel of b                     768 * 48 words = 147 KB, stays in L2
//           for each panel of TILE_ROWS rows:
//               multiply, then the epilogue         8 x 48 sums in registers
//
// A micro-kernel takes 24 cycles per word and reads 192 bytes of b from L2 and 32 bytes of a from L3 for them: 8 and
// 1.3 bytes a cycle, against some 32 and 10 that these give. Packing costs about 1/4 cycle an element of a once per
// COL_BLOCK (or all) columns and of b once per ROW_BLOCK rows, multiply-adds 1/16 cycle: 4/512 for b, 4/1008 for a.
#include <omp.h>

#include "llmc/cpu/gemm_micro.h"
#include "llmc/cpu/isa.h"
#include "llmc/cpu/kernels.h"

#define BLOCK_WORDS 768
#define ROW_BLOCK (64 * TILE_ROWS)
#define COL_BLOCK (21 * TILE_COLS)
// Up to this many rows of a, a linear layer is bound by reading its weight: rows_dot reads it in place, once.
#define FEW_ROWS 6
// Below this many multiply-adds, starting threads costs more than it saves.
#define THREAD_MIN_WORK 100000

typedef struct {
    GemmSource a, b;
    GemmEpilogue epilogue;
    GemmWord word;
    int64_t M, N, K;
    int64_t block_k;  // elements of K per block
} Gemm;

typedef struct {
    int64_t row, rows, col, cols;
} GemmRegion;

static void tile_multiply_any(float *tile, const float *a, const float *b, int64_t words, int vectors,
                              GemmWord word) {
    if (word == WORD_BF16_PAIR) {
        if (vectors == 1) tile_multiply(tile, a, b, words, 1, WORD_BF16_PAIR);
        if (vectors == 2) tile_multiply(tile, a, b, words, 2, WORD_BF16_PAIR);
        if (vectors == 3) tile_multiply(tile, a, b, words, TILE_VECTORS, WORD_BF16_PAIR);
    } else {
        if (vectors == 1) tile_multiply(tile, a, b, words, 1, WORD_F32);
        if (vectors == 2) tile_multiply(tile, a, b, words, 2, WORD_F32);
        if (vectors == 3) tile_multiply(tile, a, b, words, TILE_VECTORS, WORD_F32);
    }
}

static void pack_a(float *panels, int64_t panel_words, const GemmSource *a, int64_t row, int64_t rows, int64_t k,
                   int64_t count, GemmWord word) {
    if (word == WORD_F32) pack_panels(panels, panel_words, a, row, rows, k, count, TILE_ROWS, WORD_F32);
    if (word == WORD_BF16) pack_panels(panels, panel_words, a, row, rows, k, count, TILE_ROWS, WORD_BF16);
    if (word == WORD_BF16_PAIR) pack_panels(panels, panel_words, a, row, rows, k, count, TILE_ROWS, WORD_BF16_PAIR);
}

// One panel of b; its width is `vectors` vectors.
static void pack_b(float *panel, const GemmSource *b, int64_t col, int64_t cols, int64_t k, int64_t count,
                   int vectors, GemmWord word) {
    const int width = vectors * VF_LANES;
    if (word == WORD_F32) pack_panels(panel, 0, b, col, cols, k, count, width, WORD_F32);
    if (word == WORD_BF16) pack_panels(panel, 0, b, col, cols, k, count, width, WORD_BF16);
    if (word == WORD_BF16_PAIR) pack_panels(panel, 0, b, col, cols, k, count, width, WORD_BF16_PAIR);
}

// One block of a region: its rows of a are packed, then panel by panel of b all its tiles are computed.
static void gemm_block(const Gemm *g, GemmRegion r, int64_t k, float *a_panels, float *b_panel, float *partial,
                       int64_t partial_ld) {
    const int64_t count = min_i64(g->block_k, g->K - k);
    const int64_t words = div_up(count, word_elems(g->word));
    pack_a(a_panels, words * TILE_ROWS, &g->a, r.row, r.rows, k, count, g->word);
    GemmTile t = {.partial_ld = partial_ld, .first_block = k == 0, .last_block = k + count == g->K};
    for (int64_t j = 0; j < r.cols; j += TILE_COLS) {
        t.col = r.col + j;
        t.cols = min_i64(TILE_COLS, r.cols - j);
        const int vectors = (int)div_up(t.cols, VF_LANES);
        pack_b(b_panel, &g->b, t.col, t.cols, k, count, vectors, g->word);
        for (int64_t i = 0; i < r.rows; i += TILE_ROWS) {
            float tile[TILE_ROWS * TILE_COLS];
            t.row = r.row + i;
            t.rows = min_i64(TILE_ROWS, r.rows - i);
            t.partial = partial == NULL ? NULL : partial + i * partial_ld + j;
            tile_multiply_any(tile, a_panels + i * words, b_panel, words, vectors, g->word);
            tile_finish(&g->epilogue, &t, tile, vectors * VF_LANES);
        }
    }
}

// Sums of several blocks of K wait in the output if it is fp32, else in scratch.
static void gemm_region(const Gemm *g, GemmRegion region, Backend *be) {
    const bool several = g->block_k < g->K;
    const bool in_place = g->epilogue.dtype == DTYPE_F32;
    float *out = g->epilogue.out;
    const int64_t col_block = several ? COL_BLOCK : max_i64(region.cols, 1);
    const int64_t words = div_up(g->block_k, word_elems(g->word));
    const int64_t most_rows = min_i64(ROW_BLOCK, round_up(region.rows, TILE_ROWS));
    const int64_t most_cols = min_i64(col_block, round_up(region.cols, TILE_COLS));
    const int64_t a_words = round_up(most_rows * words, 16), b_words = TILE_COLS * words;
    const int64_t partial_words = several && !in_place ? most_rows * most_cols : 0;
    const size_t scratch_bytes = sizeof(float) * to_size(a_words + b_words + partial_words);
    float *a_panels = cpu_scratch(be, omp_get_thread_num(), scratch_bytes);
    float *b_panel = a_panels + a_words;
    for (int64_t i = 0; i < region.rows; i += ROW_BLOCK)
        for (int64_t j = 0; j < region.cols; j += col_block) {
            GemmRegion block = {region.row + i, min_i64(ROW_BLOCK, region.rows - i), region.col + j,
                                min_i64(col_block, region.cols - j)};
            float *partial = NULL;
            if (several) partial = in_place ? out + block.row * g->N + block.col : b_panel + b_words;
            for (int64_t k = 0; k == 0 || k < g->K; k += g->block_k)
                gemm_block(g, block, k, a_panels, b_panel, partial, in_place ? g->N : most_cols);
        }
}

static void rows_dot_any(float *tile, const Gemm *g, int64_t row, int64_t col, int row_count, GemmWord word) {
    const int64_t there = g->N - col;
#define ROWS_DOT(count, kind) \
    if (row_count == count && word == kind)   \
        rows_dot(tile, VF_LANES, &g->a, row, &g->b, col, there, g->K, count, kind);
    ROWS_DOT(1, WORD_F32) ROWS_DOT(2, WORD_F32) ROWS_DOT(4, WORD_F32)
    ROWS_DOT(1, WORD_BF16) ROWS_DOT(2, WORD_BF16) ROWS_DOT(4, WORD_BF16)
    ROWS_DOT(1, WORD_BF16_PAIR) ROWS_DOT(2, WORD_BF16_PAIR) ROWS_DOT(4, WORD_BF16_PAIR)
#undef ROWS_DOT
}

// Few rows of a, both operands contiguous along K: VF_LANES columns of the output are one tile.
static void few_rows_columns(const Gemm *g, int64_t col) {
    float tile[FEW_ROWS * VF_LANES];
    GemmTile t = {.col = col, .cols = min_i64(VF_LANES, g->N - col), .rows = g->M, .first_block = true,
                  .last_block = true};
    for (int64_t m = 0; m < g->M;) {
        const int row_count = g->M - m >= 4 ? 4 : g->M - m >= 2 ? 2 : 1;
        for (int64_t n = 0; n < t.cols; n += VF_LANES / row_count)
            rows_dot_any(tile + m * VF_LANES + n, g, m, col + n, row_count, g->word);
        m += row_count;
    }
    tile_finish(&g->epilogue, &t, tile, VF_LANES);
}

// Part `index` of `parts` of [0, total) in whole units.
static void part_of(int64_t *first, int64_t *count, int64_t total, int64_t unit, int64_t index, int64_t parts) {
    const int64_t units = div_up(total, unit);
    *first = min_i64(units * index / parts * unit, total);
    *count = min_i64(units * (index + 1) / parts * unit, total) - *first;
}

// How many threads share the rows; the rest of the factor shares the columns. The slowest region decides: its
// multiply-adds and its packing, which costs about 4 multiply-adds of a vector's element per element packed.
static int split_rows(const Gemm *g, int threads) {
    int best = 1;
    int64_t best_cost = INT64_MAX;
    for (int across_rows = 1; across_rows <= threads; ++across_rows) {
        if (threads % across_rows != 0) continue;
        const int64_t rows = round_up(div_up(g->M, across_rows), TILE_ROWS);
        const int64_t cols = round_up(div_up(g->N, threads / across_rows), TILE_COLS);
        const int64_t cost = rows * cols + 4 * (rows + cols);
        if (cost < best_cost) {
            best = across_rows;
            best_cost = cost;
        }
    }
    return best;
}

static void gemm_run(Backend *be, const Gemm *g) {
    const bool few_rows = g->M <= FEW_ROWS && g->a.k_contiguous && g->b.k_contiguous;
    const bool alone = g->M * g->N * max_i64(g->K, 1) < THREAD_MIN_WORK;
    const int threads = alone ? 1 : be->threads;
    const int across_rows = split_rows(g, threads), across_cols = threads / across_rows;
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
        GemmRegion region;
        if (few_rows) {
            part_of(&region.col, &region.cols, g->N, VF_LANES, thread, threads);
            for (int64_t n = 0; n < region.cols; n += VF_LANES) few_rows_columns(g, region.col + n);
        } else {
            part_of(&region.row, &region.rows, g->M, TILE_ROWS, thread / across_cols, across_rows);
            part_of(&region.col, &region.cols, g->N, TILE_COLS, thread % across_cols, across_cols);
            gemm_region(g, region, be);
        }
    }
}

// ---- the backend's entry ----

static void check_operand(Tensor t, const char *name, int64_t rows, int64_t cols, DType dtype) {
    CHECK(t.ndim == 2 && t.dim[0] == rows && t.dim[1] == cols && t.dtype == dtype,
          "matmul: %s is %s (%lld, %lld), expected %s (%lld, %lld)", name, dtype_name(t.dtype), (long long)t.dim[0],
          (long long)t.dim[1], dtype_name(dtype), (long long)rows, (long long)cols);
}

static GemmWord word_kind(DType dtype) {
#if defined(__AVX512BF16__)
    const GemmWord bf16 = WORD_BF16_PAIR;
#else
    const GemmWord bf16 = WORD_BF16;
#endif
    return dtype == DTYPE_BF16 ? bf16 : WORD_F32;
}

static void gemm_matmul(Backend *be, Tensor out, Tensor a, Tensor b, MatmulArgs args) {
    CHECK(a.ndim == 2 && b.ndim == 2 && out.ndim == 2, "matmul: ndim out=%d a=%d b=%d", out.ndim, a.ndim, b.ndim);
    const int64_t M = out.dim[0], N = out.dim[1], K = args.trans_a ? a.dim[0] : a.dim[1];
    CHECK(a.dtype == DTYPE_F32 || a.dtype == DTYPE_BF16, "matmul: a is %s", dtype_name(a.dtype));
    CHECK(out.dtype == DTYPE_F32 || (out.dtype == DTYPE_BF16 && a.dtype == DTYPE_BF16), "matmul: out is %s, a is %s",
          dtype_name(out.dtype), dtype_name(a.dtype));
    check_operand(a, "a", args.trans_a ? K : M, args.trans_a ? M : K, a.dtype);
    check_operand(b, "b", args.trans_b ? N : K, args.trans_b ? K : N, a.dtype);
    if (!tensor_is_none(args.add)) check_operand(args.add, "add", M, N, out.dtype);
    if (!tensor_is_none(args.pre)) check_operand(args.pre, "pre", M, N, out.dtype);
    if (!tensor_is_none(args.bias))
        CHECK(args.bias.ndim == 1 && args.bias.dim[0] == N && args.bias.dtype == a.dtype,
              "matmul: bias is %s (%lld), expected %s (%lld)", dtype_name(args.bias.dtype),
              (long long)args.bias.dim[0], dtype_name(a.dtype), (long long)N);
    CHECK(args.act != ACT_SWIGLU && args.act_grad != ACT_SWIGLU, "matmul: a gated activation is not elementwise");
    CHECK(args.act == ACT_NONE || args.act_grad == ACT_NONE, "matmul: act=%d and act_grad=%d", (int)args.act,
          (int)args.act_grad);
    CHECK(args.act_grad == ACT_NONE || !tensor_is_none(args.pre), "matmul: act_grad=%d without pre",
          (int)args.act_grad);
    if (M == 0 || N == 0) return;

    Gemm g = {.word = word_kind(a.dtype), .M = M, .N = N, .K = K};
    g.a = (GemmSource){a.data, a.dim[1], !args.trans_a};
    g.b = (GemmSource){b.data, b.dim[1], args.trans_b};
    g.epilogue = (GemmEpilogue){.out = out.data, .pre = args.pre.data, .add = args.add.data, .bias = args.bias.data,
                                .dtype = out.dtype, .bias_dtype = a.dtype, .ld = N, .alpha = args.alpha,
                                .beta = args.beta, .act = args.act, .act_grad = args.act_grad};
    // Blocks of K of equal size, which depends on K alone: so does the order of every sum.
    const int64_t words = max_i64(div_up(K, word_elems(g.word)), 1);
    g.block_k = div_up(words, div_up(words, BLOCK_WORDS)) * word_elems(g.word);
    gemm_run(be, &g);
}

void ISA_NAME(gemm_register)(Backend *be);
void ISA_NAME(gemm_register)(Backend *be) { be->matmul = gemm_matmul; }
