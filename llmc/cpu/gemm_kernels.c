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
    DType dtype;  // of a and b
    GemmEpilogue epilogue;
    int64_t M, N, K;
    int64_t block_k;  // elements of K per block
} Gemm;

typedef struct {
    int64_t row, rows, col, cols;
} GemmRegion;

// A panel of b: columns [col, col + cols), elements [k, k + elems) of K; `vectors` vectors wide.
typedef struct {
    float *words;
    int64_t col, cols, k, elems;
    int vectors;
} GemmPanel;

static void tile_multiply_any(float *tile, const float *a, const GemmPanel *b, int64_t steps, GemmAside aside,
                              DType dtype) {
#define MULTIPLY(width, does, type)                                          \
    if (b->vectors == width && aside.kind == does && dtype == type) \
        tile_multiply(tile, a, b->words, steps, aside, width, does, type);
#define MULTIPLY_ALL(type)                                                                          \
    MULTIPLY(TILE_VECTORS, ASIDE_NONE, type) MULTIPLY(TILE_VECTORS, ASIDE_PREFETCH, type)           \
    MULTIPLY(TILE_VECTORS, ASIDE_TRANSPOSE, type) MULTIPLY(TILE_VECTORS, ASIDE_COPY, type) \
    MULTIPLY(1, ASIDE_NONE, type) if (TILE_VECTORS > 2) { MULTIPLY(2, ASIDE_NONE, type) }
    MULTIPLY_ALL(DTYPE_F32)
    MULTIPLY_ALL(DTYPE_BF16)
#undef MULTIPLY_ALL
#undef MULTIPLY
}

static GemmPanel panel_at(float *words, int64_t col, int64_t cols, int64_t k, int64_t elems) {
    const int64_t there = max_i64(min_i64(cols, TILE_COLS), 0);
    return (GemmPanel){words, col, there, k, elems, (int)div_up(there, VF_LANES)};
}
static GemmChunk panel_chunk(const GemmPanel *p, int64_t index) {
    return (GemmChunk){p->words + index * VF_LANES, p->vectors * VF_LANES, 0};
}
static void panel_pack(const Gemm *g, const GemmPanel *p, int64_t first_chunk) {
    for (int64_t c = first_chunk; c < p->vectors; ++c)
        pack_chunk(panel_chunk(p, c), &g->b, p->col + c * VF_LANES, p->cols - c * VF_LANES, p->k, p->elems, g->dtype);
}

// How many chunks of the panel `next` are packed while `tiles` tiles of the panel `now` are multiplied: one a tile,
// if all of its steps are whole and the micro-kernel is that of full width.
static int64_t chunks_aside(const Gemm *g, const GemmPanel *now, const GemmPanel *next, int64_t tiles) {
    if (now->vectors != TILE_VECTORS || next->elems % (STEP_WORDS * word_elems(g->dtype)) != 0) return 0;
    return min_i64(next->cols / VF_LANES, tiles);
}

// The last `chunks` of `tiles` tiles pack a chunk each of the panel `next`; those before them fetch it: `steps` lines
// a tile, either of four of its columns, or of that many rows of b.
static GemmAside panel_aside(const Gemm *g, const GemmPanel *next, int64_t chunks, int64_t tile, int64_t tiles,
                             int64_t steps) {
    const bool transpose = g->b.k_contiguous;
    const int64_t bytes = elem_bytes(g->dtype), ld = g->b.ld;
    const int64_t packing = tiles - chunks;  // the first tile that packs
    const int64_t corner = transpose ? next->col * ld + next->k : next->k * ld + next->col;
    GemmAside aside = {.kind = ASIDE_NONE, .data = g->b.data, .ld = ld};
    if (chunks == 0) return aside;
    if (tile >= packing) {
        const int64_t chunk = tile - packing;
        aside.kind = transpose ? ASIDE_TRANSPOSE : ASIDE_COPY;
        aside.index = corner + chunk * VF_LANES * (transpose ? ld : 1);
        aside.chunk = panel_chunk(next, chunk);
        return aside;
    }
    const int64_t tiles_a_line = STEP_WORDS * word_elems(g->dtype);  // that fetch the same line of all rows of b
    const int64_t fetching = transpose ? next->cols / 4 : div_up(next->cols * bytes, 64) * tiles_a_line;
    const int64_t turn = tile - max_i64(packing - fetching, 0);
    if (turn < 0) return aside;
    aside.kind = ASIDE_PREFETCH;
    aside.line = (const char *)g->b.data + corner * bytes;
    aside.next_line = ld * bytes;
    if (transpose) {
        aside.line += turn * 4 * ld * bytes;
        aside.next_lines = 64 - 4 * ld * bytes;
    } else {
        aside.line += turn % tiles_a_line * steps * ld * bytes + turn / tiles_a_line * 64;
    }
    return aside;
}

static void block_pack_a(const Gemm *g, float *panels, GemmRegion r, int64_t k, int64_t elems, int64_t words) {
    const int64_t half_offset = TILE_ROWS < VF_LANES ? TILE_ROWS * words : 0;
    for (int64_t i = 0; i < r.rows; i += VF_LANES) {
        const GemmChunk chunk = {panels + i * words, TILE_ROWS, half_offset};
        pack_chunk(chunk, &g->a, r.row + i, r.rows - i, k, elems, g->dtype);
    }
}

typedef struct {
    float *a_panels, *b_panels[2], *partial;
    int64_t partial_ld;
} GemmBuffers;

