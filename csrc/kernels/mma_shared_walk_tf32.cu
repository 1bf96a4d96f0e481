// Instances of the forward kernel of narrow layers (mma_shared_walk.cuh) in
// TF32.
#include "mma_shared_walk.cuh"

namespace acsconv {

template SharedWalkLauncher shared_walk_instance<float>(int);

}  // namespace acsconv
