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

// A block: the product of some rows of a and columns of b over a part of K, which is one step of the sums.
typedef struct {
    GemmRegion r;
    int64_t k, elems, steps;
    float *partial;  // of its first sum
} GemmBlock;

// Chunks of a (for a block) or of b (for a panel) to be packed, in order; `done` of them are.
typedef struct {
    const GemmSource *source;
    bool of_a;
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
#define MULTIPLY_ALL(type)                                                                                           \
    MULTIPLY(TILE_VECTORS, ASIDE_NONE, type) MULTIPLY(TILE_VECTORS, ASIDE_FETCH, type)                               \
    MULTIPLY(TILE_VECTORS, ASIDE_TRANSPOSE_A, type) MULTIPLY(TILE_VECTORS, ASIDE_TRANSPOSE_B, type)                  \
    MULTIPLY(TILE_VECTORS, ASIDE_COPY_A, type) MULTIPLY(TILE_VECTORS, ASIDE_COPY_B, type)                            \
    MULTIPLY(1, ASIDE_NONE, type) if (TILE_VECTORS > 2) { MULTIPLY(2, ASIDE_NONE, type) }
    MULTIPLY_ALL(DTYPE_F32)
    MULTIPLY_ALL(DTYPE_BF16)
#undef MULTIPLY_ALL
#undef MULTIPLY
}

// ---- packing, ahead of time or aside of tiles ----

static GemmPacking packing_of_a(const Gemm *g, const GemmBlock *block, float *panels) {
    const int64_t words = block->steps * STEP_WORDS;
    return (GemmPacking){.source = &g->a, .of_a = true, .row = block->r.row, .rows = block->r.rows, .k = block->k,
                         .elems = block->elems, .steps = block->steps,
                         .first = {panels, TILE_ROWS, TILE_ROWS < VF_LANES ? TILE_ROWS * words : 0},
                         .next_chunk = VF_LANES * words};
}
// The panel of TILE_COLS columns from `col` of the block on.
static GemmPacking packing_of_b(const Gemm *g, const GemmBlock *block, int64_t col, float *panel) {
    const int64_t cols = min_i64(TILE_COLS, block->r.cols - col);
    return (GemmPacking){.source = &g->b, .row = block->r.col + col, .rows = cols, .k = block->k,
                         .elems = block->elems, .steps = block->steps,
                         .first = {panel, round_up(cols, VF_LANES), 0}, .next_chunk = VF_LANES};
}
static GemmChunk packing_chunk(const GemmPacking *p, int64_t index) {
    GemmChunk chunk = p->first;
    chunk.to += index * p->next_chunk;
    return chunk;
}
// Packs what is left.
static void packing_finish(GemmPacking *p, DType dtype) {
    for (; p->done * VF_LANES < p->rows; ++p->done) {
        const int64_t first = p->done * VF_LANES;
        pack_chunk(packing_chunk(p, p->done), p->source, p->row + first, p->rows - first, p->k, p->elems, dtype);
    }
}

// Tiles that it takes to fetch a chunk at two lines a step.
static int64_t fetch_tiles(const GemmPacking *p, DType dtype) {
    return p->source->k_contiguous ? max_i64(VF_LANES / (2 * FETCH_TURN), 1) : STEP_WORDS * word_elems(dtype) / 2;
}
// How many chunks can be packed aside of tiles of `steps` steps: whole ones, of just as many whole steps.
static int64_t chunks_aside(const GemmPacking *p, int64_t steps, DType dtype) {
    return p->steps == steps && p->elems == steps * STEP_WORDS * word_elems(dtype) ? p->rows / VF_LANES : 0;
}
// What a tile does for p: `fetches` tiles fetch a chunk, then one packs it. The last tile ends a chunk.
static GemmAside packing_aside(const GemmPacking *p, int64_t tile, int64_t fetches, DType dtype) {
    const GemmSource *source = p->source;
    const int64_t chunk = tile / (fetches + 1), fetch = tile % (fetches + 1);
    const int64_t bytes = elem_bytes(dtype), row = p->row + chunk * VF_LANES;
    GemmAside aside = {.data = source->data, .ld = source->ld};
    aside.index = source->k_contiguous ? row * source->ld + p->k : p->k * source->ld + row;
    if (fetch == fetches) {
        if (source->k_contiguous) aside.kind = p->of_a ? ASIDE_TRANSPOSE_A : ASIDE_TRANSPOSE_B;
        if (!source->k_contiguous) aside.kind = p->of_a ? ASIDE_COPY_A : ASIDE_COPY_B;
        aside.chunk = packing_chunk(p, chunk);
        return aside;
    }
    aside.kind = ASIDE_FETCH;
    aside.next_line = source->ld * bytes;
    // Rows contiguous along K: a turn fetches one line of 2 * FETCH_TURN rows each. Else a tile fetches whole rows.
    const int64_t rows = source->k_contiguous ? 2 * FETCH_TURN : 2 * p->steps;
    if (source->k_contiguous) aside.next_lines = 64 - 2 * FETCH_TURN * aside.next_line;
    aside.line = (const char *)source->data + aside.index * bytes + fetch * rows * aside.next_line;
    return aside;
}

