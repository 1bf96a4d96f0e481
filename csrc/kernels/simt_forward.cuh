// Forward ACS convolution on CUDA cores, as an implicit matrix product per view:
//
//   out[voxel, channel] = bias[channel] + sum over k of x[position(voxel, k)] * weight[channel, k]
//
// with k running over (input channel of the group, row tap, column tap). A block computes 32 * Rows voxels
// times 8 * Warps output channels of one view and one group; a thread, Rows voxels (lane, lane + 32, ...)
// times 8 channels in registers. Slices of 8 values of k pass through two stages of shared memory: while one
// is multiplied, the next is on its way from memory in registers. Padding is a bounds check, 16-bit types are
// widened on the way in.
//
// The order of k, and which of k and voxel runs along a warp, follow the memory: with ChannelsInner
// (channels-last) the input channel is the fastest part of k and 8 lanes read 8 neighbouring channels;
// otherwise column taps are the fastest part and a warp reads neighbouring voxels. Launched by
// simt_forward.cu.
#pragma once

#include "../common/scalar.cuh"
#include "channel_tiles.h"

namespace acsconv {

// What a block needs to know of its view, in 32 bits where a coordinate suffices.
struct ViewGeometry {
  int row_size, column_size;          // of the input, along the view's row and column axis
  int row_dilation, column_dilation;  // in voxels
  int64_t row_step, column_step;      // elements from tap to tap
  int kernel_h, kernel_w;
  int channels;  // input channels of a group
};

__device__ inline ViewGeometry view_geometry(const Problem& p, int view) {
  const int row = row_axis(view), column = column_axis(view);
  ViewGeometry g;
  g.row_size = static_cast<int>(p.in_size[row]);
  g.column_size = static_cast<int>(p.in_size[column]);
  g.row_dilation = static_cast<int>(p.dilation[view][row]);
  g.column_dilation = static_cast<int>(p.dilation[view][column]);
  g.row_step = p.dilation[view][row] * p.input.axis[row];
  g.column_step = p.dilation[view][column] * p.input.axis[column];
  g.kernel_h = static_cast<int>(p.kernel_h);
  g.kernel_w = static_cast<int>(p.kernel_w);
  g.channels = static_cast<int>(p.in_channels / p.groups);
  return g;
}

// Position in the reduction: which input channel and which tap a value of k stands for.
template <bool ChannelsInner>
struct ReductionCursor {
  int channel = 0, row = 0, column = 0;

  __device__ __forceinline__ void advance(int steps, const ViewGeometry& g) {
    if (ChannelsInner) {
      for (channel += steps; channel >= g.channels; channel -= g.channels) {
        if (++column == g.kernel_w) column = 0, ++row;
      }
    } else {
      for (column += steps; column >= g.kernel_w; column -= g.kernel_w) {
        if (++row == g.kernel_h) row = 0, ++channel;
      }
    }
  }
  __device__ __forceinline__ bool inside(const ViewGeometry& g) const {
    return ChannelsInner ? row < g.kernel_h : channel < g.channels;
  }
  __device__ __forceinline__ int64_t input_offset(const ViewGeometry& g, int64_t channel_stride) const {
    return channel * channel_stride + row * g.row_step + column * g.column_step;
  }
  __device__ __forceinline__ int64_t weight_offset(const ViewGeometry& g) const {
    return (static_cast<int64_t>(channel) * g.kernel_h + row) * g.kernel_w + column;
  }
};

// One output voxel of a tile: where its tap (0, 0) reads. `row` is kOutside where nothing may be read.
struct VoxelOrigin {
  int64_t offset;
  int row, column;
};
inline constexpr int kOutside = -(1 << 30);  // no tap reaches a valid row from here: see simt_rejection()

template <class Scalar_, int Warps_, int Rows_, bool ChannelsInner_>
struct SimtForward {
  using Scalar = Scalar_;
  using Sum = Accumulator<Scalar>;
  static constexpr int kWarps = Warps_, kRows = Rows_;
  static constexpr bool kChannelsInner = ChannelsInner_;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kColumns = 8;  // output channels of a warp, and of each of its threads
  static constexpr int kTileVoxels = 32 * kRows, kTileChannels = kColumns * kWarps;
  static constexpr int kSlice = 8;                     // values of k per stage
  static constexpr int kInputPitch = kTileVoxels + 4;  // 8 channels x 4 voxels of a warp's stores: 32 banks
  static constexpr int kInputLoads = kTileVoxels * kSlice / kThreads;
  static constexpr int kWeightLoads = kTileChannels * kSlice / kThreads;
  static_assert(kTileVoxels % kThreads == 0 && kThreads % kSlice == 0);

