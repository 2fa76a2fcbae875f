// snapshot.c: see snapshot.h.
#include "llmc/checkpoint/snapshot.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN_BYTES ((size_t)64)

static size_t state_width(const StatePiece *piece) { return dtype_bytes(STATE_ROWS[piece->kind].dtype); }
static size_t state_bytes(const StatePiece *piece) { return to_size(piece->count) * state_width(piece); }

// Lists the tensors that the rank writes and their offsets in the block.
static void lay_out(Snapshot *s) {
    const SnapshotShape *shape = &s->shape;
    const PartitionOptions *ranks = &shape->ranks;
    s->weight_count = model_file_shard_ranges(&s->weights, shape->arch, shape->params, ranks->data.rank, ranks->data.world);
    s->state_count = state_pieces(&s->state, shape->params, ranks, &shape->kept);
    s->weight_at = xcalloc((size_t)s->weight_count + 1, sizeof *s->weight_at);
    s->state_at = xcalloc((size_t)s->state_count + 1, sizeof *s->state_at);
    for (int i = 0; i < s->weight_count; ++i) {
        s->weight_at[i] = s->bytes;
        s->bytes += to_size(s->weights[i].count) * dtype_bytes(shape->dtype);
        s->bytes = (s->bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    }
    for (int i = 0; i < s->state_count; ++i) {
        s->state_at[i] = s->bytes;
        s->bytes += state_bytes(&s->state[i]);
        s->bytes = (s->bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    }
}

void snapshot_close(Snapshot *s) {
    if (s->block != NULL) {
        s->be->wait(s->be, s->copied, NULL);
        s->be->host_free(s->be, s->block);
    }
    free(s->pieces);
    free(s->weights);
    free(s->state);
    free(s->weight_at);
    free(s->state_at);
    *s = (Snapshot){0};
}

size_t snapshot_plan_bytes(const SnapshotShape *shape) {
    Snapshot s = {.shape = *shape};
    lay_out(&s);
    size_t bytes = s.bytes;
    snapshot_close(&s);
    return bytes;
}

bool snapshot_open(Snapshot *s, const SnapshotShape *shape, Backend *be, const atomic_bool *cancelled, Error *err) {
    *s = (Snapshot){.shape = *shape, .be = be, .cancelled = cancelled};
    lay_out(s);
    s->pieces = xcalloc((size_t)(s->weight_count > s->state_count ? s->weight_count : s->state_count) + 1,
                        sizeof *s->pieces);
    s->block = be->host_alloc(be, s->bytes, err);
    if (s->block == NULL) {
        error_prefix(err, "the snapshot from which checkpoints are written (async_save=false does not need it)");
        snapshot_close(s);
        return false;
    }
    memset(s->block, 0, s->bytes);  // makes the pages resident before the first step, not at the first checkpoint
    return true;
}

void *snapshot_state_address(const Model *model, const Optimizer *optimizer, const StatePiece *state) {
    const Partition *part = &model->part;
    for (int i = 0; i < part->pieces; ++i) {
        const Piece *piece = &part->piece[i];
        int64_t within = state->first - piece->first;
        if (piece->param != state->param || within < 0 || within >= piece->count) continue;
        // In stage 0 the parts of a parameter are contiguous.
        CHECK(within + state->count <= piece->count || part->options.stage == 0, "param %d: elements %lld to %lld",
              state->param, (long long)state->first, (long long)(state->first + state->count));
        unsigned char *elements = STATE_ROWS[state->kind].address(model, optimizer, piece);
        return elements + to_size(within) * state_width(state);
    }
    CHECK(false, "param %d: element %lld is not this rank's", state->param, (long long)state->first);
    return NULL;
}

static Ticket copy_weights(const Snapshot *s, const Model *model, int bucket, int first, int end) {
    const size_t width = dtype_bytes(s->shape.dtype);
    for (int i = first; i < end; ++i) {
        const ParamRange *range = &s->weights[i];
        int64_t within = model->params.spec[range->param].offset + range->first - model->part.bucket[bucket].first;
        s->pieces[i] = (DownloadPiece){s->block + s->weight_at[i],
                                       model->bucket_weights[bucket] + to_size(within) * width,
                                       to_size(range->count) * width};
    }
    return s->be->download_begin(s->be, s->pieces + first, end - first);
}

// Weights are copied bucket by bucket, because in stage 3 they are gathered into buffers that later buckets reuse. The
// optimizer state, the largest part, is copied last: only the next update waits for it.
void snapshot_begin(Snapshot *s, const Model *model, const Optimizer *optimizer, Zero *zero) {
    Backend *be = s->be;
    int next = 0;
    for (int b = 0; b < model->part.buckets; ++b) {
        zero_gather_weights(zero, b);
        const Bucket *bucket = &model->part.bucket[b];
        int first = next;
        for (; next < s->weight_count; ++next) {
            const ParamRange *range = &s->weights[next];
            if (model->params.spec[range->param].offset + range->first >= bucket->first + bucket->elems) break;
        }
        Ticket copied = copy_weights(s, model, b, first, next);
        if (model->part.options.stage == 3) be->after(be, copied);
    }
    CHECK(next == s->weight_count, "%d of %d weights", next, s->weight_count);
    for (int i = 0; i < s->state_count; ++i)
        s->pieces[i] = (DownloadPiece){s->block + s->state_at[i],
                                       snapshot_state_address(model, optimizer, &s->state[i]),
                                       state_bytes(&s->state[i])};
    // This ticket, even if it copies nothing, passes only after the gathers, in which other ranks wait for this one.
    s->copied = be->download_begin(be, s->pieces, s->state_count);
}

void snapshot_before_update(const Snapshot *s) { s->be->after(s->be, s->copied); }
bool snapshot_is_there(const Snapshot *s) { return s->be->has_passed(s->be, s->copied); }
bool snapshot_wait(const Snapshot *s, Error *err) { return s->be->wait(s->be, s->copied, err); }

// ---- readers ----

static bool is_cancelled(const Snapshot *s, Error *err) {
    if (s->cancelled == NULL || !atomic_load(s->cancelled)) return false;
    error_set(err, "%s", "");  // the rank that failed reports the reason
    return true;
}

bool snapshot_get_weights(void *context, const ParamSpec *spec, int64_t first, int64_t count, float *out,
                          Error *err) {
    Snapshot *s = context;
    if (is_cancelled(s, err)) return false;
    int param = (int)(spec - s->shape.params->spec);
    for (int i = 0; i < s->weight_count; ++i) {
        const ParamRange *range = &s->weights[i];
        if (range->param != param) continue;
        CHECK(first >= range->first && first + count <= range->first + range->count, "%s: elements %lld to %lld",
              spec->name, (long long)first, (long long)(first + count));
        const unsigned char *from = s->block + s->weight_at[i];
        if (s->shape.dtype == DTYPE_F32) {
            memcpy(out, (const float *)(const void *)from + (first - range->first), to_size(count) * sizeof *out);
            return true;
        }
        const uint16_t *half = (const uint16_t *)(const void *)from + (first - range->first);
        for (int64_t e = 0; e < count; ++e) out[e] = bf16_to_f32(half[e]);
        return true;
    }
    CHECK(false, "%s is not in this snapshot", spec->name);
    return false;
}

const void *snapshot_fetch_state(void *context, int index, int64_t first, int64_t count, Error *err) {
    Snapshot *s = context;
    (void)count;
    if (is_cancelled(s, err)) return NULL;
    return s->block + s->state_at[index] + to_size(first) * state_width(&s->state[index]);
}
