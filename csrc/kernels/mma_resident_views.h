// Launches the forward kernel with one view per warp and resident weights on tensor cores.
#pragma once

#include "../mma_resident_plan.h"

namespace acsconv {

// The forward pass as plan_resident_views() has planned it; arguments as in mma_convolve(), and
// plan.tiles.workspace_bytes() of workspace.
const char* mma_resident_views(const Problem& problem, const ResidentViewsPlan& plan, const void* source,
                               const void* weight, const void* bias, ScalarType weight_type, void* result,
                               void* workspace, void* stream);

}  // namespace acsconv
