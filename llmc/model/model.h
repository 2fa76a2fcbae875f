// model.h, entry of this room: the decoder, written once for all backends. It lays out weights, gradients and activations
// in an arena and computes loss and gradients. params.h and model_table.c hold its parameters as a table.
// Must not know: files, optimizers, communication between ranks, options of a run, which backend it runs on.
#ifndef LLMC_MODEL_H
#define LLMC_MODEL_H

#include "llmc/backend/arena.h"
#include "llmc/backend/backend.h"
#include "llmc/loader/batch.h"
#include "llmc/model/objective.h"
#include "llmc/model/partition.h"

//   B   rows (sequences) of a micro-batch     T   tokens of a row           N   B T
//   C   channels of the residual stream       L   layers                    V, Vp  vocabulary, padded
//   NH  query heads   NKV  key/value heads    HS  head size                 P   positions (max_seq_len)
//   Q   NH HS         QKV  (NH + 2 NKV) HS    F   feed-forward width        FC  F, gated 2 F
// Micro-batch: B rows of a step that one rank passes forward and backward together, numbered on that rank. Lane: B rows of
// a step, numbered over all ranks: micro-batch m of rank r is lane m * world + r. Lanes do not depend on the world size.
//
//   h_0 = wte[x] (+ wpe)                             for each block l:
//   a = proj(attention(qk(qkv(norm1(h_l)))))         mid = h_l + a
//   f = mlp_proj(act(fc(norm2(mid))))                h_{l+1} = mid + f
//   logits = head(norm_f(h_L))                       loss = sum w nll / sum w over the whole optimizer step
//
// Parameters and their gradients (fp32); TENSOR_NONE where the architecture has none. w of a Linear is (out,in). Only its
// three products in block.c (linear_forward, linear_backward_input, linear_backward_weight) read w: adapters, masks,
// sharding by column or row and quantized weights belong there.
typedef struct {
    Tensor w, b, dw, db;
    bool fp8;  // its products round their inputs to 8 bits; false for the head, whose error would go directly into the loss
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
    Linear head;   // w is wte when tied
} ModelTensors;

typedef struct Model Model;
void model_begin_step(Model *model);  // drops the gradients and loss sums of the previous step; costs nothing
// Forward pass of one micro-batch (N <= max_rows). nll (N) = losses by model->objective; loss_sums[micro-batch] = sum of
// w*nll, += in evaluation. train: also dlogits and the head's gradients, chunk by chunk, so that one chunk of logits is in
// memory. loss_scale: 1 / (sum of weights of the whole step), or 0 if that sum is 0.
void model_forward(Model *model, const Batch *batch, double loss_scale, bool train);
// Backward pass of that micro-batch: gradients = in the first of a step, += in later ones; with lanes, and for blocks with
// ZeRO stage 2 and 3, always =.
void model_backward(Model *model);
// logits (B*T,V) host fp32 = those of the whole batch, soft-capped.
void model_logits(Model *model, const Batch *batch, float *logits);
// Appends n <= max_rows tokens at positions start.. to the KV cache; logits (V) host fp32 = those of the last token.
void model_decode(Model *model, const int32_t *tokens, int64_t n, int64_t start, float *logits);

// ---------------------------------------------------------------------------------------------------------------
// Memory

// Activations of one block that its backward pass reads. ACT_ROWS (model_table.c) gives shapes, and which of them all
// blocks share because they are recomputed.
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

// Inputs of a micro-batch on the device: contiguous, sent in one transfer. Two sets alternate, so that the next batch is
// sent while the device computes on the current one.
typedef struct {
    Tensor loss_scale;               // (1) fp32
    Tensor tokens, targets, weight;  // (N)
    Tensor doc, prefix;              // (N), sent if the batch has them
    unsigned char *host;             // the same layout in host memory for transfers
    Ticket sent;                     // once passed, host may be written again
    Ticket used;                     // marks the point after the last operation that reads this set
} InputSet;

