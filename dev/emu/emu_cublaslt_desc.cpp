// emu_cublaslt_desc.cpp: cuBLASLt for the emulated GPU: the library's handle, its status texts, and descriptors:
// opaque blocks whose attributes are set and read by number. An attribute that is not listed here aborts; one whose
// meaning is not emulated accepts only its default.
#include "emu_cublaslt.h"

#include <stddef.h>
#include <string.h>

#include <algorithm>
#include <iterator>

#include "emu_runtime_state.h"

struct cublasLtContext {
    uint64_t magic;
};

// ---- the library ----

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    if (handle == NULL) return CUBLAS_STATUS_INVALID_VALUE;
    *handle = NULL;
    if (emu_ready() != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
    *handle = new cublasLtContext{LT_DESC_MAGIC};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    if (handle == NULL) return CUBLAS_STATUS_NOT_INITIALIZED;
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}
size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }
cublasStatus_t cublasLtGetProperty(libraryPropertyType type, int *value) {
    switch (type) {
    case MAJOR_VERSION: *value = CUBLAS_VER_MAJOR; return CUBLAS_STATUS_SUCCESS;
    case MINOR_VERSION: *value = CUBLAS_VER_MINOR; return CUBLAS_STATUS_SUCCESS;
    case PATCH_LEVEL: *value = CUBLAS_VER_PATCH; return CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

struct StatusText {
    cublasStatus_t status;
    const char *name, *text;
};
#define STATUS_TEXT(status, text) \
    { status, #status, text }
static const StatusText STATUSES[] = {
    STATUS_TEXT(CUBLAS_STATUS_SUCCESS, "success"),
    STATUS_TEXT(CUBLAS_STATUS_NOT_INITIALIZED, "the library was not initialized"),
    STATUS_TEXT(CUBLAS_STATUS_ALLOC_FAILED, "the resource allocation failed"),
    STATUS_TEXT(CUBLAS_STATUS_INVALID_VALUE, "an unsupported value or parameter was passed to the function"),
    STATUS_TEXT(CUBLAS_STATUS_ARCH_MISMATCH, "the function requires a feature absent from the device architecture"),
    STATUS_TEXT(CUBLAS_STATUS_MAPPING_ERROR, "an access to GPU memory space failed"),
    STATUS_TEXT(CUBLAS_STATUS_EXECUTION_FAILED, "the function failed to launch on the GPU"),
    STATUS_TEXT(CUBLAS_STATUS_INTERNAL_ERROR, "an internal operation failed"),
    STATUS_TEXT(CUBLAS_STATUS_NOT_SUPPORTED, "the functionality requested is not supported"),
    STATUS_TEXT(CUBLAS_STATUS_LICENSE_ERROR, "an error was detected when checking the current licensing"),
};
const char *cublasLtGetStatusName(cublasStatus_t status) {
    for (const StatusText &known : STATUSES)
        if (known.status == status) return known.name;
    return "CUBLAS_STATUS_UNKNOWN";
}
const char *cublasLtGetStatusString(cublasStatus_t status) {
    for (const StatusText &known : STATUSES)
        if (known.status == status) return known.text;
    return "unknown status";
}

// ---- attributes: offsets in their descriptors ----

struct LtAttribute {
    int attribute;
    const char *name;
    size_t offset, bytes;
};
#define LT_ATTRIBUTE(type, attribute, field) \
    { attribute, #attribute, offsetof(type, field), sizeof(type::field) }

static const LtAttribute LAYOUT_ATTRIBUTES[] = {
    LT_ATTRIBUTE(LtLayout, CUBLASLT_MATRIX_LAYOUT_TYPE, type),
    LT_ATTRIBUTE(LtLayout, CUBLASLT_MATRIX_LAYOUT_ORDER, order),
    LT_ATTRIBUTE(LtLayout, CUBLASLT_MATRIX_LAYOUT_ROWS, rows),
    LT_ATTRIBUTE(LtLayout, CUBLASLT_MATRIX_LAYOUT_COLS, cols),
    LT_ATTRIBUTE(LtLayout, CUBLASLT_MATRIX_LAYOUT_LD, ld),
    LT_ATTRIBUTE(LtLayout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, batch),
    LT_ATTRIBUTE(LtLayout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride),
    LT_ATTRIBUTE(LtLayout, CUBLASLT_MATRIX_LAYOUT_PLANE_OFFSET, plane),
    LT_ATTRIBUTE(LtLayout, CUBLASLT_MATRIX_LAYOUT_BATCH_MODE, batch_mode),
};
static const LtAttribute DESC_ATTRIBUTES[] = {
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, compute_type),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_SCALE_TYPE, scale_type),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_POINTER_MODE, pointer_mode),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_TRANSA, trans_a),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_TRANSB, trans_b),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_TRANSC, trans_c),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_FILL_MODE, fill_mode),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, bias_stride),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, aux_ld),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, aux_stride),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_ALPHA_VECTOR_BATCH_STRIDE, alpha_stride),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, sm_count),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, a_scale),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, b_scale),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_C_SCALE_POINTER, c_scale),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_D_SCALE_POINTER, d_scale),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_AMAX_D_POINTER, amax),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, aux_type),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_SCALE_POINTER, aux_scale),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_AMAX_POINTER, aux_amax),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, fast_accum),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, bias_type),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, a_scale_mode),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, b_scale_mode),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_C_SCALE_MODE, c_scale_mode),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_D_SCALE_MODE, d_scale_mode),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_SCALE_MODE, aux_scale_mode),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_D_OUT_SCALE_POINTER, d_out_scale),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_D_OUT_SCALE_MODE, d_out_scale_mode),
    LT_ATTRIBUTE(LtDesc, CUBLASLT_MATMUL_DESC_EMULATION_DESCRIPTOR, emulation),
};
// Can be set, but only to their defaults.
static const int DESC_FIXED[] = {
    CUBLASLT_MATMUL_DESC_TRANSC,
    CUBLASLT_MATMUL_DESC_FILL_MODE,
    CUBLASLT_MATMUL_DESC_ALPHA_VECTOR_BATCH_STRIDE,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_SCALE_POINTER,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_AMAX_POINTER,
    CUBLASLT_MATMUL_DESC_A_SCALE_MODE,
    CUBLASLT_MATMUL_DESC_B_SCALE_MODE,
    CUBLASLT_MATMUL_DESC_C_SCALE_MODE,
    CUBLASLT_MATMUL_DESC_D_SCALE_MODE,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_SCALE_MODE,
    CUBLASLT_MATMUL_DESC_D_OUT_SCALE_POINTER,
    CUBLASLT_MATMUL_DESC_D_OUT_SCALE_MODE,
    CUBLASLT_MATMUL_DESC_EMULATION_DESCRIPTOR,
};
static const LtAttribute PREF_ATTRIBUTES[] = {
    LT_ATTRIBUTE(LtPreference, CUBLASLT_MATMUL_PREF_SEARCH_MODE, search_mode),
    LT_ATTRIBUTE(LtPreference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes),
    LT_ATTRIBUTE(LtPreference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction_mask),
    LT_ATTRIBUTE(LtPreference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, align_a),
    LT_ATTRIBUTE(LtPreference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, align_b),
    LT_ATTRIBUTE(LtPreference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, align_c),
    LT_ATTRIBUTE(LtPreference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, align_d),
    LT_ATTRIBUTE(LtPreference, CUBLASLT_MATMUL_PREF_MAX_WAVES_COUNT, waves),
    LT_ATTRIBUTE(LtPreference, CUBLASLT_MATMUL_PREF_IMPL_MASK, impl_mask),
};
static const LtAttribute ALGO_ATTRIBUTES[] = {
    LT_ATTRIBUTE(LtAlgo, CUBLASLT_ALGO_CONFIG_ID, id),
    LT_ATTRIBUTE(LtAlgo, CUBLASLT_ALGO_CONFIG_TILE_ID, tile),
    LT_ATTRIBUTE(LtAlgo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, split_k),
    LT_ATTRIBUTE(LtAlgo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, reduction),
    LT_ATTRIBUTE(LtAlgo, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, swizzling),
    LT_ATTRIBUTE(LtAlgo, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, custom),
    LT_ATTRIBUTE(LtAlgo, CUBLASLT_ALGO_CONFIG_STAGES_ID, stages),
    LT_ATTRIBUTE(LtAlgo, CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, inner_shape),
    LT_ATTRIBUTE(LtAlgo, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, cluster_shape),
};

