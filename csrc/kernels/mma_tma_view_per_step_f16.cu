// Instances of the kernel of one view per step with TMA (mma_tma_view_per_step.cuh) in float16.
#include "mma_tma_view_per_step.cuh"

namespace acsconv {

template MmaLauncher tma_view_per_step_instance<Float16>(int, bool);

}  // namespace acsconv
