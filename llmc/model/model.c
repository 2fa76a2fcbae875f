// model.c: forward and backward pass, straight-line, in the order in which a token travels. No backend's name appears
// here.
#include "llmc/model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "llmc/base/rng.h"
#include "llmc/backend/tensor_host.h"

// ---------------------------------------------------------------------------------------------------------------
// Layout

static bool is_gated(const Model *m) { return m->config.activation == ACT_SWIGLU; }
static int64_t fc_width(const ModelConfig *c) { return c->activation == ACT_SWIGLU ? 2 * c->F : c->F; }

// One array of a model's parameters: where each bucket of it begins (NULL while measuring).
typedef struct {
    unsigned char *const *bucket;
    DType dtype;
} ParamArray;

static Tensor role_view(const Model *m, ParamArray array, ParamRole role, int layer) {
    const ParamSpec *spec = params_find(&m->params, role, layer);
    if (spec == NULL) return TENSOR_NONE;
    int bucket = partition_bucket_of(&m->params, (int)(spec - m->params.spec));
    ParamSpec within = *spec;
    within.offset -= m->part.bucket[bucket].first;
    return params_view(&within, array.bucket[bucket], array.dtype);
}

static void bind_tensors(const Model *m, ModelTensors *t, ParamArray array) {
    t->wte = role_view(m, array, PARAM_WTE, -1);
    t->wpe = role_view(m, array, PARAM_WPE, -1);
    t->norm_f_w = role_view(m, array, PARAM_NORM_F_W, -1);
    t->norm_f_b = role_view(m, array, PARAM_NORM_F_B, -1);
    t->head = m->config.tied ? t->wte : role_view(m, array, PARAM_HEAD, -1);
    t->block = xcalloc(to_size(m->config.L), sizeof *t->block);
    for (int l = 0; l < m->config.L; ++l) {
        BlockTensors *b = &t->block[l];
        b->norm1_w = role_view(m, array, PARAM_NORM1_W, l);
        b->norm1_b = role_view(m, array, PARAM_NORM1_B, l);
        b->qkv_w = role_view(m, array, PARAM_QKV_W, l);
        b->qkv_b = role_view(m, array, PARAM_QKV_B, l);
        b->q_norm_w = role_view(m, array, PARAM_Q_NORM_W, l);
        b->k_norm_w = role_view(m, array, PARAM_K_NORM_W, l);
        b->attn_proj_w = role_view(m, array, PARAM_ATTN_PROJ_W, l);
        b->attn_proj_b = role_view(m, array, PARAM_ATTN_PROJ_B, l);
        b->norm2_w = role_view(m, array, PARAM_NORM2_W, l);
        b->norm2_b = role_view(m, array, PARAM_NORM2_B, l);
        b->fc_w = role_view(m, array, PARAM_FC_W, l);
        b->fc_b = role_view(m, array, PARAM_FC_B, l);
        b->mlp_proj_w = role_view(m, array, PARAM_MLP_PROJ_W, l);
        b->mlp_proj_b = role_view(m, array, PARAM_MLP_PROJ_B, l);
    }
}

// Where each bucket of an array is: in one flat array, or (flat NULL) buckets outside the blocks have memory of their own
// and blocks take turns in two buffers.
static void place_buckets(const Model *m, unsigned char **bucket, void *flat, bool in_buffers, DType dtype,
                          const char *tag, Arena *arena) {
    const Partition *part = &m->part;
    const size_t bytes = dtype_bytes(dtype);
    unsigned char *buffer[2] = {NULL, NULL};
    for (int i = 0; in_buffers && i < 2 && i < m->config.L; ++i)
        buffer[i] = arena_alloc(arena, to_size(part->largest_block_elems) * bytes, tag);
    for (int b = 0; b < part->buckets; ++b) {
        const Bucket *at = &part->bucket[b];
        if (!in_buffers) bucket[b] = flat == NULL ? NULL : (unsigned char *)flat + to_size(at->first) * bytes;
        else if (at->layer >= 0) bucket[b] = buffer[at->layer % 2];
        else bucket[b] = arena_alloc(arena, to_size(at->elems) * bytes, tag);
    }
}

static void layout_weights(Model *m, Arena *arena) {
    const Partition *part = &m->part;
    const size_t flat = to_size(m->params.total_elems), packed = to_size(part->packed_elems);
    const size_t bytes = dtype_bytes(m->shape.dtype);
    const bool bf16 = m->shape.dtype == DTYPE_BF16, sharded = part->options.stage == 3;
    void **weights = sharded ? &m->owned_weights : &m->weights;
    *weights = arena_alloc(arena, (sharded ? packed : flat) * bytes, "parameters");
    if (m->shape.training && !bf16) m->master = (float *)*weights;
    if (m->shape.training && bf16 && !m->shape.no_master)
        m->master = (float *)arena_alloc(arena, packed * sizeof(float), "master weights");
    m->bucket_weights = xcalloc((size_t)part->buckets, sizeof *m->bucket_weights);
    place_buckets(m, m->bucket_weights, m->weights, sharded, m->shape.dtype, "gathered parameters", arena);
    bind_tensors(m, &m->w, (ParamArray){m->bucket_weights, m->shape.dtype});
}

