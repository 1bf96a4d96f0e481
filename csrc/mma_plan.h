// Which tensor-core kernel computes a pass, with which tile: like plan.h a pure function of the problem and
// the machine. Three arrangements (csrc/kernels/mma_view.cuh has the terms), 3x3 kernels of stride 1 in two:
//
//   one view per warp   ACS forward. A third of the warps computes each view's channels, `columns` tiles of 8
//                       of them; every step of the reduction serves the three views.
//   one view per step   gradient of the input, and Soft ACS. All warps compute all channels of the result; a
//                       step of the reduction belongs to one view and reads only what lies in its plane.
//   one row per step    5x5 and 7x7 kernels, and stride 2 where the others do not take it. A step is one row
//                       of a view's taps, and reads what these share; ACS forward has one view per block.
//
// A step is 32 bytes of every voxel of the halo: 16 channels of 16 bits or 8 of float32. In shared memory it
// is two planes [voxel][16 bytes], so that 8 voxels along W are 128 bytes: ldmatrix has no bank conflict at
// any shift, and a shift is an immediate. Planes lie 64 bytes apart modulo 128, so that 8 lanes copying 4
// voxels x 2 planes have none either. Weights lie in the order of the fragments: lanes read neighbouring 16
// bytes.
#pragma once

#include "group_runs.h"
#include "plan.h"

