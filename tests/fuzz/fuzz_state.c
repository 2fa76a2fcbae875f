// fuzz_state.c: state.json of a checkpoint. What is accepted must be written and read back to the same values.
#include <stdlib.h>
#include <string.h>

#include "llmc/run_state.h"
#include "tests/fuzz/fuzz_file.h"

// run_state.c refers to the whole engine; parsing must not reach it.
Backend *backend_cpu_open(int threads, const char *isa, Error *err) {
    (void)isa;
    (void)err;
    CHECK(false, "parsing opened a device with %d threads", threads);
    return NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    char *json = xmalloc(bytes + 1);
    memcpy(json, data, bytes);
    json[bytes] = '\0';
    Error err = {""};
    StateFile state, again;
    bool ok = state_file_parse(&state, json, "state.json", &err);
    free(json);
    if (!ok) {
        CHECK(err.message[0] != '\0', "an error without a message");
        return 0;
    }
    char *text = state_file_write(&state, "{}");
    ok = state_file_parse(&again, text, "again.json", &err);
    CHECK(ok, "the written state does not read: %s\n%s", err.message, text);
    CHECK(again.progress.step == state.progress.step && again.progress.seconds == state.progress.seconds &&
              strcmp(again.optimizer, state.optimizer) == 0 && strcmp(again.dtype, state.dtype) == 0 &&
              again.tokenizer_fingerprint == state.tokenizer_fingerprint,
          "the written state reads back differently:\n%s", text);
    free(text);
    return 0;
}
