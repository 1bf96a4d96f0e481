// Launches the tensor-core kernels: ACS forward, its gradient of the input, and both passes of Soft ACS.
#pragma once

#include "../mma_plan.h"

namespace acsconv {

// A pass as plan_mma() has planned it: packs the weights, then computes. `source` is the input (backward: the
// gradient of the output), `result` the output (the gradient of the input), `weight` [C_out, C_in, K, K], in
// Soft ACS [3, C_out, C_in, K, K], `bias` [C_out] or null, both of dtype `weight_type`: the problem's or
// float32. `workspace`: plan.workspace_bytes() of device memory, aligned to 16 bytes. Returns nullptr once
// the kernels are queued, else the reason why they were not.
const char* mma_convolve(const Problem& problem, const MmaPlan& plan, Pass pass, bool soft,
                         const void* source, const void* weight, const void* bias, ScalarType weight_type,
                         void* result, void* workspace, void* stream);

}  // namespace acsconv