// One block of a region: its rows of a are packed, then panel by panel of b all its tiles are computed.
static void gemm_block(const Gemm *g, GemmRegion r, int64_t k, GemmBuffers buffers) {
    const int64_t elems = min_i64(g->block_k, g->K - k);
    const int64_t steps = div_up(elems, STEP_WORDS * word_elems(g->dtype)), words = steps * STEP_WORDS;
    const int64_t tiles = div_up(r.rows, TILE_ROWS);
    GemmTile t = {.partial_ld = buffers.partial_ld, .first_block = k == 0, .last_block = k + elems == g->K};
    block_pack_a(g, buffers.a_panels, r, k, elems, words);
    GemmPanel now = panel_at(buffers.b_panels[0], r.col, r.cols, k, elems);
    panel_pack(g, &now, 0);
    for (int64_t j = 0; j < r.cols; j += TILE_COLS) {
        const GemmPanel next = panel_at(buffers.b_panels[(j / TILE_COLS + 1) % 2], r.col + j + TILE_COLS,
                                        r.cols - j - TILE_COLS, k, elems);
        const int64_t chunks = chunks_aside(g, &now, &next, tiles);
        for (int64_t i = 0; i < tiles; ++i) {
            float tile[TILE_ROWS * TILE_COLS];
            t.row = r.row + i * TILE_ROWS;
            t.rows = min_i64(TILE_ROWS, r.rows - i * TILE_ROWS);
            t.col = now.col;
            t.cols = now.cols;
            t.partial = buffers.partial == NULL ? NULL : buffers.partial + i * TILE_ROWS * buffers.partial_ld + j;
            tile_prefetch(&g->epilogue, &t);
            tile_multiply_any(tile, buffers.a_panels + i * words * TILE_ROWS, &now, steps,
                              panel_aside(g, &next, chunks, i, tiles, steps), g->dtype);
            tile_finish(&g->epilogue, &t, tile, now.vectors * VF_LANES);
        }
        panel_pack(g, &next, chunks);
        now = next;
    }
}

// Sums of several blocks of K wait in the output if it is fp32, else in scratch.
static void gemm_region(const Gemm *g, GemmRegion region, Backend *be) {
    const bool several = g->block_k < g->K;
    const bool in_place = g->epilogue.dtype == DTYPE_F32;
    const int64_t col_block = several ? COL_BLOCK : max_i64(region.cols, 1);
    const int64_t words = div_up(g->block_k, STEP_WORDS * word_elems(g->dtype)) * STEP_WORDS;
    const int64_t most_rows = min_i64(ROW_BLOCK, round_up(region.rows, VF_LANES));
    const int64_t most_cols = min_i64(col_block, round_up(region.cols, TILE_COLS));
    const int64_t a_words = round_up(most_rows * words, 16), b_words = TILE_COLS * words;
    const int64_t partial_words = several && !in_place ? most_rows * most_cols : 0;
    const size_t scratch_bytes = sizeof(float) * to_size(a_words + 2 * b_words + partial_words);
    float *scratch = cpu_scratch(be, omp_get_thread_num(), scratch_bytes);
    float *b_panel = scratch + a_words, *partial = b_panel + 2 * b_words, *out = g->epilogue.out;
    for (int64_t i = 0; i < region.rows; i += ROW_BLOCK)
        for (int64_t j = 0; j < region.cols; j += col_block) {
            const GemmRegion block = {region.row + i, min_i64(ROW_BLOCK, region.rows - i), region.col + j,
                                      min_i64(col_block, region.cols - j)};
            GemmBuffers buffers = {scratch, {b_panel, b_panel + b_words}, NULL, in_place ? g->N : most_cols};
            if (several) buffers.partial = in_place ? out + block.row * g->N + block.col : partial;
            for (int64_t k = 0; k == 0 || k < g->K; k += g->block_k) gemm_block(g, block, k, buffers);
        }
}

static void rows_dot_any(float *tile, const Gemm *g, int64_t row, int64_t col, int row_count, DType dtype) {
    const int64_t there = g->N - col;
#define ROWS_DOT(count, kind) \
    if (row_count == count && dtype == kind)  \
        rows_dot(tile, VF_LANES, &g->a, row, &g->b, col, there, g->K, count, kind);
    ROWS_DOT(1, DTYPE_F32) ROWS_DOT(2, DTYPE_F32) ROWS_DOT(4, DTYPE_F32)
    ROWS_DOT(1, DTYPE_BF16) ROWS_DOT(2, DTYPE_BF16) ROWS_DOT(4, DTYPE_BF16)
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
            rows_dot_any(tile + m * VF_LANES + n, g, m, col + n, row_count, g->dtype);
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

    Gemm g = {.dtype = a.dtype, .M = M, .N = N, .K = K};
    g.a = (GemmSource){a.data, a.dim[1], !args.trans_a};
    g.b = (GemmSource){b.data, b.dim[1], args.trans_b};
    g.epilogue = (GemmEpilogue){.out = out.data, .pre = args.pre.data, .add = args.add.data, .bias = args.bias.data,
                                .dtype = out.dtype, .bias_dtype = a.dtype, .ld = N, .alpha = args.alpha,
                                .beta = args.beta, .act = args.act, .act_grad = args.act_grad};
    // Blocks of K of equal size, which depends on K alone: so does the order of every sum.
    const int64_t words = max_i64(div_up(K, word_elems(g.dtype)), 1);
    g.block_k = div_up(words, div_up(words, BLOCK_WORDS)) * word_elems(g.dtype);
    gemm_run(be, &g);
}

void ISA_NAME(gemm_register)(Backend *be);
void ISA_NAME(gemm_register)(Backend *be) { be->matmul = gemm_matmul; }
