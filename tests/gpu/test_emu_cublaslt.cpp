// test_emu_cublaslt.cpp: the emulated cuBLASLt (dev/emu) against loops in double: every supported epilogue, layout and
// type, and the same refusals as the real library. dev/emu/emu.mk builds it if the CUDA headers are found;
// tests/gpu/test_emu_runtime.sh runs it. More than 600 lines: the cases share one reference product in double.
#include <cublasLt.h>
#include <cuda_fp8.h>
#include <math.h>

#include <vector>

#include "emu_runtime.h"
#include "llmc/backend/tensor.h"
#include "tests/support/emu_child.h"

#define REFUSED(status, call) assert_string_equal(cublasLtGetStatusName(call), #status)

// ---- matrices: device memory, and its values as doubles ----

static size_t type_bytes(cudaDataType type) { return type == CUDA_R_32F ? 4 : type == CUDA_R_16BF ? 2 : 1; }
static double value_get(const void *data, size_t i, cudaDataType type) {
    switch (type) {
    case CUDA_R_32F: return ((const float *)data)[i];
    case CUDA_R_16BF: return bf16_to_f32(((const uint16_t *)data)[i]);
    default: {
        __nv_fp8_interpretation_t kind = type == CUDA_R_8F_E5M2 ? __NV_E5M2 : __NV_E4M3;
        return __half2float(__half(__nv_cvt_fp8_to_halfraw(((const uint8_t *)data)[i], kind)));
    }
    }
}
static void value_set(void *data, size_t i, cudaDataType type, double value) {
    switch (type) {
    case CUDA_R_32F: ((float *)data)[i] = (float)value; break;
    case CUDA_R_16BF: ((uint16_t *)data)[i] = bf16_from_f32((float)value); break;
    default:
        ((uint8_t *)data)[i] =
            __nv_cvt_float_to_fp8((float)value, __NV_SATFINITE, type == CUDA_R_8F_E5M2 ? __NV_E5M2 : __NV_E4M3);
    }
}

// Column-major rows x cols with leading dimension ld, batch of them `stride` apart.
struct Matrix {
    int64_t rows, cols, ld, stride;
    int batch;
    cudaDataType type;
    char *device;
    std::vector<double> value;  // as stored, gaps NaN
    cublasLtMatrixLayout_t layout;
    size_t elems() const { return (size_t)(stride * (batch - 1) + ld * (cols - 1) + rows); }
    double at(int64_t row, int64_t col, int b) const { return value[(size_t)(row + col * ld + b * stride)]; }
};

static uint64_t random_state = 1;
static double random_value(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(random_state >> 11) / (double)((uint64_t)1 << 53) * 2 - 1;
}

static void matrix_upload(Matrix *m, bool fill) {
    std::vector<char> bytes(m->elems() * type_bytes(m->type), (char)0xff);
    m->value.assign(m->elems(), NAN);
    for (int b = 0; fill && b < m->batch; b++)
        for (int64_t col = 0; col < m->cols; col++)
            for (int64_t row = 0; row < m->rows; row++) {
                size_t i = (size_t)(row + col * m->ld + b * m->stride);
                value_set(bytes.data(), i, m->type, random_value());
                m->value[i] = value_get(bytes.data(), i, m->type);
            }
    OK(cudaMemcpy(m->device, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
}
static void matrix_download(Matrix *m) {
    std::vector<char> bytes(m->elems() * type_bytes(m->type));
    OK(cudaMemcpy(bytes.data(), m->device, bytes.size(), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < m->elems(); i++) m->value[i] = value_get(bytes.data(), i, m->type);
}
static Matrix matrix_new(cudaDataType type, int64_t rows, int64_t cols, int64_t gap, int batch, bool fill) {
    Matrix m = {rows, cols, rows + gap, (rows + gap) * cols, batch, type, NULL, {}, NULL};
    OK(cudaMalloc((void **)&m.device, m.elems() * type_bytes(type)));
    matrix_upload(&m, fill);
    OK(cublasLtMatrixLayoutCreate(&m.layout, type, (uint64_t)rows, (uint64_t)cols, m.ld));
    int32_t count = batch;
    if (batch > 1) {
        OK(cublasLtMatrixLayoutSetAttribute(m.layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
        OK(cublasLtMatrixLayoutSetAttribute(m.layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &m.stride,
                                            sizeof m.stride));
    }
    return m;
}
static void matrix_free(Matrix *m) {
    OK(cudaFree(m->device));
    OK(cublasLtMatrixLayoutDestroy(m->layout));
}

// ---- one multiplication ----

struct Case {
    const char *name;
    int64_t m, n, k;
    bool ta, tb;
    cudaDataType in_a, in_b, c, d;
    cublasLtEpilogue_t epilogue;
    float alpha, beta;
    int gap, batch;
    bool in_place;  // C is D
};

static void desc_set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, const void *value,
                     size_t bytes) {
    OK(cublasLtMatmulDescSetAttribute(desc, attribute, value, bytes));
}
template <class T>
static void desc_set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, T value) {
    desc_set(desc, attribute, &value, sizeof value);
}
static cublasLtMatmulDesc_t desc_new(const Case *t) {
    cublasLtMatmulDesc_t desc;
    OK(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, (int32_t)(t->ta ? CUBLAS_OP_T : CUBLAS_OP_N));
    desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSB, (int32_t)(t->tb ? CUBLAS_OP_T : CUBLAS_OP_N));
    desc_set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)t->epilogue);
    return desc;
}

