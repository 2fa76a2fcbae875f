// matmul.h: what the files of matrix multiplication share: one product as the library sees it (MatmulCall), how it is
// done (MatmulPlan), and what is kept between calls (MatmulState). matmul.cu issues products, matmul_tune.cu makes
// plans by measuring, matmul_cache.cu remembers what was measured.
#ifndef LLMC_CUDA_MATMUL_H
#define LLMC_CUDA_MATMUL_H

#include <cublasLt.h>

#include "llmc/cuda/absmax.h"
#include "llmc/cuda/workspace.h"

// What the library's epilogue can do besides alpha*sum + beta*add. What a plan leaves out, a kernel of ours does.
#define FUSE_BIAS 1u  // bias is added
#define FUSE_ACT 2u   // act (saving pre) or act_grad
#define FUSE_SUMS 4u  // the bias gradient

// Everything that decides how a product is done. Numbers only, so that a key is compared, hashed and printed as one.
enum {
    KEY_M, KEY_N, KEY_K, KEY_BATCH,
    KEY_TRANS_A, KEY_TRANS_B,
    KEY_TYPE_A, KEY_TYPE_B, KEY_TYPE_OUT,      // cudaDataType_t
    KEY_ADD,                                   // 0: none, 1: another tensor, 2: out
    KEY_BIAS,                                  // 0: none, else 1 + its DType
    KEY_ACT, KEY_ACT_GRAD, KEY_SAVE_PRE,
    KEY_SUMS,                                  // 0: none, 1: overwritten, 2: accumulated
    KEY_FAST_SUMS,                             // fp8: sums may be kept in the tensor cores' shorter accumulators
    KEY_ALIGN_A, KEY_ALIGN_B, KEY_ALIGN_OUT, KEY_ALIGN_ADD, KEY_ALIGN_BIAS, KEY_ALIGN_PRE, KEY_ALIGN_SUMS,
    KEY_COUNT
};
typedef struct {
    int64_t v[KEY_COUNT];
} MatmulKey;

// One product with its operands. a and b are what the library multiplies: the caller's, or rounded to 8 bits.
typedef struct {
    int64_t M, N, K, batch;
    const void *a, *b;
    cudaDataType_t type_a, type_b;
    bool trans_a, trans_b;
    bool fast_sums;
    // fp8, on the device: what a and b are multiplied with, and the records of the caller's (absmax.h).
    const float *unscale_a, *unscale_b;
    const uint32_t *most_a, *most_b;
    void *workspace;  // of the library, behind what else is in the scratch block; NULL: there is nothing else
    Tensor out;
    Tensor rows;      // what args.sums sums over
    MatmulArgs args;
} MatmulCall;

// The library's row-major view: out^T = op(b)^T op(a)^T, so our b is its A and its rows are our columns.
typedef struct {
    MatmulKey key;
    unsigned fused;  // FUSE_ bits
    cublasLtMatmulDesc_t desc;  // NULL: an empty slot of the table
    cublasLtMatrixLayout_t layout_a, layout_b, layout_out;
    cublasLtMatmulAlgo_t algo;
    size_t workspace_bytes;  // that the algorithm uses
} MatmulPlan;

// What measuring decided for a key: this is what the cache file holds.
typedef struct {
    MatmulKey key;
    unsigned fused;
    cublasLtMatmulAlgo_t algo;
    double microseconds;
} MatmulChoice;

typedef struct {
    char *path;  // NULL: choices are not kept beyond the process
    uint64_t seed;  // of the GPU's and the library's name: lines of others do not pass their check
    MatmulChoice *choices;
    int64_t count;
    int64_t damaged;  // lines ignored when the file was read first
    bool open_end;    // the file's last line lacks its end
} MatmulCache;

typedef struct MatmulState {
    cublasLtHandle_t lt;
    MatmulPlan *plans;  // hash table, open addressing; `slots` is a power of two
    int64_t slots, count;
    MatmulCache cache;
    Absmax absmax;
} MatmulState;

static inline MatmulState *matmul_state(const Backend *be) { return (MatmulState *)cuda_state(be)->matmul; }

// FNV-1a, for the table and for the lines of the cache file.
static inline uint64_t matmul_hash(const void *bytes, size_t count, uint64_t hash) {
    for (size_t i = 0; i < count; ++i) hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3ull;
    return hash;
}
#define MATMUL_HASH_START 0xcbf29ce484222325ull

// True for success; otherwise keeps the library's text as the backend's failure.
bool matmul_ok(Backend *be, cublasStatus_t status, const char *what);
MatmulKey matmul_key(const MatmulCall *call);
// FUSE_ bits that the call asks for, and those of them that the library documents for it.
unsigned matmul_wanted(const MatmulCall *call);
unsigned matmul_fusable(const MatmulCall *call);
// Sets what differs between calls of one key: the operands' addresses that a descriptor holds.
cublasStatus_t matmul_set_pointers(const MatmulPlan *plan, const MatmulCall *call);
// Issues the product and what the plan's epilogue leaves to our kernels. With a plan from matmul_plan this cannot be
// refused; while measuring, an algorithm may be, and then nothing was computed.
cublasStatus_t matmul_issue(Backend *be, const MatmulPlan *plan, const MatmulCall *call);

// matmul_fp8.cu: rounds a and b, has the sums taken of a, and makes the call one of 8-bit inputs. The call lasts
// until the scratch block is asked for again.
void matmul_fp8_round(Backend *be, MatmulCall *call, Tensor a, Tensor b);

// matmul_tune.cu: the plan of this call's key, made and measured if it is the first of its kind. NULL once the
// backend has failed. Valid until the next call.
const MatmulPlan *matmul_plan(Backend *be, const MatmulCall *call);
void matmul_plan_free(MatmulPlan *plan);

// matmul_cache.cu
void matmul_cache_open(MatmulCache *cache, const char *dir, const char *gpu_name, size_t library_version);
const MatmulChoice *matmul_cache_find(const MatmulCache *cache, const MatmulKey *key);
// Adds the choice and returns the one that counts: the first of its key in the file, maybe another process's.
const MatmulChoice *matmul_cache_add(MatmulCache *cache, const MatmulChoice *choice);
void matmul_cache_close(MatmulCache *cache);

#endif
