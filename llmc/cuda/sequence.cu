// sequence.cu: repeated sequences of operations as CUDA graphs. The first time a key occurs its operations run one by
// one, so that libraries can measure and allocate; the second time they are captured; from then on one launch replays
// them all. Must not know what the operations compute.
#include "llmc/cuda/backend_cuda.h"

#include <stdlib.h>

// More than the sequences of a run: shapes of its phases times input sets, times first and later micro-batches.
#define MAX_SEQUENCES 64

typedef enum { SEQUENCE_SEEN, SEQUENCE_CAPTURING, SEQUENCE_CAPTURED } SequenceStage;

typedef struct {
    uint64_t key;
    SequenceStage stage;
    cudaGraphExec_t graph;
} Sequence;

typedef struct CudaSequences {
    bool captures;
    int count;
    Sequence entry[MAX_SEQUENCES];
} CudaSequences;

static Sequence *find_sequence(const Backend *be, uint64_t key) {
    CudaSequences *all = cuda_state(be)->sequences;
    for (int i = 0; i < all->count; ++i)
        if (all->entry[i].key == key) return &all->entry[i];
    return NULL;
}

struct CudaSequences *sequences_open(bool captures) {
    CudaSequences *all = (CudaSequences *)xcalloc(1, sizeof *all);
    all->captures = captures;
    return all;
}
void sequences_forget(Backend *be) {
    CudaSequences *all = cuda_state(be)->sequences;
    for (int i = 0; i < all->count; ++i)
        if (all->entry[i].graph != NULL) cuda_ok(be, cudaGraphExecDestroy(all->entry[i].graph), "cudaGraphExecDestroy");
    all->count = 0;
}
void sequences_close(Backend *be) {
    if (cuda_state(be)->sequences == NULL) return;
    sequences_forget(be);
    free(cuda_state(be)->sequences);
    cuda_state(be)->sequences = NULL;
}
bool sequence_is_capturing(const Backend *be) {
    const CudaSequences *all = cuda_state(be)->sequences;
    for (int i = 0; i < all->count; ++i)
        if (all->entry[i].stage == SEQUENCE_CAPTURING) return true;
    return false;
}

bool sequence_begin_cuda(Backend *be, uint64_t key) {
    CudaSequences *all = cuda_state(be)->sequences;
    if (!all->captures || cuda_failed(be)) return false;
    Sequence *sequence = find_sequence(be, key);
    if (sequence == NULL) {
        // A run with more sequences than places issues the others call by call.
        if (all->count < MAX_SEQUENCES) all->entry[all->count++] = {key, SEQUENCE_SEEN, NULL};
        return false;
    }
    if (sequence->stage == SEQUENCE_CAPTURED) {
        cuda_ok(be, cudaGraphLaunch(sequence->graph, cuda_stream(be)), "cudaGraphLaunch");
        return true;
    }
    sequence->stage = SEQUENCE_CAPTURING;
    // Thread-local: calls of other threads do not affect this capture.
    cuda_ok(be, cudaStreamBeginCapture(cuda_stream(be), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    return false;
}

void sequence_end_cuda(Backend *be, uint64_t key) {
    Sequence *sequence = find_sequence(be, key);
    if (sequence == NULL || sequence->stage != SEQUENCE_CAPTURING) return;
    sequence->stage = SEQUENCE_CAPTURED;
    cudaGraph_t graph = NULL;
    // Also after a failure, to end the stream's capture.
    cuda_ok(be, cudaStreamEndCapture(cuda_stream(be), &graph), "capturing a CUDA graph (graphs=false disables graphs)");
    if (cuda_failed(be)) return;
    if (cuda_ok(be, cudaGraphInstantiate(&sequence->graph, graph, 0), "cudaGraphInstantiate"))
        cuda_ok(be, cudaGraphLaunch(sequence->graph, cuda_stream(be)), "cudaGraphLaunch");
    cuda_ok(be, cudaGraphDestroy(graph), "cudaGraphDestroy");
}