static void layout_grads(Model *m, Arena *arena) {
    const Partition *part = &m->part;
    const bool sharded = part->options.stage >= 2, lanes = part->options.lanes;
    const char *tag = "gradients";
    if (!sharded) m->grads = (float *)arena_alloc(arena, to_size(m->params.total_elems) * sizeof(float), tag);
    else if (!lanes) m->owned_grads = (float *)arena_alloc(arena, to_size(part->packed_elems) * sizeof(float), tag);
    for (int b = 0; b < part->buckets; ++b) m->lane_elems += part->bucket[b].owned_elems;
    for (int64_t lanes_left = lanes ? m->shape.micro_batches : 0; lanes_left > 0; lanes_left /= 2) ++m->lane_levels;
    m->lane_sums = xcalloc((size_t)m->lane_levels + 1, sizeof *m->lane_sums);
    for (int i = 0; i < m->lane_levels; ++i)
        m->lane_sums[i] = (float *)arena_alloc(arena, to_size(m->lane_elems) * sizeof(float), "sums of lanes");
    m->bucket_grads = xcalloc((size_t)part->buckets, sizeof *m->bucket_grads);
    place_buckets(m, m->bucket_grads, m->grads, sharded, DTYPE_F32, tag, arena);
    bind_tensors(m, &m->g, (ParamArray){m->bucket_grads, DTYPE_F32});
}

// `shared`: the first block's, whose recomputed tensors this one uses too; NULL for the first block.
static void layout_block_acts(Model *m, BlockActs *a, const BlockActs *shared, Arena *arena) {
    const ModelConfig *c = &m->config;
    const char *tag = "activations";
    DType dtype = m->shape.dtype;
    int64_t N = m->shape.max_rows, qkv_width = model_config_qkv_width(c);
    bool layer_norm = c->norm == NORM_LAYER, keep = shared == NULL || m->shape.recompute == RECOMPUTE_NONE;
    a->norm1 = keep ? arena_tensor(arena, tag, dtype, 2, N, c->C, 0, 0) : shared->norm1;
    a->norm1_mean = layer_norm ? arena_tensor(arena, tag, DTYPE_F32, 1, N, 0, 0, 0) : TENSOR_NONE;
    a->norm1_rstd = arena_tensor(arena, tag, DTYPE_F32, 1, N, 0, 0, 0);
    a->qkv = arena_tensor(arena, tag, dtype, 2, N, qkv_width, 0, 0);
    a->qkv_raw = c->qk_norm ? arena_tensor(arena, tag, dtype, 2, N, qkv_width, 0, 0) : a->qkv;
    a->qk_rstd = c->qk_norm ? arena_tensor(arena, tag, DTYPE_F32, 2, N, c->NH + c->NKV, 0, 0) : TENSOR_NONE;
    a->att = arena_tensor(arena, tag, dtype, 2, N, c->NH * c->HS, 0, 0);
    a->lse = arena_tensor(arena, tag, DTYPE_F32, 2, N, c->NH, 0, 0);
    a->mid = arena_tensor(arena, tag, dtype, 2, N, c->C, 0, 0);
    a->norm2 = keep ? arena_tensor(arena, tag, dtype, 2, N, c->C, 0, 0) : shared->norm2;
    a->norm2_mean = layer_norm ? arena_tensor(arena, tag, DTYPE_F32, 1, N, 0, 0, 0) : TENSOR_NONE;
    a->norm2_rstd = arena_tensor(arena, tag, DTYPE_F32, 1, N, 0, 0, 0);
    a->fc_pre = arena_tensor(arena, tag, dtype, 2, N, fc_width(c), 0, 0);
    a->fc = keep ? arena_tensor(arena, tag, dtype, 2, N, c->F, 0, 0) : shared->fc;
}

static void layout_activations(Model *m, Arena *arena) {
    const ModelConfig *c = &m->config;
    const char *tag = "activations";
    DType dtype = m->shape.dtype;
    int64_t N = m->shape.max_rows;
    bool one_set = !m->shape.training || m->shape.recompute == RECOMPUTE_BLOCK;
    m->h = xcalloc(to_size(c->L + 1), sizeof *m->h);
    m->acts = xcalloc(to_size(c->L), sizeof *m->acts);
    for (int64_t l = 0; l <= c->L; ++l)
        m->h[l] = l == 0 || m->shape.training ? arena_tensor(arena, tag, dtype, 2, N, c->C, 0, 0) : m->h[0];
    for (int64_t l = 0; l < c->L; ++l) {
        if (l == 0 || !one_set) layout_block_acts(m, &m->acts[l], l == 0 ? NULL : &m->acts[0], arena);
        else m->acts[l] = m->acts[0];
    }
    m->norm_f = arena_tensor(arena, tag, dtype, 2, N, c->C, 0, 0);
    m->norm_f_mean = c->norm == NORM_LAYER ? arena_tensor(arena, tag, DTYPE_F32, 1, N, 0, 0, 0) : TENSOR_NONE;
    m->norm_f_rstd = arena_tensor(arena, tag, DTYPE_F32, 1, N, 0, 0, 0);
    m->nll = arena_tensor(arena, tag, DTYPE_F32, 1, N, 0, 0, 0);
    m->loss_sums = arena_tensor(arena, tag, DTYPE_F64, 1, m->shape.micro_batches, 0, 0, 0);
    m->logits = arena_tensor(arena, "logits", dtype, 2, min_i64(m->shape.loss_chunk_rows, N), c->Vp, 0, 0);
    if (!m->shape.training) return;
    int64_t wide = max_i64(c->F, model_config_qkv_width(c) + c->NH * c->HS);
    m->dh = arena_tensor(arena, "activation gradients", dtype, 2, N, c->C, 0, 0);
    m->dnorm = arena_tensor(arena, "activation gradients", dtype, 2, N, c->C, 0, 0);
    m->dwide = arena_tensor(arena, "activation gradients", dtype, 1, N * wide, 0, 0, 0);
}

