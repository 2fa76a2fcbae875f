// tokenizer.c: the Tokenizer itself: its tables, what can be asked of it, and which loader reads which source.
// Loaders are in tokenizer_files.c and tokenizer_json.c, encoding in tokenizer_encode.c, training in
// tokenizer_train.c.
#include "llmc/tokenizer/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "llmc/tokenizer/tokenizer_impl.h"

// ---- building ----

static void clear_slots(int32_t *slots, int64_t count) {
    for (int64_t i = 0; i < count; ++i) slots[i] = -1;
}
static PairSlot *new_pairs(int64_t count) {
    PairSlot *pairs = xmalloc(to_size(count) * sizeof *pairs);
    for (int64_t i = 0; i < count; ++i) pairs[i] = (PairSlot){-1, -1, 0, 0};
    return pairs;
}

Tokenizer *tokenizer_new(SplitPattern pattern) {
    enum { FIRST_SLOTS = 1024 };
    Tokenizer *t = xcalloc(1, sizeof *t);
    t->pattern = pattern;
    t->eot = -1;
    clear_slots(t->byte_ids, 256);
    t->token_slots = xmalloc(FIRST_SLOTS * sizeof *t->token_slots);
    clear_slots(t->token_slots, FIRST_SLOTS);
    t->token_slot_mask = FIRST_SLOTS - 1;
    t->pairs = new_pairs(FIRST_SLOTS);
    t->pair_mask = FIRST_SLOTS - 1;
    return t;
}

void tokenizer_free(Tokenizer *t) {
    if (t == NULL) return;
    free(t->tokens);
    free(t->bytes);
    free(t->token_slots);
    free(t->merges);
    free(t->pairs);
    free(t->specials);
    free(t->original);
    free(t);
}

// The slot that holds the token with these bytes, or the empty slot where it belongs.
static int64_t token_slot(const Tokenizer *t, const uint8_t *bytes, int64_t count) {
    int64_t slot = (int64_t)(XXH3_64bits(bytes, to_size(count)) & (uint64_t)t->token_slot_mask);
    for (;; slot = (slot + 1) & t->token_slot_mask) {
        int32_t id = t->token_slots[slot];
        if (id < 0) return slot;
        const Token *token = &t->tokens[id];
        if (token->bytes == count && memcmp(t->bytes + token->offset, bytes, to_size(count)) == 0) return slot;
    }
}

static void grow_token_slots(Tokenizer *t) {
    int32_t *old = t->token_slots;
    int64_t old_count = t->token_slot_mask + 1;
    t->token_slot_mask = 2 * old_count - 1;
    t->token_slots = xmalloc(to_size(2 * old_count) * sizeof *old);
    clear_slots(t->token_slots, 2 * old_count);
    for (int64_t i = 0; i < old_count; ++i) {
        if (old[i] < 0) continue;
        const Token *token = &t->tokens[old[i]];
        t->token_slots[token_slot(t, t->bytes + token->offset, token->bytes)] = old[i];
    }
    free(old);
}

bool tokenizer_add_token(Tokenizer *t, int64_t id, const uint8_t *bytes, int64_t count, TokenKind kind, Error *err) {
    if (id < 0 || id >= TOKENIZER_MAX_VOCAB)
        return error_set(err, "token id %lld is outside 0 .. %d", (long long)id, TOKENIZER_MAX_VOCAB - 1);
    if (count < 1 || count > TOKENIZER_MAX_TOKEN_BYTES)
        return error_set(err, "token %lld has %lld bytes; expected 1 to %d", (long long)id, (long long)count,
                         TOKENIZER_MAX_TOKEN_BYTES);
    if (id < t->vocab && t->tokens[id].kind != TOKEN_UNUSED)
        return error_set(err, "two tokens have the id %lld", (long long)id);
    if (id >= t->token_capacity) {
        int64_t capacity = min_i64(max_i64(2 * id + 1, 1024), TOKENIZER_MAX_VOCAB);
        t->tokens = xrealloc(t->tokens, to_size(capacity) * sizeof *t->tokens);
        memset(t->tokens + t->token_capacity, 0, to_size(capacity - t->token_capacity) * sizeof *t->tokens);
        t->token_capacity = to_i32(capacity);
    }
    if (t->bytes_used + count > t->bytes_capacity) {
        t->bytes_capacity = 2 * (t->bytes_used + count) + 4096;
        t->bytes = xrealloc(t->bytes, to_size(t->bytes_capacity));
    }
    if (kind == TOKEN_NORMAL) {
        if (2 * t->token_slots_used > t->token_slot_mask) grow_token_slots(t);
        int64_t slot = token_slot(t, bytes, count);
        if (t->token_slots[slot] >= 0)
            return error_set(err, "tokens %d and %lld are the same bytes", t->token_slots[slot], (long long)id);
        t->token_slots[slot] = (int32_t)id;
        ++t->token_slots_used;
        if (count == 1) t->byte_ids[bytes[0]] = (int32_t)id;
    }
    memcpy(t->bytes + t->bytes_used, bytes, to_size(count));
    t->tokens[id] = (Token){t->bytes_used, (int32_t)count, kind};
    t->bytes_used += count;
    t->vocab = to_i32(max_i64(t->vocab, id + 1));
    return true;
}

void tokenizer_make_special(Tokenizer *t, int32_t id) { t->tokens[id].kind = TOKEN_SPECIAL; }

int32_t tokenizer_find_token(const Tokenizer *t, const uint8_t *bytes, int64_t count) {
    int32_t id = t->token_slots[token_slot(t, bytes, count)];
    return id >= 0 && t->tokens[id].kind == TOKEN_NORMAL ? id : -1;
}

