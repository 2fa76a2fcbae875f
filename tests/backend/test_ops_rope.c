// test_ops_rope.c: QK-norm and rotary embedding; positions outside the tables.
#include <math.h>

#include "tests/support/case_test.h"

enum { OUT = 0, POSITION = 3 };
#define FEW_POSITIONS 8u  // 13 of them

// For a position outside the tables the CPU aborts; a device writes NaN.
static void test_bad_position(OpTest *t) {
    OpCall *call = case_test_open(t, "rope forward", "plain", DTYPE_F32, FEW_POSITIONS, OP_TEST_DIMS(2, 2, 1, 8));
    op_test_upload(t, call->t[0][POSITION], (double[]){13, 2});
    if (op_test_on_cpu()) {
        op_test_aborts(t, case_test_run_user, call, "positions[0]=13, expected 0 to 12");
        return;
    }
    case_test_run(t, call);
    const double *out = op_test_host(t, call->t[0][OUT]);
    for (int64_t i = 0; i < 24; ++i) assert_true(isnan(out[i]) && isfinite(out[32 + i]));
}

int main(void) {
    const OpTestCase SPECIAL[] = {OP_TEST_CASE(test_bad_position)};
    return case_test_main(&OPS_QK, SPECIAL, sizeof SPECIAL / sizeof SPECIAL[0]);
}
