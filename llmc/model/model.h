// model.h: the entry of this room: the decoder, written once over the backend seam, and its parameters as a table
// (params.h, model_table.c). It lays out weights, gradients and activations in an arena and computes loss and gradients.
// It must not know: files, optimizers, transports between ranks, options of a run, which backend it computes on.
#ifndef LLMC_MODEL_H
#define LLMC_MODEL_H

#include "llmc/backend/arena.h"
#include "llmc/backend/backend.h"
#include "llmc/loader/batch.h"
#include "llmc/model/objective.h"
#include "llmc/model/partition.h"

// Dimension letters, used everywhere:
//   B   rows (sequences) of a micro-batch     T   tokens of a row           N   B T
//   C   channels of the residual stream       L   layers                    V, Vp  vocabulary, padded
//   NH  query heads   NKV  key/value heads    HS  head size                 P   positions (max_seq_len)
//   Q   NH HS         QKV  (NH + 2 NKV) HS    F   feed-forward width        FC  F, gated 2 F
// A micro-batch is what one rank passes forward and backward at a time; a step consists of `lanes` of them over all
// ranks, and lane i is the i-th, whichever rank computes it.
//
//   h_0 = wte[x] (+ wpe)                             for each block l:
//   a = proj(attention(qk(qkv(norm1(h_l)))))         mid = h_l + a
//   f = mlp_proj(act(fc(norm2(mid))))                h_{l+1} = mid + f
//   logits = head(norm_f(h_L))                       loss = sum w nll / sum w over the whole optimizer step
//
// Parameters with their gradients (fp32); what the architecture lacks is TENSOR_NONE. A Linear is (out,in); it is where
// adapters, masks, splits by column or row over ranks and quantized weights belong: all three of its products are in
// linear_forward, linear_backward_input and linear_backward_weight of block.c, and nothing else multiplies by w.
typedef struct {
    Tensor w, b, dw, db;
    bool fp8;  // its products round their inputs to 8 bits. Never the head's: that rounding would go into the loss at once
} Linear;
typedef struct { Tensor w, b, dw, db; } Norm;
typedef struct { Tensor w, dw; } Embedding;
typedef struct {
    Norm norm1, q_norm, k_norm, norm2;
    Linear qkv, attn_proj, fc, mlp_proj;
} Block;
typedef struct {
    Embedding wte, wpe;
    Block *block;  // [L]
    Norm norm_f;
    Linear head;   // of wte when tied
} ModelTensors;

typedef struct Model Model;
// Forget the gradients and the loss sums of the previous step; costs nothing.
void model_begin_step(Model *model);
// Forward pass of one micro-batch (N <= max_rows): trunk, then loss by model->objective. With train, dlogits and the
// head's gradients are already taken here, chunk by chunk, so that logits exist once; loss_scale is 1 / (sum of weights of
// the whole step), 0 if that is 0. Afterwards model->nll holds this batch's losses and its place in loss_sums their sum of
// w*nll.
void model_forward(Model *model, const Batch *batch, double loss_scale, bool train);
// Backward pass of that micro-batch: grads (first write of a step overwrites, later ones add; with lanes, and for blocks
// from stage 2 on, every one overwrites).
void model_backward(Model *model);

// Logits of the whole batch, host fp32 (B*T, V), soft-cap applied; for comparisons and evaluation by choices.
void model_logits(Model *model, const Batch *batch, float *logits);
// Decoding: appends n tokens at positions start.. to the KV cache (n <= max_rows) and returns the logits of the last,
// host fp32 [V].
void model_decode(Model *model, const int32_t *tokens, int64_t n, int64_t start, float *logits);

// ---------------------------------------------------------------------------------------------------------------
// Memory

// What the backward pass of one block needs of its forward pass; ACT_ROWS (model_table.c) says shapes, and which of them
// all blocks share because they are recomputed.
typedef struct { Tensor out, mean, rstd; } NormActs;  // (N,C) (N) (N)
typedef struct {
    NormActs norm1;
    Tensor qkv_raw, qk_rstd;  // (N,QKV) (N,NH+NKV): only with QK-norm
    Tensor qkv;               // (N,QKV) rotated
    Tensor att, lse;          // (N,Q), (N,NH)
    Tensor mid;               // (N,C)
    NormActs norm2;
    Tensor fc_pre, fc;        // (N,FC); (N,F)
} BlockActs;

// What a micro-batch sends to the device: one block, one transfer. Two of them take turns, so that the next batch
// is sent while the device still computes with this one.
typedef struct {
    Tensor loss_scale;               // (1) fp32
    Tensor tokens, targets, weight;  // (N)
    Tensor doc, prefix;              // (N), sent where the batch has them
    unsigned char *host;             // the same layout in memory for transfers
    Ticket sent;                     // when it has passed, host may be written again
    Ticket used;                     // the last operation that reads the block was issued before it
} InputSet;

