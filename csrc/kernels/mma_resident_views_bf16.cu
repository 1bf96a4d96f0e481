// Instances of the forward kernel with one view per warp and resident weights (mma_resident_views.cuh) in
// bfloat16.
#include "mma_resident_views.cuh"

namespace acsconv {

template ResidentViewsLauncher resident_views_instance<BFloat16>(int);

}  // namespace acsconv