static double gelu(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
static double gelu_slope(double x) { return (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5; }

// Relative error of the matrices' rows x cols, without the gaps; NaN anywhere is NaN.
static double error_of(const Matrix &got, const std::vector<double> &want) {
    double difference = 0, size = 0;
    size_t i = 0;
    for (int b = 0; b < got.batch; b++)
        for (int64_t col = 0; col < got.cols; col++)
            for (int64_t row = 0; row < got.rows; row++, i++) {
                difference += pow(got.at(row, col, b) - want[i], 2);
                size += want[i] * want[i];
            }
    return sqrt(difference / size);
}
// One rounding of the stored result, and sums of fp32 products (k is at most 100) in another order: 1e-6.
static void assert_close(const Matrix &got, const std::vector<double> &want, const char *name) {
    double tolerance = 1e-6 + (got.type == CUDA_R_16BF      ? 0x1p-8
                               : got.type == CUDA_R_8F_E4M3 ? 0x1p-4
                               : got.type == CUDA_R_8F_E5M2 ? 0x1p-3
                                                            : 0);
    double error = error_of(got, want);
    if (!(error <= tolerance)) fail_msg("%s: relative error %g, allowed %g", name, error, tolerance);
}

static cublasLtHandle_t lt;  // set up by the group

// A case's matrices, and the result according to the documentation.
struct Run {
    Matrix a, b, c, d, bias, aux;
    bool has_bias, has_aux, bias_out, aux_out;
    std::vector<double> want_d, want_bias, want_aux;
    float scale[3];  // of A, B, D
    double amax;
};

static void run_new(Run *r, const Case *t) {
    int e = t->epilogue;
    bool fp8 = type_bytes(t->in_a) == 1;
    r->has_bias = (e & 4) != 0 || (e & 16) != 0 || (e & 768) != 0;
    r->bias_out = r->has_bias && (e & 4) == 0;
    r->has_aux = (e & 128) != 0;
    r->aux_out = (e & 32) != 0 && r->has_aux;
    r->a = matrix_new(t->in_a, t->ta ? t->k : t->m, t->ta ? t->m : t->k, t->gap, t->batch, true);
    r->b = matrix_new(t->in_b, t->tb ? t->n : t->k, t->tb ? t->k : t->n, t->gap, t->batch, true);
    r->c = matrix_new(t->c, t->m, t->n, t->in_place ? 0 : t->gap, t->batch, t->beta != 0);
    r->d = t->in_place ? r->c : matrix_new(t->d, t->m, t->n, 0, t->batch, false);
    r->bias =
        matrix_new(fp8 ? CUDA_R_16BF : t->d, e == CUBLASLT_EPILOGUE_BGRADB ? t->n : t->m, 1, 0, 1, !r->bias_out);
    r->aux = matrix_new(t->d, t->m, t->n, (8 - t->m % 8) % 8, t->batch, !r->aux_out);
    for (float &scale : r->scale) scale = fp8 ? 0.5f + (float)fabs(random_value()) : 1.0f;
}

static void run_want(Run *r, const Case *t) {
    r->want_bias.assign((size_t)r->bias.rows, 0);
    r->amax = 0;
    for (int b = 0; b < t->batch; b++)
        for (int64_t j = 0; j < t->n; j++)
            for (int64_t i = 0; i < t->m; i++) {
                double x = 0;
                for (int64_t l = 0; l < t->k; l++)
                    x +=
                        (t->ta ? r->a.at(l, i, b) : r->a.at(i, l, b)) * (t->tb ? r->b.at(j, l, b) : r->b.at(l, j, b));
                x *= (double)t->alpha * r->scale[0] * r->scale[1];
                if (t->beta != 0) x += (double)t->beta * r->c.at(i, j, b);
                if ((t->epilogue & 4) != 0) x += r->bias.at(i, 0, 0);
                r->want_aux.push_back(x);
                if ((t->epilogue & 32) != 0) x = gelu(x);
                if ((t->epilogue & 64) != 0) x *= gelu_slope(r->aux.at(i, j, b));
                if ((t->epilogue & 16) != 0) r->want_bias[(size_t)i] += x;
                r->amax = fmax(r->amax, fabs(x));
                r->want_d.push_back(x * r->scale[2]);
            }
    bool of_a = t->epilogue == CUBLASLT_EPILOGUE_BGRADA, of_b = t->epilogue == CUBLASLT_EPILOGUE_BGRADB;
    for (int64_t i = 0; (of_a || of_b) && i < r->bias.rows; i++)
        for (int64_t l = 0; l < t->k; l++)
            r->want_bias[(size_t)i] +=
                of_a ? (t->ta ? r->a.at(l, i, 0) : r->a.at(i, l, 0)) : (t->tb ? r->b.at(i, l, 0) : r->b.at(l, i, 0));
}

static void run_free(Run *r, const Case *t) {
    matrix_free(&r->a);
    matrix_free(&r->b);
    matrix_free(&r->c);
    if (!t->in_place) matrix_free(&r->d);
    matrix_free(&r->bias);
    matrix_free(&r->aux);
}

static int heuristic(cublasLtMatmulDesc_t desc, const Run *r, uint64_t workspace_bytes,
                     cublasLtMatmulHeuristicResult_t results[8], cublasStatus_t *status) {
    cublasLtMatmulPreference_t preference;
    OK(cublasLtMatmulPreferenceCreate(&preference));
    OK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
                                            sizeof workspace_bytes));
    int count = -1;
    *status = cublasLtMatmulAlgoGetHeuristic(lt, desc, r->a.layout, r->b.layout, r->c.layout, r->d.layout, preference,
                                             8, results, &count);
    OK(cublasLtMatmulPreferenceDestroy(preference));
    return count;
}