  struct Stage {
    Sum input[kSlice][kInputPitch];
    Sum weight[kSlice][kTileChannels];
  };
  struct Shared {
    Stage stage[2];
    VoxelOrigin origin[kTileVoxels];
    int64_t output_offset[kTileVoxels];  // -1 past the last voxel
  };
  static constexpr size_t kSharedBytes = sizeof(Shared);
  static_assert(kSharedBytes <= 48 * 1024);
};

// Fills the tables of a tile of consecutive output voxels that begins at `first`.
template <class Config>
__device__ inline void describe_voxels(const Problem& p, int view, int64_t first,
                                       typename Config::Shared& shared) {
  const int64_t plane = p.out_size[1] * p.out_size[2];
  const int64_t base_depth = first / plane, in_plane = first % plane;
  const int64_t base_row = in_plane / p.out_size[2], base_column = in_plane % p.out_size[2];
  for (int i = threadIdx.x; i < Config::kTileVoxels; i += Config::kThreads) {
    int64_t at[3] = {base_depth, base_row, base_column + i};
    if (at[2] >= p.out_size[2]) {  // rare enough for wide volumes, and cheap for narrow ones: i is small
      at[1] += at[2] / p.out_size[2];
      at[2] %= p.out_size[2];
      at[0] += at[1] / p.out_size[1];
      at[1] %= p.out_size[1];
    }
    VoxelOrigin voxel{0, kOutside, 0};
    int64_t output_offset = -1;
    bool thin_inside = false;
    if (at[0] < p.out_size[0]) {
      output_offset = 0;
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        const int64_t position = at[axis] * p.stride[axis] + p.origin[view][axis];
        voxel.offset += position * p.input.axis[axis];
        output_offset += at[axis] * p.output.axis[axis];
        if (axis == thin_axis(view)) thin_inside = position >= 0 && position < p.in_size[axis];
        if (axis == row_axis(view)) voxel.row = static_cast<int>(position);
        if (axis == column_axis(view)) voxel.column = static_cast<int>(position);
      }
      if (!thin_inside) voxel.row = kOutside;
    }
    shared.origin[i] = voxel;
    shared.output_offset[i] = output_offset;
  }
}

template <class Scalar>
__device__ __forceinline__ Accumulator<Scalar> load_input(const Scalar* input, const VoxelOrigin& voxel,
                                                          int row_shift, int column_shift, int64_t offset,
                                                          const ViewGeometry& g) {
  const int row = voxel.row + row_shift, column = voxel.column + column_shift;
  const bool inside = static_cast<unsigned>(row) < static_cast<unsigned>(g.row_size) &&
                      static_cast<unsigned>(column) < static_cast<unsigned>(g.column_size);
  return inside ? widen(input[voxel.offset + offset]) : Accumulator<Scalar>(0);
}

template <class Config>
__device__ inline void multiply_slice(const typename Config::Stage& stage, int warp, int lane,
                                      typename Config::Sum (&sum)[Config::kRows][Config::kColumns]) {
#pragma unroll
  for (int k = 0; k < Config::kSlice; ++k) {
    typename Config::Sum x[Config::kRows], w[Config::kColumns];
#pragma unroll
    for (int i = 0; i < Config::kRows; ++i) x[i] = stage.input[k][lane + 32 * i];
#pragma unroll
    for (int j = 0; j < Config::kColumns; ++j) w[j] = stage.weight[k][warp * Config::kColumns + j];
#pragma unroll
    for (int i = 0; i < Config::kRows; ++i) {
#pragma unroll
      for (int j = 0; j < Config::kColumns; ++j) sum[i][j] += x[i] * w[j];
    }
  }
}

