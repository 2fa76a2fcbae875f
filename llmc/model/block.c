// block.c: one block of the decoder, forward and backward, as straight-line code, and the products of its linear layers.
// The margin gives shapes in the letters of model.h. Must not know: the sequence of blocks, the layout of memory.
#include <math.h>

#include "llmc/model/model_impl.h"

// ---------------------------------------------------------------------------------------------------------------
// Linear layers and norms

void linear_forward(Model *m, const Linear *layer, Tensor out, Tensor x, Epilogue epilogue) {
    MatmulArgs args = {.trans_b = true, .alpha = 1, .beta = 1, .bias = layer->b};
    args.add = epilogue.add;
    args.act = epilogue.act;
    args.pre = epilogue.pre;
    args.fp8 = layer->fp8 ? FP8_FORWARD : FP8_NONE;
    m->be->matmul(m->be, out, x, layer->w, args);
}

void linear_backward_input(Model *m, const Linear *layer, Tensor dx, Tensor dout, Activation act_grad, Tensor pre) {
    MatmulArgs args = {.alpha = 1, .act_grad = act_grad, .pre = pre, .fp8 = layer->fp8 ? FP8_BACKWARD : FP8_NONE};
    m->be->matmul(m->be, dx, dout, layer->w, args);
}

void linear_backward_weight(Model *m, const Linear *layer, Tensor dout, Tensor x, bool accumulate) {
    MatmulArgs args = {.trans_a = true, .alpha = 1, .beta = 1, .add = accumulate ? layer->dw : TENSOR_NONE};
    args.sums = layer->db;
    args.accumulate_sums = accumulate;
    args.fp8 = layer->fp8 ? FP8_BACKWARD : FP8_NONE;
    m->be->matmul(m->be, layer->dw, dout, x, args);
}

static NormArgs norm_args(const Model *m) { return (NormArgs){.kind = m->config.norm, .eps = m->config.norm_eps}; }

void norm_forward(Model *m, const Norm *norm, const NormActs *a, Tensor x) {
    m->be->norm_forward(m->be, a->out, a->mean, a->rstd, x, norm->w, norm->b, norm_args(m));
}

void norm_backward(Model *m, const Norm *norm, Tensor dx, Tensor dout, Tensor x, const NormActs *a, bool accumulate_dx,
                   bool accumulate) {
    m->be->norm_backward(m->be, dx, norm->dw, norm->db, dout, x, norm->w, a->mean, a->rstd, accumulate_dx, accumulate,
                         norm_args(m));
}

// ---------------------------------------------------------------------------------------------------------------
// Views for the current batch

static Tensor rows_of(Tensor t, int64_t N) { return tensor_is_none(t) ? t : tensor_rows(t, 0, N); }

NormActs norm_acts_for(const NormActs *a, int64_t N) {
    return (NormActs){rows_of(a->out, N), rows_of(a->mean, N), rows_of(a->rstd, N)};
}

// Without QK-norm the rotation is in place: qkv_raw and qkv are one tensor.
static BlockActs acts_for(const BlockActs *whole, int64_t N) {
    BlockActs a = {0};
    for (int i = 0; i < ACT_ROW_COUNT; ++i) {
        const Tensor *from = (const Tensor *)(const void *)((const unsigned char *)whole + ACT_ROWS[i].field);
        *(Tensor *)(void *)((unsigned char *)&a + ACT_ROWS[i].field) = rows_of(*from, N);
    }
    if (tensor_is_none(a.qkv_raw)) a.qkv_raw = a.qkv;
    return a;
}

// lse is allocated as (N,NH), like all activations; attention views it as (B,NH,T).
static Tensor lse_view(const Model *m, Tensor lse) {
    return tensor_3d(lse.data, DTYPE_F32, m->B, m->config.NH, m->T);
}

