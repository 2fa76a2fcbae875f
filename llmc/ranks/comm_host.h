// comm_host.h: the parts of a group in host memory that need no messages: the elements of an owner in pieces of a
// message's size, and sums over ranks in the fixed tree of comm.h. Pure functions. Must not know MPI or threads.
#ifndef LLMC_COMM_HOST_H
#define LLMC_COMM_HOST_H

#include "llmc/ranks/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

// A contribution is sent in pieces of at most COMM_PIECE_BYTES, which stay in a core's cache until they are added;
// COMM_WINDOW pieces of each rank are in flight at a time.
#define COMM_PIECE_BYTES ((int64_t)256 << 10)
#define COMM_WINDOW 4

// Elements [first, first + count) of a buffer; `packed` is their offset in the owner's packed elements.
typedef struct {
    int64_t first, packed, count;
} CommPiece;

// Walks the segments of one owner, in order, in pieces of at most piece_elems that never cross a segment's end.
typedef struct {
    const CommSegment *segments;
    int count, owner, index;
    int64_t done;    // elements of segments[index] already returned
    int64_t packed;  // elements of all segments already returned
    int64_t piece_elems;
} CommCursor;
CommCursor comm_cursor(const CommSegment *segments, int count, int owner, int64_t piece_elems);
bool comm_cursor_next(CommCursor *cursor, CommPiece *out);

// CHECKs that the segments are ordered, disjoint and within elems; returns how many elements `owner` owns. owner, world:
// of the group.
int64_t comm_segments_check(const CommSegment *segments, int count, int world, int64_t elems, int owner);
// out (world): equal segments, the last one shorter, at most one per rank; returns their number.
int comm_segments_even(CommSegment *out, int world, int64_t elems);

// One rank's contribution: of the sum's dtype (fp32 or fp64), or bf16 for an fp32 sum. rounded: fp32 values that are
// rounded to bf16 and back before they are added.
typedef struct {
    const void *data;
    DType dtype;
    bool rounded;
} CommTerm;
// out (elems) of dtype fp32 or fp64 {=, += if accumulate} the sum of count terms in the tree. out may be one of the terms.
void comm_sum_tree(void *out, DType dtype, bool accumulate, const CommTerm *terms, int count, int64_t elems);
// out (elems) bf16 = in (elems) fp32, rounded to nearest even.
void comm_round_bf16(uint16_t *out, const float *in, int64_t elems);

#ifdef __cplusplus
}
#endif
#endif
