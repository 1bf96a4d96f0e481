// Kernels of 5x5 and 7x7, and stride 2, on tensor cores, one row of taps per step: result[n, m, r] = bias[m]
// + sum over k and taps, of one view (ACS forward, where every block has the channels of one view) or of all
// (gradient of the input, Soft ACS).
//
// A step of the reduction is 32 bytes of channels and the taps of a view that lie in a row along its inner
// axis (mma_view.cuh): H, in the coronal view D. So a stage of shared memory holds the tile, longer by the
// other taps of the row, and that row's weights, which is little for any kernel size; the rows of a kernel
// differ only in where they begin. A stride of 2 makes the taps that share voxels those of one parity:
//
//   forward             even and odd taps of a row are steps of their own, of one and two taps
//   gradient of input   a tile has result positions of one residue class modulo 2 on every axis, which one
//                       tap reaches where the class is even, and two where it is odd. A view takes part where
//                       the class of its thin axis is even: 1, 2, 2 or 4 of its taps.
//
// A voxel's place is the sum of two entries of a table, of its depth and height and of its width. Launched by
// mma_convolve.cu.
#pragma once

#include "mma_launch.h"
#include "mma_store.cuh"
#include "mma_view.cuh"

namespace acsconv {

template <class T, int kIndex>
struct TapRows {
  using Scalar = T;
  static constexpr MmaShape kShape = kTapRowShapes[kIndex];
  static constexpr int kRows = kShape.rows, kColumns = kShape.columns,
                       kThreads = view_per_step_threads(kShape);
  static constexpr int kTaps = tap_row_taps(kShape), kTapBytes = kColumns * kMmaUnitBytes;
  static constexpr MmaShared kShared = tap_row_shared(kShape);
  static constexpr int kTableHeight = tap_row_reach(kShape, kShape.height);
  static constexpr int kLines = tap_row_reach(kShape, kShape.depth) * kTableHeight;  // then the widths

  // What a row of taps along D (coronal) or H reads, in lines of 8 voxels along W.
  template <bool kAlongDepth>
  struct Slice {
    static constexpr int kStride = 1, kWidth = kMmaTileWidth, kPlane = static_cast<int>(kShared.plane);
    static constexpr int kDepth = kShape.depth + (kAlongDepth ? kTaps - 1 : 0);
    static constexpr int kHeight = kShape.height + (kAlongDepth ? 0 : kTaps - 1);
  };
  template <bool kAlongDepth>
  using Walk = ViewWalk<Slice<kAlongDepth>, 2, kRows, kShape.depth, kShape.height>;
};

// What decides which steps a block has: its view, or -1 for all, and in the gradient of the input of stride 2
// the axes, as bits, on which its class is odd.
struct TapRowBlock {
  int view, odd;
};
__device__ __forceinline__ TapRowBlock tap_row_block(const MmaWork& work, const MmaPlace& place, int view) {
  TapRowBlock block{view, 0};
  if (work.halves) {
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      block.odd |= ((place.residue[axis] + work.centre[axis]) & 1) << axis;
    }
  }
  return block;
}

// Rows of a view's taps that a block sums up, at stride 2: even and odd taps of a row apart.
template <class Config>
__device__ __forceinline__ int rows_of_view(const MmaWork& work, const TapRowBlock& block, int view) {
  if (block.view >= 0 && view != block.view) return 0;
  if constexpr (Config::kShape.stride == 1) return Config::kShape.kernel;
  const bool folded = soft_is_folded(work);
  if (work.halves) {
    // Folded, a view reads only what no earlier view does: positions that are odd on their thin axes.
    const int earlier = folded ? (1 << view) - 1 : 0;
    if ((block.odd & (earlier | 1 << view)) != earlier) return 0;
    return 1 + (block.odd >> (view == 2 ? 0 : 2) & 1);
  }
  return !folded || view == 0 ? 6 : view == 1 ? 3 : 2;
}
template <class Config>
__device__ __forceinline__ int tap_row_steps(const MmaWork& work, const TapRowBlock& block) {
  int steps = 0;
#pragma unroll
  for (int view = 0; view < kViews; ++view) {
    steps += work.view_steps[view] * rows_of_view<Config>(work, block, view);
  }
  return steps;
}

