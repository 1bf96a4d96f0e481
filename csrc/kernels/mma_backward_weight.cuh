// Gradients of weight and bias on tensor cores:
//   grad_weight[o][i][p][q] = sum over voxels v of grad_output[o][v] * x[i][stride * v + origin + tap(p, q)]
//   grad_bias[o]            = sum over voxels v of grad_output[o][v]
//
// for float16, bfloat16 and (as TF32) float32 volumes of any strides, summed in float32. Launched by
// mma_backward_weight.cu.
//
// One product of matrices per tap: M = input channels, N = output channels of one view, depth = voxels. M is
// the input channel because views have odd widths: N pads to 8, M would pad to 16. Both operands lie in
// shared memory as [plane of 8 channels][voxel][8 channels] (mma_weight_fragments.cuh says why).
//
// A block takes one unit (8 n_tiles columns of a view), one block of input channels and one part of the
// view's tiles of voxels. Its halo lies only in the view's plane and its tiles along the view's own axes:
//     view  inner axis (8, 4, 2)  pair axis (4, 2)  outer tap
//      a          H                    D          along W
//      c          D                    H          along W
//      s          H                    D          along D, the pair axis
// A warp has one outer tap, all inner taps, m_tiles x 16 input channels, and one share of the tile's stacks;
// a stack is the pairs of rows, in TF32 the rows, along the inner axis. Fragments of grad_output stay in
// registers for as many rows as there are taps, so that every fragment of x serves all inner taps. The
// accumulators of a part leave the block once, in the order of the fragments; mma_add_parts_kernel adds the
// parts in order.
#pragma once

#include "mma_weight_fragments.cuh"
#include "mma_weight_launch.h"
#include "mma_weight_tiles.cuh"

namespace acsconv {

// kAsync: channels lie side by side in both tensors, 16 bytes of input channels and 4 output channels are
// aligned to their size, so that cp.async copies them. Otherwise threads gather 16 bytes of a voxel each.
template <class Scalar_, int kShape, bool kAsync_>
struct MmaBackwardWeight {
  using Scalar = Scalar_;
  static constexpr MmaWeightShape kS = kMmaWeightShapes[kShape];
  static constexpr bool kAsync = kAsync_;
  static constexpr int kTaps = kS.taps, kM = kS.m_tiles, kGroups = kS.m_groups, kShares = kS.shares,
                       kN = kS.n_tiles, kBlocks = kS.blocks;
  static constexpr int kThreads = 32 * kS.warps();
  static constexpr int kStride = kS.stride, kInner = kS.inner, kPair = kS.pair, kW = kWeightTileW,
                       kVoxels = kS.voxels();
  static constexpr int kVoxelBytes = kS.voxel_bytes();
  static constexpr bool kTf32 = sizeof(Scalar) == 4;
  static constexpr int kDepth = kS.rows_of_product(), kStacks = kPair / kDepth;
  static constexpr int kRows = kS.reach(kInner);  // of x, that a stack reads
  static_assert(sizeof(Scalar) == kS.bytes && kW == 8 && kPair % kDepth == 0);
  static_assert(kStacks % kShares == 0);
  static_assert(kStride == 1 || kStride == 2);
  static_assert(kS.reach(kInner) + kS.reach(kW) + kPair <= 32 &&
                    kS.reach(kInner) + kW + kS.reach(kPair) <= 32,
                "a bit per coordinate of the halo");

  // Shared memory: the geometry, the tables of voxels, and the stages, each x and then grad_output.
  static_assert(sizeof(WeightGeometry) <= kWeightGeometryBytes);
  static constexpr int kXPlanes = kS.x_planes(), kXPlane = kS.x_plane(), kGPlane = kS.g_plane();
  static constexpr int kGBegin = kS.g_begin(), kStage = kS.stage(), kFirstStage = kS.tables();
  static constexpr int kXTable = kWeightGeometryBytes, kGTable = kXTable + 8 * kS.halo();
  static constexpr int kSharedBytes = kS.shared_bytes();

