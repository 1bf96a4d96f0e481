// Instances of the kernel of one view per step with TMA (mma_tma_view_per_step.cuh) in TF32.
#include "mma_tma_view_per_step.cuh"

namespace acsconv {

template MmaLauncher tma_view_per_step_instance<float>(int, bool);

}  // namespace acsconv
