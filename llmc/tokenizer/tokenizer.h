// tokenizer.h: text to token ids and back. Byte-level BPE (GPT-2, Llama-3 and Qwen-2 style), plain bytes, and
// the small vocabularies of llama2.c. Called by data/prep, sampling, evaluation and checkpoints.
// Knows nothing of shards, models or devices.
//
// Lossless: for every byte string s, decoding tokenizer_encode(s) id by id gives s again (its NFC, with a
// tokenizer.json whose normalizer is NFC, as Qwen's). Text need not be valid UTF-8: a byte that is not part of a
// valid sequence is split as a character that is neither letter, number nor white space (other programs refuse or
// replace such bytes). On valid UTF-8 the ids equal those of tiktoken and of Hugging Face tokenizers, with one
// bound: a run without any split point is cut every SPLIT_MAX_PIECE_BYTES (llmc/tokenizer/tokenizer_split.h), so that memory
// stays bounded.
//
// A Tokenizer is read-only after loading: any number of threads may share one.
#ifndef LLMC_TOKENIZER_H
#define LLMC_TOKENIZER_H

#include "llmc/base/common.h"

typedef struct Tokenizer Tokenizer;

// ---- making and keeping ----

// source is one of
//   "bytes"           256 bytes, id = byte value, and <|endoftext|> = 256
//   a tokenizer.json  Hugging Face's, byte-level BPE; one that changes the text otherwise than to NFC is refused
//   a directory       with tokenizer.json, or encoder.json and vocab.bpe (GPT-2's), or vocab.json and merges.txt, or
//                     tokenizer.bin
//   a .tiktoken file  base64 ranks; its name says how to split: r50k_base, p50k_base, gpt2, cl100k_base
//   a .bin file       llama2.c's tokenizer (tok512.bin): encodes as llama2.c does
// NULL on error. Every input is untrusted: sizes are bounded and checked.
Tokenizer *tokenizer_load(const char *source, Error *err);
void tokenizer_free(Tokenizer *tokenizer);  // NULL is fine

// Writes dir/tokenizer.json and dir/tokenizer_config.json (each atomically), which Hugging Face's tokenizers and
// transformers (PreTrainedTokenizerFast, AutoTokenizer) load and give the same ids. What was loaded from a
// tokenizer.json is written back byte for byte; a llama2.c vocabulary becomes dir/tokenizer.bin. dir must exist.
bool tokenizer_save(const Tokenizer *tokenizer, const char *dir, Error *err);

// ---- facts ----

const char *tokenizer_name(const Tokenizer *tokenizer);  // "bytes", "gpt2", "bpe-4096", ...
int32_t tokenizer_vocab(const Tokenizer *tokenizer);     // ids are 0 .. vocab-1
int32_t tokenizer_eot(const Tokenizer *tokenizer);       // end-of-text id, or -1
int32_t tokenizer_merges(const Tokenizer *tokenizer);    // number of merges
// Equal exactly for tokenizers that give equal ids and bytes, however they were stored: to be kept in shards and
// checkpoints.
uint64_t tokenizer_fingerprint(const Tokenizer *tokenizer);

// The bytes of one id (not NUL-terminated; owned by the tokenizer; empty for an unused id). A special token
// gives its name, for example "<|endoftext|>". 0 <= id < vocab.
const uint8_t *tokenizer_token(const Tokenizer *tokenizer, int32_t id, int32_t *bytes);
bool tokenizer_is_special(const Tokenizer *tokenizer, int32_t id);
// Bytes of text that the id stands for: 0 for special tokens. Summed over targets it gives bits per byte.
int32_t tokenizer_text_bytes(const Tokenizer *tokenizer, int32_t id);

// ---- encoding ----

// A growing list of ids; all zeros is an empty list.
typedef struct {
    int32_t *ids;
    int64_t count;
    int64_t capacity;
} TokenList;
void token_list_push(TokenList *list, int32_t id);
void token_list_free(TokenList *list);  // leaves an empty list

// Appends the ids of one whole text to out. Nothing is added before or after it. With specials, names of special
// tokens in the text become their ids; without, they are text like any other.
void tokenizer_encode(const Tokenizer *tokenizer, TokenList *out, const void *text, int64_t bytes, bool specials);

// Streaming, one encoder per thread, with a cache of words that stays warm from document to document.
// feed any pieces of a document, then finish: the ids appended to out, over all calls, equal tokenizer_encode's of
// the whole document. Memory is bounded by the largest piece fed plus a few MiB.
typedef struct TokenEncoder TokenEncoder;
TokenEncoder *token_encoder_new(const Tokenizer *tokenizer);  // keeps the pointer
void token_encoder_free(TokenEncoder *encoder);
void token_encoder_feed(TokenEncoder *encoder, TokenList *out, const void *text, int64_t bytes);
void token_encoder_finish(TokenEncoder *encoder, TokenList *out);  // ends the document

// The largest known prefix of `text` (a document, or what is left of it after earlier cuts of this kind) whose
// ids do not depend on what follows: encoding text[0, n) and what comes after it separately gives the ids of the
// whole. 0 when no such point is known; never 0 when bytes >= TOKENIZER_SURE_CUT_BYTES.
int64_t tokenizer_safe_cut(const Tokenizer *tokenizer, const void *text, int64_t bytes);
#define TOKENIZER_SURE_CUT_BYTES (4 << 20)

// ---- training ----

typedef struct {
    int32_t vocab;      // in all: 256 bytes + merges + reserved + <|endoftext|>
    int32_t reserved;   // extra special tokens <|reserved_0|> ..., before <|endoftext|>, which has the last id
    int64_t min_count;  // a pair seen less often is not merged (>= 1)
    void (*progress)(void *context, int32_t merges_done, int32_t merges_wanted);  // may be NULL
    void *progress_context;
} TokenizerTraining;

// Counts of words (pieces of GPT-2's split pattern). One per thread; add any texts, merge, train. The result is a
// pure function of the counts: independent of threads, chunks and order. Ties between pairs go to the greatest
// (left bytes, right bytes).
typedef struct WordCounts WordCounts;
WordCounts *word_counts_new(void);
void word_counts_free(WordCounts *counts);
void word_counts_add(WordCounts *counts, const void *text, int64_t bytes);  // one whole document, or up to a safe cut
int64_t word_counts_safe_cut(const void *text, int64_t bytes);              // as tokenizer_safe_cut
void word_counts_merge(WordCounts *counts, const WordCounts *other);
int64_t word_counts_unique(const WordCounts *counts);
int64_t word_counts_bytes(const WordCounts *counts);  // bytes of text counted
Tokenizer *tokenizer_train(const WordCounts *counts, const TokenizerTraining *training, Error *err);
#endif
