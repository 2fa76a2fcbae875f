// emu_cublaslt.cpp: cuBLASLt for the emulated GPU: the supported multiplications, the choice of algorithms, and the
// call. Cases that the real library documents as refused return its status; types and epilogues that the project has
// not needed so far abort by name, so that adding one is deliberate. Results do not depend on the algorithm.
#include "emu_cublaslt.h"

#include <string.h>

#include <algorithm>
#include <memory>

#include "emu_runtime_state.h"

// ---- supported multiplications ----

static bool layout_holds(const LtLayout &layout) {
    if (layout.order != CUBLASLT_ORDER_COL && layout.order != CUBLASLT_ORDER_ROW)
        emu_abort("cublasLtOrder_t %d is not emulated", layout.order);
    if (layout.batch_mode != CUBLASLT_BATCH_MODE_STRIDED || layout.plane != 0)
        emu_abort("batches by pointers and planar complex matrices are not emulated");
    const uint64_t most = 0x7fffffff;
    if (layout.rows == 0 || layout.cols == 0 || layout.rows > most || layout.cols > most || layout.batch < 1)
        return false;
    return layout.ld >= (int64_t)(layout.order == CUBLASLT_ORDER_COL ? layout.rows : layout.cols) &&
           layout.stride >= 0;
}

static cublasStatus_t shapes_check(LtProblem *p) {
    for (const LtLayout *layout : {&p->a, &p->b, &p->c, &p->d})
        if (!layout_holds(*layout) || layout->batch != p->d.batch) return CUBLAS_STATUS_INVALID_VALUE;
    const LtDesc &desc = p->desc;
    bool ta = desc.trans_a != CUBLAS_OP_N, tb = desc.trans_b != CUBLAS_OP_N;
    p->m = (int64_t)p->d.rows;
    p->n = (int64_t)p->d.cols;
    p->k = (int64_t)(ta ? p->a.rows : p->a.cols);
    if (p->c.rows != p->d.rows || p->c.cols != p->d.cols || p->c.order != p->d.order ||
        (int64_t)(ta ? p->a.cols : p->a.rows) != p->m || (int64_t)(tb ? p->b.cols : p->b.rows) != p->k ||
        (int64_t)(tb ? p->b.rows : p->b.cols) != p->n)
        return CUBLAS_STATUS_INVALID_VALUE;
    return CUBLAS_STATUS_SUCCESS;
}

