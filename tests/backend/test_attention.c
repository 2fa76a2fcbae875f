// test_attention.c: attention forward, backward and in decoding, for odd shapes, grouped heads, windows, documents and
// prefix flags; a long sequence.
#include <math.h>
#include <string.h>

#include "llmc/cpu/kernels.h"
#include "tests/support/case_test.h"

enum { OUT, LSE, QKV, DOC, PREFIX, K_CACHE, V_CACHE };

// A matrix (T,T) would take 16 MiB; the calls may use a few rows per position of the CPU's scratch. Some rows are
// compared.
static void test_long_sequence(OpTest *t) {
    static const char *const PASSES[] = {"attention forward", "attention backward"};
    for (int pass = 0; pass < 2; ++pass) {
        OpCall *call = case_test_open(t, PASSES[pass], "causal", DTYPE_F32, 0, OP_TEST_DIMS(1, 2048, 1, 1, 16));
        call->c->kind->run(t->be, call->c, call->t[0]);
        if (op_test_on_cpu()) assert_true(cpu_scratch_bytes(t->be) < (size_t)4 << 20);
        case_test_check(t, call, false);
    }
}

// One position at a time, each with NaN in the scratch: earlier contents must not be used.
static void test_decode_one_by_one(OpTest *t) {
    const int64_t T = 70, HS = 20;
    if (!op_test_on_cpu()) return;
    for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype) {
        OpCall *call = case_test_open(t, "attention decode", "in steps", dtype, 0, OP_TEST_DIMS(1, T, 4, 2, HS, 0));
        const AttentionArgs args = {.B = 1, .T = 1, .NH = 4, .NKV = 2, .HS = HS, .scale = 1 / sqrtf((float)HS)};
        for (int64_t at = 0; at < T; ++at) {
            const Tensor *all = call->t[0];
            case_test_poison_scratch(t);
            t->be->attention_decode(t->be, tensor_rows(all[OUT], at, 1), all[K_CACHE], all[V_CACHE],
                                    tensor_rows(all[QKV], at, 1), at, args);
        }
        case_test_check(t, call, true);
    }
}

int main(void) {
    const OpTestCase SPECIAL[] = {OP_TEST_CASE(test_long_sequence), OP_TEST_CASE(test_decode_one_by_one)};
    return case_test_main(&OPS_ATTENTION, SPECIAL, sizeof SPECIAL / sizeof SPECIAL[0]);
}