namespace acsconv {

inline constexpr int kMmaTileWidth = 8;  // voxels along W of every tile: the rows of an ldmatrix
inline constexpr int kMmaStages = 2;
inline constexpr int kMmaStepBytes = 32;   // of a voxel
inline constexpr int kMmaUnitBytes = 256;  // the weights of 8 output channels, a step and a tap

// A tile is depth x height x 8 voxels of the result; a warp holds `rows` x 16 of them times `columns` x 8
// channels, in rows * columns * 4 registers. Two blocks of 4 to 6 warps on a multiprocessor are better than
// one of 12, since one computes while the other loads or stores; but from 4 tiles of columns up their sums
// need more registers than two blocks have.
struct MmaShape {
  int columns, rows, depth, height, stride, blocks, kernel = 3;
};
inline constexpr MmaShape kViewPerWarpShapes[] = {
    {1, 8, 4, 8, 1, 2}, {2, 8, 4, 8, 1, 2}, {3, 8, 4, 8, 1, 2}, {4, 4, 4, 8, 1, 1},
    {6, 4, 4, 8, 1, 1}, {2, 4, 4, 4, 2, 1}, {4, 4, 4, 4, 2, 1},
};
inline constexpr MmaShape kViewPerStepShapes[] = {{4, 4, 4, 8, 1, 3}, {8, 4, 4, 8, 1, 2}};
inline constexpr MmaShape kTapRowShapes[] = {
    {4, 4, 4, 8, 2, 3},    {8, 4, 4, 8, 2, 2},    {4, 4, 4, 8, 1, 3, 5},
    {4, 4, 4, 8, 1, 3, 7}, {4, 4, 4, 8, 2, 3, 7},
};

// At stride 2 the shape of 7x7 also computes 5x5.
constexpr bool shape_takes(const MmaShape& shape, int64_t kernel, int64_t stride) {
  return shape.stride == stride &&
         (shape.kernel == kernel || (stride == 2 && shape.kernel == 7 && kernel == 5));
}

template <size_t kCount>
constexpr int shape_count(const MmaShape (&)[kCount]) {
  return static_cast<int>(kCount);
}

ACSCONV_HD constexpr int mma_tile_voxels(const MmaShape& shape) {
  return shape.depth * shape.height * kMmaTileWidth;
}
constexpr int view_per_warp_threads(const MmaShape& shape) {
  return kViews * mma_tile_voxels(shape) / (16 * shape.rows) * 32;
}
constexpr int view_per_step_threads(const MmaShape& shape) {
  return mma_tile_voxels(shape) / (16 * shape.rows) * 32;
}

// One row per step: the taps of a row lie next to each other, at stride 2 those of one parity, so that a
// row's voxels are the tile, longer by all but one of at most so many taps along the view's inner axis.
ACSCONV_HD constexpr int tap_row_taps(const MmaShape& shape) {
  return shape.stride == 2 ? shape.kernel / 2 + 1 : shape.kernel;
}
// At stride 2 rows have K / 2 or K / 2 + 1 taps.
ACSCONV_HD constexpr int tap_row_least_taps(const MmaShape& shape) {
  return shape.stride == 1 ? shape.kernel : shape.kernel == 7 ? 2 : 1;
}
// Rows of a view, at most.
ACSCONV_HD constexpr int tap_row_rows(const MmaShape& shape) { return shape.stride * shape.kernel; }
constexpr int tap_row_voxels(const MmaShape& shape) {
  const int more = tap_row_taps(shape) - 1;
  const int along_height = shape.depth * (shape.height + more);
  const int along_depth = (shape.depth + more) * shape.height;
  return (along_height > along_depth ? along_height : along_depth) * kMmaTileWidth;
}
// Positions on an axis that the taps of all rows read for `extent` voxels.
ACSCONV_HD constexpr int tap_row_reach(const MmaShape& shape, int extent) {
  return shape.stride * (extent - 1) + shape.kernel;
}

// Voxels of the input that a 3x3 kernel reads for a tile: a voxel more on either side of the axes in
// `padded`.
constexpr int mma_halo_voxels(const MmaShape& shape, bool depth, bool height, bool width) {
  const int s = shape.stride;
  return (s * (shape.depth - 1) + 1 + 2 * depth) * (s * (shape.height - 1) + 1 + 2 * height) *
         (s * (kMmaTileWidth - 1) + 1 + 2 * width);
}
constexpr int mma_halo_of_view(const MmaShape& shape, int view) {
  return mma_halo_voxels(shape, view != 0, view != 1, view != 2);
}
constexpr int mma_largest_halo_of_view(const MmaShape& shape) {
  int most = 0;
  for (int view = 0; view < kViews; ++view) {
    if (mma_halo_of_view(shape, view) > most) most = mma_halo_of_view(shape, view);
  }
  return most;
}
ACSCONV_HD constexpr int mma_plane_bytes(int voxels) { return (voxels * 16 - 64 + 127) / 128 * 128 + 64; }
constexpr size_t mma_round(size_t bytes) { return (bytes + 127) / 128 * 128; }

// Shared memory: tables of where the halo's voxels lie, then stages of two planes and the step's weights. The
// epilogue stages 16-bit results in the same place; pitches are odd multiples of 16 bytes, so that neither
// order of writing has a bank conflict.
struct MmaShared {
  size_t table, plane, weights, stage, total;
};
constexpr MmaShared mma_shared(size_t table_voxels, size_t halo_voxels, size_t units, size_t staged) {
  MmaShared s{};
  s.table = mma_round(table_voxels * 4);
  s.plane = static_cast<size_t>(mma_plane_bytes(static_cast<int>(halo_voxels)));
  s.weights = units * kMmaUnitBytes;
  s.stage = mma_round(2 * s.plane) + s.weights;
  s.total = s.table + kMmaStages * s.stage;
  if (staged > s.total) s.total = staged;
  return s;
}
// Bytes of the staged result of a tile: `channels` of 16 bits per voxel, or the voxels of each channel.
ACSCONV_HD constexpr int mma_channel_pitch(int channels) { return ((channels + 7) / 8 | 1) * 16; }
ACSCONV_HD constexpr int mma_voxel_pitch(const MmaShape& shape) { return mma_tile_voxels(shape) * 2 + 16; }
constexpr size_t mma_staged_bytes(const MmaShape& shape, int channels) {
  const size_t by_voxel = size_t(mma_tile_voxels(shape)) * mma_channel_pitch(channels);
  const size_t by_channel = size_t(channels) * mma_voxel_pitch(shape);
  return by_voxel > by_channel ? by_voxel : by_channel;
}
// Every view's channels begin at a group of 8 of their own where they are not the whole result.
constexpr int view_per_warp_staged_channels(const MmaShape& shape) {
  return kViews * (8 * shape.columns + 16);
}
constexpr int view_per_step_staged_channels(const MmaShape& shape) { return 8 * shape.columns; }

constexpr MmaShared view_per_warp_shared(const MmaShape& shape) {
  const size_t halo = mma_halo_voxels(shape, true, true, true);
  return mma_shared(halo, halo, 27 * shape.columns,
                    mma_staged_bytes(shape, view_per_warp_staged_channels(shape)));
}
constexpr MmaShared view_per_step_shared(const MmaShape& shape) {
  size_t all = 0;
  for (int view = 0; view < kViews; ++view) all += mma_halo_of_view(shape, view);
  return mma_shared(all, mma_largest_halo_of_view(shape), 9 * shape.columns,
                    mma_staged_bytes(shape, view_per_step_staged_channels(shape)));
}
// Its tables have 16 bytes for every row and view, and for the steps (mma_tap_row_table.cuh), a line for
// every depth and height, and then the positions along W.
ACSCONV_HD constexpr int tap_row_ints(const MmaShape& shape) {
  return 4 * (1 + kViews + kViews * tap_row_rows(shape));
}
constexpr MmaShared tap_row_shared(const MmaShape& shape) {
  const int lines = tap_row_reach(shape, shape.depth) * tap_row_reach(shape, shape.height);
  // A block's first channel may be any.
  return mma_shared(tap_row_ints(shape) + lines + tap_row_reach(shape, kMmaTileWidth), tap_row_voxels(shape),
                    tap_row_taps(shape) * shape.columns, mma_staged_bytes(shape, 8 * shape.columns + 8));
}
// Two blocks of the usual shapes on an A100 (164 KiB, of which every block takes 1 KiB more), one everywhere.
static_assert(2 * (view_per_warp_shared(kViewPerWarpShapes[2]).total + 1024) <= 164 * 1024);
static_assert(2 * (view_per_step_shared(kViewPerStepShapes[1]).total + 1024) <= 164 * 1024);
static_assert(view_per_warp_shared(kViewPerWarpShapes[3]).total <= 99 * 1024);
static_assert(tap_row_shared(kTapRowShapes[1]).total <= 99 * 1024);
static_assert(tap_row_shared(kTapRowShapes[3]).total <= 99 * 1024);
static_assert(tap_row_shared(kTapRowShapes[4]).total <= 99 * 1024);

struct MmaPlan {
  std::string rejection;  // why the tensor cores do not compute the pass; empty: they do
  bool view_per_warp = false, row_per_step = false;  // neither: one view per step
  bool view_per_block = false;                       // one row per step, ACS forward
  bool tma = false;                                  // its stages are filled by the TMA: mma_tma_plan.h
  int shape = 0;                                     // index into the arrangement's shapes
  int64_t groups = 1;                                // of channels, each planned as below
  int column_blocks = 1;                             // the channels of the result are cut into so many blocks
  int view_columns[kViews] = {};                     // one view per warp: channels of each view in a block
  int view_blocks[kViews] = {};                      // one view per block: blocks of each view's channels
  int view_steps[kViews] = {};  // one view or row per step: pairs of pieces of 16 bytes of each view
  int steps = 0;                // of the reduction, of a block
  int64_t tiles = 0;            // of voxels
  int64_t axis_tiles[3] = {};   // tiles along each axis of the result, of one residue class of its dilation
  int parts = 1;                // of the reduction, summed in order by a second launch
  size_t packed_bytes = 0, bias_bytes = 0, partial_bytes = 0;

