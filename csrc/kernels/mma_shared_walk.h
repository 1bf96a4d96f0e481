// Launches the forward kernel of narrow layers on tensor cores.
#pragma once

#include "../mma_shared_walk_plan.h"

namespace acsconv {

// The forward pass as plan_on_tensor_cores() has planned it with the shared walk; arguments as in
// mma_convolve(), and plan.tiles.workspace_bytes() of workspace.
const char* mma_shared_walk(const Problem& problem, const SharedWalkPlan& plan, const void* source,
                            const void* weight, const void* bias, ScalarType weight_type, void* result,
                            void* workspace, void* stream);

}  // namespace acsconv
