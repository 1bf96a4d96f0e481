// Forward pass and gradient of the input on CUDA cores, for any dtype and geometry: the matrix product
// described in gather_walk.cuh. A block computes 32 * Rows voxels times 8 * Warps items (channels); a thread,
// Rows voxels (lane, lane + 32, ...) times 8 items in registers. Slices of 8 values of k pass through two
// stages of shared memory: while one is multiplied, the next is on its way from memory in registers. Padding
// is a bounds check, 16-bit types are widened on the way in, nothing is written but the result.
//
// The order of k, and which of k and voxel runs along a warp, follow the memory: with ChannelsInner
// (channels-last) the channel is the fastest part of k and 8 lanes read 8 neighbouring channels; otherwise
// column taps are the fastest part and a warp reads neighbouring voxels. Launched by simt_gather.cu.
#pragma once

#include "../common/scalar.cuh"
#include "gather_walk.cuh"

namespace acsconv {

// Where a voxel of a tile reads with tap (0, 0) of the current segment, and what another k adds to that.
// `row` is kOutside where nothing may be read; no tap reaches a valid row from there, since
// gather_rejection() bounds all coordinates.
struct alignas(16) VoxelSource {
  int64_t offset;
  int row, column;
};
inline constexpr int kOutside = -(1 << 30);

// Position in the reduction: the channel and the taps that a value of k stands for.
template <bool ChannelsInner>
struct ReductionCursor {
  int channel = 0, row = 0, column = 0;

  __device__ __forceinline__ void advance(int steps, int channels, int rows, int columns) {
    if (ChannelsInner) {
      for (channel += steps; channel >= channels; channel -= channels) {
        if (++column == columns) column = 0, ++row;
      }
    } else {
      for (column += steps; column >= columns; column -= columns) {
        if (++row == rows) row = 0, ++channel;
      }
    }
  }
};

// A segment as the loops over its voxels and its k use it.
struct SegmentLoop {
  int channels, rows, columns;                  // extents of k; no channels: nothing to add
  int items;                                    // of the tile
  int scale[3], base[3];                        // voxel index -> source position of tap (0, 0), per axis
  int thin, row, column;                        // axes
  int thin_size, row_size, column_size;         // of the source
  int row_shift, column_shift;                  // voxels from tap to tap
  int64_t channel_step, row_step, column_step;  // elements of the source
  int64_t source_base, weight_base;             // of the first channel, first taps and first item
  int64_t weight_item, weight_channel, weight_row, weight_column;
  bool wide_weight;  // weights are of the accumulator's type

  template <bool ChannelsInner>
  __device__ __forceinline__ bool contains(const ReductionCursor<ChannelsInner>& at) const {
    return ChannelsInner ? at.row < rows : at.channel < channels;
  }
  template <bool ChannelsInner>
  __device__ __forceinline__ void advance(ReductionCursor<ChannelsInner>& at, int steps) const {
    at.advance(steps, channels, rows, columns);
  }
  template <bool ChannelsInner>
  __device__ __forceinline__ int64_t source_offset(const ReductionCursor<ChannelsInner>& at) const {
    return at.channel * channel_step + at.row * row_step + at.column * column_step;
  }
  template <bool ChannelsInner>
  __device__ __forceinline__ int64_t weight_offset(const ReductionCursor<ChannelsInner>& at) const {
    return at.channel * weight_channel + at.row * weight_row + at.column * weight_column;
  }
};

template <class Scalar_, int Warps_, int Rows_, bool ChannelsInner_>
struct SimtGather {
  using Scalar = Scalar_;
  using Sum = Accumulator<Scalar>;
  static constexpr int kWarps = Warps_, kRows = Rows_;
  static constexpr bool kChannelsInner = ChannelsInner_;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kColumns = kGatherColumns;  // items of a warp, and of each of its threads
  static constexpr int kVoxels = 32 * kRows, kItems = kColumns * kWarps;
  static constexpr int kSlice = 8;                  // values of k per stage
  static constexpr int kSourcePitch = kVoxels + 4;  // 8 channels x 4 voxels of a warp's stores: 32 banks
  static constexpr int kSourceLoads = kVoxels * kSlice / kThreads;
  static constexpr int kWeightLoads = kItems * kSlice / kThreads;
  static constexpr int kThreadVoxels = kVoxels / kThreads;  // of a thread that loads all k of its voxels
  // Blocks per multiprocessor: 168 registers a thread where the sums alone take 48, values are 64 bits, or a
  // lone warp has all loads of a slice on its way; else 128.
  static constexpr bool kLarge = kRows * kColumns * sizeof(Sum) >= 192 || sizeof(Sum) == 8 || kWarps == 1;
  static constexpr int kBlocks = (kLarge ? 384 : 512) / kThreads;
  static_assert(kVoxels % kThreads == 0 && kThreads % kSlice == 0);
  // Sums, a slice on its way, and about 32 for factors and addresses.
  static_assert((kRows * kColumns + kSourceLoads + kWeightLoads) * int{sizeof(Sum)} / 4 + 32 <=
                register_budget(kThreads, kBlocks));

