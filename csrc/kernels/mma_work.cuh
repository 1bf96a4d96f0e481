// What the tensor-core kernels are given, and where their tiles, channels and steps lie.
//
// A pass reads `source` [N, K, ...] and writes `result` [N, M, ...]: input and output of the forward pass,
// gradients of output and input of the other. With one common centre of the views and K x K kernels
//
//   read position on an axis = r * stride + centre + (tap - K / 2) * dilation
//
// for position r of the result. Positions of equal residue modulo the dilation form a problem without
// dilation, so a tile belongs to one residue class of every axis: r = residue + spacing * (first + i). In the
// gradient of the input of stride 2 half of what the formula gives with stride 1 is read, where that is even:
// classes are those modulo twice the dilation, which different taps reach.
#pragma once

#include "../common/ptx.cuh"
#include "../mma_plan.h"

namespace acsconv {

struct MmaWork {
  int source_size[3], result_size[3];
  int centre[3], dilation[3];
  int spacing[3];  // between neighbouring voxels of a tile of the result
  VolumeStrides source, result;
  int reduced, columns;                // channels of the source and of the result, of one group
  int column_blocks;                   // of one group; the grid has those of all, group by group
  int split[3];                        // of a group's output channels
  int view_columns[3], view_steps[3];  // as in MmaPlan
  int steps, parts;                    // parts: 1 in phase 0
  int axis_tiles[3];
  int64_t tiles;
  int kernel, stride;  // K, and the layer's stride
  bool halves;         // gradient of the input of stride 2
  bool view_per_block;
  int view_blocks[3];  // one view per block: blocks of each view's channels
  bool soft, copies;   // copies: pieces of 16 bytes by cp.async, else element by element
  int phase;           // 0: all at once; 1: sums of the parts to the workspace; 2: their total to the result
};

// Channels in 16 bytes.
template <class T>
inline constexpr int kGranule = 16 / static_cast<int>(sizeof(T));

struct MmaPlace {
  int64_t batch;
  int first[3], residue[3];
};

__device__ __forceinline__ MmaPlace mma_place(const MmaWork& work, MmaShape shape, int tile) {
  const int extent[3] = {shape.depth, shape.height, kMmaTileWidth};
  MmaPlace place;
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    const int each = work.axis_tiles[axis], all = each * work.spacing[axis];
    const int index = tile % all;
    tile /= all;
    place.residue[axis] = index / each;
    place.first[axis] = index % each * extent[axis];
  }
  place.batch = tile;
  return place;
}

// Position of the result on an axis for voxel `i` of the tile.
__device__ __forceinline__ int result_position(const MmaWork& work, const MmaPlace& place, int axis, int i) {
  return place.residue[axis] + work.spacing[axis] * (place.first[axis] + i);
}
// Position of the source for voxel `h` of a halo that begins `padding` taps before the tile.
__device__ __forceinline__ int source_position(const MmaWork& work, const MmaPlace& place, int stride,
                                               int axis, int padding, int h) {
  return stride * place.residue[axis] + work.centre[axis] +
         work.dilation[axis] * (stride * place.first[axis] + h - padding);
}

struct ChannelRange {
  int begin, end;
};

// A block's group, and its number in the group. Divided without a sign: with one, kernels spilled.
ACSCONV_HD inline unsigned group_of_block(const MmaWork& work, int block) {
  return static_cast<unsigned>(block) / static_cast<unsigned>(work.column_blocks);
}
ACSCONV_HD inline int block_in_group(const MmaWork& work, int block) {
  return static_cast<int>(static_cast<unsigned>(block) % static_cast<unsigned>(work.column_blocks));
}

// Where the channels of a block's group begin: elements of the source, of the result, and of the bias.
struct GroupOffsets {
  int64_t source, result, bias;
};
__device__ __forceinline__ GroupOffsets group_offsets(const MmaWork& work, int block) {
  const int64_t group = group_of_block(work, block);
  return {group * work.reduced * work.source.channel, group * work.columns * work.result.channel,
          group * work.columns};
}

