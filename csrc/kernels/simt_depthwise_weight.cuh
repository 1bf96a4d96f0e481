// Gradients of weight and bias of a depthwise ACS convolution, for any dtype and geometry. For every channel
//
//   grad_weight[row tap, column tap] = sum over output voxels of grad_output[voxel] * x[where the tap reads]
//
// A thread walks along the view's row axis, which is never W, so that neighbouring lanes may be neighbours
// along W (or, channels-last, neighbouring channels). It keeps the sums of Taps x Taps taps and the last Taps
// values of grad_output in registers: a value of x that enters serves all row taps, and one of grad_output
// all taps. For 7x7 that makes 8 loads for 49 products.
//
// With stride s and dilation d, let t = s / gcd and e = d / gcd. Taps r, r + t, ... read the same rows of x,
// for outputs o, o + e, ...: they form one walk, which moves by e outputs and e * s rows of x (no stride: t
// is 1). A block computes kChannels output channels of one view over one part of the lines (the walks), adds
// the sums of its threads in a fixed tree, and writes them as simt_backward_weight.cuh does. Launched by
// simt_depthwise_weight.cu.
#pragma once

#include "../common/scalar.cuh"
#include "../plan.h"
#include "channel_tiles.h"

namespace acsconv {

// Kernel argument.
struct DepthwiseWeightWork {
  Problem problem;
  bool weight, bias;  // which gradients are wanted
  int64_t channel_tiles, parts;
};

__host__ __device__ inline int64_t depthwise_taps(const DepthwiseWeightWork& work) {
  return work.weight ? work.problem.kernel_h * work.problem.kernel_w : 0;
}

template <class Scalar_, int Taps_, bool ChannelsInner_>
struct SimtDepthwiseWeight {
  using Scalar = Scalar_;
  using Sum = Accumulator<Scalar>;
  static constexpr int kTaps = Taps_;  // row taps and column taps that a thread sums at once
  static constexpr bool kChannelsInner = ChannelsInner_;
  static constexpr int kThreads = 128;
  static constexpr int kChannels = kChannelsInner ? kDepthwiseInner : kDepthwiseOuter;
  static constexpr int kLines = kThreads / kChannels;               // side by side
  static constexpr int kLineStep = kChannelsInner ? kChannels : 1;  // threads from line to line
  static constexpr int kBlocks =
      sizeof(Sum) == 8 ? 2 : 3;  // per multiprocessor: 255 or 168 registers a thread

  // Sums, the values of grad_output and x of a step, and about 32 for addresses.
  static_assert((kTaps * kTaps + 2 * kTaps) * int{sizeof(Sum)} / 4 + 32 <=
                register_budget(kThreads, kBlocks));