  struct Stage {
    alignas(16) Sum source[kSlice][kSourcePitch];
    alignas(16) Sum weight[kSlice][kItems];
    VoxelSource shift[kSlice];  // what each k adds to where a voxel reads; not used with ChannelsInner
  };
  // What all threads of a block agree on lives here too: it would take registers that the sums need.
  struct Shared {
    Stage stage[2];
    GatherTile tile;
    SegmentLoop segment[kViews];
    VolumeStrides source_strides, destination_strides;
    int index[3][kVoxels];         // of each voxel along the axes; index[0] is -1 past the last voxel
    VoxelSource voxel[kVoxels];    // for the current segment
    int64_t destination[kVoxels];  // offset; -1 past the last voxel
  };
  static constexpr size_t kSharedBytes = sizeof(Shared);
  static_assert(kSharedBytes <= kDefaultSharedBytes);
};

// Fills in where the voxels of the tile are: the i-th after `first`, counted through the extents.
template <class Config>
__device__ inline void describe_voxels(typename Config::Shared& shared) {
  const GatherTile& tile = shared.tile;
  for (int i = threadIdx.x; i < Config::kVoxels; i += Config::kThreads) {
    int at[3] = {-1, 0, 0};
    int64_t offset = -1;
    const int column = tile.first[2] + i, row = tile.first[1] + column / tile.extent[2];
    const int plane = tile.first[0] + row / tile.extent[1];
    if (plane < tile.extent[0]) {
      at[0] = plane;
      at[1] = row % tile.extent[1];
      at[2] = column % tile.extent[2];
      offset = 0;
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        offset += (tile.residue[axis] + at[axis] * tile.step[axis]) * shared.destination_strides.axis[axis];
      }
    }
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) shared.index[axis][i] = at[axis];
    shared.destination[i] = offset;
  }
}

// Where each voxel of the tile reads in a segment.
template <class Config>
__device__ inline void describe_sources(const SegmentLoop& segment, typename Config::Shared& shared) {
  for (int i = threadIdx.x; i < Config::kVoxels; i += Config::kThreads) {
    VoxelSource voxel{0, kOutside, 0};
    bool inside = shared.index[0][i] >= 0;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const int position = shared.index[axis][i] * segment.scale[axis] + segment.base[axis];
      voxel.offset += position * shared.source_strides.axis[axis];
      if (axis == segment.thin) inside = inside && position >= 0 && position < segment.thin_size;
      if (axis == segment.row) voxel.row = position;
      if (axis == segment.column) voxel.column = position;
    }
    if (!inside) voxel.row = kOutside;
    shared.voxel[i] = voxel;
  }
}

__device__ inline void segment_loop(const GatherWork& work, const GatherTile& tile, const Segment& s,
                                    SegmentLoop& loop) {
  const bool forward = work.pass == Pass::Forward;
  const Problem& p = work.problem;
  const int64_t channel_stride = forward ? p.input.channel : p.output.channel;
  loop.channels = s.channels;
  loop.items = static_cast<int>(tile.end - tile.begin);
  loop.thin = s.thin;
  loop.row = s.row;
  loop.column = s.column;
  loop.channel_step = channel_stride;
  loop.source_base =
      tile.batch * (forward ? p.input.batch : p.output.batch) + s.source_channel * channel_stride;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {  // constant indices, so that the arrays stay in registers
    const SegmentAxis& a = s.axis[axis];
    const int size = static_cast<int>(forward ? p.in_size[axis] : p.out_size[axis]);
    const int64_t step = a.shift * (forward ? p.input.axis[axis] : p.output.axis[axis]);
    loop.scale[axis] = a.scale;
    loop.base[axis] = a.base;
    if (axis == s.thin) loop.thin_size = size;
    if (axis == s.row)
      loop.rows = a.taps, loop.row_size = size, loop.row_shift = a.shift, loop.row_step = step;
    if (axis == s.column) {
      loop.columns = a.taps, loop.column_size = size, loop.column_shift = a.shift, loop.column_step = step;
    }
  }
  loop.weight_base = s.weight_base;
  loop.weight_item = s.weight_item;
  loop.weight_channel = s.weight_channel;
  loop.weight_row = s.weight_row;
  loop.weight_column = s.weight_column;
  loop.wide_weight = work.folded;
}