  const MmaShape& chosen() const {
    return view_per_warp  ? kViewPerWarpShapes[shape]
           : row_per_step ? kTapRowShapes[shape]
                          : kViewPerStepShapes[shape];
  }
  // The workspace: packed weights, the bias in float32, then the parts' sums.
  size_t workspace_bytes() const { return packed_bytes + bias_bytes + partial_bytes; }
  std::string describe() const;
};

// What keeps the tensor cores from a problem without groups.
inline std::string mma_rejection(const Problem& p, bool allow_tf32, const Machine& machine) {
  constexpr int64_t kLeastChannels = 5;  // with fewer, a step of the reduction is mostly zeros
  const std::string other = gather_rejection(p);
  if (!other.empty()) return other;
  if (p.type == ScalarType::Float64) return "float64";
  if (p.type == ScalarType::Float32 && !allow_tf32) return "float32 without TF32";
  if (machine.capability < 80) return "the GPU is older than compute capability 8.0";
  const int64_t kernel = p.kernel_h, stride = p.stride[0];
  if (p.kernel_w != kernel || (kernel != 3 && kernel != 5 && kernel != 7)) {
    return "the kernel is not 3 x 3, 5 x 5 or 7 x 7";
  }
  if (!views_share_centre(p)) return "the views have no common centre";
  if (p.stride[1] != stride || p.stride[2] != stride) return "strides differ between axes";
  if (stride > 2) return "a stride above 2";
  if (p.in_channels < kLeastChannels || p.out_channels < kLeastChannels) return "4 channels or fewer";
  return {};
}

inline int64_t steps_of_channels(const Problem& p, int64_t begin, int64_t end) {
  const int64_t granule = p.type == ScalarType::Float32 ? 4 : 8;  // channels in 16 bytes
  if (begin == end) return 0;
  return ((end + granule - 1) / granule - begin / granule + 1) / 2;
}

// Distance of a tile's voxels on an axis of the result: those of one residue class modulo the dilation, in
// the gradient of the input modulo the stride.
inline int64_t mma_spacing(const Problem& p, bool forward, int axis) {
  return p.dilation[(axis + 1) % 3][axis] * (forward ? 1 : p.stride[axis]);
}

// Cuts the result into tiles of `shape`: plan.tiles and plan.axis_tiles. Returns why that cannot be, or
// nothing.
inline std::string place_tiles(const Problem& p, bool forward, const MmaShape& shape, MmaPlan& plan) {
  const VolumeStrides& source = forward ? p.input : p.output;
  const int64_t* size = forward ? p.out_size : p.in_size;
  const int64_t extent[3] = {shape.depth, shape.height, kMmaTileWidth};
  constexpr int64_t kMostTiles = int64_t{1} << 31;  // counts stop here, where they are refused
  double reach = 0;
  plan.tiles = std::min(p.batch, kMostTiles);
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t dilation = p.dilation[(axis + 1) % 3][axis], spacing = mma_spacing(p, forward, axis);
    plan.axis_tiles[axis] = ((size[axis] + spacing - 1) / spacing + extent[axis] - 1) / extent[axis];
    const int64_t along = plan.axis_tiles[axis] * spacing;
    plan.tiles = plan.tiles > kMostTiles / std::max<int64_t>(1, along) ? kMostTiles : plan.tiles * along;
    reach += static_cast<double>((shape.stride * (extent[axis] - 1) + p.kernel_h - 1) * dilation) *
             static_cast<double>(source.axis[axis]);
  }
  if (reach >= static_cast<double>(int64_t{1} << 31)) {
    return "a tile's voxels lie further apart than 2^31 elements";
  }
  if (plan.tiles >= kMostTiles || plan.groups * plan.column_blocks > 65535) {
    return "more tiles than a grid has blocks";
  }
  return {};
}

