// tokenizer_train.c: byte-level BPE training. Words (pieces of GPT-2's split pattern) are counted first. Then the most
// frequent pair is merged repeatedly, updating only the words that contain it. Ties go to the greatest pair of byte
// strings, so the result depends on the counts only.
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "llmc/base/heap.h"
#include "llmc/tokenizer/tokenizer_impl.h"

// ---- word counts: open addressing over contiguous bytes ----

typedef struct {
    int64_t offset;
    int64_t count;  // 0: empty slot
    uint32_t bytes;
    uint32_t hash;
} WordSlot;

struct WordCounts {
    WordSlot *slots;
    int64_t mask, used;
    uint8_t *bytes;
    int64_t bytes_used, bytes_capacity;
    int64_t text_bytes;
};

enum { FIRST_WORD_SLOTS = 1 << 14 };

WordCounts *word_counts_new(void) {
    WordCounts *counts = xcalloc(1, sizeof *counts);
    counts->slots = xcalloc(FIRST_WORD_SLOTS, sizeof *counts->slots);
    counts->mask = FIRST_WORD_SLOTS - 1;
    return counts;
}

void word_counts_free(WordCounts *counts) {
    if (counts == NULL) return;
    free(counts->slots);
    free(counts->bytes);
    free(counts);
}

int64_t word_counts_unique(const WordCounts *counts) { return counts->used; }
int64_t word_counts_bytes(const WordCounts *counts) { return counts->text_bytes; }

static void grow_word_slots(WordCounts *counts) {
    int64_t mask = 2 * counts->mask + 1;
    WordSlot *slots = xcalloc(to_size(mask + 1), sizeof *slots);
    for (int64_t i = 0; i <= counts->mask; ++i) {
        if (counts->slots[i].count == 0) continue;
        int64_t at = counts->slots[i].hash & mask;
        while (slots[at].count != 0) at = (at + 1) & mask;
        slots[at] = counts->slots[i];
    }
    free(counts->slots);
    counts->slots = slots;
    counts->mask = mask;
}

static void add_word(WordCounts *counts, const uint8_t *word, int64_t bytes, int64_t count) {
    uint32_t hash = (uint32_t)XXH3_64bits(word, to_size(bytes));
    int64_t at = hash & counts->mask;
    for (; counts->slots[at].count != 0; at = (at + 1) & counts->mask) {
        WordSlot *slot = &counts->slots[at];
        if (slot->hash != hash || slot->bytes != bytes) continue;
        if (memcmp(counts->bytes + slot->offset, word, to_size(bytes)) != 0) continue;
        slot->count += count;
        return;
    }
    if (counts->bytes_used + bytes > counts->bytes_capacity) {
        counts->bytes_capacity = 2 * (counts->bytes_used + bytes) + 4096;
        counts->bytes = xrealloc(counts->bytes, to_size(counts->bytes_capacity));
    }
    memcpy(counts->bytes + counts->bytes_used, word, to_size(bytes));
    counts->slots[at] = (WordSlot){counts->bytes_used, count, (uint32_t)bytes, hash};
    counts->bytes_used += bytes;
    // The hash has 32 bits: beyond 2^31 slots the table gets slower but stays correct.
    if (2 * ++counts->used > counts->mask) grow_word_slots(counts);
}

void word_counts_add(WordCounts *counts, const void *text, int64_t bytes) {
    const uint8_t *left = text;
    counts->text_bytes += bytes;
    for (int64_t length; bytes > 0; left += length, bytes -= length) {
        length = split_piece(SPLIT_GPT2, left, bytes);
        add_word(counts, left, length, 1);
    }
}

int64_t word_counts_safe_cut(const void *text, int64_t bytes) { return split_safe_cut(SPLIT_GPT2, text, 0, bytes); }

void word_counts_merge(WordCounts *counts, const WordCounts *other) {
    counts->text_bytes += other->text_bytes;
    for (int64_t i = 0; i <= other->mask; ++i) {
        const WordSlot *slot = &other->slots[i];
        if (slot->count != 0) add_word(counts, other->bytes + slot->offset, slot->bytes, slot->count);
    }
}

// ---- training state ----

typedef struct {
    int64_t first;  // into Trainer.symbols
    int64_t symbols;
    int64_t count;
} Word;

typedef struct {
    int32_t left, right;
    int64_t count;
    int64_t *words;  // words that contain or contained the pair; may have duplicates
    int64_t word_count, word_capacity;
} Pair;

typedef struct {
    int64_t count;  // when pushed; stale if the pair's count is lower now
    int64_t pair;
} HeapItem;

typedef struct Trainer Trainer;
static bool item_before(const Trainer *trainer, HeapItem a, HeapItem b);
HEAP_DEFINE(PairHeap, pairs, HeapItem, const Trainer *, item_before)

struct Trainer {
    Word *words;
    int64_t word_count;
    int32_t *symbols;
    Pair *pairs;
    int64_t pair_count, pair_capacity;
    int64_t *slots;  // pair index + 1 by (left, right); 0 empty
    int64_t slot_mask;
    PairHeap heap;
    Tokenizer *tokenizer;  // for the bytes of each symbol
};

