// fuzz_hashes.c: hashes.jsonl of a run. Accepted links are in order, and equal after writing and reading them.
#include <stdlib.h>
#include <string.h>

#include "llmc/train/hash_file.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    Error err = {""};
    HashFile file, again;
    if (!hash_file_read(&file, fuzz_file(HASH_FILE_NAME ".jsonl", data, bytes), &err)) {
        CHECK(err.message[0] != '\0', "an error without a message");
        return 0;
    }
    CHECK(file.count > 0, "no links");
    char *text = xmalloc((size_t)file.count * HASH_LINK_BYTES);
    size_t used = 0;
    for (int64_t i = 0; i < file.count; ++i) {
        const HashLink *link = &file.link[i];
        CHECK(link->since >= (i == 0 ? 0 : link[-1].step) && link->step > link->since, "link %lld", (long long)i);
        char line[HASH_LINK_BYTES];
        size_t length = hash_link_format(line, link);
        memcpy(text + used, line, length);
        used += length;
    }
    bool ok = hash_file_read(&again, fuzz_file("again", (const uint8_t *)text, used), &err);
    CHECK(ok, "the written links do not read: %s", err.message);
    CHECK(again.count == file.count && !again.unfinished &&
              memcmp(again.link, file.link, (size_t)file.count * sizeof *file.link) == 0,
          "links differ:\n%.*s", (int)used, text);
    free(text);
    hash_file_free(&again);
    hash_file_free(&file);
    return 0;
}