typedef struct {
    int64_t max_rows;         // N of the largest micro-batch
    int64_t max_seq_len;      // largest T
    int64_t loss_chunk_rows;  // rows of logits alive at a time
    DType dtype;              // of weights and activations
    bool training;            // gradients and saved activations exist
    bool fp8;                 // bf16: products of the blocks' linear layers with 8-bit inputs
    bool no_master;           // bf16 training without fp32 master weights: updates round stochastically
    Recompute recompute;      // what the backward pass computes again instead of keeping it
    int64_t cache_tokens;     // > 0: a KV cache for decoding this many positions
    PartitionOptions ranks;   // data.world 0 or 1: this rank has everything, whatever the stage
    int64_t micro_batches;    // training: most of them in a step on one rank
} ModelShape;

// ---------------------------------------------------------------------------------------------------------------
// Ranks

typedef enum { PASS_FORWARD, PASS_BACKWARD } ModelPass;
// What a model of several ranks lets others do between its operations (zero.c). Buckets as in partition.h.
typedef struct {
    void *context;                                                      // NULL: no hooks
    void (*weights_needed)(void *context, int bucket, ModelPass pass);  // what is issued next reads them
    void (*gradients_begin)(void *context, int bucket);                 // what is issued next writes them
    void (*gradients_ready)(void *context, int bucket);                 // this micro-batch writes no more of them
} ModelHooks;

// ---------------------------------------------------------------------------------------------------------------
// The model

struct Model {
    ModelConfig config;
    ModelShape shape;
    Backend *be;  // NULL in a model that is only planned
    ParamTable params;
    Partition part;
    ModelHooks hooks;
    Objective objective;  // of model_forward; model_init: cross-entropy
    ModelTensors t;
    // What of it is flat and what is packed (partition.h) follows from the ZeRO stage; use the accessors below.
    void *weights;        // dtype, flat; stage 3: NULL
    void *owned_weights;  // stage 3: dtype, packed
    float *master;        // fp32: the weights themselves in fp32 runs, else packed; NULL when not training or no_master
    float *grads;         // fp32, flat; stage 2 and 3: NULL; not training: NULL
    float *owned_grads;   // fp32, packed, where the optimizer finds its gradients; NULL: in grads
    float **lane_sums;    // lanes: [lane_levels] fp32, this rank's segments one behind the other
    int lane_levels;
    int64_t lane_elems;
    unsigned char **bucket_weights;  // [buckets] where each bucket's weights are for the passes
    unsigned char **bucket_grads;    // [buckets] and where they put its gradients, fp32
    // activations
    Tensor *h;        // [L+1] residual stream (N,C); all the same tensor when not training
    BlockActs *acts;  // [L]
    NormActs norm_f;
    Tensor logits;    // (loss_chunk_rows, Vp)
    Tensor nll;       // (N) fp32, unweighted
    Tensor loss_sums;  // (micro_batches) fp64, sum of w*nll of each since model_begin_step
    // gradients of activations
    Tensor dh, dnorm;  // (N,C)
    Tensor dwide;      // (N, wider of F and QKV + Q) flat
    // inputs on the device
    InputSet inputs[2];
    InputSet *in;      // the one in use
    Tensor positions;  // (N) int32
    Tensor rope_cos, rope_sin;  // (max_seq_len, HS/2) fp32
    Tensor *k_cache, *v_cache;  // [L] (cache_tokens, NKV*HS)
    // the batch that the forward pass saw
    int64_t B, T;
    bool has_doc, has_prefix;
    int64_t position_T;  // row length that `positions` holds now, 0: none
    int64_t micro_batch; // of the step: how many were begun since model_begin_step
    bool grads_fresh;    // nothing accumulated in this step yet: first writes overwrite
    bool replays;        // the pass may be captured and replayed
};

// Lays everything out in `arena`; with a measuring arena nothing is touched and be may be NULL. The order of
// allocation is the plan's. Tables (RoPE) are filled on a real arena. config must be finished.
void model_init(Model *model, const ModelConfig *config, const ModelShape *shape, Backend *be, Arena *arena);
void model_free(Model *model);  // before its backend is closed; the arena owns what is on the device
// Host memory that a model takes for transfers.
size_t model_staging_bytes(const Model *model);

// Gradients, and what lies between them, to zero.
void model_reset_grads(Model *model);
// Fresh weights, f(seed, name, index).
void model_init_weights(Model *model, uint64_t seed);
// fp32 values of one parameter in (weights and master, all spec->elems, of which a rank keeps its share), and of its
// elements [first, first + count) out (stage 3: of a bucket that zero_gather_weights made whole).
void model_set_param(Model *model, const ParamSpec *spec, const float *values);
void model_get_param(const Model *model, const ParamSpec *spec, int64_t first, int64_t count, float *values);
// model_set_param for readers of files (ModelFilePut of hf.h); context: the Model.
bool model_put_param(void *context, const ParamSpec *spec, const float *values, Error *err);

// What of a piece (partition.h) this rank updates: its fp32 values (NULL: none behind bf16 weights), its weights, its
// gradient. Device memory, piece->count elements.
float *model_master(const Model *model, const Piece *piece);
void *model_weight(const Model *model, const Piece *piece);
float *model_grad(const Model *model, const Piece *piece);
#endif
