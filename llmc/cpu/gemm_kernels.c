// gemm_kernels.c: matrix multiplication on the CPU: blocking for the caches and division among threads around the
// packing of gemm_pack.h and the micro-kernels of gemm_micro.h. Must not know models.
//
// out(M,N) is divided into one region per thread; threads share nothing and synchronize only at the end. In a
// region (after Goto & van de Geijn, "Anatomy of high-performance matrix multiplication"; the figures are fp32,
// AVX-512, K = 768):
//
//   for each block, of ROW_BLOCK rows, at most BLOCK_WORDS words of K, and if that is not all of K, COL_BLOCK columns:
//       its rows of a are packed                    256 * 768 words = 786 KB, in L2 or L3
//       for each panel of TILE_COLS columns:
//           the panel of b is packed                768 * 48 words = 147 KB, in L2
//           for each panel of TILE_ROWS rows:
//               multiply, then the epilogue         8 * 48 sums in registers
//
// A micro-kernel takes 24 cycles per word, in which it reads 192 bytes of b and 32 bytes of a: 8 bytes a cycle from
// L2 and 1.3 from a's cache level, a third of L2's bandwidth and a tenth of L3's. Separate packing runs at about one
// element a cycle from memory, a multiply-add at sixteen: it would cost 16/256 for b and 16/N for a. So the
// micro-kernels do all packing except a region's first block and panel, in idle slots (GemmAside): each prefetches or
// packs, one step at a time, a chunk of the next block or panel. An epilogue's memory is prefetched at the start of
// its tile.
#include <omp.h>

#include "llmc/cpu/gemm_micro.h"
#include "llmc/cpu/isa.h"
#include "llmc/cpu/kernels.h"

#define BLOCK_WORDS 768
#define ROW_BLOCK (32 * TILE_ROWS)
#define COL_BLOCK (21 * TILE_COLS)  // bounds the memory of partial sums between blocks of K
// Up to this many rows of a, a linear layer is bound by reading its weight: rows_dot reads it in place, once.
#define FEW_ROWS 12
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

// A block: the product of some rows of a and columns of b over a part of K, which is one step of the sums.
typedef struct {
    GemmRegion r;
    int64_t k, elems, steps;
    float *partial;  // of its first sum
} GemmBlock;

// Chunks of a (for a block) or of b (for a panel) to pack, in order; `done` of them are packed.
typedef struct {
    const GemmSource *source;
    int64_t row, rows, k, elems, steps;
    GemmChunk first;
    int64_t next_chunk;  // words from a chunk to the next
    int64_t done;
} GemmPacking;

static void tile_multiply_any(float *tile, const float *a, const GemmPacking *b, int64_t steps, GemmAside aside,
                              DType dtype) {
    const int64_t vectors = b->first.stride / VF_LANES;
#define MULTIPLY(width, does, type)                                      \
    if (vectors == width && aside.kind == does && dtype == type) \
        tile_multiply(tile, a, b->first.to, steps, aside, width, does, type);
#define MULTIPLY_ALL(width, type)                                                                 \
    MULTIPLY(width, ASIDE_NONE, type) MULTIPLY(width, ASIDE_FETCH, type)                          \
    MULTIPLY(width, ASIDE_TRANSPOSE, type) MULTIPLY(width, ASIDE_COPY, type)
    MULTIPLY_ALL(1, DTYPE_F32) MULTIPLY_ALL(1, DTYPE_BF16) MULTIPLY_ALL(2, DTYPE_F32) MULTIPLY_ALL(2, DTYPE_BF16)
#if VF_LANES > 4
    MULTIPLY_ALL(3, DTYPE_F32) MULTIPLY_ALL(3, DTYPE_BF16)
#endif
#undef MULTIPLY_ALL
#undef MULTIPLY
}

// ---- packing, ahead of time or beside tiles ----

