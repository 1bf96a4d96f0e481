// Launches the forward pass of layers with 1 to 4 input channels.
#pragma once

#include "../few_channels_plan.h"
#include "../problem.h"

namespace acsconv {

// Arguments as those of simt_forward(), for a problem that `plan` does not reject. Called by simt_gather.cu.
const char* simt_few_channels(const Problem& problem, const FewChannelsPlan& plan, const void* input,
                              const void* weight, const void* bias, void* output, void* stream);

}  // namespace acsconv
