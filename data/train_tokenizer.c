// train_tokenizer.c: prep train-tokenizer: learns a tokenizer.json from text. Words are counted on all cores while the
// text is read; memory holds the distinct words, not the text.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/read/input.h"
#include "data/pool.h"
#include "data/prep.h"
#include "data/progress.h"
#include "data/read/reader.h"
#include "llmc/tokenizer/tokenizer.h"

typedef struct {
    const char *out, *field;
    DocMode docs;
    int64_t vocab, reserved, min_count, max_bytes, threads;
} Settings;

static const char ABOUT[] =
    "usage: prep train-tokenizer --vocab N --out DIR [options] FILE...\n\n"
    "Learns a byte-level BPE vocabulary (GPT-2's pattern splits text into words) from text files (plain or .jsonl,\n"
    "optionally compressed as .gz or .zst; - is standard input) and writes DIR/tokenizer.json, which Hugging Face's\n"
    "tokenizers can load. Ids: 256 bytes, the merges in order, reserved special tokens, and <|endoftext|> last.\n\n"
    "example\n  prep train-tokenizer --vocab 4096 --out runs/bible/tokenizer bible.txt\n";

typedef struct {
    const Settings *settings;
    Reader *reader;
    WordCounts **counts;  // one per worker
    TextBuffer *texts;    // one per worker: the text of a JSONL line
    Progress progress;
} Job;

static bool fill_chunk(void *context, void *chunk, bool *end, Error *err) {
    Job *job = context;
    if (job->settings->max_bytes > 0 && reader_position(job->reader) >= job->settings->max_bytes) {
        *end = true;
        return true;
    }
    return reader_next(job->reader, chunk, end, err);
}

static bool count_chunk(void *context, int worker, void *argument, Error *err) {
    Job *job = context;
    const Chunk *chunk = argument;
    TextBuffer *buffer = &job->texts[worker];
    const uint8_t *text;
    int64_t bytes, pos = 0;
    while (chunk_next_document(&text, &bytes, chunk, &pos)) {
        if (chunk->mode == DOCS_JSONL) {
            if (!jsonl_text(buffer, text, bytes, job->settings->field, err))
                return error_prefix(err, "%s: line %" PRId64, chunk->path,
                                    chunk->first_line + count_lines(chunk->text, text - chunk->text));
            text = buffer->bytes;
            bytes = buffer->count;
        }
        word_counts_add(job->counts[worker], text, bytes);
    }
    return true;
}

static bool show_progress(void *context, void *chunk, Error *err) {
    Job *job = context;
    (void)chunk;
    (void)err;
    progress_update(&job->progress, reader_position(job->reader), "");
    return true;
}

static int64_t cut_text(const void *context, const void *text, int64_t bytes) {
    (void)context;
    return word_counts_safe_cut(text, bytes);
}

// The counts of all inputs, or NULL.
static WordCounts *count_words(const Settings *settings, Segment *segments, int segment_count, int64_t total_bytes,
                               Error *err) {
    int threads = settings->threads > 0 ? (int)settings->threads : (int)max_i64(sysconf(_SC_NPROCESSORS_ONLN), 1);
    int chunk_count = 2 * threads + 2;
    Chunk *chunks = xcalloc((size_t)chunk_count, sizeof *chunks);
    void **pointers = xmalloc((size_t)chunk_count * sizeof *pointers);
    for (int i = 0; i < chunk_count; ++i) pointers[i] = &chunks[i];
    Job job = {.settings = settings};
    job.reader = reader_new(segments, segment_count, settings->docs, cut_text, NULL);
    job.counts = xmalloc((size_t)threads * sizeof *job.counts);
    job.texts = xcalloc((size_t)threads, sizeof *job.texts);
    for (int i = 0; i < threads; ++i) job.counts[i] = word_counts_new();
    progress_start(&job.progress, "count words", total_bytes);
    bool ok =
        pool_run(&(PoolSteps){&job, fill_chunk, count_chunk, show_progress}, threads, pointers, chunk_count, err);
    progress_end(&job.progress);
    for (int i = 1; i < threads; ++i) {
        if (ok) word_counts_merge(job.counts[0], job.counts[i]);
        word_counts_free(job.counts[i]);
    }
    WordCounts *counts = job.counts[0];
    for (int i = 0; i < chunk_count; ++i) chunk_free(&chunks[i]);
    for (int i = 0; i < threads; ++i) text_buffer_free(&job.texts[i]);
    reader_free(job.reader);
    free(job.texts);
    free(job.counts);
    free(pointers);
    free(chunks);
    if (ok && word_counts_bytes(counts) == 0) ok = error_set(err, "the inputs contain no text");
    if (ok) return counts;
    word_counts_free(counts);
    return NULL;
}

// The progress line of merging; only on a terminal.
typedef struct {
    double shown;
} MergeProgress;

