// machine.c: see machine.h.
#include "llmc/plan/machine.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define GIB 1073741824.0

// GPUs: peaks, memory and links as published by NVIDIA (SXM boards, dense products). The shares of them that are reached
// are fitted or taken from NCCL's tests, see docs/scaling.md. cpu: measured, see there.
#define NVIDIA_NODE                                                                                      \
    .kernel_seconds = 3e-6, .reserve_bytes = 3 * GIB, .per_node = 8, .node_latency_seconds = 2e-6,       \
    .network_latency_seconds = 6e-6, .collective_seconds = 14e-6, .interference = 0.1, .message_seconds = 10e-6
static const Machine MACHINES[] = {
    {.name = "h100",
     .peak_fp32 = 67e12,
     .peak_bf16 = 989e12,
     .peak_fp8 = 1979e12,
     .matmul_share = 0.72,
     .attention_share = 0.40,
     .memory_bytes_per_second = 0.85 * 3.35e12,
     .memory_bytes = 79 * GIB,
     .node_bytes_per_second = 360e9,
     .network_bytes_per_second = 0.9 * 50e9,
     NVIDIA_NODE},
    {.name = "h200",
     .peak_fp32 = 67e12,
     .peak_bf16 = 989e12,
     .peak_fp8 = 1979e12,
     .matmul_share = 0.72,
     .attention_share = 0.40,
     .memory_bytes_per_second = 0.85 * 4.8e12,
     .memory_bytes = 139 * GIB,
     .node_bytes_per_second = 360e9,
     .network_bytes_per_second = 0.9 * 50e9,
     NVIDIA_NODE},
    {.name = "a100",
     .peak_fp32 = 19.5e12,
     .peak_bf16 = 312e12,
     .peak_fp8 = 0,
     .matmul_share = 0.80,
     .attention_share = 0.45,
     .memory_bytes_per_second = 0.85 * 2.04e12,
     .memory_bytes = 79 * GIB,
     .node_bytes_per_second = 230e9,
     .network_bytes_per_second = 0.9 * 25e9,
     NVIDIA_NODE},
    {.name = "b200",
     .peak_fp32 = 75e12,
     .peak_bf16 = 2250e12,
     .peak_fp8 = 4500e12,
     .matmul_share = 0.72,
     .attention_share = 0.40,
     .memory_bytes_per_second = 0.85 * 8e12,
     .memory_bytes = 178 * GIB,
     .node_bytes_per_second = 700e9,
     .network_bytes_per_second = 0.9 * 50e9,
     NVIDIA_NODE},
    {.name = "cpu",
     .peak_fp32 = 117e9,
     .peak_bf16 = 235e9,
     .matmul_share = 0.88,
     .attention_share = 0.35,
     .memory_bytes_per_second = 30e9,
     .kernel_seconds = 5e-6,
     .memory_bytes = 24 * GIB,
     .slots = 2,
     .per_node = 1 << 20,
     .node_bytes_per_second = 4e9,
     .node_latency_seconds = 20e-6,
     .network_bytes_per_second = 4e9,
     .network_latency_seconds = 20e-6,
     .collective_seconds = 100e-6,
     .direct = true,
     .interference = 1,
     .message_seconds = 30e-6},
};
#define MACHINE_COUNT ((int)(sizeof MACHINES / sizeof MACHINES[0]))

bool machine_find(Machine *out, const char *name, Error *err) {
    char known[128];
    size_t used = 0;
    for (int i = 0; i < MACHINE_COUNT; ++i) {
        if (strcmp(MACHINES[i].name, name) == 0) {
            *out = MACHINES[i];
            return true;
        }
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "", MACHINES[i].name);
    }
    return error_set(err, "gpu: expected one of %s, found \"%s\"", known, name);
}

double machine_peak(const Machine *machine, DType dtype) {
    return dtype == DTYPE_BF16 ? machine->peak_bf16 : machine->peak_fp32;
}

// ---------------------------------------------------------------------------------------------------------------
// Collectives

// Bandwidth of a ring or tree: its traffic between nodes uses all network links of a node.
static double ring_bandwidth(const Machine *m, int64_t world) {
    if (world <= m->per_node) return m->node_bytes_per_second;
    return fmin(m->node_bytes_per_second, (double)m->per_node * m->network_bytes_per_second);
}

// W - 1 hops, of which n - 1 are between the n nodes.
static double ring_seconds(const Machine *m, double bytes, int64_t world) {
    double nodes = (double)div_up(world, m->per_node), hops = (double)(world - 1);
    double latency = (hops - (nodes - 1)) * m->node_latency_seconds + (nodes - 1) * m->network_latency_seconds;
    return latency + bytes * hops / (double)world / ring_bandwidth(m, world);
}

// Up and down: a chain inside the node, a double binary tree between nodes, pipelined; NCCL's model takes 0.92 of the
// ring's bandwidth.
static double tree_seconds(const Machine *m, double bytes, int64_t world) {
    double nodes = (double)div_up(world, m->per_node), local = (double)min_i64(world, m->per_node);
    double latency = (local - 1) * m->node_latency_seconds + ceil(log2(nodes)) * m->network_latency_seconds;
    return 2 * (latency + bytes / (0.92 * ring_bandwidth(m, world)));
}

// Every rank sends to every other: traffic between nodes goes through the rank's own link, unreduced.
static double exchange_seconds(const Machine *m, double bytes, int64_t world) {
    double local = (double)min_i64(world, m->per_node), share = bytes / (double)world;
    double away = (double)world - local;
    return (double)(world - 1) * m->node_latency_seconds + (away > 0 ? m->network_latency_seconds : 0) +
           fmax((local - 1) * share / m->node_bytes_per_second, away * share / m->network_bytes_per_second);
}

double machine_collective_seconds(const Machine *machine, CollectiveKind kind, double bytes, int64_t world) {
    if (world <= 1) return 0;
    double start = machine->collective_seconds;
    if (machine->direct) {
        double once = start + exchange_seconds(machine, bytes, world);
        return kind == COLLECTIVE_ALL_REDUCE ? 2 * once : once;
    }
    double ring = ring_seconds(machine, bytes, world);
    switch (kind) {
    case COLLECTIVE_ALL_GATHER:
    case COLLECTIVE_REDUCE_SCATTER: return start + ring;
    case COLLECTIVE_ALL_REDUCE: return start + fmin(2 * ring, tree_seconds(machine, bytes, world));
    case COLLECTIVE_EXCHANGE: return start + exchange_seconds(machine, bytes, world);
    }
    CHECK(false, "collective %d", (int)kind);
    return 0;
}

double machine_collective_sent(CollectiveKind kind, double bytes, int64_t world) {
    double sent = bytes * (double)(world - 1) / (double)world;
    return kind == COLLECTIVE_ALL_REDUCE ? 2 * sent : sent;
}

double machine_hub_seconds(const Machine *machine, int64_t world) {
    if (world <= 1) return 0;
    double latency = world <= machine->per_node ? machine->node_latency_seconds : machine->network_latency_seconds;
    return 2 * latency + (double)world * machine->message_seconds;
}
