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

// Tiles of the gather kernel: warps side by side, each 8 items wide, and voxels per lane. Half as many voxels
// in float64, whose registers are twice as wide; the two widest tiles are then too thin for their threads.
struct GatherTileShape {
  int warps, rows;
};
inline constexpr int kGatherColumns = 8;
inline constexpr GatherTileShape kGatherShapes[] = {{1, 4}, {2, 4}, {3, 6}, {4, 8}, {6, 6}, {8, 8}};
inline constexpr int kGatherShapeCount = 6, kGatherSmallShape = 1;

// Most taps of a kernel of the depthwise kernel.
inline constexpr int64_t kDepthwiseTaps = 128;

constexpr int gather_rows(ScalarType type, int shape) {
  return type == ScalarType::Float64 ? kGatherShapes[shape].rows / 2 : kGatherShapes[shape].rows;
}
constexpr bool gather_shape_exists(ScalarType type, int shape) {
  return gather_rows(type, shape) % kGatherShapes[shape].warps == 0 || kGatherShapes[shape].warps <= 4;
}

struct GatherPlan {
  std::string rejection;  // why the kernel cannot compute the problem; empty: it can
  int shape = 0;          // index into kGatherShapes
  int warps = 0, rows = 0;
  bool channels_inner = false;
  bool depthwise = false;  // by the kernel for that
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

// What tiles of `warps` warps for a view, or group, of `items` items cost per voxel and value of k, in
// multiplications of one lane: those of the padded tiles, and the loads, which a wide tile shares among more
// items.
inline int64_t gather_cost(int64_t items, int warps) {
  constexpr int64_t kLoadCost =
      24;  // from the kernel's machine code: 30 instructions, next to 1.25 a multiplication
  const int64_t width = warps * kGatherColumns;
  return (items + width - 1) / width * (width + kLoadCost);
}

inline GatherPlan plan_gather(const Problem& p, Pass pass, bool soft, const Machine& machine) {
  GatherPlan plan;
  plan.rejection = gather_rejection(p);
  if (!plan.rejection.empty()) return plan;
  const bool forward = pass == Pass::Forward;
  const int64_t in_group = p.in_channels / p.groups, out_group = p.out_channels / p.groups;

  // Every channel alone: no product of matrices is left. Its kernel keeps the weights of 32 channels at hand.
  if (in_group == 1 && out_group == 1 && !soft && p.kernel_h * p.kernel_w <= kDepthwiseTaps) {
    plan.depthwise = true;
    plan.channels_inner = p.input.channel == 1 && p.output.channel == 1;
    return plan;
  }

  // Neighbouring channels in neighbouring lanes pay off once a slice of 8 finds 8 of them.
  const VolumeStrides& source = forward ? p.input : p.output;
  plan.channels_inner = source.channel == 1 && (forward ? in_group : out_group) >= kGatherColumns;

  // Runs of items that share a geometry: `pieces[i]` runs of `items[i]`.
  int64_t pieces[kViews] = {p.groups, 0, 0}, items[kViews] = {forward ? out_group : in_group, 0, 0};
  if (forward && !soft) {
    for (int view = 0; view < kViews; ++view) {
      items[view] = std::min(p.split[view], out_group);
      pieces[view] = items[view] == 0 ? 0 : std::max<int64_t>(1, p.split[view] / out_group);
    }
  }
  const int64_t* size = forward ? p.out_size : p.in_size;
  const int64_t voxels = size[0] * size[1] * size[2] * p.batch;

  // The cheapest tile of which there are enough to fill the machine twice; if there is none, the small one.
  int64_t best = INT64_MAX;
  for (int shape = 0; shape < kGatherShapeCount; ++shape) {
    if (!gather_shape_exists(p.type, shape)) continue;
    const int warps = kGatherShapes[shape].warps;
    int64_t cost = 0, item_tiles = 0;
    for (int view = 0; view < kViews; ++view) {
      cost += pieces[view] * gather_cost(items[view], warps);
      item_tiles += pieces[view] * ((items[view] + warps * kGatherColumns - 1) / (warps * kGatherColumns));
    }
    const int64_t tiles = item_tiles * (voxels / (32 * gather_rows(p.type, shape)) + 1);
    const bool enough = tiles >= 2 * machine.multiprocessors;
    if ((enough && cost < best) || (best == INT64_MAX && shape == kGatherSmallShape)) {
      if (enough) best = cost;
      plan.shape = shape;
      plan.tiles = tiles;
    }
  }
  plan.warps = kGatherShapes[plan.shape].warps;
  plan.rows = gather_rows(p.type, plan.shape);
  return plan;
}

inline std::string GatherPlan::describe() const {
  if (!rejection.empty()) return "gather: " + rejection;
  const std::string order = channels_inner ? "channels along a warp" : "voxels along a warp";
  if (depthwise) return "depthwise: " + order;
  return "gather: tile " + std::to_string(32 * rows) + " voxels x " + std::to_string(kGatherColumns * warps) +
         " channels, " + std::to_string(32 * warps) + " threads, about " + std::to_string(tiles) +
         " tiles, " + order;
}

struct WeightPlan {
  std::string rejection;
  int warps = 0;  // side by side, each 8 items wide
  bool channels_inner = false;
  int64_t parts = 1, part_voxels = 0;  // the voxels of all batches, cut into parts
  size_t workspace_bytes = 0;