// Runs the case with each algorithm that the library offers and compares all outputs.
static void check_case(const Case *t) {
    Run r;
    run_new(&r, t);
    run_want(&r, t);
    cublasLtMatmulDesc_t desc = desc_new(t);
    if (r.has_bias) desc_set(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, (void *)r.bias.device);
    if (r.has_bias && r.bias.type != t->d) desc_set(desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, (int32_t)r.bias.type);
    if (r.has_aux) {
        desc_set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, (void *)r.aux.device);
        desc_set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, r.aux.ld);
        desc_set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, r.aux.stride);
    }
    bool fp8 = type_bytes(t->in_a) == 1, fp8_out = type_bytes(t->d) == 1;
    float *scales;
    OK(cudaMalloc((void **)&scales, 4 * sizeof(float)));
    OK(cudaMemcpy(scales, r.scale, sizeof r.scale, cudaMemcpyHostToDevice));
    if (fp8) desc_set(desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, (void *)scales);
    if (fp8) desc_set(desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, (void *)(scales + 1));
    if (fp8_out) desc_set(desc, CUBLASLT_MATMUL_DESC_D_SCALE_POINTER, (void *)(scales + 2));
    else r.scale[2] = 1;
    if (fp8_out) desc_set(desc, CUBLASLT_MATMUL_DESC_AMAX_D_POINTER, (void *)(scales + 3));
    r.want_d.clear();
    r.want_aux.clear();
    run_want(&r, t);

    cublasLtMatmulHeuristicResult_t results[8];
    cublasStatus_t status;
    int count = heuristic(desc, &r, (uint64_t)1 << 20, results, &status);
    if (status != CUBLAS_STATUS_SUCCESS) fail_msg("%s: %s", t->name, cublasLtGetStatusName(status));
    assert_int_equal(count, 3);
    std::vector<double> c_before = r.c.value;
    for (int i = 0; i < count; i++) {
        void *workspace = NULL;
        if (results[i].workspaceSize > 0) OK(cudaMalloc(&workspace, results[i].workspaceSize));
        OK(cublasLtMatmul(lt, desc, &t->alpha, r.a.device, r.a.layout, r.b.device, r.b.layout, &t->beta, r.c.device,
                          r.c.layout, r.d.device, r.d.layout, &results[i].algo, workspace, results[i].workspaceSize,
                          NULL));
        if (r.bias_out) matrix_download(&r.bias);
        if (r.aux_out) matrix_download(&r.aux);
        matrix_download(&r.d);
        assert_close(r.d, r.want_d, t->name);
        if (r.bias_out) assert_close(r.bias, r.want_bias, t->name);
        if (r.aux_out) assert_close(r.aux, r.want_aux, t->name);
        if (fp8_out) {
            float amax;
            OK(cudaMemcpy(&amax, scales + 3, sizeof amax, cudaMemcpyDeviceToHost));
            assert_true(fabs(amax - r.amax) <= 1e-5 * r.amax);
        }
        OK(cudaFree(workspace));
        if (t->in_place) break;  // C has been overwritten
    }
    OK(cudaFree(scales));
    OK(cublasLtMatmulDescDestroy(desc));
    run_free(&r, t);
}

static const cudaDataType F32 = CUDA_R_32F, BF16 = CUDA_R_16BF, E4M3 = CUDA_R_8F_E4M3, E5M2 = CUDA_R_8F_E5M2;
static const cublasLtEpilogue_t PLAIN = CUBLASLT_EPILOGUE_DEFAULT;