static GemmPacking packing_of_a(const Gemm *g, const GemmBlock *block, float *panels) {
    const int64_t words = block->steps * STEP_WORDS;
    return (GemmPacking){.source = &g->a, .row = block->r.row, .rows = block->r.rows, .k = block->k,
                         .elems = block->elems, .steps = block->steps,
                         .first = {panels, TILE_ROWS, TILE_ROWS * words},
                         .next_chunk = VF_LANES * words};
}
// The panel of TILE_COLS columns at `col` of the block.
static GemmPacking packing_of_b(const Gemm *g, const GemmBlock *block, int64_t col, float *panel) {
    const int64_t cols = min_i64(TILE_COLS, block->r.cols - col);
    return (GemmPacking){.source = &g->b, .row = block->r.col + col, .rows = cols, .k = block->k,
                         .elems = block->elems, .steps = block->steps,
                         .first = {panel, round_up(cols, VF_LANES), PART_ROWS}, .next_chunk = VF_LANES};
}
static GemmChunk packing_chunk(const GemmPacking *p, int64_t index) {
    GemmChunk chunk = p->first;
    chunk.to += index * p->next_chunk;
    return chunk;
}
// Packs the remaining chunks.
static void packing_finish(GemmPacking *p, DType dtype) {
    for (; p->done * VF_LANES < p->rows; ++p->done) {
        const int64_t first = p->done * VF_LANES;
        pack_chunk(packing_chunk(p, p->done), p->source, p->row + first, p->rows - first, p->k, p->elems, dtype);
    }
}

// Number of tiles needed to prefetch a chunk at two lines a step.
static int64_t fetch_tiles(const GemmPacking *p, DType dtype) {
    return p->source->k_contiguous ? max_i64(VF_LANES / (2 * FETCH_TURN), 1) : STEP_WORDS * word_elems(dtype) / 2;
}
// Number of chunks that tiles of `steps` steps can pack: whole chunks, with exactly that many whole squares.
static int64_t chunks_aside(const GemmPacking *p, int64_t steps, DType dtype) {
    return p->steps == steps && p->elems == steps * STEP_WORDS * word_elems(dtype) ? p->rows / VF_LANES : 0;
}
// The packing work of a tile for p: `fetches` tiles prefetch a chunk, then one packs it. The last tile ends a chunk.
static GemmAside packing_aside(const GemmPacking *p, int64_t tile, int64_t fetches, DType dtype) {
    const GemmSource *source = p->source;
    const int64_t chunk = tile / (fetches + 1), fetch = tile % (fetches + 1);
    GemmAside aside = {.from = source_at(source, p->row + chunk * VF_LANES, p->k, dtype),
                       .ld_bytes = source->ld * elem_bytes(dtype)};
    if (fetch == fetches) {
        aside.kind = source->k_contiguous ? ASIDE_TRANSPOSE : ASIDE_COPY;
        aside.next_bytes = square_bytes(source, dtype);
        aside.chunk = packing_chunk(p, chunk);
        return aside;
    }
    // Rows contiguous along K: a turn prefetches one line of each of 2 * FETCH_TURN rows. Else a tile prefetches whole
    // rows.
    const int64_t rows = source->k_contiguous ? 2 * FETCH_TURN : 2 * p->steps;
    aside.kind = ASIDE_FETCH;
    aside.from += fetch * rows * aside.ld_bytes;
    if (source->k_contiguous) aside.next_bytes = 64 - rows * aside.ld_bytes;
    return aside;
}

// ---- blocks ----

// All tiles of one packed panel of b, at column `col` of the block. They also pack the panel b_next and, in the
// remaining tiles, a_next as far as possible; `a_tile` counts those tiles.
static void panel_multiply(const Gemm *g, const GemmBlock *block, int64_t col, int64_t partial_ld,
                           const GemmPacking *a, const GemmPacking *b, GemmPacking *a_next, GemmPacking *b_next,
                           int64_t *a_tile) {
    const int64_t tiles = div_up(block->r.rows, TILE_ROWS);
    const int64_t b_chunks = min_i64(chunks_aside(b_next, block->steps, g->dtype), tiles);
    const int64_t b_fetches = b_chunks == 0 ? 0 : min_i64(tiles / b_chunks - 1, fetch_tiles(b_next, g->dtype));
    const int64_t b_first = tiles - b_chunks * (b_fetches + 1);
    const int64_t a_fetches = fetch_tiles(a_next, g->dtype);
    const int64_t a_tiles = chunks_aside(a_next, block->steps, g->dtype) * (a_fetches + 1);
    GemmTile t = {.col = block->r.col + col, .cols = b->rows, .partial_ld = partial_ld,
                  .first_block = block->k == 0, .last_block = block->k + block->elems == g->K};
    for (int64_t i = 0; i < tiles; ++i) {
        _Alignas(64) float tile[TILE_ROWS * TILE_COLS];
        t.row = block->r.row + i * TILE_ROWS;
        t.rows = min_i64(TILE_ROWS, block->r.rows - i * TILE_ROWS);
        t.partial = block->partial + i * TILE_ROWS * partial_ld + col;
        GemmAside aside = {.kind = ASIDE_NONE};
        if (i >= b_first)
            aside = packing_aside(b_next, i - b_first, b_fetches, g->dtype);
        else if (*a_tile < a_tiles)
            aside = packing_aside(a_next, (*a_tile)++, a_fetches, g->dtype);
        tile_prefetch(&g->epilogue, &t);
        tile_multiply_any(tile, a->first.to + i * TILE_ROWS * block->steps * STEP_WORDS, b, block->steps, aside,
                          g->dtype);
        tile_finish(&g->epilogue, &t, tile, b->first.stride);
    }
    b_next->done = b_chunks;
    a_next->done = *a_tile / (a_fetches + 1);
}

