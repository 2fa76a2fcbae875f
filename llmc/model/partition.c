// partition.c: see partition.h.
#include "llmc/model/partition.h"

#include <stdlib.h>

bool partition_check(const PartitionOptions *options, Error *err) {
    int world = options->data.world;
    if (!options->lanes || (world <= PARTITION_GRAINS && (world & (world - 1)) == 0)) return true;
    return error_set(err, "deterministic=lanes: expected 1, 2, 4, 8 or %d ranks, found %d: it sums in a full binary "
                          "tree; use deterministic=run for other numbers of ranks", PARTITION_GRAINS, world);
}

static int64_t block_count(const ParamTable *params) {
    int64_t blocks = 0;
    for (int i = 0; i < params->count; ++i) blocks = max_i64(blocks, params->spec[i].layer + 1);
    return blocks;
}

static int bucket_index(const ParamSpec *spec, int64_t blocks) {
    if (spec->layer >= 0) return 1 + spec->layer;
    return PARAM_ROWS[spec->role].place == PLACE_BACK ? (int)blocks + 1 : 0;
}

int partition_bucket_of(const ParamTable *params, int param) {
    return bucket_index(&params->spec[param], block_count(params));
}

// Buckets are contiguous in the flat arrays: a bucket ends where the next begins.
static void lay_out_buckets(Partition *p, const ParamTable *params) {
    int64_t blocks = block_count(params);
    p->buckets = (int)blocks + 2;
    p->bucket = xcalloc((size_t)p->buckets, sizeof *p->bucket);
    int64_t end = 0;
    int previous = 0;
    for (int i = 0; i < params->count; ++i) {
        const ParamSpec *spec = &params->spec[i];
        int index = bucket_index(spec, blocks);
        CHECK(spec->offset == end && index >= previous, "%s is at %lld, expected %lld", spec->name,
              (long long)spec->offset, (long long)end);
        Bucket *bucket = &p->bucket[index];
        if (bucket->elems == 0) bucket->first = spec->offset;
        end = round_up(spec->offset + spec->elems, PARAM_ALIGN_ELEMS);
        bucket->elems = end - bucket->first;
        previous = index;
    }
    CHECK(end == params->total_elems, "buckets end at %lld of %lld", (long long)end, (long long)params->total_elems);
    for (int b = 0; b < p->buckets; ++b) p->bucket[b].layer = b == 0 || b == p->buckets - 1 ? -1 : b - 1;
}

static void add_segment(Bucket *bucket, int owner, int64_t first, int64_t count) {
    if (count == 0) return;
    // The capacity doubles: plans have thousands of ranks.
    const size_t have = (size_t)bucket->segments;
    if ((have & (have - 1)) == 0)
        bucket->segment = xrealloc(bucket->segment, (have > 0 ? 2 * have : 1) * sizeof *bucket->segment);
    bucket->segment[bucket->segments++] = (CommSegment){owner, first, count};
}

