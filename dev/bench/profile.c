// profile.c: see profile.h.
#include "dev/bench/profile.h"

const char *const PROFILE_NAMES[PROFILE_KINDS] = {"matmul", "attention", "loss",      "optimizer",
                                                  "norm",   "pointwise", "embedding", "memory"};

static Profile *profile_of(Backend *be) { return be->impl; }

// One wrapper per entry: PARAMS as in backend.h without the backend, ARGS their names.
#define PROFILE_OP(kind, op, PARAMS, ARGS)               \
    static void timed_##op PARAMS {                      \
        Profile *profile = profile_of(be);               \
        Backend *inner = profile->inner;                 \
        double start = now_seconds();                    \
        inner->op ARGS;                                  \
        profile->seconds[kind] += now_seconds() - start; \
    }

PROFILE_OP(PROFILE_MEMORY, zero, (Backend * be, void *p, size_t n), (inner, p, n))
PROFILE_OP(PROFILE_MEMORY, upload, (Backend * be, void *d, const void *s, size_t n), (inner, d, s, n))
PROFILE_OP(PROFILE_MEMORY, download, (Backend * be, void *d, const void *s, size_t n), (inner, d, s, n))
PROFILE_OP(PROFILE_MEMORY, copy, (Backend * be, void *d, const void *s, size_t n), (inner, d, s, n))
PROFILE_OP(PROFILE_POINTWISE, bias_backward, (Backend * be, Tensor a, Tensor b, bool c), (inner, a, b, c))
PROFILE_OP(PROFILE_EMBEDDING, embedding_forward, (Backend * be, Tensor a, Tensor b, Tensor c, Tensor d, Tensor e),
           (inner, a, b, c, d, e))
PROFILE_OP(PROFILE_EMBEDDING, embedding_backward, (Backend * be, Tensor a, Tensor b, Tensor c, Tensor d, Tensor e),
           (inner, a, b, c, d, e))
PROFILE_OP(PROFILE_NORM, norm_forward,
           (Backend * be, Tensor a, Tensor b, Tensor c, Tensor d, Tensor e, Tensor f, NormArgs args),
           (inner, a, b, c, d, e, f, args))
PROFILE_OP(PROFILE_NORM, norm_backward,
           (Backend * be, Tensor a, Tensor b, Tensor c, Tensor d, Tensor e, Tensor f, Tensor g, Tensor h, bool i,
            bool j, NormArgs args),
           (inner, a, b, c, d, e, f, g, h, i, j, args))
PROFILE_OP(PROFILE_POINTWISE, qk_forward, (Backend * be, Tensor a, Tensor b, Tensor c, Tensor d, QkArgs args),
           (inner, a, b, c, d, args))
PROFILE_OP(PROFILE_POINTWISE, qk_backward,
           (Backend * be, Tensor a, Tensor b, Tensor c, Tensor d, Tensor e, Tensor f, Tensor g, bool h, QkArgs args),
           (inner, a, b, c, d, e, f, g, h, args))
PROFILE_OP(PROFILE_ATTENTION, attention_forward, (Backend * be, Tensor a, Tensor b, Tensor c, AttentionArgs args),
           (inner, a, b, c, args))
PROFILE_OP(PROFILE_ATTENTION, attention_backward,
           (Backend * be, Tensor a, Tensor b, Tensor c, Tensor d, Tensor e, AttentionArgs args),
           (inner, a, b, c, d, e, args))
PROFILE_OP(PROFILE_ATTENTION, attention_decode,
           (Backend * be, Tensor a, Tensor b, Tensor c, Tensor d, int64_t e, AttentionArgs args),
           (inner, a, b, c, d, e, args))
PROFILE_OP(PROFILE_POINTWISE, activation_forward, (Backend * be, Tensor a, Tensor b, Activation c), (inner, a, b, c))
PROFILE_OP(PROFILE_POINTWISE, activation_backward, (Backend * be, Tensor a, Tensor b, Tensor c, Activation d),
           (inner, a, b, c, d))
PROFILE_OP(PROFILE_LOSS, cross_entropy, (Backend * be, Tensor a, Tensor b, Tensor c, Tensor d, CrossEntropyArgs args),
           (inner, a, b, c, d, args))
