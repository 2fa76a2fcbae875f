// fuzz_optimizer_file.c: the optimizer's state in one file, of a model of two parameters; whatever opens is whole, and
// is read to the end.
#include "llmc/checkpoint/optimizer_file.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    ParamSpec spec[2] = {{.name = "wte", .ndim = 2, .dim = {2, 3}, .elems = 6},
                         {.name = "b.w", .ndim = 1, .dim = {4, 1}, .elems = 4, .hidden_matrix = true}};
    const ParamTable params = {.spec = spec, .count = 2, .total_elems = 10};
    Error err = {""};
    OptimizerFiles *files;
    fuzz_file("optimizer.safetensors", data, bytes);
    if (!optimizer_files_open(&files, fuzz_dir(), &params, &err)) {
        CHECK(err.message[0] != '\0', "an error without a message");
        return 0;
    }
    for (int i = 0; i < params.count; ++i)
        for (int kind = 0; kind < STATE_KINDS; ++kind) {
            float values[6];
            if (!optimizer_files_has(files, (StateKind)kind, i)) continue;
            CHECK(optimizer_files_read(files, (StateKind)kind, i, 0, spec[i].elems, values, &err), "%s", err.message);
            CHECK(optimizer_files_read(files, (StateKind)kind, i, 1, spec[i].elems - 2, values, &err), "%s",
                  err.message);
            optimizer_files_release(files, (StateKind)kind, i);
        }
    optimizer_files_check(files, &(StateKept){.muon = true}, &err);
    optimizer_files_close(files);
    return 0;
}
