// inspect.c: prep inspect: prints the contents of a shard, a dataset or a tokenizer in human-readable form.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/prep.h"
#include "llmc/base/format_version.h"
#include "llmc/loader/shard.h"
#include "llmc/tokenizer/tokenizer.h"

enum { READ_TOKENS = 1 << 16, LONGEST_SHOWN = 10 };

typedef struct {
    const char *tokenizer;
    int64_t text_bytes;
} Settings;

static const char ABOUT[] =
    "usage: prep inspect [options] PATH...\n\n"
    "Prints what each PATH holds: a shard (.bin), a dataset (a directory with dataset.json), or a tokenizer. The text\n"
    "at the start of a shard is decoded with --tokenizer, or with tokenizer.json in the directory of the shard.\n\n"
    "example\n  prep inspect runs/bible/data runs/bible/data/val_000000.bin runs/bible/tokenizer\n";

// Prints text with control characters as escapes.
static void print_text(const uint8_t *text, int64_t bytes, bool keep_newlines) {
    for (int64_t i = 0; i < bytes; ++i) {
        if (text[i] == '\n' && keep_newlines) putchar('\n');
        else if (text[i] == '\n') fputs("\\n", stdout);
        else if (text[i] == '\t') fputs("\\t", stdout);
        else if (text[i] < 0x20 || text[i] == 0x7F) printf("\\x%02X", text[i]);
        else putchar(text[i]);
    }
}

// ---- tokenizers ----

static void inspect_tokenizer(const Tokenizer *t, const char *path) {
    int32_t vocab = tokenizer_vocab(t), special = 0, longest[LONGEST_SHOWN], shown = 0;
    int64_t bytes = 0;
    for (int32_t id = 0; id < vocab; ++id) {
        int32_t length = tokenizer_text_bytes(t, id);
        special += tokenizer_is_special(t, id);
        bytes += length;
        if (length == 0 || (shown == LONGEST_SHOWN && length <= tokenizer_text_bytes(t, longest[shown - 1])))
            continue;
        int32_t at = shown < LONGEST_SHOWN ? shown++ : shown - 1;
        for (; at > 0 && tokenizer_text_bytes(t, longest[at - 1]) < length; --at) longest[at] = longest[at - 1];
        longest[at] = id;
    }
    printf("%s: tokenizer %s, vocabulary %d, %d merges, %d special tokens, end of text %d, fingerprint %016" PRIx64
           "\n",
           path, tokenizer_name(t), vocab, tokenizer_merges(t), special, tokenizer_eot(t), tokenizer_fingerprint(t));
    printf("  %.2f bytes a token; longest:", (double)bytes / (double)max_i64(vocab - special, 1));
    for (int32_t i = 0; i < shown; ++i) {
        int32_t length;
        const uint8_t *token = tokenizer_token(t, longest[i], &length);
        printf(" %d '", longest[i]);
        print_text(token, length, false);
        printf("'");
    }
    printf("\n");
}

// ---- shards ----

typedef struct {
    int64_t eot_count;
    int32_t min, max;
} ShardFacts;

static bool scan_shard(ShardFacts *facts, const Shard *shard, int32_t eot, Error *err) {
    *facts = (ShardFacts){0, INT32_MAX, 0};
    int32_t *tokens = xmalloc(READ_TOKENS * sizeof *tokens);
    bool ok = true;
    for (int64_t first = 0; ok && first < shard->token_count; first += READ_TOKENS) {
        int64_t count = min_i64(READ_TOKENS, shard->token_count - first);
        ok = shard_read(tokens, shard, first, count, shard->vocab, err);
        for (int64_t i = 0; ok && i < count; ++i) {
            if (tokens[i] < facts->min) facts->min = tokens[i];
            if (tokens[i] > facts->max) facts->max = tokens[i];
            facts->eot_count += tokens[i] == eot;
        }
    }
    free(tokens);
    return ok;
}

static bool print_start(const Shard *shard, const Tokenizer *t, int64_t text_bytes, Error *err) {
    int32_t tokens[1024];
    printf("  starts with:\n");
    for (int64_t first = 0; first < shard->token_count && text_bytes > 0; first += 1024) {
        int64_t count = min_i64(1024, shard->token_count - first);
        if (!shard_read(tokens, shard, first, count, tokenizer_vocab(t), err)) return false;
        for (int64_t i = 0; i < count && text_bytes > 0; ++i) {
            int32_t length;
            const uint8_t *token = tokenizer_token(t, tokens[i], &length);
            print_text(token, min_i64(length, text_bytes), true);
            text_bytes -= length;
        }
    }
    printf("\n");
    return true;
}

