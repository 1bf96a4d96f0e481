// Instances of the forward kernel of narrow layers (mma_shared_walk.cuh) in
// float16.
#include "mma_shared_walk.cuh"

namespace acsconv {

template SharedWalkLauncher shared_walk_instance<Float16>(int);

}  // namespace acsconv