static void show_merges(void *context, int32_t done, int32_t wanted) {
    MergeProgress *progress = context;
    double now = now_seconds();
    if (isatty(STDERR_FILENO) != 1 || now - progress->shown < 0.2) return;
    progress->shown = now;
    fprintf(stderr, "\r\033[Kmerge: %d of %d", done, wanted);
    if (done == wanted) fputs("\r\033[K", stderr);
    fflush(stderr);
}

static bool train(const Settings *settings, const WordCounts *counts, double started, Error *err) {
    double counted = now_seconds();
    MergeProgress progress = {counted};
    TokenizerTraining training = {.vocab = (int32_t)settings->vocab,
                                  .reserved = (int32_t)settings->reserved,
                                  .min_count = settings->min_count,
                                  .progress = show_merges,
                                  .progress_context = &progress};
    Tokenizer *tokenizer = tokenizer_train(counts, &training, err);
    if (isatty(STDERR_FILENO) == 1) fputs("\r\033[K", stderr);
    bool ok = tokenizer != NULL && make_dirs(settings->out, err) && tokenizer_save(tokenizer, settings->out, err);
    if (ok) {
        if (tokenizer_vocab(tokenizer) < settings->vocab)
            printf("note: no remaining pair occurs at least %lld times, so the vocabulary is %d, not %lld\n",
                   (long long)settings->min_count, tokenizer_vocab(tokenizer), (long long)settings->vocab);
        printf("%s/tokenizer.json: vocabulary %d, %d merges, <|endoftext|> = %d; from %.1f MB, %" PRId64
               " distinct words; counted in %.2f s, merged in %.2f s\n",
               settings->out, tokenizer_vocab(tokenizer), tokenizer_merges(tokenizer), tokenizer_eot(tokenizer),
               (double)word_counts_bytes(counts) / 1e6, word_counts_unique(counts), counted - started,
               now_seconds() - counted);
    }
    tokenizer_free(tokenizer);
    return ok;
}

int prep_train_tokenizer(int argc, char **argv, Error *err) {
    Settings s = {.field = "text", .min_count = 2};
    const Option rows[] = {
        {"vocab", OPTION_TO(s.vocab), OPTION_WHOLE, 257, 1 << 21,
         .help = "vocabulary size: 256 bytes + merges + reserved tokens + <|endoftext|>"},
        {"out", OPTION_TO(s.out), OPTION_TEXT, 1, .help = "directory for tokenizer.json"},
        PREP_TEXT_ROWS(s),
        {"reserved", OPTION_TO(s.reserved), OPTION_WHOLE, 0, 100000,
         .help = "number of special tokens <|reserved_0|> ... for later use"},
        {"min-count", OPTION_TO(s.min_count), OPTION_WHOLE, 1, 1e15,
         .help = "merge only pairs that occur at least this often"},
        {"max-bytes", OPTION_TO(s.max_bytes), OPTION_WHOLE, 0, 1e18,
         .help = "stop reading after about this many bytes; 0: read all"}};
    const OptionTable table = {OPTION_ROWS(rows), OPTIONS_DASHES, .about = ABOUT};
    int file_count;
    OptionsResult parsed = options_parse(&file_count, argc, argv, &table, err);
    if (parsed != OPTIONS_OK) return parsed == OPTIONS_HELP ? EXIT_OK : EXIT_USAGE;
    const char *missing = s.vocab == 0      ? "--vocab: the size of the vocabulary"
                          : s.out == NULL   ? "--out: a directory"
                          : file_count == 0 ? "at least one FILE (- is standard input)"
                                            : NULL;
    if (missing != NULL) {
        error_set(err, "expected %s (see --help)", missing);
        return EXIT_USAGE;
    }
    if (s.vocab < 257 + s.reserved) {
        error_set(err, "--vocab %lld: expected at least 256 bytes + %lld reserved + 1", (long long)s.vocab,
                  (long long)s.reserved);
        return EXIT_USAGE;
    }
    double started = now_seconds();
    Segment *segments = xcalloc((size_t)file_count, sizeof *segments);
    int64_t total_bytes = 0;
    for (int i = 0; i < file_count; ++i) {
        int64_t bytes = input_file_bytes(argv[i]);
        segments[i] = (Segment){argv[i], 0, INT64_MAX, false};
        total_bytes = bytes < 0 || total_bytes < 0 ? -1 : total_bytes + bytes;
    }
    if (s.max_bytes > 0) total_bytes = total_bytes < 0 ? s.max_bytes : min_i64(total_bytes, s.max_bytes);
    WordCounts *counts = count_words(&s, segments, file_count, total_bytes, err);
    bool ok = counts != NULL && train(&s, counts, started, err);
    word_counts_free(counts);
    free(segments);
    return ok ? EXIT_OK : EXIT_FAILED;
}
