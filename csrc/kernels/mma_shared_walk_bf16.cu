// Instances of the forward kernel of narrow layers (mma_shared_walk.cuh) in
// bfloat16.
#include "mma_shared_walk.cuh"

namespace acsconv {

template SharedWalkLauncher shared_walk_instance<BFloat16>(int);

}  // namespace acsconv
