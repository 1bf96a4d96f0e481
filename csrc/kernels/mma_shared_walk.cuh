// ACS convolution forward on tensor cores for narrow layers, a walk shared by
// the views: result[n, o, r] = bias[o] + sum over k and taps.
//
// A block takes tile after tile of voxels; each of its warps holds all columns
// of its voxels (mma_shared_walk_plan.h: which channel stands where) and goes
// through the 19 shifts that any view reads, one step of the reduction at a
// time. The layer's packed weights stay in shared memory. Steps of all tiles
// form one pipeline of two stages, so that the next tile's first step is under
// way while results are written. Launched by mma_shared_walk.cu.
#pragma once

#include "mma_shared_walk_launch.h"
#include "mma_store.cuh"
#include "mma_view.cuh"

namespace acsconv {

template <class T, int kIndex>
struct SharedWalk {
  using Scalar = T;
  static constexpr SharedWalkShape kShape = kSharedWalkShapes[kIndex];
  static constexpr MmaShape kTile = kShape.tile;
  static constexpr int kFull = kShape.full, kMixed = kShape.mixed;
  static constexpr int kRows = kTile.rows, kTiles = kTile.columns, kThreads = shared_walk_threads(kShape);
  static constexpr SharedWalkMemory kMemory = shared_walk_memory(kShape);
  using HaloOf = Halo<kTile.depth, kTile.height, 1, 1, 1, 1>;
  static_assert(kMemory.plane == HaloOf::kPlane && kTiles == kViews * kFull + kMixed);
  // The warps' voxels are those of the axial view's walk: tiles are neighbours
  // along H, pairs along D.
  using Walk = ViewWalk<HaloOf, 0, kRows, kTile.depth, kTile.height>;
};

template <class Config>
__device__ __forceinline__ void load_shared_walk(const MmaWork& work, const typename Config::Scalar* source,
                                                 const int* table, unsigned char* stage, int step) {
  using T = typename Config::Scalar;
  using HaloOf = typename Config::HaloOf;
  const int thread = ptx::thread_x(), channel = 2 * step * kGranule<T>;
  if (work.copies) {
    copy_voxels<T, HaloOf, Config::kThreads>(source, table, ptx::shared_address(stage), channel, work.reduced,
                                             thread);
  } else {
    gather_voxels<T, HaloOf, Config::kThreads>(source, table, stage, channel, work.reduced,
                                               work.source.channel, thread);
  }
}

// The products of one shift: fragments[m + kH] is what tile m of the warp reads
// there.
template <class Config, int kD, int kH, int kW>
__device__ __forceinline__ void multiply_shift(float (&sum)[Config::kTiles][Config::kRows][1][4],
                                               const uint32_t (&fragments)[Config::kRows + 2][4],
                                               const unsigned char* weights, int lane) {
  constexpr int kUnit = units_before_shift(Config::kFull, Config::kMixed, kD, kH, kW);
  int unit = kUnit;
#pragma unroll
  for (int tile = 0; tile < Config::kTiles; ++tile) {
    if (shared_walk_multiplies(Config::kFull, tile, kD, kH, kW)) {
      uint32_t b[1][2];
      load_weights<1>(b, weights + unit * kMmaUnitBytes, lane);
      ptx::mma_tiles<typename Config::Scalar, Config::kRows, 1, Config::kRows + 2>(sum[tile], fragments, kH,
                                                                                   b);
      ++unit;
    }
  }
}

// sum[tile] += a step of the reduction, from shifts (d, w) number kPlace on.
// `a`: the stage's address plus Walk::lane_byte(), `weights`: the step's.
template <class Config, int kPlace = 0>
__device__ __forceinline__ void walk_shifts(float (&sum)[Config::kTiles][Config::kRows][1][4], uint32_t a,
                                            const unsigned char* weights, int lane) {
  if constexpr (kPlace < 9) {
    constexpr int kD = kPlace / 3, kW = kPlace % 3;
    constexpr int kOnly = kD != 1 && kW != 1;  // there only the coronal view reads, the middle row of shifts
    uint32_t fragments[Config::kRows + 2][4];
#pragma unroll
    for (int row = kOnly; row < Config::kRows + 2 - kOnly; ++row) {
      load_fragment<typename Config::Scalar>(fragments[row], a + Config::HaloOf::voxel(kD, row, kW) * 16);
    }
    multiply_shift<Config, kD, 0, kW>(sum, fragments, weights, lane);
    multiply_shift<Config, kD, 1, kW>(sum, fragments, weights, lane);
    multiply_shift<Config, kD, 2, kW>(sum, fragments, weights, lane);
    walk_shifts<Config, kPlace + 1>(sum, a, weights, lane);
  }
}

template <class Config>
__device__ __forceinline__ void put_columns(const float (&sum)[Config::kTiles][Config::kRows][1][4],
                                            const ResultTile<typename Config::Scalar>& tile,
                                            const ResultColumn* columns, int thread) {
  using Walk = typename Config::Walk;
  const int warp = thread / 32, lane = thread % 32;
#pragma unroll
  for (int n = 0; n < Config::kTiles; ++n) {
    const ResultColumn one = columns[8 * n + lane % 4 * 2], two = columns[8 * n + lane % 4 * 2 + 1];
    const bool pair = one.channel >= 0 && two.channel == one.channel + 1;
#pragma unroll
    for (int m = 0; m < Config::kRows; ++m) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const int d = Walk::depth(warp) + Walk::tile_depth(m, row);
        const int h = Walk::height(warp) + Walk::tile_height(m, row);
        const float first = sum[n][m][0][2 * row] + one.bias;
        const float second = sum[n][m][0][2 * row + 1] + two.bias;
        tile.put(d, h, lane / 4, one.channel, one.channel, one.channel >= 0, pair, first, second);
        if (!pair) tile.put(d, h, lane / 4, two.channel, two.channel, two.channel >= 0, false, second, 0.0f);
      }
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kTile.blocks)
    shared_walk_kernel(MmaWork work, const typename Config::Scalar* source, const unsigned char* packed,
                       const ResultColumn* columns, typename Config::Scalar* result) {
  using T = typename Config::Scalar;
  using HaloOf = typename Config::HaloOf;
  constexpr SharedWalkMemory kMemory = Config::kMemory;
  constexpr int kStepBytes = shared_walk_units(Config::kFull, Config::kMixed) * kMmaUnitBytes;
  DYNAMIC_SHARED(shared);
  const auto table = [&](int index) { return reinterpret_cast<int*>(shared + index * kMemory.table); };

  for (int i = threadIdx.x * 16; i < work.steps * kStepBytes; i += Config::kThreads * 16) {
    ptx::cp_async<16>(ptx::shared_address(shared) + static_cast<uint32_t>(kMemory.weights) + i, packed + i,
                      16);
  }
  const T *from = source, *next = source;
  int parity = 0;
  // The step after a tile's last one is the first of the next tile.
  const auto load = [&](int step, int stage) {
    const bool of_next = step == work.steps;
    load_shared_walk<Config>(work, of_next ? next : from, table(of_next ? parity ^ 1 : parity),
                             shared + kMemory.stage_at(stage), of_next ? 0 : step);
  };
  {
    const MmaPlace place = mma_place(work, Config::kTile, static_cast<int>(blockIdx.x));
    fill_table<HaloOf, Config::kThreads>(work, place, table(0), threadIdx.x);
    from += halo_offset(work, place, 1);
  }
  __syncthreads();
  begin_pipeline({0, work.steps}, load);

  int stage = 0;
#pragma unroll 1
  for (unsigned index = blockIdx.x; index < work.tiles; index += gridDim.x) {
    const bool more = index + gridDim.x < work.tiles;
    if (more) {  // the table there was last read for the tile before this one
      const MmaPlace place = mma_place(work, Config::kTile, static_cast<int>(index + gridDim.x));
      fill_table<HaloOf, Config::kThreads>(work, place, table(parity ^ 1), ptx::thread_x());
      next = source + halo_offset(work, place, 1);
    }

    float sum[Config::kTiles][Config::kRows][1][4] = {};
#pragma unroll 1
    for (int step = 0; step < work.steps; ++step, stage ^= 1) {
      advance_pipeline({0, work.steps + more}, step, stage, load);
      const int thread = ptx::thread_x();
      walk_shifts<Config>(sum,
                          ptx::shared_address(shared + kMemory.stage_at(stage)) +
                              Config::Walk::lane_byte(thread / 32, thread % 32),
                          shared + kMemory.weights + step * kStepBytes, thread % 32);
    }
    from = next;
    parity ^= 1;

    // 16-bit results are staged where the last step has been read; the other
    // stage is being filled.
    const StagedColumns all = StagedColumns::of({0, work.columns}, {0, 0}, {0, 0});
    const ResultTile<T> tile(work, Config::kTile, mma_place(work, Config::kTile, static_cast<int>(index)),
                             result, shared + kMemory.staged_at(stage ^ 1), all);
    if constexpr (sizeof(T) == 2) __syncthreads();
    put_columns<Config>(sum, tile, columns, ptx::thread_x());
    if constexpr (sizeof(T) == 2) __syncthreads();
    tile.template store<Config::kThreads>(all, ptx::thread_x());
  }
}

template <class T, int kIndex = 0>
SharedWalkLauncher shared_walk_from(int shape) {
  if constexpr (kIndex + 1 < kSharedWalkShapeCount) {
    if (shape != kIndex) return shared_walk_from<T, kIndex + 1>(shape);
  }
  return [](const SharedWalkLaunch& call) {
    using Config = SharedWalk<T, kIndex>;
    return launch(shared_walk_kernel<Config>, dim3(call.blocks), dim3(Config::kThreads), call.shared_bytes,
                  call.stream, call.work, static_cast<const T*>(call.source), call.packed, call.columns,
                  static_cast<T*>(call.result));
  };
}
template <class T>
SharedWalkLauncher shared_walk_instance(int shape) {
  return shared_walk_from<T>(shape);
}

}  // namespace acsconv
