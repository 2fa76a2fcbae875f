// tokenizer_split.h: splits text into the pieces (words, numbers, punctuation, white space) within which BPE merges.
// Written by hand instead of with a regular-expression engine: exact for the Unicode version of unicode_tables.c,
// several hundred MB/s, and it finds where a text may be cut without changing its pieces.
#ifndef LLMC_TOKENIZER_SPLIT_H
#define LLMC_TOKENIZER_SPLIT_H

#include "llmc/base/common.h"

// The patterns, as published (L, N, S stand for \p{L}, \p{N}, \s):
//   GPT2    's|'t|'re|'ve|'m|'ll|'d| ?L+| ?N+| ?[^S L N]+|S+(?!\S)|S+
//   LLAMA3  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n L N]?L+|N{1,3}| ?[^S L N]+[\r\n]*|S*[\r\n]+|S+(?!\S)|S+
//   QWEN2   the same with N instead of N{1,3}
//   CL100K  LLAMA3, but white space that ends the text is one piece (tiktoken's S++$ before S*[\r\n])
//   SPACES  [ ]*[^ ]*, for vocabularies made by SentencePiece
//   NONE    no pieces: for tokenizers without merges
typedef enum { SPLIT_NONE, SPLIT_GPT2, SPLIT_LLAMA3, SPLIT_QWEN2, SPLIT_CL100K, SPLIT_SPACES } SplitPattern;

// The largest length of a piece (plus the rest of its last character): longer runs are cut.
#define SPLIT_MAX_PIECE_BYTES (1 << 20)

// The length of the first piece of text[0, bytes); bytes >= 1. It may depend on all of the given text, up to
// SPLIT_MAX_PIECE_BYTES + 8 bytes.
int64_t split_piece(SplitPattern pattern, const uint8_t *text, int64_t bytes);

// See tokenizer_safe_cut: the last known point in (scanned, bytes) where the text can be cut, or 0. scanned: an
// earlier call with a shorter prefix of the same text found no point up to here (0 at first).
int64_t split_safe_cut(SplitPattern pattern, const uint8_t *text, int64_t scanned, int64_t bytes);

#endif
