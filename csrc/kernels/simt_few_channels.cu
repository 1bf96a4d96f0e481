// Instantiates the kernel for few input channels (simt_few_channels.cuh) for every dtype.
#include "simt_few_channels.cuh"

#include <algorithm>

#include "simt_few_channels.h"

namespace acsconv {
namespace {

// Whether the octets of all voxels are whole and lie at multiples of 16 bytes.
bool stores_vectors(const Problem& p, const void* output, int64_t scalar_bytes) {
  const VolumeStrides& s = p.output;
  const auto aligned = [&](int64_t elements) { return elements * scalar_bytes % 16 == 0; };
  return s.channel == 1 && p.out_channels % kFewOctet == 0 && reinterpret_cast<uintptr_t>(output) % 16 == 0 &&
         aligned(s.batch) && aligned(s.axis[0]) && aligned(s.axis[1]) && aligned(s.axis[2]);
}

}  // namespace

const char* simt_few_channels(const Problem& problem, const FewChannelsPlan& plan, const void* input,
                              const void* weight, const void* bias, void* output, void* stream) {
  if (plan.tiles == 0) return nullptr;
  return with_scalar(problem.type, [&](auto scalar) {
    using Scalar = decltype(scalar);
    using Config = SimtFewChannels<Scalar>;
    FewWork work{problem,
                 {},
                 static_cast<int>(plan.box),
                 static_cast<int>(plan.slabs),
                 static_cast<int>(plan.slab_octets),
                 static_cast<unsigned>(plan.tiles),
                 {},
                 stores_vectors(problem, output, sizeof(Scalar))};
    for (int axis = 0; axis < 3; ++axis) {
      work.log_tile[axis] = plan.log_tile[axis];
      work.tiles_along[axis] =
          static_cast<unsigned>(((problem.out_size[axis] - 1) >> plan.log_tile[axis]) + 1);
    }
    // A block keeps its weights for all its tiles: no more blocks than run at a time, and some to even out.
    const int64_t blocks = std::max<int64_t>(1, 4 * Config::kBlocks * multiprocessors() / plan.slabs);
    return launch(simt_few_channels_kernel<Config>,
                  dim3(static_cast<unsigned>(std::min(plan.tiles, blocks) * plan.slabs)),
                  dim3(Config::kThreads), plan.shared_bytes, stream, work, static_cast<const Scalar*>(input),
                  static_cast<const Scalar*>(weight), static_cast<const Scalar*>(bias),
                  static_cast<Scalar*>(output));
  });
}

}  // namespace acsconv
