// Launches the gradients of weight and bias where every input channel is a group.
#pragma once

#include "../plan.h"
#include "../problem.h"

namespace acsconv {

// Arguments as those of simt_backward_weight(), for a problem of which plan_backward_weight() does not say
// why it is `not_depthwise`. Called by simt_backward_weight.cu.
const char* simt_depthwise_weight(const Problem& problem, const WeightPlan& plan, const void* grad_output,
                                  const void* input, void* grad_weight, void* grad_bias, void* workspace,
                                  void* stream);

}  // namespace acsconv
