// attention_kernels.c: softmax attention without a (T,T) matrix, forward, backward and incremental decoding, after
// FlashAttention-2 (Dao 2023): blocks of 64 queries x 64 keys are in the thread's scratch, an online softmax carries
// the running maximum and sum from block to block, and the backward pass recomputes the probabilities from lse.
// Blocks that the mask excludes are skipped, so the cost follows the mask. Must not know models.
//
// Determinism: every output element is produced by one thread, adding blocks in increasing order, whatever the number
// of threads.
#include <omp.h>

#include "llmc/cpu/attention_block.h"
#include "llmc/cpu/isa.h"
#include "llmc/cpu/kernels.h"

// The initial running maximum: finite, so that differences to it are never NaN.
#define NO_SCORE (-1e30f)
// Fewer positions than this are decoded row by row: blocks would mostly compute padding.
#define DECODE_BLOCK_QUERIES 4

// Layout of the heads of a call: query row b*queries + i, key and value row b*keys + j. Query i has position
// first + i.
typedef struct {
    Tensor q, k, v;
    int64_t k_column, v_column;
    int64_t queries, keys, first;
    AttentionArgs args;
} AttentionInput;

// A thread's memory for one call, from its scratch. `packed_*`: the current contents of k, v and spans.
typedef struct {
    int64_t padded;  // HS rounded up to whole vectors
    KeySpans spans;  // of batch row packed_batch
    int64_t packed_batch;
    float *k, *v;    // (keys rounded up to BLOCK, padded): the key/value head packed_head of that row
    int64_t packed_head;
    float *q, *q_transposed;  // (BLOCK, padded), (padded, BLOCK)
    float *scores;            // (BLOCK keys, BLOCK queries)
    float *out;               // (BLOCK, padded)
    float *top, *sum, *rescale;  // (BLOCK) running maximum, running sum, the last block's scale factor
    float *lse, *dot;            // (BLOCK) backward: log of the denominator; rowsum(dout * out)
    float *dout, *dout_transposed, *dscores, *dq, *dk, *dv;  // backward: shaped like their namesakes
} Work;

typedef struct {
    unsigned char *base;  // NULL while measuring
    size_t used;
} Cutter;

static void *cut(Cutter *cutter, int64_t elems) {
    void *piece = cutter->base == NULL ? NULL : cutter->base + cutter->used;
    cutter->used += (to_size(elems) * 4 + 63) / 64 * 64;
    return piece;
}

static size_t work_cut(Work *work, void *memory, const AttentionInput *in, bool backward) {
    Cutter cutter = {memory, 0};
    int64_t padded = round_up(in->args.HS, VF_LANES);
    int64_t query_rows = round_up(in->queries, BLOCK), key_rows = round_up(in->keys, BLOCK);
    *work = (Work){.padded = padded, .packed_batch = -1, .packed_head = -1};
    work->spans.low = cut(&cutter, query_rows);
    work->spans.high = cut(&cutter, query_rows);
    work->spans.position = cut(&cutter, query_rows);
    work->k = cut(&cutter, key_rows * padded);
    work->v = cut(&cutter, key_rows * padded);
    work->q = cut(&cutter, BLOCK * padded);
    work->q_transposed = cut(&cutter, BLOCK * padded);
    work->scores = cut(&cutter, BLOCK * BLOCK);
    if (!backward) {
        work->out = cut(&cutter, BLOCK * padded);
        work->top = cut(&cutter, BLOCK);
        work->sum = cut(&cutter, BLOCK);
        work->rescale = cut(&cutter, BLOCK);
    } else {
        work->lse = cut(&cutter, BLOCK);
        work->dot = cut(&cutter, BLOCK);
        work->dout = cut(&cutter, BLOCK * padded);
        work->dout_transposed = cut(&cutter, BLOCK * padded);
        work->dscores = cut(&cutter, BLOCK * BLOCK);
        work->dq = cut(&cutter, BLOCK * padded);
        work->dk = cut(&cutter, key_rows * padded);
        work->dv = cut(&cutter, key_rows * padded);
    }
    return cutter.used;
}

static void work_open(Work *work, Backend *be, const AttentionInput *in, bool backward) {
    size_t bytes = work_cut(work, NULL, in, backward);
    work_cut(work, cpu_scratch(be, omp_get_thread_num(), bytes), in, backward);
}

