// matmul_tune.cu: plans of products. The first product of a key creates its descriptors and selects its algorithm,
// both kept until the backend is closed; matmul.cu only looks them up.
//
// Which algorithm: the one in the cache file if the key is there. Otherwise the library names its best candidates,
// with its epilogue doing as much as possible and as little as possible (our kernels do the rest), and each is timed
// on the operands themselves. A later candidate replaces an earlier one only if it is clearly faster. The choice is
// written to the file before use, and the first line of the key in the file is valid: concurrent processes agree, and
// a resumed run, even one killed in its first step, computes the same bits. Without a cache directory a choice could
// not be stored, so nothing is timed: the library's first candidate is used.
//
// All allowed algorithms are reproducible: those that split K and add the parts in the output, or round the parts to
// its type, are excluded; partial sums in fp32 in the workspace, added in order, are allowed.
//
// Timing has no side effects: an output that is overwritten is written by each candidate and then by the real call;
// if the product adds to out, the candidates write elsewhere.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/cuda/matmul.h"

#define CANDIDATES 8        // of the library, per route
#define ROUTES 3            // ways to divide the epilogue between the library and our kernels
#define ROUNDS 3            // of timing; a candidate's best time counts
#define NO_CHANCE 1.3       // times the best so far: a slower candidate is not timed again
#define ROUND_MICROSECONDS 1000.0
#define MOST_RUNS 20        // of a candidate in a round
#define CLEARLY_FASTER 0.97

typedef struct {
    const MatmulPlan *route;
    cublasLtMatmulAlgo_t algo;
    size_t workspace_bytes;
    bool refused;
    double microseconds;  // best so far; negative: none
} Candidate;

typedef struct {
    MatmulPlan routes[ROUTES];
    int route_count;
    Candidate candidates[ROUTES * CANDIDATES];
    int count;
} Contest;

// ---- descriptors ----

static cublasLtEpilogue_t epilogue_of(const MatmulCall *call, unsigned fused) {
    const MatmulArgs *args = &call->args;
    if (fused & FUSE_SUMS) return CUBLASLT_EPILOGUE_BGRADB;
    if (!(fused & FUSE_ACT)) return fused & FUSE_BIAS ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    if (args->act_grad != ACT_NONE) return CUBLASLT_EPILOGUE_DGELU;
    if (tensor_is_none(args->pre))
        return fused & FUSE_BIAS ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    return fused & FUSE_BIAS ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
}

#define SET_ATTRIBUTE(desc, attribute, value) cublasLtMatmulDescSetAttribute(desc, attribute, &(value), sizeof(value))
static bool create_desc(Backend *be, MatmulPlan *plan, const MatmulCall *call) {
    const cublasOperation_t op_a = call->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t op_b = call->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasLtEpilogue_t epilogue = epilogue_of(call, plan->fused);
    const int64_t pre_ld = call->N;
    const int8_t fast = call->fast_sums;
    cublasStatus_t status = cublasLtMatmulDescCreate(&plan->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (status == CUBLAS_STATUS_SUCCESS) status = SET_ATTRIBUTE(plan->desc, CUBLASLT_MATMUL_DESC_TRANSA, op_a);
    if (status == CUBLAS_STATUS_SUCCESS) status = SET_ATTRIBUTE(plan->desc, CUBLASLT_MATMUL_DESC_TRANSB, op_b);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = SET_ATTRIBUTE(plan->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    if (status == CUBLAS_STATUS_SUCCESS && plan->fused & FUSE_ACT && !tensor_is_none(call->args.pre))
        status = SET_ATTRIBUTE(plan->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, pre_ld);
    if (status == CUBLAS_STATUS_SUCCESS && fast != 0)
        status = SET_ATTRIBUTE(plan->desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, fast);
    // The heuristics use the addresses' alignment.
    if (status == CUBLAS_STATUS_SUCCESS) status = matmul_set_pointers(plan, call);
    return matmul_ok(be, status, "descriptor of a matrix multiplication (cuBLASLt)");
}
// rows x cols row-major, which is cols x rows column-major.
static bool create_layout(Backend *be, cublasLtMatrixLayout_t *layout, cudaDataType_t type, int64_t rows,
                          int64_t cols, int64_t batch) {
    cublasStatus_t status = cublasLtMatrixLayoutCreate(layout, type, (uint64_t)cols, (uint64_t)rows, cols);
    if (status == CUBLAS_STATUS_SUCCESS && batch > 1) {
        const int32_t count = to_i32(batch);
        const int64_t stride = rows * cols;
        status = cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count);
        if (status == CUBLAS_STATUS_SUCCESS)
            status = cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                                      sizeof stride);
    }
    return matmul_ok(be, status, "layout of a matrix (cuBLASLt)");
}

