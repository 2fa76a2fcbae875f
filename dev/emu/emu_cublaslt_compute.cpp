// emu_cublaslt_compute.cpp: the arithmetic of the emulated cublasLtMatmul: products by the CPU backend's matmul (fp32
// sums; 8-bit floats are widened first), then the epilogue in fp32, each result rounded once when it is stored.
//
// Order, as documented: x = alpha * scale_a * scale_b * op(A) op(B) + beta * scale_c * C; x += bias; aux = x; x =
// gelu(x), or x *= gelu'(aux); D = scale_d * x. GELU is the tanh form.
#include "emu_cublaslt.h"

#include <math.h>
#include <string.h>

#include <vector>

#include "emu_runtime.h"
#include "llmc/backend/backend.h"

// ---- elements ----

// One sign bit, then exponent and mantissa bits; e5m2 has infinities as in IEEE, e4m3 has none and one NaN.
static float fp8_to_float(uint8_t bits, bool e5m2) {
    const int mantissa_bits = e5m2 ? 2 : 3, bias = e5m2 ? 15 : 7, top = e5m2 ? 31 : 15;
    int mantissa = bits & ((1 << mantissa_bits) - 1), exponent = (bits & 0x7f) >> mantissa_bits;
    float sign = (bits & 0x80) != 0 ? -1.0f : 1.0f;
    if (exponent == top && e5m2) return mantissa == 0 ? sign * INFINITY : NAN;
    if (exponent == top && mantissa == 7) return NAN;
    float fraction = (float)mantissa / (float)(1 << mantissa_bits);
    return exponent == 0 ? sign * ldexpf(fraction, 1 - bias) : sign * ldexpf(1 + fraction, exponent - bias);
}
// To nearest even, saturating; NaN stays NaN.
static uint8_t fp8_from_float(float x, bool e5m2) {
    const int mantissa_bits = e5m2 ? 2 : 3, bias = e5m2 ? 15 : 7;
    const float largest = e5m2 ? 57344.0f : 448.0f;
    uint8_t sign = signbit(x) ? 0x80 : 0;
    if (isnan(x)) return sign | 0x7f;
    float size = fminf(fabsf(x), largest);
    int exponent = size == 0 ? 1 - bias : ilogbf(size);
    if (exponent < 1 - bias) exponent = 1 - bias;
    // A whole number of units in the last place; rounding may carry into the exponent, as the sum below does.
    int units = (int)nearbyintf(ldexpf(size, mantissa_bits - exponent));
    return (uint8_t)(sign | (units + ((exponent + bias - 1) << mantissa_bits)));
}

static float element_get(const void *data, int64_t i, uint32_t type) {
    switch (type) {
    case CUDA_R_32F: return ((const float *)data)[i];
    case CUDA_R_16BF: return bf16_to_f32(((const uint16_t *)data)[i]);
    default: return fp8_to_float(((const uint8_t *)data)[i], type == CUDA_R_8F_E5M2);
    }
}
static void element_set(void *data, int64_t i, uint32_t type, float value) {
    switch (type) {
    case CUDA_R_32F: ((float *)data)[i] = value; break;
    case CUDA_R_16BF: ((uint16_t *)data)[i] = bf16_from_f32(value); break;
    default: ((uint8_t *)data)[i] = fp8_from_float(value, type == CUDA_R_8F_E5M2);
    }
}

static const void *matrix_at(const void *data, const LtLayout &layout, int64_t batch) {
    return (const char *)data + batch * layout.stride * lt_type_bytes(layout.type);
}
static int64_t element_at(const LtLayout &layout, int64_t row, int64_t col) {
    return layout.order == CUBLASLT_ORDER_COL ? row + col * layout.ld : row * layout.ld + col;
}

// ---- the product ----

static Backend *cpu_backend(void) {
    static Backend *const cpu = backend_cpu_open(0, NULL, NULL);
    return cpu;
}

// The matrix as the CPU backend requires it: contiguous, row-major, of (columns, rows) for column-major ones; fp32 or
// bf16. `copy` holds it if its own memory cannot be used.
static Tensor matrix_tensor(std::vector<char> *copy, const void *data, const LtLayout &layout) {
    bool by_column = layout.order == CUBLASLT_ORDER_COL;
    int64_t lines = (int64_t)(by_column ? layout.cols : layout.rows);
    int64_t length = (int64_t)(by_column ? layout.rows : layout.cols);
    DType dtype = layout.type == CUDA_R_16BF ? DTYPE_BF16 : DTYPE_F32;
    if (!lt_is_fp8(layout.type) && (layout.ld == length || lines == 1))
        return tensor_2d(const_cast<void *>(data), dtype, lines, length);
    float widened[256];
    for (int i = 0; i < 256; i++) widened[i] = fp8_to_float((uint8_t)i, layout.type == CUDA_R_8F_E5M2);
    size_t bytes = dtype_bytes(dtype) * (size_t)length;
    copy->resize(bytes * (size_t)lines);
    for (int64_t line = 0; line < lines; line++) {
        char *to = copy->data() + bytes * (size_t)line;
        const char *from = (const char *)data + line * layout.ld * lt_type_bytes(layout.type);
        if (!lt_is_fp8(layout.type)) memcpy(to, from, bytes);
        else
            for (int64_t i = 0; i < length; i++) ((float *)to)[i] = widened[(uint8_t)from[i]];
    }
    return tensor_2d(copy->data(), dtype, lines, length);
}

