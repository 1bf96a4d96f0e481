// ACS convolution forward on tensor cores, one view per warp as in mma_view_per_warp.cuh, whose product and
// epilogue it shares, with stages filled by the Tensor Memory Accelerator (TMA) of compute capability 9.0.
//
// One thread, the producer, starts the copies of a stage: two boxes of the source and the step's packed
// weights. A stage has two barriers: `full` ends a phase when its bytes have come, `empty` when every
// multiplying warp has read it. Where registers allow, the producer is a warp of its own (mma_tma_plan.h).
// Launched by mma_convolve.cu where dispatch.cu has chosen it.
#pragma once

#include "../mma_tma_plan.h"
#include "mma_view_per_warp.cuh"

namespace acsconv {

template <class T, int kIndex>
struct TmaForward : ViewPerWarp<T, kIndex> {
  using Base = ViewPerWarp<T, kIndex>;
  static constexpr TmaShared kShared = tma_shared(Base::kShape);
  static constexpr int kStages = kShared.stages, kStageBytes = static_cast<int>(kShared.stage);
  static_assert(kShared.weights == Base::kStepBytes);
  static_assert(kShared.total + 1024 <= kHopperSharedBytes / Base::kShape.blocks);
  // The first kThreads multiply.
  static constexpr bool kProducerWarp = tma_producer_warp(Base::kShape);
  static constexpr int kBlockThreads = tma_forward_threads(Base::kShape);
  static constexpr int kProducer = kProducerWarp ? Base::kThreads : 0;
  struct HaloOf : Base::HaloOf {
    static constexpr int kPlane = static_cast<int>(kShared.plane);
  };
  template <int kView>
  using Walk = ViewWalk<HaloOf, kView, Base::kRows, Base::kShape.depth, Base::kShape.height>;

