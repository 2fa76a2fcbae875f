// test_counting.c: the counting backend sets every entry and passes none on uncounted; counts of single operations,
// calculated by hand; its memory is addresses only.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "tests/support/counted_names.h"

// ---- entries ----

// All members of Backend after `impl` are function pointers; this one may be NULL (backend.h).
static bool is_optional(size_t at) { return at == offsetof(Backend, comm_open); }
#define FIRST_ENTRY offsetof(Backend, alloc)
static void *entry(const Backend *be, size_t at) {
    void *pointer;
    memcpy(&pointer, (const unsigned char *)be + at, sizeof pointer);
    return pointer;
}

static void test_no_entry_is_missing(void **state) {
    (void)state;
    assert_int_equal(FIRST_ENTRY, offsetof(Backend, impl) + sizeof(void *));
    Counting c;
    counting_init(&c, NULL);
    int entries = 0;
    for (size_t at = FIRST_ENTRY; at < sizeof(Backend); at += sizeof(void *)) {
        if (entry(&c.backend, at) == NULL && !is_optional(at)) fail_msg("entry at byte %zu of Backend is not counted", at);
        ++entries;
    }
    assert_true(entries > 45);
    assert_null(entry(&c.backend, offsetof(Backend, comm_open)));
}

// With an inner backend no entry of that backend is used directly.
static void test_wrapper_replaces_every_entry(void **state) {
    (void)state;
    Error err = {""};
    Backend *cpu = backend_cpu_open(1, NULL, &err);
    assert_non_null(cpu);
    Counting c;
    counting_init(&c, cpu);
    for (size_t at = FIRST_ENTRY; at < sizeof(Backend); at += sizeof(void *))
        if (!is_optional(at) && entry(&c.backend, at) == entry(cpu, at))
            fail_msg("entry at byte %zu of Backend is passed on uncounted", at);
    assert_string_equal(c.backend.name, "cpu");
    assert_false(c.backend.counts_only);
    cpu->close(cpu);
}

// ---- memory ----

static void test_memory_is_addresses(void **state) {
    (void)state;
    Counting c;
    Error err = {""};
    counting_init(&c, NULL);
    Backend *be = &c.backend;
    const size_t terabyte = (size_t)1 << 40;
    unsigned char *a = be->alloc(be, terabyte, &err), *b = be->alloc(be, terabyte, &err);
    assert_true(a != NULL && (b >= a + terabyte || a >= b + terabyte));
    assert_int_equal((uintptr_t)a % 256, 0);
    double host[3] = {1, 2, 3};
    be->upload(be, a, host, sizeof host);
    be->zero(be, a, 1000);
    be->copy(be, b, a, 10);
    be->download(be, host, a, sizeof host);
    assert_true(host[0] == 0 && host[1] == 0 && host[2] == 0);
    char *staging = be->host_alloc(be, 100, &err);
    assert_non_null(staging);
    Ticket ticket = be->upload_after(be, a, staging, 100, be->mark(be));
    assert_true(be->wait(be, ticket, &err) && be->has_passed(be, ticket));
    be->wait(be, be->download_begin(be, &(DownloadPiece){staging, a, 50}, 1), &err);
    be->host_free(be, staging);
    be->free(be, a, terabyte);
    assert_true(c.counts.op[COUNT_UPLOAD].calls == 2 && c.counts.op[COUNT_UPLOAD].host_bytes == 124);
    assert_true(c.counts.op[COUNT_DOWNLOAD].calls == 2 && c.counts.op[COUNT_DOWNLOAD].host_bytes == 74);
    assert_true(c.counts.op[COUNT_ZERO].bytes == 1000 && c.counts.op[COUNT_COPY].bytes == 20);
    assert_true(counts_total(&c.counts).flops == 0 && counts_total(&c.counts).calls == 6);
}

// ---- work ----

static void check(const Counting *c, CountedOp op, OpCount expected) {
    const OpCount *found = &c->counts.op[op];
    if (found->calls != expected.calls || found->kernels != expected.kernels || found->flops != expected.flops ||
        found->fp8_flops != expected.fp8_flops || found->again_flops != expected.again_flops ||
        found->bytes != expected.bytes || found->product_input_bytes != expected.product_input_bytes)
        fail_msg("%s: %g calls, %g kernels, %g + %g + %g FLOPs, %g + %g bytes", COUNTED_OP_NAMES[op], found->calls,
                 found->kernels, found->flops, found->fp8_flops, found->again_flops, found->bytes,
                 found->product_input_bytes);
}

