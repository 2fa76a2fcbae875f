// comm.h: what the ranks of a run say to each other. One rank has nothing to say; the loop reads the same for any
// number.
#ifndef LLMC_COMM_H
#define LLMC_COMM_H

#include "llmc/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int rank, world;
} Comm;

// The only launch known so far is a single process.
void comm_init(Comm *comm);
double comm_sum_scalar(Comm *comm, double value);
// fp32 or fp64, in place: the sum over all ranks, in rank order.
void comm_all_reduce_sum(Comm *comm, Tensor values);

#ifdef __cplusplus
}
#endif
#endif
