// model_kinds.c: see model_kinds.h.
#include "tests/support/model_kinds.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// All sizes differ, and the vocabulary is not a multiple of the padding, so that swapped dimensions are detected.
static void as_gpt2(ModelConfig *c) {
    *c = (ModelConfig){.L = 2, .C = 24, .NH = 3, .V = 131, .max_seq_len = 20, .norm = NORM_LAYER, .norm_eps = 1e-5f,
                       .position = POSITION_LEARNED, .activation = ACT_GELU, .norm_bias = true, .qkv_bias = true,
                       .proj_bias = true, .mlp_bias = true, .tied = true, .init_std = 0.02f};
}
static void as_gpt2_untied(ModelConfig *c) {
    as_gpt2(c);
    c->tied = false;
    c->F = 40;
    c->norm_eps = 1.2345678e-6f;
}
static void as_gpt2_no_bias(ModelConfig *c) {
    as_gpt2(c);
    c->norm_bias = c->qkv_bias = c->proj_bias = c->mlp_bias = false;
}
static void as_gpt2_no_qkv_bias(ModelConfig *c) {
    as_gpt2(c);
    c->qkv_bias = false;
}
static void as_gpt2_window(ModelConfig *c) {
    as_gpt2(c);
    c->window = 5;
}
static void as_llama(ModelConfig *c) {
    *c = (ModelConfig){.L = 2, .C = 32, .NH = 4, .NKV = 2, .F = 48, .V = 300, .max_seq_len = 64, .norm = NORM_RMS,
                       .norm_eps = 1e-6f, .position = POSITION_ROPE, .rope_theta = 12345.5, .activation = ACT_SWIGLU,
                       .init_std = 0.013f};
}
static void as_llama_tied(ModelConfig *c) {
    as_llama(c);
    c->tied = true;
    c->F = 300;  // the length of the embedding
}
static void as_llama3(ModelConfig *c) {
    as_llama(c);
    c->HS = 16;
    c->rope_scaling = (RopeScaling){8, 1, 4, 32};
}
static void as_llama_biases(ModelConfig *c) {
    as_llama(c);
    c->qkv_bias = c->proj_bias = c->mlp_bias = true;
}
static void as_llama_mlp_bias(ModelConfig *c) {
    as_llama(c);
    c->mlp_bias = true;
}
static void as_llama_proj_bias(ModelConfig *c) {
    as_llama(c);
    c->proj_bias = true;
}
static void as_llama_odd_width(ModelConfig *c) {
    as_llama(c);
    c->C = 34;
    c->HS = 8;
}
static void as_llama_odd_width_bias(ModelConfig *c) {
    as_llama_odd_width(c);
    c->mlp_bias = true;
}
static void as_mistral(ModelConfig *c) {
    as_llama(c);
    c->window = 7;
}
static void as_qwen2(ModelConfig *c) {
    as_llama(c);
    c->qkv_bias = c->tied = true;
}
static void as_qwen2_window(ModelConfig *c) {
    as_qwen2(c);
    c->window = 9;
}
static void as_qwen3(ModelConfig *c) {
    as_llama(c);
    c->qk_norm = true;
    c->HS = 12;
}
static void as_qwen3_proj_bias_window(ModelConfig *c) {
    as_qwen3(c);
    c->proj_bias = true;
    c->window = 11;
}
static void as_relu2(ModelConfig *c) {
    as_llama(c);
    c->activation = ACT_RELU2;
    c->qk_norm = true;
}
static void as_softcap(ModelConfig *c) {
    as_llama(c);
    c->logit_softcap = 30.1f;
    c->rope_scaling = (RopeScaling){8.25, 1, 4, 32};
}
static void as_layernorm_rope(ModelConfig *c) {
    as_llama(c);
    c->norm = NORM_LAYER;
    c->norm_bias = c->proj_bias = true;
}
static void as_no_position(ModelConfig *c) {
    as_llama(c);
    c->position = POSITION_NONE;
    c->rope_theta = 0;
}
static void as_qwen3_mlp_bias(ModelConfig *c) {
    as_qwen3(c);
    c->mlp_bias = true;
}