PROFILE_OP(PROFILE_LOSS, softcap, (Backend * be, Tensor a, float b), (inner, a, b))
PROFILE_OP(PROFILE_LOSS, weighted_sum, (Backend * be, Tensor a, Tensor b, Tensor c, bool d), (inner, a, b, c, d))
PROFILE_OP(PROFILE_POINTWISE, add, (Backend * be, Tensor a, Tensor b, Tensor c), (inner, a, b, c))
PROFILE_OP(PROFILE_POINTWISE, cast, (Backend * be, Tensor a, Tensor b), (inner, a, b))
PROFILE_OP(PROFILE_OPTIMIZER, sum_squares, (Backend * be, Tensor a, Tensor b), (inner, a, b))
PROFILE_OP(PROFILE_OPTIMIZER, grad_clip, (Backend * be, GradStats *a, Tensor b, Tensor c, ClipArgs args),
           (inner, a, b, c, args))
PROFILE_OP(PROFILE_OPTIMIZER, hash_sum, (Backend * be, uint64_t *a, Tensor b, int64_t c, bool d),
           (inner, a, b, c, d))
PROFILE_OP(PROFILE_OPTIMIZER, adamw,
           (Backend * be, const OptimTensor *a, int64_t b, const GradStats *c, AdamwArgs args),
           (inner, a, b, c, args))
PROFILE_OP(PROFILE_OPTIMIZER, muon_momentum,
           (Backend * be, Tensor a, const OptimTensor *b, int64_t c, const GradStats *d, MuonArgs args),
           (inner, a, b, c, d, args))
PROFILE_OP(PROFILE_OPTIMIZER, frobenius_normalize, (Backend * be, Tensor a, float b), (inner, a, b))
PROFILE_OP(PROFILE_OPTIMIZER, muon_apply,
           (Backend * be, const OptimTensor *a, int64_t b, Tensor c, const GradStats *d, MuonArgs args),
           (inner, a, b, c, d, args))

PROFILE_OP(PROFILE_MATMUL, matmul, (Backend * be, Tensor a, Tensor b, Tensor c, MatmulArgs args), (inner, a, b, c, args))

static void *pass_alloc(Backend *be, size_t bytes, Error *err) {
    Backend *inner = profile_of(be)->inner;
    return inner->alloc(inner, bytes, err);
}
static void pass_free(Backend *be, void *pointer, size_t bytes) {
    Backend *inner = profile_of(be)->inner;
    inner->free(inner, pointer, bytes);
}
static bool pass_synchronize(Backend *be, Error *err) {
    Backend *inner = profile_of(be)->inner;
    return inner->synchronize(inner, err);
}

void profile_init(Profile *profile, Backend *inner) {
    *profile = (Profile){.outer = *inner, .inner = &profile->counting.backend};
    counting_init(&profile->counting, inner);
    Backend *be = &profile->outer;
    be->impl = profile;
    be->alloc = pass_alloc;
    be->free = pass_free;
    be->synchronize = pass_synchronize;
    be->zero = timed_zero;
    be->upload = timed_upload;
    be->download = timed_download;
    be->copy = timed_copy;
    be->matmul = timed_matmul;
    be->bias_backward = timed_bias_backward;
    be->embedding_forward = timed_embedding_forward;
    be->embedding_backward = timed_embedding_backward;
    be->norm_forward = timed_norm_forward;
    be->norm_backward = timed_norm_backward;
    be->qk_forward = timed_qk_forward;
    be->qk_backward = timed_qk_backward;
    be->attention_forward = timed_attention_forward;
    be->attention_backward = timed_attention_backward;
    be->attention_decode = timed_attention_decode;
    be->activation_forward = timed_activation_forward;
    be->activation_backward = timed_activation_backward;
    be->cross_entropy = timed_cross_entropy;
    be->softcap = timed_softcap;
    be->weighted_sum = timed_weighted_sum;
    be->add = timed_add;
    be->cast = timed_cast;
    be->sum_squares = timed_sum_squares;
    be->grad_clip = timed_grad_clip;
    be->hash_sum = timed_hash_sum;
    be->adamw = timed_adamw;
    be->muon_momentum = timed_muon_momentum;
    be->frobenius_normalize = timed_frobenius_normalize;
    be->muon_apply = timed_muon_apply;
}

void profile_reset(Profile *profile) {
    for (int i = 0; i < PROFILE_KINDS; ++i) profile->seconds[i] = 0;
    profile->counting.counts = (Counts){0};
}
