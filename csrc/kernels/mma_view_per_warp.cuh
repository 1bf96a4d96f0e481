// ACS convolution forward on tensor cores, one view per warp: result[n, o, r] = bias[o] + sum over k and
// taps.
//
// A block computes a tile of voxels times a block of every view's channels. Its warps take turns among the
// views (warp % 3), so each stage of shared memory, one step of the reduction, serves all of them: the whole
// halo is read once. Launched by mma_convolve.cu.
#pragma once

#include "mma_launch.h"
#include "mma_store.cuh"
#include "mma_view.cuh"

namespace acsconv {

template <class T, int kIndex, const auto& kShapes = kViewPerWarpShapes>
struct ViewPerWarp {
  using Scalar = T;
  static constexpr MmaShape kShape = kShapes[kIndex];
  static constexpr int kRows = kShape.rows, kColumns = kShape.columns,
                       kThreads = view_per_warp_threads(kShape);
  static constexpr int kViewBytes = 9 * kColumns * kMmaUnitBytes, kStepBytes = kViews * kViewBytes;
  static constexpr MmaShared kShared = view_per_warp_shared(kShape);
  using HaloOf = Halo<kShape.depth, kShape.height, kShape.stride, 1, 1, 1>;
  static_assert(kShared.plane == HaloOf::kPlane && kShared.weights == kStepBytes);
  template <int kView>
  using Walk = ViewWalk<HaloOf, kView, kRows, kShape.depth, kShape.height>;
};

template <class Config>
__device__ __forceinline__ void load_view_per_warp(const MmaWork& work, const typename Config::Scalar* source,
                                                   const unsigned char* packed, unsigned char* shared,
                                                   int step, int stage) {
  using T = typename Config::Scalar;
  using HaloOf = typename Config::HaloOf;
  const int thread = ptx::thread_x(), channel = 2 * step * kGranule<T>;
  const int* table = reinterpret_cast<const int*>(shared);
  unsigned char* to = shared + Config::kShared.table + stage * Config::kShared.stage;
  const uint32_t address = ptx::shared_address(to);
  if (work.copies) {
    copy_voxels<T, HaloOf, Config::kThreads>(source, table, address, channel, work.reduced, thread);
  } else {
    gather_voxels<T, HaloOf, Config::kThreads>(source, table, to, channel, work.reduced, work.source.channel,
                                               thread);
  }
  copy_weights<Config::kStepBytes, Config::kThreads>(
      packed + (static_cast<int>(blockIdx.y) * work.steps + step) * int64_t{Config::kStepBytes},
      address + static_cast<uint32_t>(Config::kShared.stage - Config::kStepBytes), thread);
}

template <class Config, int kView>
__device__ __forceinline__ void multiply_view(float (&sum)[Config::kRows][Config::kColumns][4],
                                              const unsigned char* stage, const unsigned char* weights,
                                              int warp, int lane) {
  using Walk = typename Config::template Walk<kView>;
  walk_view<typename Config::Scalar, Walk, Config::kRows, Config::kColumns>(
      sum, ptx::shared_address(stage) + Walk::lane_byte(warp, lane), weights, lane);
}

// sum += one step of the reduction, whose planes and weights lie at these addresses. What depends on the
// thread is computed anew in every step, which costs less than keeping it in registers. The warps of a view
// without channels leave the tensor cores to the others.
template <class Config>
__device__ __forceinline__ void multiply_step(float (&sum)[Config::kRows][Config::kColumns][4],
                                              const MmaWork& work, const unsigned char* data,
                                              const unsigned char* weights) {
  const int thread = ptx::thread_x(), warp = thread / 32 / kViews;
  if (thread / 32 % kViews == 0) {
    if (work.split[0] > 0) multiply_view<Config, 0>(sum, data, weights, warp, thread % 32);
  } else if (thread / 32 % kViews == 1) {
    if (work.split[1] > 0) {
      multiply_view<Config, 1>(sum, data, weights + Config::kViewBytes, warp, thread % 32);
    }
  } else if (work.split[2] > 0) {
    multiply_view<Config, 2>(sum, data, weights + 2 * Config::kViewBytes, warp, thread % 32);
  }
}

// The channels of a block: a range of every view.
__device__ __forceinline__ StagedColumns staged_columns(const MmaWork& work, int block) {
  return StagedColumns::of(view_columns(work, 0, block), view_columns(work, 1, block),
                           view_columns(work, 2, block));
}

// What the warps have summed, plus the bias, to the tile of the result.
template <class Config>
__device__ __forceinline__ void put_views(const float (&sum)[Config::kRows][Config::kColumns][4],
                                          const ResultTile<typename Config::Scalar>& tile,
                                          const StagedColumns& columns, const float* bias) {
  const int thread = ptx::thread_x(), view = thread / 32 % kViews, warp = thread / 32 / kViews;
  if (view == 0) {
    put_sums<typename Config::template Walk<0>>(sum, tile, columns, 0, bias, warp, thread % 32);
  } else if (view == 1) {
    put_sums<typename Config::template Walk<1>>(sum, tile, columns, 1, bias, warp, thread % 32);
  } else {
    put_sums<typename Config::template Walk<2>>(sum, tile, columns, 2, bias, warp, thread % 32);
  }
}

// What the warps have summed, to the workspace (phase 1) or the result; in 16 bits to `staged`, from where
// ResultTile::store() takes it after a barrier.
template <class Config>
__device__ __forceinline__ void put_tile(float (&sum)[Config::kRows][Config::kColumns][4],
                                         const MmaWork& work, const float* bias,
                                         typename Config::Scalar* result, float4* partials,
                                         unsigned char* staged) {
  if (!combine_parts<Config::kThreads>(sum, work, partials, ptx::thread_x())) return;
  const int block = ptx::block_y();
  const StagedColumns columns = staged_columns(work, block);
  const ResultTile<typename Config::Scalar> tile(
      work, Config::kShape, mma_place(work, Config::kShape, ptx::block_x()), block, result, staged, columns);
  put_views<Config>(sum, tile, columns, bias_of_group(work, block, bias));
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kShape.blocks)
    view_per_warp_kernel(MmaWork work, const typename Config::Scalar* source, const unsigned char* packed,
                         const float* bias, typename Config::Scalar* result, float4* partials) {
  using T = typename Config::Scalar;
  using HaloOf = typename Config::HaloOf;
  DYNAMIC_SHARED(shared);
  const MmaSteps steps = steps_of_part(work, blockIdx.z);

  {
    const MmaPlace place = mma_place(work, Config::kShape, ptx::block_x());
    fill_table<HaloOf, Config::kThreads>(work, place, reinterpret_cast<int*>(shared), threadIdx.x);
    source += halo_offset(work, place, Config::kShape.stride) + group_offsets(work, blockIdx.y).source;
  }
  __syncthreads();
  const auto load = [&](int step, int stage) {
    load_view_per_warp<Config>(work, source, packed, shared, step, stage);
  };
  begin_pipeline(steps, load);

  float sum[Config::kRows][Config::kColumns][4] = {};
  int stage = 0;
#pragma unroll 1
  for (int step = steps.begin; step < steps.end; ++step) {
    advance_pipeline(steps, step, stage, load);
    const unsigned char* data = shared + Config::kShared.table + stage * Config::kShared.stage;
    multiply_step<Config>(sum, work, data, data + Config::kShared.stage - Config::kStepBytes);
    if (++stage == kMmaStages) stage = 0;
  }
  ptx::cp_async_wait<0>();
  __syncthreads();

  put_tile<Config>(sum, work, bias, result, partials, shared);
  if (work.phase == 1) return;
  __syncthreads();
  // Derived anew: beside the sums there are no registers to keep it in.
  const StagedColumns columns = staged_columns(work, ptx::block_y());
  const ResultTile<T> tile(work, Config::kShape, mma_place(work, Config::kShape, ptx::block_x()),
                           ptx::block_y(), result, shared, columns);
  tile.template store<Config::kThreads>(columns, ptx::thread_x());
}

template <class T, int kIndex = 0>
MmaLauncher view_per_warp_from(int shape) {
  if constexpr (kIndex + 1 < shape_count(kViewPerWarpShapes)) {
    if (shape != kIndex) return view_per_warp_from<T, kIndex + 1>(shape);
  }
  using Config = ViewPerWarp<T, kIndex>;
  return [](const MmaLaunch& call) { return launch_mma<Config>(view_per_warp_kernel<Config>, call); };
}
template <class T>
MmaLauncher view_per_warp_instance(int shape) {
  return view_per_warp_from<T>(shape);
}

}  // namespace acsconv
