// tokenizer_encode.c: text to ids. The text is split into pieces; each is looked up in a cache of recent pieces and
// merged (tokenizer_merge.c) on a miss. In ordinary text most pieces are hits: the speed comes from this.
#include <stdlib.h>
#include <string.h>

#include "llmc/tokenizer/tokenizer_impl.h"
#include "llmc/tokenizer/unicode.h"
#include "llmc/tokenizer/unicode_nfc.h"

// ---- lists of ids ----

static void token_list_reserve(TokenList *list, int64_t more) {
    if (list->count + more <= list->capacity) return;
    list->capacity = max_i64(list->count + more, 2 * list->capacity);
    list->ids = xrealloc(list->ids, to_size(list->capacity) * sizeof *list->ids);
}
void token_list_push(TokenList *list, int32_t id) {
    token_list_reserve(list, 1);
    list->ids[list->count++] = id;
}
void token_list_free(TokenList *list) {
    free(list->ids);
    *list = (TokenList){0};
}

// ---- one piece ----

// llama2.c starts from characters, or from bytes where a character is not a token.
static int64_t symbols_llama2c(const Tokenizer *t, int32_t *symbols, const uint8_t *piece, int64_t bytes) {
    int64_t count = 0;
    for (int64_t pos = 0; pos < bytes;) {
        uint32_t code;
        int length = utf8_decode(piece + pos, bytes - pos, &code);
        int32_t id = tokenizer_find_token(t, piece + pos, length);
        if (id >= 0) symbols[count++] = id;
        for (int i = 0; id < 0 && i < length; ++i) symbols[count++] = t->byte_ids[piece[pos + i]];
        pos += length;
    }
    return count;
}

// Appends the ids of one piece.
static void encode_piece(const Tokenizer *t, TokenList *out, const uint8_t *piece, int64_t bytes) {
    if (t->whole_pieces) {
        int32_t id = tokenizer_find_token(t, piece, bytes);
        if (id >= 0) {
            token_list_push(out, id);
            return;
        }
    }
    token_list_reserve(out, bytes);
    int32_t *symbols = out->ids + out->count;
    int64_t count = bytes;
    if (t->llama2c) {
        count = symbols_llama2c(t, symbols, piece, bytes);
    } else {
        for (int64_t i = 0; i < bytes; ++i) symbols[i] = t->byte_ids[piece[i]];
    }
    out->count += t->pairs_used == 0 ? count : tokenizer_merge_symbols(t, symbols, count);
}

// ---- the cache of pieces: direct-mapped, one cache line per piece, the newest replaces ----

enum { CACHE_KEY_BYTES = 23, CACHE_IDS = 9, CACHE_SLOTS = 1 << 15, SMALL_TEXT_BYTES = 1 << 16 };

typedef struct {
    uint64_t key[3];  // the zero-padded piece; its length in the last byte (0: empty slot)
    int32_t count;
    int32_t ids[CACHE_IDS];
} CacheSlot;
_Static_assert(sizeof(CacheSlot) == 64, "a cache line");

struct TokenEncoder {
    const Tokenizer *tokenizer;
    CacheSlot *cache;  // NULL: no cache, for short texts
    uint8_t *pending;  // text whose pieces depend on the text to come
    int64_t pending_bytes, pending_capacity, pending_scanned;
    bool inside_document;  // part of this document was fed
};

TokenEncoder *token_encoder_new(const Tokenizer *tokenizer) {
    TokenEncoder *encoder = xcalloc(1, sizeof *encoder);
    encoder->tokenizer = tokenizer;
    encoder->cache = xcalloc(CACHE_SLOTS, sizeof *encoder->cache);
    return encoder;
}

void token_encoder_free(TokenEncoder *encoder) {
    if (encoder == NULL) return;
    free(encoder->cache);
    free(encoder->pending);
    free(encoder);
}

static inline void load_key(uint64_t key[3], const uint8_t *piece, int64_t bytes, int64_t readable) {
    if (readable >= 24) {
        // Copies whole words and clears the bytes past the piece: cheaper than copying a variable number of bytes.
        memcpy(key, piece, 24);
        int64_t word = bytes >> 3;
        key[word] &= ~(~(uint64_t)0 << (8 * (bytes & 7)));
        if (word < 2) key[2] = 0;
        if (word < 1) key[1] = 0;
    } else {
        key[0] = key[1] = key[2] = 0;
        memcpy(key, piece, (size_t)bytes);
    }
    key[2] |= (uint64_t)bytes << 56;
}

static inline uint64_t hash_key(const uint64_t key[3]) {
    uint64_t h = (key[0] ^ (key[1] * 0xC2B2AE3D27D4EB4Fu) ^ (key[2] * 0x165667B19E3779F9u)) * 0x9E3779B97F4A7C15u;
    return h >> 49;
}
_Static_assert(CACHE_SLOTS == 1 << 15, "hash_key gives 15 bits");

