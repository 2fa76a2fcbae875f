// tokenize.c: prep tokenize: converts text to token shards, on all cores in constant memory. The main thread reads
// chunks and writes tokens, in order; workers find the documents of a chunk and encode them (pool.h).
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/dataset.h"
#include "data/read/input.h"
#include "data/pool.h"
#include "data/prep.h"
#include "data/progress.h"
#include "data/read/reader.h"

typedef struct {
    const char *tokenizer, *out, *field;
    DocMode docs;
    int64_t shard_tokens, version, threads, val_docs_every;
    double val_fraction;
    bool overwrite;
} Settings;

static const char ABOUT[] =
    "usage: prep tokenize --tokenizer TOKENIZER --out DIR [options] FILE...\n\n"
    "Converts text files (plain or .jsonl, optionally compressed as .gz or .zst; - is standard input) to token shards\n"
    "DIR/train_000000.bin ... and DIR/val_000000.bin ..., and writes the tokenizer and dataset.json to DIR. Each\n"
    "document starts with the end-of-text token. DIR is created only when everything has succeeded.\n\n"
    "example\n  prep tokenize --tokenizer runs/bible/tokenizer --out runs/bible/data --val-fraction 0.1 bible.txt\n";

// A document, or the part of one that is in the chunk.
typedef struct {
    int64_t first;  // index of its first token in the item's list
    int64_t text_bytes;
    bool starts;
} Document;

typedef struct {
    Chunk chunk;
    TokenList tokens;
    Document *documents;
    int64_t document_count, document_capacity;
} Item;

typedef struct {
    TokenEncoder *encoder;
    TextBuffer text;
} Encoder;

typedef struct {
    const Settings *settings;
    const Tokenizer *tokenizer;
    Reader *reader;
    Encoder *encoders;  // one per worker
    Dataset *dataset;
    Progress progress;
    double seconds, cpu_seconds;  // of reading, encoding and writing
    int64_t documents;            // started so far
    bool in_val;                  // the current document is held out
} Job;

static bool was_interrupted(void) {
    sigset_t pending;
    return sigpending(&pending) == 0 && (sigismember(&pending, SIGINT) == 1 || sigismember(&pending, SIGTERM) == 1);
}

static bool fill_item(void *context, void *item, bool *end, Error *err) {
    Job *job = context;
    if (was_interrupted()) return error_set(err, "interrupted: no dataset was written");
    return reader_next(job->reader, &((Item *)item)->chunk, end, err);
}

static void add_document(Item *item, int64_t text_bytes, bool starts) {
    if (item->document_count == item->document_capacity) {
        item->document_capacity = 2 * item->document_capacity + 64;
        item->documents = xrealloc(item->documents, to_size(item->document_capacity) * sizeof *item->documents);
    }
    item->documents[item->document_count++] = (Document){item->tokens.count, text_bytes, starts};
}

static bool encode_item(void *context, int worker, void *argument, Error *err) {
    Job *job = context;
    Item *item = argument;
    const Chunk *chunk = &item->chunk;
    Encoder *encoder = &job->encoders[worker];
    const uint8_t *text;
    int64_t bytes, pos = 0;
    item->tokens.count = item->document_count = 0;
    while (chunk_next_document(&text, &bytes, chunk, &pos)) {
        if (chunk->mode == DOCS_JSONL) {
            if (!jsonl_text(&encoder->text, text, bytes, job->settings->field, err)) {
                int64_t line = chunk->first_line + count_lines(chunk->text, text - chunk->text);
                char from[60] = "";
                if (chunk->first_byte > 0) snprintf(from, sizeof from, " after byte %" PRId64, chunk->first_byte);
                return error_prefix(err, "%s: line %" PRId64 "%s", chunk->path, line, from);
            }
            text = encoder->text.bytes;
            bytes = encoder->text.count;
        }
        bool starts = chunk->starts || (chunk->mode != DOCS_FILE && chunk->mode != DOCS_NONE);
        add_document(item, bytes, starts);
        if (starts && chunk->mode != DOCS_NONE) token_list_push(&item->tokens, tokenizer_eot(job->tokenizer));
        token_encoder_feed(encoder->encoder, &item->tokens, text, bytes);
        token_encoder_finish(encoder->encoder, &item->tokens);
    }
    return true;
}