// Equal lengths, except the last.
static void divide_evenly(Bucket *bucket, const PartitionOptions *options) {
    int count = options->lanes ? PARTITION_GRAINS : options->data.world;
    int64_t length = bucket->elems / PARAM_ALIGN_ELEMS / count * PARAM_ALIGN_ELEMS;
    for (int i = 0; i < count; ++i) {
        int64_t first = i * length, end = i == count - 1 ? bucket->elems : first + length;
        add_segment(bucket, (int)((int64_t)i * options->data.world / count), first, end - first);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Muon: whole matrices

// Cost in multiply-adds: five Newton-Schulz iterations, about 2 side^2 (2 length + side) each, and 100 for each element,
// about the cost of reading and writing it.
static double update_cost(int64_t rows, int64_t cols) {
    double side = (double)min_i64(rows, cols), length = (double)max_i64(rows, cols);
    return 5 * 2 * side * side * (2 * length + side) + 100 * side * length;
}

typedef struct {
    Bucket *bucket;
    int segment;
    double cost;
    int order;  // in the flat arrays; breaks ties between equal costs alike on every rank
} MuonSegment;

static int compare_costs(const void *a, const void *b) {
    const MuonSegment *x = a, *y = b;
    if (x->cost != y->cost) return x->cost < y->cost ? 1 : -1;
    return x->order - y->order;
}

// Divides a block into segments: its hidden matrices and the elements between them. deal_out sets the owners.
static void divide_block(Bucket *bucket, const ParamTable *params, MuonSegment *list, int *count) {
    int64_t run = 0;
    for (int i = 0; i < params->count; ++i) {
        const ParamSpec *spec = &params->spec[i];
        if (spec->layer != bucket->layer || !spec->hidden_matrix) continue;
        int64_t first = spec->offset - bucket->first;
        if (first > run) {
            list[*count] = (MuonSegment){bucket, bucket->segments, 100 * (double)(first - run), *count};
            ++*count;
            add_segment(bucket, 0, run, first - run);
        }
        for (int part = 0; part < spec->part_count; ++part) {
            int64_t rows = spec->part_rows[part], elems = rows * spec->dim[1];
            // The alignment gap after the matrix belongs to its last part.
            if (part == spec->part_count - 1)
                elems = round_up(spec->offset + spec->elems, PARAM_ALIGN_ELEMS) - bucket->first - first;
            list[*count] = (MuonSegment){bucket, bucket->segments, update_cost(rows, spec->dim[1]), *count};
            ++*count;
            add_segment(bucket, 0, first, elems);
            first += elems;
        }
        run = first;
    }
    if (bucket->elems > run) {
        list[*count] = (MuonSegment){bucket, bucket->segments, 100 * (double)(bucket->elems - run), *count};
        ++*count;
        add_segment(bucket, 0, run, bucket->elems - run);
    }
}

// Segments in order of falling cost, each to the rank with the least load so far: within 4/3 of the optimum (Graham 1969).
static void deal_out(MuonSegment *list, int count, int world) {
    double *load = xcalloc((size_t)world, sizeof *load);
    qsort(list, (size_t)count, sizeof *list, compare_costs);
    for (int i = 0; i < count; ++i) {
        int lightest = 0;
        for (int r = 1; r < world; ++r)
            if (load[r] < load[lightest]) lightest = r;
        load[lightest] += list[i].cost;
        list[i].bucket->segment[list[i].segment].owner = lightest;
    }
    free(load);
}

static void divide_for_muon(Partition *p, const ParamTable *params) {
    int most = 0, count = 0;
    for (int i = 0; i < params->count; ++i) most += params->spec[i].part_count + 1;
    MuonSegment *list = xcalloc((size_t)(most + p->buckets), sizeof *list);
    for (int b = 1; b < p->buckets - 1; ++b) divide_block(&p->bucket[b], params, list, &count);
    deal_out(list, count, p->options.data.world);
    free(list);
    divide_evenly(&p->bucket[0], &p->options);
    divide_evenly(&p->bucket[p->buckets - 1], &p->options);
}

// ---------------------------------------------------------------------------------------------------------------
// This rank's share

static void add_piece(Partition *p, const ParamTable *params, int param, int part, int64_t first, int64_t count,
                      int64_t packed) {
    bool has_v = !(p->options.muon && params->spec[param].hidden_matrix);
    p->piece[p->pieces++] = (Piece){param, part, first, count, packed, has_v ? p->v_elems : -1};
    if (has_v) p->v_elems += round_up(count, PARAM_ALIGN_ELEMS);
}

// Adds the parts of parameters within elements [first, end) of the flat arrays, which are at `packed` in the packed ones.
static void add_pieces(Partition *p, const ParamTable *params, int64_t first, int64_t end, int64_t packed) {
    for (int i = 0; i < params->count; ++i) {
        const ParamSpec *spec = &params->spec[i];
        int64_t from = max_i64(first, spec->offset), to = min_i64(end, spec->offset + spec->elems);
        if (from >= to) continue;
        if (!(p->options.muon && spec->hidden_matrix)) {
            add_piece(p, params, i, -1, from - spec->offset, to - from, packed + from - first);
            continue;
        }
        int64_t part_first = spec->offset;
        for (int part = 0; part < spec->part_count; ++part) {
            int64_t elems = spec->part_rows[part] * spec->dim[1];
            if (part_first >= from && part_first < to) {
                CHECK(part_first + elems <= to, "%s: part %d is not whole", spec->name, part);
                add_piece(p, params, i, part, part_first - spec->offset, elems, packed + part_first - first);
            }
            part_first += elems;
        }
    }
}

static int max_pieces(const Partition *p, const ParamTable *params) {
    int most = p->segments;
    for (int i = 0; i < params->count; ++i) most += params->spec[i].part_count;
    return most;
}

static void count_segments(Partition *p) {
    int64_t *owned = xcalloc((size_t)p->options.data.world, sizeof *owned);
    for (int b = 0; b < p->buckets; ++b) {
        Bucket *bucket = &p->bucket[b];
        p->segments += bucket->segments;
        p->largest_bucket_elems = max_i64(p->largest_bucket_elems, bucket->elems);
        if (bucket->layer >= 0) p->largest_block_elems = max_i64(p->largest_block_elems, bucket->elems);
        for (int i = 0; i < bucket->segments; ++i) {
            const CommSegment *segment = &bucket->segment[i];
            owned[segment->owner] += segment->count;
            p->largest_owned_elems = max_i64(p->largest_owned_elems, owned[segment->owner]);
            if (segment->owner != p->options.data.rank) continue;
            ++bucket->own_segments;
            bucket->owned_elems += segment->count;
        }
        for (int i = 0; i < bucket->segments; ++i) owned[bucket->segment[i].owner] = 0;
    }
    free(owned);
}

void partition_build(Partition *out, const ParamTable *params, const PartitionOptions *options) {
    CHECK(mesh_axis_is_valid(options->data) && options->stage >= 0 && options->stage <= 3, "rank=%d world=%d stage=%d",
          options->data.rank, options->data.world, options->stage);
    *out = (Partition){.options = *options};
    lay_out_buckets(out, params);
    if (options->muon) divide_for_muon(out, params);
    else
        for (int b = 0; b < out->buckets; ++b) divide_evenly(&out->bucket[b], options);
    count_segments(out);
    out->piece = xcalloc((size_t)max_pieces(out, params), sizeof *out->piece);
    for (int b = 0; b < out->buckets; ++b) {
        Bucket *bucket = &out->bucket[b];
        bucket->packed = out->packed_elems;
        if (options->stage == 0) {
            add_pieces(out, params, bucket->first, bucket->first + bucket->elems, out->packed_elems);
            out->packed_elems += bucket->elems;
            continue;
        }
        for (int i = 0; i < bucket->segments; ++i) {
            const CommSegment *segment = &bucket->segment[i];
            if (segment->owner != options->data.rank) continue;
            int64_t first = bucket->first + segment->first;
            add_pieces(out, params, first, first + segment->count, out->packed_elems);
            out->packed_elems += segment->count;
        }
    }
}

void partition_free(Partition *partition) {
    for (int b = 0; b < partition->buckets; ++b) free(partition->bucket[b].segment);
    free(partition->bucket);
    free(partition->piece);
    *partition = (Partition){0};
}

int partition_fullest_rank(const ParamTable *params, const PartitionOptions *options) {
    PartitionOptions first = *options;
    first.data.rank = 0;
    Partition p;
    partition_build(&p, params, &first);
    int64_t *owned = xcalloc((size_t)options->data.world, sizeof *owned);
    for (int b = 0; b < p.buckets; ++b)
        for (int i = 0; i < p.bucket[b].segments; ++i) owned[p.bucket[b].segment[i].owner] += p.bucket[b].segment[i].count;
    int fullest = 0;
    for (int r = 1; r < options->data.world; ++r)
        if (owned[r] > owned[fullest]) fullest = r;
    free(owned);
    partition_free(&p);
    return fullest;
}
