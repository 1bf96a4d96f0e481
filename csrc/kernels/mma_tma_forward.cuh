// ACS convolution forward on tensor cores, one view per warp as in mma_view_per_warp.cuh, whose product and
// epilogue it shares, with stages filled by the Tensor Memory Accelerator (mma_tma_kernel.cuh). Where
// registers allow, the producer is a warp of its own (mma_tma_plan.h). Launched by mma_convolve.cu where
// dispatch.cu has chosen it.
#pragma once

#include "mma_tma_kernel.cuh"
#include "mma_view_per_warp.cuh"

namespace acsconv {

template <class T, int kIndex>
struct TmaForward : ViewPerWarp<T, kIndex>,
                    TmaStages<tma_view_per_warp_shared(kViewPerWarpShapes[kIndex]).stages,
                              tma_view_per_warp_shared(kViewPerWarpShapes[kIndex]).stage> {
  using Base = ViewPerWarp<T, kIndex>;
  static constexpr TmaShared kShared = tma_view_per_warp_shared(Base::kShape);
  static constexpr int kMaps = tma_maps(/*view_per_warp=*/true);
  static constexpr int kBlockThreads = tma_forward_threads(Base::kShape);
  struct HaloOf : Base::HaloOf {
    static constexpr int kPlane = static_cast<int>(kShared.plane);
  };
  template <int kView>
  using Walk = ViewWalk<HaloOf, kView, Base::kRows, Base::kShape.depth, Base::kShape.height>;
  using Sums = float[Base::kRows][Base::kColumns][4];

  __device__ static __forceinline__ TmaCopies copies(const MmaWork&, int step) {
    return {0, 2 * step * kGranule<T>, HaloOf::kPlane, Base::kStepBytes};
  }
  __device__ static __forceinline__ void multiply(Sums& sum, const MmaWork& work, int,
                                                  const unsigned char* data, const unsigned char* weights) {
    multiply_step<TmaForward>(sum, work, data, weights);
  }
  __device__ static __forceinline__ void finish(Sums& sum, const MmaWork& work, const float* bias, T* result,
                                                float4* partials, unsigned char* staged, bool multiplies) {
    if (multiplies) put_tile<TmaForward>(sum, work, bias, result, partials, staged);
    if (work.phase == 1) return;
    __syncthreads();
    // Derived anew: beside the sums there are no registers to keep it in.
    const StagedColumns columns = staged_columns(work, ptx::block_y());
    const ResultTile<T> tile(work, Base::kShape, mma_place(work, Base::kShape, ptx::block_x()),
                             ptx::block_y(), result, staged, columns);
    tile.template store<kBlockThreads>(columns, ptx::thread_x());
  }
};

template <class T, int kIndex = 0>
MmaLauncher tma_forward_from(int shape) {
  if constexpr (kIndex < shape_count(kViewPerWarpShapes)) {
    if (shape != kIndex) return tma_forward_from<T, kIndex + 1>(shape);
    if constexpr (kViewPerWarpShapes[kIndex].stride == 1) return launch_tma<TmaForward<T, kIndex>>;
  }
  return nullptr;  // tma_rejection() has refused it
}
template <class T>
MmaLauncher tma_forward_instance(int shape) {
  return tma_forward_from<T>(shape);
}

}  // namespace acsconv
