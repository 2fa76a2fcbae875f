// zero.c: see zero.h. All operations are only issued; the host does not wait (a CPU backend computes at once).
#include "llmc/train/zero.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/tree_sum.h"

static int stage_of(const Zero *zero) { return zero->model->part.options.stage; }
static bool has_lanes(const Zero *zero) { return zero->model->part.options.lanes; }

static const char *bucket_label(char out[48], const char *verb, const Bucket *bucket, int index) {
    if (bucket->layer >= 0) snprintf(out, 48, "%s block.%d", verb, bucket->layer);
    else snprintf(out, 48, "%s %s", verb, index == 0 ? "embeddings" : "head");
    return out;
}

static float *bucket_grads(const Model *m, int b) { return (float *)m->bucket_grads[b]; }
static Tensor bucket_tensor(const Bucket *bucket, void *data, DType dtype) {
    return tensor_1d(data, dtype, bucket->elems);
}

static void wait_event(Zero *zero, CommEvent *event) {
    if (*event != 0) zero->comm->wait(zero->comm, *event);
    *event = 0;
}

// ---------------------------------------------------------------------------------------------------------------
// Weights

// Stage 3: copies this rank's share into the buffer, then gathers the shares of all ranks.
static void gather_bucket(Zero *zero, int b) {
    Model *m = zero->model;
    const Bucket *bucket = &m->part.bucket[b];
    const size_t bytes = dtype_bytes(m->shape.dtype);
    const unsigned char *own = (const unsigned char *)m->owned_weights + to_size(bucket->packed) * bytes;
    for (int i = 0; i < bucket->segments; ++i) {
        const CommSegment *segment = &bucket->segment[i];
        if (segment->owner != m->part.options.data.rank) continue;
        m->be->copy(m->be, m->bucket_weights[b] + to_size(segment->first) * bytes, own, to_size(segment->count) * bytes);
        own += to_size(segment->count) * bytes;
    }
    char label[48];
    zero->gathered[b] = zero->comm->all_gather(zero->comm, bucket_label(label, "gather", bucket, b),
                                               bucket_tensor(bucket, m->bucket_weights[b], m->shape.dtype),
                                               bucket->segment, bucket->segments);
}

static void begin_gather(Zero *zero, int b) {
    const Bucket *bucket = &zero->model->part.bucket[b];
    if (bucket->layer < 0) {
        bool *there = &zero->outside_gathered[b > 0];
        if (*there) return;
        *there = true;
    } else {
        int *holds = &zero->slot_bucket[bucket->layer % 2];
        if (*holds == b) return;
        *holds = b;
    }
    gather_bucket(zero, b);
}

static void on_weights_needed(void *context, int b, ModelPass pass) {
    Zero *zero = context;
    if (stage_of(zero) == 3) {
        begin_gather(zero, b);
        // Prefetch: the next bucket is gathered while this one computes.
        int next = pass == PASS_FORWARD ? b + 1 : b - 1;
        if (next >= 0 && next < zero->model->part.buckets) begin_gather(zero, next);
    }
    wait_event(zero, &zero->gathered[b]);
}

void zero_gather_weights(Zero *zero, int b) {
    if (stage_of(zero) == 3) begin_gather(zero, b);
    wait_event(zero, &zero->gathered[b]);
}