  struct Tile {
    int view;
    int row, column, other;  // axes: `other` is the one that is neither `row` nor W
    int64_t begin, end;      // channels
    int64_t part, first_line, end_line;
    int tap_step, output_step;  // t and e
    int residues;               // of outputs modulo e
  };
  struct Shared {
    Tile tile;
    Sum value[kTaps][kThreads];
  };
  static constexpr size_t kSharedBytes = sizeof(Shared);
  static_assert(kSharedBytes <= kDefaultSharedBytes);
};

// The taps that are summed at once: rows first_row, first_row + tap_step, ...
struct TapBlock {
  int first_row, rows, first_column, columns;
};

template <class Config>
__device__ inline void describe_tile(const DepthwiseWeightWork& work, int64_t index,
                                     typename Config::Tile& tile) {
  const Problem& p = work.problem;
  const ViewChannels channels = depthwise_channels(p, index % work.channel_tiles, Config::kChannels);
  tile.view = channels.view;
  tile.begin = channels.begin;
  tile.end = channels.end;
  tile.row = row_axis(tile.view);
  tile.column = column_axis(tile.view);
  tile.other = 1 - tile.row;
  const int stride = static_cast<int>(p.stride[tile.row]);
  const int dilation = static_cast<int>(p.dilation[tile.view][tile.row]);
  int divisor = stride;
  for (int rest = dilation; rest != 0;) {
    const int next = divisor % rest;
    divisor = rest;
    rest = next;
  }
  tile.tap_step = stride / divisor;
  tile.output_step = dilation / divisor;
  tile.residues =
      tile.output_step < p.out_size[tile.row] ? tile.output_step : static_cast<int>(p.out_size[tile.row]);
  const int64_t lines = p.batch * tile.residues * p.out_size[tile.other] * p.out_size[2];
  const int64_t part_lines = ceil_div(lines, work.parts);
  tile.part = index / work.channel_tiles;
  tile.first_line = tile.part * part_lines;
  tile.end_line = tile.first_line + part_lines < lines ? tile.first_line + part_lines : lines;
}

// Adds one line of a channel. Lines are numbered with W fastest, then the other axis, then the residue of the
// first output.
template <class Config>
__device__ inline void add_line(const Problem& p, const typename Config::Tile& tile, const TapBlock& taps,
                                int64_t line, int64_t channel, const typename Config::Scalar* grad_output,
                                const typename Config::Scalar* input, typename Config::Sum& bias,
                                typename Config::Sum (&sum)[Config::kTaps][Config::kTaps]) {
  using Sum = typename Config::Sum;
  int at[3];
  at[2] = static_cast<int>(line % p.out_size[2]);
  line /= p.out_size[2];
  const int other = static_cast<int>(line % p.out_size[tile.other]);
  line /= p.out_size[tile.other];
  const int first = static_cast<int>(line % tile.residues);
  const int64_t batch = line / tile.residues;
  at[0] = tile.row == 0 ? first : other;
  at[1] = tile.row == 0 ? other : first;

  int64_t source = batch * p.input.batch + channel / (p.out_channels / p.groups) * p.input.channel;
  int64_t gradient = batch * p.output.batch + channel * p.output.channel;
  bool inside = true;  // on the thin axis
  int row = 0, column = 0;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    int position = at[axis] * static_cast<int>(p.stride[axis]) + static_cast<int>(p.origin[tile.view][axis]);
    const int dilation = static_cast<int>(p.dilation[tile.view][axis]);
    if (axis == tile.row) {
      row = position += taps.first_row * dilation;
    } else if (axis == tile.column) {
      column = position += taps.first_column * dilation;
    } else {
      inside = position >= 0 && position < p.in_size[axis];
    }
    source += position * p.input.axis[axis];
    gradient += at[axis] * p.output.axis[axis];
  }
  const int column_dilation = static_cast<int>(p.dilation[tile.view][tile.column]);
  const int64_t column_step = column_dilation * p.input.axis[tile.column];
  bool reads[Config::kTaps];
#pragma unroll
  for (int q = 0; q < Config::kTaps; ++q) {
    const int position = q < taps.columns ? column + q * column_dilation : -1;
    reads[q] = inside && position >= 0 && position < p.in_size[tile.column];
  }

  const int outputs =
      (static_cast<int>(p.out_size[tile.row]) - first + tile.output_step - 1) / tile.output_step;
  const int row_step = tile.output_step * static_cast<int>(p.stride[tile.row]);
  const int row_size = static_cast<int>(p.in_size[tile.row]);
  const int64_t source_step = row_step * p.input.axis[tile.row];
  const int64_t gradient_step = tile.output_step * p.output.axis[tile.row];
  const int steps = outputs + taps.rows - 1;
  Sum g[Config::kTaps] = {};  // of the current output and those before it
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int r = Config::kTaps - 1; r > 0; --r) g[r] = g[r - 1];
    g[0] = step < outputs ? widen(grad_output[gradient]) : Sum(0);
    bias += g[0];
    const bool row_inside = row >= 0 && row < row_size;
#pragma unroll
    for (int q = 0; q < Config::kTaps; ++q) {
      const Sum x = row_inside && reads[q] ? widen(input[source + q * column_step]) : Sum(0);
#pragma unroll
      for (int r = 0; r < Config::kTaps; ++r) sum[r][q] += g[r] * x;
    }
    row += row_step;
    source += source_step;
    gradient += gradient_step;
  }
}

