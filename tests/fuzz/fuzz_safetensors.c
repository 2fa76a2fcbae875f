// fuzz_safetensors.c: safetensors files. All tensors of a file that opens are read to the end.
#include "llmc/formats/safetensors.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    Error err = {""};
    SafeTensors *file;
    if (!safetensors_open(&file, fuzz_file("model.safetensors", data, bytes), &err)) {
        CHECK(err.message[0] != '\0', "an error without a message");
        return 0;
    }
    for (int i = 0; i < safetensors_count(file); ++i) {
        const SafeTensor *tensor = safetensors_at(file, i);
        CHECK(safetensors_find(file, tensor->name) != NULL, "'%s' is listed but not found", tensor->name);
        int64_t elems = 1;
        for (int d = 0; d < tensor->ndim; ++d) elems *= tensor->dim[d];
        float buffer[64];
        for (int64_t k = 0; k < elems; k += 64) {
            if (!safetensors_read_f32(tensor, k, min_i64(64, elems - k), buffer, &err)) break;
        }
    }
    safetensors_close(file);
    return 0;
}