template <size_t N>
static const LtAttribute *attribute_find(const LtAttribute (&table)[N], int attribute, const char *kind) {
    for (const LtAttribute &known : table)
        if (known.attribute == attribute) return &known;
    emu_abort("%s %d (cublasLt.h) is not emulated", kind, attribute);
}
static cublasStatus_t attribute_set(void *holder, const LtAttribute *at, const void *buf, size_t bytes) {
    if (buf == NULL || bytes != at->bytes) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy((char *)holder + at->offset, buf, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
static cublasStatus_t attribute_get(const void *holder, const LtAttribute *at, void *buf, size_t bytes,
                                    size_t *written) {
    if (bytes == 0) {
        if (written == NULL) return CUBLAS_STATUS_INVALID_VALUE;
        *written = at->bytes;
        return CUBLAS_STATUS_SUCCESS;
    }
    if (buf == NULL || bytes != at->bytes) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(buf, (const char *)holder + at->offset, bytes);
    if (written != NULL) *written = bytes;
    return CUBLAS_STATUS_SUCCESS;
}

// ---- descriptors ----

template <class Held, class Opaque>
static cublasStatus_t descriptor_init(Opaque *opaque, size_t size, const Held &held) {
    if (opaque == NULL || size < sizeof *opaque) return CUBLAS_STATUS_ALLOC_FAILED;
    memset(opaque, 0, sizeof *opaque);
    memcpy(opaque, &held, sizeof held);
    return CUBLAS_STATUS_SUCCESS;
}
template <class Opaque>
static cublasStatus_t descriptor_destroy(Opaque *opaque) {
    delete opaque;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t size, cudaDataType type,
                                                 uint64_t rows, uint64_t cols, int64_t ld) {
    LtLayout held = {};
    held.magic = LT_LAYOUT_MAGIC;
    held.type = (uint32_t)type;
    held.rows = rows;
    held.cols = cols;
    held.ld = ld;
    held.batch = 1;
    return descriptor_init(layout, size, held);
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld) {
    *layout = new cublasLtMatrixLayoutOpaque_t;
    return cublasLtMatrixLayoutInit_internal(*layout, sizeof **layout, type, rows, cols, ld);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return descriptor_destroy(layout); }
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void *buf,
                                                size_t bytes) {
    return attribute_set(layout, attribute_find(LAYOUT_ATTRIBUTES, attribute, "matrix layout attribute"), buf, bytes);
}
cublasStatus_t cublasLtMatrixLayoutGetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, void *buf, size_t bytes,
                                                size_t *written) {
    return attribute_get(layout, attribute_find(LAYOUT_ATTRIBUTES, attribute, "matrix layout attribute"), buf, bytes,
                         written);
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t desc, size_t size, cublasComputeType_t compute,
                                               cudaDataType_t scale) {
    LtDesc held = {};
    held.magic = LT_DESC_MAGIC;
    held.compute_type = compute;
    held.scale_type = scale;
    held.pointer_mode = CUBLASLT_POINTER_MODE_HOST;
    held.trans_a = held.trans_b = held.trans_c = CUBLAS_OP_N;
    held.fill_mode = CUBLAS_FILL_MODE_FULL;
    held.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    held.bias_type = held.aux_type = -1;
    return descriptor_init(desc, size, held);
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
    *desc = new cublasLtMatmulDescOpaque_t;
    return cublasLtMatmulDescInit_internal(*desc, sizeof **desc, compute, scale);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) { return descriptor_destroy(desc); }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void *buf, size_t bytes) {
    const LtAttribute *at = attribute_find(DESC_ATTRIBUTES, attribute, "matmul descriptor attribute");
    if (buf != NULL && bytes == at->bytes &&
        std::count(std::begin(DESC_FIXED), std::end(DESC_FIXED), (int)attribute) &&
        memcmp((const char *)desc + at->offset, buf, bytes) != 0)
        emu_abort("%s: only its default is emulated", at->name);
    return attribute_set(desc, at, buf, bytes);
}
cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              void *buf, size_t bytes, size_t *written) {
    return attribute_get(desc, attribute_find(DESC_ATTRIBUTES, attribute, "matmul descriptor attribute"), buf, bytes,
                         written);
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference, size_t size) {
    return descriptor_init(preference, size,
                           LtPreference{LT_PREF_MAGIC, 0, ~(uint64_t)0, CUBLASLT_SEARCH_BEST_FIT,
                                        CUBLASLT_REDUCTION_SCHEME_MASK, 256, 256, 256, 256, 0});
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    *preference = new cublasLtMatmulPreferenceOpaque_t;
    return cublasLtMatmulPreferenceInit_internal(*preference, sizeof **preference);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    return descriptor_destroy(preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void *buf,
                                                    size_t bytes) {
    return attribute_set(preference, attribute_find(PREF_ATTRIBUTES, attribute, "preference"), buf, bytes);
}
cublasStatus_t cublasLtMatmulPreferenceGetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, void *buf,
                                                    size_t bytes, size_t *written) {
    return attribute_get(preference, attribute_find(PREF_ATTRIBUTES, attribute, "preference"), buf, bytes, written);
}

cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, const void *buf,
                                                    size_t bytes) {
    LtAlgo held;
    if (attribute == CUBLASLT_ALGO_CONFIG_ID || !lt_read(&held, algo, LT_ALGO_MAGIC))
        return CUBLAS_STATUS_INVALID_VALUE;
    return attribute_set(algo, attribute_find(ALGO_ATTRIBUTES, attribute, "algorithm attribute"), buf, bytes);
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, void *buf,
                                                    size_t bytes, size_t *written) {
    LtAlgo held;
    if (!lt_read(&held, algo, LT_ALGO_MAGIC)) return CUBLAS_STATUS_INVALID_VALUE;
    return attribute_get(algo, attribute_find(ALGO_ATTRIBUTES, attribute, "algorithm attribute"), buf, bytes,
                         written);
}
