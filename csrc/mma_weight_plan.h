// Whether and how the tensor-core kernel computes the gradient of the weight
// (kernels/mma_backward_weight.cuh): a pure function of the problem and the machine. The launcher follows it;
// csrc/ops.cpp asks it for the reason when another kernel has to take a problem.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "group_runs.h"
#include "plan.h"

namespace acsconv {

// A tile of voxels of grad_output: `inner` along the inner axis of the view, `pair` along the pair axis, 8
// along W.
inline constexpr int kWeightTileW = 8;
inline constexpr int kWeightStages = 2, kWeightGeometryBytes = 256;
// What a block computes, for tensors of so many `bytes` per element (4: float32 as TF32): `taps` x `taps`
// kernels of one stride, 16 x m_tiles x m_groups input channels, 8 x n_tiles columns, which are output
// channels of one view. A warp has one outer tap, all inner ones, one of the m_groups and one of the `shares`
// of every tile of voxels. `blocks` of them fit a multiprocessor.
struct MmaWeightShape {
  int bytes, taps, stride, inner, pair, m_tiles, m_groups, shares, n_tiles, blocks;

  bool takes(const Problem& p) const {
    return (p.type == ScalarType::Float32) == (bytes == 4) && taps == p.kernel_h && stride == p.stride[0];
  }
  ACSCONV_HD constexpr int channels() const { return 16 * m_tiles * m_groups; }
  ACSCONV_HD constexpr int columns() const { return 8 * n_tiles; }
  ACSCONV_HD constexpr int warps() const { return taps * m_groups * shares; }

  // A product is 32 bytes of one channel deep: two rows of 8 voxels along W, or one in TF32.
  ACSCONV_HD constexpr int rows_of_product() const { return 4 / bytes; }

  // Shared memory, in bytes: a voxel has 16 (float32: 32) in each plane of 8 channels, and planes are so far
  // apart that the copies of neighbouring pieces of neighbouring voxels fall into different banks
  // (test_mma_backward_weight.py counts them). `halo` is that of the view with the largest.
  constexpr int voxel_bytes() const { return 8 * bytes; }
  static constexpr int up_to(int bytes, int residue) { return (bytes - residue + 127) / 128 * 128 + residue; }
  constexpr int x_planes() const { return channels() / 8; }
  constexpr int voxels() const { return inner * pair * kWeightTileW; }
  constexpr int reach(int length) const { return (length - 1) * stride + taps; }
  constexpr int halo() const {
    const int in_s = reach(pair) * kWeightTileW, in_a_and_c = pair * reach(kWeightTileW);
    return reach(inner) * (in_s > in_a_and_c ? in_s : in_a_and_c);
  }
  constexpr int x_plane() const {
    const int apart = 128 / x_planes();
    return up_to(voxel_bytes() * halo(), apart > voxel_bytes() ? apart : voxel_bytes());
  }
  constexpr int g_plane() const {
    const int of_three = bytes == 2 ? 48 : 96;
    return up_to(voxel_bytes() * voxels(), n_tiles == 2 ? 64 : n_tiles == 3 ? of_three : 32);
  }
  constexpr int g_begin() const { return up_to(x_planes() * x_plane(), 0); }
  constexpr int stage() const { return g_begin() + up_to(n_tiles * g_plane(), 0); }
  constexpr int tables() const {
    return up_to(kWeightGeometryBytes + 8 * (halo() + voxels() / kWeightTileW), 0);
  }
  constexpr int shared_bytes() const { return tables() + kWeightStages * stage(); }
};
// Two columns of tiles for layers of about 32 channels, three for views of 17 to 24 channels (64 in all),
// four for views of 32 (96, 192). Kernels of 5 and 7 leave registers for fewer input channels; of stride 2,
// the halo leaves shared memory for fewer. 2 x 2 kernels of stride 2 halve a volume. float32 takes twice the
// shared memory, hence tiles half as long, of which more shares make up for the second block. A tile is 2
// instead of 4 voxels along the pair axis where it would be 1 or 2 along the inner one: the halo is as large,
// and a fragment of x serves more taps.
inline constexpr MmaWeightShape kMmaWeightShapes[] = {
    {2, 3, 1, 8, 4, 2, 1, 2, 2, 2}, {2, 3, 1, 8, 4, 2, 2, 2, 3, 1}, {2, 3, 1, 8, 4, 2, 2, 2, 4, 1},
    {2, 5, 1, 8, 4, 1, 1, 2, 3, 1}, {2, 7, 1, 8, 4, 1, 1, 2, 2, 1}, {2, 3, 2, 4, 4, 2, 1, 2, 2, 2},
    {2, 3, 2, 4, 4, 2, 1, 2, 3, 2}, {2, 2, 2, 4, 4, 2, 1, 2, 3, 2}, {4, 3, 1, 4, 4, 2, 1, 4, 2, 1},
    {4, 3, 1, 4, 4, 2, 1, 4, 3, 1}, {4, 3, 2, 2, 4, 2, 1, 4, 3, 1}, {2, 5, 2, 4, 2, 1, 2, 1, 3, 1},
    {2, 7, 2, 2, 2, 1, 2, 1, 2, 1}, {4, 2, 2, 2, 4, 2, 1, 4, 3, 2}, {4, 5, 1, 4, 4, 1, 1, 2, 3, 1},
    {4, 7, 1, 4, 2, 1, 1, 2, 2, 1}, {4, 5, 2, 4, 2, 1, 1, 2, 3, 1}, {4, 7, 2, 2, 2, 1, 1, 2, 2, 1}};
inline constexpr int kMmaWeightShapeCount = sizeof(kMmaWeightShapes) / sizeof(MmaWeightShape);

// Columns of a block start at a multiple of this channel, so that grad_output is copied in pieces of 8 bytes,
// in float32 of 16.
inline constexpr int64_t kColumnAlignment = 4;

// The axes a block works along: fragments of grad_output are used again along `inner`; in 16 bits two rows of
// 8 voxels along W that are neighbours along `pair` make the depth of a product. W is the third axis of every
// tile.
ACSCONV_HD constexpr int weight_inner_axis(int view) { return view == 1 ? 0 : 1; }
ACSCONV_HD constexpr int weight_pair_axis(int view) { return view == 1 ? 1 : 0; }

// Columns of a view: the output channels [first, first + width), in `units` blocks from channel `base` on.
struct ViewColumns {
  int64_t first, width, base, units;
};
ACSCONV_HD inline ViewColumns view_columns(const Problem& p, bool soft, int view, int columns) {
  ViewColumns v{};
  if (!soft) v.first = view_channels_begin(p.split, view);
  v.width = soft ? p.out_channels : p.split[view];
  v.base = v.first / kColumnAlignment * kColumnAlignment;
  v.units = v.width == 0 ? 0 : (v.first - v.base + v.width + columns - 1) / columns;
  return v;
}

struct MmaWeightPlan {
  std::string rejection;      // why the kernel cannot compute the problem; empty: it can
  int shape = 0;              // index into kMmaWeightShapes
  int64_t groups = 1;         // of channels, each planned as below
  int64_t units = 0;          // of all views
  int64_t units_at_once = 0;  // whose sums the workspace holds; a launch each
  int64_t channel_blocks = 0;
  int64_t parts = 1;        // the tiles of voxels of a unit, cut into parts
  int64_t weight_sums = 0;  // float32 sums of one part of the units at once of all groups
  int64_t bias_sums = 0;
  size_t workspace_bytes = 0;

