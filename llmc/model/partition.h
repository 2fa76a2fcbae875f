// partition.h: the owner of each parameter element. Ranks keep gradients, optimizer state and weights of the elements that
// they own, as far as ZeRO shards them (Rajbhandari et al. 2020). Pure arithmetic over the parameter table; the model, the
// optimizer, checkpoints, the plan and zero.c walk the result.
// Must not know: devices, tensors in memory, collectives.
//
// A bucket is the unit of communication, in the order of the flat arrays: 0 the embeddings, 1 + l block l, L + 1 the final
// norm and an untied head. A bucket is divided into segments, each owned by one rank (of the data axis, like world):
//   AdamW    one segment for each rank: equal lengths, a multiple of PARAM_ALIGN_ELEMS; the last also has the remainder
//   lanes    PARTITION_GRAINS equal segments for every world size, consecutive ones to each rank: sums over segments then
//            have the same bits for every world size, a power of two up to PARTITION_GRAINS
//   Muon     every hidden matrix (q, k, v, gate, up are separate matrices) is a segment, and so are the elements between
//            two matrices; owners are chosen to balance the cost of the updates
// A rank's segments, contiguous and in order, are its packed arrays. Where nothing is sharded (stage 0) a rank updates
// everything, and its packed arrays are the flat arrays.
#ifndef LLMC_PARTITION_H
#define LLMC_PARTITION_H

#include "llmc/base/mesh_axis.h"
#include "llmc/base/segment.h"
#include "llmc/model/params.h"

#define PARTITION_GRAINS 16

typedef struct {
    MeshAxis data;  // the ranks that share the elements
    int stage;      // ZeRO: sharded are 0 nothing, 1 optimizer state, 2 also gradients, 3 also weights
    bool lanes;     // deterministic=lanes
    bool muon;      // hidden matrices stay whole
} PartitionOptions;

// Elements [first, first + count) of a parameter that this rank updates: the unit of the optimizer and of checkpoints.
// For Muon a hidden matrix is one piece.
typedef struct {
    int param;              // index in the table
    int part;               // Muon: which of the parameter's parts; -1: a range of elements
    int64_t first, count;   // elements of the parameter
    int64_t packed;         // offset in the rank's packed arrays: moments, and gradients and weights if sharded
    int64_t v_packed;       // offset in the packed second moments, which only AdamW has; -1: none
} Piece;

typedef struct {
    int layer;                 // -1: outside the blocks
    int64_t first, elems;      // in the flat arrays
    CommSegment *segment;      // .first counts from the bucket's first element
    int segments;
    int own_segments;          // of this rank
    int64_t owned_elems;       // of this rank
    int64_t packed;            // their offset in the rank's packed arrays
} Bucket;

typedef struct {
    PartitionOptions options;
    Bucket *bucket;
    int buckets;               // L + 2
    int segments;              // of all buckets
    Piece *piece;              // this rank's, in the order of the packed arrays
    int pieces;
    int64_t packed_elems;      // of this rank's packed arrays, a multiple of PARAM_ALIGN_ELEMS
    int64_t v_elems;           // of its packed second moments
    int64_t largest_block_elems;   // of the buckets of blocks
    int64_t largest_bucket_elems;
    int64_t largest_owned_elems;   // the most that a rank owns of a bucket
} Partition;

// Errors: lanes with a world size that is not a power of two up to PARTITION_GRAINS.
bool partition_check(const PartitionOptions *options, Error *err);
// The options must have passed partition_check. Free the result with partition_free.
void partition_build(Partition *out, const ParamTable *params, const PartitionOptions *options);
void partition_free(Partition *partition);
// The bucket of a parameter.
int partition_bucket_of(const ParamTable *params, int param);
// The rank with the longest packed arrays: memory is planned for it.
int partition_fullest_rank(const ParamTable *params, const PartitionOptions *options);
#endif
