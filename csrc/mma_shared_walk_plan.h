// Narrow layers of the forward pass on tensor cores: the walk shared by the views
// (kernels/mma_shared_walk.cuh), and the choice between it and one view per warp (mma_plan.h), whose form
// with resident weights is taken where it is asked for only: no GPU has measured it.
//
// Of the 27 voxels around a result the three views read 19. In the shared walk every warp computes the
// columns of all views and loads a fragment once for every view that reads it. Each view has `full` tiles of
// 8 columns of its own, multiplied at its 9 shifts; what these leave of the views stands in `mixed` tiles,
// multiplied at all 19, with weights of zero where a column's view does not read. So 32 channels (11, 11, 10)
// are 27 + 19 = 46 tiles of columns per step of the reduction, against 54 with two tiles for every view.
// Blocks stay, with the layer's weights in shared memory (mma_resident_plan.h).
#pragma once

#include "mma_resident_plan.h"

namespace acsconv {

struct SharedWalkShape {
  int full, mixed;  // tiles of 8 columns of each view, and of what is left
  MmaShape tile;    // its `columns` are all of them
};
// 8 x 16 voxels per warp load 82 fragments for 8 x 46 products, 4 x 16 load 46 for half as many; but only 228
// KiB per multiprocessor hold two blocks of the larger tile next to the weights of 32 channels.
inline constexpr SharedWalkShape kSharedWalkShapes[] = {
    {1, 0, {3, 8, 8, 8, 1, 2}},
    {1, 1, {4, 8, 8, 8, 1, 2}},
    {1, 1, {4, 4, 4, 8, 1, 3}},
};
inline constexpr int kSharedWalkShapeCount = 3;

ACSCONV_HD constexpr int shared_walk_threads(const SharedWalkShape& shape) {
  return mma_tile_voxels(shape.tile) / (16 * shape.tile.rows) * 32;
}

// Whether a tile of columns is multiplied at shift (d, h, w), each 0, 1 or 2: view 0 reads where d is 1, and
// so on; the mixed tiles read wherever any view does.
ACSCONV_HD constexpr bool shift_in_view(int view, int d, int h, int w) {
  return (view == 0 ? d : view == 1 ? h : w) == 1;
}
ACSCONV_HD constexpr bool shared_walk_multiplies(int full, int tile, int d, int h, int w) {
  return tile < kViews * full ? shift_in_view(tile / full, d, h, w) : d == 1 || h == 1 || w == 1;
}
// Units, the weights of a tile at a shift, stand in the order of (d, w), h, tile. Number of those of a step
// before shift (d, h, w).
ACSCONV_HD constexpr int units_before_shift(int full, int mixed, int d, int h, int w) {
  int units = 0;
  for (int shift = 0; shift < d * 9 + w * 3 + h; ++shift) {
    for (int tile = 0; tile < kViews * full + mixed; ++tile) {
      units += shared_walk_multiplies(full, tile, shift / 9, shift % 3, shift / 3 % 3) ? 1 : 0;
    }
  }
  return units;
}
ACSCONV_HD constexpr int shared_walk_units(int full, int mixed) { return kViews * 9 * full + 19 * mixed; }

constexpr ResidentMemory shared_walk_memory(const SharedWalkShape& shape) {
  return resident_memory(shape.tile, 8 * shape.tile.columns);
}

// Channels begin <= c < end of a view; those from `first` on stand in the view's own columns, the others in
// mixed ones. Where there is a choice `first` is even: a lane holds pairs of columns, and stores a pair of
// channels at once if it begins at an even one.
struct PlacedView {
  int begin, first, end;
};
ACSCONV_HD inline PlacedView place_view(int full, int begin, int end) {
  const int odd = begin % 2, own = 8 * full;
  return {begin, end - begin > own ? begin + odd : end - begin < own ? begin - odd : begin, end};
}
// Channels of a view in mixed columns.
ACSCONV_HD inline int mixed_channels(int full, const PlacedView& v) {
  return v.end - v.begin > 8 * full ? v.end - v.begin - 8 * full : 0;
}
struct PlacedColumn {
  int view, channel;  // -1: none
};
ACSCONV_HD inline PlacedColumn place_column(const int (&split)[kViews], int full, int column) {
  const int own = 8 * full;
  int begin = 0, mixed = column - kViews * own;
  for (int view = 0; view < kViews; ++view) {
    const PlacedView v = place_view(full, begin, begin + split[view]);
    begin = v.end;
    if (column < kViews * own) {
      if (column / own != view) continue;
      const int channel = v.first + column % own;
      return {view, channel >= v.begin && channel < v.end ? channel : -1};
    }
    const int count = mixed_channels(full, v), before = v.first - v.begin;
    if (mixed < count) return {view, mixed < before ? v.begin + mixed : v.first + own + mixed - before};
    mixed -= count;
  }
  return {0, -1};
}

// Forced for measurements and tests, wherever the walk can be taken; otherwise the cheaper one of PerView and
// Shared.
enum class ForwardWalk { Cheaper, PerView, Shared, Resident };

struct SharedWalkPlan {
  std::string rejection;
  int shape = 0;
  MmaPlan tiles;   // tiles of voxels, steps, packed bytes
  int blocks = 0;  // of the machine: they take the tiles in turn
  double clocks = 0;