// The cheapest cut into blocks of channels that the plan's arrangement has, if any. Beside its products,
// every block loads the halo to shared memory and from there to registers, which counts as much as 12
// channels (at 24 channels of a view a warp needs 128 cycles for ldmatrix and 25 for its share of the copies,
// next to 432 for mma).
template <size_t kCount>
bool choose_shape(const Problem& p, int64_t results, const MmaShape (&shapes)[kCount], const Machine& machine,
                  MmaPlan& plan) {
  constexpr int64_t kHaloCost = 12;
  int64_t least = INT64_MAX;
  for (int shape = 0; shape < shape_count(shapes); ++shape) {
    const MmaShape& s = shapes[shape];
    const MmaShared shared = plan.view_per_warp  ? view_per_warp_shared(s)
                             : plan.row_per_step ? tap_row_shared(s)
                                                 : view_per_step_shared(s);
    if (!shape_takes(s, p.kernel_h, p.stride[0]) || shared.total > machine.block_shared_bytes) continue;
    const int64_t width = 8 * s.columns;
    int64_t of_view[kViews] = {}, blocks = (results + width - 1) / width;
    if (plan.view_per_warp || plan.view_per_block) {
      for (int view = 0; view < kViews; ++view) of_view[view] = (p.split[view] + width - 1) / width;
      blocks = plan.view_per_warp ? *std::max_element(of_view, of_view + kViews)
                                  : of_view[0] + of_view[1] + of_view[2];
    }
    if (blocks * (width + kHaloCost) >= least) continue;
    least = blocks * (width + kHaloCost);
    plan.shape = shape;
    plan.column_blocks = static_cast<int>(blocks);
    for (int view = 0; view < kViews; ++view) plan.view_blocks[view] = static_cast<int>(of_view[view]);
  }
  return least < INT64_MAX;
}

