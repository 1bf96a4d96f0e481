// What the forward kernels with resident weights have in common (mma_resident_plan.h says which they are): a
// block copies the layer's packed weights to shared memory and takes tile after tile of voxels. Steps of all
// tiles form one pipeline of two stages, so that the next tile's first step is under way while the last
// products of a tile are computed and its results are written. A Config has
//
//   Scalar, HaloOf, kTile, kThreads   as the other tensor-core kernels; kTile is the shape
//   kStepBytes, kMemory               packed weights of a step; the shared memory
//   Sums                              what a thread sums of a tile
#pragma once

#include "../mma_resident_plan.h"
#include "mma_copy.cuh"
#include "mma_store.cuh"

namespace acsconv {

template <class Config>
__device__ __forceinline__ void load_halo(const MmaWork& work, const typename Config::Scalar* source,
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

// Writes staged rows of channels as pieces of 16 bytes, where all of them are whole and aligned: a thread
// keeps its piece and its place along W.
template <class Config>
__device__ __forceinline__ void store_pieces(const ResultTile<typename Config::Scalar>& tile, int thread) {
  const MmaWork& work = tile.work;
  const int groups = work.columns / 8, pieces = kMmaTileWidth * groups, rows = Config::kThreads / pieces;
  const int w = thread % pieces / groups, group = thread % groups,
            at_w = result_position(work, tile.place, 2, w);
  if (thread >= rows * pieces || at_w >= work.result_size[2]) return;
  typename Config::Scalar* to = tile.result + at_w * work.result.axis[2] + group * 8;
#pragma unroll 2
  for (int row = thread / pieces; row < Config::kTile.depth * Config::kTile.height; row += rows) {
    const int at_d = result_position(work, tile.place, 0, row / Config::kTile.height);
    const int at_h = result_position(work, tile.place, 1, row % Config::kTile.height);
    if (at_d >= work.result_size[0] || at_h >= work.result_size[1]) continue;
    *reinterpret_cast<uint4*>(to + at_d * work.result.axis[0] + at_h * work.result.axis[1]) =
        *reinterpret_cast<const uint4*>(tile.staged + (row * kMmaTileWidth + w) * tile.channel_pitch +
                                        group * 16);
  }
}

// All tiles of a block. `multiply(sum, stage, weights)` adds a step of the reduction, whose planes and
// weights lie there, to the sums; `put(sum, tile)` gives them, plus the bias, to the tile, where all channels
// of a voxel are one row. `whole_pieces`: 8 channels of the result from a multiple of 8 on are 16 aligned
// bytes.
template <class Config, class Multiply, class Put>
__device__ __forceinline__ void walk_tiles(const MmaWork& work, const typename Config::Scalar* source,
                                           const unsigned char* packed, typename Config::Scalar* result,
                                           bool whole_pieces, unsigned char* shared, const Multiply& multiply,
                                           const Put& put) {
  using T = typename Config::Scalar;
  using HaloOf = typename Config::HaloOf;
  constexpr ResidentMemory kMemory = Config::kMemory;
  const auto table = [&](int index) { return reinterpret_cast<int*>(shared + index * kMemory.table); };

  for (int i = threadIdx.x * 16; i < work.steps * Config::kStepBytes; i += Config::kThreads * 16) {
    ptx::cp_async<16>(ptx::shared_address(shared) + static_cast<uint32_t>(kMemory.weights) + i, packed + i,
                      16);
  }
  const T *from = source, *next = source;
  int parity = 0;
  // The step after a tile's last one is the first of the next tile.
  const auto load = [&](int step, int stage) {
    const bool of_next = step == work.steps;
    load_halo<Config>(work, of_next ? next : from, table(of_next ? parity ^ 1 : parity),
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

    typename Config::Sums sum = {};
#pragma unroll 1
    for (int step = 0; step < work.steps; ++step, stage ^= 1) {
      advance_pipeline({0, work.steps + more}, step, stage, load);
      multiply(sum, shared + kMemory.stage_at(stage), shared + kMemory.weights + step * Config::kStepBytes);
    }
    from = next;
    parity ^= 1;

    // 16-bit results are staged where the last step has been read; the other stage is being filled.
    const StagedColumns all = StagedColumns::of({0, work.columns}, {0, 0}, {0, 0});
    const ResultTile<T> tile(work, Config::kTile, mma_place(work, Config::kTile, static_cast<int>(index)),
                             /*block=*/0, result, shared + kMemory.staged_at(stage ^ 1), all);
    if constexpr (sizeof(T) == 2) __syncthreads();
    put(sum, tile);
    if constexpr (sizeof(T) == 2) __syncthreads();
    if (sizeof(T) == 2 && whole_pieces) {
      store_pieces<Config>(tile, ptx::thread_x());
    } else {
      tile.template store<Config::kThreads>(all, ptx::thread_x());
    }
  }
}

}  // namespace acsconv
