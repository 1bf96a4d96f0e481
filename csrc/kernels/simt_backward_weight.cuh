// Gradients of weight and bias on CUDA cores, for any dtype and geometry, as a matrix product per view:
//
//   grad[item, column] = sum over output voxels of grad_output[item, voxel] * x[column at voxel]
//
// Items are output channels; columns are (input channel of the group, row tap, column tap), which read x
// where the forward pass does, and one more that reads 1 everywhere: the gradient of the bias. A block
// computes 8 * Warps items of one view and group times kColumns columns over one part of the voxels; a
// thread, 8 items times kRows columns in registers. Slices of kSlice voxels pass through two stages of shared
// memory, as in simt_gather.cuh.
//
// With one part a block writes the gradients themselves; otherwise it writes sums to the workspace,
// [part][view if soft][C_out][columns], and add_parts() adds them in order. Launched by
// simt_backward_weight.cu.
#pragma once

#include "../common/scalar.cuh"
#include "gather_walk.cuh"

namespace acsconv {

// Kernel argument. With `soft`, problem.split is (C_out, 0, 0) and every view computes all items.
struct WeightWork {
  Problem problem;
  bool soft, weight, bias;  // which gradients are wanted
  int64_t item_tiles, column_tiles;
  int64_t parts, part_voxels;  // voxels of all batches together
};

// Columns of the product: those of the weight, then that of the bias.
__host__ __device__ inline int64_t weight_columns(const WeightWork& work) {
  const Problem& p = work.problem;
  return work.weight ? p.in_channels / p.groups * p.kernel_h * p.kernel_w : 0;
}
__host__ __device__ inline int64_t all_columns(const WeightWork& work) {
  return weight_columns(work) + work.bias;
}

template <class Scalar_, int Warps_, bool Narrow_, bool ChannelsInner_>
struct SimtBackwardWeight {
  using Scalar = Scalar_;
  using Sum = Accumulator<Scalar>;
  static constexpr int kWarps = Warps_;
  static constexpr bool kChannelsInner = ChannelsInner_;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = Narrow_ ? 1 : sizeof(Sum) == 8 ? 2 : 4;  // columns of a lane
  static constexpr int kColumns = 32 * kRows;
  static constexpr int kWarpItems = 8, kItems = kWarpItems * kWarps;
  static constexpr int kSlice = kWarps >= 4 ? 16 : 8;  // voxels per stage
  static constexpr int kColumnPitch =
      kColumns + 32 / kSlice;  // a warp stores kSlice voxels of 32 / kSlice columns
  static constexpr int kItemPitch = kItems + 4;
  static constexpr int kColumnLoads = kSlice * kColumns / kThreads, kItemLoads = kSlice * kItems / kThreads;
  // Per multiprocessor: 168 registers a thread (112 with narrow tiles), and more for a lone warp, which has
  // the most loads on its way.
  static constexpr int kBlocks = kWarps == 1 ? (Narrow_ ? 12 : 8) : (Narrow_ ? 576 : 384) / kThreads;

  // Sums, a slice on its way, and about 32 for factors and addresses.
  static_assert((kWarpItems * kRows + kColumnLoads + kItemLoads) * int{sizeof(Sum)} / 4 + 32 <=
                register_budget(kThreads, kBlocks));

