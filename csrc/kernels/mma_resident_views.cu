// Launches the forward kernel with one view per warp and resident weights (mma_resident_views.h): packs the
// weights as for one view per warp, and runs it.
#include "mma_resident_views.h"

#include "mma_pack.h"
#include "mma_resident_views_launch.h"

namespace acsconv {

const char* mma_resident_views(const Problem& problem, const ResidentViewsPlan& plan, const void* source,
                               const void* weight, const void* bias, ScalarType weight_type, void* result,
                               void* workspace, void* stream) {
  if (plan.tiles.tiles == 0) return nullptr;
  float* packed_bias =
      reinterpret_cast<float*>(static_cast<unsigned char*>(workspace) + plan.tiles.packed_bytes);
  const ResidentViewsLaunch call{resident_launch(problem, plan.tiles, plan.blocks,
                                                 resident_views_memory(kResidentViewsShapes[plan.shape]),
                                                 source, result, workspace, stream),
                                 bias == nullptr ? nullptr : packed_bias};
  if (const char* error = pack_weights(problem, plan.tiles, call.work, Pass::Forward, weight, bias,
                                       weight_type, workspace, packed_bias, stream)) {
    return error;
  }
  return with_mma_scalar(
      problem.type, [&](auto scalar) { return resident_views_instance<decltype(scalar)>(plan.shape)(call); });
}

}  // namespace acsconv
