// scaling.c: see scaling.h. Bytes, seconds of the parts, and the step played through; scaling_print.c has the options
// and the table.
#include "llmc/plan/scaling.h"

#include <math.h>
#include <stdlib.h>

#include "llmc/model/partition.h"
#include "llmc/plan/plan.h"
#include "llmc/ranks/comm.h"

void scaling_job_from_config(ScalingJob *out, const RunConfig *config) {
    const PhaseConfig *phase = &config->phase[0];
    *out = (ScalingJob){.arch = config->arch,
                        .dtype = config->dtype,
                        .master_weights = config->master_weights,
                        .fp8 = config->fp8,
                        .recompute = config->recompute,
                        .optimizer = config->optimizer,
                        .muon_steps = config->muon_steps,
                        .zero = (int)config->zero,
                        .lanes = config->deterministic == DETERMINISTIC_LANES,
                        .reduce_dtype = config->reduce_dtype,
                        .T = phase->seq_len,
                        .B = phase->batch_rows,
                        .batch_tokens = phase->batch_tokens,
                        .loss_chunk_rows = config->loss_chunk_rows,
                        .tensor = 1,
                        .context = 1};
}

// Everything that one prediction is made from.
typedef struct {
    const ScalingJob *job;
    ModelConfig arch;  // a rank's part of the model: tensor parallelism divides heads, feed-forward and vocabulary
    Machine machine;   // as one rank sees it: ranks that share a processor each have a part of it
    Machine group;     // as a group sees it that has every tensor-th rank
    int64_t data_world;  // of the data and context axes: ranks among which gradients are added and state is sharded
    int64_t B, micro_batches;
    double N;        // tokens of a micro-batch on this rank
    double E;        // bytes of an element of the run's dtype
    double tensor;   // ranks that share a block's matrices
    Partition part;  // of the rank that has most
    double params;   // elements of the flat arrays
} Scene;

static double width_of_fc(const ModelConfig *c) { return (double)(c->activation == ACT_SWIGLU ? 2 * c->F : c->F); }

static double chunk_rows(const Scene *s) {
    double fitting = floor((double)PLAN_LOGITS_BYTES / ((double)s->arch.Vp * s->E) / 64) * 64;
    double rows = s->job->loss_chunk_rows > 0 ? (double)s->job->loss_chunk_rows : fmax(fitting, 64);
    return fmin(rows, s->N);
}

// ---------------------------------------------------------------------------------------------------------------
// Bytes

// Of a block for a token: what layout_block_acts of model.c lays out. kept: every block has its own. Tensor
// parallelism would divide the tokens of what is C wide.
static void block_activation_bytes(const Scene *s, double *kept, double *shared) {
    const ModelConfig *c = &s->arch;
    const double C = (double)c->C / s->tensor, qkv = (double)model_config_qkv_width(c), F = (double)c->F;
    const double att = (double)(c->NH * c->HS);
    const double norms = c->norm == NORM_LAYER ? 4 : 2;
    double always = s->E * (qkv + att + C + width_of_fc(c)) + 4 * (norms + (double)c->NH);
    if (c->qk_norm) always += s->E * qkv + 4 * (double)(c->NH + c->NKV);
    const double cheap = s->E * (2 * C + F);
    *kept = s->job->recompute == RECOMPUTE_NONE       ? always + cheap
            : s->job->recompute == RECOMPUTE_NORM_ACT ? always
                                                      : 0;
    *shared = s->job->recompute == RECOMPUTE_NONE       ? 0
              : s->job->recompute == RECOMPUTE_NORM_ACT ? cheap
                                                        : always + cheap;
}

static double activation_bytes(const Scene *s) {
    const ModelConfig *c = &s->arch;
    const double C = (double)c->C / s->tensor, L = (double)c->L, att = (double)(c->NH * c->HS);
    double kept, shared;
    block_activation_bytes(s, &kept, &shared);
    double stream = s->E * C * (L + 2) + 4 * 3;  // h_0..h_L, the final norm
    double wide = fmax((double)c->F, (double)model_config_qkv_width(c) + att);
    double gradients = s->E * (2 * C + wide), whole = s->tensor > 1 ? s->E * 2 * (double)c->C : 0;
    return s->N * (L * kept + shared + stream + gradients + whole);
}

