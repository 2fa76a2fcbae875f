// tokenizer.h: entry of the tokenizer room: text to token ids and back. Byte-level BPE (GPT-2, Llama-3 and Qwen-2
// style), plain bytes, and the small vocabularies of llama2.c; loading, saving and training.
// Must not know shards, models or devices.
//
// Lossless: for every byte string s, decoding tokenizer_encode(s) id by id gives s again (or the NFC of s, with a
// tokenizer.json whose normalizer is NFC, as Qwen's). Text need not be valid UTF-8: an invalid byte is split as a
// character that is neither letter, number nor white space (other programs refuse or replace such bytes). On valid
// UTF-8 the ids equal those of tiktoken and of Hugging Face tokenizers, with one exception that bounds memory: a run
// without a split point is cut every SPLIT_MAX_PIECE_BYTES (llmc/tokenizer/tokenizer_split.h).
//
// A Tokenizer is read-only after loading: any number of threads may share one.
#ifndef LLMC_TOKENIZER_H
#define LLMC_TOKENIZER_H

#include "llmc/base/common.h"

typedef struct Tokenizer Tokenizer;

// ---- loading and saving ----

// source is one of
//   "bytes"           256 bytes, id = byte value, and <|endoftext|> = 256
//   a tokenizer.json  Hugging Face's, byte-level BPE; a normalizer other than NFC is an error
//   a directory       with tokenizer.json, or encoder.json and vocab.bpe (GPT-2's), or vocab.json and merges.txt, or
//                     tokenizer.bin
//   a .tiktoken file  base64 ranks; the file name selects the split pattern: r50k_base, p50k_base, gpt2, cl100k_base
//   a .bin file       llama2.c's tokenizer (tok512.bin): encodes as llama2.c does
// Returns NULL on error. All input is untrusted: sizes are bounded and checked.
Tokenizer *tokenizer_load(const char *source, Error *err);
void tokenizer_free(Tokenizer *tokenizer);  // may be NULL

// Writes dir/tokenizer.json and dir/tokenizer_config.json (each atomically) for Hugging Face's tokenizers and
// transformers (PreTrainedTokenizerFast, AutoTokenizer), which give the same ids. A loaded tokenizer.json is written
// back byte for byte; a llama2.c vocabulary is written to dir/tokenizer.bin. dir must exist.
bool tokenizer_save(const Tokenizer *tokenizer, const char *dir, Error *err);

// ---- accessors ----

const char *tokenizer_name(const Tokenizer *tokenizer);  // "bytes", "gpt2", "bpe-4096", ...
int32_t tokenizer_vocab(const Tokenizer *tokenizer);     // ids are 0 .. vocab-1
int32_t tokenizer_eot(const Tokenizer *tokenizer);       // end-of-text id, or -1
int32_t tokenizer_merges(const Tokenizer *tokenizer);    // number of merges
// Equal exactly for tokenizers that give equal ids and bytes, whatever files they came from. Shards and checkpoints
// store it.
uint64_t tokenizer_fingerprint(const Tokenizer *tokenizer);

// The bytes of one id (not NUL-terminated; owned by the tokenizer; empty for an unused id); for a special token its
// name, for example "<|endoftext|>". 0 <= id < vocab.
const uint8_t *tokenizer_token(const Tokenizer *tokenizer, int32_t id, int32_t *bytes);
bool tokenizer_is_special(const Tokenizer *tokenizer, int32_t id);
// Number of text bytes of an id: 0 for special tokens. Bits per byte divides by its sum over the targets.
int32_t tokenizer_text_bytes(const Tokenizer *tokenizer, int32_t id);

// ---- encoding ----

// A growable list of ids; {0} is an empty list.
typedef struct {
    int32_t *ids;
    int64_t count;
    int64_t capacity;
} TokenList;
void token_list_push(TokenList *list, int32_t id);
void token_list_free(TokenList *list);  // leaves an empty list

// Appends the ids of a whole text to out; adds no BOS or EOT token. specials: names of special tokens in the text
// become their ids; otherwise they are encoded as ordinary text.
void tokenizer_encode(const Tokenizer *tokenizer, TokenList *out, const void *text, int64_t bytes, bool specials);

// Streaming, with one encoder per thread; its cache of words stays warm from document to document. Feed a document in
// pieces of any size, then finish: the ids appended over all calls equal those of tokenizer_encode on the whole
// document. Memory is bounded by the largest fed piece plus a few MiB.
typedef struct TokenEncoder TokenEncoder;
TokenEncoder *token_encoder_new(const Tokenizer *tokenizer);  // the tokenizer must outlive it
void token_encoder_free(TokenEncoder *encoder);
void token_encoder_feed(TokenEncoder *encoder, TokenList *out, const void *text, int64_t bytes);
void token_encoder_finish(TokenEncoder *encoder, TokenList *out);  // ends the document

// The length n of the longest known prefix of `text` (a document, or its rest after earlier safe cuts) whose ids do
// not depend on the text after it: encoding text[0, n) and the rest separately gives the ids of the whole. 0: no such
// point is known; never 0 if bytes >= TOKENIZER_SURE_CUT_BYTES.
int64_t tokenizer_safe_cut(const Tokenizer *tokenizer, const void *text, int64_t bytes);
#define TOKENIZER_SURE_CUT_BYTES (4 << 20)

// ---- training ----

typedef struct {
    int32_t vocab;      // total: 256 bytes + merges + reserved + <|endoftext|>
    int32_t reserved;   // extra special tokens <|reserved_0|> ..., before <|endoftext|>, which has the last id
    int64_t min_count;  // rarer pairs are not merged (>= 1)
    void (*progress)(void *context, int32_t merges_done, int32_t merges_wanted);  // may be NULL
    void *progress_context;
} TokenizerTraining;

// Counts of words (pieces of GPT-2's split pattern). Use one per thread, then merge them and train. The result is a
// pure function of the counts: it does not depend on threads, chunks or order. Ties between pairs go to the greatest
// (left bytes, right bytes).
typedef struct WordCounts WordCounts;
WordCounts *word_counts_new(void);
void word_counts_free(WordCounts *counts);
void word_counts_add(WordCounts *counts, const void *text, int64_t bytes);  // a whole document, or up to a safe cut
int64_t word_counts_safe_cut(const void *text, int64_t bytes);              // as tokenizer_safe_cut
void word_counts_merge(WordCounts *counts, const WordCounts *other);
int64_t word_counts_unique(const WordCounts *counts);
int64_t word_counts_bytes(const WordCounts *counts);  // bytes of text counted
Tokenizer *tokenizer_train(const WordCounts *counts, const TokenizerTraining *training, Error *err);
#endif
