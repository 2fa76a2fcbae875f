// tokenizer_impl.h: the fields of a Tokenizer, private to the tokenizer_*.c files. A loader adds tokens, then merges,
// then calls tokenizer_seal, which checks the result; from then on it is read-only.
#ifndef LLMC_TOKENIZER_IMPL_H
#define LLMC_TOKENIZER_IMPL_H

#include "llmc/tokenizer/tokenizer.h"
#include "llmc/tokenizer/tokenizer_split.h"

#define TOKENIZER_MAX_VOCAB (1 << 21)
#define TOKENIZER_MAX_TOKEN_BYTES (1 << 12)
#define TOKENIZER_MAX_FILE_BYTES ((size_t)256 << 20)
#define END_OF_TEXT "<|endoftext|>"

typedef enum { TOKEN_UNUSED, TOKEN_NORMAL, TOKEN_SPECIAL, TOKEN_BYTE } TokenKind;  // BYTE: llama2.c's <0x0A>

typedef struct {
    int64_t offset;  // into Tokenizer.bytes
    int32_t bytes;
    TokenKind kind;
} Token;

typedef struct {
    int32_t left, right, result;
} Merge;

// Open addressing, at most half full. Empty: left == -1.
typedef struct {
    int32_t left, right;
    int32_t rank;  // the smallest rank merges first
    int32_t result;
} PairSlot;

struct Tokenizer {
    char name[32];
    SplitPattern pattern;
    bool whole_pieces;   // a piece that is a token becomes it, even if merges do not produce it
    bool normalize_nfc;  // text is normalized to NFC before the split
    bool llama2c;        // characters first, then bytes; ranks from scores; a space before the text
    int32_t vocab;       // tokens in use are ids < vocab
    int32_t eot;
    int32_t byte_ids[256];
    uint64_t fingerprint;

    Token *tokens;
    int32_t token_capacity;
    uint8_t *bytes;
    int64_t bytes_used, bytes_capacity;
    int32_t *token_slots;  // ids of NORMAL tokens by hash of their bytes; -1 empty
    int64_t token_slot_mask, token_slots_used;

    Merge *merges;
    int32_t merge_count, merge_capacity;
    PairSlot *pairs;
    int64_t pair_mask, pairs_used;

    int32_t *specials;  // ids of special tokens, longest name first
    int32_t special_count;

    char *original;  // contents of the loaded tokenizer.json or llama2.c file, or NULL
    size_t original_bytes;
};

Tokenizer *tokenizer_new(SplitPattern pattern);
// Errors: id out of range or taken, empty or overlong bytes, the same bytes as another normal token.
bool tokenizer_add_token(Tokenizer *t, int64_t id, const uint8_t *bytes, int64_t count, TokenKind kind, Error *err);
// Marks an existing token as special.
void tokenizer_make_special(Tokenizer *t, int32_t id);
int32_t tokenizer_find_token(const Tokenizer *t, const uint8_t *bytes, int64_t count);  // a NORMAL token's id, or -1
// Adds the next merge. Errors: the joined token does not exist; the pair already has a merge.
bool tokenizer_add_merge(Tokenizer *t, int32_t left, int32_t right, Error *err);
void tokenizer_add_pair(Tokenizer *t, int32_t left, int32_t right, int32_t rank, int32_t result);
// Errors: a byte without a token; an unused id before the last normal token (between special tokens it is allowed).
// Sets specials, name and fingerprint, and eot if the loader has not.
bool tokenizer_seal(Tokenizer *t, Error *err);

// The merge of a pair, or NULL.
static inline const PairSlot *tokenizer_find_pair(const Tokenizer *t, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t slot = (key * 0x9E3779B97F4A7C15u) >> 32;
    for (;; ++slot) {
        const PairSlot *pair = &t->pairs[(int64_t)slot & t->pair_mask];
        if (pair->left == left && pair->right == right) return pair;
        if (pair->left < 0) return NULL;
    }
}

// Applies the BPE merges to symbols[0, count) in place; returns the new count.
int64_t tokenizer_merge_symbols(const Tokenizer *t, int32_t *symbols, int64_t count);

// GPT-2's files write each byte as a printable character. NUL-terminated; out has room for 2 * count + 1 bytes.
void byte_level_encode(char *out, const uint8_t *bytes, int64_t count);

struct cJSON;
// Adds an entry of a JSON object of tokens: a byte-level name (any other is special) and an id.
bool tokenizer_add_vocab_entry(Tokenizer *t, const struct cJSON *entry, Error *err);
bool tokenizer_add_merge_texts(Tokenizer *t, const char *left, const char *right, Error *err);  // byte-level texts
bool tokenizer_add_merge_line(Tokenizer *t, const char *line, Error *err);                      // "left right"

bool tokenizer_load_json(Tokenizer **out, const char *path, Error *err);  // tokenizer.json
bool tokenizer_load_gpt2(Tokenizer **out, const char *vocab_path, const char *merges_path, Error *err);
bool tokenizer_load_tiktoken(Tokenizer **out, const char *path, Error *err);
bool tokenizer_load_llama2c(Tokenizer **out, const char *path, Error *err);

#endif