const ModelKind MODEL_KINDS[MODEL_KIND_COUNT] = {
    {"gpt2", "GPT2LMHeadModel", as_gpt2},
    {"gpt2 untied", "GPT2LMHeadModel", as_gpt2_untied},
    {"gpt2 no bias", "GPT2LMHeadModel", as_gpt2_no_bias},
    {"gpt2 no qkv bias", "GPT2LMHeadModel", as_gpt2_no_qkv_bias},
    {"gpt2 window", "TokamakForCausalLM", as_gpt2_window},
    {"llama", "LlamaForCausalLM", as_llama},
    {"llama tied", "LlamaForCausalLM", as_llama_tied},
    {"llama3", "LlamaForCausalLM", as_llama3},
    {"llama biases", "LlamaForCausalLM", as_llama_biases},
    {"llama mlp bias", "LlamaForCausalLM", as_llama_mlp_bias},
    {"llama proj bias", "LlamaForCausalLM", as_llama_proj_bias},
    {"llama odd width", "MistralForCausalLM", as_llama_odd_width},
    {"llama odd width bias", "TokamakForCausalLM", as_llama_odd_width_bias},
    {"mistral", "MistralForCausalLM", as_mistral},
    {"qwen2", "Qwen2ForCausalLM", as_qwen2},
    {"qwen2 window", "Qwen2ForCausalLM", as_qwen2_window},
    {"qwen3", "Qwen3ForCausalLM", as_qwen3},
    {"qwen3 proj bias window", "Qwen3ForCausalLM", as_qwen3_proj_bias_window},
    {"relu2", "TokamakForCausalLM", as_relu2},
    {"softcap", "TokamakForCausalLM", as_softcap},
    {"layernorm rope", "TokamakForCausalLM", as_layernorm_rope},
    {"no position", "TokamakForCausalLM", as_no_position},
    {"qwen3 mlp bias", "TokamakForCausalLM", as_qwen3_mlp_bias},
};

ModelConfig model_kind(int index) {
    ModelConfig config;
    Error err = {""};
    MODEL_KINDS[index].change(&config);
    if (!model_config_finish(&config, &err)) fail_msg("%s: %s", MODEL_KINDS[index].name, err.message);
    return config;
}

int model_kind_find(const char *name) {
    for (int i = 0; i < MODEL_KIND_COUNT; ++i)
        if (strcmp(MODEL_KINDS[i].name, name) == 0) return i;
    fail_msg("no kind '%s'", name);
    return -1;
}

void expect_same_config(const ModelConfig *expected, const ModelConfig *found, const char *what) {
#define SAME(field)                                                                                                \
    if (!(expected->field == found->field))                                                                        \
    fail_msg("%s: " #field ": expected %.17g, found %.17g", what, (double)expected->field, (double)found->field)
    SAME(L); SAME(C); SAME(NH); SAME(NKV); SAME(HS); SAME(F); SAME(V); SAME(Vp); SAME(max_seq_len);
    SAME(norm); SAME(norm_eps); SAME(position); SAME(rope_theta);
    SAME(rope_scaling.factor); SAME(rope_scaling.low_freq_factor); SAME(rope_scaling.high_freq_factor);
    SAME(rope_scaling.original_max_seq_len);
    SAME(activation); SAME(norm_bias); SAME(qkv_bias); SAME(proj_bias); SAME(mlp_bias);
    SAME(tied); SAME(qk_norm); SAME(window); SAME(logit_softcap); SAME(init_std);
#undef SAME
}

// ---- weights on the host ----

HostModel host_model_empty(const ModelConfig *config) {
    HostModel model = {.config = *config};
    params_build(&model.params, config);
    size_t bytes = to_size(model.params.total_elems) * sizeof(float);
    model.values = xmalloc(bytes);
    memset(model.values, 0xff, bytes);  // NaN
    return model;
}
HostModel host_model_random(const ModelConfig *config) {
    HostModel model = host_model_empty(config);
    for (int i = 0; i < model.params.count; ++i) {
        ParamSpec spec = model.params.spec[i];
        spec.init = INIT_NORMAL;
        spec.init_std = 1;
        params_init_values(&spec, 3, model.values + spec.offset);
    }
    return model;
}
void host_model_free(HostModel *model) {
    params_free(&model->params);
    free(model->values);
}
bool host_model_put(void *context, const ParamSpec *spec, const float *values, Error *err) {
    HostModel *model = context;
    if (model->puts < 0) return error_set(err, "no room for %s", spec->name);
    assert_ptr_equal(spec, &model->params.spec[model->puts]);
    model->puts++;
    memcpy(model->values + spec->offset, values, to_size(spec->elems) * sizeof *values);
    return true;
}
bool host_model_get(void *context, const ParamSpec *spec, int64_t first, int64_t count, float *out, Error *err) {
    (void)err;
    const HostModel *model = context;
    assert_true(first >= 0 && count > 0 && first + count <= spec->elems);
    memcpy(out, model->values + spec->offset + first, to_size(count) * sizeof *out);
    return true;
}

void host_model_expect_same(const HostModel *expected, const HostModel *found, DType dtype) {
    for (int i = 0; i < expected->params.count; ++i) {
        const ParamSpec *spec = &expected->params.spec[i];
        for (int64_t j = 0; j < spec->elems; ++j) {
            float want = expected->values[spec->offset + j], got = found->values[spec->offset + j];
            if (dtype == DTYPE_BF16) want = bf16_to_f32(bf16_from_f32(want));
            if (!(want == got))
                fail_msg("%s[%lld]: expected %g, found %g", spec->name, (long long)j, (double)want, (double)got);
        }
    }
}

float host_model_at(const HostModel *model, ParamRole role, int layer, int64_t row, int64_t col) {
    const ParamSpec *spec = params_find(&model->params, role, layer);
    return model->values[spec->offset + row * spec->dim[1] + col];
}