  static constexpr int kFragments = kTaps * kM * kN;  // of a warp: the 16 x 8 tiles of all inner taps
  static constexpr int kUnitWarps = kTaps * kGroups;  // with sums of their own
  static constexpr int kSums = kUnitWarps * kFragments * 128;
  static constexpr int kExchange = kUnitWarps * kM * kN * 32;  // of a share, in quadruples
  static_assert((kShares - 1) * kExchange * 16 <= kWeightStages * kStage, "the shares meet in the stages");
};

template <class Config>
__device__ __forceinline__ void load_stage(const MmaWeightWork& work, const WeightGeometry& geometry,
                                           const WeightTile& tile, int first_channel,
                                           const typename Config::Scalar* grad_output,
                                           const typename Config::Scalar* input, unsigned char* memory,
                                           unsigned char* stage) {
  using Scalar = typename Config::Scalar;
  const Problem& p = work.problem;
  constexpr int kTile[kWeightAxes] = {Config::kW, Config::kInner, Config::kPair}, kShift[kWeightAxes] = {};
  const Scalar *x = input + tile.sample * p.input.batch, *g = grad_output + tile.sample * p.output.batch;
  int read[kWeightAxes];
#pragma unroll
  for (int i = 0; i < kWeightAxes; ++i) {
    read[i] = tile.at[i] * Config::kStride + geometry.origin[i];
    x += read[i] * geometry.input_stride[i];
    g += tile.at[i] * geometry.output_stride[i];
  }
  const Box<Scalar> x_box{input,
                          x,
                          p.input.channel,
                          geometry.input_stride[kAlongW],
                          first_channel,
                          geometry.channels,
                          geometry.halo_voxels,
                          outside_box(read, geometry.input_end, geometry.halo, geometry.shift),
                          reinterpret_cast<const uint2*>(memory + Config::kXTable),
                          stage};
  const Box<Scalar> g_box{grad_output,
                          g,
                          p.output.channel,
                          geometry.output_stride[kAlongW],
                          geometry.first_column,
                          geometry.columns,
                          Config::kVoxels,
                          outside_box(tile.at, geometry.output_size, kTile, kShift),
                          reinterpret_cast<const uint2*>(memory + Config::kGTable),
                          stage + Config::kGBegin};
  if constexpr (Config::kAsync) {
    copy_box<Config, false, Config::kXPlanes, Config::kXPlane, 16>(x_box);
    constexpr int kPiece = kColumnAlignment * static_cast<int>(sizeof(Scalar));
    copy_box<Config, true, Config::kN, Config::kGPlane, kPiece>(g_box);
  } else {
    gather_box<Config, false, Config::kXPlanes, Config::kXPlane>(x_box);
    gather_box<Config, true, Config::kN, Config::kGPlane>(g_box);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    mma_backward_weight_kernel(const MmaWeightWork work,
                               const typename Config::Scalar* __restrict__ grad_output,
                               const typename Config::Scalar* __restrict__ input) {
  using Scalar = typename Config::Scalar;
  constexpr int kTaps = Config::kTaps, kM = Config::kM, kN = Config::kN, kRows = Config::kRows;
  constexpr int kVoxelBytes = Config::kVoxelBytes;
  constexpr int kGRow = Config::kW * kVoxelBytes, kGPair = Config::kInner * kGRow;  // bytes from row to row
  DYNAMIC_SHARED(memory);
  auto& geometry = *reinterpret_cast<WeightGeometry*>(memory);

  int64_t index = blockIdx.x;
  const int64_t unit = index % work.units;
  index /= work.units;
  const int64_t channel_block = index % work.channel_blocks, part = index / work.channel_blocks;
  if (threadIdx.x == 0) {
    describe_block(work, work.first_unit + unit, channel_block, blockIdx.y, geometry);
  }
  __syncthreads();
  const int view = geometry.view;
  for (int i = threadIdx.x; i < geometry.halo_voxels; i += Config::kThreads) {
    describe_voxel(i, geometry.halo, geometry.input_stride, geometry.shift, geometry.evens,
                   reinterpret_cast<uint2*>(memory + Config::kXTable)[i]);
  }
  for (int i = threadIdx.x; i < Config::kVoxels / Config::kW; i += Config::kThreads) {
    constexpr int kShift[kWeightAxes] = {};
    uint2& row = reinterpret_cast<uint2*>(memory + Config::kGTable)[i];
    describe_voxel(i * Config::kW, geometry.tile, geometry.output_stride, kShift, /*evens=*/0, row);
    row.y &= ~1u;  // the bit along W is each voxel's own
  }
  __syncthreads();

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int outer = warp % kTaps, group = warp / kTaps % Config::kGroups;
  const int share = warp / (kTaps * Config::kGroups);
  const int64_t tiles = weight_tiles(work.problem, view, Config::kInner, Config::kPair);
  const int64_t first_tile = tiles * part / work.parts, last_tile = tiles * (part + 1) / work.parts;
  const int first_channel = geometry.first_channel;  // looked up in every tile, it would cost registers
  const bool sums_bias = work.bias && channel_block == 0;

  // Matrices of a fragment of x: lane bit 3 is the upper 8 channels, bit 4 the second row of the pair; of two
  // columns of tiles of grad_output: bit 3 the second row, bit 4 the second column of tiles.
  const int row_step = geometry.halo[kAlongW] * kVoxelBytes,
            plane_step = row_step * geometry.halo[kAlongInner];
  const int pair_step = view == 2 ? Config::kStride * plane_step : plane_step;
  const int outer_step = view == 2              ? outer * plane_step
                         : Config::kStride == 1 ? outer * kVoxelBytes
                                                : (outer % 2 * geometry.evens + outer / 2) * kVoxelBytes;
  const int bit_3 = lane >> 3 & 1, bit_4 = lane >> 4;
  const uint32_t x_lane = lane_byte<Config>(lane, bit_3 * Config::kXPlane, bit_4 * pair_step) +
                          group * kM * 2 * Config::kXPlane + outer_step;
  const uint32_t g_lane = Config::kGBegin + lane_byte<Config>(lane, 0, bit_3 * kGPair);

  float sum[kTaps][kM][kN][4] = {}, bias[kN] = {};
  WeightTile ahead{};
  if (first_tile < last_tile) ahead = tile_at(geometry, first_tile);  // there may be no voxels at all
  const auto load_next = [&](int64_t tile, int stage) {
    if (tile < last_tile) {
      load_stage<Config>(work, geometry, ahead, first_channel, grad_output, input, memory,
                         memory + Config::kFirstStage + stage * Config::kStage);
      next_tile(geometry, ahead);
    }
    ptx::cp_async_commit();
  };
  load_next(first_tile, 0);
  int stage = 0;
#pragma unroll 1
  for (int64_t tile = first_tile; tile < last_tile; ++tile, stage ^= 1) {
    ptx::cp_async_wait<0>();
    __syncthreads();
    load_next(tile + 1, stage ^ 1);
    const uint32_t shared =
        (Config::kTf32 ? 0 : ptx::shared_address(memory)) + Config::kFirstStage + stage * Config::kStage;
#pragma unroll 1
    for (int k = 0; k < Config::kStacks / Config::kShares; ++k) {
      const int pair = Config::kDepth * (k * Config::kShares + share);
      const uint32_t x_stack = shared + x_lane + pair * pair_step;
      const uint32_t single = shared + g_lane + pair * kGPair, pairs = single + bit_4 * Config::kGPlane;
      if (sums_bias) {  // apart from the unrolled rows, whose schedule a branch would cut
#pragma unroll 1
        for (int row = group * kTaps + outer; row < Config::kInner; row += Config::kUnitWarps) {
          uint32_t fragment[kN][2];
          load_columns<Config, false>(fragment, memory, pairs + row * kGRow, single + row * kGRow);
#pragma unroll
          for (int n = 0; n < kN; ++n) {
            bias[n] += sum_of<Scalar>(fragment[n][0]) + sum_of<Scalar>(fragment[n][1]);
          }
        }
      }
      uint32_t columns[kTaps][kN][2];  // row r of grad_output in columns[r % kTaps]
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const int starts = row / Config::kStride;  // the row of grad_output whose first tap this is
        if (row % Config::kStride == 0 && starts < Config::kInner) {
          load_columns<Config, true>(columns[starts % kTaps], memory, pairs + starts * kGRow,
                                     single + starts * kGRow);
        }
        uint32_t x[kM][4];
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          load_channels<Config>(x[m], memory, x_stack + row * row_step + m * 2 * Config::kXPlane);
        }
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
          const int meets = (row - tap) / Config::kStride;
          if (row < tap || (row - tap) % Config::kStride != 0 || meets >= Config::kInner) continue;
          ptx::mma_tiles<Scalar>(sum[tap], x, 0, columns[meets % kTaps]);
        }
      }
    }
  }
  ptx::cp_async_wait<0>();