  // Of the block's step number `turn`: its barriers, their phase, its stage.
  static ACSCONV_HD constexpr uint32_t full(uint32_t turn) { return 8 * (turn % kStages); }
  static ACSCONV_HD constexpr uint32_t empty(uint32_t turn) { return 8 * (kStages + turn % kStages); }
  static ACSCONV_HD constexpr int phase(uint32_t turn) { return turn / kStages % 2; }
  static ACSCONV_HD constexpr uint32_t stage(uint32_t turn) {
    return static_cast<uint32_t>(kTmaHeadBytes) + turn % kStages * kStageBytes;
  }
  static constexpr int kOrigin = 16 * kStages;  // where the head holds the halo's first voxel: N, D, H, W
  static_assert(kOrigin + 16 <= static_cast<int>(kTmaHeadBytes));
};

// By the producer: barriers, and the halo's first voxel, which is computed once.
template <class Config>
__device__ __forceinline__ void prepare_head(const MmaWork& work, unsigned char* shared) {
  const uint32_t address = ptx::shared_address(shared);
  for (int stage = 0; stage < Config::kStages; ++stage) {
    ptx::mbarrier_init(address + Config::full(stage), 1);
    ptx::mbarrier_init(address + Config::empty(stage), Config::kThreads / 32);
  }
  ptx::mbarrier_fence_init();
  ptx::proxy_fence();  // the copies see the barriers too
  const MmaPlace place = mma_place(work, Config::kShape, ptx::block_x());
  int* origin = reinterpret_cast<int*>(shared + Config::kOrigin);
  origin[0] = static_cast<int>(place.batch);
  for (int axis = 0; axis < 3; ++axis) origin[1 + axis] = source_position(work, place, 1, axis, 1, 0);
}

// By the producer: starts the copies of a step as soon as the stage of its turn is empty, which all are at
// first: the phase before the first one counts as ended.
template <class Config>
__device__ __forceinline__ void fill_stage(const MmaWork& work, const TensorMap& source,
                                           const unsigned char* packed, const unsigned char* shared, int step,
                                           int turn) {
  constexpr int kPlane = Config::HaloOf::kPlane, kChannels = kGranule<typename Config::Scalar>;
  const uint32_t address = ptx::shared_address(shared);
  const uint32_t full = address + Config::full(turn), stage = address + Config::stage(turn);
  const int* at = reinterpret_cast<const int*>(shared + Config::kOrigin);
  const int channel = 2 * step * kChannels;
  ptx::mbarrier_wait(address + Config::empty(turn), Config::phase(turn) ^ 1);
  ptx::mbarrier_arrive_expect(full, Config::kStageBytes);
  ptx::tma_load(stage, source, full, channel, at[3], at[2], at[1], at[0]);
  ptx::tma_load(stage + kPlane, source, full, channel + kChannels, at[3], at[2], at[1], at[0]);
  ptx::bulk_load(stage + 2 * kPlane,
                 packed + (int64_t{ptx::block_y()} * work.steps + step) * Config::kStepBytes,
                 Config::kStepBytes, full);
}

template <class Config>
__global__ void __launch_bounds__(Config::kBlockThreads, Config::kShape.blocks)
    tma_forward_kernel(MmaWork work, const __grid_constant__ TensorMap source, const unsigned char* packed,
                       const float* bias, typename Config::Scalar* result, float4* partials) {
  using T = typename Config::Scalar;
  constexpr int kAhead = Config::kStages - 1;  // steps that a multiplying producer is ahead
  DYNAMIC_SHARED(shared);
  const MmaSteps steps = steps_of_part(work, blockIdx.z);
  const int count = steps.end - steps.begin;
  const bool multiplies = !Config::kProducerWarp || threadIdx.x < Config::kThreads;
  const auto fill = [&](int turn) {
    fill_stage<Config>(work, source, packed, shared, steps.begin + turn, turn);
  };
  if (threadIdx.x == Config::kProducer) prepare_head<Config>(work, shared);
  __syncthreads();
  if (threadIdx.x == Config::kProducer) {
#pragma unroll 1
    for (int turn = 0; turn < kAhead && turn < count; ++turn) fill(turn);
  }

  float sum[Config::kRows][Config::kColumns][4] = {};
  if (multiplies) {
#pragma unroll 1
    for (int turn = 0; turn < count; ++turn) {
      if (!Config::kProducerWarp && turn + kAhead < count && ptx::thread_x() == Config::kProducer) {
        fill(turn + kAhead);
      }
      ptx::mbarrier_wait(ptx::shared_address(shared) + Config::full(turn), Config::phase(turn));
      const unsigned char* data = shared + Config::stage(turn);
      multiply_step<Config>(sum, work, data, data + 2 * Config::HaloOf::kPlane);
      __syncwarp();
      if (ptx::thread_x() % 32 == 0) ptx::mbarrier_arrive(ptx::shared_address(shared) + Config::empty(turn));
    }
  } else if (threadIdx.x == Config::kProducer) {
#pragma unroll 1
    for (int turn = kAhead; turn < count; ++turn) fill(turn);
  }
  __syncthreads();

  unsigned char* const staged = shared + kTmaHeadBytes;
  if (multiplies) put_tile<Config>(sum, work, bias, result, partials, staged);
  if (work.phase == 1) return;
  __syncthreads();
  // Derived anew: beside the sums there are no registers to keep it in.
  const StagedColumns columns = staged_columns(work, ptx::block_y());
  const ResultTile<T> tile(work, Config::kShape, mma_place(work, Config::kShape, ptx::block_x()),
                           ptx::block_y(), result, staged, columns);
  tile.template store<Config::kBlockThreads>(columns, ptx::thread_x());
}

template <class Config>
const char* launch_tma_forward(const MmaLaunch& call) {
  TensorMap source;
  if (const char* reason = make_tensor_map(tma_source(*call.problem, Config::kShape, call.source), source)) {
    return reason;
  }
  return launch(tma_forward_kernel<Config>, call.blocks, dim3(Config::kBlockThreads), Config::kShared.total,
                call.stream, call.work, source, static_cast<const unsigned char*>(call.packed), call.bias,
                static_cast<typename Config::Scalar*>(call.result), static_cast<float4*>(call.partials));
}
template <class T, int kIndex = 0>
MmaLauncher tma_forward_from(int shape) {
  if constexpr (kIndex < shape_count(kViewPerWarpShapes)) {
    if (shape != kIndex) return tma_forward_from<T, kIndex + 1>(shape);
    if constexpr (kViewPerWarpShapes[kIndex].stride == 1) return launch_tma_forward<TmaForward<T, kIndex>>;
  }
  return nullptr;  // tma_rejection() has refused it
}
template <class T>
MmaLauncher tma_forward_instance(int shape) {
  return tma_forward_from<T>(shape);
}

}  // namespace acsconv
