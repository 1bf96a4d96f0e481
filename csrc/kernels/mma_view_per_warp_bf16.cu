// Instances of the forward kernel (mma_view_per_warp.cuh) in bfloat16.
#include "mma_view_per_warp.cuh"

namespace acsconv {

template MmaLauncher view_per_warp_instance<BFloat16>(int);

}  // namespace acsconv
