// loader.c: see loader.h. The caller's thread and the prefetch thread share one job: "fill this slot with this step".
// While the job runs, only the prefetch thread touches its slot, so one mutex around the job is enough.
#include "llmc/loader/loader.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "llmc/loader/mixture.h"
#include "llmc/loader/row_format.h"

_Static_assert(MIXTURE_MAX_SOURCES >= CONFIG_MAX_SOURCES, "a mixture holds every source");

typedef struct {
    bool used;  // has a weight in some phase; else the set is not open
    ShardSet set;
    const RowFormat *format;
    RowSource stream;  // the set as the format reads it
} Source;

typedef struct {
    Mixture mixture;
    int64_t rows[CONFIG_MAX_SOURCES];  // rows of each source at the phase's T
    unsigned parts;                    // BATCH_DOC, BATCH_PREFIX: set if any source of the phase needs it
} PhaseData;

typedef struct {
    BatchBuffer buffer;
    double *micro_batch_weight;
    StepBatch step;
} Slot;

typedef struct {
    int64_t step;  // -1: none
    int slot;
    bool running, ok;
    Error err;
} Job;

struct Loader {
    Schedule schedule;  // a copy: the caller may move the horizon of its schedule while the thread reads this one
    uint64_t seed;
    int64_t vocab;
    int32_t eot;
    MeshAxis data;
    int source_count;
    Source source[CONFIG_MAX_SOURCES];
    PhaseData phase[CONFIG_MAX_PHASES];
    int32_t *buffer;  // [buffer_tokens] used by the prefetch thread: the longest read of any row
    int64_t buffer_tokens;
    DataSkip skip[DATA_SKIPS_MAX];  // changed only while no job runs
    int skip_count;
    Slot slot[2];
    int64_t next_step;
    pthread_t thread;
    bool thread_started;
    pthread_mutex_t mutex;  // guards job and quit
    pthread_cond_t changed;
    Job job;
    bool quit;
};

// ---- filling a step: on the prefetch thread ----

// sample < 0: padding.
static bool fill_row(Loader *loader, BatchRow row, const PhaseData *phase, int64_t sample, double *weight_sum,
                     Error *err) {
    if (sample < 0) {
        batch_row_fill(&row, NULL, 0, -1);
        *row.source = 0;
        *row.row_index = -1;
        return true;
    }
    MixturePick pick = mixture_pick(&phase->mixture, sample);
    const Source *source = &loader->source[pick.source];
    int64_t epoch, index = mixture_row(&epoch, loader->seed, pick.source, pick.ordinal, phase->rows[pick.source]);
    uint64_t row_seed = mixture_row_seed(loader->seed, pick.source, epoch);
    double row_weight;
    if (!source->format->fill(&row, &row_weight, &source->stream, index, row_seed, err)) return false;
    *weight_sum += row_weight;
    *row.source = pick.source;
    *row.row_index = index;
    return true;
}

static bool fill_step(Loader *loader, Slot *slot, int64_t step, Error *err) {
    const PhaseSpan *span = schedule_phase(&loader->schedule, step);
    const PhaseData *phase = &loader->phase[span->index];
    batch_buffer_shape(&slot->buffer, span->micro_batches, span->B, span->T, phase->parts);
    int64_t data_step = data_skip_step(loader->skip, loader->skip_count, step);
    int64_t first_sample = (data_step - span->first_step) * span->rows_per_step;
    slot->step = (StepBatch){.step = step, .micro_batches = span->micro_batches, .batch = slot->buffer.batch,
                             .micro_batch_weight = slot->micro_batch_weight};
    for (int64_t m = 0; m < span->micro_batches; ++m) {
        int64_t lane = m * loader->data.world + loader->data.rank;
        slot->micro_batch_weight[m] = 0;
        for (int64_t b = 0; b < span->B; ++b) {
            int64_t sample = lane < span->lanes ? first_sample + lane * span->B + b : -1;
            BatchRow row = batch_buffer_row(&slot->buffer, m * span->B + b);
            if (!fill_row(loader, row, phase, sample, &slot->micro_batch_weight[m], err)) return false;
        }
        slot->step.weight_sum += slot->micro_batch_weight[m];
    }
    return true;
}