  const int64_t slot = ptx::block_y() * work.parts + part;  // of the workspace
  if (work.weight) {
    float* to = work.weight_sums +
                ((slot * work.units + unit) * work.channel_blocks + channel_block) * Config::kSums +
                (group * kTaps + outer) * Config::kFragments * 128 + lane * 4;
    auto* exchange = reinterpret_cast<float4*>(memory + Config::kFirstStage) +
                     (group * kTaps + outer) * kM * kN * 32 + lane;  // of share 1; the others behind it
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      if constexpr (Config::kShares > 1) {
        __syncthreads();
        if (share > 0) {  // said of two shares in so many words, since a register decides over spills
          const int slot = Config::kShares == 2 ? 0 : (share - 1) * Config::kExchange;
#pragma unroll
          for (int i = 0; i < kM * kN; ++i) {
            const float (&f)[4] = sum[tap][i / kN][i % kN];
            exchange[slot + i * 32] = make_float4(f[0], f[1], f[2], f[3]);
          }
        }
        __syncthreads();
      }
      if (share == 0) {
#pragma unroll
        for (int i = 0; i < kM * kN; ++i) {
          const float (&f)[4] = sum[tap][i / kN][i % kN];
          float4 total = make_float4(f[0], f[1], f[2], f[3]);
#pragma unroll
          for (int other = 0; other < Config::kShares - 1; ++other) {
            const float4 more = exchange[other * Config::kExchange + i * 32];
            total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
          }
          *reinterpret_cast<float4*>(to + (tap * kM * kN + i) * 128) = total;
        }
      }
    }
  }
  if (sums_bias) {
    float* to = work.bias_sums + ((slot * work.units + unit) * Config::kS.warps() + warp) * (8 * kN);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      float total = bias[n] + __shfl_xor_sync(0xffffffffu, bias[n], 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      if (lane % 4 == 0) to[n * 8 + lane / 4] = total;
    }
  }
}

template <class Scalar, bool kAsync, int kShape = 0>
const char* launch_weight_shape(int shape, const MmaWeightLaunch& call) {
  if constexpr (kShape + 1 < kMmaWeightShapeCount) {
    if (shape != kShape) return launch_weight_shape<Scalar, kAsync, kShape + 1>(shape, call);
  }
  if constexpr (kMmaWeightShapes[kShape].bytes == sizeof(Scalar)) {
    using Config = MmaBackwardWeight<Scalar, kShape, kAsync>;
    const MmaWeightWork& work = call.work;
    return launch(mma_backward_weight_kernel<Config>,
                  dim3(static_cast<unsigned>(work.parts * work.channel_blocks * work.units),
                       static_cast<unsigned>(work.groups)),
                  dim3(Config::kThreads), Config::kSharedBytes, call.stream, work,
                  static_cast<const Scalar*>(call.grad_output), static_cast<const Scalar*>(call.input));
  }
  return "no such block for this type";
}
template <class Scalar>
const char* launch_mma_backward_weight(int shape, bool copies, const MmaWeightLaunch& call) {
  return copies ? launch_weight_shape<Scalar, true>(shape, call)
                : launch_weight_shape<Scalar, false>(shape, call);
}

}  // namespace acsconv