template <class Scalar>
__device__ __forceinline__ Accumulator<Scalar> load_source(const Scalar* source, const VoxelSource& voxel,
                                                           const VoxelSource& shift,
                                                           const SegmentLoop& loop) {
  const int row = voxel.row + shift.row, column = voxel.column + shift.column;
  const bool inside = static_cast<unsigned>(row) < static_cast<unsigned>(loop.row_size) &&
                      static_cast<unsigned>(column) < static_cast<unsigned>(loop.column_size);
  return inside ? widen(source[voxel.offset + shift.offset]) : Accumulator<Scalar>(0);
}

template <class Scalar>
__device__ __forceinline__ Accumulator<Scalar> load_weight(const Scalar* weight, int64_t index, bool wide) {
  return wide ? reinterpret_cast<const Accumulator<Scalar>*>(weight)[index] : widen(weight[index]);
}

template <class Config>
__device__ inline void multiply_slice(const typename Config::Stage& stage, int warp, int lane,
                                      typename Config::Sum (&sum)[Config::kRows][Config::kColumns]) {
#pragma unroll
  for (int k = 0; k < Config::kSlice; ++k) {
    typename Config::Sum x[Config::kRows], w[Config::kColumns];
#pragma unroll
    for (int i = 0; i < Config::kRows; ++i) x[i] = stage.source[k][lane + 32 * i];
#pragma unroll
    for (int j = 0; j < Config::kColumns; ++j) w[j] = stage.weight[k][warp * Config::kColumns + j];
#pragma unroll
    for (int i = 0; i < Config::kRows; ++i) {
#pragma unroll
      for (int j = 0; j < Config::kColumns; ++j) sum[i][j] += x[i] * w[j];
    }
  }
}

// Adds a segment to the sums. All threads have passed a barrier since shared.voxel was written.
template <class Config>
__device__ inline void add_segment(const SegmentLoop& loop, const typename Config::Scalar* source,
                                   const typename Config::Scalar* weight, typename Config::Shared& shared,
                                   typename Config::Sum (&sum)[Config::kRows][Config::kColumns]) {
  using Sum = typename Config::Sum;
  source += loop.source_base;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  // This thread's share of a slice. Weights, and channels-last sources: one value of k, which `at` follows,
  // of every kItemStep-th item or voxel. Other sources: all values of k of kThreadVoxels voxels; the first
  // threads tell the others, one slice ahead, where those k read.
  const int own_k = thread % Config::kSlice, own_item = thread / Config::kSlice;
  constexpr int kItemStep = Config::kThreads / Config::kSlice;
  ReductionCursor<Config::kChannelsInner> at;
  loop.advance(at, own_k);
  const auto own_shift = [&]() -> VoxelSource {
    return {loop.source_offset(at), loop.contains(at) ? at.row * loop.row_shift : kOutside,
            at.column * loop.column_shift};
  };
  if (!Config::kChannelsInner) {
    if (thread < Config::kSlice) shared.stage[0].shift[thread] = own_shift();
    __syncthreads();
  }

  Sum next_source[Config::kSourceLoads], next_weight[Config::kWeightLoads];
  const auto fetch = [&](const typename Config::Stage& stage, typename Config::Stage& later) {
    if (Config::kChannelsInner) {
      const VoxelSource shift = own_shift();
#pragma unroll
      for (int i = 0; i < Config::kSourceLoads; ++i) {
        next_source[i] = load_source(source, shared.voxel[own_item + i * kItemStep], shift, loop);
      }
    } else {
#pragma unroll
      for (int i = 0; i < Config::kThreadVoxels; ++i) {
        const VoxelSource voxel = shared.voxel[thread + i * Config::kThreads];
#pragma unroll
        for (int k = 0; k < Config::kSlice; ++k) {
          next_source[i * Config::kSlice + k] = load_source(source, voxel, stage.shift[k], loop);
        }
      }
    }
    const bool inside = loop.contains(at);
    const int64_t weight_offset = loop.weight_base + loop.weight_offset(at);
#pragma unroll
    for (int i = 0; i < Config::kWeightLoads; ++i) {
      const int item = own_item + i * kItemStep;
      next_weight[i] = inside && item < loop.items
                           ? load_weight(weight, item * loop.weight_item + weight_offset, loop.wide_weight)
                           : Sum(0);
    }
    loop.advance(at, Config::kSlice);
    if (!Config::kChannelsInner && thread < Config::kSlice) later.shift[thread] = own_shift();
  };
  const auto store = [&](typename Config::Stage& stage) {
#pragma unroll
    for (int i = 0; i < Config::kSourceLoads; ++i) {
      if (Config::kChannelsInner) {
        stage.source[own_k][own_item + i * kItemStep] = next_source[i];
      } else {
        stage.source[i % Config::kSlice][thread + i / Config::kSlice * Config::kThreads] = next_source[i];
      }
    }
#pragma unroll
    for (int i = 0; i < Config::kWeightLoads; ++i)
      stage.weight[own_k][own_item + i * kItemStep] = next_weight[i];
  };

  const int reduction = loop.channels * loop.rows * loop.columns;
  fetch(shared.stage[0], shared.stage[1]);
  store(shared.stage[0]);
  __syncthreads();
  int current = 0;
  for (int k = 0; k < reduction; k += Config::kSlice) {
    typename Config::Stage &stage = shared.stage[current], &other = shared.stage[current ^ 1];
    const bool more = k + Config::kSlice < reduction;
    if (more) fetch(other, stage);
    multiply_slice<Config>(stage, warp, lane, sum);
    if (more) store(other);
    __syncthreads();
    current ^= 1;
  }
}

