// tokenizer.c: the tables of a Tokenizer and their accessors. tokenizer_load.c chooses the loader of a source,
// tokenizer_seal.c checks what was loaded, tokenizer_encode.c and tokenizer_merge.c encode, tokenizer_train.c trains.
#include "llmc/tokenizer/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "llmc/tokenizer/tokenizer_impl.h"

// ---- construction ----

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
            return error_set(err, "tokens %d and %lld have the same bytes", t->token_slots[slot], (long long)id);
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

// ---- accessors ----

const char *tokenizer_name(const Tokenizer *t) { return t->name; }
int32_t tokenizer_vocab(const Tokenizer *t) { return t->vocab; }
int32_t tokenizer_eot(const Tokenizer *t) { return t->eot; }
int32_t tokenizer_merges(const Tokenizer *t) { return t->merge_count; }
uint64_t tokenizer_fingerprint(const Tokenizer *t) { return t->fingerprint; }

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
