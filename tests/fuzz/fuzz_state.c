// fuzz_state.c: state.json of a checkpoint. An accepted state must meet the assumptions of a run, and be equal after
// writing and reading it.
#include "llmc/checkpoint/state_file.h"

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
    for (int i = 0; i < p->skip_count; ++i)
        CHECK(p->skip[i].at_step >= (i == 0 ? 0 : p->skip[i - 1].at_step) && p->skip[i].at_step <= p->step &&
                  p->skip[i].steps > 0 && data_skip_step(p->skip, p->skip_count, p->step) > p->step,
              "skip %d: %lld, %lld", i, (long long)p->skip[i].at_step, (long long)p->skip[i].steps);
    for (int64_t i = 0; i < p->guard.count; ++i) {
        const GuardEntry *entry = &p->guard.entry[i];
        CHECK(entry->step > (i == 0 ? 0 : entry[-1].step) && entry->step <= p->step && isfinite(entry->loss) &&
                  isfinite(entry->norm) && entry->norm >= 0,
              "guard entry %lld", (long long)i);
    }
    char *text = state_file_write(&state, "{}");
    ok = state_file_parse(&again, text, "again.json", &err);
    CHECK(ok, "the written state does not read: %s\n%s", err.message, text);
    // Counts are written with 15 digits, more than any run needs.
    CHECK(p->step >= 1000000000000000 ||
              (again.progress.step == p->step && again.progress.bad_steps == p->bad_steps &&
               again.progress.bad_in_row == p->bad_in_row),
          "counts differ:\n%s", text);
    CHECK(again.progress.chain == p->chain && again.progress.chain_data == p->chain_data &&
              (p->step >= 1000000000000000 || again.progress.chain_step == p->chain_step), "the chain differs:\n%s", text);
    CHECK(again.progress.skip_count == p->skip_count &&
              memcmp(again.progress.skip, p->skip, sizeof p->skip) == 0, "skips differ:\n%s", text);
    CHECK(memcmp(&again.progress.guard, &p->guard, sizeof p->guard) == 0, "the guard differs:\n%s", text);
    CHECK(strcmp(again.optimizer, state.optimizer) == 0 && strcmp(again.dtype, state.dtype) == 0 &&
              again.tokenizer_fingerprint == state.tokenizer_fingerprint, "texts differ:\n%s", text);
    free(text);
    return 0;
}
