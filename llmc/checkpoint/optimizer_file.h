// optimizer_file.h: the optimizer's state in a checkpoint directory: fp32 tensors "m.NAME", "v.NAME" (AdamW's only)
// and "master.NAME" (where weights have masters apart) of whole parameters, in the parameter's own shape, or
// "m.NAME[first:end]", one-dimensional, of elements first <= i < end. One rank writes optimizer.safetensors; of W > 1
// every rank writes optimizer-0000R-of-0000W.safetensors (R from 1) with what it keeps. Readers of any world size and
// ZeRO stage find their elements again, wherever they lie. Written by run_load.c and the ckpt commands; knows
// nothing of devices.
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

// What rank options->data.rank of the data axis writes, in the order of its file: all its ranks together every element
// once. One rank: whole parameters. Where every rank keeps everything (stage 0), they divide it as stage 1 would.
// Returns the count; caller frees.
int state_pieces(StatePiece **out, const ParamTable *params, const PartitionOptions *options,
                 const StateKept *kept);

// Writes file `shard` (from 0) of `shards`; `fetch` hands out elements of pieces, in the dtype of their kind, see
// safetensors.h.
bool optimizer_file_write(const char *dir, int shard, int shards, const ParamTable *params, const StatePiece *pieces,
                          int count, SafeTensorFetch fetch, void *context, Error *err);

// ---- reading: every file is untrusted ----
typedef struct OptimizerFiles OptimizerFiles;
bool optimizer_files_exist(const char *dir);
// Errors, naming file and tensor: a file of the set is missing, sets are mixed, a tensor that the table has no place
// for, another dtype or shape, elements that are there twice or not at all.
bool optimizer_files_open(OptimizerFiles **out, const char *dir, const ParamTable *params, Error *err);
void optimizer_files_close(OptimizerFiles *files);
int optimizer_files_count(const OptimizerFiles *files);  // of files: ranks that wrote them
// Whether this state of the parameter is there: then it is there as a whole.
bool optimizer_files_has(const OptimizerFiles *files, StateKind kind, int param);
// Which kinds are there, as far as that tells a run's options.
StateKept optimizer_files_kept(const OptimizerFiles *files);
// An error unless every parameter has all the kinds that follow from `kept`.
bool optimizer_files_check(const OptimizerFiles *files, const StateKept *kept, Error *err);
// out (count) fp32 = elements [first, first + count). The state must be there.
bool optimizer_files_read(const OptimizerFiles *files, StateKind kind, int param, int64_t first, int64_t count,
                          float *out, Error *err);
// The pages of this state are not needed any more; reading them again is possible, and slow.
void optimizer_files_release(const OptimizerFiles *files, StateKind kind, int param);
#endif