static int compare_bytes(const Tokenizer *t, int32_t a, int32_t b) {
    const Token *x = &t->tokens[a], *y = &t->tokens[b];
    int order = memcmp(t->bytes + x->offset, t->bytes + y->offset, (size_t)min_i64(x->bytes, y->bytes));
    return order != 0 ? order : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

// Whether a must be merged before b.
static bool item_before(const Trainer *trainer, HeapItem a, HeapItem b) {
    if (a.count != b.count) return a.count > b.count;
    const Pair *x = &trainer->pairs[a.pair], *y = &trainer->pairs[b.pair];
    int order = compare_bytes(trainer->tokenizer, x->left, y->left);
    if (order == 0) order = compare_bytes(trainer->tokenizer, x->right, y->right);
    return order > 0;
}

static int64_t pair_slot(const Trainer *trainer, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    int64_t slot = (int64_t)((key * 0x9E3779B97F4A7C15u) >> 32) & trainer->slot_mask;
    for (;; slot = (slot + 1) & trainer->slot_mask) {
        if (trainer->slots[slot] == 0) return slot;
        const Pair *pair = &trainer->pairs[trainer->slots[slot] - 1];
        if (pair->left == left && pair->right == right) return slot;
    }
}

// Finds the pair, or adds it.
static Pair *get_pair(Trainer *trainer, int32_t left, int32_t right) {
    int64_t slot = pair_slot(trainer, left, right);
    if (trainer->slots[slot] != 0) return &trainer->pairs[trainer->slots[slot] - 1];
    if (trainer->pair_count == trainer->pair_capacity) {
        trainer->pair_capacity = 2 * trainer->pair_capacity + 1024;
        trainer->pairs = xrealloc(trainer->pairs, to_size(trainer->pair_capacity) * sizeof *trainer->pairs);
    }
    trainer->pairs[trainer->pair_count++] = (Pair){.left = left, .right = right};
    trainer->slots[slot] = trainer->pair_count;
    if (2 * trainer->pair_count > trainer->slot_mask) {
        free(trainer->slots);
        trainer->slot_mask = 2 * trainer->slot_mask + 1;
        trainer->slots = xcalloc(to_size(trainer->slot_mask + 1), sizeof *trainer->slots);
        for (int64_t i = 0; i < trainer->pair_count; ++i)
            trainer->slots[pair_slot(trainer, trainer->pairs[i].left, trainer->pairs[i].right)] = i + 1;
    }
    return &trainer->pairs[trainer->pair_count - 1];
}

static void count_pair(Trainer *trainer, int32_t left, int32_t right, int64_t word, int64_t count) {
    Pair *pair = get_pair(trainer, left, right);
    pair->count += count;
    if (count < 0 || (pair->word_count > 0 && pair->words[pair->word_count - 1] == word)) return;
    if (pair->word_count == pair->word_capacity) {
        pair->word_capacity = 2 * pair->word_capacity + 2;
        pair->words = xrealloc(pair->words, to_size(pair->word_capacity) * sizeof *pair->words);
    }
    pair->words[pair->word_count++] = word;
}

// Replaces left right by result in one word, and updates the counts of the neighbouring pairs. The merged pair's own
// count is not updated: it is not used again.
static void merge_in_word(Trainer *trainer, int64_t word_index, int32_t left, int32_t right, int32_t result) {
    Word *word = &trainer->words[word_index];
    int32_t *symbols = trainer->symbols + word->first;
    int64_t kept = 0, count = word->count;
    for (int64_t i = 0; i < word->symbols; ++i) {
        if (i + 1 == word->symbols || symbols[i] != left || symbols[i + 1] != right) {
            symbols[kept++] = symbols[i];
            continue;
        }
        if (kept > 0) {
            count_pair(trainer, symbols[kept - 1], left, word_index, -count);
            count_pair(trainer, symbols[kept - 1], result, word_index, count);
        }
        if (i + 2 < word->symbols) {
            count_pair(trainer, right, symbols[i + 2], word_index, -count);
            count_pair(trainer, result, symbols[i + 2], word_index, count);
        }
        symbols[kept++] = result;
        ++i;
    }
    word->symbols = kept;
}

static void trainer_init(Trainer *trainer, const WordCounts *counts, Tokenizer *tokenizer) {
    enum { FIRST_PAIR_SLOTS = 1 << 16 };
    *trainer = (Trainer){.tokenizer = tokenizer, .slot_mask = FIRST_PAIR_SLOTS - 1};
    trainer->slots = xcalloc(FIRST_PAIR_SLOTS, sizeof *trainer->slots);
    trainer->words = xmalloc(to_size(counts->used) * sizeof *trainer->words);
    trainer->symbols = xmalloc(to_size(counts->bytes_used) * sizeof *trainer->symbols);
    int64_t symbol_count = 0;
    for (int64_t i = 0; i <= counts->mask; ++i) {
        const WordSlot *slot = &counts->slots[i];
        if (slot->count == 0) continue;
        int64_t index = trainer->word_count++;
        trainer->words[index] = (Word){symbol_count, slot->bytes, slot->count};
        for (uint32_t k = 0; k < slot->bytes; ++k) {
            trainer->symbols[symbol_count++] = counts->bytes[slot->offset + k];
            if (k > 0)
                count_pair(trainer, trainer->symbols[symbol_count - 2], trainer->symbols[symbol_count - 1], index,
                           slot->count);
        }
    }
    for (int64_t i = 0; i < trainer->pair_count; ++i)
        pairs_push(&trainer->heap, trainer, (HeapItem){trainer->pairs[i].count, i});
}

static void trainer_free(Trainer *trainer) {
    for (int64_t i = 0; i < trainer->pair_count; ++i) free(trainer->pairs[i].words);
    free(trainer->words);
    free(trainer->symbols);
    free(trainer->pairs);
    free(trainer->slots);
    free(trainer->heap.items);
}

// The next pair to merge, or -1. Counts only fall after a push, so the first item that is not stale is the best.
static int64_t best_pair(Trainer *trainer, int64_t min_count) {
    while (trainer->heap.count > 0) {
        HeapItem item = pairs_pop(&trainer->heap, trainer);
        int64_t count = trainer->pairs[item.pair].count;
        if (count == item.count) return item.pair;
        if (count >= min_count) pairs_push(&trainer->heap, trainer, (HeapItem){count, item.pair});
    }
    return -1;
}

static bool merge_pair(Trainer *trainer, int64_t pair_index, Error *err) {
    Tokenizer *t = trainer->tokenizer;
    Pair pair = trainer->pairs[pair_index];  // a copy: the array grows below
    uint8_t joined[2 * TOKENIZER_MAX_TOKEN_BYTES];
    const Token *a = &t->tokens[pair.left], *b = &t->tokens[pair.right];
    int32_t result = t->vocab, bytes = a->bytes + b->bytes;
    if (bytes > TOKENIZER_MAX_TOKEN_BYTES) {  // too long for a token: never merge this pair
        trainer->pairs[pair_index].count = 0;
        return true;
    }
    memcpy(joined, t->bytes + a->offset, (size_t)a->bytes);
    memcpy(joined + a->bytes, t->bytes + b->offset, (size_t)b->bytes);
    if (!tokenizer_add_token(t, result, joined, bytes, TOKEN_NORMAL, err)) return false;
    if (!tokenizer_add_merge(t, pair.left, pair.right, err)) return false;
    int64_t first_new = trainer->pair_count;
    for (int64_t i = 0; i < pair.word_count; ++i)
        merge_in_word(trainer, pair.words[i], pair.left, pair.right, result);
    for (int64_t i = first_new; i < trainer->pair_count; ++i)  // exactly the pairs with the new token are new
        pairs_push(&trainer->heap, trainer, (HeapItem){trainer->pairs[i].count, i});
    Pair *done = &trainer->pairs[pair_index];
    free(done->words);
    *done = (Pair){.left = pair.left, .right = pair.right};
    return true;
}

static bool add_specials(Tokenizer *t, int32_t reserved, Error *err) {
    char name[40];
    for (int32_t i = 0; i < reserved; ++i) {
        snprintf(name, sizeof name, "<|reserved_%d|>", i);
        if (!tokenizer_add_token(t, t->vocab, (const uint8_t *)name, (int64_t)strlen(name), TOKEN_SPECIAL, err))
            return false;
    }
    return tokenizer_add_token(t, t->vocab, (const uint8_t *)END_OF_TEXT, (int64_t)strlen(END_OF_TEXT), TOKEN_SPECIAL,
                               err);
}

Tokenizer *tokenizer_train(const WordCounts *counts, const TokenizerTraining *training, Error *err) {
    int64_t wanted = (int64_t)training->vocab - 256 - training->reserved - 1;
    if (training->reserved < 0 || wanted < 0 || training->vocab > TOKENIZER_MAX_VOCAB) {
        error_set(err, "vocabulary of %d: expected 256 bytes + %d reserved + 1 or more, up to %d", training->vocab,
                  training->reserved, TOKENIZER_MAX_VOCAB);
        return NULL;
    }
    int64_t min_count = max_i64(training->min_count, 1);
    Tokenizer *t = tokenizer_new(SPLIT_GPT2);
    bool ok = true;
    for (int id = 0; id < 256; ++id)
        ok = ok && tokenizer_add_token(t, id, (uint8_t[]){(uint8_t)id}, 1, TOKEN_NORMAL, err);
    Trainer trainer;
    trainer_init(&trainer, counts, t);
    while (ok && t->merge_count < wanted) {
        int64_t pair = best_pair(&trainer, min_count);
        if (pair < 0 || trainer.pairs[pair].count < min_count) break;
        ok = merge_pair(&trainer, pair, err);
        if (training->progress != NULL)
            training->progress(training->progress_context, t->merge_count, (int32_t)wanted);
    }
    trainer_free(&trainer);
    if (ok && add_specials(t, training->reserved, err) && tokenizer_seal(t, err)) return t;
    tokenizer_free(t);
    return NULL;
}