// One view per warp: the channels of a view in a block of channels, in its group.
ACSCONV_HD inline ChannelRange view_columns(const MmaWork& work, int view, int block) {
  const int before = view_channels_begin(work.split, view), size = work.split[view];
  const int begin = block_in_group(work, block) * work.view_columns[view];
  const int end = begin + work.view_columns[view];
  return {before + (begin < size ? begin : size), before + (end < size ? end : size)};
}
// Otherwise: the channels of a block of `width`, and the view that computes them, or -1 where all do.
struct BlockColumns {
  int view;
  ChannelRange range;
};
ACSCONV_HD inline BlockColumns block_columns(const MmaWork& work, int block, int width) {
  block = block_in_group(work, block);
  BlockColumns result{-1, {0, work.columns}};
  if (work.view_per_block) {
    result.view = 0;
    for (; result.view < 2 && block >= work.view_blocks[result.view]; ++result.view) {
      block -= work.view_blocks[result.view];
    }
    result.range.begin = view_channels_begin(work.split, result.view);
    result.range.end = result.range.begin + work.split[result.view];
  }
  result.range.begin += block * width;
  if (result.range.begin + width < result.range.end) result.range.end = result.range.begin + width;
  return result;
}
// Slots of a block's tiles that come before its first channel: one where that is odd and there is room, so
// that the two channels that a lane holds next to each other begin at an even one.
ACSCONV_HD inline int column_slack(ChannelRange range, int slots) {
  return (range.begin & 1) != 0 && range.end - range.begin < slots ? 1 : 0;
}

// The two granules of channels of a step, and the view whose channels they are.
struct MmaStep {
  int view, channel;   // first channel
  ChannelRange valid;  // channels that count
};
template <class T>
ACSCONV_HD inline MmaStep step_of_view(const MmaWork& work, int view, int step) {
  MmaStep result{view, 0, {0, work.reduced}};
  if (!work.soft && !work.view_per_block) {
    result.valid.begin = view_channels_begin(work.split, view);
    result.valid.end = result.valid.begin + work.split[view];
  }
  result.channel = (result.valid.begin / kGranule<T> + 2 * step) * kGranule<T>;
  return result;
}
// One view after the other.
template <class T>
ACSCONV_HD inline MmaStep view_step(const MmaWork& work, int step) {
  int view = 0;
  for (; view < 2 && step >= work.view_steps[view]; ++view) step -= work.view_steps[view];
  return step_of_view<T>(work, view, step);
}

// The steps that a block sums: all, those of its part, or none where it adds up the parts.
struct MmaSteps {
  int begin, end;
};
__device__ __forceinline__ MmaSteps steps_of_part(const MmaWork& work, int part, int64_t steps) {
  if (work.phase == 2) return {0, 0};
  return {static_cast<int>(part * steps / work.parts), static_cast<int>((part + 1) * steps / work.parts)};
}
__device__ __forceinline__ MmaSteps steps_of_part(const MmaWork& work, int part) {
  return steps_of_part(work, part, work.steps);
}

// Index of (outer tap, inner tap) among those that Soft ACS reads of a view: what lies in the plane of an
// earlier view has been added to that view's kernel. Without it all nine count.
ACSCONV_HD constexpr bool tap_is_read(bool soft, int view, int outer, int inner) {
  return !soft || view == 0 || (inner != 1 && (view == 1 || outer != 1));
}
ACSCONV_HD constexpr int tap_index(bool soft, int view, int outer, int inner) {
  int index = 0;
  for (int o = 0; o < 3; ++o) {
    for (int i = 0; i < 3; ++i) {
      if (o == outer && i == inner) return index;
      index += tap_is_read(soft, view, o, i) ? 1 : 0;
    }
  }
  return index;
}
// The inner axis of a view's walk is its row axis, or its column axis for the sagittal view: H, D, H.
ACSCONV_HD constexpr int tap_of_kernel(int view, int outer, int inner, int kernel) {
  return view == 2 ? outer * kernel + inner : inner * kernel + outer;
}

}  // namespace acsconv