static void *prefetch_main(void *argument) {
    Loader *loader = argument;
    pthread_mutex_lock(&loader->mutex);
    while (!loader->quit) {
        if (!loader->job.running) {
            pthread_cond_wait(&loader->changed, &loader->mutex);
            continue;
        }
        Slot *slot = &loader->slot[loader->job.slot];
        int64_t step = loader->job.step;
        Error err = {""};
        pthread_mutex_unlock(&loader->mutex);
        bool ok = fill_step(loader, slot, step, &err);
        pthread_mutex_lock(&loader->mutex);
        loader->job.ok = ok;
        loader->job.err = err;
        loader->job.running = false;
        pthread_cond_broadcast(&loader->changed);
    }
    pthread_mutex_unlock(&loader->mutex);
    return NULL;
}

// ---- opening ----

static bool open_source(Source *source, const SourceConfig *config, Error *err) {
    source->format = row_format_find(config->format, err);
    if (source->format == NULL) return error_prefix(err, "source %s", config->name);
    if (!shard_set_open(&source->set, config->train, err)) return error_prefix(err, "source %s: train", config->name);
    source->used = true;
    source->stream = (RowSource){.set = &source->set, .token_count = source->set.token_count,
                                 .doc_mask = config->doc_mask};
    return true;
}

// Opens the sources that some phase uses, and determines the vocabulary and the end-of-text id.
static bool open_sources(Loader *loader, const RunConfig *config, Error *err) {
    loader->source_count = config->source_count;
    int64_t stated_vocab = 0;
    for (int s = 0; s < config->source_count; ++s) {
        bool wanted = false;
        for (int p = 0; p < config->phase_count; ++p) wanted = wanted || config->phase[p].weight[s] > 0;
        if (!wanted) continue;
        if (!open_source(&loader->source[s], &config->source[s], err)) return false;
        stated_vocab = max_i64(stated_vocab, loader->source[s].set.vocab);
        if (loader->eot < 0) loader->eot = loader->source[s].set.eot;
    }
    if (loader->vocab == 0) loader->vocab = stated_vocab;
    if (loader->vocab == 0)
        return error_set(err, "the vocabulary is unknown: expected a tokenizer, a vocab option or version-2 shards, "
                         "found only shards that do not state it");
    for (int s = 0; s < config->source_count; ++s) {
        Source *source = &loader->source[s];
        if (!source->used) continue;
        source->stream.vocab = loader->vocab;
        source->stream.eot = loader->eot;
        if (!shard_set_check(&source->set, loader->vocab, loader->eot, err))
            return error_prefix(err, "source %s", config->source[s].name);
        if (source->stream.doc_mask && loader->eot < 0)
            return error_set(err, "source %s: doc_mask needs the end-of-text id, which neither the tokenizer nor the "
                             "shards state", config->source[s].name);
    }
    return true;
}

// Counts the rows of each source in this phase: at least one of each, and those of one step in total.
static bool count_phase_rows(Loader *loader, const RunConfig *config, const PhaseSpan *span, Error *err) {
    const PhaseConfig *phase = &config->phase[span->index];
    int64_t rows = 0, tokens = 0;
    for (int s = 0; s < config->source_count; ++s) {
        if (!(phase->weight[s] > 0)) continue;
        const Source *source = &loader->source[s];
        int64_t source_tokens = source->stream.token_count;
        int64_t source_rows = source->format->rows(&source->stream, span->T);
        int64_t longest = source->format->longest_read(span->T);
        if (source_rows < 1)
            return error_set(err, "source %s: expected at least seq_len + %lld = %lld tokens in %s, found %lld: lower "
                             "seq_len or add text", config->source[s].name, (long long)(longest - span->T),
                             (long long)longest, config->source[s].train, (long long)source_tokens);
        loader->phase[span->index].rows[s] = source_rows;
        loader->buffer_tokens = max_i64(loader->buffer_tokens, longest);
        rows += source_rows;
        tokens += source_tokens;
    }
    if (tokens == 0)
        return error_set(err, "phase %s: expected a source with a weight above 0, found none", phase->name);
    if (rows < span->rows_per_step)
        return error_set(err, "phase %s: expected sources of at least one step, %lld rows of %lld tokens, found %lld "
                         "rows in %lld tokens: lower batch_tokens or add text", phase->name,
                         (long long)span->rows_per_step, (long long)span->T, (long long)rows, (long long)tokens);
    return true;
}

