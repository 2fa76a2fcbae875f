// words.h: the names of enum values, each written once: a table {value, word} for parsing, printing and help.
#ifndef LLMC_WORDS_H
#define LLMC_WORDS_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    int value;
    const char *word;
} Word;  // a table ends with {0, NULL}

// Of op_types.h.
extern const Word DTYPE_WORDS[];  // in the order of DType; the first two are the possible dtypes of weights
#define WEIGHT_DTYPES 2
extern const Word NORM_WORDS[];
extern const Word ACTIVATION_WORDS[];
extern const Word OPTIMIZER_WORDS[];

const char *word_of(const Word *words, int value);  // CHECKs that the value is in the table
bool word_find(int *value, const Word *words, const char *word);
// The first `count` words (0: all) with a separator between them, cut at out_bytes.
void word_list(char *out, size_t out_bytes, const Word *words, int count, const char *separator);

#endif
