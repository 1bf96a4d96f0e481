// ACS convolution forward on tensor cores for narrow layers, a walk shared by the views: result[n, o, r] =
// bias[o] + sum over k and taps.
//
// A block takes tile after tile of voxels (mma_resident.cuh); each of its warps holds all columns of its
// voxels (mma_shared_walk_plan.h: which channel stands where) and goes through the 19 shifts that any view
// reads, one step of the reduction at a time.
// Launched by mma_shared_walk.cu.
#pragma once

#include "mma_resident.cuh"
#include "mma_shared_walk_launch.h"
#include "mma_view.cuh"

namespace acsconv {

template <class T, int kIndex>
struct SharedWalk {
  using Scalar = T;
  static constexpr SharedWalkShape kShape = kSharedWalkShapes[kIndex];
  static constexpr MmaShape kTile = kShape.tile;
  static constexpr int kFull = kShape.full, kMixed = kShape.mixed;
  static constexpr int kRows = kTile.rows, kTiles = kTile.columns, kThreads = shared_walk_threads(kShape);
  static constexpr int kStepBytes = shared_walk_units(kFull, kMixed) * kMmaUnitBytes;
  static constexpr ResidentMemory kMemory = shared_walk_memory(kShape);
  using Sums = float[kTiles][kRows][1][4];
  using HaloOf = Halo<kTile.depth, kTile.height, 1, 1, 1, 1>;
  static_assert(kMemory.plane == HaloOf::kPlane && kTiles == kViews * kFull + kMixed);
  // The warps' voxels are those of the axial view's walk: tiles are neighbours along H, pairs along D.
  using Walk = ViewWalk<HaloOf, 0, kRows, kTile.depth, kTile.height>;
};

// The products of one shift: fragments[m + kH] is what tile m of the warp reads there.
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

// sum[tile] += a step of the reduction, from shifts (d, w) number kPlace on. `a`: the stage's address plus
// Walk::lane_byte(), `weights`: the step's.
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

// Adds the bias and writes the sums: float32 to the result, 16 bits to shared memory.
template <class Config>
__device__ __forceinline__ void put_columns(const float (&sum)[Config::kTiles][Config::kRows][1][4],
                                            const ResultTile<typename Config::Scalar>& tile,
                                            const ResultColumn* columns, int thread) {
  using T = typename Config::Scalar;
  using Walk = typename Config::Walk;
  const int warp = thread / 32, lane = thread % 32;
  ResultColumn one[Config::kTiles], two[Config::kTiles];
#pragma unroll
  for (int n = 0; n < Config::kTiles; ++n) {
    one[n] = columns[8 * n + lane % 4 * 2], two[n] = columns[8 * n + lane % 4 * 2 + 1];
  }
  const auto pair = [&](int n) { return one[n].channel >= 0 && two[n].channel == one[n].channel + 1; };
  const auto put = [&](int n, int m, int row) {
    const int d = Walk::depth(warp) + Walk::tile_depth(m, row);
    const int h = Walk::height(warp) + Walk::tile_height(m, row);
    const float first = sum[n][m][0][2 * row] + one[n].bias, second = sum[n][m][0][2 * row + 1] + two[n].bias;
    const int a = one[n].channel, b = two[n].channel;
    tile.put(d, h, lane / 4, a, a, a >= 0, pair(n), first, second);
    if (!pair(n)) tile.put(d, h, lane / 4, b, b, b >= 0, false, second, 0.0f);
  };
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 2 * Config::kRows; ++i) {
#pragma unroll
      for (int n = 0; n < Config::kTiles; ++n) put(n, i / 2, i % 2);
    }
  } else {
    const int voxel = (Walk::depth(warp) * tile.height + Walk::height(warp)) * kMmaTileWidth + lane / 4;
#pragma unroll
    for (int n = 0; n < Config::kTiles; ++n) {
      if (tile.by_channel || !pair(n) || one[n].channel % 2 != 0) {
#pragma unroll
        for (int i = 0; i < 2 * Config::kRows; ++i) put(n, i / 2, i % 2);
        continue;
      }
      // Nothing left to decide: without this the epilogue would have more instructions than two steps.
      unsigned char* to = tile.staged + voxel * tile.channel_pitch + one[n].channel * 2;
#pragma unroll
      for (int i = 0; i < 2 * Config::kRows; ++i) {
        const int row = i / Config::kRows, m = i % Config::kRows;
        T low, high;
        narrow(sum[n][m][0][2 * row] + one[n].bias, low);
        narrow(sum[n][m][0][2 * row + 1] + two[n].bias, high);
        const int ahead =
            (Walk::tile_depth(m, row) * Config::kTile.height + Walk::tile_height(m, row)) * kMmaTileWidth;
        *reinterpret_cast<uint32_t*>(to + ahead * tile.channel_pitch) = low.bits | uint32_t{high.bits} << 16;
      }
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kTile.blocks)
    shared_walk_kernel(MmaWork work, const typename Config::Scalar* source, const unsigned char* packed,
                       const ResultColumn* columns, typename Config::Scalar* result, bool whole_pieces) {
  using Scalar = typename Config::Scalar;
  DYNAMIC_SHARED(shared);
  walk_tiles<Config>(
      work, source, packed, result, whole_pieces, shared,
      [&](typename Config::Sums& sum, const unsigned char* stage, const unsigned char* weights) {
        const int thread = ptx::thread_x();
        walk_shifts<Config>(sum,
                            ptx::shared_address(stage) + Config::Walk::lane_byte(thread / 32, thread % 32),
                            weights, thread % 32);
      },
      [&](const typename Config::Sums& sum, const ResultTile<Scalar>& tile) {
        put_columns<Config>(sum, tile, columns, ptx::thread_x());
      });
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
                  static_cast<T*>(call.result), call.whole_pieces);
  };
}
template <class T>
SharedWalkLauncher shared_walk_instance(int shape) {
  return shared_walk_from<T>(shape);
}

}  // namespace acsconv