  std::string describe() const;
};

// Offsets within a tile are kept in 32 bits.
inline bool spans_fit(const VolumeStrides& s) {
  constexpr int64_t most_voxels = 32, limit = int64_t{1} << 31;
  int64_t span = 0;
  for (const int64_t stride : s.axis) {
    if (stride < 0 || stride > limit) return false;
    span += most_voxels * stride;
  }
  return span < limit;
}

// Of a problem without groups. `soft` problems are computed as well: all output channels in every view.
inline std::string mma_weight_rejection(const Problem& p, bool allow_tf32, const Machine& machine) {
  if (machine.capability < 80) return "tensor cores of compute capability 8.0 are needed";
  if (p.type == ScalarType::Float32 && !allow_tf32) return "float32 without TF32";
  // CUDA cores have narrow tiles for 3 channels: half the time of a block mostly empty in float32, and in 16
  // bits where its channels are 32 and its tiles small.
  const bool large_and_strided = p.kernel_h > 3 && p.stride[0] == 2;
  if (p.in_channels < 4 && (p.type == ScalarType::Float32 || large_and_strided)) {
    return "3 input channels or fewer";
  }
  if (p.type == ScalarType::Float64) return "float64 has no tensor-core instruction of this shape";
  if (p.kernel_h != p.kernel_w) return "the kernel is not square";
  bool exists = false;
  for (const MmaWeightShape& s : kMmaWeightShapes) exists |= s.takes(p);
  if (!exists) {
    return "no block takes kernels of " + std::to_string(p.kernel_h) + " x " + std::to_string(p.kernel_h) +
           " and stride " + std::to_string(p.stride[0]);
  }
  for (int axis = 0; axis < 3; ++axis) {
    if (p.stride[axis] != p.stride[0]) return "the strides differ";
    for (int view = 0; view < kViews; ++view) {
      if (axis != thin_axis(view) && p.dilation[view][axis] != 1) return "dilation > 1";
    }
  }
  if (!spans_fit(p.input) || !spans_fit(p.output)) return "a tile of voxels spans more than 2^31 elements";
  return gather_rejection(p);
}

// `inner` and `pair`: extents of a tile.
ACSCONV_HD inline int64_t weight_tiles(const Problem& p, int view, int inner, int pair) {
  const auto tiles = [&](int axis, int64_t length) { return (p.out_size[axis] + length - 1) / length; };
  return p.batch * tiles(weight_inner_axis(view), inner) * tiles(weight_pair_axis(view), pair) *
         tiles(2, kWeightTileW);
}

// What a block costs per tile of 256 voxels, in cycles of a multiprocessor: 2 per mma, and its bytes at 32
// per cycle.
inline int64_t weight_block_cost(const MmaWeightShape& s) {
  const int64_t depth = kWeightTileW * s.rows_of_product();
  const int64_t products = s.taps * s.taps * (s.voxels() / depth) * (s.channels() / 16) * s.n_tiles;
  const int64_t bytes = s.bytes * (s.channels() * s.halo() + s.columns() * s.voxels());
  return (2 * products + bytes / 32) * (256 / s.voxels());
}

// `run`: see group_runs().
inline MmaWeightPlan plan_mma_backward_weight(const Problem& run, bool soft, bool allow_tf32,
                                              const Machine& machine) {
  MmaWeightPlan plan;
  plan.rejection = groups_rejection(run, soft);
  if (!plan.rejection.empty()) return plan;
  plan.groups = run.groups;
  const Problem p = one_group(run);
  plan.rejection = mma_weight_rejection(p, allow_tf32, machine);
  if (!plan.rejection.empty()) return plan;

  int64_t best = INT64_MAX;
  for (int shape = 0; shape < kMmaWeightShapeCount; ++shape) {
    const MmaWeightShape& s = kMmaWeightShapes[shape];
    if (!s.takes(p)) continue;
    if (static_cast<size_t>(s.shared_bytes()) > machine.block_shared_bytes) continue;
    int64_t units = 0;
    for (int view = 0; view < kViews; ++view) units += view_columns(p, soft, view, s.columns()).units;
    const int64_t channel_blocks = (p.in_channels + s.channels() - 1) / s.channels();
    const int64_t cost = units * channel_blocks * weight_block_cost(s);
    if (cost >= best) continue;
    best = cost;
    plan.shape = shape;
    plan.units = units;
    plan.channel_blocks = channel_blocks;
  }
  if (best == INT64_MAX) {
    plan.rejection = "a block needs more shared memory than this GPU has";
    return plan;
  }
  const MmaWeightShape& s = kMmaWeightShapes[plan.shape];
  // The sums of a part that the workspace does not hold are computed some units after the others.
  const int64_t unit_weights =
      plan.groups * plan.channel_blocks * s.taps * s.taps * s.channels() * s.columns();
  const int64_t unit_biases = plan.groups * s.warps() * s.columns(),
                unit_bytes = 4 * (unit_weights + unit_biases);
  if (unit_bytes > kLargestWorkspace) {
    plan.rejection = "the sums of " + std::to_string(s.columns()) + " output channels" +
                     (plan.groups > 1 ? " of every group" : "") + " exceed 64 MiB";
    return plan;
  }
  const int64_t most_units = kLargestWorkspace / unit_bytes;
  const int64_t launches = std::max<int64_t>(1, (plan.units + most_units - 1) / most_units);
  plan.units_at_once = (plan.units + launches - 1) / launches;
  plan.weight_sums = plan.units_at_once * unit_weights;
  plan.bias_sums = plan.units_at_once * unit_biases;

  // As many parts as fill the machine once; more where a part would be so long that its float32 sums lose
  // accuracy, and as few as the workspace holds.
  constexpr int64_t kMostTiles = 64;
  int64_t tiles = 1;
  for (int view = 0; view < kViews; ++view) tiles = std::max(tiles, weight_tiles(p, view, s.inner, s.pair));
  const int64_t blocks = std::max<int64_t>(1, plan.groups * plan.units_at_once * plan.channel_blocks);
  constexpr int64_t reserved = 1024;  // of a multiprocessor's shared memory, for each block
  const auto fitting =
      static_cast<int64_t>((machine.block_shared_bytes + reserved) / (s.shared_bytes() + reserved));
  const int64_t resident = std::min<int64_t>(s.blocks, fitting);
  const int64_t wave = std::max<int64_t>(1, resident * machine.multiprocessors / blocks);
  const int64_t waves = (tiles + kMostTiles * wave - 1) / (kMostTiles * wave);
  const int64_t part_bytes = 4 * (plan.weight_sums + plan.bias_sums);
  plan.parts = std::min({wave * waves, tiles, kLargestWorkspace / std::max<int64_t>(1, part_bytes)});
  plan.workspace_bytes = static_cast<size_t>(plan.parts * part_bytes);
  return plan;
}

inline std::string MmaWeightPlan::describe() const {
  if (!rejection.empty()) return "gradient of the weight on tensor cores: " + rejection;
  const MmaWeightShape& s = kMmaWeightShapes[shape];
  return "gradient of the weight on tensor cores: " + std::to_string(s.channels()) + " x " +
         std::to_string(s.columns()) + " channels, " + std::to_string(32 * s.warps()) + " threads, " +
         std::to_string(units) + " x " + std::to_string(channel_blocks) + " blocks" +
         (groups > 1 ? " of " + std::to_string(groups) + " groups" : "") +
         (units_at_once < units ? " (" + std::to_string(units_at_once) + " at once), " : ", ") +
         std::to_string(parts) + " parts, workspace " + std::to_string(workspace_bytes) + " bytes";
}

}  // namespace acsconv
