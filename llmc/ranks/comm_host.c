// comm_host.c: see comm_host.h.
#include "llmc/ranks/comm_host.h"

#include "llmc/base/tree_sum.h"

// Elements per block of a sum: partial sums stay in the L1 cache.
#define SUM_BLOCK 1024

CommCursor comm_cursor(const CommSegment *segments, int count, int owner, int64_t piece_elems) {
    CHECK(piece_elems > 0, "piece_elems=%lld", (long long)piece_elems);
    return (CommCursor){.segments = segments, .count = count, .owner = owner, .piece_elems = piece_elems};
}

bool comm_cursor_next(CommCursor *cursor, CommPiece *out) {
    while (cursor->index < cursor->count && cursor->segments[cursor->index].owner != cursor->owner) ++cursor->index;
    if (cursor->index >= cursor->count) return false;
    const CommSegment *segment = &cursor->segments[cursor->index];
    int64_t count = min_i64(cursor->piece_elems, segment->count - cursor->done);
    *out = (CommPiece){segment->first + cursor->done, cursor->packed, count};
    cursor->packed += count;
    cursor->done += count;
    if (cursor->done == segment->count) {
        cursor->done = 0;
        ++cursor->index;
    }
    return true;
}

int64_t comm_segments_check(const CommSegment *segments, int count, int world, int64_t elems, int owner) {
    int64_t end = 0, owned = 0;
    for (int i = 0; i < count; ++i) {
        const CommSegment *s = &segments[i];
        CHECK(s->first >= end && s->count > 0 && s->first <= elems - s->count && s->owner >= 0 && s->owner < world,
              "segment %d of %d: first=%lld count=%lld owner=%d; the one before ends at %lld, elems=%lld world=%d", i,
              count, (long long)s->first, (long long)s->count, s->owner, (long long)end, (long long)elems, world);
        end = s->first + s->count;
        if (s->owner == owner) owned += s->count;
    }
    return owned;
}

int comm_segments_even(CommSegment *out, int world, int64_t elems) {
    int64_t each = round_up(div_up(elems, world), 16);
    int count = 0;
    for (int64_t first = 0; first < elems; first += each, ++count)
        out[count] = (CommSegment){.owner = count, .first = first, .count = min_i64(each, elems - first)};
    return count;
}

// Sums elements [first, first + n) of the terms and returns a pointer to the result: `room`, or the data of the only term
// if it needs no conversion. `room` may alias these elements of a term: each is written after it was read.
static const float *tree_f32(float *room, const CommTerm *terms, int count, int64_t first, int n) {
    if (count == 1) {
        if (terms->dtype == DTYPE_F32 && !terms->rounded) return (const float *)terms->data + first;
        const float *wide = (const float *)terms->data + first;
        const uint16_t *narrow = (const uint16_t *)terms->data + first;
        if (terms->dtype == DTYPE_F32) {
#pragma omp simd
            for (int i = 0; i < n; ++i) room[i] = bf16_to_f32(bf16_from_f32(wide[i]));
        } else {
            for (int i = 0; i < n; ++i) room[i] = bf16_to_f32(narrow[i]);
        }
        return room;
    }
    float left_room[SUM_BLOCK], right_room[SUM_BLOCK];
    int split = (int)tree_split(count);
    const float *left = tree_f32(left_room, terms, split, first, n);
    const float *right = tree_f32(right_room, terms + split, count - split, first, n);
#pragma omp simd
    for (int i = 0; i < n; ++i) room[i] = left[i] + right[i];
    return room;
}
static void sum_f32(float *out, bool accumulate, const CommTerm *terms, int count, int64_t elems) {
    float room[SUM_BLOCK];
    for (int64_t first = 0; first < elems; first += SUM_BLOCK) {
        int n = (int)min_i64(SUM_BLOCK, elems - first);
        float *to = out + first;
        const float *sum = tree_f32(accumulate ? room : to, terms, count, first, n);
        if (accumulate) {
            for (int i = 0; i < n; ++i) to[i] += sum[i];
        } else if (sum != to) {
            memcpy(to, sum, (size_t)n * sizeof *to);
        }
    }
}

static double tree_f64(const CommTerm *terms, int count, int64_t i) {
    if (count == 1) return ((const double *)terms->data)[i];
    int split = (int)tree_split(count);
    return tree_f64(terms, split, i) + tree_f64(terms + split, count - split, i);
}

void comm_sum_tree(void *out, DType dtype, bool accumulate, const CommTerm *terms, int count, int64_t elems) {
    CHECK(count > 0 && (dtype == DTYPE_F32 || dtype == DTYPE_F64), "count=%d dtype=%d", count, (int)dtype);
    for (int i = 0; i < count; ++i) {
        bool fits = terms[i].dtype == dtype || (terms[i].dtype == DTYPE_BF16 && dtype == DTYPE_F32);
        CHECK(fits && (dtype == DTYPE_F32 || !terms[i].rounded), "term %d: dtype=%s rounded=%d, sum in %s", i,
              dtype_name(terms[i].dtype), terms[i].rounded, dtype_name(dtype));
    }
    if (dtype == DTYPE_F32) {
        sum_f32(out, accumulate, terms, count, elems);
        return;
    }
    double *to = out;
    for (int64_t i = 0; i < elems; ++i) to[i] = (accumulate ? to[i] : 0.0) + tree_f64(terms, count, i);
}

void comm_round_bf16(uint16_t *out, const float *in, int64_t elems) {
    for (int64_t i = 0; i < elems; ++i) out[i] = bf16_from_f32(in[i]);
}