static ScalingBytes count_bytes(const Scene *s) {
    const ScalingJob *job = s->job;
    const Partition *p = &s->part;
    const bool bf16 = job->dtype == DTYPE_BF16;
    const int stage = p->options.stage;
    const double packed = (double)p->packed_elems;
    const double outside = (double)(p->bucket[0].elems + p->bucket[p->buckets - 1].elems);
    const double buffers = 2 * (double)p->largest_block_elems + outside;
    ScalingBytes b = {.weights = s->E * (stage == 3 ? packed : s->params),
                      .gathered = stage == 3 ? s->E * buffers : 0,
                      .masters = bf16 && job->master_weights ? 4 * packed : 0,
                      .gradients = 4 * (stage < 2 ? s->params : buffers + (p->options.lanes ? 0 : packed)),
                      .moments = 4 * (packed + (double)p->v_elems),
                      .activations = activation_bytes(s),
                      .logits = chunk_rows(s) * (double)s->arch.Vp * s->E};
    // One partial sum for each level of the tree of micro-batches.
    if (p->options.lanes) b.gradients += 4 * packed * (floor(log2((double)s->micro_batches)) + 1);
    CommSum how = {.tree = job->lanes, .accumulate = stage >= 2 && !job->lanes, .wire = job->reduce_dtype};
    if (s->data_world > 1)
        b.scratch = (double)comm_scratch_bytes(s->machine.direct ? "mpi" : "nccl", (int)s->data_world,
                                               p->largest_bucket_elems, p->largest_owned_elems, how);
    b.cache = s->E * 2 * (double)(s->arch.L * job->T) * (double)(s->arch.NKV * s->arch.HS);
    b.total =
        b.weights + b.gathered + b.masters + b.gradients + b.moments + b.scratch + b.activations + b.logits + b.cache;
    return b;
}

// ---------------------------------------------------------------------------------------------------------------
// Seconds of the parts

typedef struct {
    double flops;      // of products
    double fp8_flops;  // of them in 8-bit floats
    double attention_flops;
    double bytes;  // that pass between memory and the processor
    double kernels;
} Work;

static Work work_add(Work a, Work b) {
    return (Work){a.flops + b.flops, a.fp8_flops + b.fp8_flops, a.attention_flops + b.attention_flops,
                  a.bytes + b.bytes, a.kernels + b.kernels};
}

static double work_seconds(const Scene *s, Work w) {
    const Machine *m = &s->machine;
    const double peak = machine_peak(m, s->job->dtype);
    double seconds = w.flops / (m->matmul_share * peak) + w.attention_flops / (m->attention_share * peak) +
                     w.bytes / m->memory_bytes_per_second + w.kernels * m->kernel_seconds;
    if (w.fp8_flops > 0) seconds += w.fp8_flops / (m->matmul_share * m->peak_fp8);
    return seconds;
}

// One product of a linear layer, out (N,O) of in (N,I), or an input's gradient, which is the same the other way
// round. Its inputs are read beside its multiplications, its output is written after them. Each 8-bit input is read,
// scaled and written first.
static Work product_work(const Scene *s, double I, double O, bool fp8) {
    double flops = 2 * s->N * I * O, bytes = s->E * s->N * O;
    if (fp8) bytes += (s->E + 1) * (s->N * I + I * O);
    return (Work){.flops = fp8 ? 0 : flops, .fp8_flops = fp8 ? flops : 0, .bytes = bytes, .kernels = fp8 ? 3 : 1};
}
// The gradient of the weight: fp32, added to what is there in all but the first micro-batch where it accumulates.
static Work weight_gradient_work(const Scene *s, double I, double O, bool accumulates, bool fp8) {
    double again = accumulates ? (double)(s->micro_batches - 1) / (double)s->micro_batches : 0;
    Work w = {.bytes = 4 * I * O * (1 + again), .kernels = fp8 ? 3 : 1};
    *(fp8 ? &w.fp8_flops : &w.flops) = 2 * s->N * I * O;
    if (fp8) w.bytes += (s->E + 1) * s->N * (I + O);
    return w;
}

typedef struct {
    double in, out;
} LinearSize;
static void block_linears(const ModelConfig *c, LinearSize out[4]) {
    const double C = (double)c->C, att = (double)(c->NH * c->HS);
    out[0] = (LinearSize){C, (double)model_config_qkv_width(c)};
    out[1] = (LinearSize){att, C};
    out[2] = (LinearSize){C, width_of_fc(c)};
    out[3] = (LinearSize){(double)c->F, C};
}