// Divides a region into blocks, innermost along K, and assigns their memory. Between blocks of K, partial sums are in
// the output if it is fp32, else in scratch.
typedef struct {
    GemmRegion r;
    int64_t row_block, col_block, k_blocks, count;
    float *a_panels[2], *b_panels[2], *partial;
    int64_t partial_ld;
} GemmPlan;

static GemmBlock plan_block(const Gemm *g, const GemmPlan *plan, int64_t index) {
    const int64_t across = index / plan->k_blocks, col_blocks = div_up(plan->r.cols, plan->col_block);
    const int64_t row = across / col_blocks * plan->row_block, col = across % col_blocks * plan->col_block;
    GemmBlock block = {.k = index % plan->k_blocks * g->block_k};
    block.r = (GemmRegion){plan->r.row + row, min_i64(plan->row_block, plan->r.rows - row), plan->r.col + col,
                           min_i64(plan->col_block, plan->r.cols - col)};
    block.elems = min_i64(g->block_k, g->K - block.k);
    block.steps = div_up(block.elems, VF_LANES * word_elems(g->dtype)) * VF_QUADS;
    block.partial = plan->partial;
    if (g->epilogue.dtype == DTYPE_F32) block.partial = (float *)g->epilogue.out + block.r.row * g->N + block.r.col;
    return block;
}

static GemmPlan plan_region(const Gemm *g, GemmRegion region, Backend *be) {
    GemmPlan plan = {.r = region, .row_block = min_i64(ROW_BLOCK, region.rows), .col_block = region.cols,
                     .k_blocks = max_i64(div_up(g->K, g->block_k), 1)};
    if (plan.k_blocks > 1) plan.col_block = min_i64(COL_BLOCK, region.cols);
    plan.count = div_up(region.rows, plan.row_block) * div_up(region.cols, plan.col_block) * plan.k_blocks;
    const bool in_place = g->epilogue.dtype == DTYPE_F32;
    plan.partial_ld = in_place ? g->N : round_up(plan.col_block, VF_LANES);
    const int64_t words = g->block_k / word_elems(g->dtype), vector_rows = round_up(plan.row_block, VF_LANES);
    const int64_t a_words = vector_rows * words, b_words = TILE_COLS * words, a_buffers = plan.count > 1 ? 2 : 1;
    const int64_t partial_words = plan.k_blocks > 1 && !in_place ? vector_rows * plan.partial_ld : 0;
    const size_t bytes = sizeof(float) * to_size(a_buffers * a_words + 2 * b_words + partial_words);
    float *scratch = cpu_scratch(be, omp_get_thread_num(), bytes);
    plan.a_panels[0] = scratch;
    plan.a_panels[1] = scratch + (a_buffers - 1) * a_words;
    plan.b_panels[0] = scratch + a_buffers * a_words;
    plan.b_panels[1] = plan.b_panels[0] + b_words;
    plan.partial = plan.b_panels[1] + b_words;
    return plan;
}