  // Where a column reads relative to a voxel. The bias's column, and those past the last one, read nothing:
  // their row is kOutside, and they are told apart by `column`.
  struct alignas(16) Shift {
    int64_t offset;
    int row, column;
  };
  static constexpr int kOutside = -(1 << 30), kAllOnes = 1;
  struct alignas(16) Voxel {
    int64_t source;    // offset in x of tap (0, 0) in channel 0 of the group
    int64_t gradient;  // offset in grad_output of the first item; -1 past the last voxel
    int row, column;
  };
  struct Stage {
    alignas(16) Sum column[kSlice][kColumnPitch];
    alignas(16) Sum item[kSlice][kItemPitch];
    Voxel voxel[kSlice];
  };
  struct Tile {
    int view;
    int64_t begin, end;  // items
    int64_t first_column, first_voxel, end_voxel, part;
    int64_t input_base, gradient_base;
    int scale[3], base[3];  // output index -> input position of tap (0, 0), per axis
    int row, column, thin;  // axes
    int in_size[3], out_size[3];
    int64_t in_step[3], out_step[3], in_batch, out_batch, out_channel;
  };
  struct Shared {
    Stage stage[2];
    Tile tile;
    Shift shift[kColumns];
  };
  static constexpr size_t kSharedBytes = sizeof(Shared);
  static_assert(kSharedBytes <= kDefaultSharedBytes);
};

template <class Config>
__device__ inline void describe_tile(const WeightWork& work, int64_t index, typename Config::Tile& tile) {
  const Problem& p = work.problem;
  const int64_t item_tile = index % work.item_tiles;
  index /= work.item_tiles;
  tile.first_column = index % work.column_tiles * Config::kColumns;
  index /= work.column_tiles;
  tile.part = index % work.parts;
  const ChannelTile channels = channel_tile(p, item_tile, Config::kItems);
  tile.view = work.soft ? static_cast<int>(index / work.parts) : channels.view;
  tile.begin = channels.begin;
  tile.end = channels.end;
  const int64_t voxels = p.batch * p.out_size[0] * p.out_size[1] * p.out_size[2];
  tile.first_voxel = tile.part * work.part_voxels;
  tile.end_voxel =
      tile.first_voxel + work.part_voxels < voxels ? tile.first_voxel + work.part_voxels : voxels;
  tile.input_base = channels.group * (p.in_channels / p.groups) * p.input.channel;
  tile.gradient_base = channels.begin * p.output.channel;
  tile.row = row_axis(tile.view);
  tile.column = column_axis(tile.view);
  tile.thin = thin_axis(tile.view);
  for (int axis = 0; axis < 3; ++axis) {
    tile.scale[axis] = static_cast<int>(p.stride[axis]);
    tile.base[axis] = static_cast<int>(p.origin[tile.view][axis]);
    tile.in_size[axis] = static_cast<int>(p.in_size[axis]);
    tile.out_size[axis] = static_cast<int>(p.out_size[axis]);
    tile.in_step[axis] = p.input.axis[axis];
    tile.out_step[axis] = p.output.axis[axis];
  }
  tile.in_batch = p.input.batch;
  tile.out_batch = p.output.batch;
  tile.out_channel = p.output.channel;
}

// Columns follow the memory of x: channels fastest with ChannelsInner, column taps fastest otherwise.
template <class Config>
__device__ inline void column_at(const WeightWork& work, int64_t index, int64_t& channel, int64_t& row,
                                 int64_t& column) {
  const Problem& p = work.problem;
  if (Config::kChannelsInner) {
    const int64_t channels = p.in_channels / p.groups;
    channel = index % channels;
    column = index / channels % p.kernel_w;
    row = index / channels / p.kernel_w;
  } else {
    column = index % p.kernel_w;
    row = index / p.kernel_w % p.kernel_h;
    channel = index / p.kernel_w / p.kernel_h;
  }
}

template <class Config>
__device__ inline void describe_columns(const WeightWork& work, typename Config::Shared& shared) {
  const Problem& p = work.problem;
  const auto& tile = shared.tile;
  for (int i = threadIdx.x; i < Config::kColumns; i += Config::kThreads) {
    typename Config::Shift shift{0, Config::kOutside, 0};
    const int64_t index = tile.first_column + i;
    if (index < weight_columns(work)) {
      int64_t channel, row, column;
      column_at<Config>(work, index, channel, row, column);
      const int64_t row_shift = row * p.dilation[tile.view][tile.row];
      const int64_t column_shift = column * p.dilation[tile.view][tile.column];
      shift.offset = channel * p.input.channel + row_shift * tile.in_step[tile.row] +
                     column_shift * tile.in_step[tile.column];
      shift.row = static_cast<int>(row_shift);
      shift.column = static_cast<int>(column_shift);
    } else if (index < all_columns(work)) {
      shift.column = Config::kAllOnes;
    }
    shared.shift[i] = shift;
  }
}

// Walks the voxels of a part with steps of kSlice; one per thread of the first kSlice.
struct VoxelCursor {
  int64_t index, batch;
  int at[3];