static char place[4];  // addresses that no operation touches
static Tensor matrix(DType dtype, int64_t rows, int64_t cols) { return tensor_2d(place, dtype, rows, cols); }
static Tensor vector(DType dtype, int64_t elems) { return tensor_1d(place, dtype, elems); }

static void test_products(void **state) {
    (void)state;
    Counting c;
    counting_init(&c, NULL);
    Backend *be = &c.backend;
    // (16,8) = (16,32) (8,32)^T, bf16, with bias, residual and pre-activation.
    MatmulArgs args = {.trans_b = true, .alpha = 1, .beta = 1, .add = matrix(DTYPE_BF16, 16, 8),
                       .bias = vector(DTYPE_BF16, 8), .act = ACT_GELU, .pre = matrix(DTYPE_BF16, 16, 8)};
    be->matmul(be, matrix(DTYPE_BF16, 16, 8), matrix(DTYPE_BF16, 16, 32), matrix(DTYPE_BF16, 8, 32), args);
    OpCount sum = {.calls = 1, .kernels = 1, .flops = 2 * 16 * 8 * 32, .bytes = 2 * (3 * 16 * 8 + 8),
                   .product_input_bytes = 2 * (16 * 32 + 8 * 32)};
    check(&c, COUNT_MATMUL, sum);
    // The weight's gradient, fp32 (8,32) += (16,8)^T (16,32), in 8 bits, with the bias's.
    args = (MatmulArgs){.trans_a = true, .alpha = 1, .beta = 1, .add = matrix(DTYPE_F32, 8, 32),
                        .sums = vector(DTYPE_F32, 8), .accumulate_sums = true, .fp8 = FP8_BACKWARD};
    be->matmul(be, matrix(DTYPE_F32, 8, 32), matrix(DTYPE_BF16, 16, 8), matrix(DTYPE_BF16, 16, 32), args);
    const double inputs = 16 * 8 + 16 * 32;
    sum.calls += 1;
    sum.kernels += 3;
    sum.fp8_flops += 2 * 16 * 8 * 32;
    sum.bytes += 2 * 4 * (8 * 32 + 8) + 3 * inputs;
    sum.product_input_bytes += inputs;
    check(&c, COUNT_MATMUL, sum);
    assert_int_equal(c.largest.fp8_elems, 16 * 16 + 16 * 32);  // each side a multiple of 16
    assert_int_equal(c.largest.widest, 8);
    // Three products in one call.
    Counts other = {0};
    c.into = &other;
    Tensor square = tensor_3d(place, DTYPE_F32, 3, 5, 5);
    be->matmul(be, square, square, square, (MatmulArgs){.alpha = 1});
    check(&c, COUNT_MATMUL, sum);
    assert_true(other.op[COUNT_MATMUL].flops == 3 * 2 * 125);
    counts_add(&c.counts, &other, 2);
    assert_true(c.counts.op[COUNT_MATMUL].calls == 4 && c.counts.op[COUNT_MATMUL].flops == sum.flops + 1500);
}

static void test_attention(void **state) {
    (void)state;
    assert_true(counting_mean_keys(8, 0) == 4 && counting_mean_keys(8, 8) == 4 && counting_mean_keys(8, 9) == 4);
    assert_true(counting_mean_keys(8, 2) == 1.75);
    Counting c;
    counting_init(&c, NULL);
    Backend *be = &c.backend;
    AttentionArgs args = {.B = 3, .T = 8, .NH = 4, .NKV = 2, .HS = 16, .scale = 1};
    Tensor qkv = matrix(DTYPE_BF16, 24, 128), out = matrix(DTYPE_BF16, 24, 64);
    Tensor lse = tensor_3d(place, DTYPE_F32, 3, 4, 8);
    const double product = 2.0 * 24 * 4 * 64;  // queries x keys x all heads
    be->attention_forward(be, out, lse, qkv, args);
    check(&c, COUNT_ATTENTION_FORWARD,
          (OpCount){.calls = 1, .kernels = 1, .flops = 2 * product, .bytes = 2 * 24 * (128 + 64) + 4 * 96});
    be->attention_backward(be, qkv, out, qkv, out, lse, args);
    check(&c, COUNT_ATTENTION_BACKWARD, (OpCount){.calls = 1, .kernels = 1, .flops = 4 * product, .again_flops = product,
                                                  .bytes = 2 * 24 * (2 * 128 + 3 * 64) + 4 * 96});
    args.window = 2;
    be->attention_forward(be, out, lse, qkv, args);
    assert_true(c.counts.op[COUNT_ATTENTION_FORWARD].flops == 2 * product * (1 + 1.75 / 4));
    assert_true(c.largest.rows == 24 && c.largest.seq_len == 8 && c.largest.head_size == 16 && c.largest.widest == 128);
    assert_true(c.largest.NH == 4 && c.largest.NKV == 2);
}

