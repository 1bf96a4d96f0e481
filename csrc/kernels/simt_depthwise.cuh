// Depthwise ACS convolution, forward and gradient of the input, for any dtype and geometry: every channel is
// a 2D kernel over its own volume, so there is no product of matrices, and memory (or the first-level cache)
// is the limit. A block keeps the weights of its channels, all of one view, in shared memory and computes
// kVoxels voxels of them. A thread computes kRows voxels of one channel together: each weight is read once
// for all of them. Neighbouring lanes are neighbouring channels (channels-last), or neighbouring voxels of
// one channel. Positions come from gather_walk.cuh, as in the gather kernel. Launched by simt_depthwise.cu.
#pragma once

#include "simt_gather.cuh"

namespace acsconv {

template <class Scalar_, bool ChannelsInner_>
struct SimtDepthwise {
  using Scalar = Scalar_;
  using Sum = Accumulator<Scalar>;
  static constexpr bool kChannelsInner = ChannelsInner_;
  static constexpr int kThreads = 128;
  static constexpr int kRows = 8;                            // voxels of a thread
  static constexpr int kChannels = kChannelsInner ? 32 : 1;  // of a block
  static constexpr int kVoxelLanes = kThreads / kChannels;   // threads side by side along the voxels
  static constexpr int kVoxels = kVoxelLanes * kRows;

  struct Shared {
    GatherTile tile;
    SegmentLoop segment;
    VolumeStrides source_strides, destination_strides;
    int index[3][kVoxels];
    VoxelSource voxel[kVoxels];
    int64_t destination[kVoxels];
    Sum weight[kDepthwiseTaps * kChannels];  // [tap][channel]
  };
  static constexpr size_t kSharedBytes = sizeof(Shared);
  static_assert(kSharedBytes <= kDefaultSharedBytes);
};

// Tile `index`: up to kChannels channels of one view and kVoxels voxels. work.item_tiles counts the former.
template <class Config>
__device__ inline void depthwise_tile(const GatherWork& work, int64_t index, GatherTile& tile) {
  const Problem& p = work.problem;
  const ViewChannels channels = depthwise_channels(p, index % work.item_tiles, Config::kChannels);
  tile.view = channels.view;
  tile.begin = channels.begin;
  tile.end = channels.end;
  tile.group = tile.begin;  // the segment is that of the first channel; the others follow it
  gather_tile_voxels(work, index / work.item_tiles, Config::kVoxels, tile);
}

template <class Config>
__device__ inline void depthwise_sums(const typename Config::Scalar* source,
                                      const typename Config::Shared& shared, int first_voxel, int channel,
                                      typename Config::Sum (&sum)[Config::kRows]) {
  const SegmentLoop& loop = shared.segment;
  VoxelSource voxel[Config::kRows];
#pragma unroll
  for (int i = 0; i < Config::kRows; ++i) voxel[i] = shared.voxel[first_voxel + i * Config::kVoxelLanes];
  const typename Config::Sum* weight = shared.weight + channel;
  for (int row = 0; row < loop.rows; ++row) {
    for (int column = 0; column < loop.columns; ++column, weight += Config::kChannels) {
      const VoxelSource shift{row * loop.row_step + column * loop.column_step, row * loop.row_shift,
                              column * loop.column_shift};
#pragma unroll
      for (int i = 0; i < Config::kRows; ++i) sum[i] += *weight * load_source(source, voxel[i], shift, loop);
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    simt_depthwise_kernel(const __grid_constant__ GatherWork work, int64_t tiles,
                          const typename Config::Scalar* source, const typename Config::Scalar* weight,
                          const typename Config::Scalar* bias, typename Config::Scalar* destination) {
  DYNAMIC_SHARED(memory);
  typename Config::Shared& shared = *reinterpret_cast<typename Config::Shared*>(memory);
  const int thread = threadIdx.x;
  const int channel = Config::kChannelsInner ? thread % Config::kChannels : 0,
            first_voxel = thread / Config::kChannels;
  if (thread == 0) {
    if (work.pass == Pass::Forward) {
      shared.source_strides = work.problem.input;
      shared.destination_strides = work.problem.output;
    } else {
      shared.source_strides = work.problem.output;
      shared.destination_strides = work.problem.input;
    }
  }
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    if (thread == 0) {
      depthwise_tile<Config>(work, index, shared.tile);
      segment_loop(work, shared.tile, shared.tile.view, shared.segment);
    }
    __syncthreads();
    describe_voxels<Config>(shared);
    __syncthreads();
    describe_sources<Config>(shared.segment, shared);
    const SegmentLoop& loop = shared.segment;
    const int64_t taps = work.problem.kernel_h * work.problem.kernel_w;
    for (int i = thread; i < loop.rows * loop.columns * Config::kChannels; i += Config::kThreads) {
      const int tap = i / Config::kChannels, item = i % Config::kChannels;
      const int64_t offset = loop.weight_base + item * taps + tap / loop.columns * loop.weight_row +
                             tap % loop.columns * loop.weight_column;
      shared.weight[i] = item < loop.items ? widen(weight[offset]) : typename Config::Sum(0);
    }
    __syncthreads();
    if (channel < loop.items) {
      typename Config::Sum sum[Config::kRows] = {};
      if (loop.channels > 0) {
        depthwise_sums<Config>(source + loop.source_base + channel * loop.channel_step, shared, first_voxel,
                               channel, sum);
      }
      const int64_t item = shared.tile.begin + channel;
      const typename Config::Sum shift = bias ? widen(bias[item]) : typename Config::Sum(0);
      typename Config::Scalar* to = destination + shared.tile.batch * shared.destination_strides.batch +
                                    item * shared.destination_strides.channel;
#pragma unroll
      for (int i = 0; i < Config::kRows; ++i) {
        const int64_t offset = shared.destination[first_voxel + i * Config::kVoxelLanes];
        if (offset >= 0) narrow(sum[i] + shift, to[offset]);
      }
    }
    __syncthreads();  // the next tile rewrites what this one was described by
  }
}

}  // namespace acsconv