static void layout_inputs(Model *m, Arena *arena) {
    const ModelConfig *c = &m->config;
    const char *tag = "inputs";
    int64_t N = m->shape.max_rows;
    // Consecutive allocations: input_span relies on it.
    for (int i = 0; i < 2; ++i) {
        InputSet *in = &m->inputs[i];
        in->loss_scale = arena_tensor(arena, tag, DTYPE_F32, 1, 1, 0, 0, 0);
        in->tokens = arena_tensor(arena, tag, DTYPE_I32, 1, N, 0, 0, 0);
        in->targets = arena_tensor(arena, tag, DTYPE_I32, 1, N, 0, 0, 0);
        in->weight = arena_tensor(arena, tag, DTYPE_F32, 1, N, 0, 0, 0);
        in->doc = arena_tensor(arena, tag, DTYPE_I32, 1, N, 0, 0, 0);
        in->prefix = arena_tensor(arena, tag, DTYPE_U8, 1, N, 0, 0, 0);
    }
    m->positions = arena_tensor(arena, tag, DTYPE_I32, 1, N, 0, 0, 0);
    if (c->position == POSITION_ROPE) {
        m->rope_cos = arena_tensor(arena, "tables", DTYPE_F32, 2, m->shape.max_seq_len, c->HS / 2, 0, 0);
        m->rope_sin = arena_tensor(arena, "tables", DTYPE_F32, 2, m->shape.max_seq_len, c->HS / 2, 0, 0);
    }
    if (m->shape.cache_tokens == 0) return;
    m->k_cache = xcalloc(to_size(c->L), sizeof *m->k_cache);
    m->v_cache = xcalloc(to_size(c->L), sizeof *m->v_cache);
    for (int64_t l = 0; l < c->L; ++l) {
        m->k_cache[l] =
            arena_tensor(arena, "KV cache", m->shape.dtype, 2, m->shape.cache_tokens, c->NKV * c->HS, 0, 0);
        m->v_cache[l] =
            arena_tensor(arena, "KV cache", m->shape.dtype, 2, m->shape.cache_tokens, c->NKV * c->HS, 0, 0);
    }
}

