// loader.h: the room between token shards and the model. shard.h reads shards as the token stream of a source,
// row_format.h makes rows of it, mixture.h says which row of which source a sample is, and the loader puts the rows of
// a step into batches (batch.h), one step ahead on a thread of its own; heldout.h is the text to measure on. The room
// must not know models, devices, or how ranks communicate: it is given its place on the data axis.
//
// The sample at row r of step s is a pure function of (seed, s, r), whatever the world size, threads or restarts;
// seeking is O(1). Row r of step s is sample (s - first step of the phase) * rows_per_step + r of the phase; mixture.h
// says which source and which of its rows that is. How many rows of T tokens a source has and what they hold is up to
// its format. With plain text (format_plain.c) row k predicts stream[kT+1 .. kT+T] from stream[kT .. kT+T-1]; a source
// of n tokens has (n-1)/T rows, which may cross shards.
//
// Micro-batch and lane: see the glossary in llmc/model/model.h. Lane k of a step is its rows k*B + [0, B); micro-batch
// m of a rank is lane m * data.world + data.rank, so that all ranks together see the same rows whatever their number.
// Where data.world does not divide the lanes, the last micro-batch of some ranks is past the last lane: it is padding,
// token 0 with weight 0, and no sample. Skipped data (loader_set_skips) moves s, within the phase's own sequence of
// samples.
//
// In a new phase a source continues where it stopped. When T changes its rows are cut anew, and it continues at ordinal
// (tokens of the rows given so far) / T of the new cut: in the epoch of the change some text may come twice, some not.
#ifndef LLMC_LOADER_H
#define LLMC_LOADER_H

#include "llmc/base/mesh_axis.h"
#include "llmc/loader/batch.h"
#include "llmc/loader/data_skip.h"
#include "llmc/config/schedule.h"

// Everything of one optimizer step on this rank.
typedef struct {
    int64_t step;
    int64_t micro_batches;
    const Batch *batch;      // [micro_batches]; they carry doc when any source of the phase has doc_mask, and then
                             // rows of sources without it are one segment each; prefix when the format of any source
                             // makes them, and then those of other rows are 0
    double weight_sum;       // sum of weights over the micro-batches of THIS rank. The loss divides by the sum over
                             // all ranks, which comm reduces: weights may depend on the text, and a rank reads only
                             // its own rows.
    const double *micro_batch_weight;  // [micro_batches] the same of each of them; of padding 0
    double wait_ms;          // how long the caller waited for the prefetch thread
} StepBatch;

typedef struct Loader Loader;
// Opens every source that has a weight in some phase, and checks it: the format's name, magic, size, vocabulary,
// end-of-text id and the ids that shard_set_check reads (the rest when they are used); in each phase at least one row
// of each source, and together the rows of one step. vocab 0: the largest that the shards state (error when none does).
// eot -1: the one that the shards state, if any; doc_mask without one is an error. Copies what it needs of config and
// schedule.
bool loader_open(Loader **out, const RunConfig *config, const Schedule *schedule, int64_t vocab, int32_t eot,
                 MeshAxis data, Error *err);
void loader_close(Loader *loader);
void loader_seek(Loader *loader, int64_t step);  // the next loader_next returns this step
// Step s reads the samples of step data_skip_step(skips, count, s) from now on. count <= DATA_SKIPS_MAX; copied.
void loader_set_skips(Loader *loader, const DataSkip *skips, int count);
// Valid until the next call. NULL and err when a shard cannot be read or holds an id >= vocab; a further call tries
// the same step again. Steps past the end go on with the last phase. Allocates nothing.
const StepBatch *loader_next(Loader *loader, Error *err);
// Host bytes of the two step buffers, by the config alone (for plan).
size_t loader_plan_bytes(const Schedule *schedule);
#endif
