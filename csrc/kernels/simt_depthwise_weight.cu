// Instantiates the kernel of the depthwise gradients of weight and bias (simt_depthwise_weight.cuh) for every
// dtype, block of taps and memory order.
#include "simt_depthwise_weight.cuh"

#include "add_parts.h"
#include "report.h"
#include "simt_depthwise_weight.h"

namespace acsconv {
namespace {

template <class Config>
const char* launch_depthwise_weight(const Problem& p, int64_t parts, const void* grad_output,
                                    const void* input, void* grad_weight, void* grad_bias, void* workspace,
                                    void* stream) {
  using Scalar = typename Config::Scalar;
  using Sum = typename Config::Sum;
  const DepthwiseWeightWork work{p, grad_weight != nullptr, grad_bias != nullptr,
                                 depthwise_channel_tiles(p, Config::kChannels), parts};
  if (!work.weight && !work.bias) return nullptr;
  Sum* sums = parts > 1 ? static_cast<Sum*>(workspace) : nullptr;
  const int64_t tiles = work.channel_tiles * parts;
  const char* error = launch(simt_depthwise_weight_kernel<Config>, dim3(grid_size(tiles)),
                             dim3(Config::kThreads), Config::kSharedBytes, stream, work, tiles,
                             static_cast<const Scalar*>(grad_output), static_cast<const Scalar*>(input),
                             static_cast<Scalar*>(grad_weight), static_cast<Scalar*>(grad_bias), sums);
  if (error != nullptr || sums == nullptr) return error;
  return add_parts(p.type, {sums, parts, p.out_channels, depthwise_taps(work), work.bias}, p.out_channels,
                   grad_weight, grad_bias, stream);
}

template <class Scalar, int Taps>
const char* launch_order(bool channels_inner, const Problem& p, int64_t parts, const void* grad_output,
                         const void* input, void* grad_weight, void* grad_bias, void* workspace,
                         void* stream) {
  return (channels_inner
              ? launch_depthwise_weight<SimtDepthwiseWeight<Scalar, Taps, true>>
              : launch_depthwise_weight<SimtDepthwiseWeight<Scalar, Taps, false>>)(p, parts, grad_output,
                                                                                   input, grad_weight,
                                                                                   grad_bias, workspace,
                                                                                   stream);
}

}  // namespace

const char* simt_depthwise_weight(const Problem& problem, const WeightPlan& plan, const void* grad_output,
                                  const void* input, void* grad_weight, void* grad_bias, void* workspace,
                                  void* stream) {
  return with_scalar(problem.type, [&](auto scalar) {
    using Scalar = decltype(scalar);
    if constexpr (depthwise_taps_exist(kScalarType<Scalar>, 7)) {
      if (plan.taps == 7) {
        return launch_order<Scalar, 7>(plan.channels_inner, problem, plan.parts, grad_output, input,
                                       grad_weight, grad_bias, workspace, stream);
      }
    }
    return launch_order<Scalar, 3>(plan.channels_inner, problem, plan.parts, grad_output, input, grad_weight,
                                   grad_bias, workspace, stream);
  });
}

}  // namespace acsconv