// The optional arrays that a batch with rows of this source needs.
static unsigned row_parts(const SourceConfig *source) {
    const RowFormat *format = row_format_find(source->format, NULL);
    bool prefix = format != NULL && format->makes_prefix;
    return (source->doc_mask ? (unsigned)BATCH_DOC : 0) | (prefix ? (unsigned)BATCH_PREFIX : 0);
}

// Each phase's mixture, with the ordinals that the phases before it have reached.
static bool init_phases(Loader *loader, const RunConfig *config, Error *err) {
    int64_t given_tokens[CONFIG_MAX_SOURCES] = {0};
    for (int p = 0; p < config->phase_count; ++p) {
        const PhaseSpan *span = &loader->schedule.phase[p];
        if (!count_phase_rows(loader, config, span, err)) return false;
        int64_t first_ordinal[CONFIG_MAX_SOURCES];
        for (int s = 0; s < config->source_count; ++s) first_ordinal[s] = given_tokens[s] / span->T;
        Mixture *mixture = &loader->phase[p].mixture;
        mixture_init(mixture, config->source_count, config->phase[p].weight, first_ordinal);
        for (int s = 0; s < config->source_count; ++s) {
            given_tokens[s] += mixture_count(mixture, s, span->steps * span->rows_per_step) * span->T;
            if (config->phase[p].weight[s] > 0) loader->phase[p].parts |= row_parts(&config->source[s]);
        }
    }
    return true;
}

static BatchCapacity capacity_of(const Schedule *schedule) {
    const RunConfig *config = schedule->config;
    BatchCapacity capacity = {0};
    for (int p = 0; p < schedule->phase_count; ++p) {
        const PhaseSpan *span = &schedule->phase[p];
        int64_t rows = span->micro_batches * span->B;
        capacity.batches = max_i64(capacity.batches, span->micro_batches);
        capacity.rows = max_i64(capacity.rows, rows);
        capacity.tokens = max_i64(capacity.tokens, rows * span->T);
        for (int s = 0; s < config->source_count; ++s) {
            unsigned parts = config->phase[p].weight[s] > 0 ? row_parts(&config->source[s]) : 0;
            capacity.doc = capacity.doc || (parts & BATCH_DOC) != 0;
            capacity.prefix = capacity.prefix || (parts & BATCH_PREFIX) != 0;
        }
    }
    return capacity;
}

size_t loader_plan_bytes(const Schedule *schedule) {
    BatchCapacity capacity = capacity_of(schedule);
    return 2 * (batch_buffer_bytes(capacity) + to_size(capacity.batches) * sizeof(double));
}

// All signals are blocked in the prefetch thread: Ctrl-C must interrupt the training loop, not a read here.
static bool start_thread(Loader *loader, Error *err) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    loader->thread_started = pthread_create(&loader->thread, NULL, prefetch_main, loader) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return loader->thread_started ? true : error_set(err, "cannot start the loader's prefetch thread");
}