// Types of A, B, C and D, after the tables of cublasLtMatmul() in the cuBLAS documentation.
static cublasStatus_t types_check(const LtProblem *p) {
    const LtDesc &desc = p->desc;
    for (const LtLayout *layout : {&p->a, &p->b, &p->c, &p->d})
        if (lt_type_bytes(layout->type) == 0) emu_abort("matrices of cudaDataType %u are not emulated", layout->type);
    if (desc.scale_type != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    bool all_f32 = p->a.type == CUDA_R_32F && p->b.type == CUDA_R_32F && p->c.type == CUDA_R_32F;
    if (desc.compute_type == CUBLAS_COMPUTE_32F_FAST_TF32) {
        if (!all_f32) return CUBLAS_STATUS_NOT_SUPPORTED;
    } else if (desc.compute_type != CUBLAS_COMPUTE_32F && desc.compute_type != CUBLAS_COMPUTE_32F_PEDANTIC) {
        emu_abort("cublasComputeType_t %d is not emulated", desc.compute_type);
    }
    if (!lt_is_fp8(p->a.type) && !lt_is_fp8(p->b.type)) {
        bool bf16_in = p->a.type == CUDA_R_16BF && p->b.type == CUDA_R_16BF;
        bool out = p->c.type == p->d.type && (all_f32 || (bf16_in && !lt_is_fp8(p->d.type)));
        return out ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (!lt_is_fp8(p->a.type) || !lt_is_fp8(p->b.type) || desc.compute_type != CUBLAS_COMPUTE_32F)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (p->a.type == CUDA_R_8F_E5M2 && p->b.type == CUDA_R_8F_E5M2) return CUBLAS_STATUS_NOT_SUPPORTED;
    bool both_e4m3 = p->a.type == CUDA_R_8F_E4M3 && p->b.type == CUDA_R_8F_E4M3;
    if (p->d.type == CUDA_R_8F_E5M2 && both_e4m3) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (p->c.type != (lt_is_fp8(p->d.type) ? (uint32_t)CUDA_R_16BF : p->d.type)) return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

// Requirements of 8-bit inputs: the device, the layout, dimensions and strides of whole 16 bytes.
static cublasStatus_t fp8_check(const LtProblem *p) {
    const LtDesc &desc = p->desc;
    bool fp8 = lt_is_fp8(p->a.type), fp8_out = lt_is_fp8(p->d.type);
    if ((!fp8 && (desc.a_scale != NULL || desc.b_scale != NULL)) || desc.c_scale != NULL ||
        (!fp8_out && (desc.d_scale != NULL || desc.amax != NULL)))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!fp8) return CUBLAS_STATUS_SUCCESS;
    int capability = emu_compute_capability();
    if (capability < 89) return CUBLAS_STATUS_NOT_SUPPORTED;
    bool any_layout = capability / 10 == 10;  // data-centre Blackwell
    if (!any_layout && (desc.trans_a == CUBLAS_OP_N || desc.trans_b != CUBLAS_OP_N))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (p->m % 16 != 0 || p->k % 16 != 0 || (p->n % 16 != 0 && desc.trans_b != CUBLAS_OP_N))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    for (const LtLayout *layout : {&p->a, &p->b, &p->c, &p->d})
        if (layout->order != CUBLASLT_ORDER_COL || layout->ld * lt_type_bytes(layout->type) % 16 != 0)
            return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t epilogue_check(const LtProblem *p) {
    const LtDesc &desc = p->desc;
    switch (desc.epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT: return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_GELU:
    case CUBLASLT_EPILOGUE_GELU_BIAS:
    case CUBLASLT_EPILOGUE_GELU_AUX:
    case CUBLASLT_EPILOGUE_GELU_AUX_BIAS:
    case CUBLASLT_EPILOGUE_DGELU:
    case CUBLASLT_EPILOGUE_DGELU_BGRAD:
    case CUBLASLT_EPILOGUE_BGRADA:
    case CUBLASLT_EPILOGUE_BGRADB: break;
    default: emu_abort("cublasLtEpilogue_t %u is not emulated", desc.epilogue);
    }
    if (p->d.order != CUBLASLT_ORDER_COL) return CUBLAS_STATUS_NOT_SUPPORTED;
    bool fp8 = lt_is_fp8(p->a.type);
    if (lt_has_bias(desc.epilogue) || lt_has_bias_gradient(desc.epilogue)) {
        // D's type; bf16 for 8-bit inputs.
        if (lt_bias_type(p) != (fp8 ? (uint32_t)CUDA_R_16BF : p->d.type)) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (lt_has_bias_gradient(desc.epilogue) && fp8) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (lt_has_aux(desc.epilogue)) {
        if (desc.aux_ld % 8 != 0 || desc.aux_ld < p->m || desc.aux_stride % 8 != 0)
            return CUBLAS_STATUS_INVALID_VALUE;
        if (lt_is_fp8(lt_aux_type(p))) emu_abort("an auxiliary matrix of 8-bit floats is not emulated");
        if (lt_aux_type(p) != p->d.type) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t problem_read(LtProblem *p, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                   cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
    *p = {};
    if (!lt_read(&p->desc, desc, LT_DESC_MAGIC) || !lt_read(&p->a, a, LT_LAYOUT_MAGIC) ||
        !lt_read(&p->b, b, LT_LAYOUT_MAGIC) || !lt_read(&p->c, c, LT_LAYOUT_MAGIC) ||
        !lt_read(&p->d, d, LT_LAYOUT_MAGIC))
        return CUBLAS_STATUS_INVALID_VALUE;
    int mode = p->desc.pointer_mode;
    if (mode != CUBLASLT_POINTER_MODE_HOST && mode != CUBLASLT_POINTER_MODE_DEVICE)
        emu_abort("cublasLtPointerMode_t %d is not emulated", mode);
    cublasStatus_t status = shapes_check(p);
    if (status == CUBLAS_STATUS_SUCCESS) status = types_check(p);
    if (status == CUBLAS_STATUS_SUCCESS) status = fp8_check(p);
    if (status == CUBLAS_STATUS_SUCCESS) status = epilogue_check(p);
    return status;
}

// ---- algorithms ----

static uint16_t problem_kind(const LtProblem *p) {
    uint32_t kind = 17;
    for (uint32_t part : {p->a.type, p->b.type, p->c.type, p->d.type, (uint32_t)p->desc.trans_a,
                          (uint32_t)p->desc.trans_b, p->desc.epilogue})
        kind = kind * 31 + part;
    return (uint16_t)(kind % 65521);
}

// The alignment, up to 16 bytes, required of pointers by an algorithm found for this layout and preference.
static uint8_t alignment_of(const LtLayout &layout, uint32_t preferred) {
    uint64_t strides = preferred | 16u | (uint64_t)(layout.ld * lt_type_bytes(layout.type)) |
                       (uint64_t)(layout.stride * lt_type_bytes(layout.type));
    return (uint8_t)(strides & (~strides + 1));
}
static uint8_t alignment_of(const void *pointer) {
    uintptr_t bits = (uintptr_t)pointer | 16u;
    return (uint8_t)(bits & (~bits + 1));
}

static LtAlgo algo_make(const LtProblem *p, const LtPreference &preference, int id) {
    LtAlgo algo = {};
    algo.magic = LT_ALGO_MAGIC;
    algo.id = id;
    algo.split_k = 1;
    algo.tile = id == 0 ? CUBLASLT_MATMUL_TILE_128x128 : CUBLASLT_MATMUL_TILE_64x64;
    if (id == 1) algo.workspace_bytes = 32 << 10;
    if (id == 2) {
        algo.split_k = 2;
        algo.reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        algo.workspace_bytes = (uint64_t)(2 * p->m * p->n) * sizeof(float);
    }
    algo.align_a = alignment_of(p->a, preference.align_a);
    algo.align_b = alignment_of(p->b, preference.align_b);
    algo.align_c = alignment_of(p->c, preference.align_c);
    algo.align_d = alignment_of(p->d, preference.align_d);
    algo.align_bias = alignment_of(p->desc.bias);
    algo.align_aux = alignment_of(p->desc.aux);
    algo.kind = problem_kind(p);
    return algo;
}

// Three algorithms: one without workspace, one with a little, one that splits k and needs more.
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int *returned) {
    LtProblem p;
    LtPreference wanted;
    if (returned != NULL) *returned = 0;
    if (handle == NULL) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (requested <= 0 || results == NULL || returned == NULL || !lt_read(&wanted, preference, LT_PREF_MAGIC))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (wanted.search_mode != CUBLASLT_SEARCH_BEST_FIT) emu_abort("only CUBLASLT_SEARCH_BEST_FIT is emulated");
    cublasStatus_t status = problem_read(&p, desc, a, b, c, d);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (lt_is_fp8(p.a.type))
        for (uint32_t align : {wanted.align_a, wanted.align_b, wanted.align_c, wanted.align_d})
            if (align < 16) return CUBLAS_STATUS_NOT_SUPPORTED;
    for (int id = 0; id < 3 && *returned < requested; id++) {
        LtAlgo algo = algo_make(&p, wanted, id);
        if (algo.workspace_bytes > wanted.workspace_bytes || (algo.reduction & ~wanted.reduction_mask) != 0) continue;
        cublasLtMatmulHeuristicResult_t *result = &results[(*returned)++];
        memset(result, 0, sizeof *result);
        memcpy(&result->algo, &algo, sizeof algo);
        result->workspaceSize = algo.workspace_bytes;
        result->state = CUBLAS_STATUS_SUCCESS;
        result->wavesCount = 1;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoInit(cublasLtHandle_t handle, cublasComputeType_t compute, cudaDataType_t scale,
                                      cudaDataType_t a, cudaDataType_t b, cudaDataType_t c, cudaDataType_t d, int id,
                                      cublasLtMatmulAlgo_t *algo) {
    if (handle == NULL) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (algo == NULL || id < 0 || id > 2) return CUBLAS_STATUS_INVALID_VALUE;
    LtProblem p = {};
    p.desc.compute_type = compute;
    p.desc.scale_type = scale;
    p.a.type = (uint32_t)a;
    p.b.type = (uint32_t)b;
    p.c.type = (uint32_t)c;
    p.d.type = (uint32_t)d;
    cublasStatus_t status = types_check(&p);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    LtAlgo held = {};
    held.magic = LT_ALGO_MAGIC;
    held.id = id;
    held.split_k = 1;
    memset(algo, 0, sizeof *algo);
    memcpy(algo, &held, sizeof held);
    return CUBLAS_STATUS_SUCCESS;
}

// An algorithm's needs for this problem: one from the heuristic has them; one from AlgoInit is completed here.
static cublasStatus_t algo_check(LtAlgo *held, const LtProblem *p, const cublasLtMatmulAlgo_t *algo) {
    if (!lt_read(held, algo, LT_ALGO_MAGIC)) return CUBLAS_STATUS_INVALID_VALUE;
    if (held->kind != 0 && held->kind != problem_kind(p)) return CUBLAS_STATUS_INVALID_VALUE;
    if (held->split_k < 1 || (held->split_k > 1 && held->reduction == CUBLASLT_REDUCTION_SCHEME_NONE))
        return CUBLAS_STATUS_INVALID_VALUE;
    uint64_t needed = held->id == 1 ? 32 << 10 : 0;
    if (held->split_k > 1) needed = (uint64_t)(held->split_k * p->m * p->n) * sizeof(float);
    held->workspace_bytes = std::max(held->workspace_bytes, needed);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algo, cublasLtMatmulHeuristicResult_t *result) {
    if (handle == NULL) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (algo == NULL || result == NULL) return CUBLAS_STATUS_INVALID_VALUE;
    LtProblem p;
    LtAlgo held;
    cublasStatus_t status = problem_read(&p, desc, a, b, c, d);
    if (status == CUBLAS_STATUS_SUCCESS) status = algo_check(&held, &p, algo);
    result->state = status;
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    result->workspaceSize = held.workspace_bytes;
    result->wavesCount = 1;
    return CUBLAS_STATUS_SUCCESS;
}

// ---- the call ----

static bool aligned(const void *pointer, uint8_t alignment) {
    return alignment == 0 || (uintptr_t)pointer % alignment == 0;
}
static bool pointers_aligned(const LtProblem *p, const LtAlgo &algo) {
    bool bias = lt_has_bias(p->desc.epilogue) || lt_has_bias_gradient(p->desc.epilogue);
    return aligned(p->a_data, algo.align_a) && aligned(p->b_data, algo.align_b) &&
           (p->c_data == NULL || aligned(p->c_data, algo.align_c)) && aligned(p->d_data, algo.align_d) &&
           (!bias || aligned(p->desc.bias, algo.align_bias)) &&
           (!lt_has_aux(p->desc.epilogue) || aligned(p->desc.aux, algo.align_aux));
}

// Aborts for memory that the device could not access: a real context would fail.
static void reach_check(const char *what, const void *pointer, int64_t elems, uint32_t type) {
    if (!emu_is_device_memory(pointer, (size_t)(elems * lt_type_bytes(type))))
        emu_abort("cublasLtMatmul: %s (%lld elements of %lld bytes at %p) is not in device memory", what,
                  (long long)elems, (long long)lt_type_bytes(type), pointer);
}
static void matrix_reach_check(const char *what, const void *data, const LtLayout &layout) {
    bool by_column = layout.order == CUBLASLT_ORDER_COL;
    int64_t lines = (int64_t)(by_column ? layout.cols : layout.rows);
    int64_t length = (int64_t)(by_column ? layout.rows : layout.cols);
    reach_check(what, data, (layout.batch - 1) * layout.stride + (lines - 1) * layout.ld + length, layout.type);
}
static void problem_reach_check(const LtProblem *p) {
    const LtDesc &desc = p->desc;
    matrix_reach_check("A", p->a_data, p->a);
    matrix_reach_check("B", p->b_data, p->b);
    matrix_reach_check("D", p->d_data, p->d);
    if (p->beta != 0 || p->beta_pointer != NULL) matrix_reach_check("C", p->c_data, p->c);
    if (lt_has_bias(desc.epilogue) || lt_has_bias_gradient(desc.epilogue))
        reach_check("the bias", desc.bias, (p->d.batch - 1) * desc.bias_stride + lt_bias_length(p), lt_bias_type(p));
    if (lt_has_aux(desc.epilogue))
        reach_check("the auxiliary matrix", desc.aux,
                    (p->d.batch - 1) * desc.aux_stride + (p->n - 1) * desc.aux_ld + p->m, lt_aux_type(p));
    for (const void *scale :
         {desc.a_scale, desc.b_scale, desc.d_scale, (const void *)desc.amax, p->alpha_pointer, p->beta_pointer})
        if (scale != NULL) reach_check("a scale", scale, 1, CUDA_R_32F);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
    if (handle == NULL) return CUBLAS_STATUS_NOT_INITIALIZED;
    auto problem = std::make_shared<LtProblem>();
    LtProblem *p = problem.get();
    cublasStatus_t status = problem_read(p, desc, a_layout, b_layout, c_layout, d_layout);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (alpha == NULL || beta == NULL || a == NULL || b == NULL || d == NULL) return CUBLAS_STATUS_INVALID_VALUE;
    p->a_data = a;
    p->b_data = b;
    p->c_data = c;
    p->d_data = d;
    if (p->desc.pointer_mode == CUBLASLT_POINTER_MODE_DEVICE) {
        p->alpha_pointer = alpha;
        p->beta_pointer = beta;
    } else {
        p->alpha = *(const float *)alpha;
        p->beta = *(const float *)beta;
        if (p->beta != 0 && c == NULL) return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (c == d && p->c.ld != p->d.ld) return CUBLAS_STATUS_INVALID_VALUE;
    uint32_t epilogue = p->desc.epilogue;
    if ((lt_has_bias(epilogue) || lt_has_bias_gradient(epilogue)) && p->desc.bias == NULL)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (lt_has_aux(epilogue) && p->desc.aux == NULL) return CUBLAS_STATUS_INVALID_VALUE;
    LtAlgo held = {};
    if (algo != NULL) status = algo_check(&held, p, algo);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (held.workspace_bytes > workspace_bytes || (uintptr_t)workspace % 16 != 0) return CUBLAS_STATUS_INVALID_VALUE;
    if (!pointers_aligned(p, held)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (held.workspace_bytes > 0)
        reach_check("the workspace", workspace, (int64_t)held.workspace_bytes, CUDA_R_8F_E4M3);
    problem_reach_check(p);

    size_t used_bytes = (size_t)held.workspace_bytes;
    cudaError_t error = emu_enqueue(stream, "cublasLtMatmul", [problem, workspace, used_bytes] {
        // Data that the caller keeps in the workspace must be lost.
        if (used_bytes > 0) memset(workspace, 0xff, used_bytes);
        return lt_compute(problem.get());
    });
    return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
