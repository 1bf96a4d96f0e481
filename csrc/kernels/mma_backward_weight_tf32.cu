// Instances of the gradient of the weight (mma_backward_weight.cuh) in TF32.
#include "mma_backward_weight.cuh"

namespace acsconv {

template const char* launch_mma_backward_weight<float>(int, bool, const MmaWeightLaunch&);

}  // namespace acsconv