// A step. The table's entries (depth, height, width) are those of the first voxel that it reads.
struct TapRow {
  MmaStep channels;
  int taps, before;  // and those before it in the block's packed weights
  int depth, height, width;
};
template <class Config>
__device__ __forceinline__ TapRow tap_row(const MmaWork& work, const TapRowBlock& block, int index) {
  constexpr int kKernel = Config::kShape.kernel;
  int view = 0, before = 0, rows = rows_of_view<Config>(work, block, 0);
  while (index >= rows * work.view_steps[view]) {
    index -= rows * work.view_steps[view];
    before += work.view_per_block ? 0 : work.view_steps[view];
    rows = rows_of_view<Config>(work, block, ++view);
  }
  // Outer tap, and place of the first inner tap in the row's weights; first entries of the table. Only
  // constants divide, which takes few instructions: a row of one tap is a short step.
  int step, outer, place = 0, taps = kKernel, from_outer, from_inner = 0, from_thin = kKernel / 2;
  if constexpr (Config::kShape.stride == 1) {
    step = index / kKernel;
    outer = from_outer = index % kKernel;
  } else if (work.halves) {
    step = rows == 2 ? index / 2 : index;
    from_outer = index - step * rows;
    outer = rows == 2 ? 2 * from_outer : 1;
    place = block.odd >> (view == 1 ? 0 : 1) & 1;
    taps = 1 + place;
    from_thin = 0;
  } else {
    step = rows == 6 ? index / 6 : rows == 3 ? index / 3 : index / 2;
    const int row = index - step * rows;
    outer = rows == 6 ? row / 2 : rows == 3 ? row : 2 * row;
    place = rows == 6 ? row % 2 : 1;
    taps = 1 + place;
    from_outer = outer;
    from_inner = 1 - place;
  }
  TapRow result;
  result.channels = step_of_view<typename Config::Scalar>(work, view, step);
  result.taps = taps;
  result.before = ((before + step) * kKernel + outer) * kKernel + place;
  result.depth = view == 0 ? from_thin : view == 1 ? from_inner : from_outer;
  result.height = view == 1 ? from_thin : from_inner;
  result.width = view == 2 ? from_thin : from_outer;
  return result;
}

// Position of the source for entry `i` of an axis.
__device__ __forceinline__ int tap_row_position(const MmaWork& work, const MmaPlace& place, int axis, int i) {
  if (work.halves) return place.first[axis] + i + ((place.residue[axis] + work.centre[axis]) >> 1);
  return source_position(work, place, work.stride, axis, work.kernel / 2, i);
}
__device__ __forceinline__ int tap_row_origin(const MmaWork& work, const MmaPlace& place, int axis) {
  return moved_inside(work, axis, tap_row_position(work, place, axis, 0));
}
// Elements from the origin, or -1 outside the volume.
__device__ __forceinline__ int64_t tap_row_offset(const MmaWork& work, const MmaPlace& place, int axis,
                                                  int i) {
  const int position = tap_row_position(work, place, axis, i);
  if (position < 0 || position >= work.source_size[axis]) return -1;
  return (position - tap_row_origin(work, place, axis)) * work.source.axis[axis];
}

template <class Config>
__device__ __forceinline__ void fill_tap_row_table(const MmaWork& work, const MmaPlace& place, int* table,
                                                   int thread) {
  constexpr int kEntries = Config::kLines + tap_row_reach(Config::kShape, kMmaTileWidth);
  for (int i = thread; i < kEntries; i += Config::kThreads) {
    int64_t offset;
    if (i < Config::kLines) {
      const int64_t along_depth = tap_row_offset(work, place, 0, i / Config::kTableHeight);
      const int64_t along_height = tap_row_offset(work, place, 1, i % Config::kTableHeight);
      offset = along_depth < 0 || along_height < 0 ? -1 : along_depth + along_height;
    } else {
      offset = tap_row_offset(work, place, 2, i - Config::kLines);
    }
    table[i] = static_cast<int>(offset);
  }
}

// Entry of a slice's line in the table, or -1 where the row has too few taps for the line to be read.
template <class Config, bool kAlongDepth>
__device__ __forceinline__ int line_entry(const TapRow& row, int step, int line) {
  using Slice = typename Config::template Slice<kAlongDepth>;
  const int d = line / Slice::kHeight, h = line % Slice::kHeight;
  const int unread = Config::kTaps - (Config::kTaps == 2 ? row.taps : Config::kTaps);
  if (d >= Slice::kDepth - (kAlongDepth ? unread : 0) || h >= Slice::kHeight - (kAlongDepth ? 0 : unread)) {
    return -1;
  }
  return (row.depth + step * d) * Config::kTableHeight + row.height + step * h;
}