// Channels-last: a warp exchanges its values through its part of the stages, so that 8 lanes store the 8
// channels of a voxel. Straight from the registers every store would touch 32 sectors of memory, here 4 to 8.
// All threads have passed a barrier since the stages were read.
template <class Config>
__device__ inline void store_channels_inner(
    const typename Config::Scalar* bias, typename Config::Scalar* destination,
    typename Config::Shared& shared, const typename Config::Sum (&sum)[Config::kRows][Config::kColumns]) {
  using Sum = typename Config::Sum;
  constexpr int kPitch = Config::kColumns + 1, kVoxelStep = 32 / Config::kColumns;
  static_assert(sizeof(Sum) * Config::kThreads * kPitch <= sizeof(shared.stage));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Sum* staged = reinterpret_cast<Sum*>(shared.stage) + warp * 32 * kPitch;
  const int column = lane % Config::kColumns;
  const int64_t item = shared.tile.begin + warp * Config::kColumns + column;
  const bool exists = item < shared.tile.end;
  const Sum shift = bias && exists ? widen(bias[item]) : Sum(0);
#pragma unroll
  for (int i = 0; i < Config::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Config::kColumns; ++j) staged[lane * kPitch + j] = sum[i][j];
    __syncwarp();
#pragma unroll
    for (int j = 0; j < Config::kColumns; ++j) {
      const int voxel = lane / Config::kColumns + j * kVoxelStep;
      const int64_t offset = shared.destination[voxel + 32 * i];
      if (offset >= 0 && exists) narrow(staged[voxel * kPitch + column] + shift, destination[offset + item]);
    }
    __syncwarp();
  }
}

template <class Config>
__device__ inline void store_tile(const typename Config::Scalar* bias, typename Config::Scalar* destination,
                                  typename Config::Shared& shared,
                                  const typename Config::Sum (&sum)[Config::kRows][Config::kColumns]) {
  if (shared.destination_strides.channel == 1) {
    store_channels_inner<Config>(bias, destination, shared, sum);
    return;
  }
  const GatherTile& tile = shared.tile;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int j = 0; j < Config::kColumns; ++j) {
    const int64_t item = tile.begin + warp * Config::kColumns + j;
    if (item >= tile.end) break;
    const typename Config::Sum shift = bias ? widen(bias[item]) : typename Config::Sum(0);
#pragma unroll
    for (int i = 0; i < Config::kRows; ++i) {
      const int64_t offset = shared.destination[lane + 32 * i];
      typename Config::Scalar value;
      narrow(sum[i][j] + shift, value);
      if (offset >= 0) destination[offset + item * shared.destination_strides.channel] = value;
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    simt_gather_kernel(const __grid_constant__ GatherWork work, int64_t tiles,
                       const typename Config::Scalar* source, const typename Config::Scalar* weight,
                       const typename Config::Scalar* bias, typename Config::Scalar* destination) {
  DYNAMIC_SHARED(memory);
  typename Config::Shared& shared = *reinterpret_cast<typename Config::Shared*>(memory);
  const int thread = threadIdx.x;
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
    if (thread == 0) gather_tile(work, index, Config::kVoxels, Config::kItems, shared.tile);
    __syncthreads();
    if (thread < kViews) {
      segment_loop(work, shared.tile, gather_segment(work, shared.tile, thread), shared.segment[thread]);
    }
    describe_voxels<Config>(shared);
    __syncthreads();
    typename Config::Sum sum[Config::kRows][Config::kColumns] = {};
    for (int view = 0; view < kViews; ++view) {
      if (shared.segment[view].channels == 0) continue;
      describe_sources<Config>(shared.segment[view], shared);
      __syncthreads();
      add_segment<Config>(shared.segment[view], source, weight, shared, sum);  // ends with a barrier
    }
    store_tile<Config>(bias, destination + shared.tile.batch * shared.destination_strides.batch, shared, sum);
    __syncthreads();  // the next tile rewrites what this one was described by
  }
}

}  // namespace acsconv