// Packs the spans of batch row b and its key/value head into the work memory, unless they are already there.
static void work_load_head(Work *work, const AttentionInput *in, int64_t b, int64_t kv_head) {
    const AttentionArgs *args = &in->args;
    if (work->packed_batch != b) {
        const int32_t *doc = args->doc.data;
        const uint8_t *prefix = args->prefix.data;
        key_spans_fill(&work->spans, doc == NULL ? NULL : doc + b * in->queries,
                       prefix == NULL ? NULL : prefix + b * in->queries, in->queries, in->first, args->window);
    } else if (work->packed_head == kv_head) {
        return;
    }
    int64_t rows = round_up(in->keys, BLOCK);
    HeadRows k = head_rows(in->k, b * in->keys, in->k_column + kv_head * args->HS);
    HeadRows v = head_rows(in->v, b * in->keys, in->v_column + kv_head * args->HS);
    pack_rows(work->k, k, 0, in->keys, rows, args->HS, work->padded);
    pack_rows(work->v, v, 0, in->keys, rows, args->HS, work->padded);
    work->packed_batch = b;
    work->packed_head = kv_head;
}

// ---- forward ----

// The online softmax of the vector of queries i0 + column: scores = exp(score - new maximum); updates top, sum and
// rescale.
static void softmax_update(Work *work, int64_t i0, int64_t column, int64_t j0) {
    Range keys = block_strip_range(&work->spans, i0 + column, j0);
    float *scores = work->scores + column;
    for (int64_t r = keys.begin; r < keys.end; r += TILE_ROWS)
        mask_scores(scores + r * BLOCK, &work->spans, i0 + column, j0 + r);
    vf old_top = vf_load(work->top + column);
    vf top = old_top;
    for (int64_t r = keys.begin; r < keys.end; ++r) top = vf_max(top, vf_load(scores + r * BLOCK));
    vf rescale = vf_exp(old_top - top);
    vf sum = vf_load(work->sum + column) * rescale;
    for (int64_t r = keys.begin; r < keys.end; ++r) {
        vf p = vf_exp(vf_load(scores + r * BLOCK) - top);
        vf_store(scores + r * BLOCK, p);
        sum += p;
    }
    vf_store(work->top + column, top);
    vf_store(work->sum + column, sum);
    vf_store(work->rescale + column, rescale);
}

// One block of keys against the block of queries at i0: out = out * rescale + P V.
static void forward_block(Work *work, int64_t i0, int64_t queries, int64_t j0, int64_t head_size) {
    int64_t padded = work->padded;
    block_multiply(work->scores, work->k + j0 * padded, work->q_transposed, &work->spans, i0, queries, j0, head_size,
                   padded);
    for (int64_t column = 0; column < queries; column += VF_LANES) softmax_update(work, i0, column, j0);
    for (int64_t i = 0; i < queries; i += TILE_ROWS) {
        Range keys = block_key_range(&work->spans, i0 + i, TILE_ROWS, j0);
        for (int64_t r = i; r < i + TILE_ROWS; ++r) {
            if (work->rescale[r] == 1.0f) continue;
            for (int64_t c = 0; c < padded; c += VF_LANES) {
                float *out = work->out + r * padded + c;
                vf_store(out, vf_load(out) * work->rescale[r]);
            }
        }
        strip_multiply_add(work->out + i * padded, work->scores + keys.begin * BLOCK + i, 1, BLOCK,
                           work->v + (j0 + keys.begin) * padded, padded, keys.end - keys.begin);
    }
}

// One block of queries of one head, at i0: out rows and, if lse is set, their log denominators.
static void forward_queries(Work *work, HeadRows out, float *lse, HeadRows q, int64_t i0, const AttentionInput *in) {
    int64_t head_size = in->args.HS;
    int64_t queries = min_i64(in->queries - i0, BLOCK);
    pack_rows(work->q, q, i0, queries, BLOCK, head_size, work->padded);
    transpose_block(work->q_transposed, work->q, work->padded, in->args.scale);
    memset(work->out, 0, to_size(BLOCK * work->padded) * sizeof(float));
    for (int i = 0; i < BLOCK; ++i) {
        work->top[i] = NO_SCORE;
        work->sum[i] = 0.0f;
    }
    int64_t first_key = work->spans.low[i0] / BLOCK * BLOCK;
    for (int64_t j0 = first_key; j0 <= work->spans.high[i0 + queries - 1]; j0 += BLOCK)
        forward_block(work, i0, queries, j0, head_size);
    for (int64_t i = 0; i < queries; ++i) {
        if (lse != NULL) lse[i0 + i] = work->top[i] + logf(work->sum[i]);
        work->rescale[i] = 1.0f / work->sum[i];
    }
    unpack_rows(out, i0, work->out, work->rescale, queries, head_size, work->padded);
}

