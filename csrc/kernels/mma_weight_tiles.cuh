// The tiles of voxels of the gradient of the weight on tensor cores (mma_backward_weight.cuh): where a
// block's lie, which of their voxels exist, and how they get into shared memory, as [plane of 8
// channels][voxel][8 channels].
//
// A tile of grad_output is a box of inner x pair x 8 voxels; that of x, what they read in the view.
// With stride 2 and along W, in its plane, the even positions lie before the odd ones, so that 8 outputs side
// by side still read neighbours; along the thin axis the box has the positions that are read and no others. A
// table has the offset of every voxel of x from the box's corner, and one bit for each of its coordinates;
// for grad_output it has the rows along W, which leaves room for another block on a multiprocessor. A tile is
// then a mask of the coordinates that lie outside the volume, and a test one AND.
#pragma once

#include "../common/ptx.cuh"
#include "mma_weight_launch.h"

namespace acsconv {

// A block's axes: those of its view, in the order in which tiles follow each other.
enum WeightAxis { kAlongW, kAlongInner, kAlongPair, kWeightAxes };

struct WeightGeometry {
  int64_t input_stride[kWeightAxes], output_stride[kWeightAxes];
  int origin[kWeightAxes];     // of the read positions
  int input_end[kWeightAxes];  // behind the last position that some output reads
  int output_size[kWeightAxes];
  int tile[kWeightAxes];            // extents of the box of grad_output
  int halo[kWeightAxes];            // and of x; its voxels are `halo_voxels`
  int shift[kWeightAxes];           // log2 of the distance of its voxels: of the stride, along the thin axis
  int halo_voxels, evens;           // even positions along W that lie before the odd ones; 0: in order
  int view, first_column, columns;  // the block's first channel of grad_output, and where its group's end
  int first_channel, channels;      // the same of x
};

struct WeightTile {
  int at[kWeightAxes], sample;
};

__device__ inline void describe_block(const MmaWeightWork& work, int64_t unit, int64_t channel_block,
                                      int group, WeightGeometry& to) {
  const Problem& p = work.problem;
  const MmaWeightShape& shape = work.shape;
  const int columns = shape.columns();
  int view = 0;
  ViewColumns v = view_columns(p, work.soft, view, columns);
  while (unit >= v.units) {
    unit -= v.units;
    v = view_columns(p, work.soft, ++view, columns);
  }
  const int axes[kWeightAxes] = {2, weight_inner_axis(view), weight_pair_axis(view)};
  for (int i = 0; i < kWeightAxes; ++i) {
    const int axis = axes[i];
    const int extent = static_cast<int>(kernel_extent(view, axis, p.kernel_h, p.kernel_w));
    to.input_stride[i] = p.input.axis[axis];
    to.output_stride[i] = p.output.axis[axis];
    to.origin[i] = static_cast<int>(p.origin[view][axis]);
    const int64_t read = (p.out_size[axis] - 1) * shape.stride + p.origin[view][axis] + extent;
    to.input_end[i] = static_cast<int>(read < p.in_size[axis] ? read : p.in_size[axis]);
    to.output_size[i] = static_cast<int>(p.out_size[axis]);
    const bool is_thin = axis == thin_axis(view);
    to.tile[i] = i == kAlongW ? kWeightTileW : i == kAlongInner ? shape.inner : shape.pair;
    to.halo[i] = is_thin ? to.tile[i] : (to.tile[i] - 1) * shape.stride + extent;
    to.shift[i] = is_thin ? shape.stride - 1 : 0;
  }
  to.halo_voxels = to.halo[kAlongW] * to.halo[kAlongInner] * to.halo[kAlongPair];
  to.evens = shape.stride == 2 && view != 2 ? (to.halo[kAlongW] + 1) / 2 : 0;
  to.view = view;
  to.first_column = static_cast<int>(group * p.out_channels + v.base + unit * columns);
  to.columns = static_cast<int>((group + 1) * p.out_channels);
  to.first_channel = static_cast<int>(group * p.in_channels + channel_block * shape.channels());
  to.channels = static_cast<int>((group + 1) * p.in_channels);
}

// A table entry of a voxel of a box: its offset from the box's corner, and a bit for each of its coordinates.
__device__ __forceinline__ void describe_voxel(int voxel, const int (&extent)[kWeightAxes],
                                               const int64_t (&stride)[kWeightAxes],
                                               const int (&shift)[kWeightAxes], int evens, uint2& to) {
  const int column = voxel % extent[kAlongW], row = voxel / extent[kAlongW];
  const int w = evens == 0 ? column : column < evens ? 2 * column : 2 * (column - evens) + 1;
  const int inner = row % extent[kAlongInner], pair = row / extent[kAlongInner];
  to.x = static_cast<unsigned>((w * stride[kAlongW] << shift[kAlongW]) +
                               (inner * stride[kAlongInner] << shift[kAlongInner]) +
                               (pair * stride[kAlongPair] << shift[kAlongPair]));
  to.y = 1u << w | 1u << (extent[kAlongW] + inner) | 1u << (extent[kAlongW] + extent[kAlongInner] + pair);
}

// A bit for each of `length` coordinates, 1 << shift apart from `begin` on, that lies outside [0, end).
__device__ __forceinline__ uint32_t outside_bits(int begin, int end, int length, int shift) {
  const auto clamp = [length](int value) { return value < 0 ? 0 : value > length ? length : value; };
  const int first = clamp((shift - begin) >> shift), last = clamp((shift + end - begin) >> shift);
  const auto low_bits = [](int count) { return (1u << count) - 1; };
  return low_bits(length) & ~(low_bits(last) & ~low_bits(first));
}
__device__ __forceinline__ uint32_t outside_box(const int (&begin)[kWeightAxes],
                                                const int (&end)[kWeightAxes],
                                                const int (&extent)[kWeightAxes],
                                                const int (&shift)[kWeightAxes]) {
  uint32_t bits = 0;
  int position = 0;
#pragma unroll
  for (int i = 0; i < kWeightAxes; ++i) {
    bits |= outside_bits(begin[i], end[i], extent[i], shift[i]) << position;
    position += extent[i];
  }
  return bits;
}

__device__ inline WeightTile tile_at(const WeightGeometry& geometry, int64_t index) {
  WeightTile tile;
#pragma unroll
  for (int i = 0; i < kWeightAxes; ++i) {
    const int length = geometry.tile[i], count = (geometry.output_size[i] + length - 1) / length;
    tile.at[i] = static_cast<int>(index % count) * length;
    index /= count;
  }
  tile.sample = static_cast<int>(index);
  return tile;
}
__device__ __forceinline__ void next_tile(const WeightGeometry& geometry, WeightTile& tile) {
#pragma unroll
  for (int i = 0; i < kWeightAxes; ++i) {
    tile.at[i] += geometry.tile[i];
    if (tile.at[i] < geometry.output_size[i]) return;
    tile.at[i] = 0;
  }
  ++tile.sample;
}

// A box of voxels of one tensor, and where it goes.
template <class Scalar>
struct Box {
  const Scalar *tensor, *corner;  // of the box, at channel 0; may lie outside the tensor
  int64_t channel_stride, w_stride;
  int first_channel, channels, voxels;
  uint32_t outside;
  const uint2* table;
  unsigned char* stage;
};

template <class Config, bool kRows>
__device__ __forceinline__ uint2 voxel_entry(const Box<typename Config::Scalar>& box, int voxel) {
  if (!kRows) return box.table[voxel];
  const int w = voxel % kWeightTileW;
  uint2 entry = box.table[voxel / kWeightTileW];
  entry.x += w * static_cast<unsigned>(box.w_stride);
  entry.y |= 1u << w;
  return entry;
}

// Threads hold a piece of kPiece bytes of the planes' channels each and walk the voxels.
template <class Config, bool kRows, int kPlanes, int kPlane, int kPiece>
__device__ __forceinline__ void copy_box(const Box<typename Config::Scalar>& box) {
  constexpr int kParts = Config::kVoxelBytes / kPiece, kPieces = kPlanes * kParts,
                kStep = Config::kThreads / kPieces, kBatch = 4;
  const int thread = ptx::thread_x(), piece = thread % kPieces, start = thread / kPieces;
  if (Config::kThreads % kPieces != 0 && start >= kStep) return;
  const int channel =
      box.first_channel + piece * (kPiece / static_cast<int>(sizeof(typename Config::Scalar)));
  const bool exists = channel < box.channels;
  const typename Config::Scalar* corner = box.corner + channel;
  const uint32_t to = ptx::shared_address(box.stage) + piece / kParts * kPlane + piece % kParts * kPiece;
#pragma unroll 1
  for (int voxel = start; voxel < box.voxels; voxel += kBatch * kStep) {
    uint2 entry[kBatch];  // no load passes a cp.async: first the entries, then the copies
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int at = voxel + i * kStep;
      entry[i] = voxel_entry<Config, kRows>(box, at < box.voxels ? at : 0);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (voxel + i * kStep >= box.voxels) break;
      const bool inside = exists && (entry[i].y & box.outside) == 0;
      ptx::cp_async<kPiece>(to + (voxel + i * kStep) * Config::kVoxelBytes,
                            inside ? corner + static_cast<int>(entry[i].x) : box.tensor, inside ? kPiece : 0);
    }
  }
}

