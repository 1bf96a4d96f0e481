// Instances of the forward kernel (mma_view_per_warp.cuh) in TF32.
#include "mma_view_per_warp.cuh"

namespace acsconv {

template MmaLauncher view_per_warp_instance<float>(int);

}  // namespace acsconv
