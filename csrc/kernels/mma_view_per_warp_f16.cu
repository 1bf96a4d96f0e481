// Instances of the forward kernel (mma_view_per_warp.cuh) in float16.
#include "mma_view_per_warp.cuh"

namespace acsconv {

template MmaLauncher view_per_warp_instance<Float16>(int);

}  // namespace acsconv