static void test_products(void **state) {
    (void)state;
    const Case CASES[] = {
        {"NN", 5, 7, 9, false, false, F32, F32, F32, F32, PLAIN, 1, 0, 0, 1, false},
        {"TN", 33, 20, 50, true, false, F32, F32, F32, F32, PLAIN, 1, 0, 0, 1, false},
        {"NT", 17, 64, 31, false, true, F32, F32, F32, F32, PLAIN, 2, 0, 0, 1, false},
        {"TT with gaps", 12, 8, 100, true, true, F32, F32, F32, F32, PLAIN, -1, 0.5f, 3, 1, false},
        {"TN bf16", 40, 24, 64, true, false, BF16, BF16, BF16, BF16, PLAIN, 1, 0, 0, 1, false},
        {"TN bf16 to fp32", 40, 24, 64, true, false, BF16, BF16, F32, F32, PLAIN, 1, 0, 8, 1, false},
        {"NT bf16 adds to fp32", 40, 24, 64, false, true, BF16, BF16, F32, F32, PLAIN, 1, 1, 0, 1, true},
        {"NN bf16 C and D", 16, 16, 16, false, false, BF16, BF16, BF16, BF16, PLAIN, 0.5f, 2, 8, 1, false},
        {"batch", 6, 5, 4, true, false, F32, F32, F32, F32, PLAIN, 1, 1, 2, 3, false},
        {"batch bf16", 16, 24, 8, false, true, BF16, BF16, BF16, BF16, PLAIN, 1, 0, 0, 2, false},
    };
    for (const Case &t : CASES) check_case(&t);
}

static void test_epilogues(void **state) {
    (void)state;
    for (cublasLtEpilogue_t epilogue :
         {CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX,
          CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_DGELU, CUBLASLT_EPILOGUE_DGELU_BGRAD,
          CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB})
        for (int variant = 0; variant < 4; variant++) {
            char name[64];
            snprintf(name, sizeof name, "epilogue %d, variant %d", (int)epilogue, variant);
            cudaDataType in = variant == 0 ? F32 : BF16, out = variant == 1 ? BF16 : F32;
            // Variant 3 adds C and has an odd number of rows.
            Case t = {name,
                      variant == 3 ? 37 : 40,
                      24,
                      48,
                      variant % 2 == 0,
                      variant == 3,
                      in,
                      in,
                      out,
                      out,
                      epilogue,
                      1,
                      variant == 3 ? 1.0f : 0.0f,
                      0,
                      1,
                      false};
            check_case(&t);
        }
}

static void test_fp8(void **state) {
    (void)state;
    const Case CASES[] = {
        {"e4m3 to bf16", 32, 48, 64, true, false, E4M3, E4M3, BF16, BF16, PLAIN, 1, 0, 0, 1, false},
        {"e4m3 to fp32, C", 32, 16, 64, true, false, E4M3, E4M3, F32, F32, PLAIN, 1, 1, 16, 1, false},
        {"e5m2 x e4m3 to bf16, bias", 16, 16, 32, true, false, E5M2, E4M3, BF16, BF16, CUBLASLT_EPILOGUE_BIAS, 1, 0,
         0, 1, false},
        {"e4m3 x e5m2 to e5m2", 16, 32, 32, true, false, E4M3, E5M2, BF16, E5M2, PLAIN, 1, 0, 0, 1, false},
        {"e4m3 to e4m3", 48, 32, 32, true, false, E4M3, E4M3, BF16, E4M3, PLAIN, 1, 0, 0, 1, false},
    };
    for (const Case &t : CASES) check_case(&t);
}

