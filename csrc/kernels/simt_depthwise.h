// Launches the depthwise kernel: forward pass or gradient of the input where every input channel is a group.
#pragma once

#include "../plan.h"
#include "../problem.h"

namespace acsconv {

// Arguments as those of simt_forward(), or of simt_backward_input() with no bias, for a problem of which
// plan_gather() does not say why it is `not_depthwise`. Called by simt_gather.cu.
const char* simt_depthwise(const Problem& problem, Pass pass, bool channels_inner, const void* source,
                           const void* weight, const void* bias, void* destination, void* stream);

}  // namespace acsconv
