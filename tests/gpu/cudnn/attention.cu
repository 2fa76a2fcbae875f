// attention.cu: llmc/cuda/attention_cudnn.cu and the meaning of the graphs in cudnn_sdpa.cu, on the emulated GPU with
// a cuDNN that computes graphs node by node (fake_cudnn.cpp), against attention in double. NVIDIA's engines
// themselves are not tested. tests/gpu/test_cudnn_attention.sh builds and runs it.
#include "llmc/cuda/attention_cudnn.cu"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
extern "C" {
#include <cmocka.h>
}

#define OK(call) assert_int_equal((int)(call), (int)cudaSuccess)

// The backend for attention_cudnn.cu: a stream, a failure, a scratch block.
bool cuda_fail(Backend *, const char *what, const char *text) {
    fail_msg("%s: %s", what, text);
    return false;
}
bool cuda_ok(Backend *be, cudaError_t status, const char *what) {
    return status == cudaSuccess || cuda_fail(be, what, cudaGetErrorString(status));
}
void *cuda_scratch(Backend *be, size_t bytes) {
    CudaState *cuda = cuda_state(be);
    OK(cudaDeviceSynchronize());
    OK(cudaFree(cuda->scratch));
    OK(cudaMalloc(&cuda->scratch, bytes));
    OK(cudaMemset(cuda->scratch, 0xff, bytes));
    return cuda->scratch;
}

typedef struct {
    int64_t B, T, NH, NKV, HS, window;
    int doc_tokens;  // of a document, unless a row's end cuts it; 0: no documents
    bool deterministic;
    int64_t slice_batch, slice_heads;  // sequences and query heads of one execution of the backward pass
} Case;
// The workspace limit of this test's build divides the calls into slices.
static const Case CASES[] = {
    {2, 64, 2, 2, 8, 0, 0, true, 2, 2},          {8, 128, 4, 2, 16, 0, 0, true, 4, 4},
    {2, 100, 3, 1, 24, 17, 0, true, 2, 3},       {1, 256, 8, 4, 8, 64, 0, true, 1, 4},
    {2, 64, 2, 2, 8, 0, 0, false, 2, 2},         {3, 130, 4, 2, 16, 33, 0, false, 3, 4},
    {2, 256, 2, 2, 16, 0, 150, false, 6, 2},     {1, 256, 3, 3, 16, 70, 150, false, 3, 3},
    {2, 256, 4, 2, 16, 0, 150, false, 6, 4},     {1, 200, 4, 4, 16, 40, 150, false, 2, 4},
    {2, 256, 2, 2, 16, 0, 10, false, 6, 2},  // too many documents
};

// ---- attention in double ----

typedef struct {
    AttentionArgs args;
    const int32_t *doc;
    double *qkv, *dout;              // in
    double *out, *lse, *dqkv, *p;    // reference; p is one row
} Reference;

static bool allowed(const Reference *r, int64_t b, int64_t i, int64_t j) {
    const AttentionArgs *a = &r->args;
    return j <= i && (a->window == 0 || i - j < a->window) &&
           (r->doc == NULL || r->doc[b * a->T + i] == r->doc[b * a->T + j]);
}
// Query row i of head h: forward, then its part of the gradients.
static void reference_row(Reference *r, int64_t b, int64_t h, int64_t i) {
    const AttentionArgs *a = &r->args;
    int64_t QKV = (a->NH + 2 * a->NKV) * a->HS, HS = a->HS, kv = h / (a->NH / a->NKV);
    const double *q = r->qkv + (b * a->T + i) * QKV + h * HS, *rows = r->qkv + b * a->T * QKV;
    int64_t k0 = (a->NH + kv) * HS, v0 = (a->NH + a->NKV + kv) * HS;
    double most = -INFINITY, sum = 0, dot = 0;
    for (int64_t j = 0; j <= i; ++j) {
        double s = 0;
        for (int64_t c = 0; c < HS; ++c) s += q[c] * rows[j * QKV + k0 + c];
        r->p[j] = allowed(r, b, i, j) ? s * (double)a->scale : -INFINITY;
        most = fmax(most, r->p[j]);
    }
    for (int64_t j = 0; j <= i; ++j) sum += exp(r->p[j] - most);
    r->lse[(b * a->NH + h) * a->T + i] = most + log(sum);
    double *out = r->out + (b * a->T + i) * a->NH * HS + h * HS;
    const double *dout = r->dout + (b * a->T + i) * a->NH * HS + h * HS;
    for (int64_t j = 0; j <= i; ++j) {
        r->p[j] = exp(r->p[j] - most) / sum;
        for (int64_t c = 0; c < HS; ++c) out[c] += r->p[j] * rows[j * QKV + v0 + c];
    }
    for (int64_t c = 0; c < HS; ++c) dot += out[c] * dout[c];
    double *dq = r->dqkv + (b * a->T + i) * QKV + h * HS, *drows = r->dqkv + b * a->T * QKV;
    for (int64_t j = 0; j <= i; ++j) {
        double dp = 0;
        for (int64_t c = 0; c < HS; ++c) dp += dout[c] * rows[j * QKV + v0 + c];
        double ds = r->p[j] * (dp - dot) * (double)a->scale;
        for (int64_t c = 0; c < HS; ++c) {
            dq[c] += ds * rows[j * QKV + k0 + c];
            drows[j * QKV + k0 + c] += ds * q[c];
            drows[j * QKV + v0 + c] += r->p[j] * dout[c];
        }
    }
}

