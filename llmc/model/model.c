// model.c: whole passes: upload of inputs, the trunk (embedding, blocks, final norm), loss, gradients, logits and
// decoding. block.c has the single block, model_memory.c the layout of memory. Must not know: which backend it runs on.
#include <stdio.h>
#include <stdlib.h>

#include "llmc/base/rng.h"
#include "llmc/backend/tensor_host.h"
#include "llmc/model/model_impl.h"

// ---------------------------------------------------------------------------------------------------------------
// Inputs

static void upload_positions(Model *m, int64_t N, int64_t T, int64_t start) {
    int32_t *positions = m->be->counts_only ? NULL : xmalloc(to_size(N) * sizeof *positions);
    for (int64_t i = 0; positions != NULL && i < N; ++i) positions[i] = (int32_t)(start + i % T);
    m->be->upload(m->be, m->positions.data, positions, to_size(N) * sizeof *positions);
    free(positions);
}

// Sends the batch into the next input set (the two alternate), in one transfer.
static void upload_batch(Model *m, const Batch *batch, double loss_scale) {
    Backend *be = m->be;
    int64_t N = batch->B * batch->T;
    CHECK(N <= m->shape.max_rows && batch->T <= m->shape.max_seq_len, "batch %lld x %lld, planned %lld rows, T %lld",
          (long long)batch->B, (long long)batch->T, (long long)m->shape.max_rows, (long long)m->shape.max_seq_len);
    m->B = batch->B;
    m->T = batch->T;
    m->has_doc = batch->doc != NULL;
    m->has_prefix = batch->prefix != NULL;
    m->in->used = be->mark(be);
    InputSet *in = m->in = &m->inputs[m->in == &m->inputs[0]];
    be->wait(be, in->sent, NULL);
    float scale = (float)loss_scale;
    memcpy(in->host, &scale, sizeof scale);
    const struct {
        Tensor to;
        const void *from;
    } parts[] = {{in->tokens, batch->tokens},
                 {in->targets, batch->targets},
                 {in->weight, batch->weights},
                 {in->doc, batch->doc},
                 {in->prefix, batch->prefix}};
    Tensor last = in->weight;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; ++i) {
        if (parts[i].from == NULL) continue;
        last = tensor_rows(parts[i].to, 0, N);
        if (be->counts_only) continue;
        memcpy(in->host + input_span(in, last) - tensor_bytes(last), parts[i].from, tensor_bytes(last));
    }
    in->sent = be->upload_after(be, in->loss_scale.data, in->host, input_span(in, last), in->used);
    // Positions depend only on the row length: they are sent once, for the largest batch.
    if (m->position_T != batch->T) {
        upload_positions(m, m->shape.max_rows, batch->T, 0);
        m->position_T = batch->T;
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Captured sequences and hooks

// The key of a pass over this batch: passes with the same key issue the same operations on the same tensors. Keys belong
// to the backend: the address of the input set distinguishes this model from others on the same backend.
static uint64_t sequence_key(const Model *m, const char *pass, bool accumulate) {
    char text[128];
    snprintf(text, sizeof text, "%s %lld %lld %d %d %p %d %d", pass, (long long)m->B, (long long)m->T, m->has_doc,
             m->has_prefix, m->in->loss_scale.data, accumulate, (int)m->objective.kind);
    return rng_hash(text);
}

// Without hooks a pass is one sequence; with hooks it is one sequence for each bucket.
static uint64_t part_key(const Model *m, const char *pass, int bucket, bool accumulate) {
    char text[64];
    snprintf(text, sizeof text, "%s bucket %d", pass, bucket);
    return sequence_key(m, text, accumulate);
}
static bool part_begin(Model *m, const char *pass, int bucket, bool accumulate) {
    return m->replays && m->hooks.context != NULL &&
           m->be->sequence_begin(m->be, part_key(m, pass, bucket, accumulate));
}
static void part_end(Model *m, const char *pass, int bucket, bool accumulate) {
    if (m->replays && m->hooks.context != NULL)
        m->be->sequence_end(m->be, part_key(m, pass, bucket, accumulate));
}
static void need_weights(Model *m, int bucket, ModelPass pass) {
    if (m->hooks.context != NULL) m->hooks.weights_needed(m->hooks.context, bucket, pass);
}
static void begin_gradients(Model *m, int bucket) {
    if (m->hooks.context != NULL) m->hooks.gradients_begin(m->hooks.context, bucket);
}
static void finish_gradients(Model *m, int bucket) {
    if (m->hooks.context != NULL) m->hooks.gradients_ready(m->hooks.context, bucket);
}
static int first_bucket(void) { return 0; }
static int block_bucket(int64_t l) { return 1 + (int)l; }
static int last_bucket(const Model *m) { return 1 + (int)m->config.L; }

// ---------------------------------------------------------------------------------------------------------------
// Forward

// h_0 ... h_L and the final norm.
static void trunk_forward(Model *m, int64_t start) {
    Backend *be = m->be;
    const char *pass = "trunk";
    int64_t N = m->B * m->T;
    need_weights(m, first_bucket(), PASS_FORWARD);
    if (!part_begin(m, pass, first_bucket(), false)) {
        be->embedding_forward(be, tensor_rows(m->h[0], 0, N), tensor_rows(m->in->tokens, 0, N),
                              tensor_rows(m->positions, 0, N), m->t.wte.w, m->t.wpe.w);  // (N,C) = (Vp,C)[N] + (P,C)[N]
        part_end(m, pass, first_bucket(), false);
    }
    for (int64_t l = 0; l < m->config.L; ++l) {
        need_weights(m, block_bucket(l), PASS_FORWARD);
        if (part_begin(m, pass, block_bucket(l), false)) continue;
        block_forward(m, l, start);
        part_end(m, pass, block_bucket(l), false);
    }
    need_weights(m, last_bucket(m), PASS_FORWARD);
    const NormActs final = norm_acts_for(&m->norm_f, N);
    norm_forward(m, &m->t.norm_f, &final, tensor_rows(m->h[m->config.L], 0, N));  // (N,C) = norm (N,C)
}

static Tensor head_forward(Model *m, int64_t first, int64_t rows) {
    Tensor logits = tensor_rows(m->logits, 0, rows);
    // (rows,Vp) = (rows,C) (Vp,C)^T
    linear_forward(m, &m->t.head, logits, tensor_rows(m->norm_f.out, first, rows), (Epilogue){0});
    return logits;
}

void model_begin_step(Model *m) {
    m->grads_fresh = true;
    m->micro_batch = 0;
    m->be->zero(m->be, m->loss_sums.data, tensor_bytes(m->loss_sums));
}

// Whether this micro-batch adds to the existing gradients of the blocks, or of the tensors outside them.
static bool adds_to_blocks(const Model *m) {
    return !m->grads_fresh && !m->part.options.lanes && m->part.options.stage < 2;
}
static bool adds_outside(const Model *m) { return !m->grads_fresh && !m->part.options.lanes; }

// Logits and loss, chunk by chunk; in training also the gradients of the logits and of the head.
static void loss_forward(Model *m, const Objective *objective, bool train) {
    int64_t N = m->B * m->T;
    CrossEntropyArgs args = {.V = m->config.V,
                             .softcap = m->config.logit_softcap,
                             .want_grad = train,
                             .loss_scale = m->in->loss_scale};
    for (int64_t first = 0; first < N; first += m->shape.loss_chunk_rows) {
        int64_t rows = min_i64(m->shape.loss_chunk_rows, N - first);
        Tensor logits = head_forward(m, first, rows);
        objective_loss(objective, m->be, tensor_rows(m->nll, first, rows), logits,
                       tensor_rows(m->in->targets, first, rows), tensor_rows(m->in->weight, first, rows), args);
        if (!train) continue;
        // (rows,C) = (rows,Vp) (Vp,C), then (Vp,C) {=, +=} (rows,Vp)^T (rows,C)
        linear_backward_input(m, &m->t.head, tensor_rows(m->dnorm, first, rows), logits, ACT_NONE, TENSOR_NONE);
        linear_backward_weight(m, &m->t.head, logits, tensor_rows(m->norm_f.out, first, rows),
                               first > 0 || adds_outside(m));
    }
}

void model_forward(Model *m, const Batch *batch, double loss_scale, bool train) {
    Backend *be = m->be;
    CHECK(!train || m->shape.training, "this model was laid out without gradients%s", "");
    CHECK(m->micro_batch < m->shape.micro_batches, "micro-batch %lld of %lld", (long long)m->micro_batch,
          (long long)m->shape.micro_batches);
    upload_batch(m, batch, loss_scale * m->objective.coefficient);
    m->replays = true;
    const char *pass = train ? "forward" : "evaluate";
    uint64_t key = sequence_key(m, pass, adds_outside(m));
    const Objective held_out = OBJECTIVE_DEFAULT, *objective = train ? &m->objective : &held_out;
    if (m->hooks.context != NULL) {
        trunk_forward(m, -1);
        if (!part_begin(m, pass, last_bucket(m), adds_outside(m))) {
            loss_forward(m, objective, train);
            part_end(m, pass, last_bucket(m), adds_outside(m));
        }
    } else if (!be->sequence_begin(be, key)) {
        trunk_forward(m, -1);
        loss_forward(m, objective, train);
        be->sequence_end(be, key);
    }
    m->replays = false;
    int64_t N = m->B * m->T;
    be->weighted_sum(be, tensor_rows(m->loss_sums, m->micro_batch, 1), tensor_rows(m->nll, 0, N),
                     tensor_rows(m->in->weight, 0, N), !train);
    m->micro_batch += train;
}

// ---------------------------------------------------------------------------------------------------------------
// Backward

static void trunk_backward(Model *m) {
    Backend *be = m->be;
    const ModelConfig *c = &m->config;
    const char *pass = "backward";
    const bool accumulate = adds_outside(m);
    int64_t N = m->B * m->T;
    Tensor dh = tensor_rows(m->dh, 0, N);
    need_weights(m, last_bucket(m), PASS_BACKWARD);
    const NormActs final = norm_acts_for(&m->norm_f, N);
    norm_backward(m, &m->t.norm_f, dh, tensor_rows(m->dnorm, 0, N), tensor_rows(m->h[c->L], 0, N), &final, false,
                  accumulate);  // (N,C) = norm' (N,C)
    finish_gradients(m, last_bucket(m));
    for (int64_t l = c->L - 1; l >= 0; --l) {
        need_weights(m, block_bucket(l), PASS_BACKWARD);
        begin_gradients(m, block_bucket(l));
        if (!part_begin(m, pass, block_bucket(l), adds_to_blocks(m))) {
            // The last block's activations are still in the shared tensors.
            if (m->shape.recompute == RECOMPUTE_BLOCK && l < c->L - 1) block_forward(m, l, -1);
            if (m->shape.recompute == RECOMPUTE_NORM_ACT && l < c->L - 1) block_recompute(m, l);
            block_backward(m, l, adds_to_blocks(m));
            part_end(m, pass, block_bucket(l), adds_to_blocks(m));
        }
        finish_gradients(m, block_bucket(l));
    }
    need_weights(m, first_bucket(), PASS_BACKWARD);
    // embedding_backward only adds. A tied head has just written dwte; otherwise it starts from zero.
    if (!accumulate && !c->tied) be->zero(be, m->t.wte.dw.data, tensor_bytes(m->t.wte.dw));
    if (!accumulate && !tensor_is_none(m->t.wpe.dw)) be->zero(be, m->t.wpe.dw.data, tensor_bytes(m->t.wpe.dw));
    be->embedding_backward(be, m->t.wte.dw, m->t.wpe.dw, dh, tensor_rows(m->in->tokens, 0, N),
                           tensor_rows(m->positions, 0, N));  // (Vp,C)[N] += (N,C), (P,C)[N] += (N,C)
    finish_gradients(m, first_bucket());
}

void model_backward(Model *m) {
    uint64_t key = sequence_key(m, "backward", adds_outside(m));
    m->replays = true;
    if (m->hooks.context != NULL) {
        trunk_backward(m);
    } else if (!m->be->sequence_begin(m->be, key)) {
        trunk_backward(m);
        m->be->sequence_end(m->be, key);
    }
    m->replays = false;
    m->grads_fresh = false;
}

// ---------------------------------------------------------------------------------------------------------------
// Logits for callers

static void download_logits(Model *m, Tensor logits, float *out) {
    Backend *be = m->be;
    if (m->config.logit_softcap > 0) be->softcap(be, logits, m->config.logit_softcap);
    int64_t rows = logits.dim[0], Vp = m->config.Vp, V = m->config.V;
    unsigned char *raw = xmalloc(tensor_bytes(logits));
    be->download(be, raw, logits.data, tensor_bytes(logits));
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t v = 0; v < V; ++v) out[r * V + v] = (float)tensor_host_load(raw, logits.dtype, r * Vp + v);
    free(raw);
}

void model_logits(Model *m, const Batch *batch, float *logits) {
    upload_batch(m, batch, 0);
    trunk_forward(m, -1);
    int64_t N = m->B * m->T;
    for (int64_t first = 0; first < N; first += m->shape.loss_chunk_rows) {
        int64_t rows = min_i64(m->shape.loss_chunk_rows, N - first);
        download_logits(m, head_forward(m, first, rows), logits + first * m->config.V);
    }
}

void model_decode(Model *m, const int32_t *tokens, int64_t n, int64_t start, float *logits) {
    CHECK(n > 0 && n <= m->shape.max_rows && start >= 0 && start + n <= m->shape.cache_tokens,
          "n=%lld start=%lld rows=%lld cache=%lld", (long long)n, (long long)start, (long long)m->shape.max_rows,
          (long long)m->shape.cache_tokens);
    m->B = 1;
    m->T = n;
    m->has_doc = m->has_prefix = false;
    m->position_T = 0;
    m->be->upload(m->be, m->in->tokens.data, tokens, to_size(n) * sizeof *tokens);
    upload_positions(m, n, n, start);
    trunk_forward(m, start);
    download_logits(m, head_forward(m, n - 1, 1), logits);
}