static void gemm_region(const Gemm *g, GemmRegion region, Backend *be) {
    if (region.rows == 0 || region.cols == 0) return;
    const GemmPlan plan = plan_region(g, region, be);
    GemmBlock block = plan_block(g, &plan, 0);
    GemmPacking a = packing_of_a(g, &block, plan.a_panels[0]), b = packing_of_b(g, &block, 0, plan.b_panels[0]);
    packing_finish(&a, g->dtype);
    packing_finish(&b, g->dtype);
    int64_t panels = 1;  // of b so far: they alternate between two buffers
    for (int64_t index = 0; index < plan.count; ++index) {
        const bool last = index + 1 == plan.count;
        const GemmBlock next = last ? (GemmBlock){.elems = 0} : plan_block(g, &plan, index + 1);
        GemmPacking a_next = packing_of_a(g, &next, plan.a_panels[(index + 1) % 2]);
        int64_t a_tile = 0;
        for (int64_t col = 0; col < block.r.cols; col += TILE_COLS, ++panels) {
            const bool more = col + TILE_COLS < block.r.cols;
            GemmPacking b_next = packing_of_b(g, more ? &block : &next, more ? col + TILE_COLS : 0,
                                              plan.b_panels[panels % 2]);
            panel_multiply(g, &block, col, plan.partial_ld, &a, &b, &a_next, &b_next, &a_tile);
            packing_finish(&b_next, g->dtype);
            b = b_next;
        }
        packing_finish(&a_next, g->dtype);
        a = a_next;
        block = next;
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
    _Alignas(64) float tile[FEW_ROWS * VF_LANES];
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

// The number of parts of the rows; the columns get parts / that. Minimizes the largest region's cost: its
// multiply-adds, the packing of its first rows of a, which is not overlapped, and that of b, which mostly is.
static int split_rows(const Gemm *g, int parts) {
    int best = 1;
    int64_t best_cost = INT64_MAX;
    for (int across_rows = 1; across_rows <= parts; ++across_rows) {
        if (parts % across_rows != 0) continue;
        const int64_t rows = round_up(div_up(g->M, across_rows), TILE_ROWS);
        const int64_t cols = round_up(div_up(g->N, parts / across_rows), TILE_COLS);
        const int64_t cost = rows * cols + 16 * min_i64(rows, ROW_BLOCK) + 2 * cols;
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
    const int parts = alone ? 1 : be->threads;
    const int across_rows = split_rows(g, parts), across_cols = parts / across_rows;
#pragma omp parallel for num_threads(parts) schedule(static, 1)
    for (int part = 0; part < parts; ++part) {
        GemmRegion region;
        if (few_rows) {
            part_of(&region.col, &region.cols, g->N, VF_LANES, part, parts);
            for (int64_t n = 0; n < region.cols; n += VF_LANES) few_rows_columns(g, region.col + n);
        } else {
            part_of(&region.row, &region.rows, g->M, TILE_ROWS, part / across_cols, across_rows);
            part_of(&region.col, &region.cols, g->N, TILE_COLS, part % across_cols, across_cols);
            gemm_region(g, region, be);
        }
    }
}

// ---- the backend's entry ----

static Tensor batch_entry(Tensor t, int64_t i) {
    if (tensor_is_none(t)) return t;
    size_t bytes = to_size(t.dim[1] * t.dim[2]) * dtype_bytes(t.dtype);
    return tensor_2d((char *)t.data + to_size(i) * bytes, t.dtype, t.dim[1], t.dim[2]);
}

static void gemm_matmul(Backend *be, Tensor out, Tensor a, Tensor b, MatmulArgs args) {
    CHECK(args.fp8 == FP8_NONE, "matmul: no 8-bit floats on this backend%s", "");
    if (out.ndim == 3) {
        op_check_matmul_batch(out, a, b, &args);
        for (int64_t i = 0; i < out.dim[0]; ++i) {
            MatmulArgs one = args;
            one.add = batch_entry(args.add, i);
            gemm_matmul(be, batch_entry(out, i), batch_entry(a, i), batch_entry(b, i), one);
        }
        return;
    }
    const int64_t K = op_check_matmul(out, a, b, &args), M = out.dim[0], N = out.dim[1];
    if (!tensor_is_none(args.sums)) be->bias_backward(be, args.sums, a, args.accumulate_sums);
    if (M == 0 || N == 0) return;

    Gemm g = {.dtype = a.dtype, .M = M, .N = N, .K = K};
    g.a = (GemmSource){a.data, a.dim[1], !args.trans_a};
    g.b = (GemmSource){b.data, b.dim[1], args.trans_b};
    g.epilogue = (GemmEpilogue){.out = out.data, .pre = args.pre.data, .add = args.add.data, .bias = args.bias.data,
                                .dtype = out.dtype, .bias_dtype = a.dtype, .ld = N, .alpha = args.alpha,
                                .beta = args.beta, .act = args.act, .act_grad = args.act_grad};
    // Blocks of K of equal size, which depends on K alone; so does the order of every sum.
    const int64_t words = max_i64(div_up(K, word_elems(g.dtype)), 1);
    g.block_k = round_up(div_up(words, div_up(words, BLOCK_WORDS)), VF_LANES) * word_elems(g.dtype);
    gemm_run(be, &g);
}

void ISA_NAME(gemm_register)(Backend *be);
void ISA_NAME(gemm_register)(Backend *be) { be->matmul = gemm_matmul; }