static AttentionArgs attention_args(const Model *m, int64_t l) {
    const ModelConfig *c = &m->config;
    AttentionArgs args = {.B = m->B,
                          .T = m->T,
                          .NH = c->NH,
                          .NKV = c->NKV,
                          .HS = c->HS,
                          .scale = 1.0f / sqrtf((float)c->HS),
                          .window = model_config_window(c, l)};
    if (m->has_doc) args.doc = tensor_2d(m->in->doc.data, DTYPE_I32, m->B, m->T);
    if (m->has_prefix) args.prefix = tensor_2d(m->in->prefix.data, DTYPE_U8, m->B, m->T);
    return args;
}

static QkArgs qk_args(const Model *m, const Block *b) {
    const ModelConfig *c = &m->config;
    return (QkArgs){.NH = c->NH,
                    .NKV = c->NKV,
                    .HS = c->HS,
                    .use_rope = c->position == POSITION_ROPE,
                    .cos = m->rope_cos,
                    .sin = m->rope_sin,
                    .q_weight = b->q_norm.w,
                    .k_weight = b->k_norm.w,
                    .eps = c->norm_eps};
}

// ---------------------------------------------------------------------------------------------------------------
// The block. Sandwich norms would go between a projection, which then has no epilogue, and the residual:
// out = residual + norm(proj).

void block_forward(Model *m, int64_t l, int64_t start) {
    Backend *be = m->be;
    const Activation act = m->config.activation;
    const Block *b = &m->t.block[l];
    const int64_t N = m->B * m->T;
    const BlockActs a = acts_for(&m->acts[l], N);
    const Tensor in = tensor_rows(m->h[l], 0, N), out = tensor_rows(m->h[l + 1], 0, N);
    const Tensor positions = tensor_rows(m->positions, 0, N);

    // attention
    norm_forward(m, &b->norm1, &a.norm1, in);                                      // (N,C)   = norm (N,C)
    linear_forward(m, &b->qkv, a.qkv_raw, a.norm1.out, (Epilogue){0});             // (N,QKV) = (N,C) (QKV,C)^T
    be->qk_forward(be, a.qkv, a.qk_rstd, a.qkv_raw, positions, qk_args(m, b));     // (N,QKV) = rotated (N,QKV)
    if (start < 0)
        be->attention_forward(be, a.att, lse_view(m, a.lse), a.qkv, attention_args(m, l));  // (N,Q) of (N,QKV)
    else
        be->attention_decode(be, a.att, m->k_cache[l], m->v_cache[l], a.qkv, start, attention_args(m, l));
    linear_forward(m, &b->attn_proj, a.mid, a.att, (Epilogue){.add = in});         // (N,C)   = (N,Q) (C,Q)^T + (N,C)

    // feed-forward
    norm_forward(m, &b->norm2, &a.norm2, a.mid);                                   // (N,C)   = norm (N,C)
    if (activation_is_gated(act)) {
        linear_forward(m, &b->fc, a.fc_pre, a.norm2.out, (Epilogue){0});           // (N,2F)  = (N,C) (2F,C)^T
        be->activation_forward(be, a.fc, a.fc_pre, act);                           // (N,F)   = act (N,2F)
    } else {                                                                       // (N,F)   = act((N,C) (F,C)^T)
        linear_forward(m, &b->fc, a.fc, a.norm2.out, (Epilogue){.act = act, .pre = a.fc_pre});
    }
    linear_forward(m, &b->mlp_proj, out, a.fc, (Epilogue){.add = a.mid});          // (N,C)   = (N,F) (C,F)^T + (N,C)
}

// Recomputes the normalized inputs and the activation's output from saved tensors. The last bit of an ungated activation
// may differ: here its input is the stored pre-activation; in the forward pass, where it is fused into the product, its
// input is not rounded, and on a GPU a library computes it.
void block_recompute(Model *m, int64_t l) {
    const Block *b = &m->t.block[l];
    const int64_t N = m->B * m->T;
    const BlockActs a = acts_for(&m->acts[l], N);
    norm_forward(m, &b->norm1, &a.norm1, tensor_rows(m->h[l], 0, N));              // (N,C) = norm (N,C)
    norm_forward(m, &b->norm2, &a.norm2, a.mid);                                   // (N,C) = norm (N,C)
    m->be->activation_forward(m->be, a.fc, a.fc_pre, m->config.activation);        // (N,F) = act (N,FC)
}

