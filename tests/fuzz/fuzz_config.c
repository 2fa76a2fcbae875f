// fuzz_config.c: run files. A config that loads must print as a run file that loads to the same bytes.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/config/config.h"
#include "tests/fuzz/fuzz_file.h"

static RunConfig first, second;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    Error err = {""};
    if (!config_load(&first, fuzz_file("run.conf", data, bytes), 0, NULL, NULL, &err)) {
        CHECK(err.message[0] != '\0', "an error without a message");
        return 0;
    }
    char *text = NULL;
    size_t text_bytes = 0;
    FILE *out = open_memstream(&text, &text_bytes);
    config_print(out, &first);
    fclose(out);
    bool again =
        config_load(&second, fuzz_file("again.conf", (const uint8_t *)text, text_bytes), 0, NULL, NULL, &err);
    CHECK(again, "the printed config does not load: %s\n%s", err.message, text);
    CHECK(memcmp(&first, &second, sizeof first) == 0, "the printed config differs when read back:\n%s", text);
    free(text);
    return 0;
}