// The conversions are not exported: products with one show them; compared with those of cuda_fp8.h.
static void test_fp8_conversions(void **state) {
    (void)state;
    for (cudaDataType type : {E4M3, E5M2}) {
        // A has all bit patterns in its first row of k, B is the first column of the identity.
        const int m = 256, k = 16;
        std::vector<uint8_t> a(m * k, 0), b(16 * k, 0);
        for (int i = 0; i < m; i++) a[(size_t)(i * k)] = (uint8_t)i;
        for (int j = 0; j < 16; j++) value_set(b.data(), (size_t)(j * k), E4M3, 1);
        Case t = {"conversions", m, 16, k, true, false, type, E4M3, F32, F32, PLAIN, 1, 0, 0, 1, false};
        Run r;
        run_new(&r, &t);
        OK(cudaMemcpy(r.a.device, a.data(), a.size(), cudaMemcpyHostToDevice));
        OK(cudaMemcpy(r.b.device, b.data(), b.size(), cudaMemcpyHostToDevice));
        cublasLtMatmulDesc_t desc = desc_new(&t);
        OK(cublasLtMatmul(lt, desc, &t.alpha, r.a.device, r.a.layout, r.b.device, r.b.layout, &t.beta, r.c.device,
                          r.c.layout, r.d.device, r.d.layout, NULL, NULL, 0, NULL));
        matrix_download(&r.d);
        for (int i = 0; i < m; i++) {
            double want = value_get(a.data(), (size_t)(i * k), type), got = r.d.at(i, 5, 0);
            assert_true(isfinite(want) ? got == want : !isfinite(got));
        }
        OK(cublasLtMatmulDescDestroy(desc));
        run_free(&r, &t);
    }
    // Storing: D = alpha * a, over magnitudes from below the smallest to beyond the largest.
    for (cudaDataType type : {E4M3, E5M2}) {
        Case t = {"stores", 16, 16, 16, true, false, E5M2, E4M3, BF16, type, PLAIN, 1, 0, 0, 1, false};
        Run r;
        run_new(&r, &t);
        std::vector<uint8_t> a(256, 0), b(256, 0);
        for (int i = 0; i < 16; i++)
            value_set(a.data(), (size_t)(i * 16), E5M2, 1 + 0.25 * (i % 4) * (i < 8 ? 1 : -1));
        for (int j = 0; j < 16; j++) value_set(b.data(), (size_t)(j * 16), E4M3, 1 + j / 8.0);
        OK(cudaMemcpy(r.a.device, a.data(), a.size(), cudaMemcpyHostToDevice));
        OK(cudaMemcpy(r.b.device, b.data(), b.size(), cudaMemcpyHostToDevice));
        cublasLtMatmulDesc_t desc = desc_new(&t);
        for (int power = -20; power <= 20; power++) {
            float alpha = ldexpf(1, power);
            OK(cublasLtMatmul(lt, desc, &alpha, r.a.device, r.a.layout, r.b.device, r.b.layout, &t.beta, r.c.device,
                              r.c.layout, r.d.device, r.d.layout, NULL, NULL, 0, NULL));
            matrix_download(&r.d);
            for (int j = 0; j < 16; j++)
                for (int i = 0; i < 16; i++) {
                    uint32_t bits;
                    value_set(&bits, 0, type,
                              alpha * value_get(a.data(), (size_t)(i * 16), E5M2) *
                                  value_get(b.data(), (size_t)(j * 16), E4M3));
                    assert_true(r.d.at(i, j, 0) == value_get(&bits, 0, type));
                }
        }
        OK(cublasLtMatmulDescDestroy(desc));
        run_free(&r, &t);
    }
}

static void test_scalars_on_the_device(void **state) {
    (void)state;
    Case t = {"device scalars", 4, 4, 4, false, false, F32, F32, F32, F32, PLAIN, 2, 3, 0, 1, false};
    Run r;
    run_new(&r, &t);
    run_want(&r, &t);
    cublasLtMatmulDesc_t desc = desc_new(&t);
    desc_set(desc, CUBLASLT_MATMUL_DESC_POINTER_MODE, (int32_t)CUBLASLT_POINTER_MODE_DEVICE);
    float *scalars;
    OK(cudaMalloc((void **)&scalars, 8));
    OK(cublasLtMatmul(lt, desc, scalars, r.a.device, r.a.layout, r.b.device, r.b.layout, scalars + 1, r.c.device,
                      r.c.layout, r.d.device, r.d.layout, NULL, NULL, 0, NULL));
    float zeros[2] = {0, 0};
    matrix_download(&r.d);  // ran with the scalars of that moment: NaN
    assert_true(isnan(r.d.at(0, 0, 0)));
    OK(cudaMemcpy(scalars, zeros, sizeof zeros, cudaMemcpyHostToDevice));
    float both[2] = {t.alpha, t.beta};
    OK(cudaMemcpy(scalars, both, sizeof both, cudaMemcpyHostToDevice));
    OK(cublasLtMatmul(lt, desc, scalars, r.a.device, r.a.layout, r.b.device, r.b.layout, scalars + 1, r.c.device,
                      r.c.layout, r.d.device, r.d.layout, NULL, NULL, 0, NULL));
    matrix_download(&r.d);
    assert_close(r.d, r.want_d, t.name);
    OK(cudaFree(scalars));
    OK(cublasLtMatmulDescDestroy(desc));
    run_free(&r, &t);
}

// Captured, launched twice: the second time with other inputs. The descriptors are destroyed before.
static void test_in_a_graph(void **state) {
    (void)state;
    Case t = {"graph", 8, 8, 8, true, false, F32, F32, F32, F32, PLAIN, 1, 0, 0, 1, false};
    Run r;
    run_new(&r, &t);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    cublasLtMatmulDesc_t desc = desc_new(&t);
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    OK(cublasLtMatmul(lt, desc, &t.alpha, r.a.device, r.a.layout, r.b.device, r.b.layout, &t.beta, r.c.device,
                      r.c.layout, r.d.device, r.d.layout, NULL, NULL, 0, stream));
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cublasLtMatmulDescDestroy(desc));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    for (int launch = 0; launch < 2; launch++) {
        matrix_upload(&r.a, true);
        r.want_d.clear();
        run_want(&r, &t);
        OK(cudaGraphLaunch(exec, stream));
        OK(cudaStreamSynchronize(stream));
        matrix_download(&r.d);
        assert_close(r.d, r.want_d, t.name);
    }
    OK(cudaGraphExecDestroy(exec));
    OK(cudaGraphDestroy(graph));
    OK(cudaStreamDestroy(stream));
    run_free(&r, &t);
}

// ---- what is refused ----