static bool plan_create(Backend *be, MatmulPlan *plan, const MatmulKey *key, const MatmulCall *call, unsigned fused) {
    memset(plan, 0, sizeof *plan);
    plan->key = *key;
    plan->fused = fused;
    const int64_t M = call->M, N = call->N, K = call->K;
    const bool ta = call->trans_a, tb = call->trans_b;
    return create_desc(be, plan, call) &&
           create_layout(be, &plan->layout_a, call->type_a, ta ? K : M, ta ? M : K, call->batch) &&
           create_layout(be, &plan->layout_b, call->type_b, tb ? N : K, tb ? K : N, call->batch) &&
           create_layout(be, &plan->layout_out, (cudaDataType_t)key->v[KEY_TYPE_OUT], M, N, call->batch);
}
void matmul_plan_free(MatmulPlan *plan) {
    if (plan->desc != NULL) cublasLtMatmulDescDestroy(plan->desc);
    if (plan->layout_a != NULL) cublasLtMatrixLayoutDestroy(plan->layout_a);
    if (plan->layout_b != NULL) cublasLtMatrixLayoutDestroy(plan->layout_b);
    if (plan->layout_out != NULL) cublasLtMatrixLayoutDestroy(plan->layout_out);
    memset(plan, 0, sizeof *plan);
}

// ---- candidates ----

static cublasStatus_t prefer_alignment(cublasLtMatmulPreference_t preference,
                                       cublasLtMatmulPreferenceAttributes_t attribute, int64_t bytes) {
    const uint32_t value = (uint32_t)bytes;
    return cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value);
}
static cublasStatus_t set_preferences(cublasLtMatmulPreference_t preference, const MatmulKey *key) {
    const uint64_t workspace = WORKSPACE_MATMUL_BYTES;
    const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;  // and none, which is always allowed
    // The library's C is add or, without one, out.
    const int64_t add = key->v[KEY_ADD] != 0 ? key->v[KEY_ALIGN_ADD] : key->v[KEY_ALIGN_OUT];
    // If our kernel applies the activation, the library writes to pre.
    const int64_t to = min_i64(key->v[KEY_ALIGN_OUT], key->v[KEY_ALIGN_PRE]);
    cublasStatus_t status = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                                 &workspace, sizeof workspace);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                      &reductions, sizeof reductions);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = prefer_alignment(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key->v[KEY_ALIGN_B]);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = prefer_alignment(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key->v[KEY_ALIGN_A]);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = prefer_alignment(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, add < to ? add : to);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = prefer_alignment(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, to);
    return status;
}