// Frequency of pair i, with Llama-3.1's rescaling: long wavelengths are slowed by `factor`, short ones kept, between
// them a linear blend (Hugging Face, modeling_rope_utils.py, "llama3").
static double rope_frequency(const ModelConfig *c, int64_t i) {
    double frequency = pow(c->rope_theta, -2.0 * (double)i / (double)c->HS);
    const RopeScaling *s = &c->rope_scaling;
    if (s->factor == 0) return frequency;
    double wavelength = 6.283185307179586 / frequency;
    double original = (double)s->original_max_seq_len;
    if (wavelength < original / s->high_freq_factor) return frequency;
    if (wavelength > original / s->low_freq_factor) return frequency / s->factor;
    double smooth = (original / wavelength - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
    return (1 - smooth) * frequency / s->factor + smooth * frequency;
}

static void fill_rope_tables(Model *m) {
    int64_t half = m->config.HS / 2, P = m->shape.max_seq_len;
    float *cosines = xmalloc(tensor_bytes(m->rope_cos)), *sines = xmalloc(tensor_bytes(m->rope_sin));
    for (int64_t i = 0; i < half; ++i) {
        double frequency = rope_frequency(&m->config, i);
        for (int64_t p = 0; p < P; ++p) {
            cosines[p * half + i] = (float)cos((double)p * frequency);
            sines[p * half + i] = (float)sin((double)p * frequency);
        }
    }
    m->be->upload(m->be, m->rope_cos.data, cosines, tensor_bytes(m->rope_cos));
    m->be->upload(m->be, m->rope_sin.data, sines, tensor_bytes(m->rope_sin));
    free(cosines);
    free(sines);
}

// Bytes of an input set from its start to the end of a tensor of it.
static size_t input_span(const InputSet *in, Tensor last) {
    return (size_t)((unsigned char *)last.data - (unsigned char *)in->loss_scale.data) + tensor_bytes(last);
}
size_t model_staging_bytes(const Model *m) {
    size_t rows = (to_size(m->shape.max_rows) * sizeof(int32_t) + ARENA_ALIGN_BYTES - 1) / ARENA_ALIGN_BYTES;
    return 2 * ((1 + 4 * rows) * ARENA_ALIGN_BYTES + to_size(m->shape.max_rows));
}
static void open_staging(Model *m) {
    Error err = {""};
    for (int i = 0; i < 2; ++i) {
        InputSet *in = &m->inputs[i];
        size_t bytes = input_span(in, in->prefix);
        CHECK(2 * bytes == model_staging_bytes(m), "an input set is %zu bytes, planned %zu", bytes,
              model_staging_bytes(m) / 2);
        in->host = m->be->host_alloc(m->be, bytes, &err);
        CHECK(in->host != NULL, "%s", err.message);
    }
    m->in = &m->inputs[0];
}

void model_init(Model *m, const ModelConfig *config, const ModelShape *shape, Backend *be, Arena *arena) {
    *m = (Model){.config = *config, .shape = *shape, .be = be};
    CHECK(shape->max_rows > 0 && shape->max_seq_len > 0 && shape->loss_chunk_rows > 0, "rows=%lld T=%lld chunk=%lld",
          (long long)shape->max_rows, (long long)shape->max_seq_len, (long long)shape->loss_chunk_rows);
    if (!shape->training || shape->ranks.world <= 1) {
        m->shape.ranks = (PartitionOptions){.world = 1, .lanes = shape->training && shape->ranks.lanes,
                                            .muon = shape->ranks.muon};
    }
    m->shape.micro_batches = max_i64(1, shape->micro_batches);
    params_build(&m->params, config);
    partition_build(&m->part, &m->params, &m->shape.ranks);
    layout_weights(m, arena);
    if (shape->training) layout_grads(m, arena);
    layout_activations(m, arena);
    layout_inputs(m, arena);
    if (arena->backend == NULL) return;
    CHECK(be != NULL, "a model on a real arena needs a backend%s", "");
    // The alignment gaps between tensors are part of the arrays that norms and updates walk: they stay zero.
    int64_t elems = m->weights != NULL ? m->params.total_elems : m->part.packed_elems;
    be->zero(be, m->weights != NULL ? m->weights : m->owned_weights, to_size(elems) * dtype_bytes(shape->dtype));
    if (m->master != NULL && shape->dtype == DTYPE_BF16)
        be->zero(be, m->master, to_size(m->part.packed_elems) * sizeof(float));
    if (config->position == POSITION_ROPE) fill_rope_tables(m);
    open_staging(m);
}

void model_free(Model *m) {
    for (int i = 0; i < 2; ++i)
        if (m->inputs[i].host != NULL) m->be->host_free(m->be, m->inputs[i].host);
    partition_free(&m->part);
    params_free(&m->params);
    free(m->lane_sums);
    free(m->bucket_weights);
    free(m->bucket_grads);
    free(m->w.block);
    free(m->g.block);
    free(m->h);
    free(m->acts);
    free(m->k_cache);
    free(m->v_cache);
    *m = (Model){0};
}

// ---------------------------------------------------------------------------------------------------------------
// Parameters in and out

float *model_master(const Model *m, const Piece *piece) {
    if (m->master == NULL) return NULL;
    bool flat = m->weights == (void *)m->master;
    return m->master + (flat ? m->params.spec[piece->param].offset + piece->first : piece->packed);
}

void *model_weight(const Model *m, const Piece *piece) {
    int64_t elem = m->weights != NULL ? m->params.spec[piece->param].offset + piece->first : piece->packed;
    void *base = m->weights != NULL ? m->weights : m->owned_weights;
    return (unsigned char *)base + to_size(elem) * dtype_bytes(m->shape.dtype);
}

float *model_grad(const Model *m, const Piece *piece) {
    if (m->owned_grads != NULL) return m->owned_grads + piece->packed;
    return m->grads + m->params.spec[piece->param].offset + piece->first;
}

void model_set_param(Model *m, const ParamSpec *spec, const float *values) {
    Backend *be = m->be;
    const int index = (int)(spec - m->params.spec);
    const bool bf16 = m->shape.dtype == DTYPE_BF16;
    uint16_t *rounded = bf16 ? xmalloc(to_size(spec->elems) * sizeof *rounded) : NULL;
    for (int64_t i = 0; bf16 && i < spec->elems; ++i) rounded[i] = bf16_from_f32(values[i]);
    const unsigned char *stored = bf16 ? (const unsigned char *)rounded : (const unsigned char *)values;
    const size_t bytes = dtype_bytes(m->shape.dtype);
    if (m->weights != NULL)
        be->upload(be, (unsigned char *)m->weights + to_size(spec->offset) * bytes, stored, to_size(spec->elems) * bytes);
    for (int i = 0; i < m->part.pieces; ++i) {
        const Piece *piece = &m->part.piece[i];
        if (piece->param != index) continue;
        const size_t count = to_size(piece->count), first = to_size(piece->first);
        if (m->weights == NULL) be->upload(be, model_weight(m, piece), stored + first * bytes, count * bytes);
        if (bf16 && m->master != NULL)
            be->upload(be, model_master(m, piece), values + first, count * sizeof(float));
    }
    free(rounded);
}

bool model_put_param(void *context, const ParamSpec *spec, const float *values, Error *err) {
    (void)err;
    model_set_param(context, spec, values);
    return true;
}

void model_get_param(const Model *m, const ParamSpec *spec, int64_t first, int64_t count, float *values) {
    CHECK(first >= 0 && count >= 0 && first + count <= spec->elems, "%s: first=%lld count=%lld", spec->name,
          (long long)first, (long long)count);
    size_t elems = to_size(count), bytes = dtype_bytes(m->shape.dtype);
    int bucket = partition_bucket_of(&m->params, (int)(spec - m->params.spec));
    int64_t within = spec->offset - m->part.bucket[bucket].first + first;
    m->be->download(m->be, values, m->bucket_weights[bucket] + to_size(within) * bytes, elems * bytes);
    if (m->shape.dtype == DTYPE_F32) return;
    // Widened in place, from the end, so that no half is overwritten unread.
    for (size_t i = elems; i-- > 0;) {
        uint16_t half;
        memcpy(&half, (const unsigned char *)values + i * sizeof half, sizeof half);
        values[i] = bf16_to_f32(half);
    }
}

void model_reset_grads(Model *m) {
    Backend *be = m->be;
    const Partition *part = &m->part;
    for (int b = 0; b < part->buckets; ++b)
        be->zero(be, m->bucket_grads[b], to_size(part->bucket[b].elems) * sizeof(float));
    for (int i = 0; i < m->lane_levels; ++i) be->zero(be, m->lane_sums[i], to_size(m->lane_elems) * sizeof(float));
    if (part->options.stage >= 2 && !part->options.lanes)
        be->zero(be, m->owned_grads, to_size(part->packed_elems) * sizeof(float));
}

void model_init_weights(Model *m, uint64_t seed) {
    int64_t largest = 0;
    for (int i = 0; i < m->params.count; ++i) largest = max_i64(largest, m->params.spec[i].elems);
    float *values = xmalloc(to_size(largest) * sizeof *values);
    for (int i = 0; i < m->params.count; ++i) {
        params_init_values(&m->params.spec[i], seed, values);
        model_set_param(m, &m->params.spec[i], values);
    }
    free(values);
}

// ---------------------------------------------------------------------------------------------------------------
// The three products of a linear layer with weight w (out,in)

// The head's products keep their inputs: what rounding does to logits goes into the loss at once.
static Fp8Role fp8_role(const Model *m, Tensor weight, Fp8Role role) {
    const bool head = weight.data == m->w.head.data || weight.data == m->g.head.data;
    return m->shape.fp8 && !head ? role : FP8_NONE;
}

// out = x w^T + bias [+ residual], or act(x w^T + bias) with the pre-activation kept.
static void linear_forward(Model *m, Tensor out, Tensor x, Tensor w, Tensor bias, Tensor residual, Activation act,
                           Tensor pre) {
    MatmulArgs args = {.trans_b = true, .alpha = 1, .beta = 1, .add = residual, .bias = bias, .act = act, .pre = pre};
    args.fp8 = fp8_role(m, w, FP8_FORWARD);
    m->be->matmul(m->be, out, x, w, args);
}
// dx = dout w [times act'(pre)].
static void linear_backward_input(Model *m, Tensor dx, Tensor dout, Tensor w, Activation act_grad, Tensor pre) {
    MatmulArgs args = {.alpha = 1, .act_grad = act_grad, .pre = pre, .fp8 = fp8_role(m, w, FP8_BACKWARD)};
    m->be->matmul(m->be, dx, dout, w, args);
}
// dw {=, +=} dout^T x; dbias {=, +=} column sums of dout.
static void linear_backward_weight(Model *m, Tensor dw, Tensor dbias, Tensor dout, Tensor x, bool accumulate) {
    MatmulArgs args = {.trans_a = true, .alpha = 1, .beta = 1, .add = accumulate ? dw : TENSOR_NONE};
    args.sums = dbias;
    args.accumulate_sums = accumulate;
    args.fp8 = fp8_role(m, dw, FP8_BACKWARD);
    m->be->matmul(m->be, dw, dout, x, args);
}

// ---------------------------------------------------------------------------------------------------------------
// One block

static AttentionArgs attention_args(const Model *m) {
    const ModelConfig *c = &m->config;
    AttentionArgs args = {.B = m->B,
                          .T = m->T,
                          .NH = c->NH,
                          .NKV = c->NKV,
                          .HS = c->HS,
                          .scale = 1.0f / sqrtf((float)c->HS),
                          .window = c->window};
    if (m->has_doc) args.doc = tensor_2d(m->in->doc.data, DTYPE_I32, m->B, m->T);
    if (m->has_prefix) args.prefix = tensor_2d(m->in->prefix.data, DTYPE_U8, m->B, m->T);
    return args;
}

static QkArgs qk_args(const Model *m, const BlockTensors *w) {
    const ModelConfig *c = &m->config;
    return (QkArgs){.NH = c->NH,
                    .NKV = c->NKV,
                    .HS = c->HS,
                    .use_rope = c->position == POSITION_ROPE,
                    .cos = m->rope_cos,
                    .sin = m->rope_sin,
                    .q_weight = w->q_norm_w,
                    .k_weight = w->k_norm_w,
                    .eps = c->norm_eps};
}

// The first N rows of every tensor of a block, for a batch smaller than the largest.
static Tensor rows_of(Tensor t, int64_t N) { return tensor_is_none(t) ? t : tensor_rows(t, 0, N); }
static BlockActs acts_for(const BlockActs *a, int64_t N) {
    return (BlockActs){.norm1 = rows_of(a->norm1, N),
                       .norm1_mean = rows_of(a->norm1_mean, N),
                       .norm1_rstd = rows_of(a->norm1_rstd, N),
                       .qkv_raw = rows_of(a->qkv_raw, N),
                       .qk_rstd = rows_of(a->qk_rstd, N),
                       .qkv = rows_of(a->qkv, N),
                       .att = rows_of(a->att, N),
                       .lse = rows_of(a->lse, N),
                       .mid = rows_of(a->mid, N),
                       .norm2 = rows_of(a->norm2, N),
                       .norm2_mean = rows_of(a->norm2_mean, N),
                       .norm2_rstd = rows_of(a->norm2_rstd, N),
                       .fc_pre = rows_of(a->fc_pre, N),
                       .fc = rows_of(a->fc, N)};
}
// lse is stored (N,NH) for its size; attention sees it as (B,NH,T).
static Tensor lse_view(const Model *m, Tensor lse) {
    return tensor_3d(lse.data, DTYPE_F32, m->B, m->config.NH, m->T);
}

// h_{l+1} = block(h_l). start >= 0: incremental decoding, this block's cache takes part at that position.
static void block_forward(Model *m, int64_t l, int64_t start) {
    Backend *be = m->be;
    const ModelConfig *c = &m->config;
    const BlockTensors *w = &m->w.block[l];
    int64_t N = m->B * m->T;
    BlockActs a = acts_for(&m->acts[l], N);
    Tensor in = tensor_rows(m->h[l], 0, N), out = tensor_rows(m->h[l + 1], 0, N);
    NormArgs norm = {.kind = c->norm, .eps = c->norm_eps};

    be->norm_forward(be, a.norm1, a.norm1_mean, a.norm1_rstd, in, w->norm1_w, w->norm1_b, norm);
    linear_forward(m, a.qkv_raw, a.norm1, w->qkv_w, w->qkv_b, TENSOR_NONE, ACT_NONE, TENSOR_NONE);
    be->qk_forward(be, a.qkv, a.qk_rstd, a.qkv_raw, tensor_rows(m->positions, 0, N), qk_args(m, w));
    if (start < 0) be->attention_forward(be, a.att, lse_view(m, a.lse), a.qkv, attention_args(m));
    else be->attention_decode(be, a.att, m->k_cache[l], m->v_cache[l], a.qkv, start, attention_args(m));
    linear_forward(m, a.mid, a.att, w->attn_proj_w, w->attn_proj_b, in, ACT_NONE, TENSOR_NONE);

    be->norm_forward(be, a.norm2, a.norm2_mean, a.norm2_rstd, a.mid, w->norm2_w, w->norm2_b, norm);
    if (is_gated(m)) {
        linear_forward(m, a.fc_pre, a.norm2, w->fc_w, w->fc_b, TENSOR_NONE, ACT_NONE, TENSOR_NONE);
        be->activation_forward(be, a.fc, a.fc_pre, c->activation);
    } else {
        linear_forward(m, a.fc, a.norm2, w->fc_w, w->fc_b, TENSOR_NONE, c->activation, a.fc_pre);
    }
    linear_forward(m, out, a.fc, w->mlp_proj_w, w->mlp_proj_b, a.mid, ACT_NONE, TENSOR_NONE);
}

// The normalized inputs and the activation's output again, from what was kept. (The activation starts from the stored
// pre-activation here and, inside the forward's product, from the unrounded one; on a GPU a library computes the latter.
// So the last bit of an ungated activation may differ.)
static void block_recompute(Model *m, int64_t l) {
    Backend *be = m->be;
    const BlockTensors *w = &m->w.block[l];
    int64_t N = m->B * m->T;
    BlockActs a = acts_for(&m->acts[l], N);
    NormArgs norm = {.kind = m->config.norm, .eps = m->config.norm_eps};
    be->norm_forward(be, a.norm1, a.norm1_mean, a.norm1_rstd, tensor_rows(m->h[l], 0, N), w->norm1_w, w->norm1_b,
                     norm);
    be->norm_forward(be, a.norm2, a.norm2_mean, a.norm2_rstd, a.mid, w->norm2_w, w->norm2_b, norm);
    be->activation_forward(be, a.fc, a.fc_pre, m->config.activation);
}

// On entry dh is the gradient of h_{l+1}, on return that of h_l.
static void block_backward(Model *m, int64_t l, bool accumulate) {
    Backend *be = m->be;
    const ModelConfig *c = &m->config;
    const BlockTensors *w = &m->w.block[l], *g = &m->g.block[l];
    int64_t N = m->B * m->T, qkv_width = model_config_qkv_width(c);
    DType dtype = m->shape.dtype;
    BlockActs a = acts_for(&m->acts[l], N);
    Tensor in = tensor_rows(m->h[l], 0, N), dh = tensor_rows(m->dh, 0, N), dnorm = tensor_rows(m->dnorm, 0, N);
    NormArgs norm = {.kind = c->norm, .eps = c->norm_eps};

    // feed-forward. dfc_pre of a gated layer replaces fc_pre, which nobody reads again.
    Tensor dfc = tensor_2d(m->dwide.data, dtype, N, c->F), dfc_pre = dfc;
    linear_backward_weight(m, g->mlp_proj_w, g->mlp_proj_b, dh, a.fc, accumulate);
    if (is_gated(m)) {
        linear_backward_input(m, dfc, dh, w->mlp_proj_w, ACT_NONE, TENSOR_NONE);
        dfc_pre = a.fc_pre;
        be->activation_backward(be, dfc_pre, dfc, a.fc_pre, c->activation);
    } else {
        linear_backward_input(m, dfc_pre, dh, w->mlp_proj_w, c->activation, a.fc_pre);
    }
    linear_backward_weight(m, g->fc_w, g->fc_b, dfc_pre, a.norm2, accumulate);
    linear_backward_input(m, dnorm, dfc_pre, w->fc_w, ACT_NONE, TENSOR_NONE);
    be->norm_backward(be, dh, g->norm2_w, g->norm2_b, dnorm, a.mid, w->norm2_w, a.norm2_mean, a.norm2_rstd, true,
                      accumulate, norm);

    // attention
    Tensor dqkv = tensor_2d(m->dwide.data, dtype, N, qkv_width);
    unsigned char *after_dqkv = (unsigned char *)m->dwide.data + tensor_bytes(dqkv);
    Tensor datt = tensor_2d(after_dqkv, dtype, N, c->NH * c->HS);
    linear_backward_weight(m, g->attn_proj_w, g->attn_proj_b, dh, a.att, accumulate);
    linear_backward_input(m, datt, dh, w->attn_proj_w, ACT_NONE, TENSOR_NONE);
    be->attention_backward(be, dqkv, datt, a.qkv, a.att, lse_view(m, a.lse), attention_args(m));
    be->qk_backward(be, dqkv, g->q_norm_w, g->k_norm_w, dqkv, a.qkv_raw, a.qk_rstd, tensor_rows(m->positions, 0, N),
                    accumulate, qk_args(m, w));
    linear_backward_weight(m, g->qkv_w, g->qkv_b, dqkv, a.norm1, accumulate);
    linear_backward_input(m, dnorm, dqkv, w->qkv_w, ACT_NONE, TENSOR_NONE);
    be->norm_backward(be, dh, g->norm1_w, g->norm1_b, dnorm, in, w->norm1_w, a.norm1_mean, a.norm1_rstd, true,
                      accumulate, norm);
}

// ---------------------------------------------------------------------------------------------------------------
// The whole model

static void upload_positions(Model *m, int64_t N, int64_t T, int64_t start) {
    int32_t *positions = xmalloc(to_size(N) * sizeof *positions);
    for (int64_t i = 0; i < N; ++i) positions[i] = (int32_t)(start + i % T);
    m->be->upload(m->be, m->positions.data, positions, to_size(N) * sizeof *positions);
    free(positions);
}

// Into the input set whose turn it is, in one transfer.
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
        memcpy(in->host + input_span(in, last) - tensor_bytes(last), parts[i].from, tensor_bytes(last));
    }
    in->sent = be->upload_after(be, in->loss_scale.data, in->host, input_span(in, last), in->used);
    // Positions depend on the row length alone; they are sent once for the largest batch and stay.
    if (m->position_T != batch->T) {
        upload_positions(m, m->shape.max_rows, batch->T, 0);
        m->position_T = batch->T;
    }
}

