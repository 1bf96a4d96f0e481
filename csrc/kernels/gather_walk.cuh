// What a thread block of the gather kernel (simt_gather.cuh) computes, in the terms of one matrix product
//
//   destination[voxel, item] = bias[item] + sum of source[position(voxel, k)] * weight[item, k]
//
// over segments and k = (channel, row tap, column tap) of a segment. The two passes differ in nothing else:
//
//   forward         source x, destination out; items are output channels; one segment: the items' view
//   gradient of x   source grad_out, destination grad_x; items are input channels; a segment per view,
//                   whose channels are the view's output channels
//
// In the gradient, voxel x of the input receives from output (x - origin - tap * dilation) / stride, where
// that is an integer. A tile therefore takes input voxels of one residue class modulo the stride: within a
// class the same taps qualify everywhere, and positions are again linear in the voxel's index within its
// class. In Soft ACS every output channel has a segment in all three views, with weight[view][C_out][C_in /
// groups][K_h][K_w].
#pragma once

#include "../common/launch.cuh"
#include "../plan.h"
#include "channel_tiles.h"

namespace acsconv {

// Kernel argument: the problem, and how its destination is cut into tiles. With `soft`, problem.split is
// (C_out, 0, 0).
struct GatherWork {
  Problem problem;
  Pass pass;
  bool soft;
  bool folded;  // the kernels are those of fold_soft_kernels(), of the accumulator's type
  int64_t voxel_tiles, item_tiles;
};

// A tile's part of the destination. Along each axis it holds positions residue + i * step, i < extent.
struct GatherTile {
  int64_t batch, group, begin, end;  // items [begin, end)
  int view;                          // forward, not soft: the view of the items
  int first[3];                      // index of the first voxel along each axis
  int extent[3];
  int64_t residue[3], step[3];
};

// Residues of input positions modulo the stride.
__host__ __device__ inline int64_t residues(const Problem& p, Pass pass, int axis) {
  return pass == Pass::Forward ? 1 : p.stride[axis] < p.in_size[axis] ? p.stride[axis] : p.in_size[axis];
}

// Tiles of `voxels` voxels that cover the largest residue class.
__host__ __device__ inline int64_t gather_voxel_tiles(const Problem& p, Pass pass, int64_t voxels) {
  int64_t total = 1;
  for (int axis = 0; axis < 3; ++axis) {
    total *= pass == Pass::Forward ? p.out_size[axis] : ceil_div(p.in_size[axis], p.stride[axis]);
  }
  return ceil_div(total, voxels);
}

__host__ __device__ inline int64_t gather_item_tiles(const Problem& p, Pass pass, int64_t width) {
  if (pass == Pass::Forward) return channel_tile_count(p, width);
  return p.groups * ceil_div(p.in_channels / p.groups, width);
}

// The voxels of the tile `index` of those that share their items.
__device__ inline void gather_tile_voxels(const GatherWork& work, int64_t index, int voxels,
                                          GatherTile& tile) {
  const Problem& p = work.problem;
  const bool forward = work.pass == Pass::Forward;
  int64_t first = index % work.voxel_tiles * voxels;
  index /= work.voxel_tiles;
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    const int64_t classes = residues(p, work.pass, axis);
    tile.residue[axis] = index % classes;
    index /= classes;
    tile.step[axis] = forward ? 1 : p.stride[axis];
    const int64_t extent =
        forward ? p.out_size[axis] : ceil_div(p.in_size[axis] - tile.residue[axis], p.stride[axis]);
    tile.extent[axis] = static_cast<int>(extent);
    tile.first[axis] = static_cast<int>(axis == 0 ? first : first % extent);
    first /= extent;
  }
  tile.batch = index;
}

// Item tiles run fastest, so that blocks that read the same source run at the same time. May hold no items or
// voxels.
__device__ inline void gather_tile(const GatherWork& work, int64_t index, int voxels, int width,
                                   GatherTile& tile) {
  const Problem& p = work.problem;
  const int64_t item = index % work.item_tiles;
  tile.view = 0;
  if (work.pass == Pass::Forward) {
    const ChannelTile channels = channel_tile(p, item, width);
    tile.view = channels.view;
    tile.group = channels.group;
    tile.begin = channels.begin;
    tile.end = channels.end;
  } else {
    const int64_t per_group = p.in_channels / p.groups, tiles = ceil_div(per_group, width);
    tile.group = item / tiles;
    tile.begin = tile.group * per_group + item % tiles * width;
    const int64_t limit = (tile.group + 1) * per_group;
    tile.end = tile.begin + width < limit ? tile.begin + width : limit;
  }
  gather_tile_voxels(work, index / work.item_tiles, voxels, tile);
}

