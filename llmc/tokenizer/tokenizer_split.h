// tokenizer_split.h: cuts text into the pieces (words, numbers, punctuation, white space) inside which BPE merges.
// Written by hand instead of a regular-expression engine: exact on the Unicode version of unicode_tables.c, several
// hundred MB/s, and able to say where a text may be cut without changing its pieces. Called by the tokenizer only.
#ifndef LLMC_TOKENIZER_SPLIT_H
#define LLMC_TOKENIZER_SPLIT_H

#include "llmc/base/common.h"

// The patterns, as published (L, N, S stand for \p{L}, \p{N}, \s):
//   GPT2    's|'t|'re|'ve|'m|'ll|'d| ?L+| ?N+| ?[^S L N]+|S+(?!\S)|S+
//   LLAMA3  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n L N]?L+|N{1,3}| ?[^S L N]+[\r\n]*|S*[\r\n]+|S+(?!\S)|S+
//   QWEN2   the same with N instead of N{1,3}
//   CL100K  LLAMA3, but white space that ends the text is one piece (tiktoken's S++$ before S*[\r\n])
//   SPACES  [ ]*[^ ]*, for vocabularies that were made by SentencePiece
//   NONE    no pieces: for tokenizers that merge nothing
typedef enum { SPLIT_NONE, SPLIT_GPT2, SPLIT_LLAMA3, SPLIT_QWEN2, SPLIT_CL100K, SPLIT_SPACES } SplitPattern;

// A run that the patterns would not end is ended here (plus the rest of its last character).
#define SPLIT_MAX_PIECE_BYTES (1 << 20)

// The length of the first piece of text[0, bytes); bytes >= 1. It may depend on all of the text given, up to
// SPLIT_MAX_PIECE_BYTES + 8 bytes.
int64_t split_piece(SplitPattern pattern, const uint8_t *text, int64_t bytes);

// See tokenizer_safe_cut: the last known point in (scanned, bytes) where the text can be cut, or 0. The caller knows
// that there is none up to `scanned`, from an earlier call on the same text while it was shorter (0 at first).
int64_t split_safe_cut(SplitPattern pattern, const uint8_t *text, int64_t scanned, int64_t bytes);

#endif
