// comm_host.h: what a transport between host memories needs besides messages: who owns which elements, in pieces that
// fit a message, and sums over ranks in the fixed tree that comm.h promises. Pure functions; called by comm.c and the
// MPI plug-in.
#ifndef LLMC_COMM_HOST_H
#define LLMC_COMM_HOST_H

#include "llmc/ranks/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

// A contribution travels in pieces of at most so many bytes, which stay in a core's cache until they are added, and
// so many pieces of each rank are on the way at a time.
#define COMM_PIECE_BYTES ((int64_t)256 << 10)
#define COMM_WINDOW 4

// Elements [first, first + count) of a buffer, which begin at `packed` of what their owner owns.
typedef struct {
    int64_t first, packed, count;
} CommPiece;

// Walks the segments of one owner, in order, in pieces of at most piece_elems that never cross a segment's end.
typedef struct {
    const CommSegment *segments;
    int count, owner, index;
    int64_t done;    // elements of segments[index]
    int64_t packed;  // elements of all
    int64_t piece_elems;
} CommCursor;
CommCursor comm_cursor(const CommSegment *segments, int count, int owner, int64_t piece_elems);
bool comm_cursor_next(CommCursor *cursor, CommPiece *out);

// CHECKs that the list is ordered, does not overlap and lies within elems; returns how many elements `owner` owns.
// owner, world: of the group.
int64_t comm_segments_check(const CommSegment *segments, int count, int world, int64_t elems, int owner);
// Equal segments, the last one shorter, at most one a rank; returns how many.
int comm_segments_even(CommSegment *out, int world, int64_t elems);

// One rank's contribution: fp32 or fp64 as the sum, or bf16 for an fp32 sum; rounded: fp32 that counts as if it had
// been rounded to bf16 and back.
typedef struct {
    const void *data;
    DType dtype;
    bool rounded;
} CommTerm;
// out (elems) fp32 or fp64 {=, += if accumulate} the sum of count terms in the tree. out may be one of the terms.
void comm_sum_tree(void *out, DType dtype, bool accumulate, const CommTerm *terms, int count, int64_t elems);
// out (elems) bf16 = in, rounded to nearest even.
void comm_round_bf16(uint16_t *out, const float *in, int64_t elems);

#ifdef __cplusplus
}
#endif
#endif