// One axis of a segment: the voxel with index i reads source positions i * scale + base + j * shift, j <
// taps. These are the kernel's taps first, first + tap_step, ...
struct SegmentAxis {
  int scale, base, shift;
  int taps, first, tap_step;
};

// One range of the reduction.
struct Segment {
  int thin, row, column;  // axes
  SegmentAxis axis[3];
  int channels;            // 0: nothing to add
  int64_t source_channel;  // the first one
  int64_t weight_base;     // of (item begin, first channel, first taps)
  int64_t weight_item, weight_channel, weight_row, weight_column;  // strides
};

__device__ inline SegmentAxis segment_axis(const GatherWork& work, int view, int axis, int64_t residue) {
  const Problem& p = work.problem;
  // 2 where only the outer two of 3 taps are left: the rest has been folded into an earlier view.
  const int every = work.folded && view > axis ? 2 : 1;
  const int taps = every == 2 ? 2 : static_cast<int>(kernel_extent(view, axis, p.kernel_h, p.kernel_w));
  const int stride = static_cast<int>(p.stride[axis]);
  const int dilation = every * static_cast<int>(p.dilation[view][axis]);
  const int origin = static_cast<int>(p.origin[view][axis]);
  if (work.pass == Pass::Forward) return {stride, origin, dilation, taps, 0, every};
  const int at = static_cast<int>(residue) - origin;
  int first = 0;
  while (first < taps && first < stride && (at - first * dilation) % stride != 0) ++first;
  if (first == taps || first == stride) return {1, 0, 0, 0, 0, 1};
  int step = 1;
  while (step * dilation % stride != 0) ++step;
  return {1,
          (at - first * dilation) / stride,
          -(step * dilation / stride),
          (taps - 1 - first) / step + 1,
          first * every,
          step * every};
}

// Where a view reads for a tile, whatever the channels: 1 of them, or 0 where no tap reads at all.
__device__ inline Segment segment_taps(const GatherWork& work, const GatherTile& tile, int view) {
  Segment s{};
  s.thin = thin_axis(view);
  s.row = row_axis(view);
  s.column = column_axis(view);
  s.channels = 1;
  int row_first = 0, row_step = 1, column_first = 0, column_step = 1;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    s.axis[axis] = segment_axis(work, view, axis, tile.residue[axis]);
    if (s.axis[axis].taps == 0) s.channels = 0;
    if (axis == s.row) row_first = s.axis[axis].first, row_step = s.axis[axis].tap_step;
    if (axis == s.column) column_first = s.axis[axis].first, column_step = s.axis[axis].tap_step;
  }
  s.weight_base = row_first * work.problem.kernel_w + column_first;
  s.weight_row = row_step * work.problem.kernel_w;
  s.weight_column = column_step;
  return s;
}

// The segment that `view` adds to a tile.
__device__ inline Segment gather_segment(const GatherWork& work, const GatherTile& tile, int view) {
  const Problem& p = work.problem;
  Segment s = segment_taps(work, tile, view);
  const int64_t taps = p.kernel_h * p.kernel_w, channels_in = p.in_channels / p.groups;
  const int64_t per_output = channels_in * taps, channels_out = p.out_channels / p.groups;
  if (work.soft) s.weight_base += view * p.out_channels * per_output;
  int64_t channels = channels_in;
  if (work.pass == Pass::Forward) {
    if (!work.soft && view != tile.view) channels = 0;
    s.source_channel = tile.group * channels_in;
    s.weight_base += tile.begin * per_output;
    s.weight_item = per_output;
    s.weight_channel = taps;
  } else {
    int64_t begin = tile.group * channels_out, end = begin + channels_out;
    if (!work.soft) {
      const int64_t view_begin = view_channels_begin(p.split, view), view_end = view_begin + p.split[view];
      if (begin < view_begin) begin = view_begin;
      if (end > view_end) end = view_end;
    }
    channels = end > begin ? end - begin : 0;
    s.source_channel = begin;
    s.weight_base += begin * per_output + (tile.begin - tile.group * channels_in) * taps;
    s.weight_item = taps;
    s.weight_channel = per_output;
  }
  s.channels *= static_cast<int>(channels);
  return s;
}

}  // namespace acsconv
