// 1x1 layers, for the passes of passes.h: tensors as there, for problems of which is_pointwise() is true.
#pragma once

#include "../problem.h"
#include "threads.h"

namespace acsconv {

// Whether the kernel of 1x1 layers computes this: one group, nothing read outside the volume; of the
// gradients of the input (`mirrored`) those with stride 1, of bfloat16 beside tiles those of narrow layers.
bool is_pointwise(const Problem& problem, bool soft, bool mirrored);

// Forward, or with `mirrored` the gradient of the input. bias may be null.
void pointwise_gather(const Problem& problem, bool mirrored, const void* source, const void* weight,
                      const void* bias, void* target, const Threads& threads);

}  // namespace acsconv
