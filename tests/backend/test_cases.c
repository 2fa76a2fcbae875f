// test_cases.c: the registry of operation cases is complete, and its checks can fail: every operation of the Backend
// struct has a case; a wrong element, a wrong gradient and NaN are found.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/case_test.h"
#include "tests/support/counted_names.h"

// ---- every operation has a case ----

// Functions of the Backend struct that compute nothing; tests/cpu/test_backend_cpu.c and tests/gpu have their tests.
static const char NO_OPERATIONS[] =
    " alloc free zero memory_free upload download copy synchronize host_alloc host_free mark upload_after "
    "download_begin after has_passed wait elapsed_ms sequence_begin sequence_end comm_open close plan_workspace "
    "measure_peak "
    "telemetry ";

static bool has_word(const char *words, const char *word) {
    size_t length = strlen(word);
    for (const char *at = strstr(words, word); at != NULL; at = strstr(at + 1, word))
        if ((at == words || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0')) return true;
    return false;
}
static bool has_case(const char *entry) {
    for (const OpFamily *const *family = OP_FAMILIES; *family != NULL; ++family)
        for (int k = 0; k < (*family)->count; ++k)
            if ((*family)->kinds[k].odd_shapes != NULL && has_word((*family)->kinds[k].entry, entry)) return true;
    return false;
}
static void test_every_operation_has_a_case(OpTest *t) {
    (void)t;
    char *text, name[64];
    int operations = 0;
    Error err = {""};
    if (!file_read_all("llmc/backend/backend.h", (size_t)1 << 20, &text, NULL, &err)) fail_msg("%s", err.message);
    const char *at = strstr(text, "\nstruct Backend {"), *end = at != NULL ? strstr(at, "\n};") : NULL;
    assert_true(at != NULL && end != NULL);
    // Every "(*name)(" between the braces.
    while ((at = strstr(at, "(*")) != NULL && at < end) {
        at += 2;
        if (sscanf(at, "%63[a-z0-9_])(", name) != 1 || has_word(NO_OPERATIONS, name)) continue;
        ++operations;
        if (!has_case(name)) fail_msg("the operation %s has no case with odd shapes in dev/cases", name);
    }
    free(text);
    assert_true(operations >= 25);
}

// ---- the figures of cases agree with the counting backend ----

// A case counts the bytes of each operand once, the minimum; the counting backend counts passes. The ratio of its bytes
// to the case's, if it is not 1.
static const struct {
    const char *entry;
    double least, most;
} PASSES[] = {
    {"qk_forward", 0.84, 1},  // it omits positions and tables
    {"qk_backward", 0.84, 1},
    {"embedding_backward", 0.998, 1.6},  // dout once for each table
    {"cross_entropy", 1.49, 1.51},   // logits twice, for their sum and for the gradient
    {"frobenius_normalize", 1.49, 1.51},
    {"attention_backward", 1.1, 1.3},  // dout and out twice, the first time for the sums of their products
};

// Runs the case on the counting backend. Returns the sum over its calls, which must be to the entries that it names.
static OpCount count_case(const OpCase *c, double *case_bytes) {
    Counting counting;
    OpCall call = {0};
    Tensor t[OP_MAX_OPERANDS];
    Error err = {""};
    counting_init(&counting, NULL);
    call.be = &counting.backend;
    call.c = c;
    c->kind->lay_out(&call);
    for (int i = 0; i < call.count; ++i) {
        t[i] = call.operand[i].shape;
        t[i].data = call.be->alloc(call.be, tensor_bytes(t[i]), &err);
    }
    c->kind->run(call.be, c, t);
    for (int op = 0; op < COUNT_OPS; ++op)
        if ((counting.counts.op[op].calls > 0) != has_word(c->kind->entry, COUNTED_OP_NAMES[op]))
            fail_msg("%s %s declares the entry \"%s\": %s", c->kind->op, c->kind->variant, c->kind->entry,
                     COUNTED_OP_NAMES[op]);
    *case_bytes = op_call_bytes(&call);
    return counts_total(&counting.counts);
}
static void check_count(const OpCase *c) {
    const OpKind *kind = c->kind;
    double case_bytes, least = 0.998, most = 1.002, slack = 0;
    OpCount total = count_case(c, &case_bytes);
    for (size_t i = 0; i < sizeof PASSES / sizeof PASSES[0]; ++i)
        if (strcmp(PASSES[i].entry, kind->entry) == 0) least = PASSES[i].least, most = PASSES[i].most;
    if (kind->fp8) most = 2;  // inputs are read, scaled and written first
    double bytes = (total.bytes + total.product_input_bytes) / case_bytes;
    if (!(bytes >= least && bytes <= most))
        fail_msg("%s %s, %s: %.4f of its bytes are counted", kind->op, kind->variant, c->shape.label, bytes);
    if (kind->shapes == NULL || kind->flops == NULL || strstr(kind->variant, "documents") != NULL) return;
    // Mean number of visible keys per query: T/2 there, (T+1)/2 here.
    if (strncmp(kind->op, "attention", 9) == 0) slack = 1.0 / 32;
    double flops = kind->flops(&c->shape) / (total.flops + total.fp8_flops + total.again_flops);
    if (!(flops >= 1 && flops <= 1 + slack))
        fail_msg("%s %s, %s: FLOPs are %.4f of those counted", kind->op, kind->variant, c->shape.label, flops);
}
// At the shapes of models; at odd shapes only the entries are checked.
static void test_counts(OpTest *t) {
    OpModel models[OP_MAX_MODELS];
    Error err = {""};
    if (!t->once) return;
    OpFilter filter = {.only = "", .fp32 = true, .bf16 = true, .scale = op_scale_find("gpu"), .models = models};
    filter.model_count = op_models_parse(models, "gpt2-124M,qwen2-0.5B", filter.scale, &err);
    for (int gpu = 0; gpu < 2; ++gpu) {
        filter.on_gpu = gpu;
        OpList list = op_list_build(&filter);
        assert_true(list.count > 100);
        for (int i = 0; i < list.count; ++i) check_count(&list.cases[i]);
        op_list_free(&list);
    }
    for (const OpFamily *const *family = OP_FAMILIES; *family != NULL; ++family)
        for (int k = 0; k < (*family)->count; ++k) {
            double bytes;
            const OpKind *kind = &(*family)->kinds[k];
            OpList list = op_list_odd(kind, kind->bf16 ? DTYPE_BF16 : DTYPE_F32);
            for (int i = 0; i < list.count; ++i) count_case(&list.cases[i], &bytes);
            op_list_free(&list);
        }
}

// ---- the checks can fail ----

enum { OUT, MEAN, RSTD, X, WEIGHT, BIAS, DX };

static OpCheck check_of(OpCall *call, bool every_element) {
    OpCheck check = {.ok = true};
    op_check_outputs(call, &check, every_element);
    return check;
}
// One element of one output at a time, in a shape that the sample covers completely and in one that it does not.
static void test_wrong_elements_are_found(OpTest *t) {
    OpCall *call = case_test_open(t, "norm forward", "layer", DTYPE_F32, 0, OP_TEST_DIMS(3, 7));
    case_test_run(t, call);
    assert_true(check_of(call, true).ok && check_of(call, false).ok);
    for (int output = OUT; output <= RSTD; ++output) {
        Tensor tensor = call->t[0][output];
        double *values = op_test_host(t, tensor);
        for (int64_t i = 0; i < tensor_elems(tensor); ++i)
            for (int bad = 0; bad < 2; ++bad) {
                double kept = values[i];
                values[i] = bad == 0 ? kept + 1e-3 : (double)NAN;
                op_test_upload(t, tensor, values);
                values[i] = kept;
                assert_true(!check_of(call, true).ok && !check_of(call, false).ok);
            }
        op_test_upload(t, tensor, values);
    }
    call = case_test_open(t, "norm forward", "layer", DTYPE_F32, 0, OP_TEST_DIMS(100, 50));
    case_test_run(t, call);
    double *values = op_test_host(t, call->t[0][OUT]);
    const int64_t ends[2] = {0, 100 * 50 - 1};
    for (int i = 0; i < 2; ++i) {
        double kept = values[ends[i]];
        values[ends[i]] += 1e-2;
        op_test_upload(t, call->t[0][OUT], values);
        values[ends[i]] = kept;
        assert_true(!check_of(call, true).ok && !check_of(call, false).ok);
    }
}

// dx and dweight of a norm whose reference omits a term.
static const OpKind *honest;
static void wrong_dx(const OpCall *call, int64_t first, int64_t count, double *ref) {
    honest->outputs[0].reference(call, first, count, ref);
    ref[count - 1] += 1e-6;
}
static void test_wrong_gradients_are_found(OpTest *t) {
    honest = op_kind_find("norm backward", "layer");
    OpOutput outputs[4];
    memcpy(outputs, honest->outputs, sizeof outputs);
    OpKind kind = *honest;
    kind.outputs = outputs;
    for (int planted = 0; planted < 2; ++planted) {
        OpCall *call = case_test_open(t, "norm backward", "layer", DTYPE_F32, 0, OP_TEST_DIMS(3, 7));
        OpCase c = *call->c;
        OpCheck check = {.ok = true};
        c.kind = &kind;
        call->c = &c;
        if (planted) outputs[0].reference = wrong_dx;
        assert_true(op_check_gradients(call, &check));
        assert_true(check.ok == !planted);
    }
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_every_operation_has_a_case), OP_TEST_CASE(test_counts),
                                OP_TEST_CASE(test_wrong_elements_are_found),
                                OP_TEST_CASE(test_wrong_gradients_are_found)};
    return op_test_main(CASES, sizeof CASES / sizeof CASES[0]);
}
