// fuzz_state.c: state.json of a checkpoint. What is accepted must hold what a run relies on, and must read back from
// what is written of it.
#include "llmc/state_file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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
    const RunProgress *p = &state.progress;
    CHECK(p->bad_in_row >= 0 && p->bad_in_row <= p->bad_steps && p->bad_steps <= p->step, "step %lld, bad %lld, %lld",
          (long long)p->step, (long long)p->bad_steps, (long long)p->bad_in_row);
    CHECK(p->seconds >= 0 && isfinite(p->seconds), "seconds=%g", p->seconds);
    char *text = state_file_write(&state, "{}");
    ok = state_file_parse(&again, text, "again.json", &err);
    CHECK(ok, "the written state does not read: %s\n%s", err.message, text);
    // Counts are written with 15 digits, which is more than any run has.
    CHECK(p->step >= 1000000000000000 ||
              (again.progress.step == p->step && again.progress.bad_steps == p->bad_steps &&
               again.progress.bad_in_row == p->bad_in_row),
          "counts differ:\n%s", text);
    CHECK(strcmp(again.optimizer, state.optimizer) == 0 && strcmp(again.dtype, state.dtype) == 0 &&
              again.tokenizer_fingerprint == state.tokenizer_fingerprint, "words differ:\n%s", text);
    free(text);
    return 0;
}
