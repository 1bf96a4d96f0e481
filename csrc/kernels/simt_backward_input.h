// Launches the gradient of the input on CUDA cores: one launch writes all of grad_input, whatever the
// geometry.
#pragma once

#include "../problem.h"

namespace acsconv {

// `problem` is that of the forward pass, with the strides of grad_output as `output` and of grad_input as
// `input`. Pointers are device pointers, `stream` is a cudaStream_t. Returns nullptr once the kernel is
// queued, else the reason why it was not.
const char* simt_backward_input(const Problem& problem, const void* grad_output, const void* weight,
                                void* grad_input, void* stream);

// The same for Soft ACS convolution; `kernels` and `workspace` as in simt_soft_forward().
const char* simt_soft_backward_input(const Problem& problem, const void* grad_output, const void* kernels,
                                     void* grad_input, void* workspace, void* stream);

}  // namespace acsconv