typedef struct {
    int64_t max_rows;         // N of the largest micro-batch
    int64_t max_seq_len;      // largest T
    int64_t loss_chunk_rows;  // rows of logits in memory at a time
    DType dtype;              // of weights and activations
    bool training;            // gradients and saved activations exist
    bool fp8;                 // bf16: products of the blocks' linear layers with 8-bit inputs
    bool no_master;           // bf16 training without fp32 master weights: updates round stochastically
    Recompute recompute;      // activations that the backward pass recomputes
    int64_t cache_tokens;     // > 0: a KV cache for decoding this many positions
    PartitionOptions ranks;   // data.world 0 or 1: nothing is sharded, whatever the stage
    int64_t micro_batches;    // training: the largest number of them in a step on one rank
} ModelShape;

// ---------------------------------------------------------------------------------------------------------------
// Ranks

typedef enum { PASS_FORWARD, PASS_BACKWARD } ModelPass;
// Calls between a model's operations, by which zero.c moves weights and gradients. Buckets as in partition.h.
typedef struct {
    void *context;                                                      // NULL: no hooks
    void (*weights_needed)(void *context, int bucket, ModelPass pass);  // the next operations read them
    void (*gradients_begin)(void *context, int bucket);                 // the next operations write them
    void (*gradients_ready)(void *context, int bucket);                 // this micro-batch's gradients are complete
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
    Objective objective;  // of model_forward; model_init sets cross-entropy
    ModelTensors t;
    // Flat or packed (partition.h), depending on the ZeRO stage; use the accessors below.
    void *weights;        // dtype, flat; stage 3: NULL
    void *owned_weights;  // stage 3: dtype, packed
    float *master;        // fp32: the weights themselves in fp32 runs, else packed; NULL when not training or no_master
    float *grads;         // fp32, flat; stage 2 and 3: NULL; not training: NULL
    float *owned_grads;   // fp32, packed: the gradients that the optimizer reads; NULL: it reads grads
    float **lane_sums;    // lanes: [lane_levels] fp32, this rank's segments in order
    int lane_levels;
    int64_t lane_elems;
    unsigned char **bucket_weights;  // [buckets] address of each bucket's weights in the passes
    unsigned char **bucket_grads;    // [buckets] and of its gradients, fp32
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
    // the batch of the latest forward pass
    int64_t B, T;
    bool has_doc, has_prefix;
    int64_t position_T;  // row length that `positions` holds now, 0: none
    int64_t micro_batch; // forward passes in training since model_begin_step
    bool grads_fresh;    // no gradients of this step yet: first writes overwrite
    bool replays;        // the pass may be captured and replayed
};

// Allocates all tensors in `arena`, in the order that the plan assumes. On a measuring arena it only counts, and be may be
// NULL. On a real arena it zeroes the weights and fills the RoPE tables. config must be finished.
void model_init(Model *model, const ModelConfig *config, const ModelShape *shape, Backend *be, Arena *arena);
void model_free(Model *model);  // before its backend is closed; the arena owns the device memory
// Bytes of host memory for transfers.
size_t model_staging_bytes(const Model *model);

// Sets gradients, and the alignment gaps between them, to zero.
void model_reset_grads(Model *model);
// Sets initial weights: f(seed, name, index).
void model_init_weights(Model *model, uint64_t seed);
// Sets weights and master of one parameter from values (spec->elems) fp32 on the host; a rank keeps its share.
void model_set_param(Model *model, const ParamSpec *spec, const float *values);
// values (count) fp32 on the host = elements [first, first + count). Stage 3: after zero_gather_weights of its bucket.
void model_get_param(const Model *model, const ParamSpec *spec, int64_t first, int64_t count, float *values);
// model_set_param as a ModelFilePut (hf.h); context: the Model.
bool model_put_param(void *context, const ParamSpec *spec, const float *values, Error *err);

// Addresses of a piece (partition.h), which this rank updates: its fp32 values (NULL: bf16 weights without masters), its
// weights, its gradient. Device memory, piece->count elements.
float *model_master(const Model *model, const Piece *piece);
void *model_weight(const Model *model, const Piece *piece);
float *model_grad(const Model *model, const Piece *piece);
#endif
