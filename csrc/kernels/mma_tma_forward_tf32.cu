// Instances of the forward kernel with TMA (mma_tma_forward.cuh) in TF32.
#include "mma_tma_forward.cuh"

namespace acsconv {

template MmaLauncher tma_forward_instance<float>(int);

}  // namespace acsconv
