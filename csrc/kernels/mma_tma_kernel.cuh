// ACS convolution on tensor cores with stages filled by the Tensor Memory Accelerator (TMA) of compute
// capability 9.0: what mma_tma_forward.cuh (one view per warp) and mma_tma_view_per_step.cuh have in common.
//
// One thread, the producer, starts the copies of a stage: two boxes of the source and the step's packed
// weights. A stage has two barriers: `full` ends a phase when its bytes have come, `empty` when every
// multiplying warp has read it. The producer is the first thread, or where a block has a warp more than
// multiply, that warp's. A Config is a copied kernel's with TmaStages and
//
//   kMaps, kBlockThreads     maps of the source; threads, of which the first kThreads multiply
//   copies(work, step)       what a step copies
//   multiply(..), finish(..) add a step to the sums; store them, by all threads
#pragma once

#include "../mma_tma_plan.h"
#include "mma_launch.h"

namespace acsconv {

// Of the block's step number `turn`: its barriers, their phase, its stage.
template <int kStages_, size_t kStageBytes>
struct TmaStages {
  static constexpr int kStages = kStages_;
  static ACSCONV_HD constexpr uint32_t full(uint32_t turn) { return 8 * (turn % kStages); }
  static ACSCONV_HD constexpr uint32_t empty(uint32_t turn) { return 8 * (kStages + turn % kStages); }
  static ACSCONV_HD constexpr int phase(uint32_t turn) { return turn / kStages % 2; }
  static ACSCONV_HD constexpr uint32_t stage(uint32_t turn) {
    return static_cast<uint32_t>(kTmaHeadBytes + turn % kStages * kStageBytes);
  }
  static constexpr int kOrigin = 16 * kStages;  // where the head holds the halo's first voxel: N, D, H, W
  static_assert(kOrigin + 16 <= static_cast<int>(kTmaHeadBytes));
};

template <int kMaps>
struct TmaSource {
  TensorMap map[kMaps];
};

// Of a step: the map of the source, the first channel, and the bytes of a plane and of the weights.
struct TmaCopies {
  int map, channel, plane, weights;
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
__device__ __forceinline__ void fill_stage(const MmaWork& work, const TmaSource<Config::kMaps>& source,
                                           const unsigned char* packed, const unsigned char* shared, int step,
                                           int turn) {
  const TmaCopies copies = Config::copies(work, step);
  const TensorMap& map = source.map[copies.map];
  const uint32_t address = ptx::shared_address(shared);
  const uint32_t full = address + Config::full(turn), stage = address + Config::stage(turn);
  const int* at = reinterpret_cast<const int*>(shared + Config::kOrigin);
  const int thin = tma_thin_axis(Config::kMaps, copies.map);
  const int d = at[1] + (thin == 0), h = at[2] + (thin == 1), w = at[3] + (thin == 2);
  ptx::mbarrier_wait(address + Config::empty(turn), Config::phase(turn) ^ 1);
  ptx::mbarrier_arrive_expect(full, 2 * copies.plane + copies.weights);
  ptx::tma_load(stage, map, full, copies.channel, w, h, d, at[0]);
  ptx::tma_load(stage + copies.plane, map, full, copies.channel + kGranule<typename Config::Scalar>, w, h, d,
                at[0]);
  ptx::bulk_load(stage + static_cast<uint32_t>(2 * Config::kShared.plane),
                 packed + (int64_t{ptx::block_y()} * work.steps + step) * Config::kStepBytes, copies.weights,
                 full);
}

template <class Config>
__global__ void __launch_bounds__(Config::kBlockThreads, Config::kShape.blocks)
    tma_kernel(MmaWork work, const __grid_constant__ TmaSource<Config::kMaps> source,
               const unsigned char* packed, const float* bias, typename Config::Scalar* result,
               float4* partials) {
  static_assert(Config::kShared.weights == Config::kStepBytes);
  static_assert(Config::kShared.total + 1024 <= kHopperSharedBytes / Config::kShape.blocks);
  constexpr bool kProducerWarp = Config::kBlockThreads > Config::kThreads;
  constexpr int kProducer = kProducerWarp ? Config::kThreads : 0;
  constexpr int kAhead = Config::kStages - 1;  // steps that a multiplying producer is ahead
  DYNAMIC_SHARED(shared);
  const MmaSteps steps = steps_of_part(work, blockIdx.z);
  const int count = steps.end - steps.begin;
  const bool multiplies = !kProducerWarp || threadIdx.x < Config::kThreads;
  const auto fill = [&](int turn) {
    fill_stage<Config>(work, source, packed, shared, steps.begin + turn, turn);
  };
  if (threadIdx.x == kProducer) prepare_head<Config>(work, shared);
  __syncthreads();
  if (threadIdx.x == kProducer) {
#pragma unroll 1
    for (int turn = 0; turn < kAhead && turn < count; ++turn) fill(turn);
  }

  float sum[Config::kRows][Config::kColumns][4] = {};
  if (multiplies) {
#pragma unroll 1
    for (int turn = 0; turn < count; ++turn) {
      if (!kProducerWarp && turn + kAhead < count && ptx::thread_x() == kProducer) fill(turn + kAhead);
      ptx::mbarrier_wait(ptx::shared_address(shared) + Config::full(turn), Config::phase(turn));
      const unsigned char* data = shared + Config::stage(turn);
      Config::multiply(sum, work, steps.begin + turn, data, data + 2 * Config::kShared.plane);
      __syncwarp();
      if (ptx::thread_x() % 32 == 0) ptx::mbarrier_arrive(ptx::shared_address(shared) + Config::empty(turn));
    }
  } else if (threadIdx.x == kProducer) {
#pragma unroll 1
    for (int turn = kAhead; turn < count; ++turn) fill(turn);
  }
  __syncthreads();

  Config::finish(sum, work, bias, result, partials, shared + kTmaHeadBytes, multiplies);
}

template <class Config>
const char* launch_tma(const MmaLaunch& call) {
  TmaSource<Config::kMaps> source;
  for (int i = 0; i < Config::kMaps; ++i) {
    const TensorMapShape map =
        tma_source(*call.problem, call.pass, Config::kShape, Config::kMaps, i, call.source);
    if (const char* reason = make_tensor_map(map, source.map[i])) return reason;
  }
  return launch(tma_kernel<Config>, call.blocks, dim3(Config::kBlockThreads), Config::kShared.total,
                call.stream, call.work, source, static_cast<const unsigned char*>(call.packed), call.bias,
                static_cast<typename Config::Scalar*>(call.result), static_cast<float4*>(call.partials));
}

}  // namespace acsconv
