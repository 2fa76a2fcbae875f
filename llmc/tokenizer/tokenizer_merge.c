// tokenizer_merge.c: the BPE merges of one piece: always the pair of lowest rank, the leftmost if several have it.
#include <stdlib.h>

#include "llmc/base/heap.h"
#include "llmc/tokenizer/tokenizer_impl.h"

// Short pieces: a pair's key holds rank and position in one number, so the smallest key is the pair to merge, found
// by a search over a few vectors. Symbols keep their positions; one merged into its left neighbour has no key.
enum { SHORT_BITS = 7, SHORT_SYMBOLS = 1 << SHORT_BITS, KEY_LANES = 8, NO_KEY = INT32_MAX };
_Static_assert((int64_t)TOKENIZER_MAX_VOCAB << SHORT_BITS < NO_KEY, "ranks are below the vocabulary's bound");

typedef struct {
    int32_t keys[SHORT_SYMBOLS];     // of the pair of a symbol and the next one
    int32_t results[SHORT_SYMBOLS];  // what that pair becomes
    uint8_t next[SHORT_SYMBOLS], previous[SHORT_SYMBOLS];
} ShortPiece;

static inline void set_key(const Tokenizer *t, ShortPiece *piece, const int32_t *symbols, int at, int next) {
    const PairSlot *pair = tokenizer_find_pair(t, symbols[at], symbols[next]);
    piece->keys[at] = pair == NULL ? NO_KEY : pair->rank << SHORT_BITS | at;
    if (pair != NULL) piece->results[at] = pair->result;
}

static int64_t merge_short(const Tokenizer *t, int32_t *symbols, int64_t symbol_count) {
    ShortPiece piece;
    int count = (int)symbol_count, searched = (count + KEY_LANES - 1) / KEY_LANES * KEY_LANES;
    for (int i = count - 1; i < searched; ++i) piece.keys[i] = NO_KEY;
    for (int i = 0; i < count; ++i) {
        if (i + 1 < count) set_key(t, &piece, symbols, i, i + 1);
        piece.next[i] = (uint8_t)(i + 1);
        piece.previous[i] = (uint8_t)(i - 1);  // not read where i is 0
    }
    for (;;) {
        int32_t best = NO_KEY;
        for (int i = 0; i < searched; ++i) best = piece.keys[i] < best ? piece.keys[i] : best;
        if (best == NO_KEY) break;
        int at = best & (SHORT_SYMBOLS - 1), right = piece.next[at], after = piece.next[right];
        symbols[at] = piece.results[at];
        symbols[right] = -1;
        piece.keys[right] = NO_KEY;
        piece.next[at] = (uint8_t)after;
        if (after < count) {
            piece.previous[after] = (uint8_t)at;
            set_key(t, &piece, symbols, at, after);
        } else {
            piece.keys[at] = NO_KEY;
        }
        if (at > 0) set_key(t, &piece, symbols, piece.previous[at], at);
    }
    int64_t kept = 0;
    for (int i = 0; i < count; ++i)
        if (symbols[i] >= 0) symbols[kept++] = symbols[i];
    return kept;
}

// A candidate merge of the symbol at `at` with its right neighbour; stale after a change of either.
typedef struct {
    int32_t rank, at;
    int32_t left, right, result;
} Candidate;

static inline bool candidate_before(const void *unused, Candidate a, Candidate b) {
    (void)unused;
    return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}
HEAP_DEFINE(CandidateHeap, candidates, Candidate, const void *, candidate_before)

static void push_candidate(const Tokenizer *t, CandidateHeap *heap, const int32_t *symbols, int32_t at,
                           int32_t next) {
    const PairSlot *pair = tokenizer_find_pair(t, symbols[at], symbols[next]);
    if (pair != NULL) candidates_push(heap, NULL, (Candidate){pair->rank, at, pair->left, pair->right, pair->result});
}

// Long pieces: a heap of candidates over a linked list; a symbol merged into its left neighbour is -1.
static int64_t merge_long(const Tokenizer *t, int32_t *symbols, int64_t symbol_count) {
    int32_t count = to_i32(symbol_count);
    int32_t *previous = xmalloc((size_t)count * sizeof *previous), *next = xmalloc((size_t)count * sizeof *next);
    CandidateHeap heap = {0};
    for (int32_t i = 0; i < count; ++i) {
        previous[i] = i - 1;
        next[i] = i + 1;
        if (i + 1 < count) push_candidate(t, &heap, symbols, i, i + 1);
    }
    while (heap.count > 0) {
        Candidate best = candidates_pop(&heap, NULL);
        int32_t at = best.at, right = next[at];
        if (symbols[at] != best.left || right >= count || symbols[right] != best.right) continue;
        symbols[at] = best.result;
        symbols[right] = -1;
        next[at] = next[right];
        if (next[at] < count) {
            previous[next[at]] = at;
            push_candidate(t, &heap, symbols, at, next[at]);
        }
        if (previous[at] >= 0) push_candidate(t, &heap, symbols, previous[at], at);
    }
    int64_t kept = 0;
    for (int32_t i = 0; i < count; ++i)
        if (symbols[i] >= 0) symbols[kept++] = symbols[i];
    free(heap.items);
    free(previous);
    free(next);
    return kept;
}

int64_t tokenizer_merge_symbols(const Tokenizer *t, int32_t *symbols, int64_t count) {
    return count <= SHORT_SYMBOLS ? merge_short(t, symbols, count) : merge_long(t, symbols, count);
}
