// fuzz_manifest.c: MANIFEST.json of a checkpoint with one small file.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/checkpoint/checkpoint.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    Error err = {""};
    fuzz_file("state.json", (const uint8_t *)"{}\n", 3);
    fuzz_file(CHECKPOINT_MANIFEST, data, bytes);
    bool shallow = checkpoint_verify(fuzz_dir(), false, &err);
    CHECK(shallow || err.message[0] != '\0', "an error without a message");
    bool deep = checkpoint_verify(fuzz_dir(), true, &err);
    CHECK(shallow || !deep, "the deep check accepts what the shallow one rejects");
    return 0;
}
