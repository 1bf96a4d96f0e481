// Instantiates the SIMT forward kernel for every dtype, memory order and tile, and picks one of them for a
// problem.
#include "simt_forward.h"

#include <algorithm>

#include "simt_forward.cuh"

namespace acsconv {
namespace {

constexpr int64_t kLargestGrid = 2147483647;

// Coordinates and positions in the reduction are kept in 32 bits.
const char* rejection(const Problem& p) {
  constexpr int64_t limit = 1 << 30;
  const int64_t taps = p.kernel_h * p.kernel_w;
  if (p.kernel_h > limit || p.kernel_w > limit || p.in_channels / p.groups > limit / taps) {
    return "a kernel of more than 2^30 weights per output channel is not supported";
  }
  for (int axis = 0; axis < 3; ++axis) {
    if (p.in_size[axis] > limit || p.out_size[axis] > limit) {
      return "a volume axis longer than 2^30 is not supported";
    }
    for (int view = 0; view < kViews; ++view) {
      const int64_t reach = (kernel_extent(view, axis, p.kernel_h, p.kernel_w) - 1) * p.dilation[view][axis];
      const int64_t first = p.origin[view][axis],
                    last = first + (p.out_size[axis] - 1) * p.stride[axis] + reach;
      if (first < -limit || last > limit || reach > limit) {
        return "a read position beyond 2^30 on a volume axis is not supported";
      }
    }
  }
  return nullptr;
}

template <class Config>
const char* launch_forward(const Problem& p, const void* input, const void* weight, const void* bias,
                           void* output, void* stream) {
  using Scalar = typename Config::Scalar;
  const int64_t voxels = p.out_size[0] * p.out_size[1] * p.out_size[2];
  const int64_t voxel_tiles = ceil_div(voxels, Config::kTileVoxels);
  const int64_t channel_tiles = channel_tile_count(p, Config::kTileChannels);
  const int64_t blocks = std::min(voxel_tiles * channel_tiles * p.batch, kLargestGrid);
  if (blocks == 0) return nullptr;
  return launch(simt_forward_kernel<Config>, dim3(static_cast<unsigned>(blocks)), dim3(Config::kThreads),
                Config::kSharedBytes, stream, p, voxel_tiles, channel_tiles,
                static_cast<const Scalar*>(input), static_cast<const Scalar*>(weight),
                static_cast<const Scalar*>(bias), static_cast<Scalar*>(output));
}

}  // namespace

const char* simt_forward(const Problem& p, const void* input, const void* weight, const void* bias,
                         void* output, void* stream) {
  if (const char* reason = rejection(p)) return reason;
  const bool channels_inner = p.input.channel == 1 && p.in_channels / p.groups > 1;
  const int64_t width = std::min(p.out_channels / p.groups, *std::max_element(p.split, p.split + kViews));
  return with_scalar(p.type, [&](auto scalar) {
    using Scalar = decltype(scalar);
    constexpr int rows = sizeof(Scalar) == 8 ? 4 : 8;
    auto run = [&](auto warps) {
      constexpr int kRows = warps == 1 ? rows / 2 : rows;
      return channels_inner ? launch_forward<SimtForward<Scalar, warps, kRows, true>>(p, input, weight, bias,
                                                                                      output, stream)
                            : launch_forward<SimtForward<Scalar, warps, kRows, false>>(p, input, weight, bias,
                                                                                       output, stream);
    };
    if (width <= 8) return run(std::integral_constant<int, 1>{});
    return run(std::integral_constant<int, 4>{});
  });
}

}  // namespace acsconv