// ---- operands ----

static Tensor device_tensor(DType dtype, int64_t rows, int64_t columns) {
    Tensor t = tensor_2d(NULL, dtype, rows, columns);
    OK(cudaMalloc(&t.data, tensor_bytes(t)));
    OK(cudaMemset(t.data, 0xff, tensor_bytes(t)));
    return t;
}
// Roughly normal, rounded to bf16 for both sides.
static double *random_bf16(Tensor t) {
    int64_t elems = tensor_elems(t);
    double *values = (double *)xmalloc((size_t)elems * sizeof *values);
    uint16_t *bits = (uint16_t *)xmalloc((size_t)elems * sizeof *bits);
    for (int64_t i = 0; i < elems; ++i) {
        double x = 0;
        for (int k = 0; k < 12; ++k) x += (double)rand() / RAND_MAX;
        bits[i] = bf16_from_f32((float)(x - 6));
        values[i] = bf16_to_f32(bits[i]);
    }
    OK(cudaMemcpy(t.data, bits, tensor_bytes(t), cudaMemcpyHostToDevice));
    free(bits);
    return values;
}
static void check_close(Tensor got, const double *reference, double tolerance, const char *what) {
    int64_t elems = tensor_elems(got);
    void *bytes = xmalloc(tensor_bytes(got));
    OK(cudaMemcpy(bytes, got.data, tensor_bytes(got), cudaMemcpyDeviceToHost));
    double error = 0, norm = 0;
    for (int64_t i = 0; i < elems; ++i) {
        double x = got.dtype == DTYPE_F32 ? (double)((float *)bytes)[i] : (double)bf16_to_f32(((uint16_t *)bytes)[i]);
        error += (x - reference[i]) * (x - reference[i]);
        norm += reference[i] * reference[i];
    }
    if (!(sqrt(error) <= tolerance * sqrt(norm))) fail_msg("%s: relative error %g", what, sqrt(error / norm));
    free(bytes);
}
static Tensor documents(Case c, int32_t **doc, int64_t *count) {
    *count = 0;
    if (c.doc_tokens == 0) return TENSOR_NONE;
    Tensor t = device_tensor(DTYPE_I32, c.B, c.T);
    int64_t elems = tensor_elems(t);
    *doc = (int32_t *)xmalloc((size_t)elems * sizeof **doc);
    for (int64_t i = 0; i < elems; ++i) {
        (*doc)[i] = (int32_t)(i + c.doc_tokens / 3) / c.doc_tokens;
        *count += i % c.T == 0 || (*doc)[i] != (*doc)[i - 1];
    }
    OK(cudaMemcpy(t.data, *doc, tensor_bytes(t), cudaMemcpyHostToDevice));
    return t;
}

static Backend *make_backend(void) {
    Backend *be = (Backend *)xcalloc(1, sizeof *be);
    CudaState *cuda = (CudaState *)xcalloc(1, sizeof *cuda);
    cuda->compute_capability = 90;
    OK(cudaStreamCreateWithFlags(&cuda->compute, cudaStreamNonBlocking));
    be->impl = cuda;
    return be;
}
static void free_backend(Backend *be) {
    OK(cudaFree(cuda_state(be)->scratch));
    OK(cudaStreamDestroy(cuda_state(be)->compute));
    free(be->impl);
    free(be);
}