// A slice's two planes [voxel][16 bytes] by asynchronous copies: 8 lanes copy 4 voxels of both.
template <class Config, bool kAlongDepth>
__device__ __forceinline__ void copy_slice(const typename Config::Scalar* source, const int* table,
                                           uint32_t stage, const TapRow& row, int step, int channels,
                                           int thread) {
  using Slice = typename Config::template Slice<kAlongDepth>;
  constexpr int kAtOnce = Config::kThreads / 16, kLines = Slice::kDepth * Slice::kHeight,
                kRounds = (kLines + kAtOnce - 1) / kAtOnce;
  const int plane = thread % 2, w = thread / 2 % 8, first = thread / 16;
  const int channel = row.channels.channel + plane * kGranule<typename Config::Scalar>;
  const int across = channel < channels ? table[Config::kLines + row.width + step * w] : -1;
  // The table is read before the first copy, since no load may pass one.
  int entry[kRounds], along[kRounds];
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    entry[i] = line_entry<Config, kAlongDepth>(row, step, first + i * kAtOnce);
    along[i] = entry[i] < 0 ? -1 : table[entry[i]];
  }
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const bool copied = (along[i] | across) >= 0;
    if (entry[i] >= 0) {
      ptx::cp_async<16>(stage + plane * Slice::kPlane + ((first + i * kAtOnce) * 8 + w) * 16,
                        source + (copied ? int64_t{channel} + along[i] + across : 0), copied ? 16 : 0);
    }
  }
}

// The same element by element: 8 neighbouring lanes have the 8 voxels of a line.
template <class Config, bool kAlongDepth>
__device__ __forceinline__ void gather_slice(const typename Config::Scalar* source, const int* table,
                                             unsigned char* stage, const TapRow& row, int step, int channels,
                                             int64_t channel_stride, int thread) {
  using Slice = typename Config::template Slice<kAlongDepth>;
  constexpr int kAtOnce = Config::kThreads / 16, kLines = Slice::kDepth * Slice::kHeight;
  const int plane = thread / (Config::kThreads / 2), w = thread % 8;
  const int channel = row.channels.channel + plane * kGranule<typename Config::Scalar>;
  const int across = table[Config::kLines + row.width + step * w];
#pragma unroll 1
  for (int line = thread % (Config::kThreads / 2) / 8; line < kLines; line += kAtOnce) {
    const int entry = line_entry<Config, kAlongDepth>(row, step, line);
    if (entry < 0) continue;
    const bool inside = (table[entry] | across) >= 0;
    const auto* from = source + channel * channel_stride + (inside ? int64_t{table[entry]} + across : 0);
    *reinterpret_cast<uint4*>(stage + plane * Slice::kPlane + (line * 8 + w) * 16) =
        gather_piece(from, inside ? channels - channel : 0, channel_stride);
  }
}

template <class Config, bool kAlongDepth>
__device__ __forceinline__ void load_slice(const MmaWork& work, const typename Config::Scalar* source,
                                           const int* table, unsigned char* stage, const TapRow& row) {
  const int thread = ptx::thread_x();
  if (work.copies) {
    copy_slice<Config, kAlongDepth>(source, table, ptx::shared_address(stage), row, work.stride, work.reduced,
                                    thread);
  } else {
    gather_slice<Config, kAlongDepth>(source, table, stage, row, work.stride, work.reduced,
                                      work.source.channel, thread);
  }
}

template <class Config>
__device__ __forceinline__ void load_tap_row(const MmaWork& work, const typename Config::Scalar* source,
                                             const unsigned char* packed, unsigned char* shared,
                                             const TapRowBlock& block, int index, int stage) {
  const TapRow row = tap_row<Config>(work, block, index);
  const int* table = reinterpret_cast<const int*>(shared);
  unsigned char* to = shared + Config::kShared.table + stage * Config::kShared.stage;
  if (row.channels.view == 1) {
    load_slice<Config, true>(work, source, table, to, row);
  } else {
    load_slice<Config, false>(work, source, table, to, row);
  }
  const int before =
      ptx::block_y() * work.steps * (Config::kShape.kernel * Config::kShape.kernel) + row.before;
  packed += before * int64_t{Config::kTapBytes};
  const uint32_t weights =
      ptx::shared_address(to) + static_cast<uint32_t>(Config::kShared.stage - Config::kShared.weights);
  if (row.taps == 1) {
    copy_weights<Config::kTapBytes, Config::kThreads>(packed, weights, ptx::thread_x());
  } else {
    copy_weights<Config::kTaps * Config::kTapBytes, Config::kThreads>(packed, weights, ptx::thread_x());
  }
}