// Adds value[0 .. count) over the lines of each channel, into the first line's. Begins and ends with a
// barrier.
template <class Config>
__device__ inline void add_lines(typename Config::Shared& shared, int thread, int line, int count) {
  __syncthreads();
  for (int half = Config::kLines / 2; half > 0; half /= 2) {
    if (line < half) {
      for (int q = 0; q < count; ++q) {
        shared.value[q][thread] += shared.value[q][thread + half * Config::kLineStep];
      }
    }
    __syncthreads();
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    simt_depthwise_weight_kernel(const __grid_constant__ DepthwiseWeightWork work, int64_t tiles,
                                 const typename Config::Scalar* grad_output,
                                 const typename Config::Scalar* input, typename Config::Scalar* grad_weight,
                                 typename Config::Scalar* grad_bias, typename Config::Sum* workspace) {
  using Sum = typename Config::Sum;
  DYNAMIC_SHARED(memory);
  typename Config::Shared& shared = *reinterpret_cast<typename Config::Shared*>(memory);
  const Problem& p = work.problem;
  const int thread = threadIdx.x;
  const int own_line = Config::kChannelsInner ? thread / Config::kChannels : thread % Config::kLines;
  const int own_channel = Config::kChannelsInner ? thread % Config::kChannels : thread / Config::kLines;
  const int kernel_h = work.weight ? static_cast<int>(p.kernel_h) : 1;
  const int kernel_w = work.weight ? static_cast<int>(p.kernel_w) : 0;
  const int64_t weights = depthwise_taps(work), columns = weights + work.bias;

  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    if (thread == 0) describe_tile<Config>(work, index, shared.tile);
    __syncthreads();
    const auto& tile = shared.tile;
    const int64_t channel = tile.begin + own_channel;
    const auto write = [&](int64_t column, Sum value) {
      if (workspace) {
        workspace[(tile.part * p.out_channels + channel) * columns + column] = value;
      } else if (column < weights) {
        narrow(value, grad_weight[channel * weights + column]);
      } else {
        narrow(value, grad_bias[channel]);
      }
    };
    const auto sum_block = [&](const TapBlock& taps) {
      Sum sum[Config::kTaps][Config::kTaps] = {}, bias(0);
      if (channel < tile.end) {
        for (int64_t line = tile.first_line + own_line; line < tile.end_line; line += Config::kLines) {
          add_line<Config>(p, tile, taps, line, channel, grad_output, input, bias, sum);
        }
      }
      const bool writes = own_line == 0 && channel < tile.end;
#pragma unroll
      for (int r = 0; r < Config::kTaps; ++r) {
        if (r >= taps.rows || taps.columns == 0) break;
#pragma unroll
        for (int q = 0; q < Config::kTaps; ++q) shared.value[q][thread] = sum[r][q];
        add_lines<Config>(shared, thread, own_line, taps.columns);
        if (!writes) continue;
        const int64_t first = int64_t{taps.first_row + r * tile.tap_step} * kernel_w + taps.first_column;
        for (int q = 0; q < taps.columns; ++q) write(first + q, shared.value[q][thread]);
      }
      if (work.bias && taps.first_row == 0 && taps.first_column == 0) {
        shared.value[0][thread] = bias;
        add_lines<Config>(shared, thread, own_line, 1);
        if (writes) write(weights, shared.value[0][thread]);
      }
    };
    for (int residue = 0; residue < tile.tap_step && residue < kernel_h; ++residue) {
      for (int row = residue; row < kernel_h; row += Config::kTaps * tile.tap_step) {
        const int rows = (kernel_h - 1 - row) / tile.tap_step + 1;
        int column = 0;
        do {  // also for the bias alone, which has no column
          const int rest = kernel_w - column;
          sum_block({row, rows < Config::kTaps ? rows : Config::kTaps, column,
                     rest < Config::kTaps ? rest : Config::kTaps});
          column += Config::kTaps;
        } while (column < kernel_w);
      }
    }
    __syncthreads();  // the next tile rewrites what this one was described by
  }
}

}  // namespace acsconv