  template <class Tile>
  __device__ void start(const Tile& tile, int64_t voxel) {
    index = batch = voxel;
    for (int axis = 2; axis >= 0; --axis) {
      at[axis] = static_cast<int>(batch % tile.out_size[axis]);
      batch /= tile.out_size[axis];
    }
  }
  template <class Tile>
  __device__ void advance(const Tile& tile, int steps) {
    index += steps;
    for (at[2] += steps; at[2] >= tile.out_size[2]; at[2] -= tile.out_size[2]) {
      if (++at[1] < tile.out_size[1]) continue;
      at[1] = 0;
      if (++at[0] < tile.out_size[0]) continue;
      at[0] = 0;
      ++batch;
    }
  }
  template <class Config>
  __device__ void describe(const typename Config::Tile& tile, typename Config::Voxel& voxel) const {
    voxel.source = tile.input_base + batch * tile.in_batch;
    voxel.gradient = tile.gradient_base + batch * tile.out_batch;
    bool inside = index < tile.end_voxel;
    int row = 0, column = 0;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const int position = at[axis] * tile.scale[axis] + tile.base[axis];
      voxel.source += position * tile.in_step[axis];
      voxel.gradient += at[axis] * tile.out_step[axis];
      if (axis == tile.thin) inside = inside && position >= 0 && position < tile.in_size[axis];
      if (axis == tile.row) row = position;
      if (axis == tile.column) column = position;
    }
    if (index >= tile.end_voxel) voxel.gradient = -1;
    voxel.row = inside ? row : Config::kOutside;
    voxel.column = column;
  }
};

template <class Config>
__device__ inline void multiply_stage(const typename Config::Stage& stage, int warp, int lane,
                                      typename Config::Sum (&sum)[Config::kWarpItems][Config::kRows]) {
#pragma unroll
  for (int v = 0; v < Config::kSlice; ++v) {
    typename Config::Sum x[Config::kRows], g[Config::kWarpItems];
#pragma unroll
    for (int i = 0; i < Config::kRows; ++i) x[i] = stage.column[v][lane + 32 * i];
#pragma unroll
    for (int j = 0; j < Config::kWarpItems; ++j) g[j] = stage.item[v][warp * Config::kWarpItems + j];
#pragma unroll
    for (int j = 0; j < Config::kWarpItems; ++j) {
#pragma unroll
      for (int i = 0; i < Config::kRows; ++i) sum[j][i] += g[j] * x[i];
    }
  }
}

