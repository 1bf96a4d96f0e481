// Instances of the forward kernel with TMA (mma_tma_forward.cuh) in float16.
#include "mma_tma_forward.cuh"

namespace acsconv {

template MmaLauncher tma_forward_instance<Float16>(int);

}  // namespace acsconv
