// Depthwise ACS convolution, forward and gradient of the input, for any dtype and geometry and up to
// kDepthwiseMultiplier output channels of an input channel: every output channel is a 2D kernel over a volume
// of its own, so there is no product of matrices, and memory (or the first-level cache) is the limit. A block
// computes kVoxels voxels of kChannels channels of the result, adding view by view and, in the gradient,
// output channel by output channel, with the weights in shared memory. A thread computes kRows voxels of one
// channel together: each weight is read once for all of them. Neighbouring lanes are neighbouring channels
// (channels-last), or neighbouring voxels of one channel. Positions come from gather_walk.cuh, as in the
// gather kernel. Launched by simt_depthwise.cu.
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

// Tile `index`: up to kChannels channels of the result and kVoxels voxels. work.item_tiles counts the former.
template <class Config>
__device__ inline void depthwise_tile(const GatherWork& work, int64_t index, GatherTile& tile) {
  const Problem& p = work.problem;
  const int64_t channels = work.pass == Pass::Forward ? p.out_channels : p.in_channels;
  tile.begin = index % work.item_tiles * Config::kChannels;
  tile.end = tile.begin + Config::kChannels < channels ? tile.begin + Config::kChannels : channels;
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
  const Problem& p = work.problem;
  const bool forward = work.pass == Pass::Forward;
  const int64_t multiplier = p.out_channels / p.groups, taps = p.kernel_h * p.kernel_w;
  const int64_t terms = forward ? 1 : multiplier;  // output channels that a channel of the result depends on
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    if (thread == 0) depthwise_tile<Config>(work, index, shared.tile);
    __syncthreads();
    describe_voxels<Config>(shared);
    const int64_t begin = shared.tile.begin, end = shared.tile.end, item = begin + channel;
    typename Config::Sum sum[Config::kRows] = {};
    for (int view = 0; view < kViews; ++view) {
      const int64_t view_begin = view_channels_begin(p.split, view), view_end = view_begin + p.split[view];
      if (end * terms <= view_begin || begin * terms >= view_end) continue;
      __syncthreads();  // the voxels are described, and the view before has been added
      if (thread == 0) segment_loop(work, shared.tile, segment_taps(work, shared.tile, view), shared.segment);
      __syncthreads();
      const SegmentLoop& loop = shared.segment;
      if (loop.channels == 0) continue;
      describe_sources<Config>(loop, shared);
      for (int64_t term = 0; term < terms; ++term) {
        if (term > 0) __syncthreads();
        for (int i = thread; i < loop.rows * loop.columns * Config::kChannels; i += Config::kThreads) {
          const int tap = i / Config::kChannels, own = i % Config::kChannels;
          const int64_t offset = ((begin + own) * terms + term) * taps + loop.weight_base +
                                 tap / loop.columns * loop.weight_row +
                                 tap % loop.columns * loop.weight_column;
          shared.weight[i] = own < end - begin ? widen(weight[offset]) : typename Config::Sum(0);
        }
        __syncthreads();
        const int64_t output = item * terms + term;
        if (item < end && output >= view_begin && output < view_end) {
          const int64_t source_channel = forward ? output / multiplier : output;
          depthwise_sums<Config>(source + loop.source_base + source_channel * loop.channel_step, shared,
                                 first_voxel, channel, sum);
        }
      }
    }
    if (item < end) {
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