static bool write_item(void *context, void *argument, Error *err) {
    Job *job = context;
    const Item *item = argument;
    int64_t every = job->settings->val_docs_every;
    // Consecutive documents of the same split are appended together.
    for (int64_t i = 0, next; i < item->document_count; i = next) {
        int64_t documents = 0, text_bytes = 0;
        bool val = job->in_val;
        for (next = i; next < item->document_count; ++next) {
            const Document *document = &item->documents[next];
            bool mine = job->in_val;
            if (document->starts) mine = item->chunk.val || (every > 0 && (job->documents + 1) % every == 0);
            if (next > i && mine != val) break;
            val = job->in_val = mine;
            job->documents += document->starts;
            documents += document->starts;
            text_bytes += document->text_bytes;
        }
        int64_t first = item->documents[i].first;
        int64_t last = next < item->document_count ? item->documents[next].first : item->tokens.count;
        if (!dataset_append(job->dataset, val ? SPLIT_VAL : SPLIT_TRAIN, item->tokens.ids + first, last - first,
                            documents, text_bytes, err))
            return false;
    }
    char note[64];
    int64_t tokens =
        dataset_totals(job->dataset, SPLIT_TRAIN).tokens + dataset_totals(job->dataset, SPLIT_VAL).tokens;
    snprintf(note, sizeof note, ", %.2fM tokens", (double)tokens / 1e6);
    progress_update(&job->progress, reader_position(job->reader), note);
    return true;
}

static int64_t cut_text(const void *tokenizer, const void *text, int64_t bytes) {
    return tokenizer_safe_cut(tokenizer, text, bytes);
}

static bool run_job(Job *job, Segment *segments, int segment_count, int threads, Error *err) {
    int item_count = 2 * threads + 2;
    Item *items = xcalloc((size_t)item_count, sizeof *items);
    void **pointers = xmalloc((size_t)item_count * sizeof *pointers);
    for (int i = 0; i < item_count; ++i) pointers[i] = &items[i];
    job->encoders = xcalloc((size_t)threads, sizeof *job->encoders);
    for (int i = 0; i < threads; ++i) job->encoders[i].encoder = token_encoder_new(job->tokenizer);
    job->reader = reader_new(segments, segment_count, job->settings->docs, cut_text, job->tokenizer);
    bool ok = pool_run(&(PoolSteps){job, fill_item, encode_item, write_item}, threads, pointers, item_count, err);
    for (int i = 0; i < item_count; ++i) {
        chunk_free(&items[i].chunk);
        token_list_free(&items[i].tokens);
        free(items[i].documents);
    }
    for (int i = 0; i < threads; ++i) {
        token_encoder_free(job->encoders[i].encoder);
        text_buffer_free(&job->encoders[i].text);
    }
    reader_free(job->reader);
    free(job->encoders);
    free(pointers);
    free(items);
    return ok;
}

static bool check_totals(const Job *job, Error *err) {
    int64_t train = dataset_totals(job->dataset, SPLIT_TRAIN).text_bytes;
    int64_t val = dataset_totals(job->dataset, SPLIT_VAL).text_bytes;
    if (train + val == 0) return error_set(err, "the inputs contain no text");
    if (job->settings->val_docs_every > 0 && val == 0)
        return error_set(err, "--val-docs-every %lld: expected at least as many documents, found %lld",
                         (long long)job->settings->val_docs_every, (long long)job->documents);
    return train > 0 ? true : error_set(err, "all text went to validation, none to training");
}

static void report(const Job *job, DatasetTotals train, DatasetTotals val) {
    double megabytes = (double)(train.text_bytes + val.text_bytes) / 1e6;
    const DatasetTotals *totals[] = {&train, &val};
    static const char *const NAMES[] = {"train", "val"};
    for (int i = 0; i < 2; ++i)
        if (totals[i]->tokens > 0)
            printf("%-6s %" PRId64 " tokens in %d shard%s, %" PRId64 " documents, %" PRId64 " bytes (%.2f per token)\n",
                   NAMES[i], totals[i]->tokens, totals[i]->shards, totals[i]->shards == 1 ? "" : "s",
                   totals[i]->documents, totals[i]->text_bytes,
                   (double)totals[i]->text_bytes / (double)totals[i]->tokens);
    printf("%s: %.1f MB in %.2f s, %.1f MB/s; %.1f MB per second of CPU\n", job->settings->out, megabytes,
           job->seconds, megabytes / job->seconds, megabytes / job->cpu_seconds);
}

