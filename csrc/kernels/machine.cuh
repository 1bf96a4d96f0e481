// The current device as the plans see it.
#pragma once

#include "../common/launch.cuh"
#include "../plan.h"

namespace acsconv {

inline Machine this_machine() { return {multiprocessors(), compute_capability(), block_shared_bytes()}; }

}  // namespace acsconv
