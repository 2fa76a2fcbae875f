// tokenizer_seal.c: completes a loaded tokenizer: checks, special tokens, fingerprint, name.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "llmc/tokenizer/tokenizer_impl.h"

static int longest_first(const void *a, const void *b, void *tokenizer) {
    const Tokenizer *t = tokenizer;
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    int32_t dx = t->tokens[x].bytes, dy = t->tokens[y].bytes;
    return dx != dy ? (dx < dy) - (dx > dy) : (x > y) - (x < y);
}

static int32_t find_special(const Tokenizer *t, const char *name) {
    size_t length = strlen(name);
    for (int32_t i = 0; i < t->special_count; ++i) {
        const Token *token = &t->tokens[t->specials[i]];
        if ((size_t)token->bytes == length && memcmp(t->bytes + token->offset, name, length) == 0)
            return t->specials[i];
    }
    return -1;
}

static void collect_specials(Tokenizer *t) {
    for (int32_t id = 0; id < t->vocab; ++id) t->special_count += t->tokens[id].kind == TOKEN_SPECIAL;
    t->specials = xmalloc((size_t)t->special_count * sizeof *t->specials);
    for (int32_t id = 0, n = 0; id < t->vocab; ++id)
        if (t->tokens[id].kind == TOKEN_SPECIAL) t->specials[n++] = id;
    qsort_r(t->specials, (size_t)t->special_count, sizeof *t->specials, longest_first, t);
    static const char *const END_NAMES[] = {END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>"};
    for (size_t i = 0; i < sizeof END_NAMES / sizeof END_NAMES[0] && t->eot < 0; ++i)
        t->eot = find_special(t, END_NAMES[i]);
}

// Whether merging the bytes of every token gives that token.
static bool merges_reach_all_tokens(const Tokenizer *t) {
    int32_t *symbols = xmalloc(TOKENIZER_MAX_TOKEN_BYTES * sizeof *symbols);
    bool all = true;
    for (int32_t id = 0; id < t->vocab && all; ++id) {
        const Token *token = &t->tokens[id];
        if (token->kind != TOKEN_NORMAL) continue;
        for (int32_t i = 0; i < token->bytes; ++i) symbols[i] = t->byte_ids[t->bytes[token->offset + i]];
        all = tokenizer_merge_symbols(t, symbols, token->bytes) == 1;
    }
    free(symbols);
    return all;
}

static void hash_number(XXH3_state_t *state, uint64_t number) {
    uint8_t bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = (uint8_t)(number >> (8 * i));
    XXH3_64bits_update(state, bytes, sizeof bytes);
}

static uint64_t compute_fingerprint(const Tokenizer *t) {
    XXH3_state_t *state = XXH3_createState();
    CHECK(state != NULL, "out of memory");
    XXH3_64bits_reset(state);
    hash_number(state, (uint64_t)t->pattern | (uint64_t)t->whole_pieces << 8 | (uint64_t)t->llama2c << 9 |
                           (uint64_t)t->normalize_nfc << 10);
    hash_number(state, (uint64_t)t->vocab);
    for (int32_t id = 0; id < t->vocab; ++id) {
        const Token *token = &t->tokens[id];
        hash_number(state, (uint64_t)token->bytes << 8 | (uint64_t)token->kind);
        if (token->bytes > 0) XXH3_64bits_update(state, t->bytes + token->offset, (size_t)token->bytes);
    }
    hash_number(state, (uint64_t)t->merge_count);
    for (int32_t i = 0; i < t->merge_count; ++i)
        hash_number(state, (uint64_t)(uint32_t)t->merges[i].left << 32 | (uint32_t)t->merges[i].right);
    // llama2.c has no list of merges; the order of its pair table is fixed, too.
    for (int64_t i = 0; i <= t->pair_mask && t->llama2c; ++i)
        if (t->pairs[i].left >= 0)
            hash_number(state, (uint64_t)t->pairs[i].rank << 32 | (uint32_t)t->pairs[i].result);
    uint64_t hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return hash;
}

static void choose_name(Tokenizer *t) {
    static const struct {
        uint64_t fingerprint;
        const char *name;
    } KNOWN[] = {{0xe76ddec2fe65b9fbu, "gpt2"}, {0x7d545de8d62b4520u, "cl100k_base"}};
    const char *kind = t->llama2c ? "llama2c" : "bpe";
    snprintf(t->name, sizeof t->name, "%s-%d", kind, t->vocab);
    if (t->pairs_used == 0 && t->vocab == 257 && t->eot == 256) snprintf(t->name, sizeof t->name, "bytes");
    for (size_t i = 0; i < sizeof KNOWN / sizeof KNOWN[0]; ++i)
        if (t->fingerprint == KNOWN[i].fingerprint) snprintf(t->name, sizeof t->name, "%s", KNOWN[i].name);
}

bool tokenizer_seal(Tokenizer *t, Error *err) {
    for (int byte = 0; byte < 256; ++byte)
        if (t->byte_ids[byte] < 0) return error_set(err, "no token for the byte 0x%02X; all 256 are needed", byte);
    int32_t longest = 0, gap = -1;
    for (int32_t id = 0; id < t->vocab; ++id) {
        if (t->tokens[id].kind == TOKEN_UNUSED && gap < 0) gap = id;
        if (t->tokens[id].kind != TOKEN_NORMAL) continue;
        if (gap >= 0) return error_set(err, "no token has the id %d, but one has the id %d", gap, id);
        if (t->tokens[id].bytes > longest) longest = t->tokens[id].bytes;
    }
    if (longest == 1) t->pattern = SPLIT_NONE;  // nothing to merge: pieces make no difference
    if (t->whole_pieces && merges_reach_all_tokens(t)) t->whole_pieces = false;
    collect_specials(t);
    t->fingerprint = compute_fingerprint(t);
    choose_name(t);
    return true;
}