// Names what a pass over this batch consists of: passes of one key issue the same operations on the same tensors.
static uint64_t sequence_key(const Model *m, const char *pass, bool accumulate) {
    char text[128];
    snprintf(text, sizeof text, "%s %lld %lld %d %d %d %d", pass, (long long)m->B, (long long)m->T, m->has_doc,
             m->has_prefix, m->in == &m->inputs[0], accumulate);
    return rng_hash(text);
}

// A pass is one sequence where nobody looks in between, else a sequence for each bucket's part of it.
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

// h_0 ... h_L and the final norm.
static void trunk_forward(Model *m, int64_t start) {
    Backend *be = m->be;
    const char *pass = "trunk";
    int64_t N = m->B * m->T;
    need_weights(m, first_bucket(), PASS_FORWARD);
    if (!part_begin(m, pass, first_bucket(), false)) {
        be->embedding_forward(be, tensor_rows(m->h[0], 0, N), tensor_rows(m->in->tokens, 0, N),
                              tensor_rows(m->positions, 0, N), m->w.wte, m->w.wpe);
        part_end(m, pass, first_bucket(), false);
    }
    for (int64_t l = 0; l < m->config.L; ++l) {
        need_weights(m, block_bucket(l), PASS_FORWARD);
        if (part_begin(m, pass, block_bucket(l), false)) continue;
        block_forward(m, l, start);
        part_end(m, pass, block_bucket(l), false);
    }
    need_weights(m, last_bucket(m), PASS_FORWARD);
    be->norm_forward(be, tensor_rows(m->norm_f, 0, N), rows_of(m->norm_f_mean, N), tensor_rows(m->norm_f_rstd, 0, N),
                     tensor_rows(m->h[m->config.L], 0, N), m->w.norm_f_w, m->w.norm_f_b,
                     (NormArgs){.kind = m->config.norm, .eps = m->config.norm_eps});
}

