// Which kernel computes a problem, and with which tile: a pure function of the problem and the machine, so
// that it can be printed and tested without a GPU. Launchers follow the plan; nothing else decides.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "few_channels_plan.h"
#include "problem.h"

namespace acsconv {

enum class Pass : int32_t { Forward, BackwardInput };

struct Machine {
  int multiprocessors;
  int capability = 90;                    // compute capability, 10 * major + minor
  size_t block_shared_bytes = 227 << 10;  // most shared memory of a block
};

// Tiles of the gather kernel: warps side by side, each 8 items wide, and voxels per lane. Half as many voxels
// in float64, whose registers are twice as wide.
struct GatherTileShape {
  int warps, rows;
};
inline constexpr int kGatherColumns = 8;
inline constexpr GatherTileShape kGatherShapes[] = {{1, 4}, {2, 4}, {3, 6}, {4, 8}, {6, 6}, {8, 8}};
inline constexpr int kGatherShapeCount = 6, kGatherSmallShape = 1;

// Most taps of a kernel of the depthwise kernels, which keep the weights of 32 channels at hand.
inline constexpr int64_t kDepthwiseTaps = 128;
// Most output channels of an input channel there: with more of them the gather kernel's tiles are full.
inline constexpr int64_t kDepthwiseMultiplier = 4;
// Channels of a block in the depthwise gradient of the weight, when a warp holds channels and when it holds
// voxels.
inline constexpr int kDepthwiseInner = 32, kDepthwiseOuter = 4;

constexpr int gather_rows(ScalarType type, int shape) {
  return type == ScalarType::Float64 ? kGatherShapes[shape].rows / 2 : kGatherShapes[shape].rows;
}
// Every tile costs compile time on every architecture. In float32, which people train with here, all of them
// are built. float64 is for checking gradients, and 16 bits are for tensor cores wherever these take the
// layer: their tiles are 16 and 32 channels wide, in 16 bits 64 too, at most a third slower on some views.
constexpr bool gather_shape_exists(ScalarType type, int shape) {
  return type == ScalarType::Float32 || kGatherShapes[shape].warps == 2 || kGatherShapes[shape].warps == 4 ||
         (type != ScalarType::Float64 && kGatherShapes[shape].warps == 8);
}
// The same for the tiles of the gradient of the weight, wide and narrow (plan_backward_weight()).
inline constexpr int kNarrowWarps = 4;  // most warps of a narrow tile
constexpr bool weight_tile_exists(ScalarType type, int warps, bool narrow) {
  return narrow ? warps <= kNarrowWarps && (type == ScalarType::Float32 || warps == 2)
                : type == ScalarType::Float32 || warps == 2 || warps == 8;
}
// Rows and columns of taps that a thread of the depthwise gradient of the weight sums at once.
constexpr bool depthwise_taps_exist(ScalarType type, int taps) {
  return taps == 3 || type != ScalarType::Float64;
}

struct GatherPlan {
  std::string rejection;  // why the kernel cannot compute the problem; empty: it can
  int shape = 0;          // index into kGatherShapes
  int warps = 0, rows = 0;
  bool channels_inner = false;
  std::string not_depthwise;  // why not by the kernel for that; empty: by it
  FewChannelsPlan few;        // and its rejection: why not by the kernel for few input channels
  std::string not_folded;     // Soft ACS: why its kernels are not folded (kernels/fold_soft.h)
  int64_t tiles = 0;
  size_t workspace_bytes = 0;  // for the folded kernels; 0 without

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

// Why the kernels for layers in which every input channel is a group, so that no product of matrices is left,
// do not take a problem; empty: they do.
inline std::string depthwise_rejection(const Problem& p, bool soft) {
  const int64_t multiplier = p.out_channels / p.groups;
  if (p.in_channels != p.groups) return "channels share a group";
  if (p.groups == 1 && multiplier > 1) return "a single input channel";
  if (multiplier > kDepthwiseMultiplier) {
    return "more than " + std::to_string(kDepthwiseMultiplier) + " output channels of an input channel";
  }
  if (soft) return "Soft ACS";
  if (p.kernel_h * p.kernel_w > kDepthwiseTaps) {
    return "more than " + std::to_string(kDepthwiseTaps) + " taps";
  }
  return {};
}

// Whether the middle tap of a square kernel reads the same voxel in all views, and a step along an axis the
// same in both views whose plane it lies in.
inline bool views_share_centre(const Problem& p) {
  for (int axis = 0; axis < 3; ++axis) {
    const int other = (axis + 1) % 3, last = (axis + 2) % 3;  // views in whose plane the axis lies
    const int64_t middle = p.origin[other][axis] + p.kernel_h / 2 * p.dilation[other][axis];
    if (p.dilation[other][axis] != p.dilation[last][axis] || p.origin[other][axis] != p.origin[last][axis] ||
        p.origin[axis][axis] != middle) {
      return false;
    }
  }
  return true;
}

// Why the kernels of Soft ACS cannot be folded; empty: they can.
inline std::string fold_rejection(const Problem& p) {
  if (p.kernel_h != 3 || p.kernel_w != 3) return "the kernel is not 3 x 3";
  if (!views_share_centre(p)) return "the views have no common centre";
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

  plan.not_depthwise = depthwise_rejection(p, soft);
  if (plan.not_depthwise.empty()) {
    plan.channels_inner = p.input.channel == 1 && p.output.channel == 1;
    return plan;
  }

  // The gather kernel pads 9 products to 16 and 1 channel of x to 8, and loads x for every tap.
  if (forward) {
    plan.few = plan_few_channels(p, soft, machine.multiprocessors);
  } else {
    plan.few.rejection = "gradient of the input";
  }
  if (plan.few.rejection.empty()) return plan;

  if (soft) plan.not_folded = fold_rejection(p);
  if (soft && plan.not_folded.empty()) {
    plan.workspace_bytes =
        static_cast<size_t>(kViews * p.out_channels * in_group * 9 * (p.type == ScalarType::Float64 ? 8 : 4));
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
  if (not_depthwise.empty()) return "depthwise: " + order;
  if (few.rejection.empty()) return few.describe();
  return "gather: tile " + std::to_string(32 * rows) + " voxels x " + std::to_string(kGatherColumns * warps) +
         " channels, " + std::to_string(32 * warps) + " threads, about " + std::to_string(tiles) +
         " tiles, " + order + "; not few channels: " + few.rejection + "; not depthwise: " + not_depthwise +
         (workspace_bytes > 0 ? "; 19 folded taps" : "") +
         (not_folded.empty() ? "" : "; not folded: " + not_folded);
}

struct WeightPlan {
  std::string rejection;
  std::string not_depthwise;  // why not by the kernel for that; empty: by it
  int taps = 0;               // depthwise: rows and columns of taps that a thread sums at once
  int warps = 0;              // otherwise: side by side, each 8 items wide
  bool narrow = false;        // and 32 columns instead of 128 (64 in float64)
  bool channels_inner = false;
  int64_t parts = 1, part_voxels = 0;  // the voxels of all batches, cut into parts (depthwise: their lines)
  size_t workspace_bytes = 0;

  std::string describe() const;
};

inline constexpr int64_t kLargestWorkspace = 64 << 20;

// Enough parts for `blocks` blocks of `tiles` tiles, but not more than `most`, nor than fit the workspace.
inline void choose_parts(WeightPlan& plan, const Problem& p, int64_t blocks, int64_t tiles, int64_t most,
                         int64_t sums) {
  const int64_t bytes = sums * (p.type == ScalarType::Float64 ? 8 : 4);
  const int64_t wanted = (blocks + tiles - 1) / tiles;
  plan.parts = std::max<int64_t>(1, std::min({wanted, most, kLargestWorkspace / bytes}));
  plan.workspace_bytes = plan.parts > 1 ? static_cast<size_t>(plan.parts * bytes) : 0;
}

// A line of voxels is a thread's work, and a block takes a few lines of its channels for every thread.
inline void plan_depthwise_weight(const Problem& p, const Machine& machine, WeightPlan& plan) {
  constexpr int64_t kThreads = 128, kLeastLines = 2;
  plan.taps = (p.kernel_h <= 3 && p.kernel_w <= 3) || !depthwise_taps_exist(p.type, 7) ? 3 : 7;
  plan.channels_inner = p.input.channel == 1 && p.output.channel == 1;
  const int64_t width = plan.channels_inner ? kDepthwiseInner : kDepthwiseOuter;
  int64_t tiles = 0, lines = INT64_MAX;
  for (int view = 0; view < kViews; ++view) {
    if (p.split[view] == 0) continue;
    tiles += (p.split[view] + width - 1) / width;
    lines = std::min(lines, p.batch * p.out_size[1 - row_axis(view)] * p.out_size[2]);
  }
  choose_parts(plan, p, 8 * machine.multiprocessors, tiles, lines / (kLeastLines * kThreads / width),
               p.out_channels * (p.kernel_h * p.kernel_w + 1));
}

inline WeightPlan plan_backward_weight(const Problem& p, bool soft, const Machine& machine) {
  WeightPlan plan;
  plan.rejection = gather_rejection(p);
  if (!plan.rejection.empty()) return plan;
  plan.not_depthwise = depthwise_rejection(p, soft);
  if (plan.not_depthwise.empty()) {
    plan_depthwise_weight(p, machine, plan);
    return plan;
  }
  const int64_t in_group = p.in_channels / p.groups, out_group = p.out_channels / p.groups;

  // Few input channels leave most of a wide tile empty; a narrow one does a quarter more work per column. It
  // reads mostly the gradient, a wide one as much of the input, so these decide what runs along a warp.
  const int64_t columns = in_group * p.kernel_h * p.kernel_w + 1;
  const int64_t wide = p.type == ScalarType::Float64 ? 64 : 128;
  const auto padded = [columns](int64_t width) { return (columns + width - 1) / width * width; };
  plan.narrow = 5 * padded(32) <= 4 * padded(wide);
  const int64_t width = plan.narrow ? 32 : wide;
  plan.channels_inner =
      plan.narrow ? p.output.channel == 1 : p.input.channel == 1 && in_group >= kGatherColumns;

  int64_t best = INT64_MAX, item_tiles = 0;
  for (const int warps : {1, 2, 4, 8}) {
    if (!weight_tile_exists(p.type, warps, plan.narrow)) continue;
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

  constexpr int64_t kLeastVoxels = 512;  // of a part
  const int64_t tiles = std::max<int64_t>(1, item_tiles * (padded(width) / width));
  const int64_t voxels = p.batch * p.out_size[0] * p.out_size[1] * p.out_size[2];
  choose_parts(plan, p, 4 * machine.multiprocessors, tiles, voxels / kLeastVoxels,
               columns * p.out_channels * (soft ? kViews : 1));
  plan.part_voxels = (voxels + plan.parts - 1) / plan.parts;
  return plan;
}

inline std::string WeightPlan::describe() const {
  if (!rejection.empty()) return "gradient of the weight: " + rejection;
  const std::string memory = ", workspace " + std::to_string(workspace_bytes) + " bytes, " +
                             (channels_inner ? "channels along a warp" : "voxels along a warp");
  if (not_depthwise.empty()) {
    return "depthwise gradient of the weight: " + std::to_string(taps) + " x " + std::to_string(taps) +
           " taps at once, " + std::to_string(parts) + " parts" + memory;
  }
  return "gradient of the weight: " + std::string(narrow ? "narrow" : "wide") + " tiles of " +
         std::to_string(kGatherColumns * warps) + " channels, " + std::to_string(parts) + " parts of " +
         std::to_string(part_voxels) + " voxels" + memory + "; not depthwise: " + not_depthwise;
}

}  // namespace acsconv
