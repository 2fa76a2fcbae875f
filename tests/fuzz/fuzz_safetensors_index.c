// fuzz_safetensors_index.c: model.safetensors.index.json beside one valid file with the tensor "a".
#include <stdio.h>
#include <string.h>

#include "llmc/formats/safetensors.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const char HEADER[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    unsigned char part[8 + sizeof HEADER - 1 + 4] = {sizeof HEADER - 1};
    memcpy(part + 8, HEADER, sizeof HEADER - 1);
    fuzz_file("part.safetensors", part, sizeof part);
    fuzz_file("model.safetensors.index.json", data, bytes);
    Error err = {""};
    SafeTensors *file;
    if (!safetensors_open(&file, fuzz_dir(), &err)) {
        CHECK(err.message[0] != '\0', "an error without a message");
        return 0;
    }
    for (int i = 0; i < safetensors_count(file); ++i) {
        const SafeTensor *tensor = safetensors_at(file, i);
        float value;
        CHECK(strcmp(tensor->name, "a") == 0 && safetensors_read_f32(tensor, 0, 1, &value, &err), "'%s'",
              tensor->name);
    }
    safetensors_close(file);
    return 0;
}
