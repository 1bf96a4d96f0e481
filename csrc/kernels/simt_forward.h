// Launches the forward pass on CUDA cores: ACS convolution in one launch, for float64, float32, float16 and
// bfloat16, any geometry and any strides. Knows nothing of torch.
#pragma once

#include <cstddef>

#include "../plan.h"
#include "../problem.h"

namespace acsconv {

// input, weight, bias and output are device pointers to the tensors that `problem` describes; bias may be
// null. `stream` is a cudaStream_t. Returns nullptr once the kernel is queued, else the reason why it was
// not.
const char* simt_forward(const Problem& problem, const void* input, const void* weight, const void* bias,
                         void* output, void* stream);

// Bytes of workspace that a pass of Soft ACS convolution needs, possibly 0: for its folded kernels, which are
// as large as the kernels.
size_t simt_soft_workspace(const Problem& problem, Pass pass);

// Soft ACS convolution: every output channel is the sum of all three views. `kernels` is [3, C_out, C_in /
// groups, K_h, K_w], a weight per view; problem.split is not used.
const char* simt_soft_forward(const Problem& problem, const void* input, const void* kernels,
                              const void* bias, void* output, void* workspace, void* stream);

}  // namespace acsconv