void block_backward(Model *m, int64_t l, bool accumulate) {
    Backend *be = m->be;
    const ModelConfig *c = &m->config;
    const Block *b = &m->t.block[l];
    const int64_t N = m->B * m->T;
    const DType dtype = m->shape.dtype;
    const BlockActs a = acts_for(&m->acts[l], N);
    const Tensor in = tensor_rows(m->h[l], 0, N), positions = tensor_rows(m->positions, 0, N);
    const Tensor dh = tensor_rows(m->dh, 0, N), dnorm = tensor_rows(m->dnorm, 0, N);

    // feed-forward. In a gated layer dfc_pre overwrites fc_pre, which is not read again.
    Tensor dfc = tensor_2d(m->dwide.data, dtype, N, c->F), dfc_pre = dfc;
    linear_backward_weight(m, &b->mlp_proj, dh, a.fc, accumulate);                 // (C,F)   = (N,C)^T (N,F)
    if (activation_is_gated(c->activation)) {
        linear_backward_input(m, &b->mlp_proj, dfc, dh, ACT_NONE, TENSOR_NONE);    // (N,F)   = (N,C) (C,F)
        dfc_pre = a.fc_pre;
        be->activation_backward(be, dfc_pre, dfc, a.fc_pre, c->activation);        // (N,2F)  = act' (N,2F), (N,F)
    } else {                                                                       // (N,F)   = (N,C) (C,F) act' (N,F)
        linear_backward_input(m, &b->mlp_proj, dfc_pre, dh, c->activation, a.fc_pre);
    }
    linear_backward_weight(m, &b->fc, dfc_pre, a.norm2.out, accumulate);           // (FC,C)  = (N,FC)^T (N,C)
    linear_backward_input(m, &b->fc, dnorm, dfc_pre, ACT_NONE, TENSOR_NONE);       // (N,C)   = (N,FC) (FC,C)
    norm_backward(m, &b->norm2, dh, dnorm, a.mid, &a.norm2, true, accumulate);     // (N,C)  += norm' (N,C)

    // attention
    Tensor dqkv = tensor_2d(m->dwide.data, dtype, N, model_dim(c, DIM_QKV));
    Tensor datt = tensor_2d((unsigned char *)m->dwide.data + tensor_bytes(dqkv), dtype, N, model_dim(c, DIM_Q));
    linear_backward_weight(m, &b->attn_proj, dh, a.att, accumulate);               // (C,Q)   = (N,C)^T (N,Q)
    linear_backward_input(m, &b->attn_proj, datt, dh, ACT_NONE, TENSOR_NONE);      // (N,Q)   = (N,C) (C,Q)
    be->attention_backward(be, dqkv, datt, a.qkv, a.att, lse_view(m, a.lse), attention_args(m, l));  // (N,QKV)
    be->qk_backward(be, dqkv, b->q_norm.dw, b->k_norm.dw, dqkv, a.qkv_raw, a.qk_rstd, positions, accumulate,
                    qk_args(m, b));                                                // (N,QKV) = back (N,QKV)
    linear_backward_weight(m, &b->qkv, dqkv, a.norm1.out, accumulate);             // (QKV,C) = (N,QKV)^T (N,C)
    linear_backward_input(m, &b->qkv, dnorm, dqkv, ACT_NONE, TENSOR_NONE);         // (N,C)   = (N,QKV) (QKV,C)
    norm_backward(m, &b->norm1, dh, dnorm, in, &a.norm1, true, accumulate);        // (N,C)  += norm' (N,C)
}
