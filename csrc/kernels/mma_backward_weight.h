// Launches the gradients of weight and bias on tensor cores, for the problems that plan_mma_backward_weight()
// (csrc/mma_weight_plan.h) does not reject. Deterministic: parts of the voxels are summed in a fixed order.
#pragma once

#include "../mma_weight_plan.h"

namespace acsconv {

// As simt_backward_weight(): grad_output and input of any strides and alignment (fastest: channels-last,
// input channels a multiple of 8, in float32 of 4, output channels of 4); grad_weight [C_out, C_in, K, K],
// with `soft` [3, C_out, C_in, K, K], and grad_bias [C_out], each contiguous or null, in gradient_type: the
// dtype of the problem, or float32, which no sum is rounded for. float32 is multiplied as TF32. `workspace`:
// of the plan's size. Returns nullptr once the kernels are queued, else the reason why they were not.
const char* mma_backward_weight(const Problem& problem, const MmaWeightPlan& plan, bool soft,
                                const void* grad_output, const void* input, void* grad_weight,
                                void* grad_bias, ScalarType gradient_type, void* workspace, void* stream);

}  // namespace acsconv
