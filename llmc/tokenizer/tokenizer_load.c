// tokenizer_load.c: chooses the loader of a source. The loaders are in tokenizer_files.c and tokenizer_json.c.
#include <stdlib.h>
#include <string.h>

#include "llmc/tokenizer/tokenizer_impl.h"

static Tokenizer *new_bytes(void) {
    Tokenizer *t = tokenizer_new(SPLIT_NONE);
    Error err = {""};
    bool ok = true;
    for (int id = 0; id < 256; ++id)
        ok = ok && tokenizer_add_token(t, id, (uint8_t[]){(uint8_t)id}, 1, TOKEN_NORMAL, &err);
    ok = ok && tokenizer_add_token(t, 256, (const uint8_t *)END_OF_TEXT, strlen(END_OF_TEXT), TOKEN_SPECIAL, &err);
    ok = ok && tokenizer_seal(t, &err);
    CHECK(ok, "%s", err.message);
    return t;
}

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

static bool load_directory(Tokenizer **out, const char *dir, Error *err) {
    static const char *const PAIRS[][2] = {{"encoder.json", "vocab.bpe"}, {"vocab.json", "merges.txt"}};
    char *path = path_join(dir, "tokenizer.json");
    bool found = file_exists(path), ok = found && tokenizer_load_json(out, path, err);
    free(path);
    for (int i = 0; i < 2 && !found; ++i) {
        char *vocab = path_join(dir, PAIRS[i][0]), *merges = path_join(dir, PAIRS[i][1]);
        found = file_exists(vocab) && file_exists(merges);
        if (found) ok = tokenizer_load_gpt2(out, vocab, merges, err);
        free(vocab);
        free(merges);
    }
    path = path_join(dir, "tokenizer.bin");
    if (!found && file_exists(path)) {
        found = true;
        ok = tokenizer_load_llama2c(out, path, err);
    }
    free(path);
    if (found) return ok;
    return error_set(err,
                     "%s: no tokenizer here; expected tokenizer.json, encoder.json with vocab.bpe, or vocab.json "
                     "with merges.txt",
                     dir);
}

Tokenizer *tokenizer_load(const char *source, Error *err) {
    if (strcmp(source, "bytes") == 0) return new_bytes();
    Tokenizer *t = NULL;
    bool ok;
    if (dir_exists(source)) {
        ok = load_directory(&t, source, err);
    } else if (!file_exists(source)) {
        ok = error_set(err,
                       "%s: no such tokenizer; expected \"bytes\", a directory, or a .json, .tiktoken or .bin file",
                       source);
    } else if (ends_with(source, ".json")) {
        ok = tokenizer_load_json(&t, source, err);
    } else if (ends_with(source, ".tiktoken")) {
        ok = tokenizer_load_tiktoken(&t, source, err);
    } else if (ends_with(source, ".bin")) {
        ok = tokenizer_load_llama2c(&t, source, err);
    } else {
        ok = error_set(err, "%s: unknown kind of tokenizer file; expected .json, .tiktoken or .bin", source);
    }
    if (ok) return t;
    tokenizer_free(t);
    return NULL;
}
