// matmul.h: shared by the files of matrix multiplication: one product in the library's terms (MatmulCall), how it is
// computed (MatmulPlan), and the state between calls (MatmulState). matmul.cu issues products, matmul_tune.cu makes
// plans by timing, matmul_cache.cu stores the results. Must not know models.
#ifndef LLMC_CUDA_MATMUL_H
#define LLMC_CUDA_MATMUL_H

#include <cublasLt.h>

#include "llmc/cuda/absmax.h"
#include "llmc/cuda/workspace.h"

// Parts of the library's epilogue besides alpha*sum + beta*add. A kernel of ours computes the parts not in the plan.
#define FUSE_BIAS 1u  // bias is added
#define FUSE_ACT 2u   // act (saving pre) or act_grad
#define FUSE_SUMS 4u  // the bias gradient

// Everything that determines a product's plan. Numbers only, so that a key is easy to compare, hash and print.
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

// One product with its operands. a and b are the library's inputs: the caller's, or rounded to 8 bits.
typedef struct {
    int64_t M, N, K, batch;
    const void *a, *b;
    cudaDataType_t type_a, type_b;
    bool trans_a, trans_b;
    bool fast_sums;
    // fp8, on the device: the scales of a and b, and the records of the caller's inputs (absmax.h).
    const float *unscale_a, *unscale_b;
    const uint32_t *most_a, *most_b;
    void *workspace;  // of the library, in the scratch block after other data; NULL: no other data
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
    size_t workspace_bytes;  // of the algorithm
} MatmulPlan;

// The result of timing a key, as stored in the cache file.
typedef struct {
    MatmulKey key;
    unsigned fused;
    cublasLtMatmulAlgo_t algo;
    double microseconds;
} MatmulChoice;

typedef struct {
    char *path;  // NULL: choices are not stored
    uint64_t seed;  // from the names of the GPU and the library: lines of other machines fail the check
    MatmulChoice *choices;
    int64_t count;
    int64_t damaged;  // lines ignored when the file was first read
    bool open_end;    // the file's last line is incomplete
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
// FUSE_ bits that the call requires and that the library supports according to its documentation.
unsigned matmul_fusable(const MatmulCall *call);
// Sets what differs between calls of one key: the operand addresses in the descriptor.
cublasStatus_t matmul_set_pointers(const MatmulPlan *plan, const MatmulCall *call);
// Issues the product and our kernels for the rest of the epilogue. A plan from matmul_plan cannot be refused; during
// timing an algorithm may be, and then nothing was computed.
cublasStatus_t matmul_issue(Backend *be, const MatmulPlan *plan, const MatmulCall *call);

// matmul_fp8.cu: rounds a and b, issues the sums of a, and changes the call to 8-bit inputs. The call is valid until
// the next cuda_scratch.
void matmul_fp8_round(Backend *be, MatmulCall *call, Tensor a, Tensor b);

// matmul_tune.cu: the plan of this call's key, made by timing for a new key. NULL after a failure of the backend.
// Valid until the next call.
const MatmulPlan *matmul_plan(Backend *be, const MatmulCall *call);
void matmul_plan_free(MatmulPlan *plan);

// matmul_cache.cu
void matmul_cache_open(MatmulCache *cache, const char *dir, const char *gpu_name, size_t library_version);
const MatmulChoice *matmul_cache_find(const MatmulCache *cache, const MatmulKey *key);
// Adds the choice and returns the valid one: the first of its key in the file, possibly from another process.
const MatmulChoice *matmul_cache_add(MatmulCache *cache, const MatmulChoice *choice);
void matmul_cache_close(MatmulCache *cache);

#endif
