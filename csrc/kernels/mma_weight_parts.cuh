// The second pass of the gradients on tensor cores (mma_backward_weight.cuh): adds the parts of a workspace
// whose sums lie in the order of the mma fragments. Launched by mma_backward_weight.cu.
#pragma once

#include "mma_backward_weight.cuh"

namespace acsconv {

// Adds the parts, in order, and writes the gradients. A block takes 32 quadruples of the sums, or 32 sums of
// the bias; its warps share the parts, and their totals are added in order.
inline constexpr int kAddWarps = 8;

template <class Scalar>
__global__ void __launch_bounds__(32 * kAddWarps)
    mma_add_parts_kernel(const MmaWeightWork work, Scalar* grad_weight, Scalar* grad_bias) {
  DYNAMIC_SHARED(memory);
  auto* totals = reinterpret_cast<float4*>(memory);
  const Problem& p = work.problem;
  const MmaWeightShape& s = work.shape;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, columns = 8 * s.n_tiles;
  const int64_t fragments = s.taps * s.m_tiles * s.n_tiles, unit_warps = s.taps * s.m_groups;
  const int64_t quads = work.weight ? work.units * work.channel_blocks * unit_warps * fragments * 32 : 0;
  const int64_t bias_blocks = (work.units * columns + 31) / 32;
  const int64_t blocks = quads / 32 + (work.bias ? bias_blocks : 0);
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const bool is_weight = block * 32 < quads;
    const int64_t item = is_weight ? block * 32 + lane : (block - quads / 32) * 32 + lane;
    float4 total = make_float4(0, 0, 0, 0);
    if (is_weight) {
      for (int64_t part = work.parts * warp / kAddWarps; part < work.parts * (warp + 1) / kAddWarps; ++part) {
        const float4 more = reinterpret_cast<const float4*>(work.weight_sums)[part * quads + item];
        total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
      }
    } else if (item < work.units * columns) {
      const int64_t rows = work.parts * s.warps(), unit = item / columns, column = item % columns;
      for (int64_t row = rows * warp / kAddWarps; row < rows * (warp + 1) / kAddWarps; ++row) {
        const int64_t part = row / s.warps(), of_warp = row % s.warps();
        total.x += work.bias_sums[((part * work.units + unit) * s.warps() + of_warp) * columns + column];
      }
    }
    totals[warp * 32 + lane] = total;
    __syncthreads();
    if (warp == 0) {
      for (int i = 1; i < kAddWarps; ++i) {
        const float4 more = totals[i * 32 + lane];
        total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
      }
      int64_t rest = is_weight ? item / 32 : item / columns;
      const int64_t fragment = is_weight ? rest % fragments : 0;
      if (is_weight) rest /= fragments;
      const int64_t unit_warp = is_weight ? rest % unit_warps : 0;
      if (is_weight) rest /= unit_warps;
      const int64_t channel_block = is_weight ? rest % work.channel_blocks : 0;
      if (is_weight) rest /= work.channel_blocks;
      int view = 0;
      ViewColumns v = view_columns(p, work.soft, view, columns);
      while (view < kViews - 1 && rest >= v.units) {
        rest -= v.units;
        v = view_columns(p, work.soft, ++view, columns);
      }
      const int64_t first_column = v.base + rest * columns;
      const auto in_view = [&](int64_t column) { return column >= v.first && column < v.first + v.width; };
      if (is_weight) {
        const int64_t n = fragment % s.n_tiles, m = fragment / s.n_tiles % s.m_tiles;
        const int64_t inner = fragment / s.n_tiles / s.m_tiles, outer = unit_warp % s.taps;
        const int64_t tap = view == 2 ? outer * s.taps + inner : inner * s.taps + outer;
        const int64_t group = unit_warp / s.taps;
        const float values[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t column = first_column + n * 8 + lane % 4 * 2 + i % 2;
          const int64_t channel =
              channel_block * s.channels() + (group * s.m_tiles + m) * 16 + lane / 4 + i / 2 * 8;
          if (in_view(column) && channel < p.in_channels) {
            const int64_t row = (work.soft ? view * p.out_channels : 0) + column;
            narrow(values[i], grad_weight[(row * p.in_channels + channel) * (s.taps * s.taps) + tap]);
          }
        }
      } else if (item < work.units * columns) {
        const int64_t column = first_column + item % columns;
        if (in_view(column) && (!work.soft || view == 0)) narrow(total.x, grad_bias[column]);
      }
    }
    __syncthreads();
  }
}

}  // namespace acsconv