  std::string describe() const;
};

inline constexpr int64_t kLargestWorkspace = 64 << 20;

inline WeightPlan plan_backward_weight(const Problem& p, bool soft, const Machine& machine) {
  WeightPlan plan;
  plan.rejection = gather_rejection(p);
  if (!plan.rejection.empty()) return plan;
  const int64_t in_group = p.in_channels / p.groups, out_group = p.out_channels / p.groups;
  plan.channels_inner = p.input.channel == 1 && in_group >= kGatherColumns;

  int64_t best = INT64_MAX, item_tiles = 0;
  for (const int warps : {1, 2, 4, 8}) {
    int64_t cost = 0, tiles = 0;
    for (int view = 0; view < kViews; ++view) {
      const int64_t channels = soft ? p.out_channels : p.split[view];
      const int64_t items = std::min(channels, out_group);
      const int64_t pieces = items == 0 ? 0 : std::max<int64_t>(1, channels / out_group);
      cost += pieces * gather_cost(items, warps);
      tiles += pieces * ((items + warps * kGatherColumns - 1) / (warps * kGatherColumns));
    }
    if (cost < best) best = cost, plan.warps = warps, item_tiles = tiles;
  }

  // Enough parts to fill the machine four times, but none of fewer than 512 voxels, and no more than fit.
  constexpr int64_t kLeastVoxels = 512;
  const int64_t columns = in_group * p.kernel_h * p.kernel_w + 1;
  const int64_t tiles = std::max<int64_t>(1, item_tiles * ((columns + 127) / 128));
  const int64_t bytes =
      columns * p.out_channels * (soft ? kViews : 1) * (p.type == ScalarType::Float64 ? 8 : 4);
  const int64_t voxels = p.batch * p.out_size[0] * p.out_size[1] * p.out_size[2];
  const int64_t wanted = (4 * machine.multiprocessors + tiles - 1) / tiles;
  plan.parts = std::max<int64_t>(1, std::min({wanted, voxels / kLeastVoxels, kLargestWorkspace / bytes}));
  plan.part_voxels = (voxels + plan.parts - 1) / plan.parts;
  plan.workspace_bytes = plan.parts > 1 ? static_cast<size_t>(plan.parts * bytes) : 0;
  return plan;
}

inline std::string WeightPlan::describe() const {
  if (!rejection.empty()) return "gradient of the weight: " + rejection;
  return "gradient of the weight: tiles of " + std::to_string(kGatherColumns * warps) + " channels, " +
         std::to_string(parts) + " parts of " + std::to_string(part_voxels) + " voxels, workspace " +
         std::to_string(workspace_bytes) + " bytes, " +
         (channels_inner ? "channels along a warp" : "voxels along a warp");
}

}  // namespace acsconv
