// test_transfers.c: uploads and downloads beside the computation: their data, the waits, and that they do not wait
// for each other. tests/gpu/test_cuda_transfers.sh runs it on the emulated GPU in all orders of its streams.
#include "tests/support/op_test.h"

#include <stdlib.h>
#include <string.h>

#define ELEMS 5000
#define UNTOUCHED 0x5a

// The emulated GPU's order of streams; NULL on other devices.
static const char *emulated_streams(void) {
    const char *device = getenv("TOKAMAK_TEST_DEVICE"), *streams = getenv("TOKAMAK_EMU_STREAMS");
    if (device == NULL || strcmp(device, "cudaemu") != 0) return NULL;
    return streams != NULL ? streams : "lazy";
}

static float *host_floats(OpTest *t) {
    Error err = {""};
    float *host = t->be->host_alloc(t->be, ELEMS * sizeof *host, &err);
    if (host == NULL) fail_msg("%s", err.message);
    memset(host, UNTOUCHED, ELEMS * sizeof *host);
    return host;
}
static bool is_untouched(const float *host) {
    const unsigned char *bytes = (const unsigned char *)host;
    for (size_t i = 0; i < ELEMS * sizeof *host; ++i)
        if (bytes[i] != UNTOUCHED) return false;
    return true;
}
static void wait_for(OpTest *t, Ticket ticket) {
    Error err = {""};
    if (!t->be->wait(t->be, ticket, &err)) fail_msg("%s", err.message);
}
// Number of wrong elements.
static int64_t count_wrong(const float *host, const double *expected, double factor) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < ELEMS; ++i) wrong += (double)host[i] != factor * expected[i];
    return wrong;
}

// A source that one operation writes and a later one overwrites; returns the number of wrong elements of the copy in
// between.
// computed_first: the host waits for the computation before it waits for the copy.
static int64_t copy_between(OpTest *t, bool waits, bool computed_first) {
    Backend *be = t->be;
    Tensor in = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(ELEMS), 1.0);
    Tensor x = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(ELEMS));
    const double *expected = op_test_host(t, in);
    float *first = host_floats(t), *second = host_floats(t);
    be->add(be, x, in, in);
    // Two pieces of one source, and a second download that begins before the first has passed.
    const size_t half = ELEMS / 2 * sizeof *first;
    const DownloadPiece pieces[] = {{first, x.data, half},
                                    {first + ELEMS / 2, (float *)x.data + ELEMS / 2, ELEMS * sizeof *first - half}};
    Ticket copied = be->download_begin(be, pieces, 2);
    if (waits) be->after(be, copied);
    be->add(be, x, x, x);
    const DownloadPiece whole = {second, x.data, ELEMS * sizeof *second};
    Ticket copied_again = be->download_begin(be, &whole, 1);
    be->after(be, copied_again);
    be->zero(be, x.data, tensor_bytes(x));
    if (computed_first) op_test_host(t, x);
    wait_for(t, copied_again);
    wait_for(t, copied);
    int64_t wrong = count_wrong(first, expected, 2) + count_wrong(second, expected, 4);
    be->host_free(be, first);
    be->host_free(be, second);
    return wrong;
}
static void test_download_of_its_moment(OpTest *t) {
    int64_t wrong = copy_between(t, true, true) + copy_between(t, true, false);
    if (wrong > 0) fail_msg("%lld elements were copied at the wrong time", (long long)wrong);
}
// A violation of download_begin's rule: the emulated GPU detects it, except with eager streams.
static void test_missing_wait_is_found(OpTest *t) {
    const char *streams = emulated_streams();
    if (streams == NULL || strcmp(streams, "eager") == 0) return;
    if (copy_between(t, false, true) + copy_between(t, false, false) == 0)
        fail_msg("streams %s: the source was overwritten and this was not detected", streams);
}

// A batch is uploaded and used while a download is pending.
static void test_upload_passes_download(OpTest *t) {
    Backend *be = t->be;
    Tensor big = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(ELEMS), 1.0);
    Tensor batch = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(ELEMS), 1.0);
    Tensor out = op_test_tensor(t, DTYPE_F32, OP_TEST_DIMS(ELEMS));
    const double *expected = op_test_host(t, big);
    float *leaves = host_floats(t), *comes = host_floats(t);
    double *sum = op_test_doubles(t, ELEMS);
    for (int64_t i = 0; i < ELEMS; ++i) {
        comes[i] = (float)(i % 61);
        sum[i] = 2.0 * (double)comes[i];
    }
    const DownloadPiece piece = {leaves, big.data, ELEMS * sizeof *leaves};
    Ticket left = be->download_begin(be, &piece, 1);
    Ticket sent = be->upload_after(be, batch.data, comes, ELEMS * sizeof *comes, be->mark(be));
    be->add(be, out, batch, batch);
    op_test_close(t, out, sum, 0, "what was computed with the batch");
    // Work runs when it is waited for: there was no wait for the download or for work that depends on it.
    const char *streams = emulated_streams();
    if (streams != NULL && strcmp(streams, "lazy") == 0 && !is_untouched(leaves))
        fail_msg("the batch waited for the download%s", "");
    wait_for(t, sent);
    wait_for(t, left);
    if (!be->has_passed(be, left)) fail_msg("a ticket that was waited for has not passed%s", "");
    if (count_wrong(leaves, expected, 1) > 0) fail_msg("the download is not its source%s", "");
    be->host_free(be, leaves);
    be->host_free(be, comes);
}

// Without pieces the ticket is a point after everything issued; tickets older than the kept ones have passed.
static void test_tickets(OpTest *t) {
    Backend *be = t->be;
    Tensor x = op_test_random(t, DTYPE_F32, OP_TEST_DIMS(ELEMS), 1.0);
    const double *expected = op_test_host(t, x);
    float *host = host_floats(t);
    const DownloadPiece piece = {host, x.data, ELEMS * sizeof *host};
    Ticket copied = be->download_begin(be, &piece, 1);
    Ticket behind = be->download_begin(be, NULL, 0);
    wait_for(t, behind);
    if (count_wrong(host, expected, 1) > 0) fail_msg("a later ticket passed before the download%s", "");
    for (int i = 0; i < 200; ++i) behind = be->mark(be);
    be->after(be, copied);
    be->after(be, behind);
    be->zero(be, x.data, tensor_bytes(x));
    if (!be->has_passed(be, copied)) fail_msg("200 tickets later the first has not passed%s", "");
    be->after(be, 0);
    Error err = {""};
    if (!be->synchronize(be, &err)) fail_msg("%s", err.message);
    be->host_free(be, host);
}

int main(void) {
    const OpTestCase CASES[] = {OP_TEST_CASE(test_download_of_its_moment), OP_TEST_CASE(test_missing_wait_is_found),
                                OP_TEST_CASE(test_upload_passes_download), OP_TEST_CASE(test_tickets)};
    return op_test_main(CASES, sizeof CASES / sizeof CASES[0]);
}
