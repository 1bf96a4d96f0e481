// ACS convolution forward on tensor cores, one view per warp with resident weights: result[n, o, r] = bias[o]
// + sum over k and taps.
//
// Products, their order and the epilogue's registers are those of mma_view_per_warp.cuh, so results are the
// same to the bit; mma_resident.cuh walks from tile to tile, beside weights that stay. A block has the
// channels of all views. Launched by mma_resident_views.cu.
#pragma once

#include "mma_resident.cuh"
#include "mma_resident_views_launch.h"
#include "mma_view_per_warp.cuh"

namespace acsconv {

template <class T, int kIndex>
struct ResidentViews : ViewPerWarp<T, kIndex, kResidentViewsShapes> {
  using Base = ViewPerWarp<T, kIndex, kResidentViewsShapes>;
  static constexpr MmaShape kTile = Base::kShape;
  static constexpr ResidentMemory kMemory = resident_views_memory(kTile);
  using Sums = float[Base::kRows][Base::kColumns][4];
  static_assert(kMemory.plane == Base::HaloOf::kPlane &&
                Base::kStepBytes == resident_views_step_bytes(kTile));
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kTile.blocks)
    resident_views_kernel(MmaWork work, const typename Config::Scalar* source, const unsigned char* packed,
                          const float* bias, typename Config::Scalar* result, bool whole_pieces) {
  using Scalar = typename Config::Scalar;
  DYNAMIC_SHARED(shared);
  walk_tiles<Config>(
      work, source, packed, result, whole_pieces, shared,
      [&](typename Config::Sums& sum, const unsigned char* stage, const unsigned char* weights) {
        multiply_step<Config>(sum, work, stage, weights);
      },
      [&](const typename Config::Sums& sum, const ResultTile<Scalar>& tile) {
        put_views<Config>(sum, tile, staged_columns(work, /*block=*/0), bias);
      });
}

template <class T, int kIndex = 0>
ResidentViewsLauncher resident_views_from(int shape) {
  if constexpr (kIndex + 1 < shape_count(kResidentViewsShapes)) {
    if (shape != kIndex) return resident_views_from<T, kIndex + 1>(shape);
  }
  return [](const ResidentViewsLaunch& call) {
    using Config = ResidentViews<T, kIndex>;
    return launch(resident_views_kernel<Config>, dim3(call.blocks), dim3(Config::kThreads), call.shared_bytes,
                  call.stream, call.work, static_cast<const T*>(call.source), call.packed, call.bias,
                  static_cast<T*>(call.result), call.whole_pieces);
  };
}
template <class T>
ResidentViewsLauncher resident_views_instance(int shape) {
  return resident_views_from<T>(shape);
}

}  // namespace acsconv