// Keys that a query sees on average.
static double mean_keys(const ScalingJob *job) {
    double T = (double)job->T, window = (double)job->arch.window;
    return window > 0 && window < T ? window - window * window / (2 * T) : T / 2;
}

// Everything of a block's forward pass that is not a product: norms (read, write), rotation or qk norm, activation of
// a gated layer (else the product's epilogue), attention (reads q, k, v, writes its result).
static Work block_pointwise_forward(const Scene *s) {
    const ModelConfig *c = &s->arch;
    const double C = (double)c->C, qkv = (double)model_config_qkv_width(c), att = (double)(c->NH * c->HS);
    const bool gated = c->activation == ACT_SWIGLU, turned = c->position == POSITION_ROPE || c->qk_norm;
    double elems = 4 * C / s->tensor + (turned ? 2 * qkv : 0) + (gated ? 3 * (double)c->F : 0) + qkv + att;
    return (Work){.attention_flops = 4 * s->N * mean_keys(s->job) * att,
                  .bytes = s->E * s->N * elems,
                  .kernels = 3 + (turned ? 1 : 0) + (gated ? 1 : 0)};
}

// Attention's backward pass makes the scores again: five products where forward has two.
static Work block_pointwise_backward(const Scene *s) {
    const ModelConfig *c = &s->arch;
    const double C = (double)c->C, qkv = (double)model_config_qkv_width(c), att = (double)(c->NH * c->HS);
    const bool gated = c->activation == ACT_SWIGLU, turned = c->position == POSITION_ROPE || c->qk_norm;
    double elems = 8 * C / s->tensor + (turned ? 2 * qkv : 0) + (gated ? 5 * (double)c->F : 0) + 2 * qkv + 3 * att;
    Work w = {.attention_flops = 10 * s->N * mean_keys(s->job) * att,
              .bytes = s->E * s->N * elems,
              .kernels = 5 + (turned ? 1 : 0) + (gated ? 1 : 0)};
    if (s->job->recompute == RECOMPUTE_NORM_ACT) {
        w.bytes += s->E * s->N * (4 * C + width_of_fc(c) + (double)c->F);
        w.kernels += 3;
    }
    return w;
}

static Work block_forward_work(const Scene *s) {
    LinearSize linear[4];
    block_linears(&s->arch, linear);
    Work w = block_pointwise_forward(s);
    for (int i = 0; i < 4; ++i) w = work_add(w, product_work(s, linear[i].in, linear[i].out, s->job->fp8));
    return w;
}

static Work block_backward_work(const Scene *s) {
    LinearSize linear[4];
    block_linears(&s->arch, linear);
    const bool accumulates = s->part.options.stage < 2 && !s->part.options.lanes;
    Work w = block_pointwise_backward(s);
    for (int i = 0; i < 4; ++i) {
        w = work_add(w, product_work(s, linear[i].out, linear[i].in, s->job->fp8));
        w = work_add(w, weight_gradient_work(s, linear[i].in, linear[i].out, accumulates, s->job->fp8));
    }
    return s->job->recompute == RECOMPUTE_BLOCK ? work_add(w, block_forward_work(s)) : w;
}

// Final norm, logits, loss, their gradients: chunk by chunk, all in the forward pass. The loss reads logits twice and
// writes their gradient; the head's gradient grows with every chunk.
static Work head_work(const Scene *s) {
    const double C = (double)s->arch.C, Vp = (double)s->arch.Vp, chunks = ceil(s->N / chunk_rows(s));
    Work w = {.flops = 6 * s->N * C * Vp,
              .bytes = s->E * s->N * (4 * Vp + 3 * C) + chunks * 8 * C * Vp,
              .kernels = 1 + 4 * chunks};
    return w;
}
// The final norm's backward pass; the embedding's both ways (rows of the fp32 gradient are read and written).
static Work head_backward_work(const Scene *s) {
    return (Work){.bytes = s->E * s->N * 3 * (double)s->arch.C, .kernels = 2};
}
static Work embedding_forward_work(const Scene *s) {
    return (Work){.bytes = s->E * s->N * 2 * (double)s->arch.C, .kernels = 1};
}
static Work embedding_backward_work(const Scene *s) {
    return (Work){.bytes = s->N * (s->E + 8) * (double)s->arch.C, .kernels = 3};
}

