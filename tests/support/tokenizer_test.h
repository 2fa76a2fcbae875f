// tokenizer_test.h: accessors of a tokenizer for tests only.
#ifndef TESTS_TOKENIZER_TEST_H
#define TESTS_TOKENIZER_TEST_H

#include "llmc/tokenizer/tokenizer.h"

// The two ids that merge number `rank` joins, in training order.
void tokenizer_test_merge(const Tokenizer *tokenizer, int32_t rank, int32_t *left, int32_t *right);
int32_t tokenizer_test_find_special(const Tokenizer *tokenizer, const char *name);  // id or -1

#endif
