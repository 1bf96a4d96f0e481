// Launches the gradients of weight and bias (simt_backward_weight.cuh) as csrc/plan.h decides, and
// instantiates the kernel for every dtype, tile and memory order.
#include "simt_backward_weight.cuh"

#include <algorithm>

#include "add_parts.h"
#include "report.h"
#include "simt_backward_weight.h"
#include "simt_depthwise_weight.h"

namespace acsconv {
namespace {

template <class Config>
const char* launch_backward_weight(WeightWork work, const void* grad_output, const void* input,
                                   void* grad_weight, void* grad_bias, void* workspace, void* stream) {
  using Scalar = typename Config::Scalar;
  using Sum = typename Config::Sum;
  const Problem& p = work.problem;
  work.item_tiles = channel_tile_count(p, Config::kItems);
  work.column_tiles = ceil_div(all_columns(work), Config::kColumns);
  const int64_t tiles = work.item_tiles * work.column_tiles * work.parts * (work.soft ? kViews : 1);
  if (tiles == 0) return nullptr;
  Sum* sums = work.parts > 1 ? static_cast<Sum*>(workspace) : nullptr;
  const char* error = launch(simt_backward_weight_kernel<Config>, dim3(grid_size(tiles)),
                             dim3(Config::kThreads), Config::kSharedBytes, stream, work, tiles,
                             static_cast<const Scalar*>(grad_output), static_cast<const Scalar*>(input),
                             static_cast<Scalar*>(grad_weight), static_cast<Scalar*>(grad_bias), sums);
  if (error != nullptr || sums == nullptr) return error;
  return add_parts(
      p.type, {sums, work.parts, (work.soft ? kViews : 1) * p.out_channels, weight_columns(work), work.bias},
      p.out_channels, grad_weight, grad_bias, stream);
}

template <class Scalar, int Warps, bool Narrow>
const char* launch_shape(const WeightPlan& plan, const WeightWork& work, const void* grad_output,
                         const void* input, void* grad_weight, void* grad_bias, void* workspace,
                         void* stream) {
  if constexpr (weight_tile_exists(kScalarType<Scalar>, Warps, Narrow)) {
    return (
        plan.channels_inner
            ? launch_backward_weight<SimtBackwardWeight<Scalar, Warps, Narrow, true>>
            : launch_backward_weight<SimtBackwardWeight<Scalar, Warps, Narrow, false>>)(work, grad_output,
                                                                                        input, grad_weight,
                                                                                        grad_bias, workspace,
                                                                                        stream);
  } else {
    return "the plan names a tile that does not exist";
  }
}

}  // namespace

size_t simt_backward_weight_workspace(const Problem& problem, bool soft) {
  return plan_backward_weight(problem, soft, Machine{multiprocessors()}).workspace_bytes;
}

const char* simt_backward_weight(const Problem& problem, bool soft, const void* grad_output,
                                 const void* input, void* grad_weight, void* grad_bias, void* workspace,
                                 void* stream) {
  const WeightPlan plan = plan_backward_weight(problem, soft, Machine{multiprocessors()});
  if (const char* reason = report_plan(plan)) return reason;
  if (plan.not_depthwise.empty()) {
    return simt_depthwise_weight(problem, plan, grad_output, input, grad_weight, grad_bias, workspace,
                                 stream);
  }
  WeightWork work{problem, soft,       grad_weight != nullptr, grad_bias != nullptr, 0,
                  0,       plan.parts, plan.part_voxels};
  if (soft) {
    work.problem.split[0] = problem.out_channels;
    work.problem.split[1] = work.problem.split[2] = 0;
  }
  return with_scalar(problem.type, [&](auto scalar) {
    using Scalar = decltype(scalar);
    const auto run = plan.narrow       ? plan.warps == 1   ? launch_shape<Scalar, 1, true>
                                         : plan.warps == 2 ? launch_shape<Scalar, 2, true>
                                                           : launch_shape<Scalar, 4, true>
                     : plan.warps == 1 ? launch_shape<Scalar, 1, false>
                     : plan.warps == 2 ? launch_shape<Scalar, 2, false>
                     : plan.warps == 4 ? launch_shape<Scalar, 4, false>
                                       : launch_shape<Scalar, 8, false>;
    return run(plan, work, grad_output, input, grad_weight, grad_bias, workspace, stream);
  });
}

}  // namespace acsconv