// The gradient's norm, then moments and weights: AdamW reads gradient, moments and master, writes moments, master and
// weight. Newton-Schulz makes four products of Muon's matrices an iteration.
static double update_seconds(const Scene *s) {
    const ScalingJob *job = s->job;
    const Partition *p = &s->part;
    const double packed = (double)p->packed_elems, v = (double)p->v_elems;
    const bool bf16 = job->dtype == DTYPE_BF16;
    double bytes = packed * (4 + 4 + 8 + (bf16 && !job->master_weights ? 4 : 8 + (bf16 ? 2 : 0))) + v * 8;
    // Partial sums of lanes: two are read, one is written, for each micro-batch but one.
    if (p->options.lanes) bytes += 12 * packed * (double)(s->micro_batches - 1);
    Work w = {.bytes = bytes, .kernels = 4};
    if (job->optimizer == OPTIMIZER_MUON) {
        double hidden = packed - v, flops = 0;
        LinearSize linear[4];
        block_linears(&s->arch, linear);
        double all = 0;
        for (int i = 0; i < 4; ++i) {
            double side = fmin(linear[i].in, linear[i].out), length = fmax(linear[i].in, linear[i].out);
            flops += 2 * side * side * (2 * length + side);
            all += linear[i].in * linear[i].out;
        }
        w.flops = hidden / all * flops * (double)job->muon_steps;
        w.bytes += hidden * s->E * 6 * (double)job->muon_steps;
        w.kernels += hidden / all * 4 * 3 * (double)job->muon_steps;
    }
    return work_seconds(s, w);
}

// ---------------------------------------------------------------------------------------------------------------
// The step, played through

// Collectives inside the forward or backward pass of a block, or of what is outside of them.
typedef struct {
    double seconds, sent;
} Exchanges;

static void trade_add(Exchanges *to, const Machine *m, CollectiveKind kind, double count, double bytes,
                      double ranks) {
    to->seconds += count * machine_collective_seconds(m, kind, bytes, (int64_t)ranks);
    to->sent += count * machine_collective_sent(kind, bytes, (int64_t)ranks);
}

// docs/scaling.md says where they would be. tensor: gathers before qkv_w and fc_w, reduce-scatters after attn_proj_w
// and mlp_proj_w; backward the mirror image, and the gathered inputs again for the weights' gradients. context: keys
// and values gathered; backward again, and their gradients reduced.
static Exchanges block_trade(const Scene *s, bool backward) {
    Exchanges e = {0, 0};
    double rows = s->E * s->N * (double)s->arch.C, context = (double)s->job->context;
    double kv = s->E * s->N * context * 2 * (double)(s->arch.NKV * s->arch.HS);
    trade_add(&e, &s->machine, COLLECTIVE_ALL_GATHER, backward ? 4 : 2, rows, s->tensor);
    trade_add(&e, &s->machine, COLLECTIVE_REDUCE_SCATTER, 2, rows, s->tensor);
    trade_add(&e, &s->group, COLLECTIVE_ALL_GATHER, 1, kv, context);
    if (backward) trade_add(&e, &s->group, COLLECTIVE_REDUCE_SCATTER, 1, kv, context);
    return e;
}
// The embedding's result or its gradient, the head's input or its gradient.
static Exchanges outside_trade(const Scene *s) {
    Exchanges e = {0, 0};
    trade_add(&e, &s->machine, COLLECTIVE_ALL_GATHER, 1, s->E * s->N * (double)s->arch.C, s->tensor);
    return e;
}

typedef struct {
    double now;        // of the computation
    double comm_idle;  // when the collectives issued so far are through
    double comm_busy, sent, interference;
} Clock;

// Issued now, behind the others; returns when it is through.
static double clock_issue(Clock *t, const Scene *s, CollectiveKind kind, double bytes) {
    double seconds = machine_collective_seconds(&s->group, kind, bytes, s->data_world);
    t->comm_idle = fmax(t->comm_idle, t->now) + seconds;
    t->comm_busy += seconds;
    t->sent += machine_collective_sent(kind, bytes, s->data_world);
    return t->comm_idle;
}
// Of the ranks that share a block or a row: the computation waits for it at once.
static void clock_trade(Clock *t, const Exchanges *trade) {
    t->now += trade->seconds;
    t->comm_busy += trade->seconds;
    t->sent += trade->sent;
}
static void clock_wait(Clock *t, double event) { t->now = fmax(t->now, event); }
// A computation, which collectives beside it slow down: of each of their seconds it gets the part that they leave.
static void clock_compute(Clock *t, double seconds) {
    double beside = fmax(t->comm_idle - t->now, 0), left = 1 - t->interference;
    t->now += beside * left <= seconds ? seconds + beside * t->interference : seconds / left;
}