static bool tokenize_into(Job *job, Segment *segments, int count, char **files, int file_count, Error *err) {
    const Settings *s = job->settings;
    int64_t version = s->version != 0 ? s->version : tokenizer_vocab(job->tokenizer) <= 65536 ? 1 : 2;
    DatasetSpec spec = {s->out,          job->tokenizer, (int)version,
                        s->shard_tokens, s->overwrite,   word_of(DOC_WORDS, (int)s->docs),
                        files,           file_count};
    job->dataset = dataset_create(&spec, err);
    if (job->dataset == NULL) return false;
    int64_t total_bytes = 0;
    for (int i = 0; i < file_count && total_bytes >= 0; ++i) {
        int64_t bytes = input_file_bytes(files[i]);
        total_bytes = bytes < 0 ? -1 : total_bytes + bytes;
    }
    // SIGINT and SIGTERM are blocked and checked between chunks, so that the temporary directory can be removed; they
    // take effect when the old mask is restored.
    sigset_t signals, before;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, &before);
    progress_start(&job->progress, "tokenize", total_bytes);
    int threads = s->threads > 0 ? (int)s->threads : (int)max_i64(sysconf(_SC_NPROCESSORS_ONLN), 1);
    bool ok = run_job(job, segments, count, threads, err) && check_totals(job, err);
    job->seconds = now_seconds() - job->progress.started;
    job->cpu_seconds = process_cpu_seconds() - job->progress.cpu_started;
    progress_end(&job->progress);
    if (ok) {
        DatasetTotals train = dataset_totals(job->dataset, SPLIT_TRAIN),
                      val = dataset_totals(job->dataset, SPLIT_VAL);
        ok = dataset_commit(job->dataset, err);
        if (ok) report(job, train, val);
    } else {
        dataset_abort(job->dataset);
    }
    if (!ok && was_interrupted()) fprintf(stderr, "prep tokenize: %s\n", err->message);
    sigprocmask(SIG_SETMASK, &before, NULL);
    return ok;
}

static int check_usage(const Settings *s, int file_count, Error *err) {
    const char *wrong = NULL;
    if (s->tokenizer == NULL) wrong = "expected --tokenizer: bytes, a directory, or a tokenizer file";
    else if (s->out == NULL) wrong = "expected --out: the output directory";
    else if (file_count == 0) wrong = "expected at least one FILE (- is standard input)";
    else if (s->val_fraction > 0 && s->val_docs_every > 0)
        wrong = "expected --val-fraction or --val-docs-every, not both";
    else if (s->val_docs_every > 0 && s->docs == DOCS_NONE)
        wrong = "--val-docs-every needs documents: expected another value than --docs none";
    if (wrong == NULL) return EXIT_OK;
    error_set(err, "%s (see --help)", wrong);
    return EXIT_USAGE;
}

int prep_tokenize(int argc, char **argv, Error *err) {
    Settings s = {.field = "text", .shard_tokens = 100000000};
    const Option rows[] = {
        {"tokenizer", OPTION_TO(s.tokenizer), OPTION_TEXT, 1,
         .help = "tokenizer: bytes, a directory, or a .json, .tiktoken or .bin file"},
        {"out", OPTION_TO(s.out), OPTION_TEXT, 1, .help = "output directory; new or empty"},
        PREP_TEXT_ROWS(s),
        {"val-fraction", OPTION_TO(s.val_fraction), OPTION_REAL, 0, 0.99,
         .help = "hold out this fraction of all bytes, at the end"},
        {"val-docs-every", OPTION_TO(s.val_docs_every), OPTION_WHOLE, 0, 1e15, .help = "hold out every Nth document"},
        {"shard-tokens", OPTION_TO(s.shard_tokens), OPTION_WHOLE, 1, 2147483647, .help = "most tokens of a shard"},
        {"version", OPTION_TO(s.version), OPTION_WHOLE, 0, 2,
         .help = "shard format: 1: llm.c's, for at most 65536 ids; 2: any; 0: 1 if the vocabulary fits, else 2"},
        {"overwrite", OPTION_TO(s.overwrite), OPTION_FLAG, .help = "replace an existing dataset in --out"}};
    const OptionTable table = {OPTION_ROWS(rows), OPTIONS_DASHES, .about = ABOUT};
    int file_count;
    OptionsResult parsed = options_parse(&file_count, argc, argv, &table, err);
    if (parsed != OPTIONS_OK) return parsed == OPTIONS_HELP ? EXIT_OK : EXIT_USAGE;
    int code = check_usage(&s, file_count, err);
    if (code != EXIT_OK) return code;

    Tokenizer *tokenizer = tokenizer_load(s.tokenizer, err);
    if (tokenizer == NULL) return EXIT_FAILED;
    Segment *segments = xcalloc((size_t)file_count * 3, sizeof *segments), *split = segments + file_count;
    for (int i = 0; i < file_count; ++i) segments[i] = (Segment){argv[i], 0, INT64_MAX, false};
    int count = file_count;
    bool ok = s.docs == DOCS_NONE || tokenizer_eot(tokenizer) >= 0;
    if (!ok) error_set(err, "%s: the tokenizer has no end-of-text token: use --docs none", s.tokenizer);
    if (ok && s.val_fraction > 0) {
        count = segments_split(split, segments, file_count, s.docs, s.val_fraction, err);
        ok = count > 0;
    }
    Job job = {.settings = &s, .tokenizer = tokenizer};
    ok = ok && tokenize_into(&job, s.val_fraction > 0 ? split : segments, count, argv, file_count, err);
    free(segments);
    tokenizer_free(tokenizer);
    return ok ? EXIT_OK : EXIT_FAILED;
}
