// tokenizer_test.c: see tokenizer_test.h.
#include "tests/support/tokenizer_test.h"

#include <string.h>

#include "llmc/tokenizer/tokenizer_impl.h"

void tokenizer_test_merge(const Tokenizer *t, int32_t rank, int32_t *left, int32_t *right) {
    CHECK(rank >= 0 && rank < t->merge_count, "merge %d of %d", rank, t->merge_count);
    *left = t->merges[rank].left;
    *right = t->merges[rank].right;
}

int32_t tokenizer_test_find_special(const Tokenizer *t, const char *name) {
    for (int32_t id = 0; id < tokenizer_vocab(t); ++id) {
        int32_t bytes;
        const uint8_t *token = tokenizer_token(t, id, &bytes);
        if (tokenizer_is_special(t, id) && (size_t)bytes == strlen(name) && memcmp(token, name, (size_t)bytes) == 0)
            return id;
    }
    return -1;
}
