// Launches the gradients of weight and bias on CUDA cores. Deterministic: the voxels are cut into a fixed
// number of parts, whose sums are added in a fixed order.
#pragma once

#include <cstddef>

#include "../problem.h"

namespace acsconv {

// Bytes of workspace that simt_backward_weight() needs on the current device: at most 64 MiB, possibly 0.
size_t simt_backward_weight_workspace(const Problem& problem, bool soft);

// `problem` is that of the forward pass, with the strides of grad_output as `output`. grad_weight [C_out,
// C_in / groups, K_h, K_w] and grad_bias [C_out] are contiguous; either may be null, and is then not
// computed. With `soft`, grad_weight is that of the views' kernels, [3, C_out, C_in / groups, K_h, K_w], and
// problem.split is not used. Pointers are device pointers, `stream` is a cudaStream_t. Returns nullptr once
// the kernels are queued, else the reason why they were not.
const char* simt_backward_weight(const Problem& problem, bool soft, const void* grad_output,
                                 const void* input, void* grad_weight, void* grad_bias, void* workspace,
                                 void* stream);

}  // namespace acsconv
