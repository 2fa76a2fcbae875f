// partition.h: who owns which parameter elements: of which the rank keeps gradients, optimizer state and weights as far
// as ZeRO shards them (Rajbhandari et al. 2020). Pure arithmetic over the parameter table; knows nothing of devices,
// tensors in memory or transports. The model, the optimizer, checkpoints, the plan and zero.c all walk it.
//
// Buckets are what travels together, in the order of the flat arrays: 0 the embeddings, 1 + l block l, L + 1 the final
// norm and an untied head. A bucket is divided into segments, each owned by one rank (of the data axis, like world):
//   AdamW    one segment a rank: equal lengths, a multiple of PARAM_ALIGN_ELEMS; the last one also has what is left
//   lanes    PARTITION_GRAINS equal segments whatever the world is, dealt out in runs: sums over segments then have the
//            same bits for every world, a power of two up to PARTITION_GRAINS
//   Muon     every hidden matrix (q, k, v, gate, up are matrices of their own) is a segment, and so is what lies between
//            two matrices; ranks get them so that the cost of their updates is balanced
// A rank's segments, in order, one behind the other, are its packed arrays. Where nothing is sharded (stage 0) a rank
// updates everything, and its packed arrays are the flat arrays.
#ifndef LLMC_PARTITION_H
#define LLMC_PARTITION_H

#include "llmc/base/mesh_axis.h"
#include "llmc/base/segment.h"
#include "llmc/model/params.h"

#define PARTITION_GRAINS 16

typedef struct {
    MeshAxis data;  // of the ranks that share the elements
    int stage;      // ZeRO: 0 nothing, 1 optimizer state, 2 and gradients, 3 and weights are kept by their owner only
    bool lanes;     // deterministic=lanes
    bool muon;      // hidden matrices stay whole
} PartitionOptions;

// Elements [first, first + count) of a parameter that this rank updates: what the optimizer lists, checkpoints write and
// readers find again. For Muon a hidden matrix is one piece.
typedef struct {
    int param;              // index in the table
    int part;               // of the parameter's parts; -1: no part, a range of elements
    int64_t first, count;   // elements of the parameter
    int64_t packed;         // of `first` in the rank's packed arrays: moments, and gradients and weights if sharded
    int64_t v_packed;       // in the packed second moments, which only AdamW's tensors have; -1: none
} Piece;

typedef struct {
    int layer;                 // -1: outside the blocks
    int64_t first, elems;      // in the flat arrays
    CommSegment *segment;      // .first counts from the bucket's first element
    int segments;
    int own_segments;          // of this rank
    int64_t owned_elems;       // of this rank
    int64_t packed;            // where they begin in the rank's packed arrays
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
    int64_t largest_owned_elems;   // most that any rank owns of any bucket
} Partition;

// Errors: lanes with a world that is not a power of two up to PARTITION_GRAINS.
bool partition_check(const PartitionOptions *options, Error *err);
void partition_build(Partition *out, const ParamTable *params, const PartitionOptions *options);
void partition_free(Partition *partition);
// The bucket of a parameter.
int partition_bucket_of(const ParamTable *params, int param);
// The rank whose packed arrays are the longest: the one to plan for.
int partition_fullest_rank(const ParamTable *params, const PartitionOptions *options);
#endif