static Tensor head_forward(Model *m, int64_t first, int64_t rows) {
    Tensor logits = tensor_rows(m->logits, 0, rows);
    linear_forward(m, logits, tensor_rows(m->norm_f, first, rows), m->w.head, TENSOR_NONE, TENSOR_NONE, ACT_NONE,
                   TENSOR_NONE);
    return logits;
}

void model_begin_step(Model *m) {
    m->grads_fresh = true;
    m->micro_batch = 0;
    m->be->zero(m->be, m->loss_sums.data, tensor_bytes(m->loss_sums));
}

// Whether this micro-batch adds to the gradients of the blocks, or of what is outside of them, that it finds.
static bool adds_to_blocks(const Model *m) {
    return !m->grads_fresh && !m->part.options.lanes && m->part.options.stage < 2;
}
static bool adds_outside(const Model *m) { return !m->grads_fresh && !m->part.options.lanes; }

// Logits, loss and, in training, their gradient and the head's, chunk by chunk.
static void loss_forward(Model *m, bool train) {
    Backend *be = m->be;
    int64_t N = m->B * m->T;
    CrossEntropyArgs args = {.V = m->config.V,
                             .softcap = m->config.logit_softcap,
                             .want_grad = train,
                             .loss_scale = m->in->loss_scale};
    for (int64_t first = 0; first < N; first += m->shape.loss_chunk_rows) {
        int64_t rows = min_i64(m->shape.loss_chunk_rows, N - first);
        Tensor logits = head_forward(m, first, rows);
        be->cross_entropy(be, tensor_rows(m->nll, first, rows), logits, tensor_rows(m->in->targets, first, rows),
                          tensor_rows(m->in->weight, first, rows), args);
        if (!train) continue;
        linear_backward_input(m, tensor_rows(m->dnorm, first, rows), logits, m->w.head, ACT_NONE, TENSOR_NONE);
        linear_backward_weight(m, m->g.head, TENSOR_NONE, logits, tensor_rows(m->norm_f, first, rows),
                               first > 0 || adds_outside(m));
    }
}

