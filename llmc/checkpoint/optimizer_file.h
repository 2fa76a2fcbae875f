// optimizer_file.h: the optimizer state in a checkpoint directory: fp32 tensors "m.NAME", "v.NAME" (AdamW only) and
// "master.NAME" (bf16 runs with master weights) of whole parameters, in the parameter's shape, or one-dimensional
// "m.NAME[first:end]" of elements first <= i < end. One rank writes optimizer.safetensors; of W > 1 ranks each writes
// optimizer-0000R-of-0000W.safetensors (R from 1) with the elements that it keeps. Any world size and ZeRO stage can read
// it. Must not know: devices, the checkpoint's other files.
#ifndef LLMC_OPTIMIZER_FILE_H
#define LLMC_OPTIMIZER_FILE_H

#include "llmc/formats/safetensors.h"
#include "llmc/train/state_kinds.h"

// Elements [first, first + count) of one kind of state of a parameter.
typedef struct {
    StateKind kind;
    int param;  // index in the table
    int64_t first, count;
} StatePiece;

#define STATE_NAME_BYTES 128
void state_piece_name(char out[STATE_NAME_BYTES], const ParamTable *params, const StatePiece *piece);

// out = the pieces that rank options->data.rank of the data axis writes, in the order of its file. All ranks together write
// every element once. One rank writes whole parameters. In stage 0 the ranks divide the state as in stage 1. Returns the
// count; caller frees *out.
int state_pieces(StatePiece **out, const ParamTable *params, const PartitionOptions *options,
                 const StateKept *kept);

// Writes file `shard` (from 0) of `shards`; `fetch` (safetensors.h) returns elements of pieces, in the dtype of their kind.
bool optimizer_file_write(const char *dir, int shard, int shards, const ParamTable *params, const StatePiece *pieces,
                          int count, SafeTensorFetch fetch, void *context, Error *err);

// ---- reading: every file is untrusted ----
typedef struct OptimizerFiles OptimizerFiles;
bool optimizer_files_exist(const char *dir);
// Errors name file and tensor: a missing file of the set, mixed sets, a tensor that is not in the table, another dtype or
// shape, elements that occur twice or not at all.
bool optimizer_files_open(OptimizerFiles **out, const char *dir, const ParamTable *params, Error *err);
void optimizer_files_close(OptimizerFiles *files);
int optimizer_files_count(const OptimizerFiles *files);  // of files: ranks that wrote them
// Whether the files have this state of the parameter; if so, they have all its elements.
bool optimizer_files_has(const OptimizerFiles *files, StateKind kind, int param);
// The options of the run that wrote the files, derived from the kinds that they have.
StateKept optimizer_files_kept(const OptimizerFiles *files);
// Error: a parameter lacks a kind that follows from `kept`.
bool optimizer_files_check(const OptimizerFiles *files, const StateKept *kept, Error *err);
// out (count) fp32 = elements [first, first + count). optimizer_files_has must be true.
bool optimizer_files_read(const OptimizerFiles *files, StateKind kind, int param, int64_t first, int64_t count,
                          float *out, Error *err);
// Releases the pages of this state; reading them again is possible but slow.
void optimizer_files_release(const OptimizerFiles *files, StateKind kind, int param);
#endif
