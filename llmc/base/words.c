// words.c: see words.h.
#include "llmc/base/words.h"

#include <stdio.h>
#include <string.h>

#include "llmc/base/common.h"
#include "llmc/base/op_types.h"

const Word DTYPE_WORDS[] = {{DTYPE_F32, "fp32"}, {DTYPE_BF16, "bf16"}, {DTYPE_I32, "int32"},
                            {DTYPE_U8, "uint8"}, {DTYPE_F64, "fp64"},  {0, NULL}};
const Word NORM_WORDS[] = {{NORM_LAYER, "layer"}, {NORM_RMS, "rms"}, {0, NULL}};
const Word ACTIVATION_WORDS[] = {
    {ACT_NONE, "none"}, {ACT_GELU, "gelu"}, {ACT_RELU2, "relu2"}, {ACT_SWIGLU, "swiglu"}, {0, NULL}};
const Word OPTIMIZER_WORDS[] = {{OPTIMIZER_ADAMW, "adamw"}, {OPTIMIZER_MUON, "muon"}, {0, NULL}};

const char *word_of(const Word *words, int value) {
    for (const Word *w = words; w->word != NULL; ++w)
        if (w->value == value) return w->word;
    CHECK(false, "no word for %d among \"%s\", ...", value, words->word);
    return NULL;
}

bool word_find(int *value, const Word *words, const char *word) {
    for (const Word *w = words; w->word != NULL; ++w)
        if (strcmp(w->word, word) == 0) {
            *value = w->value;
            return true;
        }
    return false;
}

void word_list(char *out, size_t out_bytes, const Word *words, int count, const char *separator) {
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; words[i].word != NULL && (count == 0 || i < count) && used < out_bytes; ++i)
        used += (size_t)snprintf(out + used, out_bytes - used, "%s%s", i > 0 ? separator : "", words[i].word);
}