typedef struct {
    double forward_embedding, forward_block, forward_head;
    double backward_head, backward_block, backward_embedding;
} PassSeconds;

static PassSeconds pass_seconds(const Scene *s) {
    PassSeconds p = {work_seconds(s, embedding_forward_work(s)),
                     work_seconds(s, block_forward_work(s)),
                     work_seconds(s, head_work(s)),
                     work_seconds(s, head_backward_work(s)),
                     work_seconds(s, block_backward_work(s)),
                     work_seconds(s, embedding_backward_work(s))};
    const Machine *m = &s->machine;
    if (m->mfu <= 0) return p;
    // Measured on one rank: the parts keep their proportions.
    const double L = (double)s->arch.L;
    double sum = p.forward_embedding + L * p.forward_block + p.forward_head + p.backward_head + L * p.backward_block +
                 p.backward_embedding;
    double measured =
        s->N * model_config_flops_per_token(&s->job->arch, s->job->T) / (m->mfu * machine_peak(m, s->job->dtype));
    double *part = &p.forward_embedding;
    for (int i = 0; i < 6; ++i) part[i] *= measured / sum;
    return p;
}

// One step: forward and backward pass of every micro-batch with the collectives of zero.c.
typedef struct {
    const Scene *scene;
    PassSeconds seconds;
    CollectiveKind reduce;
    Exchanges forward_block, backward_block, outside;
    double *gathered, *reduced;  // [buckets] when the last gather, the last reduction of each is through
    Clock clock;
} Play;

static void play_gather(Play *p, int bucket) {
    const Scene *s = p->scene;
    p->gathered[bucket] =
        clock_issue(&p->clock, s, COLLECTIVE_ALL_GATHER, s->E * (double)s->part.bucket[bucket].elems);
}
static void play_reduce(Play *p, int bucket) {
    const Scene *s = p->scene;
    double wire = s->job->reduce_dtype == DTYPE_BF16 ? 2 : 4, elems = (double)s->part.bucket[bucket].elems;
    p->reduced[bucket] = clock_issue(&p->clock, s, p->reduce, wire * elems);
    // An exchange leaves sums with their owners; where all need them they are sent on, of lanes only the last ones.
    if (s->part.options.stage == 0 && p->reduce == COLLECTIVE_EXCHANGE && !s->part.options.lanes)
        p->reduced[bucket] = clock_issue(&p->clock, s, COLLECTIVE_ALL_GATHER, 4 * elems);
}

// A block's weights are on their way while the block before computes. The two blocks that a pass had last are still
// in the buffers when the next pass begins.
static void play_forward(Play *p, bool first) {
    const Scene *s = p->scene;
    const int last = s->part.buckets - 1;
    const bool gathers = s->part.options.stage == 3;
    if (gathers && first) play_gather(p, 0);
    if (gathers && first) play_gather(p, 1);
    clock_wait(&p->clock, p->gathered[0]);
    clock_compute(&p->clock, p->seconds.forward_embedding);
    clock_trade(&p->clock, &p->outside);
    for (int b = 1; b < last; ++b) {
        if (gathers && (first || (b + 1 > 2 && b + 1 < last))) play_gather(p, b + 1);
        clock_wait(&p->clock, p->gathered[b]);
        clock_compute(&p->clock, p->seconds.forward_block);
        clock_trade(&p->clock, &p->forward_block);
    }
    clock_wait(&p->clock, p->gathered[last]);
    clock_trade(&p->clock, &p->outside);
    clock_compute(&p->clock, p->seconds.forward_head);
}