static void test_refusals(void **state) {
    (void)state;
    struct {
        Case t;
        cublasStatus_t status;
    } const CASES[] = {
        // bf16 out of fp32, fp32 by bf16, two kinds of output
        {{"", 8, 8, 8, true, false, F32, F32, BF16, BF16, PLAIN, 1, 0, 0, 1, false}, CUBLAS_STATUS_NOT_SUPPORTED},
        {{"", 8, 8, 8, true, false, F32, BF16, F32, F32, PLAIN, 1, 0, 0, 1, false}, CUBLAS_STATUS_NOT_SUPPORTED},
        {{"", 8, 8, 8, true, false, BF16, BF16, F32, BF16, PLAIN, 1, 0, 0, 1, false}, CUBLAS_STATUS_NOT_SUPPORTED},
        // 8 bits: layout, dimensions, both e5m2, e5m2 out of e4m3, fp32 with bf16
        {{"", 16, 16, 16, false, false, E4M3, E4M3, BF16, BF16, PLAIN, 1, 0, 0, 1, false},
         CUBLAS_STATUS_NOT_SUPPORTED},
        {{"", 16, 16, 16, true, true, E4M3, E4M3, BF16, BF16, PLAIN, 1, 0, 0, 1, false}, CUBLAS_STATUS_NOT_SUPPORTED},
        {{"", 24, 16, 16, true, false, E4M3, E4M3, BF16, BF16, PLAIN, 1, 0, 0, 1, false},
         CUBLAS_STATUS_NOT_SUPPORTED},
        {{"", 16, 16, 24, true, false, E4M3, E4M3, BF16, BF16, PLAIN, 1, 0, 0, 1, false},
         CUBLAS_STATUS_NOT_SUPPORTED},
        {{"", 16, 16, 16, true, false, E4M3, E4M3, BF16, BF16, PLAIN, 1, 0, 8, 1, false},
         CUBLAS_STATUS_NOT_SUPPORTED},
        {{"", 16, 16, 16, true, false, E5M2, E5M2, BF16, BF16, PLAIN, 1, 0, 0, 1, false},
         CUBLAS_STATUS_NOT_SUPPORTED},
        {{"", 16, 16, 16, true, false, E4M3, E4M3, BF16, E5M2, PLAIN, 1, 0, 0, 1, false},
         CUBLAS_STATUS_NOT_SUPPORTED},
        {{"", 16, 16, 16, true, false, E4M3, E4M3, BF16, F32, PLAIN, 1, 0, 0, 1, false}, CUBLAS_STATUS_NOT_SUPPORTED},
    };
    for (const auto &c : CASES) {
        Run r;
        run_new(&r, &c.t);
        cublasLtMatmulDesc_t desc = desc_new(&c.t);
        cublasLtMatmulHeuristicResult_t results[8];
        cublasStatus_t status;
        assert_int_equal(heuristic(desc, &r, 0, results, &status), 0);
        assert_string_equal(cublasLtGetStatusName(status), cublasLtGetStatusName(c.status));
        status = cublasLtMatmul(lt, desc, &c.t.alpha, r.a.device, r.a.layout, r.b.device, r.b.layout, &c.t.beta,
                                r.c.device, r.c.layout, r.d.device, r.d.layout, NULL, NULL, 0, NULL);
        assert_string_equal(cublasLtGetStatusName(status), cublasLtGetStatusName(c.status));
        OK(cublasLtMatmulDescDestroy(desc));
        run_free(&r, &c.t);
    }
}

