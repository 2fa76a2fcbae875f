// loader.h: the room between token shards and the model. shard.h reads shards as the token stream of a source,
// row_format.h makes rows of it, mixture.h maps a sample to a row of a source, and the loader puts the rows of a step
// into batches (batch.h), one step ahead on its own thread; heldout.h reads the held-out text. Must not know models,
// devices, or how ranks communicate: the caller passes the rank's place on the data axis.
//
// The sample at row r of step s is a pure function of (seed, s, r), whatever the world size, threads or restarts;
// seeking is O(1). Row r of step s is sample (s - first step of the phase) * rows_per_step + r of the phase; mixture.h
// maps it to a source and one of its rows. The row format of the source defines how many rows of T tokens it has and
// their contents. In the plain format (format_plain.c) row k predicts stream[kT+1 .. kT+T] from
// stream[kT .. kT+T-1]; a source of n tokens has (n-1)/T rows, which may cross shards.
//
// Micro-batch and lane: see the glossary in llmc/model/model.h. Rank and world are those of the data axis. Lane
// k of a step is its rows k*B + [0, B), so all ranks together read the same rows for any world size. Where the world size
// does not divide the number of lanes, the last micro-batch of some ranks is past the last lane: it is
// padding (token 0, weight 0) and no sample. Skipped data (loader_set_skips) shifts s within the phase's sequence of
// samples.
//
// In a new phase a source continues where it stopped. When T changes, its stream is cut into rows again and continues
// at ordinal (tokens of the rows read so far) / T of the new rows: in the epoch of the change some text may be read
// twice and some not at all.
#ifndef LLMC_LOADER_H
#define LLMC_LOADER_H

#include "llmc/base/mesh_axis.h"
#include "llmc/loader/batch.h"
#include "llmc/loader/data_skip.h"
#include "llmc/config/schedule.h"

// The data of one optimizer step on this rank.
typedef struct {
    int64_t step;
    int64_t micro_batches;
    const Batch *batch;      // [micro_batches]; doc is set if any source of the phase has doc_mask (a row of a source
                             // without it is then one segment); prefix is set if the format of any source makes
                             // prefixes (0 in the other rows)
    double weight_sum;       // sum of weights over the micro-batches of THIS rank. The loss divides by the sum over
                             // all ranks, which the caller all-reduces: weights may depend on the text, and a rank
                             // reads only its own rows.
    const double *micro_batch_weight;  // [micro_batches] sum of weights of each micro-batch; padding: 0
    double wait_ms;          // how long the caller waited for the prefetch thread
} StepBatch;

typedef struct Loader Loader;
// Opens every source that has a weight in some phase and checks it: name of the format, magic, size, vocabulary,
// end-of-text id and the ids that shard_set_check reads (the others are checked when they are read). Each phase needs
// at least one row of each of its sources, and the rows of one step in total. vocab 0: the largest that the shards
// state (error if none does). eot -1: the id that the shards state, if any; doc_mask without one is an error. config
// and schedule are not used after the call.
bool loader_open(Loader **out, const RunConfig *config, const Schedule *schedule, int64_t vocab, int32_t eot,
                 MeshAxis data, Error *err);
void loader_close(Loader *loader);
void loader_seek(Loader *loader, int64_t step);  // the next loader_next returns this step
// Step s reads the samples of step data_skip_step(skips, count, s) from now on. count <= DATA_SKIPS_MAX; copied.
void loader_set_skips(Loader *loader, const DataSkip *skips, int count);
// The batches of the next step, valid until the next call. NULL and err when a shard cannot be read or holds an
// id >= vocab; the next call tries the same step again. Steps past the end belong to the last phase. Allocates nothing.
const StepBatch *loader_next(Loader *loader, Error *err);
// Host bytes of the two step buffers, computed from the config alone.
size_t loader_plan_bytes(const Schedule *schedule);
#endif
