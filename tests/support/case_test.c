// case_test.c: see case_test.h.
#include "tests/support/case_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/cpu/kernels.h"

typedef struct {
    const OpKind *kind;
    DType dtype;
} KindTest;

#define NOWHERE (-1)
// The numbers that all patterns are made of.
static float *normals;

// Every operand has an allocation of its own, between fences; `shifted` begins one element further.
static void open_call(OpTest *t, OpCall *call, const OpCase *c, int shifted) {
    call->normals = normals;
    op_call_lay_out(call, t->be, c);
    normals = call->normals;
    call->sets = 1;
    call->t = xcalloc(1, sizeof *call->t);
    for (int i = 0; i < call->count; ++i) {
        Tensor shape = call->operand[i].shape, *tensor = &call->t[0][i];
        *tensor = shape;
        int64_t elems = tensor_elems(shape) + (i == shifted);
        tensor->data = op_test_tensor(t, shape.dtype, 1, &elems).data;
        if (i == shifted) tensor->data = (char *)tensor->data + dtype_bytes(shape.dtype);
    }
    op_call_fill(call);
}

// ---- what is checked of a case ----

static void fail_case(const OpCase *c, const char *format, ...) PRINTF_LIKE(2, 3);
static void fail_case(const OpCase *c, const char *format, ...) {
    char shape[96], text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    op_shape_text(shape, sizeof shape, &c->shape);
    fail_msg("%s %s (%s), %s %s, flags 0x%x: %s", c->kind->op, c->kind->variant, dtype_name(c->dtype), c->shape.label,
             shape, c->shape.flags, text);
}
static void fail_unless_ok(const OpCase *c, const OpCheck *check) {
    if (!check->ok)
        fail_case(c, "%s: relative error %.3g, at most %.3g allowed", check->what, check->error, check->tolerance);
}

static unsigned char *operand_bytes(OpTest *t, const OpCall *call, int operand) {
    size_t bytes = tensor_bytes(call->t[0][operand]);
    unsigned char *host = op_test_bytes(t, bytes + 1);
    t->be->download(t->be, host, call->t[0][operand].data, bytes);
    return host;
}

void case_test_poison_scratch(OpTest *t) {
    const size_t bytes = (size_t)1 << 20;
    for (int thread = 0; strcmp(t->be->name, "cpu") == 0 && thread < t->be->threads; ++thread)
        memset(cpu_scratch(t->be, thread, bytes), 0xff, bytes);
}
void case_test_run(OpTest *t, OpCall *call) {
    case_test_poison_scratch(t);
    call->c->kind->run(t->be, call->c, call->t[0]);
}
void case_test_run_user(OpTest *t, void *call) { case_test_run(t, call); }

static void see_outputs(OpTest *t, const OpCall *call) { t->seen = (t->seen ^ op_call_hash(call)) * 1099511628211u; }
void case_test_check(OpTest *t, OpCall *call, bool every_element) {
    OpCheck check = {.ok = true};
    op_check_outputs(call, &check, every_element);
    fail_unless_ok(call->c, &check);
    see_outputs(t, call);
}

// The first run, and that it leaves alone what it only reads.
static void check_values(OpTest *t, OpCall *call) {
    unsigned char *before[OP_MAX_OPERANDS];
    for (int i = 0; i < call->count; ++i) before[i] = operand_bytes(t, call, i);
    case_test_run(t, call);
    if (t->repeat) see_outputs(t, call);
    else case_test_check(t, call, true);
    for (int i = 0; i < call->count; ++i)
        if (!(call->operand[i].access & OP_WRITE) &&
            memcmp(before[i], operand_bytes(t, call, i), tensor_bytes(call->t[0][i])) != 0)
            fail_case(call->c, "operand %d is only read, and was written", i);
}

// On the emulated GPU the thread orders are compared (op_test.c).
static void check_same_bits(OpTest *t, OpCall *call) {
    uint64_t hash = op_call_hash(call);
    int runs = t->be->threads > 0 ? 3 : strcmp(t->be->name, "cudaemu") == 0 ? 0 : 1;
    for (int threads = 1; threads <= runs; ++threads) {
        op_test_set_threads(t, threads);
        op_call_reset(call);
        case_test_run(t, call);
        if (op_call_hash(call) != hash) fail_case(call->c, "other bits in another run, with %d threads", threads);
    }
    op_test_set_threads(t, 0);
}