  const SharedWalkShape& chosen() const { return kSharedWalkShapes[shape]; }
  std::string describe() const;
};

// A pass on tensor cores as plan_mma() plans it, and where it is better the shared walk.
struct TensorCorePlan {
  MmaPlan plan;
  SharedWalkPlan shared;
  ResidentViewsPlan resident;
  double clocks = 0;  // of one view per warp, where the shared walk is an alternative

  bool takes_shared() const { return shared.rejection.empty(); }
  bool takes_resident() const { return resident.rejection.empty(); }
  size_t workspace_bytes() const {
    return (takes_resident() ? resident.tiles : takes_shared() ? shared.tiles : plan).workspace_bytes();
  }
  std::string describe() const;
};

// Clocks of the busiest multiprocessor for its tiles of `products` products of 16 x 8 and `wavefronts` of
// shared memory, of 128 bytes each, per step: they overlap. A product takes 2 clocks on an A100 and, taken
// from published rates, 1.6 on Hopper. Nothing fills the pauses of a block that is alone: half as long again.
inline double busy_clocks(const Machine& machine, int64_t tiles, int64_t steps, int blocks, double products,
                          double wavefronts) {
  const int64_t each = (tiles + machine.multiprocessors - 1) / machine.multiprocessors;
  const double step = std::max(products * (machine.capability >= 90 ? 1.6 : 2.0), wavefronts);
  return static_cast<double>(each * steps) * step * (std::min<int64_t>(blocks, each) < 2 ? 1.5 : 1.0);
}

// ldmatrix of 16 bytes per lane takes 4 wavefronts, the weights of a product 2, a copy one for 8 voxels' 16
// bytes.
inline double view_per_warp_clocks(const MmaPlan& plan, const Machine& machine) {
  const MmaShape& s = plan.chosen();
  const int warps = view_per_warp_threads(s) / 32;
  const double rows = s.rows == 8 ? 32 : s.stride * 3 * (s.rows + 2);  // fragments, mean of the views
  const double products = 27.0 * s.columns * mma_tile_voxels(s) / 16;
  const double wavefronts = warps * (4 * rows + 2.0 * 9 * s.columns) +
                            2.0 * mma_halo_voxels(s, true, true, true) / 8 + 2.0 * 27 * s.columns;
  return busy_clocks(machine, plan.tiles * plan.column_blocks, plan.steps,
                     resident_blocks(machine, view_per_warp_shared(s).total, s.blocks), products,
                     wavefronts) /
         plan.parts;
}
inline double shared_walk_clocks(const SharedWalkShape& s, const MmaPlan& tiles, int blocks,
                                 const Machine& machine) {
  const int warps = shared_walk_threads(s) / 32, units = shared_walk_units(s.full, s.mixed);
  const double rows = 5.0 * (s.tile.rows + 2) + 4.0 * s.tile.rows;
  const double wavefronts =
      warps * (4 * rows + 2.0 * units) + 2.0 * mma_halo_voxels(s.tile, true, true, true) / 8;
  return busy_clocks(machine, tiles.tiles, tiles.steps, blocks, units * mma_tile_voxels(s.tile) / 16.0,
                     wavefronts);
}

// The cheapest shape of the shared walk that takes the problem, for which there is a plan with one view per
// warp.
inline SharedWalkPlan plan_shared_walk(const Problem& p, const Machine& machine) {
  SharedWalkPlan best;
  best.rejection = "the views do not fit into its tiles of columns";
  for (int shape = 0; shape < kSharedWalkShapeCount; ++shape) {
    const SharedWalkShape& s = kSharedWalkShapes[shape];
    SharedWalkPlan plan;
    plan.shape = shape;
    int64_t mixed = 0;
    for (const int64_t channels : p.split) mixed += std::max<int64_t>(0, channels - 8 * s.full);
    if (mixed > 8 * s.mixed) continue;
    plan.rejection = place_tiles(p, true, s.tile, plan.tiles);
    if (plan.rejection.empty()) {
      plan.tiles.steps = static_cast<int>(steps_of_channels(p, 0, p.in_channels));
      plan.tiles.packed_bytes =
          static_cast<size_t>(plan.tiles.steps) * shared_walk_units(s.full, s.mixed) * kMmaUnitBytes;
      plan.tiles.bias_bytes = size_t(8 * s.tile.columns) * 8;  // ResultColumn
      const size_t bytes = shared_walk_memory(s).weights + plan.tiles.packed_bytes;
      if (bytes > machine.block_shared_bytes) {
        plan.rejection = "the weights do not fit into shared memory";
      } else {
        const int each = resident_blocks(machine, bytes, s.tile.blocks);
        plan.blocks = static_cast<int>(std::min(plan.tiles.tiles, int64_t{machine.multiprocessors} * each));
        plan.clocks = shared_walk_clocks(s, plan.tiles, each, machine);
      }
    }
    const bool cheaper = plan.rejection.empty() && plan.clocks < best.clocks;
    if (cheaper || !best.rejection.empty()) best = plan;
  }
  return best;
}

inline TensorCorePlan plan_on_tensor_cores(const Problem& p, Pass pass, bool soft, bool allow_tf32,
                                           const Machine& machine, ForwardWalk wanted) {
  TensorCorePlan both;
  both.plan = plan_mma(p, pass, soft, allow_tf32, machine);
  both.shared.rejection = "for ACS forward with 3 x 3 kernels and stride 1 only";
  if (!both.plan.rejection.empty() || !both.plan.view_per_warp || p.stride[0] != 1) return both;
  if (wanted == ForwardWalk::Resident) {
    both.resident = plan_resident_views(p, both.plan, machine);
    if (both.takes_resident()) {
      both.shared.rejection = "resident weights are asked for";
      return both;
    }
  }
  if (p.groups > 1) {
    both.shared.rejection = "groups";
    return both;
  }
  both.clocks = view_per_warp_clocks(both.plan, machine);
  both.shared = plan_shared_walk(p, machine);
  if (!both.takes_shared() || wanted == ForwardWalk::Shared) return both;
  if (wanted == ForwardWalk::PerView) {
    both.shared.rejection = "one view per warp is asked for";
  } else if (both.shared.clocks >= both.clocks) {
    both.shared.rejection = "one view per warp is cheaper";
  }
  return both;
}

inline std::string SharedWalkPlan::describe() const {
  if (!rejection.empty()) return "no shared walk: " + rejection;
  const MmaShape& s = chosen().tile;
  return "tensor cores, a walk shared by the views: tile " + std::to_string(s.depth) + " x " +
         std::to_string(s.height) + " x " + std::to_string(kMmaTileWidth) + " voxels x " +
         std::to_string(8 * s.columns) + " columns, " + std::to_string(shared_walk_threads(chosen())) +
         " threads, " + std::to_string(tiles.tiles) + " tiles for " + std::to_string(blocks) + " blocks, " +
         std::to_string(tiles.steps) + " steps, " + std::to_string(tiles.packed_bytes) +
         " bytes of weights resident";
}

inline std::string TensorCorePlan::describe() const {
  if (takes_resident()) return resident.describe();
  if (clocks == 0) return plan.describe();
  const auto rounded = [](double value) { return std::to_string(static_cast<int64_t>(value)) + " clocks"; };
  const std::string costs = shared.clocks == 0 ? "" : ", " + rounded(shared.clocks);
  if (takes_shared()) return shared.describe() + costs + "; one view per warp " + rounded(clocks);
  return plan.describe() + ", " + rounded(clocks) + "; " + shared.describe() + costs;
}

}  // namespace acsconv