void zero_send_weights(Zero *zero) {
    Model *m = zero->model;
    if (stage_of(zero) == 3) {
        zero->slot_bucket[0] = zero->slot_bucket[1] = -1;
        zero->outside_gathered[0] = zero->outside_gathered[1] = false;
        return;
    }
    char label[48];
    for (int b = 0; b < m->part.buckets && stage_of(zero) > 0; ++b) {
        const Bucket *bucket = &m->part.bucket[b];
        zero->gathered[b] = zero->comm->all_gather(zero->comm, bucket_label(label, "gather", bucket, b),
                                                   bucket_tensor(bucket, m->bucket_weights[b], m->shape.dtype),
                                                   bucket->segment, bucket->segments);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Gradients

// Adds the lanes of this micro-batch (one for each rank) over the ranks, into the free level of the binary counter.
static void reduce_lane(Zero *zero, int b) {
    Model *m = zero->model;
    const Bucket *bucket = &m->part.bucket[b];
    float *out = m->lane_sums[tree_carries(zero->micro_batch)] + zero->lane_first[b];
    char label[48];
    zero->reduced[b] = zero->comm->reduce_scatter(
        zero->comm, bucket_label(label, "reduce", bucket, b), tensor_1d(out, DTYPE_F32, bucket->owned_elems),
        bucket_tensor(bucket, m->bucket_grads[b], DTYPE_F32), bucket->segment, bucket->segments,
        (CommSum){.tree = true, .wire = zero->wire});
}

static void reduce_bucket(Zero *zero, int b) {
    Model *m = zero->model;
    Comm *comm = zero->comm;
    const Bucket *bucket = &m->part.bucket[b];
    Tensor in = bucket_tensor(bucket, m->bucket_grads[b], DTYPE_F32), out = in;
    CommSum how = {.wire = zero->wire};
    char label[48];
    bucket_label(label, "reduce", bucket, b);
    if (stage_of(zero) == 0) {
        zero->reduced[b] = comm->all_reduce(comm, label, in, how);
        return;
    }
    if (stage_of(zero) >= 2) {
        out = tensor_1d(m->owned_grads + bucket->packed, DTYPE_F32, bucket->owned_elems);
        how.accumulate = bucket->layer >= 0 && zero->micro_batch > 0;
    }
    zero->reduced[b] = comm->reduce_scatter(comm, label, out, in, bucket->segment, bucket->segments, how);
}

static void on_gradients_begin(void *context, int b) {
    Zero *zero = context;
    int layer = zero->model->part.bucket[b].layer;
    // The reduction of the buffer's previous content must be complete.
    if (stage_of(zero) >= 2 && layer >= 0) wait_event(zero, &zero->slot_reduced[layer % 2]);
}

static void on_gradients_ready(void *context, int b) {
    Zero *zero = context;
    int layer = zero->model->part.bucket[b].layer;
    bool last = zero->micro_batch == zero->micro_batches - 1, every = stage_of(zero) >= 2 && layer >= 0;
    if (has_lanes(zero)) reduce_lane(zero, b);
    else if (last || every) reduce_bucket(zero, b);
    if (every) zero->slot_reduced[layer % 2] = zero->reduced[b];
}

// After a micro-batch's reductions: adds lower levels to higher ones, as a binary counter carries.
static void add_lanes(Zero *zero) {
    Model *m = zero->model;
    for (int b = 0; b < m->part.buckets; ++b) wait_event(zero, &zero->reduced[b]);
    int level = tree_carries(zero->micro_batch);
    for (int lower = 0; lower < level; ++lower) {
        Tensor sum = tensor_1d(m->lane_sums[level], DTYPE_F32, m->lane_elems);
        m->be->add(m->be, sum, tensor_1d(m->lane_sums[lower], DTYPE_F32, m->lane_elems), sum);
    }
}

// Adds the counter's remaining levels, the larger sum first in each addition; the result is in the highest level.
static float *finish_lanes(Zero *zero) {
    Model *m = zero->model;
    float *sum = NULL;
    for (int level = 0; (zero->micro_batches >> level) != 0; ++level) {
        if (((zero->micro_batches >> level) & 1) == 0) continue;
        Tensor higher = tensor_1d(m->lane_sums[level], DTYPE_F32, m->lane_elems);
        if (sum != NULL) m->be->add(m->be, higher, higher, tensor_1d(sum, DTYPE_F32, m->lane_elems));
        sum = m->lane_sums[level];
    }
    return sum;
}

// Stage 0: every rank updates all parameters, so every rank needs the sums of all segments.
static void spread_lanes(Zero *zero, const float *sum) {
    Model *m = zero->model;
    char label[48];
    for (int b = 0; b < m->part.buckets; ++b) {
        const Bucket *bucket = &m->part.bucket[b];
        const float *from = sum + zero->lane_first[b];
        for (int i = 0; i < bucket->segments; ++i) {
            const CommSegment *segment = &bucket->segment[i];
            if (segment->owner != m->part.options.data.rank) continue;
            m->be->copy(m->be, bucket_grads(m, b) + segment->first, from, to_size(segment->count) * sizeof(float));
            from += segment->count;
        }
        zero->reduced[b] = zero->comm->all_gather(zero->comm, bucket_label(label, "gather sums of", bucket, b),
                                                  bucket_tensor(bucket, m->bucket_grads[b], DTYPE_F32),
                                                  bucket->segment, bucket->segments);
    }
}

void zero_begin_step(Zero *zero, int64_t micro_batches) {
    zero->micro_batches = micro_batches;
    zero->micro_batch = 0;
}

void zero_begin_micro_batch(Zero *zero, int64_t micro_batch) {
    if (has_lanes(zero) && micro_batch > 0) add_lanes(zero);
    zero->micro_batch = micro_batch;
}

void zero_finish_gradients(Zero *zero) {
    Model *m = zero->model;
    if (has_lanes(zero)) {
        add_lanes(zero);
        float *sum = finish_lanes(zero);
        if (zero->comm->world > 1 && stage_of(zero) == 0) spread_lanes(zero, sum);
        else m->owned_grads = sum;
    }
    CommEvent losses = zero->comm->all_reduce(
        zero->comm, "reduce losses", tensor_rows(m->loss_sums, 0, zero->micro_batches), (CommSum){.tree = true});
    for (int b = 0; b < m->part.buckets; ++b) wait_event(zero, &zero->reduced[b]);
    zero->slot_reduced[0] = zero->slot_reduced[1] = 0;
    wait_event(zero, &losses);
}

void zero_sum_squares(Zero *zero, Tensor sums) {
    Model *m = zero->model;
    Backend *be = m->be;
    const Partition *part = &m->part;
    if (stage_of(zero) == 0 && !has_lanes(zero)) {
        be->sum_squares(be, sums, tensor_1d(m->grads, DTYPE_F32, m->params.total_elems));
        return;
    }
    bool all = stage_of(zero) == 0;
    int64_t index = 0;
    if (!all) be->zero(be, sums.data, tensor_bytes(sums));
    for (int b = 0; b < part->buckets; ++b) {
        const Bucket *bucket = &part->bucket[b];
        int64_t packed = bucket->packed;
        for (int i = 0; i < bucket->segments; ++i, ++index) {
            const CommSegment *segment = &bucket->segment[i];
            if (!all && segment->owner != part->options.data.rank) continue;
            float *at = m->owned_grads != NULL ? m->owned_grads + packed : bucket_grads(m, b) + segment->first;
            be->sum_squares(be, tensor_rows(sums, index, 1), tensor_1d(at, DTYPE_F32, segment->count));
            packed += segment->count;
        }
    }
    if (all) return;
    CommEvent event = zero->comm->all_reduce(zero->comm, "reduce norm", sums, (CommSum){.tree = true});
    wait_event(zero, &event);
}

// ---------------------------------------------------------------------------------------------------------------

void zero_init(Zero *zero, Model *model, Comm *comm, DType wire) {
    const Partition *part = &model->part;
    *zero = (Zero){.model = model, .comm = comm, .wire = wire, .slot_bucket = {-1, -1}};
    CHECK(comm->world == part->options.data.world && comm->rank == part->options.data.rank,
          "rank %d of %d, planned %d of %d", comm->rank, comm->world, part->options.data.rank,
          part->options.data.world);
    zero->reduced = xcalloc((size_t)part->buckets, sizeof *zero->reduced);
    zero->gathered = xcalloc((size_t)part->buckets, sizeof *zero->gathered);
    zero->lane_first = xcalloc((size_t)part->buckets, sizeof *zero->lane_first);
    for (int b = 1; b < part->buckets; ++b)
        zero->lane_first[b] = zero->lane_first[b - 1] + part->bucket[b - 1].owned_elems;
    if (strcmp(comm->kind, "none") == 0 && !part->options.lanes) return;
    model->hooks = (ModelHooks){zero, on_weights_needed, on_gradients_begin, on_gradients_ready};
}

void zero_free(Zero *zero) {
    free(zero->reduced);
    free(zero->gathered);
    free(zero->lane_first);
    *zero = (Zero){0};
}