// sum += a row of taps. Tiles of a warp are neighbours along H: there a fragment serves all taps of the row.
template <class Config, bool kAlongDepth>
__device__ __forceinline__ void multiply_row(float (&sum)[Config::kRows][Config::kColumns][4], uint32_t stage,
                                             const unsigned char* weights, int taps, int warp, int lane) {
  using T = typename Config::Scalar;
  using Walk = typename Config::template Walk<kAlongDepth>;
  const uint32_t a = stage + Walk::lane_byte(warp, lane);
  uint32_t fragments[Config::kRows + (kAlongDepth ? 0 : Config::kTaps - 1)][4];
#pragma unroll
  for (int tap = 0; tap < Config::kTaps; ++tap) {
    if (Config::kTaps == 2 && tap >= taps) break;
    const int held = kAlongDepth ? 0 : tap;  // of the first tile
#pragma unroll
    for (int m = kAlongDepth || tap == 0 ? 0 : Config::kRows - 1; m < Config::kRows; ++m) {
      load_fragment<T>(
          fragments[held + m],
          a + (kAlongDepth ? tap * Walk::kPlaneStep : tap * Walk::kRowStep) + m * Walk::kRowStep);
    }
    uint32_t b[Config::kColumns][2];
    load_weights<Config::kColumns>(b, weights + tap * Config::kTapBytes, lane);
    ptx::mma_tiles<T, Config::kRows, Config::kColumns>(sum, fragments, held, b);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kShape.blocks)
    tap_rows_kernel(MmaWork work, const typename Config::Scalar* source, const unsigned char* packed,
                    const float* bias, typename Config::Scalar* result, float4* partials) {
  DYNAMIC_SHARED(shared);
  TapRowBlock block;
  {
    const MmaPlace place = mma_place(work, Config::kShape, ptx::block_x());
    block = tap_row_block(work, place, block_columns(work, blockIdx.y, 8 * Config::kColumns).view);
    fill_tap_row_table<Config>(work, place, reinterpret_cast<int*>(shared), threadIdx.x);
    source += place.batch * work.source.batch;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      source += tap_row_origin(work, place, axis) * work.source.axis[axis];
    }
  }
  const MmaSteps steps = steps_of_part(work, blockIdx.z, tap_row_steps<Config>(work, block));
  __syncthreads();
  const auto load = [&](int step, int stage) {
    load_tap_row<Config>(work, source, packed, shared, block, step, stage);
  };
  begin_pipeline(steps, load);

  float sum[Config::kRows][Config::kColumns][4] = {};
  int stage = 0;
#pragma unroll 1
  for (int step = steps.begin; step < steps.end; ++step) {
    advance_pipeline(steps, step, stage, load);
    const TapRow row = tap_row<Config>(work, block, step);
    const int thread = ptx::thread_x();
    const unsigned char* data = shared + Config::kShared.table + stage * Config::kShared.stage;
    const unsigned char* weights = data + Config::kShared.stage - Config::kShared.weights;
    if (row.channels.view == 1) {
      multiply_row<Config, true>(sum, ptx::shared_address(data), weights, row.taps, thread / 32, thread % 32);
    } else {
      multiply_row<Config, false>(sum, ptx::shared_address(data), weights, row.taps, thread / 32,
                                  thread % 32);
    }
    if (++stage == kMmaStages) stage = 0;
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
  store_result<Config, typename Config::template Walk<false>>(sum, work, bias, result, partials, shared);
}

template <class T, int kIndex = 0>
MmaLauncher tap_rows_from(int shape) {
  if constexpr (kIndex + 1 < shape_count(kTapRowShapes)) {
    if (shape != kIndex) return tap_rows_from<T, kIndex + 1>(shape);
  }
  using Config = TapRows<T, kIndex>;
  return [](const MmaLaunch& call) { return launch_mma<Config>(tap_rows_kernel<Config>, call); };
}
template <class T>
MmaLauncher tap_rows_instance(int shape) {
  return tap_rows_from<T>(shape);
}

}  // namespace acsconv