// Neighbouring threads take neighbouring voxels, and the 16 bytes of 8 channels of them; in float32 of 4, and
// of 8 threads the second 4 take the other half of the same voxels, so that they store 128 bytes side by
// side.
template <class Config, bool kRows, int kPlanes, int kPlane>
__device__ __forceinline__ void gather_box(const Box<typename Config::Scalar>& box) {
  using Scalar = typename Config::Scalar;
  constexpr int kHalves = Config::kVoxelBytes / 16;
  const int items = kHalves == 1 ? box.voxels : (box.voxels + 3) / 4 * 8;
  const int rounds = (kPlanes * items + Config::kThreads - 1) / Config::kThreads;
  int item = ptx::thread_x(), plane = 0;
#pragma unroll 1
  for (int round = 0; round < rounds; ++round, item += Config::kThreads) {
    while (item >= items) item -= items, ++plane;
    if (plane >= kPlanes) return;
    const int half = kHalves == 1 ? 0 : item / 4 % 2, voxel = kHalves == 1 ? item : item / 8 * 4 + item % 4;
    if (kHalves == 2 && Config::kPair < 4 && voxel >= box.voxels) continue;  // else a multiple of 4
    const uint2 entry = voxel_entry<Config, kRows>(box, voxel);
    const int channel = box.first_channel + plane * 8 + half * 4;
    const int channels = (entry.y & box.outside) == 0 ? box.channels - channel : 0;
    const Scalar* from = box.corner + static_cast<int>(entry.x) + channel * box.channel_stride;
    const auto next = [&](int i) {  // a step at a time: multiples of the stride would be kept in registers
      const uint32_t bits = i < channels ? element_bits(*from) : 0;
      from += box.channel_stride;
      return bits;
    };
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kHalves == 2) {
        words[i] = next(i);
      } else {
        const uint32_t low = next(2 * i), high = next(2 * i + 1);
        words[i] = low | high << 16;
      }
    }
    *reinterpret_cast<uint4*>(box.stage + plane * kPlane + voxel * Config::kVoxelBytes + half * 16) =
        make_uint4(words[0], words[1], words[2], words[3]);
  }
}

}  // namespace acsconv