// Work items are blocks of queries. Neighbouring items share a key/value head; if there are many heads, a thread
// takes whole heads, so that each is packed only once.
static void forward_run(Backend *be, Tensor out, Tensor lse, const AttentionInput *in) {
    const AttentionArgs *args = &in->args;
    int64_t blocks = div_up(in->queries, BLOCK);
    int64_t items = args->B * args->NH * blocks;
    int64_t chunk = args->B * args->NH >= 4 * be->threads ? blocks : 1;
#pragma omp parallel num_threads(be->threads) if (items > 1)
    {
        Work work;
        work_open(&work, be, in, false);
#pragma omp for schedule(dynamic, chunk)
        for (int64_t item = 0; item < items; ++item) {
            int64_t b = item / blocks / args->NH, h = item / blocks % args->NH, i0 = item % blocks * BLOCK;
            work_load_head(&work, in, b, h / (args->NH / args->NKV));
            HeadRows q = head_rows(in->q, b * in->queries, h * args->HS);
            HeadRows to = head_rows(out, b * in->queries, h * args->HS);
            float *lse_row = tensor_is_none(lse) ? NULL : (float *)lse.data + (b * args->NH + h) * in->queries;
            forward_queries(&work, to, lse_row, q, i0, in);
        }
    }
}

// ---- backward ----

// P and dS of the vector of queries i0 + column: scores become exp(score - lse), dscores, holding dP, become
// P (dP - dot) scale.
static void softmax_backward(Work *work, int64_t i0, int64_t column, int64_t j0, float scale) {
    Range keys = block_strip_range(&work->spans, i0 + column, j0);
    vf lse = vf_load(work->lse + column), dot = vf_load(work->dot + column);
    for (int64_t r = keys.begin; r < keys.end; r += TILE_ROWS)
        mask_scores(work->scores + r * BLOCK + column, &work->spans, i0 + column, j0 + r);
    for (int64_t r = keys.begin; r < keys.end; ++r) {
        float *scores = work->scores + r * BLOCK + column, *dscores = work->dscores + r * BLOCK + column;
        vf p = vf_exp(vf_load(scores) - lse);
        vf_store(scores, p);
        vf_store(dscores, p * (vf_load(dscores) - dot) * scale);
    }
}

// One block of keys against the block of queries at i0: dq, dk and dv +=.
static void backward_block(Work *work, int64_t i0, int64_t queries, int64_t j0, const AttentionArgs *args) {
    int64_t padded = work->padded;
    const float *k = work->k + j0 * padded, *v = work->v + j0 * padded;
    block_multiply(work->scores, k, work->q_transposed, &work->spans, i0, queries, j0, args->HS, padded);
    block_multiply(work->dscores, v, work->dout_transposed, &work->spans, i0, queries, j0, args->HS, padded);
    for (int64_t column = 0; column < queries; column += VF_LANES)
        softmax_backward(work, i0, column, j0, args->scale);
    Range all = block_key_range(&work->spans, i0, queries, j0);
    for (int64_t r = all.begin / TILE_ROWS * TILE_ROWS; r < all.end; r += TILE_ROWS) {
        Range range = block_query_range(&work->spans, i0, queries, j0 + r);
        int64_t at = r * BLOCK + range.begin, depth = range.end - range.begin;
        strip_multiply_add(work->dv + (j0 + r) * padded, work->scores + at, BLOCK, 1,
                           work->dout + range.begin * padded, padded, depth);
        strip_multiply_add(work->dk + (j0 + r) * padded, work->dscores + at, BLOCK, 1,
                           work->q + range.begin * padded, padded, depth);
    }
    for (int64_t i = 0; i < queries; i += TILE_ROWS) {
        Range keys = block_key_range(&work->spans, i0 + i, TILE_ROWS, j0);
        strip_multiply_add(work->dq + i * padded, work->dscores + keys.begin * BLOCK + i, 1, BLOCK,
                           k + keys.begin * padded, padded, keys.end - keys.begin);
    }
}