// product(n,m) row-major, which is (m,n) column-major: op(B)^T op(A)^T.
static void multiply(std::vector<float> *product, const LtProblem *p, int64_t batch) {
    std::vector<char> a_copy, b_copy;
    Tensor a = matrix_tensor(&a_copy, matrix_at(p->a_data, p->a, batch), p->a);
    Tensor b = matrix_tensor(&b_copy, matrix_at(p->b_data, p->b, batch), p->b);
    MatmulArgs args = {};
    args.alpha = 1;
    args.trans_a = (p->desc.trans_b != CUBLAS_OP_N) != (p->b.order == CUBLASLT_ORDER_ROW);
    args.trans_b = (p->desc.trans_a != CUBLAS_OP_N) != (p->a.order == CUBLASLT_ORDER_ROW);
    Backend *cpu = cpu_backend();
    cpu->matmul(cpu, tensor_2d(product->data(), DTYPE_F32, p->n, p->m), b, a, args);
}

// ---- epilogues ----

static const float SQRT_2_OVER_PI = 0.7978845608f, GELU_CUBIC = 0.044715f;
static float gelu(float x) { return 0.5f * x * (1 + tanhf(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x))); }
static float gelu_slope(float x) {
    float t = tanhf(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * SQRT_2_OVER_PI * (1 + 3 * GELU_CUBIC * x * x);
}

static float scale_at(const void *pointer) { return pointer == NULL ? 1.0f : *(const float *)pointer; }

// Sums over k of op(A)'s rows or op(B)'s columns.
static void input_bias_gradient(const LtProblem *p, void *bias, int64_t batch) {
    bool of_a = p->desc.epilogue == CUBLASLT_EPILOGUE_BGRADA;
    const LtLayout &layout = of_a ? p->a : p->b;
    const void *data = matrix_at(of_a ? p->a_data : p->b_data, layout, batch);
    bool transposed = (of_a ? p->desc.trans_a : p->desc.trans_b) != CUBLAS_OP_N;
    for (int64_t i = 0; i < lt_bias_length(p); i++) {
        float sum = 0;
        for (int64_t l = 0; l < p->k; l++)
            sum += element_get(data, of_a != transposed ? element_at(layout, i, l) : element_at(layout, l, i),
                               layout.type);
        element_set(bias, i, lt_bias_type(p), sum);
    }
}

// Column j of the result; keeps it unrounded in x. Returns its largest magnitude, NaN if there is one.
static float finish_column(float *x, const LtProblem *p, const void *c, void *d, const void *bias, void *aux,
                           int64_t j) {
    const LtDesc &desc = p->desc;
    const float alpha = p->alpha_pointer != NULL ? *(const float *)p->alpha_pointer : p->alpha;
    const float beta = p->beta_pointer != NULL ? *(const float *)p->beta_pointer : p->beta;
    const float scale = alpha * scale_at(desc.a_scale) * scale_at(desc.b_scale);
    const float c_scale = beta * scale_at(desc.c_scale), d_scale = scale_at(desc.d_scale);
    const uint32_t bias_type = lt_bias_type(p), aux_type = lt_aux_type(p);
    const bool with_bias = lt_has_bias(desc.epilogue), with_gelu = lt_has_gelu(desc.epilogue);
    const bool with_dgelu = lt_has_dgelu(desc.epilogue), with_aux = lt_has_aux(desc.epilogue);
    float most = 0;
    for (int64_t i = 0; i < p->m; i++) {
        float value = scale * x[i];
        if (beta != 0) value += c_scale * element_get(c, element_at(p->c, i, j), p->c.type);
        if (with_bias) value += element_get(bias, i, bias_type);
        if (with_gelu) {
            if (with_aux) element_set(aux, i + j * desc.aux_ld, aux_type, value);
            value = gelu(value);
        } else if (with_dgelu) {
            value *= gelu_slope(element_get(aux, i + j * desc.aux_ld, aux_type));
        }
        x[i] = value;
        if (!isnan(most) && !(fabsf(value) <= most)) most = fabsf(value);
        element_set(d, element_at(p->d, i, j), p->d.type, value * d_scale);
    }
    return most;
}

cudaError_t lt_compute(const LtProblem *p) {
    const LtDesc &desc = p->desc;
    std::vector<float> product((size_t)(p->m * p->n)), most((size_t)p->n);
    float amax = 0;
    for (int64_t batch = 0; batch < p->d.batch; batch++) {
        multiply(&product, p, batch);
        const void *c = matrix_at(p->c_data, p->c, batch);
        void *d = const_cast<void *>(matrix_at(p->d_data, p->d, batch));
        void *bias = (char *)desc.bias + batch * desc.bias_stride * lt_type_bytes(lt_bias_type(p));
        void *aux = (char *)desc.aux + batch * desc.aux_stride * lt_type_bytes(lt_aux_type(p));
        if (desc.epilogue == CUBLASLT_EPILOGUE_BGRADA || desc.epilogue == CUBLASLT_EPILOGUE_BGRADB)
            input_bias_gradient(p, bias, batch);
#pragma omp parallel for
        for (int64_t j = 0; j < p->n; j++)
            most[(size_t)j] = finish_column(product.data() + j * p->m, p, c, d, bias, aux, j);
        for (float column : most)
            if (!isnan(amax) && !(column <= amax)) amax = column;
        if (desc.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD) {
            std::vector<float> sums((size_t)p->m, 0);
            for (int64_t j = 0; j < p->n; j++)
                for (int64_t i = 0; i < p->m; i++) sums[(size_t)i] += product[(size_t)(j * p->m + i)];
            for (int64_t i = 0; i < p->m; i++) element_set(bias, i, lt_bias_type(p), sums[(size_t)i]);
        }
    }
    if (desc.amax != NULL) *(float *)desc.amax = amax;
    return cudaSuccess;
}
