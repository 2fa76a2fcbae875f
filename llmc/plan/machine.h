// machine.h: descriptions of machines, and how long collectives take on them: the alpha-beta model (a start-up time
// for each hop and a time for each byte). scaling.h predicts training with it. Numbers only; opens nothing.
//
// The latencies and the count of hops of a ring are those of NCCL's own cost model (src/graph/tuning.cc, protocol
// LL128 on NVLink): a ring over W ranks on n nodes takes W - 1 hops, n - 1 of them between nodes. Every node's links
// to the network work together, so a ring's bandwidth is the smaller of NVLink's and the node's share of the network.
#ifndef LLMC_MACHINE_H
#define LLMC_MACHINE_H

#include "llmc/base/common.h"
#include "llmc/base/op_types.h"

typedef struct {
    char name[16];
    // One device.
    double peak_fp32, peak_bf16, peak_fp8;   // dense FLOP/s
    double matmul_share, attention_share;    // of the peak that large products and attention reach by themselves
    double memory_bytes_per_second;          // that streaming operations reach
    double kernel_seconds;                   // of an operation, beyond its work
    double memory_bytes, reserve_bytes;      // of the device; of them for driver, libraries and NCCL's buffers
    int64_t slots;  // ranks of a node that compute at full speed side by side, with one memory; more share; 0: all do
    double mfu;     // > 0: measured on one rank, instead of the shares above
    // Links, for each rank and direction, as reached.
    int64_t per_node;
    double node_bytes_per_second, node_latency_seconds;        // between ranks of a node
    double network_bytes_per_second, network_latency_seconds;  // between nodes
    double collective_seconds;  // to start one
    bool direct;                // over MPI: every rank sends every other what that one needs; else NCCL's algorithms
    double interference;        // seconds that a computation loses to each second of communication beside it
    double message_seconds;     // of rank 0's hub, for one rank's message and its answer
} Machine;

// "h100", "h200", "a100", "b200", "cpu". Errors list the known.
bool machine_find(Machine *out, const char *name, Error *err);
double machine_peak(const Machine *machine, DType dtype);

typedef enum {
    COLLECTIVE_ALL_GATHER,      // ring
    COLLECTIVE_REDUCE_SCATTER,  // ring
    COLLECTIVE_ALL_REDUCE,      // ring, or a double binary tree where that is faster
    COLLECTIVE_EXCHANGE         // a reduce-scatter in which every rank sends every owner its contribution
} CollectiveKind;

// Seconds of one collective over `bytes` (of the whole tensor, not of a rank's share) in a group of `world` ranks that
// fill nodes one after the other. 0 for one rank.
double machine_collective_seconds(const Machine *machine, CollectiveKind kind, double bytes, int64_t world);
// Bytes that one rank sends.
double machine_collective_sent(CollectiveKind kind, double bytes, int64_t world);
// Rank 0 takes a message from every rank of the launch, of which there are `world`, and answers each.
double machine_hub_seconds(const Machine *machine, int64_t world);
#endif