// `run`: see group_runs().
inline MmaPlan plan_mma(const Problem& run, Pass pass, bool soft, bool allow_tf32, const Machine& machine) {
  MmaPlan plan;
  plan.rejection = groups_rejection(run, soft);
  if (!plan.rejection.empty()) return plan;
  plan.groups = run.groups;
  const Problem p = one_group(run);
  const bool forward = pass == Pass::Forward;
  plan.rejection = mma_rejection(p, allow_tf32, machine);
  if (!plan.rejection.empty()) return plan;
  const int64_t reduced = forward ? p.in_channels : p.out_channels;
  const int64_t results = forward ? p.out_channels : p.in_channels;

  const bool acs_forward = forward && !soft, small = p.kernel_h == 3;
  plan.view_per_warp = acs_forward && small;
  bool found = plan.view_per_warp && choose_shape(p, results, kViewPerWarpShapes, machine, plan);
  if (!found) {  // among them the halo of stride 2 where a block has 99 KiB
    plan.view_per_warp = false;
    plan.row_per_step = acs_forward || !small || p.stride[0] == 2;
    plan.view_per_block = plan.row_per_step && acs_forward;
    found = plan.row_per_step ? choose_shape(p, results, kTapRowShapes, machine, plan)
                              : choose_shape(p, results, kViewPerStepShapes, machine, plan);
  }
  if (!found) {
    plan.rejection = "the tiles need more shared memory than a block has";
    return plan;
  }
  const MmaShape& shape = plan.chosen();

  plan.rejection = place_tiles(p, forward, shape, plan);
  if (!plan.rejection.empty()) return plan;

  if (plan.view_per_warp) {
    for (int view = 0; view < kViews; ++view) {
      const int64_t even = (p.split[view] + plan.column_blocks - 1) / plan.column_blocks;
      plan.view_columns[view] = static_cast<int>(
          plan.column_blocks == 1 ? even : std::min<int64_t>((even + 7) / 8 * 8, 8 * shape.columns));
    }
  }
  int64_t begin = 0;
  for (int view = 0; view < kViews; ++view) {
    const int64_t end = forward || soft ? reduced : begin + p.split[view];
    plan.view_steps[view] = static_cast<int>(steps_of_channels(p, begin, end));
    plan.steps = acs_forward ? plan.view_steps[view] : plan.steps + plan.view_steps[view];
    if (!forward && !soft) begin = end;
  }
  const int units =
      static_cast<int>(p.kernel_h * p.kernel_h) * (plan.view_per_warp ? kViews : 1) * shape.columns;
  const int64_t column_blocks = plan.groups * plan.column_blocks;  // of the grid
  plan.bias_bytes = mma_round(static_cast<size_t>(plan.groups * results) * 4);
  plan.packed_bytes = static_cast<size_t>(column_blocks) * plan.steps * units * kMmaUnitBytes;

  // Too few tiles for the machine: several blocks share the reduction of each.
  const int64_t blocks = plan.tiles * column_blocks;
  const int64_t tile_bytes =
      int64_t{mma_tile_voxels(shape)} * 8 * shape.columns * 4 * (plan.view_per_warp ? kViews : 1);
  const int64_t wanted =
      std::min<int64_t>(plan.steps / 2, machine.multiprocessors / std::max<int64_t>(1, blocks));
  if (wanted >= 2 && wanted * blocks * tile_bytes <= kLargestWorkspace) {
    plan.parts = static_cast<int>(wanted);
    plan.partial_bytes = static_cast<size_t>(wanted * blocks * tile_bytes);
  }
  return plan;
}

inline std::string MmaPlan::describe() const {
  if (!rejection.empty()) return "not on tensor cores: " + rejection;
  const MmaShape& s = chosen();
  const int threads = view_per_warp ? view_per_warp_threads(s) : view_per_step_threads(s);
  return std::string("tensor cores, one ") +
         (view_per_warp  ? "view per warp"
          : row_per_step ? "row of taps per step"
                         : "view per step") +
         ": tile " + std::to_string(s.depth) + " x " + std::to_string(s.height) + " x " +
         std::to_string(kMmaTileWidth) + " voxels x " + std::to_string(8 * s.columns) + " channels" +
         (view_per_warp || view_per_block ? " of a view" : "") + ", " + std::to_string(threads) +
         " threads that compute, " + std::to_string(tiles) + " tiles, " + std::to_string(column_blocks) +
         " blocks of channels" + (groups > 1 ? " of " + std::to_string(groups) + " groups, " : ", ") +
         std::to_string(steps) + (row_per_step ? " times all rows" : " steps") +
         (parts > 1 ? " in " + std::to_string(parts) + " parts" : "") + (tma ? ", loaded by TMA" : "");
}

}  // namespace acsconv
