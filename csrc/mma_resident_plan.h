// Kernels of the forward pass whose weights stay in shared memory: their memory, and the plan of one view per
// warp (kernels/mma_resident_views.cuh). The walk shared by the views is the other such kernel:
// mma_shared_walk_plan.h.
//
// Blocks stay: one takes tile after tile of voxels, the layer's weights remain in shared memory, and the
// first step of the next tile is copied while the results of the last are written. One view per warp then
// reads nothing but the halo from the second-level cache. At 24 columns of a view (64 output channels) a step
// of the usual tile, 4 x 8 x 8 voxels, reads 19200 bytes of voxels and 20736 of weights for 1296 products of
// 16 x 8, which take 2592 clocks of an A100's multiprocessor and 2074 of Hopper's: 15 and 19 bytes a clock.
// Without the weights 7 and 9 are left. At 16 columns (48 output channels) it is 19200 + 13824 bytes for 864
// products, 19 and 24 a clock, and in a tile of 8 x 8 x 8, 32000 bytes for 1728 products, 9 and 12.
#pragma once

#include "mma_plan.h"

namespace acsconv {

// Shared memory: two tables of where the halo's voxels lie, this tile's and the next one's; two stages of two
// planes; the weights. 16-bit results are staged over the stage that was read last, while the other is
// filled; where they need more, it lies between the two.
struct ResidentMemory {
  size_t table, plane, stage, between, weights;
  ACSCONV_HD constexpr size_t stages() const { return 2 * table; }
  ACSCONV_HD constexpr size_t stage_at(int index) const { return stages() + index * (stage + between); }
  ACSCONV_HD constexpr size_t staged_at(int index) const { return stages() + index * stage; }
};
constexpr ResidentMemory resident_memory(const MmaShape& tile, int staged_channels) {
  const int halo = mma_halo_voxels(tile, true, true, true);
  ResidentMemory m{};
  m.table = mma_round(static_cast<size_t>(halo) * 4);
  m.plane = static_cast<size_t>(mma_plane_bytes(halo));
  m.stage = mma_round(2 * m.plane);
  const size_t staged = mma_round(mma_staged_bytes(tile, staged_channels));
  m.between = staged > m.stage ? staged - m.stage : 0;
  m.weights = 2 * m.table + 2 * m.stage + m.between;
  return m;
}
// Blocks of a kernel that a multiprocessor holds: each takes 1 KiB of shared memory more than it asks for.
inline int resident_blocks(const Machine& machine, size_t shared_bytes, int most) {
  return std::min(most, static_cast<int>((machine.block_shared_bytes + 1024) / (shared_bytes + 1024)));
}

// One view per warp, with up to 16 and 24 channels of a view. One block of 12 warps, since beside the weights
// there is rarely room for two: three warps on each scheduler with up to 168 registers a lane. At 16 columns
// a warp has 8 x 16 voxels, whose 30 fragments serve 72 products of each column; at 24 columns 4 x 16 (18 for
// 36), since sums of 96 registers beside what the walk over tiles needs spilled on 10.0 and 12.0. Wavefronts
// of shared memory take 0.61 and 0.64 of the clocks of the products on an A100, 0.77 and 0.80 on Hopper. What
// precedes the weights is 97664 and 62208 bytes, and a step of the reduction takes 13824 or 20736 more: of a
// block's 163 KiB on an A100 and 227 KiB on Hopper,
//
//   columns, tile         input channels of 16 bits, A100   Hopper
//   16       8 x 8 x 8    80                                144
//   24       4 x 8 x 8    80                                128
inline constexpr MmaShape kResidentViewsShapes[] = {{2, 8, 8, 8, 1, 1}, {3, 4, 4, 8, 1, 1}};

// A block has all channels, so the staged row is the result's.
constexpr ResidentMemory resident_views_memory(const MmaShape& shape) {
  return resident_memory(shape, kViews * 8 * shape.columns);
}
constexpr size_t resident_views_step_bytes(const MmaShape& shape) {
  return size_t{27} * shape.columns * kMmaUnitBytes;
}
// 64 to 64 channels on an A100.
static_assert(resident_views_memory(kResidentViewsShapes[1]).weights +
                  4 * resident_views_step_bytes(kResidentViewsShapes[1]) <=
              163 * 1024);

struct ResidentViewsPlan {
  std::string rejection = "not asked for";
  int shape = 0;
  MmaPlan tiles;   // one view per warp, its weights packed as always, its tiles of this shape
  int blocks = 0;  // of the machine: they take the tiles in turn
  std::string describe() const;
};

// `plan`: of plan_mma(), one view per warp with stride 1. The shape has its columns.
inline ResidentViewsPlan plan_resident_views(const Problem& p, const MmaPlan& plan, const Machine& machine) {
  ResidentViewsPlan best;
  best.tiles = plan;
  if (plan.groups > 1) {
    best.rejection = "groups";
    return best;
  }
  if (plan.parts > 1) {
    best.rejection = "the reduction is cut into parts";
    return best;
  }
  best.rejection = "for 9 to 24 channels of the widest view only";
  for (int shape = 0; shape < shape_count(kResidentViewsShapes) && !best.rejection.empty(); ++shape) {
    const MmaShape& s = kResidentViewsShapes[shape];
    if (plan.column_blocks > 1 || plan.chosen().columns != s.columns) continue;
    const size_t bytes = resident_views_memory(s).weights + plan.packed_bytes;
    if (bytes > machine.block_shared_bytes) {
      best.rejection = "the weights do not fit into shared memory";
      continue;
    }
    best.rejection = place_tiles(p, true, s, best.tiles);
    best.shape = shape;
    best.blocks = static_cast<int>(std::min(
        best.tiles.tiles, int64_t{machine.multiprocessors} * resident_blocks(machine, bytes, s.blocks)));
  }
  return best;
}

inline std::string ResidentViewsPlan::describe() const {
  if (!rejection.empty()) return "no resident weights: " + rejection;
  const MmaShape& s = kResidentViewsShapes[shape];
  return "tensor cores, one view per warp with resident weights: tile " + std::to_string(s.depth) + " x " +
         std::to_string(s.height) + " x " + std::to_string(kMmaTileWidth) + " voxels x " +
         std::to_string(8 * s.columns) + " channels of a view, " + std::to_string(view_per_warp_threads(s)) +
         " threads, " + std::to_string(tiles.tiles) + " tiles for " + std::to_string(blocks) + " blocks, " +
         std::to_string(tiles.steps) + " steps, " + std::to_string(tiles.packed_bytes) +
         " bytes of weights resident";
}

}  // namespace acsconv