static void play_backward(Play *p, bool final) {
    const Scene *s = p->scene;
    const int last = s->part.buckets - 1, stage = s->part.options.stage;
    const bool lanes = s->part.options.lanes;
    clock_trade(&p->clock, &p->outside);
    clock_compute(&p->clock, p->seconds.backward_head);
    if (final || lanes) play_reduce(p, last);
    for (int b = last - 1; b >= 1; --b) {
        if (stage == 3 && b > 1 && b - 1 < last - 2) play_gather(p, b - 1);
        clock_wait(&p->clock, p->gathered[b]);
        // Two buffers of gradients take turns.
        if (stage >= 2 && b + 2 < last) clock_wait(&p->clock, p->reduced[b + 2]);
        clock_compute(&p->clock, p->seconds.backward_block);
        clock_trade(&p->clock, &p->backward_block);
        if (final || lanes || stage >= 2) play_reduce(p, b);
    }
    clock_trade(&p->clock, &p->outside);
    clock_compute(&p->clock, p->seconds.backward_embedding);
    if (final || lanes) play_reduce(p, 0);
}

static void play_step(Play *p) {
    const Scene *s = p->scene;
    const int stage = s->part.options.stage;
    const bool lanes = s->part.options.lanes;
    // Weights that the update before has changed.
    for (int b = 0; s->data_world > 1 && (stage == 1 || stage == 2) && b < s->part.buckets; ++b) play_gather(p, b);
    for (int64_t k = 0; k < s->micro_batches; ++k) {
        play_forward(p, k == 0);
        play_backward(p, k == s->micro_batches - 1);
        if (lanes) clock_wait(&p->clock, p->clock.comm_idle);  // the sums of a lane are added to others'
    }
    for (int b = 0; lanes && stage == 0 && b < s->part.buckets; ++b)
        clock_issue(&p->clock, s, COLLECTIVE_ALL_GATHER, 4 * (double)s->part.bucket[b].elems);
    clock_wait(&p->clock, p->clock.comm_idle);
}

// The sums of the losses, one a micro-batch, and of the squares of every rank's part of every bucket: each added in
// the tree over ranks, then sent to all.
static double agreement_seconds(const Scene *s, const Machine *machine, int64_t world) {
    double losses = 8 * (double)s->micro_batches, squares = 8 * (double)s->part.segments, seconds = 0;
    if (s->part.options.stage == 0) squares = 0;
    for (int i = 0; i < 2; ++i) {
        double bytes = i == 0 ? losses : squares;
        if (bytes == 0) continue;
        seconds += machine_collective_seconds(machine, COLLECTIVE_EXCHANGE, bytes, world);
        seconds += machine_collective_seconds(machine, COLLECTIVE_ALL_GATHER, bytes, world);
    }
    return seconds;
}

static double one_rank_seconds(const Scene *s, const PassSeconds *p) {
    double blocks = (double)s->arch.L * (p->forward_block + p->backward_block);
    return (double)s->micro_batches *
           (p->forward_embedding + p->forward_head + p->backward_head + p->backward_embedding + blocks);
}

// ---------------------------------------------------------------------------------------------------------------

// The batch stays. Where there are more ranks than micro-batches these get fewer rows; where there are more than
// rows, the batch grows to a row for each.
static void divide_batch(Scene *s, ScalingPrediction *out, int64_t replicas) {
    const ScalingJob *job = s->job;
    int64_t rows = max_i64(job->batch_tokens / job->T, replicas);
    s->B = min_i64(job->B, rows / replicas);
    s->micro_batches = div_up(rows, replicas * s->B);
    s->N = (double)(s->B * job->T) / (double)job->context;
    out->B = s->B;
    out->micro_batches = s->micro_batches;
    out->batch_tokens = rows * job->T;
}

// Ranks that are more than a node's processors share them; its memory they share in any case.
static Machine machine_of_rank(const Machine *machine, int64_t world) {
    Machine m = *machine;
    if (m.slots == 0) return m;
    double ranks = (double)min_i64(world, m.per_node), part = fmin(1, (double)m.slots / ranks);
    m.peak_fp32 *= part;
    m.peak_bf16 *= part;
    m.memory_bytes_per_second *= part;
    m.node_bytes_per_second *= part;
    m.memory_bytes /= ranks;
    return m;
}

// A rank's part of the model; key and value heads that are too few are on several ranks.
static ModelConfig part_of_model(const ModelConfig *arch, int64_t tensor) {
    ModelConfig part = *arch;
    part.NH /= tensor;
    part.NKV = max_i64(1, arch->NKV / tensor);
    part.F /= tensor;
    part.V = div_up(arch->V, tensor);
    part.Vp = round_up(part.V, MODEL_VOCAB_MULTIPLE);
    return part;
}

