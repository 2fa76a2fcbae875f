// machine.h: descriptions of machines, and the time of collectives on them by the alpha-beta model (a latency for each hop
// and a time for each byte). scaling.h predicts training with it. Numbers only.
// Must not know: models, partitions, real devices.
//
// The latencies and the number of hops of a ring are those of NCCL's own cost model (src/graph/tuning.cc, protocol
// LL128 on NVLink): a ring over W ranks on n nodes takes W - 1 hops, n - 1 of them between nodes. All network links of a
// node are used together, so a ring's bandwidth is the smaller of NVLink's and the sum of the node's links.
#ifndef LLMC_MACHINE_H
#define LLMC_MACHINE_H

#include "llmc/base/common.h"
#include "llmc/base/op_types.h"

typedef struct {
    char name[16];
    // One device.
    double peak_fp32, peak_bf16, peak_fp8;   // dense FLOP/s
    double matmul_share, attention_share;    // of the peak, reached by large products and by attention alone
    double memory_bytes_per_second;          // reached by streaming operations
    double kernel_seconds;                   // constant time of an operation
    double memory_bytes, reserve_bytes;      // of the device; of it for driver, libraries and NCCL's buffers
    int64_t slots;  // ranks of a node that compute at full speed together, in one memory; more share them; 0: no limit
    double mfu;     // > 0: measured on one rank, replaces the shares above
    // Links, for each rank and direction, as reached in practice.
    int64_t per_node;
    double node_bytes_per_second, node_latency_seconds;        // between ranks of a node
    double network_bytes_per_second, network_latency_seconds;  // between nodes
    double collective_seconds;  // constant time of a collective
    bool direct;                // MPI: every rank sends to every other directly; else NCCL's algorithms
    double interference;        // seconds by which each second of overlapped communication slows a computation
    double message_seconds;     // of rank 0's hub, for one rank's message and its answer
} Machine;

// name: "h100", "h200", "a100", "b200", "cpu". Errors: another name; the message lists these.
bool machine_find(Machine *out, const char *name, Error *err);
double machine_peak(const Machine *machine, DType dtype);

typedef enum {
    COLLECTIVE_ALL_GATHER,      // ring
    COLLECTIVE_REDUCE_SCATTER,  // ring
    COLLECTIVE_ALL_REDUCE,      // ring or double binary tree, the faster one
    COLLECTIVE_EXCHANGE         // a reduce-scatter in which every rank sends its contribution to every owner
} CollectiveKind;

// Seconds of one collective over `bytes` (of the whole tensor, not of a rank's share) in a group of `world` ranks that
// fill nodes one after the other. 0 for one rank.
double machine_collective_seconds(const Machine *machine, CollectiveKind kind, double bytes, int64_t world);
// Bytes that one rank sends.
double machine_collective_sent(CollectiveKind kind, double bytes, int64_t world);
// Seconds in which rank 0 receives a message from each of the `world` ranks of the launch and answers it.
double machine_hub_seconds(const Machine *machine, int64_t world);
#endif
