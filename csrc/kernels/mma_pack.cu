// Packs and rounds weights (mma_pack.h), one register of a lane's fragment per thread.
#include "mma_pack.h"

#include "channel_tiles.h"
#include "fold_soft.cuh"
#include "mma_pack.cuh"
#include "report.h"

namespace acsconv {
namespace {

constexpr int kThreads = 256;

struct PackWork {
  MmaWork work;
  int64_t registers;  // of all fragments
  int units, tiles;   // taps (of all views) of a step, and tiles of 8 channels of each
  bool view_per_warp, row_per_step, by_parity, backward;
  int64_t groups, in_channels, out_channels;  // channels of a group
};

template <class Weight>
struct Kernels {
  const Weight* data;  // [C_out, C_in, K, K]; Soft ACS: [3, C_out, C_in, K, K]
  int64_t view_elements;
  int kernel;

  __device__ float at(int view, int64_t pair, int row, int column) const {
    return widen(data[view * view_elements + (pair * kernel + row) * kernel + column]);
  }
  __device__ float folded(int view, int64_t pair, int row, int column) const {
    return folded_kernel([&](int v, int r, int c) { return at(v, pair, r, c); }, view, row, column,
                         kernel / 2);
  }
};

// Outer and inner tap of unit `unit` of a view.
__device__ __forceinline__ void tap_of_unit(bool soft, int view, int unit, int* outer, int* inner) {
  for (int tap = 0; tap < 9; ++tap) {
    *outer = tap / 3, *inner = tap % 3;
    if (tap_is_read(soft, view, *outer, *inner) && tap_index(soft, view, *outer, *inner) == unit) return;
  }
  *outer = -1;  // Soft ACS reads fewer taps of the later views
}

// One row of taps per step: the inner tap in place `place` of a row's packed weights, where a stride of 2
// reads odd and even taps in steps of their own.
__device__ __forceinline__ int inner_tap_of_place(int place, int kernel, bool by_parity) {
  const int odd = kernel / 2;
  return !by_parity ? place : place < odd ? 2 * place + 1 : 2 * (place - odd);
}

template <class T, class Weight>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(PackWork pack, const Weight* weight, const Weight* bias, uint32_t* packed,
                float* packed_bias) {
  const MmaWork& work = pack.work;
  const int64_t first = blockIdx.x * int64_t{blockDim.x} + threadIdx.x,
                threads = int64_t{gridDim.x} * blockDim.x;
  if (bias != nullptr) {
    for (int64_t i = first; i < pack.groups * work.columns; i += threads) packed_bias[i] = widen(bias[i]);
  }
  const int kernel = work.kernel, taps = kernel * kernel;
  const int64_t group_pairs = pack.out_channels * pack.in_channels;
  const Kernels<Weight> kernels{weight, pack.groups * group_pairs * taps, kernel};
  for (int64_t index = first; index < pack.registers; index += threads) {
    // From the innermost: register, tile of a pair, lane, pair of tiles; an odd last tile stands alone.
    int in_unit = static_cast<int>(index % (pack.tiles * 64));
    const int64_t unit_index = index / (pack.tiles * 64);
    const int paired = pack.tiles / 2 * 128;
    int tile, lane;
    if (in_unit < paired) {
      tile = in_unit / 128 * 2 + in_unit % 4 / 2;
      lane = in_unit % 128 / 4;
    } else {
      tile = pack.tiles - 1;
      lane = (in_unit - paired) / 2;
    }
    const int half = in_unit % 2, unit = static_cast<int>(unit_index % pack.units);
    const int step = static_cast<int>(unit_index / pack.units % work.steps);
    const int block = static_cast<int>(unit_index / pack.units / work.steps);
    const int64_t first_pair = group_of_block(work, block) * group_pairs;

    int view, column, outer, inner;
    MmaStep reduced;
    if (pack.view_per_warp) {
      view = unit / 9;
      reduced = {view, 2 * step * kGranule<T>, {0, work.reduced}};
      const ChannelRange range = view_columns(work, view, block);
      column = range.begin - column_slack(range, 8 * pack.tiles) + 8 * tile + lane / 4;
      if (column < range.begin || column >= range.end) column = -1;
      outer = unit % 9 / 3, inner = unit % 3;
    } else {
      const BlockColumns columns = block_columns(work, block, 8 * pack.tiles);
      reduced = columns.view < 0 ? view_step<T>(work, step) : step_of_view<T>(work, columns.view, step);
      view = reduced.view;
      column = columns.range.begin - column_slack(columns.range, 8 * pack.tiles) + 8 * tile + lane / 4;
      if (column < columns.range.begin || column >= columns.range.end) column = -1;
      if (pack.row_per_step) {
        outer = unit / kernel, inner = inner_tap_of_place(unit % kernel, kernel, pack.by_parity);
      } else {
        tap_of_unit(work.soft, view, unit, &outer, &inner);
      }
    }
    if (column < 0 || outer < 0) {
      packed[index] = 0;
      continue;
    }
    const int forward_tap = tap_of_kernel(view, outer, inner, kernel);
    const int tap = pack.backward ? taps - 1 - forward_tap : forward_tap;
    packed[index] = pack_register<T>(reduced.channel, reduced.valid, half, lane, [&](int channel) {
      const int64_t pair = first_pair + (pack.backward ? channel * pack.in_channels + column
                                                       : column * pack.in_channels + channel);
      return work.soft ? kernels.folded(view, pair, tap / kernel, tap % kernel)
                       : kernels.at(0, pair, tap / kernel, tap % kernel);
    });
  }
}

template <class T, class Weight>
const char* launch_pack(const PackWork& pack, const void* weight, const void* bias, void* packed,
                        float* packed_bias, void* stream) {
  const int64_t columns = pack.groups * pack.work.columns;
  const int64_t items = pack.registers > columns ? pack.registers : columns;
  return launch(pack_kernel<T, Weight>, dim3(grid_size(ceil_div(items, kThreads))), dim3(kThreads), 0, stream,
                pack, static_cast<const Weight*>(weight), static_cast<const Weight*>(bias),
                static_cast<uint32_t*>(packed), packed_bias);
}

}  // namespace

const char* pack_weights(const Problem& group, const MmaPlan& plan, const MmaWork& work, Pass pass,
                         const void* weight, const void* bias, ScalarType weight_type, void* packed,
                         float* packed_bias, void* stream) {
  PackWork pack{};
  pack.work = work;
  pack.registers = static_cast<int64_t>(plan.packed_bytes / 4);
  pack.tiles = plan.chosen().columns;
  pack.units = work.kernel * work.kernel * (plan.view_per_warp ? kViews : 1);
  pack.view_per_warp = plan.view_per_warp;
  pack.row_per_step = plan.row_per_step;
  pack.by_parity = group.stride[0] == 2;
  pack.backward = pass == Pass::BackwardInput;
  pack.groups = plan.groups;
  pack.in_channels = group.in_channels;
  pack.out_channels = group.out_channels;
  return with_pack_types(group.type, weight_type, [&](auto scalar, auto parameter) {
    return launch_pack<decltype(scalar), decltype(parameter)>(pack, weight, bias, packed, packed_bias,
                                                              stream);
  });
}

}  // namespace acsconv
