// Instances of the kernel of one view per step (mma_view_per_step.cuh) in TF32.
#include "mma_view_per_step.cuh"

namespace acsconv {

template MmaLauncher view_per_step_instance<float>(int, bool);

}  // namespace acsconv