// dot = rowsum(dout * out) for the block of queries in work->dout.
static void backward_dot(Work *work, HeadRows out, int64_t i0, int64_t queries, int64_t head_size) {
    // work->dq is unused until the block's products start.
    float *rows = work->dq;
    pack_rows(rows, out, i0, queries, BLOCK, head_size, work->padded);
    for (int64_t i = 0; i < BLOCK; ++i) {
        vf sum = vf_set(0.0f);
        for (int64_t c = 0; c < work->padded; c += VF_LANES)
            sum += vf_load(rows + i * work->padded + c) * vf_load(work->dout + i * work->padded + c);
        work->dot[i] = vf_sum(sum);
    }
}

// One block of queries of one head: dq rows =, work->dk and work->dv +=.
static void backward_queries(Work *work, HeadRows dq, HeadRows q, HeadRows out, HeadRows dout, const float *lse,
                             int64_t i0, const AttentionInput *in) {
    int64_t head_size = in->args.HS, padded = work->padded;
    int64_t queries = min_i64(in->queries - i0, BLOCK);
    pack_rows(work->q, q, i0, queries, BLOCK, head_size, padded);
    transpose_block(work->q_transposed, work->q, padded, in->args.scale);
    pack_rows(work->dout, dout, i0, queries, BLOCK, head_size, padded);
    transpose_block(work->dout_transposed, work->dout, padded, 1.0f);
    backward_dot(work, out, i0, queries, head_size);
    for (int64_t i = 0; i < BLOCK; ++i) work->lse[i] = i < queries ? lse[i0 + i] : 0.0f;
    memset(work->dq, 0, to_size(BLOCK * padded) * sizeof(float));
    int64_t first_key = work->spans.low[i0] / BLOCK * BLOCK;
    for (int64_t j0 = first_key; j0 <= work->spans.high[i0 + queries - 1]; j0 += BLOCK)
        backward_block(work, i0, queries, j0, &in->args);
    unpack_rows(dq, i0, work->dq, NULL, queries, head_size, padded);
}

// A work item is one key/value head with all the query heads that read it: one thread sums its dk and dv.
static void backward_run(Backend *be, Tensor dqkv, Tensor dout, Tensor out, Tensor lse, const AttentionInput *in) {
    const AttentionArgs *args = &in->args;
    int64_t items = args->B * args->NKV, shared_by = args->NH / args->NKV;
#pragma omp parallel num_threads(be->threads) if (items > 1)
    {
        Work work;
        work_open(&work, be, in, true);
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < items; ++item) {
            int64_t b = item / args->NKV, kv_head = item % args->NKV, row = b * in->queries;
            work_load_head(&work, in, b, kv_head);
            size_t bytes = to_size(round_up(in->keys, BLOCK) * work.padded) * sizeof(float);
            memset(work.dk, 0, bytes);
            memset(work.dv, 0, bytes);
            for (int64_t h = kv_head * shared_by; h < (kv_head + 1) * shared_by; ++h)
                for (int64_t i0 = 0; i0 < in->queries; i0 += BLOCK)
                    backward_queries(&work, head_rows(dqkv, row, h * args->HS), head_rows(in->q, row, h * args->HS),
                                     head_rows(out, row, h * args->HS), head_rows(dout, row, h * args->HS),
                                     (const float *)lse.data + (b * args->NH + h) * in->queries, i0, in);
            unpack_rows(head_rows(dqkv, row, in->k_column + kv_head * args->HS), 0, work.dk, NULL, in->keys, args->HS,
                        work.padded);
            unpack_rows(head_rows(dqkv, row, in->v_column + kv_head * args->HS), 0, work.dv, NULL, in->keys, args->HS,
                        work.padded);
        }
    }
}

// ---- decoding ----