static void insert_pair(Tokenizer *t, PairSlot pair) {
    uint64_t key = (uint64_t)(uint32_t)pair.left << 32 | (uint32_t)pair.right;
    int64_t slot = (int64_t)((key * 0x9E3779B97F4A7C15u) >> 32) & t->pair_mask;
    while (t->pairs[slot].left >= 0) slot = (slot + 1) & t->pair_mask;
    t->pairs[slot] = pair;
}

void tokenizer_add_pair(Tokenizer *t, int32_t left, int32_t right, int32_t rank, int32_t result) {
    if (2 * t->pairs_used > t->pair_mask) {
        PairSlot *old = t->pairs;
        int64_t old_count = t->pair_mask + 1;
        t->pairs = new_pairs(2 * old_count);
        t->pair_mask = 2 * old_count - 1;
        for (int64_t i = 0; i < old_count; ++i)
            if (old[i].left >= 0) insert_pair(t, old[i]);
        free(old);
    }
    insert_pair(t, (PairSlot){left, right, rank, result});
    ++t->pairs_used;
}

bool tokenizer_add_merge(Tokenizer *t, int32_t left, int32_t right, Error *err) {
    uint8_t joined[2 * TOKENIZER_MAX_TOKEN_BYTES];
    const Token *a = &t->tokens[left], *b = &t->tokens[right];
    memcpy(joined, t->bytes + a->offset, (size_t)a->bytes);
    memcpy(joined + a->bytes, t->bytes + b->offset, (size_t)b->bytes);
    int32_t result = tokenizer_find_token(t, joined, a->bytes + b->bytes);
    if (result < 0)
        return error_set(err, "merge %d joins tokens %d and %d, but no token is the result", t->merge_count, left,
                         right);
    if (tokenizer_find_pair(t, left, right) != NULL)
        return error_set(err, "merge %d joins tokens %d and %d a second time", t->merge_count, left, right);
    if (t->merge_count == t->merge_capacity) {
        t->merge_capacity = 2 * t->merge_capacity + 1024;
        t->merges = xrealloc(t->merges, (size_t)t->merge_capacity * sizeof *t->merges);
    }
    tokenizer_add_pair(t, left, right, t->merge_count, result);
    t->merges[t->merge_count++] = (Merge){left, right, result};
    return true;
}

// ---- sealing ----

static int longest_first(const void *a, const void *b, void *tokenizer) {
    const Tokenizer *t = tokenizer;
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    int32_t dx = t->tokens[x].bytes, dy = t->tokens[y].bytes;
    return dx != dy ? (dx < dy) - (dx > dy) : (x > y) - (x < y);
}

static void collect_specials(Tokenizer *t) {
    for (int32_t id = 0; id < t->vocab; ++id) t->special_count += t->tokens[id].kind == TOKEN_SPECIAL;
    t->specials = xmalloc((size_t)t->special_count * sizeof *t->specials);
    for (int32_t id = 0, n = 0; id < t->vocab; ++id)
        if (t->tokens[id].kind == TOKEN_SPECIAL) t->specials[n++] = id;
    qsort_r(t->specials, (size_t)t->special_count, sizeof *t->specials, longest_first, t);
    static const char *const END_NAMES[] = {END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>"};
    for (size_t i = 0; i < sizeof END_NAMES / sizeof END_NAMES[0] && t->eot < 0; ++i)
        t->eot = tokenizer_find_special(t, END_NAMES[i]);
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
    // llama2.c has no list of merges; the order of its table of pairs is as fixed.
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

// ---- loading and saving ----

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

// ---- facts ----

const char *tokenizer_name(const Tokenizer *t) { return t->name; }
int32_t tokenizer_vocab(const Tokenizer *t) { return t->vocab; }
int32_t tokenizer_eot(const Tokenizer *t) { return t->eot; }
int32_t tokenizer_merges(const Tokenizer *t) { return t->merge_count; }
uint64_t tokenizer_fingerprint(const Tokenizer *t) { return t->fingerprint; }

void tokenizer_merge(const Tokenizer *t, int32_t rank, int32_t *left, int32_t *right) {
    CHECK(rank >= 0 && rank < t->merge_count, "merge %d of %d", rank, t->merge_count);
    *left = t->merges[rank].left;
    *right = t->merges[rank].right;
}

static const Token *token_at(const Tokenizer *t, int32_t id) {
    CHECK(id >= 0 && id < t->vocab, "id %d of %d", id, t->vocab);
    return &t->tokens[id];
}

const uint8_t *tokenizer_token(const Tokenizer *t, int32_t id, int32_t *bytes) {
    const Token *token = token_at(t, id);
    *bytes = token->bytes;
    return t->bytes + token->offset;
}

bool tokenizer_is_special(const Tokenizer *t, int32_t id) { return token_at(t, id)->kind == TOKEN_SPECIAL; }

int32_t tokenizer_text_bytes(const Tokenizer *t, int32_t id) {
    const Token *token = token_at(t, id);
    return token->kind == TOKEN_SPECIAL ? 0 : token->bytes;
}

int32_t tokenizer_find_special(const Tokenizer *t, const char *name) {
    size_t length = strlen(name);
    for (int32_t i = 0; i < t->special_count; ++i) {
        const Token *token = &t->tokens[t->specials[i]];
        if ((size_t)token->bytes == length && memcmp(t->bytes + token->offset, name, length) == 0)
            return t->specials[i];
    }
    return -1;
}
