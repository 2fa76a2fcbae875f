// documents.cu: the tables of documents and the order of the statistics that cuDNN is given (llmc/cuda/
// attention_cudnn.cu), on the emulated GPU, against plain loops, without cuDNN itself.
// tests/gpu/test_cudnn_attention.sh builds and runs it.
#include "llmc/cuda/attention_cudnn.cu"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
extern "C" {
#include <cmocka.h>
}

#define OK(call) assert_int_equal((int)(call), (int)cudaSuccess)

// The kernels use only the stream and the failure of a backend.
bool cuda_fail(Backend *, const char *what, const char *text) {
    fail_msg("%s: %s", what, text);
    return false;
}
bool cuda_ok(Backend *be, cudaError_t status, const char *what) {
    return status == cudaSuccess || cuda_fail(be, what, cudaGetErrorString(status));
}

typedef struct {
    int64_t B, T, NH, NKV, HS;
    int mean_tokens;  // of a document; 0: one document a row
} Case;
static const Case CASES[] = {
    {1, 1, 1, 1, 8, 0},     {3, 100, 4, 2, 16, 0},    {2, 512, 12, 12, 64, 100}, {5, 333, 14, 2, 64, 20},
    {8, 64, 2, 1, 8, 1},    {4, 1024, 6, 6, 48, 700}, {7, 131, 3, 1, 24, 40},    {2, 2048, 16, 8, 128, 150},
};
static const char *const ORDERS[] = {"forward", "reverse", "random"};

template <class T>
static T *device_new(int64_t count) {
    void *pointer = NULL;
    OK(cudaMalloc(&pointer, (size_t)count * sizeof(T)));
    OK(cudaMemset(pointer, 0xff, (size_t)count * sizeof(T)));
    return static_cast<T *>(pointer);
}
template <class T>
static T *host_copy(const T *device, int64_t count) {
    T *host = (T *)xmalloc((size_t)count * sizeof(T));
    OK(cudaMemcpy(host, device, (size_t)count * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
}
static AttentionArgs args_of(Case c) {
    AttentionArgs args;
    memset(&args, 0, sizeof args);
    args.B = c.B, args.T = c.T, args.NH = c.NH, args.NKV = c.NKV, args.HS = c.HS;
    return args;
}

static void check_documents(Backend *be, Case c, int64_t places) {
    int64_t tokens = c.B * c.T, count = 0;
    int32_t *doc = (int32_t *)xmalloc((size_t)tokens * sizeof *doc);
    int64_t *first = (int64_t *)xmalloc((size_t)(tokens + places + 2) * sizeof *first);
    for (int64_t i = 0; i < tokens; ++i) {
        // Numbers continue over a row's end, as for a document longer than a row: the row's end still cuts it.
        bool begins = i == 0 || (c.mean_tokens > 0 && rand() % c.mean_tokens == 0);
        doc[i] = i == 0 ? 5 : doc[i - 1] + (begins ? 1 + rand() % 3 : 0);
        if (begins || i % c.T == 0) first[count++] = i;
    }
    bool served = count <= places;
    int64_t used = served ? count : 0;
    for (int64_t i = used; i <= places; ++i) first[i] = served ? tokens : 0;

    Tensor device_doc = tensor_2d(device_new<int32_t>(tokens), DTYPE_I32, c.B, c.T);
    OK(cudaMemcpy(device_doc.data, doc, (size_t)tokens * sizeof *doc, cudaMemcpyHostToDevice));
    DocumentTables tables = {device_new<int32_t>(places), device_new<int64_t>(places + 1),
                             device_new<int64_t>(places + 1), device_new<int64_t>(places + 1),
                             device_new<int32_t>(1)};
    cudnn_attention_documents(be, tables, device_doc, places, args_of(c));
    int32_t *lengths = host_copy(tables.lengths, places), *unserved = host_copy(tables.unserved, 1);
    int64_t *qkv = host_copy(tables.offsets_qkv, places + 1), *out = host_copy(tables.offsets_out, places + 1);
    int64_t *stats = host_copy(tables.offsets_stats, places + 1);
    assert_int_equal(*unserved, !served);
    for (int64_t i = 0; i <= places; ++i) {
        if (i < places) assert_int_equal(lengths[i], i < used ? first[i + 1] - first[i] : 0);
        assert_int_equal(qkv[i], first[i] * (c.NH + 2 * c.NKV) * c.HS);
        assert_int_equal(out[i], first[i] * c.NH * c.HS);
        assert_int_equal(stats[i], first[i] * c.NH);
    }
    OK(cudaFree(device_doc.data));
    OK(cudaFree(tables.lengths));
    OK(cudaFree(tables.offsets_qkv));
    OK(cudaFree(tables.offsets_out));
    OK(cudaFree(tables.offsets_stats));
    OK(cudaFree(tables.unserved));
    free(doc), free(first), free(lengths), free(unserved), free(qkv), free(out), free(stats);
}

static Backend *backend_of(void **state) { return (Backend *)*state; }

static void test_documents(void **state) {
    for (const char *order : ORDERS) {
        setenv("TOKAMAK_EMU_ORDER", order, 1);
        for (const Case &c : CASES) {
            check_documents(backend_of(state), c, cudnn_document_places(c.B, c.T));
            check_documents(backend_of(state), c, c.B * c.T);  // the largest possible number
            check_documents(backend_of(state), c, c.B);        // exactly enough, or too few
        }
    }
}

static void test_statistics(void **state) {
    for (const char *order : ORDERS) {
        setenv("TOKAMAK_EMU_ORDER", order, 1);
        for (const Case &c : CASES) {
            int64_t elems = c.B * c.NH * c.T;
            float *lse = (float *)xmalloc((size_t)elems * sizeof *lse);
            for (int64_t i = 0; i < elems; ++i) lse[i] = (float)i;
            float *device = device_new<float>(elems), *packed = device_new<float>(elems);
            float *back = device_new<float>(elems);
            OK(cudaMemcpy(device, lse, (size_t)elems * sizeof *lse, cudaMemcpyHostToDevice));
            cudnn_attention_pack_lse(backend_of(state), packed, device, args_of(c));
            cudnn_attention_unpack_lse(backend_of(state), back, packed, args_of(c));
            float *got_packed = host_copy(packed, elems), *got_back = host_copy(back, elems);
            for (int64_t b = 0; b < c.B; ++b)
                for (int64_t h = 0; h < c.NH; ++h)
                    for (int64_t t = 0; t < c.T; ++t) {
                        float expected = lse[(b * c.NH + h) * c.T + t];
                        assert_true(got_packed[(b * c.T + t) * c.NH + h] == expected);
                        assert_true(got_back[(b * c.NH + h) * c.T + t] == expected);
                    }
            OK(cudaFree(device));
            OK(cudaFree(packed));
            OK(cudaFree(back));
            free(lse), free(got_packed), free(got_back);
        }
    }
}

static void test_absent(void **state) {
    Error why;
    assert_null(cudnn_attention_open(backend_of(state), true, &why));
    assert_non_null(strstr(why.message, "emulator"));
}

static int make_backend(void **state) {
    Backend *be = (Backend *)xcalloc(1, sizeof *be);
    be->impl = xcalloc(1, sizeof(CudaState));
    *state = be;
    return 0;
}
static int free_backend(void **state) {
    free(backend_of(state)->impl);
    free(*state);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_documents),
        cmocka_unit_test(test_statistics),
        cmocka_unit_test(test_absent),
    };
    return cmocka_run_group_tests_name("cudnn_documents", tests, make_backend, free_backend);
}
