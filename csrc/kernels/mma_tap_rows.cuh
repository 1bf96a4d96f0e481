// Kernels of 5x5 and 7x7, and stride 2, on tensor cores, one row of taps per step: result[n, m, r] = bias[m]
// + sum over k and taps, of one view (ACS forward, where every block has the channels of one view) or of all
// (gradient of the input, Soft ACS).
//
// A step of the reduction is 32 bytes of channels and the taps of a view that lie in a row along its inner
// axis (mma_view.cuh): H, in the coronal view D. So a stage of shared memory holds the tile, longer by the
// other taps of the row, and that row's weights, which is little for any kernel size; the rows of a kernel
// differ only in where they begin (mma_tap_row_table.cuh, which also has what becomes of a row at stride 2).
// Launched by mma_convolve.cu.
#pragma once

#include "mma_launch.h"
#include "mma_store.cuh"
#include "mma_tap_row_table.cuh"
#include "mma_view.cuh"

namespace acsconv {

template <class T, int kIndex>
struct TapRows {
  using Scalar = T;
  static constexpr MmaShape kShape = kTapRowShapes[kIndex];
  static constexpr int kRows = kShape.rows, kColumns = kShape.columns,
                       kThreads = view_per_step_threads(kShape);
  static constexpr int kTaps = tap_row_taps(kShape), kLeastTaps = tap_row_least_taps(kShape),
                       kTapBytes = kColumns * kMmaUnitBytes;
  // Place of the middle tap in the rows of 5x5 and 7x7 kernels that have it.
  static constexpr int kMiddle = kShape.stride == 1 ? kTaps / 2 : 1;
  static constexpr MmaShared kShared = tap_row_shared(kShape);
  // Shared memory begins with the rows, then the tables of voxels: lines, then widths.
  static constexpr int kTableHeight = tap_row_reach(kShape, kShape.height);
  static constexpr int kLines = tap_row_reach(kShape, kShape.depth) * kTableHeight;
  static constexpr int kEntries = kLines + tap_row_reach(kShape, kMmaTileWidth);
  using Rows = TapRowTable<tap_row_rows(kShape), kTableHeight>;
  static_assert(sizeof(Rows) == 4 * tap_row_ints(kShape));
  static __device__ __forceinline__ Rows& rows(unsigned char* shared) {
    return *reinterpret_cast<Rows*>(shared);
  }
  static __device__ __forceinline__ int* voxels(unsigned char* shared) {
    return reinterpret_cast<int*>(shared + sizeof(Rows));
  }

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

// Entry of a slice's line in the table, or -1 where the row has too few taps for the line to be read.
template <class Config, bool kAlongDepth>
__device__ __forceinline__ int line_entry(const TapRow& row, int step, int line) {
  using Slice = typename Config::template Slice<kAlongDepth>;
  const int d = line / Slice::kHeight, h = line % Slice::kHeight;
  const int unread = Config::kLeastTaps == Config::kTaps ? 0 : Config::kTaps - row.taps;
  if (d >= Slice::kDepth - (kAlongDepth ? unread : 0) || h >= Slice::kHeight - (kAlongDepth ? 0 : unread)) {
    return -1;
  }
  return row.line + step * (d * Config::kTableHeight + h);
}

// A slice's two planes [voxel][16 bytes] by asynchronous copies: 8 lanes copy 4 voxels of both.
template <class Config, bool kAlongDepth>
__device__ __forceinline__ void copy_slice(const typename Config::Scalar* source, const int* table,
                                           uint32_t stage, const TapRow& row, int step, int channel,
                                           int channels, int thread) {
  using Slice = typename Config::template Slice<kAlongDepth>;
  constexpr int kAtOnce = Config::kThreads / 16, kLines = Slice::kDepth * Slice::kHeight,
                kRounds = (kLines + kAtOnce - 1) / kAtOnce;
  const int plane = thread % 2, w = thread / 2 % 8, first = thread / 16;
  channel += plane * kGranule<typename Config::Scalar>;
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
                                             unsigned char* stage, const TapRow& row, int step, int channel,
                                             int channels, int64_t channel_stride, int thread) {
  using Slice = typename Config::template Slice<kAlongDepth>;
  constexpr int kAtOnce = Config::kThreads / 16, kLines = Slice::kDepth * Slice::kHeight;
  const int plane = thread / (Config::kThreads / 2), w = thread % 8;
  channel += plane * kGranule<typename Config::Scalar>;
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
                                           const int* table, unsigned char* stage, const TapRow& row,
                                           int channel) {
  const int thread = ptx::thread_x();
  if (work.copies) {
    copy_slice<Config, kAlongDepth>(source, table, ptx::shared_address(stage), row, work.stride, channel,
                                    work.reduced, thread);
  } else {
    gather_slice<Config, kAlongDepth>(source, table, stage, row, work.stride, channel, work.reduced,
                                      work.source.channel, thread);
  }
}

template <class Config>
__device__ __forceinline__ void load_tap_row(const MmaWork& work, const typename Config::Scalar* source,
                                             const unsigned char* packed, unsigned char* shared, int index,
                                             int stage) {
  const TapRowStep step = Config::rows(shared).step(index);
  const int channel = step_of_view<typename Config::Scalar>(work, step.view, step.chunk).channel;
  const int* table = Config::voxels(shared);
  unsigned char* to = shared + Config::kShared.table + stage * Config::kShared.stage;
  if (step.view == 1) {
    load_slice<Config, true>(work, source, table, to, step.row, channel);
  } else {
    load_slice<Config, false>(work, source, table, to, step.row, channel);
  }
  const int chunks = ptx::block_y() * work.steps + step.before + step.chunk;
  packed += (chunks * (work.kernel * work.kernel) + step.row.before) * int64_t{Config::kTapBytes};
  const uint32_t weights =
      ptx::shared_address(to) + static_cast<uint32_t>(Config::kShared.stage - Config::kShared.weights);
  constexpr int kBytes = Config::kTaps * Config::kTapBytes;
  if constexpr (Config::kLeastTaps == Config::kTaps) {
    copy_weights<kBytes, Config::kThreads>(packed, weights, ptx::thread_x());
  } else {
    copy_weights<kBytes, Config::kThreads>(packed, weights, ptx::thread_x(),
                                           step.row.taps * Config::kTapBytes);
  }
}

// sum += a row of taps. Tiles of a warp are neighbours along H: there a fragment serves all taps of the row.
// The middle tap of a 3x3 kernel has a row of its own, so that a row is read whole or not at all.
template <class Config, bool kAlongDepth>
__device__ __forceinline__ void multiply_row(float (&sum)[Config::kRows][Config::kColumns][4], uint32_t stage,
                                             const unsigned char* weights, const TapRow& row, int warp,
                                             int lane) {
  using T = typename Config::Scalar;
  using Walk = typename Config::template Walk<kAlongDepth>;
  const uint32_t a = stage + Walk::lane_byte(warp, lane);
  uint32_t fragments[Config::kRows + (kAlongDepth ? 0 : Config::kTaps - 1)][4];
#pragma unroll
  for (int tap = 0; tap < Config::kTaps; ++tap) {
    if (tap >= Config::kLeastTaps && tap >= row.taps) break;
    const bool counts = Config::kShape.kernel == 3 || tap != Config::kMiddle || !row.without_middle;
    if (kAlongDepth && !counts) continue;
    const int held = kAlongDepth ? 0 : tap;  // of the first tile
#pragma unroll
    for (int m = kAlongDepth || tap == 0 ? 0 : Config::kRows - 1; m < Config::kRows; ++m) {
      load_fragment<T>(
          fragments[held + m],
          a + (kAlongDepth ? tap * Walk::kPlaneStep : tap * Walk::kRowStep) + m * Walk::kRowStep);
    }
    if (counts) {
      uint32_t b[Config::kColumns][2];
      load_weights<Config::kColumns>(b, weights + tap * Config::kTapBytes, lane);
      ptx::mma_tiles<T, Config::kRows, Config::kColumns>(sum, fragments, held, b);
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kShape.blocks)
    tap_rows_kernel(MmaWork work, const typename Config::Scalar* source, const unsigned char* packed,
                    const float* bias, typename Config::Scalar* result, float4* partials) {
  DYNAMIC_SHARED(shared);
  {
    const MmaPlace place = mma_place(work, Config::kShape, ptx::block_x());
    const int view = block_columns(work, blockIdx.y, 8 * Config::kColumns).view;
    Config::rows(shared).fill(work, tap_row_block(work, place, view), threadIdx.x, Config::kThreads);
    fill_voxel_tables(work, place, Config::voxels(shared), Config::kLines, Config::kTableHeight,
                      Config::kEntries, threadIdx.x, Config::kThreads);
    source += place.batch * work.source.batch + group_offsets(work, blockIdx.y).source;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      source += tap_row_origin(work, place, axis) * work.source.axis[axis];
    }
  }
  __syncthreads();
  const MmaSteps steps = steps_of_part(work, blockIdx.z, Config::rows(shared).steps());
  const auto load = [&](int step, int stage) {
    load_tap_row<Config>(work, source, packed, shared, step, stage);
  };
  begin_pipeline(steps, load);

  float sum[Config::kRows][Config::kColumns][4] = {};
  int stage = 0;
#pragma unroll 1
  for (int step = steps.begin; step < steps.end; ++step) {
    advance_pipeline(steps, step, stage, load);
    const TapRowStep now = Config::rows(shared).step(step);
    const int thread = ptx::thread_x();
    const unsigned char* data = shared + Config::kShared.table + stage * Config::kShared.stage;
    const unsigned char* weights = data + Config::kShared.stage - Config::kShared.weights;
    if (now.view == 1) {
      multiply_row<Config, true>(sum, ptx::shared_address(data), weights, now.row, thread / 32, thread % 32);
    } else {
      multiply_row<Config, false>(sum, ptx::shared_address(data), weights, now.row, thread / 32, thread % 32);
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
