// What the tensor-core kernels are given, and where their tiles, channels and steps lie.
//
// A pass reads `source` [N, K, ...] and writes `result` [N, M, ...]: input and output of the forward pass,
// gradients of output and input of the other. With one common centre of the views and 3x3 kernels
//
//   read position on an axis = r * stride + centre + (tap - 1) * dilation
//
// for position r of the result. Positions of equal residue modulo the dilation form a problem without
// dilation, so a tile belongs to one residue class of every axis: r = residue + dilation * (first + i).
#pragma once

#include "../common/ptx.cuh"
#include "../mma_plan.h"

namespace acsconv {

struct MmaWork {
  int source_size[3], result_size[3];
  int centre[3], dilation[3];
  VolumeStrides source, result;
  int reduced, columns;  // channels of the source and of the result
  int split[3];          // of the layer's output channels
  int column_blocks;
  int view_columns[3], view_steps[3];  // as in MmaPlan
  int steps, parts;                    // parts: 1 in phase 0
  int axis_tiles[3];
  int64_t tiles;
  bool soft, copies;  // copies: pieces of 16 bytes by cp.async, else element by element
  int phase;          // 0: all at once; 1: sums of the parts to the workspace; 2: their total to the result
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
    const int each = work.axis_tiles[axis], all = each * work.dilation[axis];
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
  return place.residue[axis] + work.dilation[axis] * (place.first[axis] + i);
}
// Position of the source for voxel `h` of a halo that begins `padding` (0 or 1) taps before the tile.
__device__ __forceinline__ int source_position(const MmaWork& work, const MmaPlace& place, int stride,
                                               int axis, int padding, int h) {
  return stride * place.residue[axis] + work.centre[axis] +
         work.dilation[axis] * (stride * place.first[axis] + h - padding);
}

struct ChannelRange {
  int begin, end;
};

// One view per warp: the channels of a view in a block of channels.
ACSCONV_HD inline ChannelRange view_columns(const MmaWork& work, int view, int block) {
  const int before = view == 0 ? 0 : view == 1 ? work.split[0] : work.split[0] + work.split[1];
  const int size = work.split[view], begin = block * work.view_columns[view];
  const int end = begin + work.view_columns[view];
  return {before + (begin < size ? begin : size), before + (end < size ? end : size)};
}
// Slots of a view's tiles that come before its first channel: one where that is odd and there is room, so
// that the two channels that a lane holds next to each other begin at an even one.
ACSCONV_HD inline int column_slack(ChannelRange range, int slots) {
  return (range.begin & 1) != 0 && range.end - range.begin < slots ? 1 : 0;
}

// The two granules of channels of a step, and (one view per step) the view whose channels they are.
struct MmaStep {
  int view, channel;   // first channel
  ChannelRange valid;  // channels that count
};
template <class T>
ACSCONV_HD inline MmaStep view_step(const MmaWork& work, int step) {
  MmaStep result;
  result.view = 0;
  for (; result.view < 2 && step >= work.view_steps[result.view]; ++result.view) {
    step -= work.view_steps[result.view];
  }
  result.valid = {0, work.reduced};
  if (!work.soft) {
    for (int view = 0; view < result.view; ++view) result.valid.begin += work.split[view];
    result.valid.end = result.valid.begin + work.split[result.view];
  }
  result.channel = (result.valid.begin / kGranule<T> + 2 * step) * kGranule<T>;
  return result;
}

// The steps that a block sums: all, those of its part, or none where it adds up the parts.
struct MmaSteps {
  int begin, end;
};
__device__ __forceinline__ MmaSteps steps_of_part(const MmaWork& work, int part) {
  if (work.phase == 2) return {0, 0};
  const int64_t steps = work.steps;
  return {static_cast<int>(part * steps / work.parts), static_cast<int>((part + 1) * steps / work.parts)};
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
ACSCONV_HD constexpr int tap_of_kernel(int view, int outer, int inner) {
  return view == 2 ? outer * 3 + inner : inner * 3 + outer;
}

}  // namespace acsconv
