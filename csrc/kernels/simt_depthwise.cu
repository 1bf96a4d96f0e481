// Instantiates the depthwise kernel (simt_depthwise.cuh) for every dtype and memory order.
#include "simt_depthwise.cuh"

#include "report.h"
#include "simt_depthwise.h"

namespace acsconv {
namespace {

template <class Config>
const char* launch_depthwise(const Problem& p, Pass pass, const void* source, const void* weight,
                             const void* bias, void* destination, void* stream) {
  using Scalar = typename Config::Scalar;
  const int64_t channels = pass == Pass::Forward ? p.out_channels : p.in_channels;
  const GatherWork work{p,
                        pass,
                        /*soft=*/false,
                        /*folded=*/false,
                        gather_voxel_tiles(p, pass, Config::kVoxels),
                        ceil_div(channels, Config::kChannels)};
  int64_t tiles = work.voxel_tiles * work.item_tiles * p.batch;
  for (int axis = 0; axis < 3; ++axis) tiles *= residues(p, pass, axis);
  if (tiles == 0) return nullptr;
  return launch(simt_depthwise_kernel<Config>, dim3(grid_size(tiles)), dim3(Config::kThreads),
                Config::kSharedBytes, stream, work, tiles, static_cast<const Scalar*>(source),
                static_cast<const Scalar*>(weight), static_cast<const Scalar*>(bias),
                static_cast<Scalar*>(destination));
}

}  // namespace

const char* simt_depthwise(const Problem& problem, Pass pass, bool channels_inner, const void* source,
                           const void* weight, const void* bias, void* destination, void* stream) {
  return with_scalar(problem.type, [&](auto scalar) {
    using Scalar = decltype(scalar);
    return (channels_inner ? launch_depthwise<SimtDepthwise<Scalar, true>>
                           : launch_depthwise<SimtDepthwise<Scalar, false>>)(problem, pass, source, weight,
                                                                             bias, destination, stream);
  });
}

}  // namespace acsconv