static bool check_parallel(const ScalingJob *job, const Machine *machine, int64_t world, Error *err) {
    if (job->tensor > machine->per_node || job->arch.NH % job->tensor != 0 || job->arch.F % job->tensor != 0)
        return error_set(
            err,
            "tensor: expected a divisor of %lld heads and of ffn %lld, at most the %lld ranks of a node, "
            "found %lld",
            (long long)job->arch.NH, (long long)job->arch.F, (long long)machine->per_node, (long long)job->tensor);
    if (machine->per_node % job->tensor != 0 || job->T % job->context != 0 ||
        world % (job->tensor * job->context) != 0)
        return error_set(err,
                         "world: expected a multiple of tensor %lld times context %lld, which divide the %lld ranks "
                         "of a node and seq_len %lld, found %lld",
                         (long long)job->tensor, (long long)job->context, (long long)machine->per_node,
                         (long long)job->T, (long long)world);
    return true;
}

static void play(Play *p, const Scene *s) {
    *p = (Play){.scene = s, .seconds = pass_seconds(s), .clock.interference = s->machine.interference};
    const bool exchange = s->job->lanes || s->job->reduce_dtype == DTYPE_BF16;
    p->reduce = exchange                     ? COLLECTIVE_EXCHANGE
                : s->part.options.stage == 0 ? COLLECTIVE_ALL_REDUCE
                                             : COLLECTIVE_REDUCE_SCATTER;
    p->forward_block = block_trade(s, false);
    p->backward_block = block_trade(s, true);
    p->outside = outside_trade(s);
    p->gathered = xcalloc((size_t)s->part.buckets, sizeof *p->gathered);
    p->reduced = xcalloc((size_t)s->part.buckets, sizeof *p->reduced);
    play_step(p);
    free(p->gathered);
    free(p->reduced);
}

bool scaling_predict(ScalingPrediction *out, const ScalingJob *job, const Machine *machine, int64_t world,
                     Error *err) {
    CHECK(world >= 1 && world <= SCALING_MAX_WORLD, "world=%lld", (long long)world);
    *out = (ScalingPrediction){.world = world, .nodes = div_up(world, machine->per_node)};
    if (!check_parallel(job, machine, world, err)) return false;
    Scene s = {.job = job,
               .arch = part_of_model(&job->arch, job->tensor),
               .machine = machine_of_rank(machine, world),
               .data_world = world / job->tensor,
               .E = job->dtype == DTYPE_BF16 ? 2 : 4,
               .tensor = (double)job->tensor};
    s.group = s.machine;
    s.group.per_node /= job->tensor;
    PartitionOptions options = {.data.world = (int)s.data_world,
                                .stage = s.data_world > 1 ? job->zero : 0,
                                .lanes = job->lanes,
                                .muon = job->optimizer == OPTIMIZER_MUON};
    if (!partition_check(&options, err)) return false;
    ParamTable params;
    params_build(&params, &s.arch);
    s.params = (double)params.total_elems;
    options.data.rank = partition_fullest_rank(&params, &options);
    partition_build(&s.part, &params, &options);
    divide_batch(&s, out, world / (job->tensor * job->context));
    Play p;
    play(&p, &s);

    out->bytes = count_bytes(&s);
    out->fits = out->bytes.total + s.machine.reserve_bytes <= s.machine.memory_bytes;
    out->compute_seconds = one_rank_seconds(&s, &p.seconds);
    out->exposed_seconds = fmax(0, p.clock.now - out->compute_seconds);  // the same sum in another order
    out->comm_seconds = p.clock.comm_busy;
    out->comm_bytes = p.clock.sent;
    out->update_seconds = update_seconds(&s);
    out->agree_seconds = agreement_seconds(&s, machine, world);
    out->hub_seconds = machine_hub_seconds(machine, world);
    // A GPU still computes the step before meanwhile.
    if (machine->direct) out->agree_seconds += out->hub_seconds;
    else out->agree_seconds += fmax(0, out->hub_seconds - p.clock.now);
    out->step_seconds = p.clock.now + out->update_seconds + out->agree_seconds;
    out->tokens_per_second = (double)out->batch_tokens / out->step_seconds;
    double processors = (double)(machine->slots > 0 ? min_i64(world, machine->slots * out->nodes) : world);
    out->mfu = out->tokens_per_second * model_config_flops_per_token(&job->arch, job->T) /
               (processors * machine_peak(machine, job->dtype));
    partition_free(&s.part);
    params_free(&params);
    return true;
}
