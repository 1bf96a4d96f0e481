// Instances of the gradient of the weight (mma_backward_weight.cuh) in bfloat16.
#include "mma_backward_weight.cuh"

namespace acsconv {

template const char* launch_mma_backward_weight<BFloat16>(int, bool, const MmaWeightLaunch&);

}  // namespace acsconv
