// Gradient of the input, and Soft ACS forward and backward, on tensor cores, one view per step as in
// mma_view_per_step.cuh, whose product and epilogue it shares, with stages filled by the Tensor Memory
// Accelerator (mma_tma_kernel.cuh): boxes of the halo of the step's view. Launched by mma_convolve.cu where
// dispatch.cu has chosen it.
#pragma once

#include "mma_tma_kernel.cuh"
#include "mma_view_per_step.cuh"

namespace acsconv {

template <class T, int kIndex, bool kSoft>
struct TmaViewPerStep : ViewPerStep<T, kIndex, kSoft>,
                        TmaStages<tma_view_per_step_shared(kViewPerStepShapes[kIndex]).stages,
                                  tma_view_per_step_shared(kViewPerStepShapes[kIndex]).stage> {
  using Base = ViewPerStep<T, kIndex, kSoft>;
  static constexpr TmaShared kShared = tma_view_per_step_shared(Base::kShape);
  static constexpr int kMaps = tma_maps(/*view_per_warp=*/false);
  static constexpr int kBlockThreads = Base::kThreads;
  template <int kView>
  struct HaloOf : Base::template HaloOf<kView> {
    static constexpr int kPlane = 16 * Base::template HaloOf<kView>::kVoxels;
    static_assert(kPlane % 128 == 0, "a box lands on a multiple of 128 bytes");
  };
  template <int kView>
  using Walk = ViewWalk<HaloOf<kView>, 2, Base::kRows, Base::kShape.depth, Base::kShape.height>;
  using Sums = float[Base::kRows][Base::kColumns][4];

  template <int kView>
  __device__ static __forceinline__ TmaCopies copies_of_view(int channel) {
    constexpr int kTaps = tap_index(kSoft, kView, 3, 0);
    return {kView, channel, HaloOf<kView>::kPlane, kTaps * Base::kColumns * kMmaUnitBytes};
  }
  __device__ static __forceinline__ TmaCopies copies(const MmaWork& work, int index) {
    const MmaStep step = view_step<T>(work, index);
    return step.view == 0   ? copies_of_view<0>(step.channel)
           : step.view == 1 ? copies_of_view<1>(step.channel)
                            : copies_of_view<2>(step.channel);
  }
  __device__ static __forceinline__ void multiply(Sums& sum, const MmaWork& work, int step,
                                                  const unsigned char* data, const unsigned char* weights) {
    multiply_step_of_view<TmaViewPerStep>(sum, work, step, data, weights, ptx::thread_x());
  }
  __device__ static __forceinline__ void finish(Sums& sum, const MmaWork& work, const float* bias, T* result,
                                                float4* partials, unsigned char* staged, bool) {
    store_result<TmaViewPerStep, Walk<2>>(sum, work, bias, result, partials, staged);
  }
};

template <class T, int kIndex = 0>
MmaLauncher tma_view_per_step_from(int shape, bool soft) {
  if constexpr (kIndex + 1 < shape_count(kViewPerStepShapes)) {
    if (shape != kIndex) return tma_view_per_step_from<T, kIndex + 1>(shape, soft);
  }
  return soft ? launch_tma<TmaViewPerStep<T, kIndex, true>> : launch_tma<TmaViewPerStep<T, kIndex, false>>;
}
template <class T>
MmaLauncher tma_view_per_step_instance(int shape, bool soft) {
  return tma_view_per_step_from<T>(shape, soft);
}

}  // namespace acsconv
