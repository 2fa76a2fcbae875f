// emu_cublaslt.h: one matrix multiplication as passed to cublasLtMatmul, checked by emu_cublaslt.cpp and computed by
// emu_cublaslt_compute.cpp.
#ifndef DEV_EMU_CUBLASLT_H
#define DEV_EMU_CUBLASLT_H

#include <cublasLt.h>

#include <stdint.h>
#include <string.h>

// Contents of the opaque descriptors.
struct LtLayout {
    uint64_t magic;
    uint32_t type;  // cudaDataType
    int32_t order;  // cublasLtOrder_t
    uint64_t rows, cols;
    int64_t ld;
    int32_t batch;
    uint32_t batch_mode;
    int64_t stride;  // elements from one matrix of the batch to the next
    int64_t plane;
};

struct LtDesc {
    uint64_t magic;
    int32_t compute_type, scale_type, pointer_mode, trans_a, trans_b, trans_c, fill_mode;
    uint32_t epilogue;
    int32_t bias_type, aux_type;  // -1: D's type
    void *bias, *aux;
    int64_t bias_stride, aux_ld, aux_stride, alpha_stride;
    const void *a_scale, *b_scale, *c_scale, *d_scale;
    void *amax;
    int32_t sm_count;
    int8_t fast_accum;
    // Only their defaults are emulated.
    int32_t a_scale_mode, b_scale_mode, c_scale_mode, d_scale_mode, aux_scale_mode, d_out_scale_mode;
    void *aux_scale, *aux_amax, *d_out_scale, *emulation;
};

struct LtProblem {
    LtDesc desc;
    LtLayout a, b, c, d;
    int64_t m, n, k;  // D is m x n
    const void *a_data, *b_data, *c_data;
    void *d_data;
    const void *alpha_pointer, *beta_pointer;  // device memory with CUBLASLT_POINTER_MODE_DEVICE, else NULL
    float alpha, beta;
};

static const uint64_t LT_LAYOUT_MAGIC = 0x4c6179, LT_DESC_MAGIC = 0x44657363, LT_PREF_MAGIC = 0x50726566,
                      LT_ALGO_MAGIC = 0x416c676f;

struct LtPreference {
    uint64_t magic, workspace_bytes, impl_mask;
    uint32_t search_mode, reduction_mask, align_a, align_b, align_c, align_d;
    float waves;
};

// An algorithm requires alignments and workspace as real ones do; it has no other properties.
struct LtAlgo {
    uint64_t magic, workspace_bytes;
    int32_t id, split_k;
    uint32_t tile, reduction, swizzling, custom, stages;
    uint16_t inner_shape, cluster_shape;
    uint8_t align_a, align_b, align_c, align_d, align_bias, align_aux;
    uint16_t kind;  // of the problem that it was found for: types, transposes, epilogue
};
static_assert(sizeof(LtLayout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "the opaque descriptor holds it");
static_assert(sizeof(LtDesc) <= sizeof(cublasLtMatmulDescOpaque_t), "the opaque descriptor holds it");
static_assert(sizeof(LtPreference) <= sizeof(cublasLtMatmulPreferenceOpaque_t), "the opaque descriptor holds it");
static_assert(sizeof(LtAlgo) <= sizeof(cublasLtMatmulAlgo_t), "the opaque descriptor holds it");

// Copies the contents of an opaque descriptor; false if it does not hold this type.
template <class Held, class Opaque>
static inline bool lt_read(Held *held, const Opaque *opaque, uint64_t magic) {
    if (opaque == NULL) return false;
    memcpy(held, opaque, sizeof *held);
    return held->magic == magic;
}

static inline bool lt_is_fp8(uint32_t type) { return type == CUDA_R_8F_E4M3 || type == CUDA_R_8F_E5M2; }
static inline int64_t lt_type_bytes(uint32_t type) {
    return type == CUDA_R_32F ? 4 : type == CUDA_R_16BF ? 2 : lt_is_fp8(type) ? 1 : 0;
}
static inline uint32_t lt_bias_type(const LtProblem *p) {
    return p->desc.bias_type >= 0 ? (uint32_t)p->desc.bias_type : p->d.type;
}
static inline uint32_t lt_aux_type(const LtProblem *p) {
    return p->desc.aux_type >= 0 ? (uint32_t)p->desc.aux_type : p->d.type;
}
// Parts of an epilogue.
static inline bool lt_has_bias(uint32_t epilogue) { return (epilogue & CUBLASLT_EPILOGUE_BIAS) != 0; }
static inline bool lt_has_gelu(uint32_t epilogue) { return (epilogue & CUBLASLT_EPILOGUE_GELU) != 0; }
static inline bool lt_has_aux(uint32_t epilogue) { return (epilogue & 128) != 0; }
static inline bool lt_has_dgelu(uint32_t epilogue) { return (epilogue & 64) != 0; }
static inline bool lt_has_bias_gradient(uint32_t epilogue) {
    return (epilogue & (16 | CUBLASLT_EPILOGUE_BGRADA | CUBLASLT_EPILOGUE_BGRADB)) != 0;
}
// Length of the bias or its gradient.
static inline int64_t lt_bias_length(const LtProblem *p) {
    return p->desc.epilogue == CUBLASLT_EPILOGUE_BGRADB ? p->n : p->m;
}

// Computes it now; all pointers are to device memory.
cudaError_t lt_compute(const LtProblem *p);

#endif