void model_forward(Model *m, const Batch *batch, double loss_scale, bool train) {
    Backend *be = m->be;
    CHECK(!train || m->shape.training, "this model was laid out without gradients%s", "");
    CHECK(m->micro_batch < m->shape.micro_batches, "micro-batch %lld of %lld", (long long)m->micro_batch,
          (long long)m->shape.micro_batches);
    upload_batch(m, batch, loss_scale);
    m->replays = true;
    const char *pass = train ? "forward" : "evaluate";
    uint64_t key = sequence_key(m, pass, adds_outside(m));
    if (m->hooks.context != NULL) {
        trunk_forward(m, -1);
        if (!part_begin(m, pass, last_bucket(m), adds_outside(m))) {
            loss_forward(m, train);
            part_end(m, pass, last_bucket(m), adds_outside(m));
        }
    } else if (!be->sequence_begin(be, key)) {
        trunk_forward(m, -1);
        loss_forward(m, train);
        be->sequence_end(be, key);
    }
    m->replays = false;
    int64_t N = m->B * m->T;
    be->weighted_sum(be, tensor_rows(m->loss_sums, m->micro_batch, 1), tensor_rows(m->nll, 0, N),
                     tensor_rows(m->in->weight, 0, N), !train);
    m->micro_batch += train;
}

