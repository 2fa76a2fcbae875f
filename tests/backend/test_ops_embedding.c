// test_ops_embedding.c: table look-up and its scatter-add; ids outside their tables.
#include <math.h>

#include "tests/support/case_test.h"

enum { OUT, TOKENS, POSITION, WTE, WPE, DWTE, DWPE, DOUT };
#define LEARNED_FEW 3u  // 11 tokens, 7 positions

// An id outside its table never becomes an address. The CPU aborts; a device makes its row NaN and skips the row in the
// gradient.
static void test_bad_ids(OpTest *t) {
    const int64_t C = 5, dim[3] = {2, C, 11};
    OpCall *forward = case_test_open(t, "embedding forward", "plain", DTYPE_F32, LEARNED_FEW, 3, dim);
    OpCall *backward = case_test_open(t, "embedding backward", "plain", DTYPE_F32, LEARNED_FEW, 3, dim);
    for (int i = 0; i < 2; ++i) op_test_upload(t, (i ? forward : backward)->t[0][TOKENS], (double[]){3, 11});
    if (op_test_on_cpu()) {
        op_test_aborts(t, case_test_run_user, forward, "tokens[1]=11, expected 0 to 10");
        op_test_aborts(t, case_test_run_user, backward, "tokens[1]=11, expected 0 to 10");
        op_test_upload(t, forward->t[0][TOKENS], (double[]){0, 10});
        op_test_upload(t, forward->t[0][POSITION], (double[]){-1, 0});
        op_test_aborts(t, case_test_run_user, forward, "positions[0]=-1, expected 0 to 6");
        forward->t[0][OUT].dim[1] = 4;
        op_test_aborts(t, case_test_run_user, forward, "out: expected fp32 (2, 5), found fp32 (2, 4)");
        return;
    }
    for (int i = 0; i < 2; ++i) op_test_upload(t, (i ? forward : backward)->t[0][POSITION], (double[]){1, -1});
    case_test_run(t, forward);
    const double *out = op_test_host(t, forward->t[0][OUT]), *dout = op_test_host(t, backward->t[0][DOUT]);
    for (int64_t c = 0; c < C; ++c) assert_true(isfinite(out[c]) && isnan(out[C + c]));
    double *dwte = op_test_host(t, backward->t[0][DWTE]), *dwpe = op_test_host(t, backward->t[0][DWPE]);
    case_test_run(t, backward);
    for (int64_t c = 0; c < C; ++c) {
        dwte[3 * C + c] += dout[c];
        dwpe[1 * C + c] += dout[c];
    }
    op_test_close(t, backward->t[0][DWTE], dwte, 2e-6, "dwte with a bad token");
    op_test_close(t, backward->t[0][DWPE], dwpe, 2e-6, "dwpe with a bad position");
}

int main(void) {
    const OpTestCase SPECIAL[] = {OP_TEST_CASE(test_bad_ids)};
    return case_test_main(&OPS_EMBEDDING, SPECIAL, sizeof SPECIAL / sizeof SPECIAL[0]);
}