static void test_rows(void **state) {
    (void)state;
    Counting c;
    counting_init(&c, NULL);
    Backend *be = &c.backend;
    Tensor x = matrix(DTYPE_BF16, 10, 64), stat = vector(DTYPE_F32, 10), w = vector(DTYPE_BF16, 64);
    be->norm_forward(be, x, TENSOR_NONE, stat, x, w, TENSOR_NONE, (NormArgs){.kind = NORM_RMS, .eps = 1e-5f});
    check(&c, COUNT_NORM_FORWARD, (OpCount){.calls = 1, .kernels = 1, .bytes = 2 * 2 * 640 + 4 * 10 + 2 * 64});
    Tensor dw = vector(DTYPE_F32, 64);
    be->norm_backward(be, x, dw, TENSOR_NONE, x, x, w, TENSOR_NONE, stat, true, false, (NormArgs){.kind = NORM_RMS, .eps = 1e-5f});
    check(&c, COUNT_NORM_BACKWARD, (OpCount){.calls = 1, .kernels = 2, .bytes = 4 * 2 * 640 + 40 + 2 * 64 + 4 * 64});
    // q, k and v of one head each, without and with a rotation in place.
    Tensor qkv = matrix(DTYPE_BF16, 10, 96), positions = vector(DTYPE_I32, 10);
    QkArgs args = {.NH = 1, .NKV = 1, .HS = 32};
    be->qk_forward(be, qkv, TENSOR_NONE, qkv, positions, args);
    check(&c, COUNT_QK_FORWARD, (OpCount){.calls = 1});
    args.use_rope = true;
    be->qk_forward(be, qkv, TENSOR_NONE, qkv, positions, args);
    check(&c, COUNT_QK_FORWARD, (OpCount){.calls = 2, .kernels = 1, .bytes = 2 * 2 * 10 * 64});
    be->activation_backward(be, x, matrix(DTYPE_BF16, 10, 32), x, ACT_SWIGLU);
    check(&c, COUNT_ACTIVATION_BACKWARD, (OpCount){.calls = 1, .kernels = 1, .bytes = 2 * 5 * 320});
    // Two of the 10 rows' ids are in a table of 8: at most 8 of its rows are touched.
    be->embedding_backward(be, tensor_2d(place, DTYPE_F32, 8, 64), TENSOR_NONE, x, positions, positions);
    check(&c, COUNT_EMBEDDING_BACKWARD, (OpCount){.calls = 1, .kernels = 3, .bytes = 2 * 640 + 40 + 8 * 8 * 64});
    Tensor logits = matrix(DTYPE_BF16, 10, 300);
    be->cross_entropy(be, stat, logits, positions, stat, (CrossEntropyArgs){.V = 290, .want_grad = true});
    check(&c, COUNT_CROSS_ENTROPY, (OpCount){.calls = 1, .kernels = 1, .bytes = 3 * 2 * 3000 + 3 * 40});
    assert_true(c.largest.Vp == 300 && c.largest.chunk_rows == 10 && c.largest.widest == 96);
}

static void test_updates(void **state) {
    (void)state;
    Counting c;
    counting_init(&c, NULL);
    Backend *be = &c.backend;
    float values[1];
    uint16_t halves[1];
    const OptimTensor list[] = {{.master = values, .elems = 100}, {.master = values, .weight = halves, .elems = 10},
                                {.weight = halves, .elems = 1}};
    be->adamw(be, list, 3, NULL, (AdamwArgs){.t = 1});
    check(&c, COUNT_ADAMW, (OpCount){.calls = 1, .kernels = 1, .bytes = 28 * 100 + 30 * 10 + 24 * 1});
    assert_int_equal(c.largest.tensors, 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_entry_is_missing), cmocka_unit_test(test_wrapper_replaces_every_entry),
        cmocka_unit_test(test_memory_is_addresses), cmocka_unit_test(test_products),
        cmocka_unit_test(test_attention),           cmocka_unit_test(test_rows),
        cmocka_unit_test(test_updates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