static void encode_split(const Tokenizer *t, CacheSlot *cache, TokenList *out, const uint8_t *text, int64_t bytes) {
    for (int64_t pos = 0, length; pos < bytes; pos += length) {
        length = split_piece(t->pattern, text + pos, bytes - pos);
        if (cache == NULL || length > CACHE_KEY_BYTES) {
            encode_piece(t, out, text + pos, length);
            continue;
        }
        uint64_t key[3];
        load_key(key, text + pos, length, bytes - pos);
        CacheSlot *slot = &cache[hash_key(key)];
        token_list_reserve(out, CACHE_IDS);
        if (slot->key[0] == key[0] && slot->key[1] == key[1] && slot->key[2] == key[2]) {
            memcpy(out->ids + out->count, slot->ids, sizeof slot->ids);
            out->count += slot->count;
            continue;
        }
        int64_t first = out->count;
        encode_piece(t, out, text + pos, length);
        int64_t count = out->count - first;
        if (count > CACHE_IDS) continue;
        memcpy(slot->key, key, sizeof key);
        slot->count = (int32_t)count;
        memcpy(slot->ids, out->ids + first, (size_t)count * sizeof(int32_t));
    }
}

// Appends the ids of text, which begins at a piece boundary.
static void encode_pieces(const Tokenizer *t, CacheSlot *cache, TokenList *out, const uint8_t *text, int64_t bytes) {
    if (t->normalize_nfc && !unicode_is_plainly_nfc(text, bytes)) {
        // Cuts are before white space, and nothing composes across it: the NFC of the parts is that of the whole.
        uint8_t *normalized = xmalloc(to_size(3 * bytes));
        encode_split(t, cache, out, normalized, unicode_nfc(normalized, text, bytes));
        free(normalized);
        return;
    }
    encode_split(t, cache, out, text, bytes);
}

// ---- streaming ----

static void append_pending(TokenEncoder *encoder, const uint8_t *text, int64_t bytes) {
    if (encoder->pending_bytes + bytes > encoder->pending_capacity) {
        encoder->pending_capacity = 2 * (encoder->pending_bytes + bytes) + 256;
        encoder->pending = xrealloc(encoder->pending, to_size(encoder->pending_capacity));
    }
    if (bytes > 0) memcpy(encoder->pending + encoder->pending_bytes, text, to_size(bytes));
    encoder->pending_bytes += bytes;
}

void token_encoder_feed(TokenEncoder *encoder, TokenList *out, const void *text, int64_t bytes) {
    const Tokenizer *t = encoder->tokenizer;
    if (bytes == 0) return;
    if (!encoder->inside_document && t->llama2c) append_pending(encoder, (const uint8_t *)" ", 1);
    encoder->inside_document = true;
    if (encoder->pending_bytes == 0) {  // usual case: encode from the caller's text and keep only its end
        int64_t cut = split_safe_cut(t->pattern, text, 0, bytes);
        encode_pieces(t, encoder->cache, out, text, cut);
        append_pending(encoder, (const uint8_t *)text + cut, bytes - cut);
    } else {
        append_pending(encoder, text, bytes);
        int64_t cut = split_safe_cut(t->pattern, encoder->pending, encoder->pending_scanned, encoder->pending_bytes);
        encode_pieces(t, encoder->cache, out, encoder->pending, cut);
        encoder->pending_bytes -= cut;
        memmove(encoder->pending, encoder->pending + cut, to_size(encoder->pending_bytes));
    }
    encoder->pending_scanned = encoder->pending_bytes;  // it has no sure boundary
}

void token_encoder_finish(TokenEncoder *encoder, TokenList *out) {
    encode_pieces(encoder->tokenizer, encoder->cache, out, encoder->pending, encoder->pending_bytes);
    encoder->pending_bytes = encoder->pending_scanned = 0;
    encoder->inside_document = false;
}

int64_t tokenizer_safe_cut(const Tokenizer *t, const void *text, int64_t bytes) {
    return split_safe_cut(t->pattern, text, 0, bytes);
}

// ---- whole texts ----

// The special token whose name starts at text[0], or -1; the longest one.
static int32_t special_at(const Tokenizer *t, const uint8_t *text, int64_t bytes) {
    for (int32_t i = 0; i < t->special_count; ++i) {
        const Token *token = &t->tokens[t->specials[i]];
        if (token->bytes <= bytes && memcmp(t->bytes + token->offset, text, (size_t)token->bytes) == 0)
            return t->specials[i];
    }
    return -1;
}

void tokenizer_encode(const Tokenizer *t, TokenList *out, const void *text, int64_t bytes, bool specials) {
    const uint8_t *bytes_left = text;
    TokenEncoder encoder = {.tokenizer = t};
    if (bytes > SMALL_TEXT_BYTES) encoder.cache = xcalloc(CACHE_SLOTS, sizeof *encoder.cache);
    bool may_start[256] = {false};
    for (int32_t i = 0; i < t->special_count && specials; ++i)
        may_start[t->bytes[t->tokens[t->specials[i]].offset]] = true;
    int64_t done = 0;
    for (int64_t pos = 0; pos < bytes && specials;) {
        int32_t id = may_start[bytes_left[pos]] ? special_at(t, bytes_left + pos, bytes - pos) : -1;
        if (id < 0) {
            ++pos;
            continue;
        }
        token_encoder_feed(&encoder, out, bytes_left + done, pos - done);
        token_encoder_finish(&encoder, out);
        token_list_push(out, id);
        pos += t->tokens[id].bytes;
        done = pos;
    }
    token_encoder_feed(&encoder, out, bytes_left + done, bytes - done);
    token_encoder_finish(&encoder, out);
    free(encoder.cache);
    free(encoder.pending);
}