// The tile `index` of `voxel_tiles` x `channel_tiles` x batch; channel tiles run fastest, so that blocks that
// read the same input run at the same time.
template <class Config>
__device__ inline void simt_forward_tile(const Problem& p, int64_t index, int64_t voxel_tiles,
                                         int64_t channel_tiles, const typename Config::Scalar* input,
                                         const typename Config::Scalar* weight,
                                         const typename Config::Scalar* bias, typename Config::Scalar* output,
                                         typename Config::Shared& shared) {
  using Scalar = typename Config::Scalar;
  using Sum = typename Config::Sum;
  using Cursor = ReductionCursor<Config::kChannelsInner>;
  const ChannelTile tile = channel_tile(p, index % channel_tiles, Config::kTileChannels);
  if (tile.begin >= tile.end) return;
  const int64_t first_voxel = index / channel_tiles % voxel_tiles * Config::kTileVoxels;
  const int64_t batch = index / channel_tiles / voxel_tiles;

  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const ViewGeometry g = view_geometry(p, tile.view);
  const int reduction = g.channels * g.kernel_h * g.kernel_w;
  const int64_t channel_stride = p.input.channel;
  input += batch * p.input.batch + tile.group * g.channels * channel_stride;
  output += batch * p.output.batch + tile.begin * p.output.channel;
  weight += tile.begin * reduction;
  const int tile_channels = static_cast<int>(tile.end - tile.begin);

  describe_voxels<Config>(p, tile.view, first_voxel, shared);
  __syncthreads();

  // This thread's share of a slice. Weights, and channels-last inputs: the value of k is fixed, `own` follows
  // it. Other inputs: the voxels are fixed, and `all` runs over the slice.
  const int own_k = thread % Config::kSlice, own_item = thread / Config::kSlice;
  constexpr int kItemStep = Config::kThreads / Config::kSlice;
  Cursor own, all;
  own.advance(own_k, g);
  constexpr int kOwnVoxels = Config::kTileVoxels / Config::kThreads;
  VoxelOrigin voxel[kOwnVoxels];
  if (!Config::kChannelsInner) {
#pragma unroll
    for (int i = 0; i < kOwnVoxels; ++i) voxel[i] = shared.origin[thread + i * Config::kThreads];
  }

  Sum next_input[Config::kInputLoads], next_weight[Config::kWeightLoads];
  auto fetch = [&] {
    const bool own_inside = own.inside(g);
    if (Config::kChannelsInner) {
      const int64_t offset = own.input_offset(g, channel_stride);
      const int row_shift = own_inside ? own.row * g.row_dilation : kOutside;
      const int column_shift = own.column * g.column_dilation;
#pragma unroll
      for (int i = 0; i < Config::kInputLoads; ++i) {
        next_input[i] =
            load_input(input, shared.origin[own_item + i * kItemStep], row_shift, column_shift, offset, g);
      }
    } else {
#pragma unroll
      for (int k = 0; k < Config::kSlice; ++k) {
        const int64_t offset = all.input_offset(g, channel_stride);
        const int row_shift = all.inside(g) ? all.row * g.row_dilation : kOutside;
        const int column_shift = all.column * g.column_dilation;
#pragma unroll
        for (int i = 0; i < kOwnVoxels; ++i) {
          next_input[k * kOwnVoxels + i] = load_input(input, voxel[i], row_shift, column_shift, offset, g);
        }
        all.advance(1, g);
      }
    }
    const int64_t weight_offset = own.weight_offset(g);
#pragma unroll
    for (int i = 0; i < Config::kWeightLoads; ++i) {
      const int channel = own_item + i * kItemStep;
      next_weight[i] = own_inside && channel < tile_channels
                           ? widen(weight[static_cast<int64_t>(channel) * reduction + weight_offset])
                           : Sum(0);
    }
    own.advance(Config::kSlice, g);
  };
  auto store = [&](typename Config::Stage& stage) {
#pragma unroll
    for (int i = 0; i < Config::kInputLoads; ++i) {
      if (Config::kChannelsInner) {
        stage.input[own_k][own_item + i * kItemStep] = next_input[i];
      } else {
        stage.input[i / kOwnVoxels][thread + i % kOwnVoxels * Config::kThreads] = next_input[i];
      }
    }
#pragma unroll
    for (int i = 0; i < Config::kWeightLoads; ++i)
      stage.weight[own_k][own_item + i * kItemStep] = next_weight[i];
  };

  Sum sum[Config::kRows][Config::kColumns] = {};
  fetch();
  store(shared.stage[0]);
  __syncthreads();
  int current = 0;
  for (int k = 0; k < reduction; k += Config::kSlice) {
    const bool more = k + Config::kSlice < reduction;
    if (more) fetch();
    multiply_slice<Config>(shared.stage[current], warp, lane, sum);
    if (more) store(shared.stage[current ^ 1]);
    __syncthreads();
    current ^= 1;
  }

#pragma unroll
  for (int j = 0; j < Config::kColumns; ++j) {
    const int channel = warp * Config::kColumns + j;
    if (channel >= tile_channels) break;
    const Sum shift = bias ? widen(bias[tile.begin + channel]) : Sum(0);
#pragma unroll
    for (int i = 0; i < Config::kRows; ++i) {
      const int64_t offset = shared.output_offset[lane + 32 * i];
      Scalar value;
      narrow(sum[i][j] + shift, value);
      if (offset >= 0) output[offset + channel * p.output.channel] = value;
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    simt_forward_kernel(const Problem p, int64_t voxel_tiles, int64_t channel_tiles,
                        const typename Config::Scalar* input, const typename Config::Scalar* weight,
                        const typename Config::Scalar* bias, typename Config::Scalar* output) {
  DYNAMIC_SHARED(memory);
  typename Config::Shared& shared = *reinterpret_cast<typename Config::Shared*>(memory);
  const int64_t tiles = voxel_tiles * channel_tiles * p.batch;
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    simt_forward_tile<Config>(p, index, voxel_tiles, channel_tiles, input, weight, bias, output, shared);
    __syncthreads();  // the next tile rewrites the tables
  }
}

}  // namespace acsconv