// out = attention of one query over keys [low, keys) of one cached head. weights has room for all keys in whole
// vectors.
SIMD_INLINE void decode_row_of(HeadRows out, HeadRows q, HeadRows k, HeadRows v, float *weights, int64_t low,
                               int64_t keys, int64_t head_size, float scale, DType dtype) {
    float top = NO_SCORE;
    for (int64_t j = low; j < keys; ++j) {
        vf dot = vf_set(0.0f);
        for (int64_t c = 0; c < head_size; c += VF_LANES)
            dot += vf_load_some(q.data, c, head_size - c, dtype) *
                   vf_load_some(k.data, j * k.stride + c, head_size - c, dtype);
        weights[j] = vf_sum(dot) * scale;
        top = weights[j] > top ? weights[j] : top;
    }
    for (int64_t j = keys; j < low + round_up(keys - low, VF_LANES); ++j) weights[j] = -INFINITY;
    vf total = vf_set(0.0f);
    for (int64_t j = low; j < keys; j += VF_LANES) {
        vf p = vf_exp(vf_load(weights + j) - top);
        vf_store(weights + j, p);
        total += p;
    }
    float inverse = 1.0f / vf_sum(total);
    for (int64_t c = 0; c < head_size; c += VF_LANES) {
        vf sum = vf_set(0.0f);
        for (int64_t j = low; j < keys; ++j)
            sum += weights[j] * vf_load_some(v.data, j * v.stride + c, head_size - c, dtype);
        vf_store_some(out.data, c, sum * inverse, head_size - c, dtype);
    }
}

static void decode_rows(Backend *be, Tensor out, const AttentionInput *in) {
    const AttentionArgs *args = &in->args;
    int64_t items = in->queries * args->NH, shared_by = args->NH / args->NKV;
    size_t bytes = to_size(in->keys + VF_LANES) * sizeof(float);
#pragma omp parallel num_threads(be->threads) if (items > 1)
    {
        float *weights = cpu_scratch(be, omp_get_thread_num(), bytes);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < items; ++item) {
            int64_t i = item / args->NH, h = item % args->NH, column = h / shared_by * args->HS;
            int64_t keys = in->first + i + 1;
            int64_t low = args->window > 0 ? max_i64(0, keys - args->window) : 0;
            HeadRows to = head_rows(out, i, h * args->HS), q = head_rows(in->q, i, h * args->HS);
            HeadRows k = head_rows(in->k, 0, column), v = head_rows(in->v, 0, column);
            if (q.dtype == DTYPE_F32)
                decode_row_of(to, q, k, v, weights, low, keys, args->HS, args->scale, DTYPE_F32);
            else
                decode_row_of(to, q, k, v, weights, low, keys, args->HS, args->scale, DTYPE_BF16);
        }
    }
}

// ---- entries ----

static AttentionInput packed_input(Tensor qkv, AttentionArgs args) {
    AttentionInput in = {qkv, qkv, qkv, args.NH * args.HS, (args.NH + args.NKV) * args.HS, args.T, args.T, 0, args};
    return in;
}

static void attention_forward(Backend *be, Tensor out, Tensor lse, Tensor qkv, AttentionArgs args) {
    op_check_attention_forward(out, lse, qkv, &args);
    if (args.B * args.T == 0) return;
    AttentionInput in = packed_input(qkv, args);
    forward_run(be, out, lse, &in);
}

static void attention_backward(Backend *be, Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                               AttentionArgs args) {
    op_check_attention_backward(dqkv, dout, qkv, out, lse, &args);
    if (args.B * args.T == 0) return;
    AttentionInput in = packed_input(qkv, args);
    backward_run(be, dqkv, dout, out, lse, &in);
}

static void attention_decode(Backend *be, Tensor out, Tensor k_cache, Tensor v_cache, Tensor qkv, int64_t start,
                             AttentionArgs args) {
    op_check_attention_decode(out, k_cache, v_cache, qkv, start, &args);
    int64_t kv_width = args.NKV * args.HS;
    AttentionInput in = {qkv, k_cache, v_cache, 0, 0, args.T, start + args.T, start, args};
    size_t row_bytes = to_size(kv_width) * dtype_bytes(qkv.dtype);
    int64_t k_column = args.NH * args.HS, v_column = k_column + kv_width;
    for (int64_t i = 0; i < args.T; ++i) {
        memcpy(head_rows(k_cache, start + i, 0).data, head_rows(qkv, i, k_column).data, row_bytes);
        memcpy(head_rows(v_cache, start + i, 0).data, head_rows(qkv, i, v_column).data, row_bytes);
    }
    if (args.T < DECODE_BLOCK_QUERIES)
        decode_rows(be, out, &in);
    else
        forward_run(be, out, TENSOR_NONE, &in);
}

void ISA_NAME(attention_register)(Backend *be);
void ISA_NAME(attention_register)(Backend *be) {
    be->attention_forward = attention_forward;
    be->attention_backward = attention_backward;
    be->attention_decode = attention_decode;
}
