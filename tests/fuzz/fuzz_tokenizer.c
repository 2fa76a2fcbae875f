// fuzz_tokenizer.c: tokenizer files. The first byte selects the kind: J tokenizer.json, T .tiktoken, B llama2.c's .bin,
// G encoder.json, a zero byte, vocab.bpe. A tokenizer that loads must encode without loss.
#include "llmc/tokenizer/tokenizer.h"

#include <stdio.h>
#include <string.h>

#include "tests/fuzz/fuzz_file.h"

static const char SAMPLE[] = "Ahem, \xc3\xa4hem: 12345  the the\n\n\t<|endoftext|> \xff\x80 don't";

static void check_lossless(const Tokenizer *tokenizer) {
    TokenList ids = {0};
    tokenizer_encode(tokenizer, &ids, SAMPLE, (int64_t)strlen(SAMPLE), false);
    int64_t at = 0;
    for (int64_t i = 0; i < ids.count; ++i) {
        int32_t bytes;
        const uint8_t *text = tokenizer_token(tokenizer, ids.ids[i], &bytes);
        CHECK(at + bytes <= (int64_t)strlen(SAMPLE) && memcmp(text, SAMPLE + at, (size_t)bytes) == 0,
              "id %d is wrong at byte %lld", ids.ids[i], (long long)at);
        at += bytes;
    }
    CHECK(at == (int64_t)strlen(SAMPLE), "only %lld bytes were decoded", (long long)at);
    token_list_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (bytes == 0) return 0;
    const uint8_t *content = data + 1;
    size_t count = bytes - 1;
    const char *path;
    switch (data[0]) {
    case 'J': path = fuzz_file("tokenizer.json", content, count); break;
    case 'T': path = fuzz_file("r50k_base.tiktoken", content, count); break;
    case 'B': path = fuzz_file("tok.bin", content, count); break;
    case 'G': {
        const uint8_t *cut = memchr(content, 0, count);
        if (cut == NULL) return 0;
        fuzz_file("encoder.json", content, (size_t)(cut - content));
        fuzz_file("vocab.bpe", cut + 1, count - (size_t)(cut + 1 - content));
        remove(fuzz_file("tokenizer.json", NULL, 0));  // a directory's first choice
        path = fuzz_dir();
        break;
    }
    default: return 0;
    }
    Error err = {""};
    Tokenizer *tokenizer = tokenizer_load(path, &err);
    CHECK(tokenizer != NULL || err.message[0] != '\0', "an error without a message");
    if (tokenizer != NULL && data[0] != 'B') check_lossless(tokenizer);
    tokenizer_free(tokenizer);
    return 0;
}