static void test_wrong_arguments(void **state) {
    (void)state;
    Case t = {"arguments", 16, 16, 16, true, false, BF16, BF16, BF16, BF16, PLAIN, 1, 0, 0, 1, false};
    Run r;
    run_new(&r, &t);
    cublasLtMatmulDesc_t desc = desc_new(&t);
    cublasLtMatmulHeuristicResult_t results[8];
    cublasStatus_t status;
    auto multiply = [&](const Matrix &a, const void *a_data, const cublasLtMatmulAlgo_t *algo, void *space,
                        size_t bytes) {
        return cublasLtMatmul(lt, desc, &t.alpha, a_data, a.layout, r.b.device, r.b.layout, &t.beta, r.c.device,
                              r.c.layout, r.d.device, r.d.layout, algo, space, bytes, NULL);
    };
    // Shapes that do not fit, a leading dimension that is too small.
    Matrix other = matrix_new(BF16, 17, 16, 0, 1, true);
    REFUSED(CUBLAS_STATUS_INVALID_VALUE, multiply(other, other.device, NULL, NULL, 0));
    int64_t ld = 15;
    OK(cublasLtMatrixLayoutSetAttribute(r.a.layout, CUBLASLT_MATRIX_LAYOUT_LD, &ld, sizeof ld));
    REFUSED(CUBLAS_STATUS_INVALID_VALUE, multiply(r.a, r.a.device, NULL, NULL, 0));
    ld = 16;
    REFUSED(CUBLAS_STATUS_INVALID_VALUE,
            cublasLtMatrixLayoutSetAttribute(r.a.layout, CUBLASLT_MATRIX_LAYOUT_LD, &ld, 4));
    OK(cublasLtMatrixLayoutSetAttribute(r.a.layout, CUBLASLT_MATRIX_LAYOUT_LD, &ld, sizeof ld));

    // Workspace: no workspace leaves one algorithm; an algorithm without the workspace that it requires.
    assert_int_equal(heuristic(desc, &r, 0, results, &status), 1);
    assert_int_equal(heuristic(desc, &r, 1 << 20, results, &status), 3);
    assert_true(results[0].workspaceSize == 0 && results[1].workspaceSize > 0 && results[2].workspaceSize > 0);
    REFUSED(CUBLAS_STATUS_INVALID_VALUE, multiply(r.a, r.a.device, &results[1].algo, NULL, 0));
    // An algorithm for aligned pointers; for another problem.
    REFUSED(CUBLAS_STATUS_NOT_SUPPORTED, multiply(r.a, r.a.device + 2, &results[0].algo, NULL, 0));
    desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSB, (int32_t)CUBLAS_OP_T);
    REFUSED(CUBLAS_STATUS_INVALID_VALUE, multiply(r.a, r.a.device, &results[0].algo, NULL, 0));
    desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSB, (int32_t)CUBLAS_OP_N);

    // Epilogues without their pointers; an auxiliary matrix whose lines are not a multiple of 8; a bias of another
    // type.
    desc_set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)CUBLASLT_EPILOGUE_GELU_AUX_BIAS);
    desc_set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, (int64_t)20);
    REFUSED(CUBLAS_STATUS_INVALID_VALUE, multiply(r.a, r.a.device, NULL, NULL, 0));
    desc_set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, (int64_t)16);
    REFUSED(CUBLAS_STATUS_INVALID_VALUE, multiply(r.a, r.a.device, NULL, NULL, 0));
    desc_set(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, (void *)r.bias.device);
    REFUSED(CUBLAS_STATUS_INVALID_VALUE, multiply(r.a, r.a.device, NULL, NULL, 0));
    desc_set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, (void *)r.aux.device);
    OK(multiply(r.a, r.a.device, NULL, NULL, 0));
    desc_set(desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, (int32_t)CUDA_R_32F);
    REFUSED(CUBLAS_STATUS_NOT_SUPPORTED, multiply(r.a, r.a.device, NULL, NULL, 0));
    desc_set(desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, (int32_t)-1);
    // Scales belong to 8-bit floats.
    desc_set(desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, (void *)r.bias.device);
    REFUSED(CUBLAS_STATUS_INVALID_VALUE, multiply(r.a, r.a.device, NULL, NULL, 0));
    OK(cudaDeviceSynchronize());
    OK(cublasLtMatmulDescDestroy(desc));
    matrix_free(&other);
    run_free(&r, &t);
}

// The previous contents of a workspace are lost.
static void test_workspace_is_used(void **state) {
    (void)state;
    Case t = {"workspace", 16, 16, 16, true, false, BF16, BF16, BF16, BF16, PLAIN, 1, 0, 0, 1, false};
    Run r;
    run_new(&r, &t);
    cublasLtMatmulDesc_t desc = desc_new(&t);
    cublasLtMatmulHeuristicResult_t results[8];
    cublasStatus_t status;
    assert_int_equal(heuristic(desc, &r, 1 << 20, results, &status), 3);
    char *workspace, byte = 0;
    OK(cudaMalloc((void **)&workspace, results[1].workspaceSize));
    OK(cudaMemset(workspace, 0, results[1].workspaceSize));
    OK(cublasLtMatmul(lt, desc, &t.alpha, r.a.device, r.a.layout, r.b.device, r.b.layout, &t.beta, r.c.device,
                      r.c.layout, r.d.device, r.d.layout, &results[1].algo, workspace, results[1].workspaceSize,
                      NULL));
    OK(cudaMemcpy(&byte, workspace + results[1].workspaceSize - 1, 1, cudaMemcpyDeviceToHost));
    assert_int_equal((unsigned char)byte, 0xff);
    // A stored algorithm is the same bytes; its configuration can be read, and its number cannot be changed.
    cublasLtMatmulAlgo_t stored;
    memcpy(&stored, &results[2].algo, sizeof stored);
    int32_t id = -1, split = -1;
    size_t written;
    OK(cublasLtMatmulAlgoConfigGetAttribute(&stored, CUBLASLT_ALGO_CONFIG_ID, &id, sizeof id, &written));
    OK(cublasLtMatmulAlgoConfigGetAttribute(&stored, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof split,
                                            &written));
    assert_true(id == 2 && split == 2);
    REFUSED(CUBLAS_STATUS_INVALID_VALUE,
            cublasLtMatmulAlgoConfigSetAttribute(&stored, CUBLASLT_ALGO_CONFIG_ID, &id, sizeof id));
    cublasLtMatmulHeuristicResult_t checked;
    OK(cublasLtMatmulAlgoCheck(lt, desc, r.a.layout, r.b.layout, r.c.layout, r.d.layout, &stored, &checked));
    assert_int_equal(checked.workspaceSize, results[2].workspaceSize);
    memset(&stored, 0, sizeof stored);
    REFUSED(CUBLAS_STATUS_INVALID_VALUE,
            cublasLtMatmulAlgoCheck(lt, desc, r.a.layout, r.b.layout, r.c.layout, r.d.layout, &stored, &checked));
    OK(cublasLtMatmulAlgoInit(lt, CUBLAS_COMPUTE_32F, CUDA_R_32F, BF16, BF16, BF16, BF16, 0, &stored));
    OK(cublasLtMatmulAlgoCheck(lt, desc, r.a.layout, r.b.layout, r.c.layout, r.d.layout, &stored, &checked));
    OK(cudaFree(workspace));
    OK(cublasLtMatmulDescDestroy(desc));
    run_free(&r, &t);
}

