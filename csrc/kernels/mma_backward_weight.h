// Launches the gradients of weight and bias on tensor cores, for the problems that plan_mma_backward_weight()
// (csrc/mma_weight_plan.h) does not reject. Deterministic: parts of the voxels are summed in a fixed order.
#pragma once

#include <cstddef>

#include "../problem.h"

namespace acsconv {

// Bytes of workspace that mma_backward_weight() needs on the current device: at most 64 MiB.
size_t mma_backward_weight_workspace(const Problem& problem, bool soft);

// As simt_backward_weight(), for float16 and bfloat16: grad_output and input of any strides and alignment
// (fastest: channels-last, input channels a multiple of 8, output channels of 4); grad_weight [C_out, C_in,
// K, K], with `soft` [3, C_out, C_in, K, K], and grad_bias [C_out], each contiguous or null, in
// gradient_type: the dtype of the problem, or float32, which no sum is rounded for. Returns nullptr once the
// kernels are queued, else the reason why they were not.
const char* mma_backward_weight(const Problem& problem, bool soft, const void* grad_output, const void* input,
                                void* grad_weight, void* grad_bias, ScalarType gradient_type, void* workspace,
                                void* stream);

}  // namespace acsconv