bool loader_open(Loader **out, const RunConfig *config, const Schedule *schedule, int64_t vocab, int32_t eot,
                 MeshAxis data, Error *err) {
    CHECK(mesh_axis_is_valid(data) && config->source_count <= CONFIG_MAX_SOURCES, "rank=%d world=%d", data.rank, data.world);
    CHECK(schedule->phase[0].micro_batches == div_up(schedule->phase[0].lanes, data.world),
          "the schedule was made for another world size than %d", data.world);
    Loader *loader = xcalloc(1, sizeof *loader);
    loader->schedule = *schedule;
    loader->seed = (uint64_t)config->seed;
    loader->vocab = vocab;
    loader->eot = eot;
    loader->data = data;
    loader->job.step = -1;
    pthread_mutex_init(&loader->mutex, NULL);
    pthread_cond_init(&loader->changed, NULL);
    bool ok = open_sources(loader, config, err) && init_phases(loader, config, err);
    if (ok) {
        loader->buffer = xcalloc(to_size(loader->buffer_tokens), sizeof *loader->buffer);
        for (int s = 0; s < config->source_count; ++s) {
            loader->source[s].stream.buffer = loader->buffer;
            loader->source[s].stream.buffer_tokens = loader->buffer_tokens;
        }
        BatchCapacity capacity = capacity_of(schedule);
        for (int i = 0; i < 2; ++i) {
            batch_buffer_init(&loader->slot[i].buffer, capacity);
            loader->slot[i].micro_batch_weight = xcalloc(to_size(capacity.batches), sizeof(double));
        }
        ok = start_thread(loader, err);
    }
    loader->schedule.config = NULL;  // owned by the caller
    if (!ok) {
        loader_close(loader);
        return false;
    }
    *out = loader;
    return true;
}

void loader_close(Loader *loader) {
    if (loader->thread_started) {
        pthread_mutex_lock(&loader->mutex);
        loader->quit = true;
        pthread_cond_broadcast(&loader->changed);
        pthread_mutex_unlock(&loader->mutex);
        pthread_join(loader->thread, NULL);
    }
    pthread_cond_destroy(&loader->changed);
    pthread_mutex_destroy(&loader->mutex);
    for (int i = 0; i < 2; ++i) {
        batch_buffer_free(&loader->slot[i].buffer);
        free(loader->slot[i].micro_batch_weight);
    }
    for (int s = 0; s < loader->source_count; ++s)
        if (loader->source[s].used) shard_set_close(&loader->source[s].set);
    free(loader->buffer);
    free(loader);
}

// ---- the caller's side ----

// Both need the mutex held.
static void submit(Loader *loader, int64_t step, int slot) {
    loader->job = (Job){.step = step, .slot = slot, .running = true};
    pthread_cond_broadcast(&loader->changed);
}
static void wait_idle(Loader *loader) {
    while (loader->job.running) pthread_cond_wait(&loader->changed, &loader->mutex);
}

void loader_seek(Loader *loader, int64_t step) {
    CHECK(step >= 0, "step=%lld", (long long)step);
    loader->next_step = step;
}

void loader_set_skips(Loader *loader, const DataSkip *skips, int count) {
    CHECK(count >= 0 && count <= DATA_SKIPS_MAX, "count=%d", count);
    pthread_mutex_lock(&loader->mutex);
    wait_idle(loader);
    for (int i = 0; i < count; ++i) loader->skip[i] = skips[i];
    loader->skip_count = count;
    loader->job.step = -1;  // the prefetched step may hold other data
    pthread_mutex_unlock(&loader->mutex);
}

const StepBatch *loader_next(Loader *loader, Error *err) {
    double start = now_seconds();
    pthread_mutex_lock(&loader->mutex);
    if (loader->job.step != loader->next_step) {  // the first call, after a seek, or after an error
        wait_idle(loader);
        submit(loader, loader->next_step, loader->job.slot);
    }
    wait_idle(loader);
    StepBatch *result = NULL;
    if (loader->job.ok) {
        result = &loader->slot[loader->job.slot].step;
        ++loader->next_step;
        submit(loader, loader->next_step, 1 - loader->job.slot);
    } else {
        if (err != NULL) *err = loader->job.err;
        loader->job.step = -1;
    }
    pthread_mutex_unlock(&loader->mutex);
    if (result != NULL) result->wait_ms = (now_seconds() - start) * 1e3;
    return result;
}