// Adds the library's candidates for this route. A combination that it refuses adds none.
static void contest_add_route(Backend *be, Contest *contest, const MatmulKey *key, const MatmulCall *call,
                              unsigned fused) {
    for (int i = 0; i < contest->route_count; ++i)
        if (contest->routes[i].fused == fused) return;
    MatmulPlan *route = &contest->routes[contest->route_count++];
    if (!plan_create(be, route, key, call, fused)) return;
    cublasLtMatmulPreference_t preference = NULL;
    if (!matmul_ok(be, cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate")) return;
    cublasLtMatmulHeuristicResult_t results[CANDIDATES];
    int found = 0;
    if (matmul_ok(be, set_preferences(preference, key), "cublasLtMatmulPreferenceSetAttribute") &&
        cublasLtMatmulAlgoGetHeuristic(matmul_state(be)->lt, route->desc, route->layout_b, route->layout_a,
                                       route->layout_out, route->layout_out, preference, CANDIDATES, results,
                                       &found) == CUBLAS_STATUS_SUCCESS)
        for (int i = 0; i < found; ++i) {
            if (results[i].state != CUBLAS_STATUS_SUCCESS) continue;
            if (results[i].workspaceSize > WORKSPACE_MATMUL_BYTES) continue;
            Candidate *candidate = &contest->candidates[contest->count++];
            candidate->route = route;
            candidate->algo = results[i].algo;
            candidate->workspace_bytes = results[i].workspaceSize;
            candidate->refused = false;
            candidate->microseconds = -1;
        }
    cublasLtMatmulPreferenceDestroy(preference);
}

// ---- timing ----

// Issues the product `runs` times; false if it is refused or the device failed.
static bool time_runs(Backend *be, const MatmulPlan *plan, const MatmulCall *call, int runs,
                      const cudaEvent_t clock[2], double *microseconds) {
    const char *const what = "timing a matrix multiplication";
    if (!cuda_ok(be, cudaEventRecord(clock[0], cuda_stream(be)), what)) return false;
    for (int i = 0; i < runs; ++i)
        if (matmul_issue(be, plan, call) != CUBLAS_STATUS_SUCCESS) return false;
    float milliseconds = 0;
    if (cuda_failed(be) || !cuda_ok(be, cudaEventRecord(clock[1], cuda_stream(be)), what) ||
        !cuda_ok(be, cudaEventSynchronize(clock[1]), what) ||
        !cuda_ok(be, cudaEventElapsedTime(&milliseconds, clock[0], clock[1]), what))
        return false;
    *microseconds = 1000.0 * (double)milliseconds / runs;
    return true;
}

static double contest_best(const Contest *contest) {
    double best = INFINITY;
    for (int i = 0; i < contest->count; ++i)
        if (contest->candidates[i].microseconds >= 0) best = fmin(best, contest->candidates[i].microseconds);
    return best;
}

static void contest_run(Backend *be, Contest *contest, const MatmulCall *call) {
    cudaEvent_t clock[2] = {NULL, NULL};
    for (int i = 0; i < 2; ++i) cuda_ok(be, cudaEventCreate(&clock[i]), "cudaEventCreate");
    for (int round = 0; round < ROUNDS; ++round)
        for (int i = 0; i < contest->count && !cuda_failed(be); ++i) {
            Candidate *candidate = &contest->candidates[i];
            if (candidate->refused || candidate->microseconds > NO_CHANCE * contest_best(contest)) continue;
            MatmulPlan plan = *candidate->route;
            plan.algo = candidate->algo;
            plan.workspace_bytes = candidate->workspace_bytes;
            double microseconds = 0;
            // The first run loads the kernel and estimates the time of a run.
            if (!time_runs(be, &plan, call, 1, clock, &microseconds)) {
                candidate->refused = true;
                continue;
            }
            double runs = ROUND_MICROSECONDS / (microseconds + 1);
            runs = runs < 1 ? 1 : runs > MOST_RUNS ? MOST_RUNS : runs;
            if (!time_runs(be, &plan, call, (int)runs, clock, &microseconds)) continue;
            if (candidate->microseconds < 0 || microseconds < candidate->microseconds)
                candidate->microseconds = microseconds;
        }
    for (int i = 0; i < 2; ++i)
        if (clock[i] != NULL) cudaEventDestroy(clock[i]);
}

// Times the candidates, with substitutes for operands that must not change.
static void contest_measure(Backend *be, Contest *contest, const MatmulCall *call) {
    MatmulCall measured = *call;
    if (call->args.accumulate_sums) measured.args.sums = TENSOR_NONE;  // the same work for every candidate
    const bool in_place = !tensor_is_none(call->args.add) && call->args.add.data == call->out.data;
    const size_t bytes = tensor_bytes(call->out);
    if (in_place) {
        Error err = {""};
        measured.out.data = be->alloc(be, bytes, &err);
        if (measured.out.data == NULL) {
            fprintf(stderr, "matmul: cannot allocate %.1f MiB to time the algorithms of %lld x %lld x %lld: using the "
"library's first choice\n", (double)bytes / 1048576.0, (long long)call->M, (long long)call->N,
                    (long long)call->K);
            return;
        }
    }
    contest_run(be, contest, &measured);
    if (in_place) be->free(be, measured.out.data, bytes);
}

static const Candidate *contest_winner(const Contest *contest) {
    const Candidate *best = NULL;
    for (int i = 0; i < contest->count; ++i) {
        const Candidate *candidate = &contest->candidates[i];
        if (candidate->refused) continue;
        if (best == NULL || (candidate->microseconds >= 0 && best->microseconds >= 0 &&
                             candidate->microseconds < CLEARLY_FASTER * best->microseconds))
            best = candidate;
    }
    return best;
}

// Measures a new key. False: no algorithm, or the device failed; the failure is kept.
static bool choose(Backend *be, MatmulChoice *choice, const MatmulKey *key, const MatmulCall *call) {
    Contest *contest = (Contest *)xcalloc(1, sizeof *contest);
    const unsigned most = matmul_fusable(call);
    contest_add_route(be, contest, key, call, most);
    // The bias is free in the library's epilogue; the other parts are compared.
    contest_add_route(be, contest, key, call, most & FUSE_BIAS);
    if (contest->count == 0) contest_add_route(be, contest, key, call, 0);
    if (contest->count > 1 && matmul_state(be)->cache.path != NULL && !cuda_failed(be))
        contest_measure(be, contest, call);
    const Candidate *winner = contest_winner(contest);
    if (winner == NULL && !cuda_failed(be)) {
        char what[256];
        snprintf(what, sizeof what, "no algorithm of cuBLASLt for a product of %lld x %lld x %lld (types %d, %d)",
                 (long long)call->M, (long long)call->N, (long long)call->K, (int)call->type_a, (int)call->type_b);
        cuda_fail(be, what, cublasLtGetStatusString(CUBLAS_STATUS_NOT_SUPPORTED));
    }
    if (winner != NULL) {
        memset(choice, 0, sizeof *choice);
        choice->key = *key;
        choice->fused = winner->route->fused;
        choice->algo = winner->algo;
        choice->microseconds = winner->microseconds;
    }
    for (int i = 0; i < contest->route_count; ++i) matmul_plan_free(&contest->routes[i]);
    free(contest);
    return winner != NULL && !cuda_failed(be);
}

// ---- plans by key ----

static MatmulPlan *find_slot(MatmulPlan *plans, int64_t slots, const MatmulKey *key) {
    uint64_t at = matmul_hash(key, sizeof *key, MATMUL_HASH_START);
    for (;; ++at) {
        MatmulPlan *plan = &plans[at & (uint64_t)(slots - 1)];
        if (plan->desc == NULL || memcmp(&plan->key, key, sizeof *key) == 0) return plan;
    }
}
static void keep_plan(MatmulState *state, const MatmulPlan *plan) {
    if (2 * (state->count + 1) > state->slots) {
        const int64_t slots = state->slots == 0 ? 64 : 2 * state->slots;
        MatmulPlan *plans = (MatmulPlan *)xcalloc(to_size(slots), sizeof *plans);
        for (int64_t i = 0; i < state->slots; ++i)
            if (state->plans[i].desc != NULL) *find_slot(plans, slots, &state->plans[i].key) = state->plans[i];
        free(state->plans);
        state->plans = plans;
        state->slots = slots;
    }
    *find_slot(state->plans, state->slots, &plan->key) = *plan;
    ++state->count;
}

// The plan of a choice. False if the library rejects its algorithm, which may come from a file.
static bool realize(Backend *be, MatmulPlan *plan, const MatmulChoice *choice, const MatmulCall *call) {
    memset(plan, 0, sizeof *plan);
    // An algorithm from a file must still be valid for this call.
    if ((choice->fused & ~matmul_fusable(call)) != 0) return false;
    if (plan_create(be, plan, &choice->key, call, choice->fused)) {
        plan->algo = choice->algo;
        cublasLtMatmulHeuristicResult_t result;
        memset(&result, 0, sizeof result);
        const cublasStatus_t status =
            cublasLtMatmulAlgoCheck(matmul_state(be)->lt, plan->desc, plan->layout_b, plan->layout_a,
                                    plan->layout_out, plan->layout_out, &plan->algo, &result);
        plan->workspace_bytes = result.workspaceSize;
        if (status == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= WORKSPACE_MATMUL_BYTES) return true;
    }
    matmul_plan_free(plan);
    return false;
}

const MatmulPlan *matmul_plan(Backend *be, const MatmulCall *call) {
    MatmulState *state = matmul_state(be);
    const MatmulKey key = matmul_key(call);
    if (state->slots > 0) {
        const MatmulPlan *known = find_slot(state->plans, state->slots, &key);
        if (known->desc != NULL) return known;
    }
    CHECK(!sequence_is_capturing(be),
          "a product of %lld x %lld x %lld is new inside a captured sequence: it must run once before",
          (long long)call->M, (long long)call->N, (long long)call->K);
    MatmulPlan plan;
    const MatmulChoice *choice = matmul_cache_find(&state->cache, &key);
    bool ready = choice != NULL && realize(be, &plan, choice, call);
    if (choice != NULL && !ready && !cuda_failed(be))
        fprintf(stderr, "%s: the library rejects the stored algorithm for %lld x %lld x %lld: measuring again\n",
                state->cache.path, (long long)call->M, (long long)call->N, (long long)call->K);
    if (!ready) {
        MatmulChoice measured;
        if (cuda_failed(be) || !choose(be, &measured, &key, call)) return NULL;
        choice = choice != NULL ? &measured : matmul_cache_add(&state->cache, &measured);
        ready = realize(be, &plan, choice, call) || realize(be, &plan, &measured, call);
    }
    if (!ready) {
        cuda_fail(be, "a measured algorithm of cuBLASLt is refused",
                  cublasLtGetStatusString(CUBLAS_STATUS_NOT_SUPPORTED));
        return NULL;
    }
    keep_plan(state, &plan);
    return find_slot(state->plans, state->slots, &key);
}