static void check_in_place(OpTest *t, OpCall *call) {
    unsigned char *expected[2];
    for (int i = 0; i < 2; ++i) expected[i] = operand_bytes(t, call, call->c->kind->alias[i].output);
    for (int i = 0; i < 2; ++i) {
        OpAlias alias = call->c->kind->alias[i];
        if (alias.output == alias.input || (alias.may != NULL && !alias.may(call->c))) continue;
        Tensor *out = &call->t[0][alias.output], apart = *out;
        op_call_reset(call);
        out->data = call->t[0][alias.input].data;
        case_test_run(t, call);
        if (memcmp(expected[i], operand_bytes(t, call, alias.output), tensor_bytes(apart)) != 0)
            fail_case(call->c, "operand %d in place of %d: other bits than apart", alias.output, alias.input);
        *out = apart;
        op_call_upload(call, alias.input);
    }
}

static bool has_gradients(const OpKind *kind) {
    for (const OpOutput *out = kind->outputs; out != NULL && out->name != NULL; ++out)
        if (out->gradient_of != 0) return true;
    return false;
}

static void run_kind(OpTest *t) {
    const KindTest *test = t->data;
    if (test->kind->fp8 && !t->be->matmul_fp8) {
        printf("not tested: this device has no 8-bit floats\n");
        return;
    }
    OpList list = op_list_odd(test->kind, test->dtype);
    bool gradients = false, wanted = t->once && test->dtype == DTYPE_F32;
    for (int i = 0; i < list.count; ++i) {
        OpCall call = {0};
        OpCheck check = {.ok = true};
        open_call(t, &call, &list.cases[i], NOWHERE);
        check_values(t, &call);
        check_same_bits(t, &call);
        check_in_place(t, &call);
        if (wanted && op_check_gradients(&call, &check)) gradients = true;
        fail_unless_ok(call.c, &check);
        op_call_close(&call);
        op_test_release(t);
    }
    op_list_free(&list);
    if (wanted && has_gradients(test->kind) && !gradients)
        fail_msg("%s %s: no shape is small enough for finite differences", test->kind->op, test->kind->variant);
}

int case_test_main(const OpFamily *family, const OpTestCase *special, size_t special_count) {
    size_t most = (size_t)family->count * 2, used = 0;
    OpTestCase *cases = xcalloc(most + special_count, sizeof *cases);
    KindTest *tests = xcalloc(most, sizeof *tests);
    for (int k = 0; k < family->count; ++k)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype) {
            const OpKind *kind = &family->kinds[k];
            if (kind->odd_shapes == NULL || !(dtype == DTYPE_F32 ? kind->fp32 : kind->bf16)) continue;
            tests[used] = (KindTest){kind, dtype};
            cases[used].name = xasprintf("%s, %s, %s", kind->op, kind->variant, dtype_name(dtype));
            cases[used].body = run_kind;
            cases[used].data = &tests[used];
            ++used;
        }
    if (special_count > 0) memcpy(cases + used, special, special_count * sizeof *cases);
    int failed = op_test_main(cases, used + special_count);
    for (size_t i = 0; i < used; ++i) free((void *)(uintptr_t)cases[i].name);
    free(cases);
    free(tests);
    free(normals);
    return failed;
}

// ---- special cases ----

// All of it lives as long as the test case.
static OpCall *open_special(OpTest *t, const char *op, const char *variant, DType dtype, unsigned flags, int dims,
                            const int64_t *dim, int shifted) {
    struct {
        OpCall call;
        OpCase c;
    } *special = op_test_bytes(t, sizeof *special);
    special->c = (OpCase){op_kind_find(op, variant), dtype, {.label = "special", .dims = dims, .flags = flags}};
    for (int i = 0; i < dims; ++i) special->c.shape.dim[i] = dim[i];
    open_call(t, &special->call, &special->c, shifted);
    for (int i = 0; i < special->call.count; ++i) op_test_keep(t, special->call.operand[i].pattern);
    op_test_keep(t, special->call.t);
    return &special->call;
}
OpCall *case_test_open(OpTest *t, const char *op, const char *variant, DType dtype, unsigned flags, int dims,
                       const int64_t *dim) {
    return open_special(t, op, variant, dtype, flags, dims, dim, NOWHERE);
}

void case_test_views(OpTest *t, const char *op, const char *variant, DType dtype, unsigned flags, int dims,
                     const int64_t *dim) {
    int count = 1;
    for (int i = 0; i < count; ++i) {
        OpCall *call = open_special(t, op, variant, dtype, flags, dims, dim, i);
        case_test_run(t, call);
        case_test_check(t, call, true);
        count = call->count;
    }
}
