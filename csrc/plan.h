// Which kernel computes a problem, and with which tile: a pure function of the problem and the machine, so
// that it can be printed and tested without a GPU. Launchers follow the plan; nothing else decides.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "problem.h"

namespace acsconv {

enum class Pass : int32_t { Forward, BackwardInput };

struct Machine {
  int multiprocessors;
};

// Tiles of the gather kernel: warps side by side, each 8 items wide, and voxels per lane.
struct GatherTileShape {
  int warps, rows;
};
inline constexpr int kGatherColumns = 8;
inline constexpr GatherTileShape kGatherShapes[] = {{1, 4}, {2, 4}, {3, 6}, {4, 8}};
inline constexpr int kGatherShapeCount = 4, kGatherSmallShape = 1;

// Voxels per lane: half as many in float64, whose registers are twice as wide.
constexpr int gather_rows(ScalarType type, int shape) {
  return type == ScalarType::Float64 ? kGatherShapes[shape].rows / 2 : kGatherShapes[shape].rows;
}

struct GatherPlan {
  std::string rejection;  // why the kernel cannot compute the problem; empty: it can
  int shape = 0;          // index into kGatherShapes
  int warps = 0, rows = 0;
  bool channels_inner = false;
  int64_t tiles = 0;

  std::string describe() const;
};

// Coordinates are kept in 32 bits and the sum of a voxel's index, the origin and a tap's shift must fit.
inline std::string gather_rejection(const Problem& p) {
  constexpr int64_t limit = int64_t{1} << 28;
  const int64_t taps = p.kernel_h * p.kernel_w;
  if (p.kernel_h > limit || p.kernel_w > limit || p.in_channels / p.groups > limit / taps ||
      p.out_channels / p.groups > limit / taps) {
    return "a reduction over more than 2^28 products is not supported";
  }
  for (int axis = 0; axis < 3; ++axis) {
    if (p.in_size[axis] > limit || p.out_size[axis] > limit ||
        (p.out_size[axis] > 0 && p.stride[axis] > limit / p.out_size[axis])) {
      return "a volume axis longer than 2^28 is not supported";
    }
    for (int view = 0; view < kViews; ++view) {
      const int64_t extent = kernel_extent(view, axis, p.kernel_h, p.kernel_w);
      if (p.origin[view][axis] < -limit || p.origin[view][axis] > limit ||
          p.dilation[view][axis] > limit / extent) {
        return "padding or dilation beyond 2^28 is not supported";
      }
    }
  }
  return {};
}

// Tiles of a view (or group) of `items` items, and what they cost: the multiplications of a padded tile, and
// the loads, which a wider tile shares among more items (12 instructions an element, from the kernel's
// machine code).
inline int64_t gather_cost(int64_t items, int warps) {
  constexpr int64_t kLoadCost = 12;
  const int64_t width = warps * kGatherColumns;
  return (items + width - 1) / width * (width + kLoadCost);
}

inline GatherPlan plan_gather(const Problem& p, Pass pass, bool soft, const Machine& machine) {
  GatherPlan plan;
  plan.rejection = gather_rejection(p);
  if (!plan.rejection.empty()) return plan;
  const bool forward = pass == Pass::Forward;
  const int64_t in_group = p.in_channels / p.groups, out_group = p.out_channels / p.groups;

  // Neighbouring channels in neighbouring lanes pay off once a slice of 8 finds 8 of them.
  const VolumeStrides& source = forward ? p.input : p.output;
  plan.channels_inner = source.channel == 1 && (forward ? in_group : out_group) >= kGatherColumns;

  int64_t best = INT64_MAX, tiles_of_best = 0;
  for (int shape = 0; shape < kGatherShapeCount; ++shape) {
    const int warps = kGatherShapes[shape].warps;
    const int64_t width = warps * kGatherColumns;
    int64_t cost = 0, item_tiles = 0;
    if (forward && !soft) {
      for (const int64_t view : p.split) {
        const int64_t pieces = view == 0 ? 0 : std::max<int64_t>(1, view / out_group);
        cost += pieces * gather_cost(std::min(view, out_group), warps);
        item_tiles += pieces * ((std::min(view, out_group) + width - 1) / width);
      }
    } else {
      const int64_t items = forward ? out_group : in_group;
      cost = p.groups * gather_cost(items, warps);
      item_tiles = p.groups * ((items + width - 1) / width);
    }
    if (cost < best) best = cost, plan.shape = shape, tiles_of_best = item_tiles;
  }
  const int64_t* size = forward ? p.out_size : p.in_size;
  const int64_t voxels = size[0] * size[1] * size[2] * p.batch;
  plan.tiles = tiles_of_best * (voxels / (32 * gather_rows(p.type, plan.shape)) + 1);
  if (plan.tiles < 2 * machine.multiprocessors) {
    plan.shape = kGatherSmallShape;  // too few blocks to fill the machine: smaller ones
    plan.tiles = tiles_of_best * (voxels / (32 * gather_rows(p.type, plan.shape)) + 1);
  }
  plan.warps = kGatherShapes[plan.shape].warps;
  plan.rows = gather_rows(p.type, plan.shape);
  return plan;
}

inline std::string GatherPlan::describe() const {
  if (!rejection.empty()) return "gather: rejected: " + rejection;
  return "gather: tile " + std::to_string(32 * rows) + " voxels x " + std::to_string(kGatherColumns * warps) +
         " channels, " + std::to_string(32 * warps) + " threads, about " + std::to_string(tiles) +
         " tiles, " + (channels_inner ? "channels along a warp" : "voxels along a warp");
}

}  // namespace acsconv
