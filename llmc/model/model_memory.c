// model_memory.c: the memory of a model: layout of weights, gradients, activations and inputs in the arena, RoPE tables,
// reading and writing of parameters. It walks the rows of model_table.c.
// Must not know: a single tensor of a block, the operations of a pass.
#include <math.h>
#include <stdlib.h>

#include "llmc/base/rng.h"
#include "llmc/backend/tensor_host.h"
#include "llmc/model/model_impl.h"

// ---------------------------------------------------------------------------------------------------------------
// Layout

// An array with one element for each parameter element: the address of each of its buckets (NULL while measuring).
typedef struct {
    unsigned char *const *bucket;
    DType dtype;
} ParamArray;

static Tensor spec_view(const Model *m, ParamArray array, const ParamSpec *spec) {
    int bucket = partition_bucket_of(&m->params, (int)(spec - m->params.spec));
    ParamSpec within = *spec;
    within.offset -= m->part.bucket[bucket].first;
    return params_view(&within, array.bucket[bucket], array.dtype);
}

static Tensor *tensor_at(void *owner, size_t field) { return (Tensor *)(void *)((unsigned char *)owner + field); }

// Sets the tensors that the passes use, at the offsets that the table gives. Absent ones stay TENSOR_NONE.
static void bind_params(Model *m, ParamArray array, bool gradients) {
    ModelTensors *t = &m->t;
    for (int i = 0; i < m->params.count; ++i) {
        const ParamSpec *spec = &m->params.spec[i];
        const ParamRow *row = &PARAM_ROWS[spec->role];
        void *owner = row->place == PLACE_BLOCK ? (void *)&t->block[spec->layer] : (void *)t;
        *tensor_at(owner, gradients ? row->grad : row->value) = spec_view(m, array, spec);
        if (row->fp8 > 0) *(bool *)((unsigned char *)owner + row->fp8) = m->shape.fp8;
    }
    if (!m->config.tied) return;
    t->head.w = t->wte.w;
    t->head.dw = t->wte.dw;
}

// Sets the address of each bucket. Either all are in one flat array, or (in_buffers) the buckets outside the blocks have
// their own memory and the blocks alternate between two buffers.
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
    bind_params(m, (ParamArray){m->bucket_weights, m->shape.dtype}, false);
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
    bind_params(m, (ParamArray){m->bucket_grads, DTYPE_F32}, true);
}

// first [ACT_ROW_COUNT]: for each row the tensor of the first block that has one; later blocks share it if the row says so.
static void layout_block_acts(Model *m, int layer, Tensor *first, Arena *arena) {
    for (int i = 0; i < ACT_ROW_COUNT; ++i) {
        const ActRow *row = &ACT_ROWS[i];
        if (row->when != NULL && !row->when(&m->config, layer)) continue;
        const bool shared = !m->shape.training || m->shape.recompute >= row->shared_from;
        Tensor t = first[i];
        if (tensor_is_none(t) || !shared)
            t = arena_tensor(arena, "activations", row->type == ACT_F32 ? DTYPE_F32 : m->shape.dtype,
                             row->cols == DIM_NONE ? 1 : 2, m->shape.max_rows, model_dim(&m->config, row->cols), 0, 0);
        if (tensor_is_none(first[i])) first[i] = t;
        *tensor_at(&m->acts[layer], row->field) = t;
    }
}

static void layout_activations(Model *m, Arena *arena) {
    const ModelConfig *c = &m->config;
    const char *tag = "activations";
    DType dtype = m->shape.dtype;
    int64_t N = m->shape.max_rows;
    m->h = xcalloc(to_size(c->L + 1), sizeof *m->h);
    m->acts = xcalloc(to_size(c->L), sizeof *m->acts);
    for (int64_t l = 0; l <= c->L; ++l)
        m->h[l] = l == 0 || m->shape.training ? arena_tensor(arena, tag, dtype, 2, N, c->C, 0, 0) : m->h[0];
    Tensor *first = xcalloc((size_t)ACT_ROW_COUNT, sizeof *first);
    for (int l = 0; l < c->L; ++l) layout_block_acts(m, l, first, arena);
    free(first);
    m->norm_f.out = arena_tensor(arena, tag, dtype, 2, N, c->C, 0, 0);
    m->norm_f.mean = c->norm == NORM_LAYER ? arena_tensor(arena, tag, DTYPE_F32, 1, N, 0, 0, 0) : TENSOR_NONE;
    m->norm_f.rstd = arena_tensor(arena, tag, DTYPE_F32, 1, N, 0, 0, 0);
    m->nll = arena_tensor(arena, tag, DTYPE_F32, 1, N, 0, 0, 0);
    m->loss_sums = arena_tensor(arena, tag, DTYPE_F64, 1, m->shape.micro_batches, 0, 0, 0);
    m->logits = arena_tensor(arena, "logits", dtype, 2, min_i64(m->shape.loss_chunk_rows, N), c->Vp, 0, 0);
    if (!m->shape.training) return;
    int64_t wide = max_i64(c->F, model_dim(c, DIM_QKV) + model_dim(c, DIM_Q));
    m->dh = arena_tensor(arena, "activation gradients", dtype, 2, N, c->C, 0, 0);
    m->dnorm = arena_tensor(arena, "activation gradients", dtype, 2, N, c->C, 0, 0);
    m->dwide = arena_tensor(arena, "activation gradients", dtype, 1, N * wide, 0, 0, 0);
}

static void layout_inputs(Model *m, Arena *arena) {
    const ModelConfig *c = &m->config;
    const char *tag = "inputs";
    int64_t N = m->shape.max_rows;
    // Contiguous allocations: input_span relies on this.
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

// Frequency of pair i, with Llama-3.1's rescaling: long wavelengths are divided by `factor`, short ones kept, and those
// between interpolated linearly (Hugging Face, modeling_rope_utils.py, "llama3").
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
    for (int64_t i = 0; i < half && !m->be->counts_only; ++i) {
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

size_t input_span(const InputSet *in, Tensor last) {
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
    *m = (Model){.config = *config, .shape = *shape, .be = be, .objective = OBJECTIVE_DEFAULT};
    CHECK(shape->max_rows > 0 && shape->max_seq_len > 0 && shape->loss_chunk_rows > 0, "rows=%lld T=%lld chunk=%lld",
          (long long)shape->max_rows, (long long)shape->max_seq_len, (long long)shape->loss_chunk_rows);
    if (!shape->training || shape->ranks.data.world <= 1) {
        m->shape.ranks = (PartitionOptions){.data = MESH_ALONE, .lanes = shape->training && shape->ranks.lanes,
                                            .muon = shape->ranks.muon};
    }
    m->shape.micro_batches = max_i64(1, shape->micro_batches);
    params_build(&m->params, config);
    partition_build(&m->part, &m->params, &m->shape.ranks);
    m->t.block = xcalloc(to_size(config->L), sizeof *m->t.block);
    layout_weights(m, arena);
    if (shape->training) layout_grads(m, arena);
    layout_activations(m, arena);
    layout_inputs(m, arena);
    if (arena->backend == NULL) return;
    CHECK(be != NULL, "a model on a real arena needs a backend%s", "");
    // Norms and updates also walk the alignment gaps between tensors: these must stay zero.
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
    free(m->t.block);
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
    // Widened in place, from the end, so that no bf16 value is overwritten before it is read.
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
