// activation.h: the elementwise activations and their derivatives in fp32, one definition for all kernels that apply
// them (pointwise.cu, the epilogues of matmul.cu). Gated activations are not elementwise and are in pointwise.cu.
#ifndef LLMC_CUDA_ACTIVATION_H
#define LLMC_CUDA_ACTIVATION_H

#include "llmc/cuda/gpu.h"
#include "llmc/base/op_types.h"

#define GELU_SCALE 0.7978845608028654f  // sqrt(2/pi)
#define GELU_CUBIC 0.044715f

// 0 far below zero (exp overflows to infinity, whose reciprocal is 0) and 1 far above.
static __device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

// (1 + tanh(u)) / 2 is sigmoid(2u): one exponential and one reciprocal, half the cost of tanhf. At memory speed
// there is time for about 30 instructions per element.
static __device__ __forceinline__ float gelu(float x) {
    return x * sigmoid(2.0f * GELU_SCALE * (x + GELU_CUBIC * x * x * x));
}
static __device__ __forceinline__ float gelu_grad(float x) {
    float s = sigmoid(2.0f * GELU_SCALE * (x + GELU_CUBIC * x * x * x));
    return s + s * (1.0f - s) * x * (2.0f * GELU_SCALE) * (1.0f + 3.0f * GELU_CUBIC * x * x);
}
// Both propagate NaN.
static __device__ __forceinline__ float relu2(float x) { return x <= 0.0f ? 0.0f : x * x; }
static __device__ __forceinline__ float relu2_grad(float x) { return x <= 0.0f ? 0.0f : 2.0f * x; }

// kind is the same for a whole kernel: the branch is uniform. ACT_NONE is the identity.
static __device__ __forceinline__ float activation_apply(Activation kind, float x) {
    return kind == ACT_GELU ? gelu(x) : kind == ACT_RELU2 ? relu2(x) : x;
}
static __device__ __forceinline__ float activation_derivative(Activation kind, float x) {
    return kind == ACT_GELU ? gelu_grad(x) : kind == ACT_RELU2 ? relu2_grad(x) : 1.0f;
}

#endif