// Sums the tile described in `shared`. All threads have passed a barrier since shared.shift was written.
template <class Config>
__device__ inline void sum_tile(const typename Config::Scalar* input,
                                const typename Config::Scalar* grad_output, typename Config::Shared& shared,
                                typename Config::Sum (&sum)[Config::kWarpItems][Config::kRows]) {
  using Sum = typename Config::Sum;
  const auto& tile = shared.tile;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int row_size = tile.in_size[tile.row], column_size = tile.in_size[tile.column];
  const int items = static_cast<int>(tile.end - tile.begin);
  VoxelCursor cursor;
  if (thread < Config::kSlice) {  // these tell the others, one slice ahead, where its voxels are
    cursor.start(tile, tile.first_voxel + thread);
    cursor.describe<Config>(tile, shared.stage[0].voxel[thread]);
  }
  __syncthreads();

  Sum next_column[Config::kColumnLoads], next_item[Config::kItemLoads];
  const auto fetch = [&](const typename Config::Stage& stage, typename Config::Stage& later) {
#pragma unroll
    for (int i = 0; i < Config::kColumnLoads; ++i) {
      const int element = thread + i * Config::kThreads;
      const int v = Config::kChannelsInner ? element / Config::kColumns : element % Config::kSlice;
      const int c = Config::kChannelsInner ? element % Config::kColumns : element / Config::kSlice;
      const typename Config::Shift shift = shared.shift[c];
      const typename Config::Voxel& voxel = stage.voxel[v];
      const int row = voxel.row + shift.row, column = voxel.column + shift.column;
      const bool inside = static_cast<unsigned>(row) < static_cast<unsigned>(row_size) &&
                          static_cast<unsigned>(column) < static_cast<unsigned>(column_size);
      const Sum otherwise(shift.row == Config::kOutside && shift.column == Config::kAllOnes);
      next_column[i] = inside ? widen(input[voxel.source + shift.offset]) : otherwise;
    }
#pragma unroll
    for (int i = 0; i < Config::kItemLoads; ++i) {
      const int element = thread + i * Config::kThreads;
      const int v = Config::kChannelsInner ? element / Config::kItems : element % Config::kSlice;
      const int item = Config::kChannelsInner ? element % Config::kItems : element / Config::kSlice;
      const int64_t offset = stage.voxel[v].gradient;
      next_item[i] =
          offset >= 0 && item < items ? widen(grad_output[offset + item * tile.out_channel]) : Sum(0);
    }
    if (thread < Config::kSlice) {
      cursor.advance(tile, Config::kSlice);
      cursor.describe<Config>(tile, later.voxel[thread]);
    }
  };
  const auto store = [&](typename Config::Stage& stage) {
#pragma unroll
    for (int i = 0; i < Config::kColumnLoads; ++i) {
      const int element = thread + i * Config::kThreads;
      const int v = Config::kChannelsInner ? element / Config::kColumns : element % Config::kSlice;
      const int c = Config::kChannelsInner ? element % Config::kColumns : element / Config::kSlice;
      stage.column[v][c] = next_column[i];
    }
#pragma unroll
    for (int i = 0; i < Config::kItemLoads; ++i) {
      const int element = thread + i * Config::kThreads;
      const int v = Config::kChannelsInner ? element / Config::kItems : element % Config::kSlice;
      const int item = Config::kChannelsInner ? element % Config::kItems : element / Config::kSlice;
      stage.item[v][item] = next_item[i];
    }
  };

  fetch(shared.stage[0], shared.stage[1]);
  store(shared.stage[0]);
  __syncthreads();
  int current = 0;
  for (int64_t voxel = tile.first_voxel; voxel < tile.end_voxel; voxel += Config::kSlice) {
    typename Config::Stage &stage = shared.stage[current], &other = shared.stage[current ^ 1];
    const bool more = voxel + Config::kSlice < tile.end_voxel;
    if (more) fetch(other, stage);
    multiply_stage<Config>(stage, warp, lane, sum);
    if (more) store(other);
    __syncthreads();
    current ^= 1;
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    simt_backward_weight_kernel(const __grid_constant__ WeightWork work, int64_t tiles,
                                const typename Config::Scalar* grad_output,
                                const typename Config::Scalar* input, typename Config::Scalar* grad_weight,
                                typename Config::Scalar* grad_bias, typename Config::Sum* workspace) {
  using Sum = typename Config::Sum;
  DYNAMIC_SHARED(memory);
  typename Config::Shared& shared = *reinterpret_cast<typename Config::Shared*>(memory);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    if (thread == 0) describe_tile<Config>(work, index, shared.tile);
    __syncthreads();
    describe_columns<Config>(work, shared);
    __syncthreads();
    Sum sum[Config::kWarpItems][Config::kRows] = {};
    sum_tile<Config>(input, grad_output, shared, sum);  // ends with a barrier

    const auto& tile = shared.tile;
    const Problem& p = work.problem;
    const int64_t weights = weight_columns(work), columns = all_columns(work);
    const int64_t slab = work.soft ? tile.view * p.out_channels : 0;  // of the view's kernels
    const int64_t slabs = work.soft ? kViews * p.out_channels : p.out_channels;
#pragma unroll
    for (int i = 0; i < Config::kRows; ++i) {
      const int64_t index_in_order = tile.first_column + lane + 32 * i;
      if (index_in_order >= columns) continue;
      int64_t column = index_in_order;
      if (column < weights) {
        int64_t channel, row, tap;
        column_at<Config>(work, column, channel, row, tap);
        column = (channel * p.kernel_h + row) * p.kernel_w + tap;
      }
#pragma unroll
      for (int j = 0; j < Config::kWarpItems; ++j) {
        const int64_t item = tile.begin + warp * Config::kWarpItems + j;
        if (item >= tile.end) break;
        if (workspace) {
          workspace[(tile.part * slabs + slab + item) * columns + column] = sum[j][i];
        } else if (column < weights) {
          narrow(sum[j][i], grad_weight[(slab + item) * weights + column]);
        } else if (slab == 0) {
          narrow(sum[j][i], grad_bias[item]);
        }
      }
    }
    __syncthreads();  // the next tile rewrites what this one was described by
  }
}

}  // namespace acsconv
