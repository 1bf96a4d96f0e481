// The one place that decides which kernel computes a pass: the tensor cores where their plan takes the
// problem, else the CUDA cores. csrc/ops.cpp calls nothing else. With ACSCONV_PRINT_PLAN=1 every call says
// what was chosen, and why not what comes before it. ACSCONV_FORWARD_WALK=shared, view or resident takes
// that walk in the forward pass on tensor cores wherever it can be taken, to measure one against the other:
// resident is one view per warp with weights that stay in shared memory, which nothing else chooses. On
// compute capability 9.0 ACSCONV_TMA=1 has the Tensor Memory Accelerator load what one view per warp or per
// step computes, where mma_tma_plan.h allows it and the driver takes the tensor map; results are the same to
// the bit. Both are read once in a process, and any other value is an error.
#pragma once

#include <cstddef>

#include "../plan.h"

namespace acsconv {

// A forward pass or a gradient of the input, of ACS or (soft) Soft ACS convolution. `allow_tf32`: float32 may
// be rounded to TF32, as PyTorch's setting for convolutions says.
struct Convolution {
  Problem problem;
  Pass pass;
  bool soft, allow_tf32;
  ScalarType weight_type;  // the problem's, or float32 where takes_float32_weight() allows it
};

// Whether weight and bias of 16-bit volumes may be float32: the tensor-core kernels round them when they
// pack.
bool takes_float32_weight(const Convolution& convolution);

// Bytes of workspace that convolve() needs on the current device.
size_t convolve_workspace(const Convolution& convolution);
// `source`: the input (backward: grad_output); `weight` [C_out, C_in / groups, K_h, K_w], in Soft ACS [3,
// ..], contiguous; `bias` [C_out] or null; `result`: the output (grad_input). Device pointers, a
// cudaStream_t. Returns nullptr once the kernels are queued, else the reason why they were not.
const char* convolve(const Convolution& convolution, const void* source, const void* weight, const void* bias,
                     void* result, void* workspace, void* stream);

// The gradients of weight and bias.
struct WeightGradient {
  Problem problem;
  bool soft, allow_tf32;
  ScalarType gradient_type;  // the problem's, or float32 where writes_float32_gradient() allows it
};

// Whether the gradients of 16-bit volumes may be float32: the tensor-core kernels write their sums as they
// are.
bool writes_float32_gradient(const WeightGradient& gradient);

// Tensors as in simt_backward_weight().
size_t backward_weight_workspace(const WeightGradient& gradient);
const char* backward_weight(const WeightGradient& gradient, const void* grad_output, const void* input,
                            void* grad_weight, void* grad_bias, void* workspace, void* stream);

}  // namespace acsconv