static void unknown_attribute(void) {
    cublasLtMatmulDesc_t desc;
    int32_t value = 0;
    OK(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    cublasLtMatmulDescSetAttribute(desc, (cublasLtMatmulDescAttributes_t)99, &value, sizeof value);
}
static void unemulated_value(void) {
    cublasLtMatmulDesc_t desc;
    int32_t value = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    OK(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &value, sizeof value);
}
static void host_pointer(void) {
    OK(cublasLtCreate(&lt));
    Case t = {"host", 4, 4, 4, true, false, F32, F32, F32, F32, PLAIN, 1, 0, 0, 1, false};
    Run r;
    run_new(&r, &t);
    float host[16];
    cublasLtMatmul(lt, desc_new(&t), &t.alpha, host, r.a.layout, r.b.device, r.b.layout, &t.beta, r.c.device,
                   r.c.layout, r.d.device, r.d.layout, NULL, NULL, 0, NULL);
}
static cublasStatus_t fp8_status(bool ta) {
    if (cublasLtCreate(&lt) != CUBLAS_STATUS_SUCCESS) exit(2);
    Case t = {"fp8", 16, 16, 16, ta, false, E4M3, E4M3, BF16, BF16, PLAIN, 1, 0, 0, 1, false};
    Run r;
    run_new(&r, &t);
    cublasLtMatmulHeuristicResult_t results[8];
    cublasStatus_t status;
    heuristic(desc_new(&t), &r, 0, results, &status);
    return status;
}
static void fp8_on_ampere(void) { CHILD(fp8_status(true) == CUBLAS_STATUS_NOT_SUPPORTED); }
static void fp8_any_layout_on_blackwell(void) { CHILD(fp8_status(false) == CUBLAS_STATUS_SUCCESS); }
static void no_device(void) { CHILD(cublasLtCreate(&lt) == CUBLAS_STATUS_NOT_INITIALIZED); }

static void test_other_devices_and_aborts(void **state) {
    (void)state;
    assert_int_equal(in_child(NULL, "unknown_attribute"), 128 + SIGABRT);
    assert_child_said("matmul descriptor attribute 99");
    assert_int_equal(in_child(NULL, "unemulated_value"), 128 + SIGABRT);
    assert_child_said("CUBLASLT_MATMUL_DESC_A_SCALE_MODE: only its default is emulated");
    assert_int_equal(in_child(NULL, "host_pointer"), 128 + SIGABRT);
    assert_child_said("is not in device memory");
    assert_int_equal(in_child("TOKAMAK_EMU_CC=80", "fp8_on_ampere"), 0);
    assert_int_equal(in_child("TOKAMAK_EMU_CC=100", "fp8_any_layout_on_blackwell"), 0);
    assert_int_equal(in_child("TOKAMAK_EMU_DEVICES=0", "no_device"), 0);
}

static const Child CHILDREN[] = {
    CHILD_ENTRY(unknown_attribute), CHILD_ENTRY(unemulated_value), CHILD_ENTRY(host_pointer),
    CHILD_ENTRY(fp8_on_ampere),     CHILD_ENTRY(no_device),        CHILD_ENTRY(fp8_any_layout_on_blackwell),
};

static int open_library(void **state) {
    (void)state;
    return cublasLtCreate(&lt) == CUBLAS_STATUS_SUCCESS ? 0 : -1;
}
// All memory of the tests has been freed.
static int close_library(void **state) {
    (void)state;
    size_t free_bytes, total;
    OK(cublasLtDestroy(lt));
    OK(cudaMemGetInfo(&free_bytes, &total));
    return free_bytes == total ? 0 : -1;
}

int main(int argc, char **argv) {
    run_if_child(CHILDREN, argc, argv);
    const struct CMUnitTest TESTS[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_epilogues),
        cmocka_unit_test(test_fp8),
        cmocka_unit_test(test_fp8_conversions),
        cmocka_unit_test(test_scalars_on_the_device),
        cmocka_unit_test(test_in_a_graph),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_wrong_arguments),
        cmocka_unit_test(test_workspace_is_used),
        cmocka_unit_test(test_other_devices_and_aborts),
    };
    return cmocka_run_group_tests(TESTS, open_library, close_library);
}