static void trunk_backward(Model *m) {
    Backend *be = m->be;
    const ModelConfig *c = &m->config;
    const char *pass = "backward";
    const bool accumulate = adds_outside(m);
    int64_t N = m->B * m->T;
    Tensor dh = tensor_rows(m->dh, 0, N);
    need_weights(m, last_bucket(m), PASS_BACKWARD);
    be->norm_backward(be, dh, m->g.norm_f_w, m->g.norm_f_b, tensor_rows(m->dnorm, 0, N),
                      tensor_rows(m->h[c->L], 0, N), m->w.norm_f_w, rows_of(m->norm_f_mean, N),
                      tensor_rows(m->norm_f_rstd, 0, N), false, accumulate,
                      (NormArgs){.kind = c->norm, .eps = c->norm_eps});
    finish_gradients(m, last_bucket(m));
    for (int64_t l = c->L - 1; l >= 0; --l) {
        need_weights(m, block_bucket(l), PASS_BACKWARD);
        begin_gradients(m, block_bucket(l));
        if (!part_begin(m, pass, block_bucket(l), adds_to_blocks(m))) {
            // What the last block computed is still there.
            if (m->shape.recompute == RECOMPUTE_BLOCK && l < c->L - 1) block_forward(m, l, -1);
            if (m->shape.recompute == RECOMPUTE_NORM_ACT && l < c->L - 1) block_recompute(m, l);
            block_backward(m, l, adds_to_blocks(m));
            part_end(m, pass, block_bucket(l), adds_to_blocks(m));
        }
        finish_gradients(m, block_bucket(l));
    }
    need_weights(m, first_bucket(), PASS_BACKWARD);
    // The embedding's gradient only adds; where the head has not just overwritten it, it starts from zero.
    if (!accumulate && !c->tied) be->zero(be, m->g.wte.data, tensor_bytes(m->g.wte));
    if (!accumulate && !tensor_is_none(m->g.wpe)) be->zero(be, m->g.wpe.data, tensor_bytes(m->g.wpe));
    be->embedding_backward(be, m->g.wte, m->g.wpe, dh, tensor_rows(m->in->tokens, 0, N),
                           tensor_rows(m->positions, 0, N));
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

double model_loss_sum(Model *m) {
    double sum = 0, *sums = xmalloc(tensor_bytes(m->loss_sums));
    m->be->download(m->be, sums, m->loss_sums.data, tensor_bytes(m->loss_sums));
    for (int64_t i = 0; i < m->shape.micro_batches; ++i) sum += sums[i];
    free(sums);
    return sum;
}

// ---------------------------------------------------------------------------------------------------------------
// Logits for people who ask for them

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
