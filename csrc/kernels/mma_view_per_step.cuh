// Gradient of the input, and Soft ACS forward and backward, on tensor cores, one view per step:
// result[n, m, r] = bias[m] + sum over views, k and taps.
//
// A block computes a tile of voxels times a block of the result's channels. A step of the reduction belongs
// to one view, and reads no more of the source than lies in that view's plane: in the gradient of the input
// the channels of grad_output that the view has computed, in Soft ACS all channels, view after view. The
// voxels of a warp stay the same in all views: tiles are neighbours along H and paired along D, so the axial
// and the sagittal view use a fragment for three taps; the coronal view, whose taps do not move along H, for
// one. Soft ACS adds up what several views read of one voxel in the first one's weights, which leaves the
// later views 6 and 4 taps. Launched by mma_convolve.cu.
#pragma once

#include "mma_launch.h"
#include "mma_store.cuh"
#include "mma_view.cuh"

namespace acsconv {

template <class T, int kIndex, bool kSoft_>
struct ViewPerStep {
  using Scalar = T;
  static constexpr bool kSoft = kSoft_;
  static constexpr MmaShape kShape = kViewPerStepShapes[kIndex];
  static constexpr int kRows = kShape.rows, kColumns = kShape.columns,
                       kThreads = view_per_step_threads(kShape);
  static constexpr int kStepBytes = 9 * kColumns * kMmaUnitBytes;
  static constexpr MmaShared kShared = view_per_step_shared(kShape);
  template <int kView>
  using HaloOf = Halo<kShape.depth, kShape.height, 1, kView != 0, kView != 1, kView != 2>;
  // The sagittal view's arrangement of warps and tiles for all views.
  template <int kView>
  using Walk = ViewWalk<HaloOf<kView>, 2, kRows, kShape.depth, kShape.height>;
  static_assert(kShape.height % kRows == 0, "tiles of a warp are neighbours along H");
};

template <class Config, int kView>
__device__ __forceinline__ void load_view(const MmaWork& work, const typename Config::Scalar* source,
                                          const unsigned char* packed, const int* table, unsigned char* to,
                                          const MmaStep& step) {
  using T = typename Config::Scalar;
  using HaloOf = typename Config::template HaloOf<kView>;
  const int thread = ptx::thread_x();
  const uint32_t address = ptx::shared_address(to);
  if (work.copies) {
    copy_voxels<T, HaloOf, Config::kThreads>(source, table, address, step.channel, work.reduced, thread);
  } else {
    gather_voxels<T, HaloOf, Config::kThreads>(source, table, to, step.channel, work.reduced,
                                               work.source.channel, thread);
  }
  constexpr int kBytes = tap_index(Config::kSoft, kView, 3, 0) * Config::kColumns * kMmaUnitBytes;
  copy_weights<kBytes, Config::kThreads>(
      packed, address + static_cast<uint32_t>(Config::kShared.stage - Config::kStepBytes), thread);
}

template <class Config>
__device__ __forceinline__ void load_view_per_step(const MmaWork& work, const typename Config::Scalar* source,
                                                   const unsigned char* packed, unsigned char* shared,
                                                   int index, int stage) {
  const MmaStep step = view_step<typename Config::Scalar>(work, index);
  unsigned char* to = shared + Config::kShared.table + stage * Config::kShared.stage;
  const int* table = reinterpret_cast<const int*>(shared);
  packed += index * int64_t{Config::kStepBytes};
  constexpr int kFirst = Config::template HaloOf<0>::kVoxels, kSecond = Config::template HaloOf<1>::kVoxels;
  if (step.view == 0) {
    load_view<Config, 0>(work, source, packed, table, to, step);
  } else if (step.view == 1) {
    load_view<Config, 1>(work, source, packed, table + kFirst, to, step);
  } else {
    load_view<Config, 2>(work, source, packed, table + kFirst + kSecond, to, step);
  }
}

// sum += the taps of outer index kOuter and above of a view whose inner taps move along H.
template <class Config, int kView, int kOuter = 0>
__device__ __forceinline__ void walk_along_height(float (&sum)[Config::kRows][Config::kColumns][4],
                                                  uint32_t a, const unsigned char* b, int lane) {
  if constexpr (kOuter < 3) {
    using T = typename Config::Scalar;
    using Walk = typename Config::template Walk<kView>;
    using HaloOf = typename Config::template HaloOf<kView>;
    if constexpr (tap_is_read(Config::kSoft, kView, kOuter, 0)) {
      constexpr int kOrigin = (kView == 2 ? HaloOf::voxel(kOuter, 0, 0) : HaloOf::voxel(0, 0, kOuter)) * 16;
      uint32_t fragments[Config::kRows + 2][4];
#pragma unroll
      for (int row = 0; row < Config::kRows + 2; ++row) {
        load_fragment<T>(fragments[row], a + kOrigin + row * Walk::kRowStep);
      }
#pragma unroll
      for (int inner = 0; inner < 3; ++inner) {
        if (tap_is_read(Config::kSoft, kView, kOuter, inner)) {
          uint32_t weights[Config::kColumns][2];
          load_weights<Config::kColumns>(
              weights, b + tap_index(Config::kSoft, kView, kOuter, inner) * Config::kColumns * kMmaUnitBytes,
              lane);
          ptx::mma_tiles<T, Config::kRows, Config::kColumns>(sum, fragments, inner, weights);
        }
      }
    }
    walk_along_height<Config, kView, kOuter + 1>(sum, a, b, lane);
  }
}
// The coronal view: every tap has fragments of its own.
template <class Config, int kTap = 0>
__device__ __forceinline__ void walk_coronal(float (&sum)[Config::kRows][Config::kColumns][4], uint32_t a,
                                             const unsigned char* b, int lane) {
  if constexpr (kTap < 9) {
    using T = typename Config::Scalar;
    using HaloOf = typename Config::template HaloOf<1>;
    constexpr int kOuter = kTap / 3, kInner = kTap % 3;
    if constexpr (tap_is_read(Config::kSoft, 1, kOuter, kInner)) {
      constexpr int kOrigin = HaloOf::voxel(kInner, 0, kOuter) * 16;
      uint32_t fragments[Config::kRows][4], weights[Config::kColumns][2];
#pragma unroll
      for (int row = 0; row < Config::kRows; ++row) {
        load_fragment<T>(fragments[row], a + kOrigin + row * Config::template Walk<1>::kRowStep);
      }
      load_weights<Config::kColumns>(
          weights, b + tap_index(Config::kSoft, 1, kOuter, kInner) * Config::kColumns * kMmaUnitBytes, lane);
      ptx::mma_tiles<T, Config::kRows, Config::kColumns>(sum, fragments, 0, weights);
    }
    walk_coronal<Config, kTap + 1>(sum, a, b, lane);
  }
}

// sum += one step of the reduction, whose planes and weights lie at these addresses.
template <class Config>
__device__ __forceinline__ void multiply_step_of_view(float (&sum)[Config::kRows][Config::kColumns][4],
                                                      const MmaWork& work, int step,
                                                      const unsigned char* data, const unsigned char* weights,
                                                      int thread) {
  const int lane = thread % 32, warp = thread / 32;
  const uint32_t a = ptx::shared_address(data);
  const int view = view_step<typename Config::Scalar>(work, step).view;
  if (view == 0) {
    walk_along_height<Config, 0>(sum, a + Config::template Walk<0>::lane_byte(warp, lane), weights, lane);
  } else if (view == 1) {
    walk_coronal<Config>(sum, a + Config::template Walk<1>::lane_byte(warp, lane), weights, lane);
  } else {
    walk_along_height<Config, 2>(sum, a + Config::template Walk<2>::lane_byte(warp, lane), weights, lane);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kShape.blocks)
    view_per_step_kernel(MmaWork work, const typename Config::Scalar* source, const unsigned char* packed,
                         const float* bias, typename Config::Scalar* result, float4* partials) {
  DYNAMIC_SHARED(shared);
  const int thread = threadIdx.x;
  packed += blockIdx.y * (work.steps * int64_t{Config::kStepBytes});
  const MmaSteps steps = steps_of_part(work, blockIdx.z);

  {
    const MmaPlace place = mma_place(work, Config::kShape, ptx::block_x());
    int* table = reinterpret_cast<int*>(shared);
    constexpr int kFirst = Config::template HaloOf<0>::kVoxels, kSecond = Config::template HaloOf<1>::kVoxels;
    fill_table<typename Config::template HaloOf<0>, Config::kThreads>(work, place, table, thread);
    fill_table<typename Config::template HaloOf<1>, Config::kThreads>(work, place, table + kFirst, thread);
    fill_table<typename Config::template HaloOf<2>, Config::kThreads>(work, place, table + kFirst + kSecond,
                                                                      thread);
    source += halo_offset(work, place, 1) + group_offsets(work, blockIdx.y).source;
  }
  __syncthreads();
  const auto load = [&](int step, int stage) {
    load_view_per_step<Config>(work, source, packed, shared, step, stage);
  };
  begin_pipeline(steps, load);

  float sum[Config::kRows][Config::kColumns][4] = {};
  int stage = 0;
#pragma unroll 1
  for (int step = steps.begin; step < steps.end; ++step) {
    advance_pipeline(steps, step, stage, load);

    const unsigned char* data = shared + Config::kShared.table + stage * Config::kShared.stage;
    multiply_step_of_view<Config>(sum, work, step, data, data + Config::kShared.stage - Config::kStepBytes,
                                  thread);
    if (++stage == kMmaStages) stage = 0;
  }
  ptx::cp_async_wait<0>();
  __syncthreads();

  store_result<Config, typename Config::template Walk<2>>(sum, work, bias, result, partials, shared);
}

template <class T, int kIndex = 0>
MmaLauncher view_per_step_from(int shape, bool soft) {
  if constexpr (kIndex + 1 < shape_count(kViewPerStepShapes)) {
    if (shape != kIndex) return view_per_step_from<T, kIndex + 1>(shape, soft);
  }
  using Plain = ViewPerStep<T, kIndex, false>;
  using Soft = ViewPerStep<T, kIndex, true>;
  if (soft) return [](const MmaLaunch& call) { return launch_mma<Soft>(view_per_step_kernel<Soft>, call); };
  return [](const MmaLaunch& call) { return launch_mma<Plain>(view_per_step_kernel<Plain>, call); };
}
template <class T>
MmaLauncher view_per_step_instance(int shape, bool soft) {
  return view_per_step_from<T>(shape, soft);
}

}  // namespace acsconv
