// Forward ACS convolution on the CPU, all three views in one pass over the input. Knows nothing of torch.
#pragma once

#include "../problem.h"
#include "threads.h"

namespace acsconv {

// input, weight, bias and output are the tensors that `problem` describes; bias may be null. float32 and
// float64. The result does not depend on the number of threads.
void cpu_forward(const Problem& problem, const void* input, const void* weight, const void* bias,
                 void* output, const Threads& threads);

}  // namespace acsconv
