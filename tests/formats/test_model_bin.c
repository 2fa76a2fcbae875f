// test_model_bin.c: llm.c's model file: round trip; its layout, written here independently; invalid files.
#include <stdlib.h>
#include <string.h>

#include "llmc/formats/model_file.h"
#include "tests/support/file_test.h"
#include "tests/support/model_kinds.h"

static void read_bin(FileTest *t, HostModel *back, const ModelConfig *config, const char *path) {
    ModelConfig found;
    file_test_expect_ok(t, model_file_read_config(&found, path, &t->err));
    expect_same_config(config, &found, path);
    *back = host_model_empty(&found);
    file_test_expect_ok(t, model_file_read(path, &back->config, &back->params, host_model_put, back, &t->err));
    assert_int_equal(back->puts, back->params.count);
}

static void test_llmc_round_trip(void **state) {
    FileTest *t = *state;
    const ModelConfig config = model_kind(model_kind_find("gpt2"));
    HostModel model = host_model_random(&config);
    char *path = file_test_path(t, "model.bin");
    for (int bf16 = 0; bf16 < 2; ++bf16) {
        DType dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
        file_test_expect_ok(
            t, model_file_write_llmc(path, &config, &model.params, dtype, host_model_get, &model, &t->err));
        HostModel back;
        read_bin(t, &back, &config, path);
        host_model_expect_same(&model, &back, dtype);
        host_model_free(&back);
    }
    free(path);
    host_model_free(&model);
}

// The header and the order, stated here independently of the writer.
static void test_llmc_layout(void **state) {
    FileTest *t = *state;
    const ModelConfig config = model_kind(model_kind_find("gpt2"));
    HostModel model = host_model_random(&config);
    char *path = file_test_path(t, "model.bin"), *bytes;
    size_t size;
    file_test_expect_ok(
        t, model_file_write_llmc(path, &config, &model.params, DTYPE_F32, host_model_get, &model, &t->err));
    file_test_expect_ok(t, file_read_all(path, 1 << 24, &bytes, &size, &t->err));
    int32_t header[256];
    memcpy(header, bytes, sizeof header);
    const int32_t expected[8] = {20240326, 3, (int32_t)config.max_seq_len, (int32_t)config.V, (int32_t)config.L,
                                 (int32_t)config.NH, (int32_t)config.C, (int32_t)config.Vp};
    assert_memory_equal(header, expected, sizeof expected);
    for (int i = 8; i < 256; ++i) assert_int_equal(header[i], 0);
    static const ParamRole ORDER[] = {PARAM_WTE, PARAM_WPE, PARAM_NORM1_W, PARAM_NORM1_B, PARAM_QKV_W, PARAM_QKV_B,
                                      PARAM_ATTN_PROJ_W, PARAM_ATTN_PROJ_B, PARAM_NORM2_W, PARAM_NORM2_B, PARAM_FC_W,
                                      PARAM_FC_B, PARAM_MLP_PROJ_W, PARAM_MLP_PROJ_B, PARAM_NORM_F_W, PARAM_NORM_F_B};
    const char *at = bytes + 1024;
    for (int i = 0; i < 16; ++i)
        for (int layer = i < 2 || i > 13 ? -1 : 0; layer < (i < 2 || i > 13 ? 0 : (int)config.L); ++layer) {
            const ParamSpec *spec = params_find(&model.params, ORDER[i], layer);
            assert_memory_equal(at, model.values + spec->offset, to_size(spec->elems) * 4);
            at += spec->elems * 4;
        }
    assert_int_equal(at - bytes, size);
    free(bytes);
    free(path);
    host_model_free(&model);
}

static void test_llmc_rejections(void **state) {
    FileTest *t = *state;
    const ModelConfig config = model_kind(model_kind_find("gpt2"));
    HostModel model = host_model_random(&config), back = host_model_empty(&config);
    char *path = file_test_path(t, "model.bin"), *bytes;
    size_t size;
    file_test_expect_ok(
        t, model_file_write_llmc(path, &config, &model.params, DTYPE_F32, host_model_get, &model, &t->err));
    file_test_expect_ok(t, file_read_all(path, 1 << 24, &bytes, &size, &t->err));
    ModelConfig found;
    file_test_write(t, "model.bin", bytes, 1000);
    file_test_expect_error(t, model_file_read_config(&found, path, &t->err), "header of 1024 bytes, found 1000");
    file_test_write(t, "model.bin", bytes, size - 1);
    file_test_expect_error(t, model_file_read(path, &config, &back.params, host_model_put, &back, &t->err),
                           "expected");
    static const struct {
        int at, value;
        const char *mention;
    } CASES[] = {{0, 20240520, "model magic 20240326, found 20240520"},
                 {1, 4, "version 3 (fp32) or 5 (bf16), found 4"},
                 {2, 0, "max_seq_len"},
                 {3, -1, "vocabulary"},
                 {4, 0, "layers"},
                 {5, 7, "is not a multiple of heads (NH) 7"},
                 {6, -768, "width"},
                 {7, 301, "found 301"}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        int32_t kept;
        memcpy(&kept, bytes + 4 * CASES[i].at, 4);
        memcpy(bytes + 4 * CASES[i].at, &CASES[i].value, 4);
        file_test_write(t, "model.bin", bytes, size);
        file_test_expect_error(t, model_file_read_config(&found, path, &t->err), CASES[i].mention);
        memcpy(bytes + 4 * CASES[i].at, &kept, 4);
    }
    const int32_t three_layers = 3;
    memcpy(bytes + 16, &three_layers, 4);
    file_test_write(t, "model.bin", bytes, size);
    file_test_expect_error(t, model_file_read(path, &config, &back.params, host_model_put, &back, &t->err),
                           "layers 2");
    free(bytes);
    host_model_free(&model);
    host_model_free(&back);

    static const char *OTHERS[] = {"llama", "gpt2 untied", "gpt2 no bias", "relu2"};
    for (int i = 0; i < 4; ++i) {
        const ModelConfig other = model_kind(model_kind_find(OTHERS[i]));
        model = host_model_random(&other);
        file_test_expect_error(
            t, model_file_write_llmc(path, &other, &model.params, DTYPE_F32, host_model_get, &model, &t->err),
            "holds GPT-2 only");
        host_model_free(&model);
    }
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FILE_TEST(test_llmc_round_trip), FILE_TEST(test_llmc_layout), FILE_TEST(test_llmc_rejections),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
