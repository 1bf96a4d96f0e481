// The second pass of the gradients on tensor cores (mma_backward_weight.cuh): adds the parts of a workspace
// whose sums lie in the order of the mma fragments. Launched by mma_backward_weight.cu.
//
// The first weight_blocks() blocks take 32 fragments' quadruples of the weight's sums each, one per lane, the
// others 32 columns of the bias. The warps of a block share the parts, each a run of them; their totals are
// added in order. Sums are counted in 32 bits, since the workspace has at most 2^24 of them.
#pragma once

#include "mma_weight_launch.h"

namespace acsconv {

inline constexpr int kAddWarps = 8;

ACSCONV_HD inline int weight_blocks(const MmaWeightWork& work) {
  const MmaWeightShape& s = work.shape;
  const int fragments = s.taps * s.taps * s.m_groups * s.m_tiles * s.n_tiles;
  return work.weight ? static_cast<int>(work.units * work.channel_blocks) * fragments : 0;
}
ACSCONV_HD inline int bias_blocks(const MmaWeightWork& work) {
  return work.bias ? static_cast<int>(work.units * work.shape.columns() + 31) / 32 : 0;
}

// The view of a unit of this launch, and its first column.
struct UnitColumns {
  int view, first;
  ViewColumns of_view;

  __device__ bool contain(int column) const {
    return column >= of_view.first && column < of_view.first + of_view.width;
  }
};
__device__ inline UnitColumns unit_columns(const MmaWeightWork& work, int unit) {
  const int columns = work.shape.columns();
  unit += static_cast<int>(work.first_unit);
  UnitColumns u{0, 0, view_columns(work.problem, work.soft, 0, columns)};
  while (unit >= u.of_view.units) {
    unit -= static_cast<int>(u.of_view.units);
    u.of_view = view_columns(work.problem, work.soft, ++u.view, columns);
  }
  u.first = static_cast<int>(u.of_view.base) + unit * columns;
  return u;
}

// The four elements that a lane holds of a fragment: see ptx.cuh for which these are.
template <class Scalar>
__device__ inline void write_weight(const MmaWeightWork& work, int fragment, int lane, const float4& sum,
                                    Scalar* grad_weight) {
  const MmaWeightShape& s = work.shape;
  const int n = fragment % s.n_tiles, m = fragment / s.n_tiles % s.m_tiles;
  int rest = fragment / (s.n_tiles * s.m_tiles);
  const int inner = rest % s.taps, outer = rest / s.taps % s.taps;
  rest /= s.taps * s.taps;
  const int group = rest % s.m_groups, channel_blocks = static_cast<int>(work.channel_blocks);
  rest /= s.m_groups;
  const int channel = rest % channel_blocks * s.channels() + (group * s.m_tiles + m) * 16 + lane / 4;
  const UnitColumns unit = unit_columns(work, rest / channel_blocks);
  const int tap = unit.view == 2 ? outer * s.taps + inner : inner * s.taps + outer;
  const int column = unit.first + n * 8 + lane % 4 * 2;
  const int in_channels = static_cast<int>(work.problem.in_channels), taps = s.taps * s.taps;
  const int64_t first_row =
      ((work.soft ? unit.view * work.groups : 0) + blockIdx.y) * work.problem.out_channels;
  const auto write = [&](float value, int at_column, int at_channel) {
    if (!unit.contain(at_column) || at_channel >= in_channels) return;
    narrow(value, grad_weight[((first_row + at_column) * in_channels + at_channel) * taps + tap]);
  };
  write(sum.x, column, channel);
  write(sum.y, column + 1, channel);
  write(sum.z, column, channel + 8);
  write(sum.w, column + 1, channel + 8);
}

template <class Scalar>
__global__ void __launch_bounds__(32 * kAddWarps)
    mma_add_parts_kernel(const MmaWeightWork work, Scalar* grad_weight, Scalar* grad_bias) {
  DYNAMIC_SHARED(memory);
  auto* totals = reinterpret_cast<float4*>(memory);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, block = blockIdx.x;
  const int parts = static_cast<int>(work.parts), fragments = weight_blocks(work);
  const int columns = work.shape.columns(), warps = work.shape.warps();
  const int first_part = blockIdx.y * parts;  // of the group's sums
  const int all_columns = static_cast<int>(work.units) * columns, column = (block - fragments) * 32 + lane;
  const auto add = [](float4& to, const float4& more) {
    to.x += more.x, to.y += more.y, to.z += more.z, to.w += more.w;
  };

  float4 total = make_float4(0, 0, 0, 0);
  if (block < fragments) {
    const auto* sums = reinterpret_cast<const float4*>(work.weight_sums);
    for (int part = parts * warp / kAddWarps; part < parts * (warp + 1) / kAddWarps; ++part) {
      add(total, sums[((first_part + part) * fragments + block) * 32 + lane]);
    }
  } else if (column < all_columns) {  // [part][unit][warp][column of the unit]
    const int unit = column / columns, units = static_cast<int>(work.units), rows = parts * warps;
    for (int row = rows * warp / kAddWarps; row < rows * (warp + 1) / kAddWarps; ++row) {
      const int slot = ((first_part + row / warps) * units + unit) * warps + row % warps;
      total.x += work.bias_sums[slot * columns + column % columns];
    }
  }
  totals[warp * 32 + lane] = total;
  __syncthreads();
  if (warp != 0) return;
  for (int i = 1; i < kAddWarps; ++i) add(total, totals[i * 32 + lane]);

  if (block < fragments) {
    write_weight(work, block, lane, total, grad_weight);
  } else if (column < all_columns) {
    const UnitColumns unit = unit_columns(work, column / columns);
    const int channel = unit.first + column % columns;
    if (unit.contain(channel) && (!work.soft || unit.view == 0)) {
      narrow(total.x, grad_bias[blockIdx.y * work.problem.out_channels + channel]);
    }
  }
}

}  // namespace acsconv
