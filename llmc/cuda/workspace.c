// workspace.c: the plan of the CUDA backend's scratch memory; see workspace.h. Compiled into the plug-in and into the
// program, which plans without the plug-in.
#include "llmc/cuda/workspace.h"

#include "llmc/cuda/cudnn_workspace.h"

size_t backend_cuda_plan_workspace(WorkspaceShape shape) {
    size_t most = shape.fp8_elems > 0 ? workspace_fp8_bytes(shape.fp8_elems) : WORKSPACE_MATMUL_BYTES;
    // Two partial sums (weight and bias) of the widest tensor.
    most = workspace_max(most, (size_t)CUDA_ROW_BLOCKS * 2 * to_size(shape.widest) * sizeof(float));
    most = workspace_max(most, workspace_attention_bytes(shape.rows, shape.NH));
    if (shape.attention_library)
        most = workspace_max(most, to_size(cudnn_attention_plan_bytes(shape.rows, shape.seq_len, shape.NH, shape.NKV,
                                                                      shape.head_size)));
    most = workspace_max(most, workspace_embedding_bytes(shape.rows, shape.widest));
    // Partial sums of squares of the gradient, of Muon's matrices.
    most = workspace_max(most, CUDA_NORM_BLOCKS * sizeof(double));
    most = workspace_max(most, to_size(shape.tensors) * CUDA_MATRIX_BLOCKS * sizeof(double));
    return most;
}
