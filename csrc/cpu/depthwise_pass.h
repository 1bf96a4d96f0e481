// The passes of depthwise layers, for those of passes.h: tensors as there, for problems of which
// is_depthwise() is true.
#pragma once

#include "../problem.h"
#include "threads.h"

namespace acsconv {

// Forward, or with `mirrored` the gradient of the input. bias may be null.
void depthwise_gather(const Problem& problem, bool mirrored, const void* source, const void* weight,
                      const void* bias, void* target, const Threads& threads);

// grad_bias may be null.
void depthwise_backward_weight(const Problem& problem, const void* grad_output, const void* input,
                               void* grad_weight, void* grad_bias, ScalarType gradient_type,
                               const Threads& threads);

}  // namespace acsconv