static void check_case(Backend *be, Case c) {
    Error why;
    CudnnAttention *cudnn = cudnn_attention_open(be, c.deterministic, &why);
    if (cudnn == NULL) fail_msg("%s", why.message);
    int64_t rows = c.B * c.T, QKV = (c.NH + 2 * c.NKV) * c.HS, OUT = c.NH * c.HS;
    Tensor qkv = device_tensor(DTYPE_BF16, rows, QKV), dqkv = device_tensor(DTYPE_BF16, rows, QKV);
    Tensor out = device_tensor(DTYPE_BF16, rows, OUT), dout = device_tensor(DTYPE_BF16, rows, OUT);
    Tensor lse = device_tensor(DTYPE_F32, c.B, c.NH * c.T);
    int32_t *doc = NULL;
    Reference r;
    memset(&r, 0, sizeof r);
    r.args.B = c.B, r.args.T = c.T, r.args.NH = c.NH, r.args.NKV = c.NKV, r.args.HS = c.HS;
    r.args.scale = 0.5f / sqrtf((float)c.HS);
    r.args.window = c.window;
    int64_t count;
    r.args.doc = documents(c, &doc, &count);
    r.doc = doc;
    r.qkv = random_bf16(qkv);
    r.dout = random_bf16(dout);
    r.out = (double *)xcalloc((size_t)(rows * OUT), sizeof *r.out);
    r.lse = (double *)xcalloc((size_t)(rows * c.NH), sizeof *r.lse);
    r.dqkv = (double *)xcalloc((size_t)(rows * QKV), sizeof *r.dqkv);
    r.p = (double *)xcalloc((size_t)c.T, sizeof *r.p);
    for (int64_t i = 0; i < c.B * c.NH * c.T; ++i)
        reference_row(&r, i / (c.NH * c.T), i / c.T % c.NH, i % c.T);

    const int32_t *unserved = NULL;
    if (!cudnn_attention_forward(cudnn, be, out, lse, qkv, r.args, &unserved, &why)) fail_msg("%s", why.message);
    assert_int_equal(unserved != NULL, doc != NULL);
    bool refused = doc != NULL && c.NH != c.NKV;
    if (cudnn_attention_backward(cudnn, be, dqkv, dout, qkv, out, lse, r.args, &unserved, &why) == refused)
        fail_msg("%s", why.message);
    const Choice *choice = cudnn->last;
    if (choice->slice.batch != c.slice_batch || choice->slice.NH != c.slice_heads)
        fail_msg("%s: slices of %lld sequences and %lld heads", choice->text.message, (long long)choice->slice.batch,
                 (long long)choice->slice.NH);
    OK(cudaStreamSynchronize(cuda_stream(be)));
    int32_t many = 0;
    if (unserved != NULL) OK(cudaMemcpy(&many, unserved, sizeof many, cudaMemcpyDeviceToHost));
    bool served = count <= cudnn_document_places(c.B, c.T);
    assert_int_equal(many, !served);
    assert_int_equal(served, c.doc_tokens != 10);
    // One rounding to bf16 of the result and one of the probabilities, 2^-9 each on average at most; the gradients
    // pass two or three. The statistics are fp32.
    if (served) {
        check_close(out, r.out, 0.006, cudnn_attention_choice(cudnn));
        check_close(lse, r.lse, 1e-6, cudnn_attention_choice(cudnn));
        if (!refused) check_close(dqkv, r.dqkv, 0.009, cudnn_attention_choice(cudnn));
    }

    OK(cudaFree(qkv.data));
    OK(cudaFree(dqkv.data));
    OK(cudaFree(out.data));
    OK(cudaFree(dout.data));
    OK(cudaFree(lse.data));
    OK(cudaFree(r.args.doc.data));
    free(doc), free(r.qkv), free(r.dout), free(r.out), free(r.lse), free(r.dqkv), free(r.p);
    cudnn_attention_close(cudnn);
}

static void test_attention(void **) {
    Backend *be = make_backend();
    for (const Case &c : CASES) check_case(be, c);
    free_backend(be);
}

// Refused cases, and the number of documents, which is known on the device only.
static void test_refusals(void **) {
    Backend *be = make_backend();
    Error why;
    CudnnAttention *cudnn = cudnn_attention_open(be, true, &why);
    assert_non_null(cudnn);
    const struct {
        int64_t T, HS;
        bool prefix, fp32;
        const char *reason;
    } refused[] = {{64, 16, true, false, "prefix"},
                   {64, 16, false, true, "bf16"},
                   {48, 16, false, false, "shorter than 64"},
                   {64, 12, false, false, "multiple of 8"},
                   {65, 16, false, false, "16 bytes"},
                   {1024, 16, false, false, "MiB"}};
    for (const auto &x : refused) {
        AttentionArgs args;
        memset(&args, 0, sizeof args);
        args.B = 1, args.T = x.T, args.NH = 2, args.NKV = 1, args.HS = x.HS, args.scale = 1;
        DType dtype = x.fp32 ? DTYPE_F32 : DTYPE_BF16;
        Tensor qkv = tensor_2d(NULL, dtype, x.T, 4 * x.HS), out = tensor_2d(NULL, dtype, x.T, 2 * x.HS);
        Tensor lse = tensor_3d(NULL, DTYPE_F32, 1, 2, x.T);
        if (x.prefix) args.prefix = tensor_2d(NULL, DTYPE_U8, 1, x.T);
        const int32_t *unserved;
        if (x.T == 65) qkv.data = (void *)8;
        assert_false(cudnn_attention_backward(cudnn, be, qkv, out, qkv, out, lse, args, &unserved, &why));
        if (strstr(why.message, x.reason) == NULL) fail_msg("'%s' does not say '%s'", why.message, x.reason);
    }
    cudnn_attention_close(cudnn);
    free_backend(be);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_attention), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests_name("cudnn_attention", tests, NULL, NULL);
}