// The tokenizer of --tokenizer, or the one in the directory of the shard; *out NULL: there is none.
static bool find_tokenizer(Tokenizer **out, const Settings *settings, const char *path, Error *err) {
    const char *slash = strrchr(path, '/');
    char *dir = slash == NULL ? xstrdup(".") : xasprintf("%.*s", (int)(slash - path + 1), path);
    char *beside = path_join(dir, "tokenizer.json");
    const char *source = settings->tokenizer != NULL ? settings->tokenizer : file_exists(beside) ? beside : NULL;
    *out = source == NULL ? NULL : tokenizer_load(source, err);
    free(dir);
    free(beside);
    return source == NULL || *out != NULL;
}

static bool inspect_shard(const Settings *settings, const char *path, Error *err) {
    Shard shard;
    Tokenizer *t;
    ShardFacts facts;
    if (!shard_open(&shard, path, err)) return false;
    bool ok = find_tokenizer(&t, settings, path, err);
    int32_t eot = shard.eot >= 0 || t == NULL ? shard.eot : tokenizer_eot(t);
    ok = ok && scan_shard(&facts, &shard, eot, err);
    if (ok) {
        printf("%s: shard version %d, %" PRId64 " tokens of %d bytes", path, shard.version, shard.token_count,
               shard.bytes_per_token);
        if (shard.vocab > 0) printf(", vocabulary %" PRId64, shard.vocab);
        if (shard.token_count > 0) printf(", ids %d to %d", facts.min, facts.max);
        if (eot >= 0) printf(", %" PRId64 " documents (end of text = %d)", facts.eot_count, eot);
        else printf(", end of text unknown");
        printf("\n");
        if (t != NULL) {
            printf("  tokenizer %s, vocabulary %d%s\n", tokenizer_name(t), tokenizer_vocab(t),
                   facts.max >= tokenizer_vocab(t) && shard.token_count > 0 ? ": too small for the ids of this shard"
                                                                            : "");
            if (facts.max < tokenizer_vocab(t)) ok = print_start(&shard, t, settings->text_bytes, err);
        }
    }
    tokenizer_free(t);
    shard_close(&shard);
    return ok;
}

// ---- kinds of paths ----

static bool is_shard(const char *path) {
    int32_t magic = 0;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return false;
    bool ok = fread(&magic, sizeof magic, 1, file) == 1 && (magic == SHARD_MAGIC || magic == SHARD_MAGIC_LLAMA3);
    fclose(file);
    return ok;
}

static bool inspect_dataset(const char *meta, Error *err) {
    char *text;
    if (!file_read_all(meta, 1 << 24, &text, NULL, err)) return false;
    cJSON *root = json_parse(text, strlen(text), meta, err);
    bool ok = root != NULL && format_version_read(FORMAT_DATASET, root, meta, err);
    if (ok) printf("%s:\n%s\n", meta, text);
    cJSON_Delete(root);
    free(text);
    return ok;
}

static bool inspect_path(const Settings *settings, const char *path, Error *err) {
    char *meta = path_join(path, "dataset.json");
    bool is_dataset = file_exists(meta), ok = true;
    if (is_dataset) ok = inspect_dataset(meta, err);
    free(meta);
    if (!ok) return false;
    if (file_exists(path) && is_shard(path)) return inspect_shard(settings, path, err);
    Tokenizer *t = tokenizer_load(path, err);
    if (t != NULL) inspect_tokenizer(t, path);
    tokenizer_free(t);
    return t != NULL;
}

int prep_inspect(int argc, char **argv, Error *err) {
    Settings s = {.text_bytes = 400};
    const Option rows[] = {{"tokenizer", OPTION_TO(s.tokenizer), OPTION_TEXT, 1,
                            .help = "tokenizer to decode text with; default: the one in the directory of the shard"},
                           {"text-bytes", OPTION_TO(s.text_bytes), OPTION_WHOLE, 0, 1e9,
                            .help = "bytes of text to show from the start of a shard"}};
    const OptionTable table = {OPTION_ROWS(rows), OPTIONS_DASHES, .about = ABOUT};
    int count;
    OptionsResult parsed = options_parse(&count, argc, argv, &table, err);
    if (parsed != OPTIONS_OK) return parsed == OPTIONS_HELP ? EXIT_OK : EXIT_USAGE;
    if (count == 0) {
        error_set(err, "expected at least one PATH (see --help)");
        return EXIT_USAGE;
    }
    for (int i = 0; i < count; ++i)
        if (!inspect_path(&s, argv[i], err)) return EXIT_FAILED;
    return EXIT_OK;
}
