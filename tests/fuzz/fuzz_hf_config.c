// fuzz_hf_config.c: Hugging Face's config.json. An accepted model must be buildable, and its own config.json must read
// back to the same architecture.
#include "llmc/formats/hf.h"

#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    char *json = xmalloc(bytes + 1);
    memcpy(json, data, bytes);
    json[bytes] = '\0';
    Error err = {""};
    ModelConfig config, again;
    memset(&config, 0, sizeof config);
    memset(&again, 0, sizeof again);
    bool ok = hf_config_read(&config, json, "config.json", &err) && model_config_finish(&config, &err);
    free(json);
    if (!ok) {
        CHECK(err.message[0] != '\0', "an error without a message");
        return 0;
    }
    char *text = hf_config_write(&config, DTYPE_F32, -1, -1);
    ok = hf_config_read(&again, text, "again.json", &err) && model_config_finish(&again, &err);
    CHECK(ok, "the written config does not read: %s\n%s", err.message, text);
    CHECK(again.L == config.L && again.C == config.C && again.NH == config.NH && again.NKV == config.NKV &&
              again.HS == config.HS && again.F == config.F && again.V == config.V && again.window == config.window &&
              again.max_seq_len == config.max_seq_len && again.position == config.position &&
              again.norm == config.norm && again.activation == config.activation && again.tied == config.tied &&
              again.qk_norm == config.qk_norm && again.qkv_bias == config.qkv_bias &&
              again.proj_bias == config.proj_bias && again.mlp_bias == config.mlp_bias &&
              again.norm_bias == config.norm_bias && again.rope_theta == config.rope_theta &&
              again.norm_eps == config.norm_eps,
          "the written config reads as another model:\n%s", text);
    free(text);
    return 0;
}