// ---- blocks ----

// All tiles of one packed panel of b, at column `col` of the block. Meanwhile the panel b_next and, in the tiles that
// leaves, a_next are packed as far as possible; `a_tile` counts those tiles.
static void panel_multiply(const Gemm *g, const GemmBlock *block, int64_t col, int64_t partial_ld,
                           const GemmPacking *a, const GemmPacking *b, GemmPacking *a_next, GemmPacking *b_next,
                           int64_t *a_tile) {
    const int64_t tiles = div_up(block->r.rows, TILE_ROWS);
    const bool full = b->first.stride == TILE_COLS;
    const int64_t b_chunks = full ? min_i64(chunks_aside(b_next, block->steps, g->dtype), tiles) : 0;
    const int64_t b_fetches = b_chunks == 0 ? 0 : min_i64(tiles / b_chunks - 1, fetch_tiles(b_next, g->dtype));
    const int64_t b_first = tiles - b_chunks * (b_fetches + 1);
    const int64_t a_fetches = fetch_tiles(a_next, g->dtype);
    const int64_t a_tiles = full ? chunks_aside(a_next, block->steps, g->dtype) * (a_fetches + 1) : 0;
    GemmTile t = {.col = block->r.col + col, .cols = b->rows, .partial_ld = partial_ld,
                  .first_block = block->k == 0, .last_block = block->k + block->elems == g->K};
    for (int64_t i = 0; i < tiles; ++i) {
        float tile[TILE_ROWS * TILE_COLS];
        t.row = block->r.row + i * TILE_ROWS;
        t.rows = min_i64(TILE_ROWS, block->r.rows - i * TILE_ROWS);
        t.partial = block->partial == NULL ? NULL : block->partial + i * TILE_ROWS * partial_ld + col;
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

// How a region is cut into blocks, innermost along K, and where they find their memory. Sums of several blocks
// along K wait in the output if it is fp32, else in scratch.
typedef struct {
    GemmRegion r;
    int64_t row_block, col_block, count;
    float *a_panels[2], *b_panels[2], *partial;
    int64_t partial_ld;
} GemmPlan;

static GemmBlock plan_block(const Gemm *g, const GemmPlan *plan, int64_t index) {
    const int64_t along_k = max_i64(div_up(g->K, g->block_k), 1), across = div_up(plan->r.cols, plan->col_block);
    const int64_t row = index / along_k / across * plan->row_block, col = index / along_k % across * plan->col_block;
    GemmBlock block = {.k = index % along_k * g->block_k};
    block.r = (GemmRegion){plan->r.row + row, min_i64(plan->row_block, plan->r.rows - row), plan->r.col + col,
                           min_i64(plan->col_block, plan->r.cols - col)};
    block.elems = min_i64(g->block_k, g->K - block.k);
    block.steps = div_up(block.elems, STEP_WORDS * word_elems(g->dtype));
    if (along_k > 1 && g->epilogue.dtype == DTYPE_F32)
        block.partial = (float *)g->epilogue.out + block.r.row * g->N + block.r.col;
    else if (along_k > 1)
        block.partial = plan->partial;
    return block;
}

static GemmPlan plan_region(const Gemm *g, GemmRegion region, Backend *be) {
    const int64_t along_k = max_i64(div_up(g->K, g->block_k), 1);
    const bool several = along_k > 1, in_place = g->epilogue.dtype == DTYPE_F32;
    GemmPlan plan = {.r = region, .row_block = ROW_BLOCK, .col_block = several ? COL_BLOCK : region.cols};
    plan.count = div_up(region.rows, ROW_BLOCK) * div_up(region.cols, plan.col_block) * along_k;
    const int64_t words = div_up(g->block_k, word_elems(g->dtype));
    const int64_t rows = min_i64(ROW_BLOCK, round_up(region.rows, VF_LANES));
    const int64_t cols = min_i64(plan.col_block, round_up(region.cols, TILE_COLS));
    plan.partial_ld = in_place ? g->N : cols;
    const int64_t a_words = round_up(rows * words, 16), b_words = TILE_COLS * words;
    const int64_t a_buffers = plan.count > 1 ? 2 : 1, partial_words = several && !in_place ? rows * cols : 0;
    float *scratch = cpu_scratch(be, omp_get_thread_num(),
                                 sizeof(float) * to_size(a_buffers * a_words + 2 * b_words + partial_words));
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
    int64_t panels = 1;  // of b so far: they take turns in two buffers
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
    g.block_k = round_up(div_up(words, div_up(words, BLOCK_WORDS)), STEP_WORDS) * word_elems(g.dtype);
    gemm_run(be, &g);
}

void ISA_NAME(gemm_register)(Backend *be);
void ISA_NAME(gemm_register)(Backend *be) { be->matmul = gemm_matmul; }
