// Launches the gradients of weight and bias on tensor cores (mma_backward_weight.cuh) as
// csrc/mma_weight_plan.h decides, and instantiates the kernel for every dtype, shape and way of copying.
#include "mma_backward_weight.cuh"

#include "machine.cuh"
#include "mma_backward_weight.h"
#include "mma_weight_parts.cuh"
#include "report.h"

namespace acsconv {
namespace {

bool are_multiples(const VolumeStrides& s, int64_t of) {
  return s.batch % of == 0 && s.axis[0] % of == 0 && s.axis[1] % of == 0 && s.axis[2] % of == 0;
}

// Whether cp.async can copy 8 input channels and 4 output channels at once.
bool can_copy(const Problem& p, const void* grad_output, const void* input) {
  const auto is_aligned = [](const void* pointer, uintptr_t to) {
    return reinterpret_cast<uintptr_t>(pointer) % to == 0;
  };
  return p.input.channel == 1 && p.output.channel == 1 && p.in_channels % 8 == 0 && p.out_channels % 4 == 0 &&
         are_multiples(p.input, 8) && are_multiples(p.output, 4) && is_aligned(input, 16) &&
         is_aligned(grad_output, 8);
}

template <class Scalar, int kShape, bool kAsync>
const char* launch_instance(const MmaWeightWork& work, const void* grad_output, const void* input,
                            void* stream) {
  using Config = MmaBackwardWeight<Scalar, kShape, kAsync>;
  return launch(mma_backward_weight_kernel<Config>,
                dim3(static_cast<unsigned>(work.parts * work.channel_blocks * work.units)),
                dim3(Config::kThreads), Config::kSharedBytes, stream, work,
                static_cast<const Scalar*>(grad_output), static_cast<const Scalar*>(input));
}

template <class Scalar, bool kAsync>
const char* launch_shape(int shape, const MmaWeightWork& work, const void* grad_output, const void* input,
                         void* stream) {
  static_assert(kMmaWeightShapeCount == 8);
  using Run = decltype(&launch_instance<Scalar, 0, kAsync>);
  constexpr Run kRun[] = {launch_instance<Scalar, 0, kAsync>, launch_instance<Scalar, 1, kAsync>,
                          launch_instance<Scalar, 2, kAsync>, launch_instance<Scalar, 3, kAsync>,
                          launch_instance<Scalar, 4, kAsync>, launch_instance<Scalar, 5, kAsync>,
                          launch_instance<Scalar, 6, kAsync>, launch_instance<Scalar, 7, kAsync>};
  return kRun[shape](work, grad_output, input, stream);
}

template <class Scalar>
const char* add_weight_parts(const MmaWeightWork& work, void* grad_weight, void* grad_bias, void* stream) {
  const auto blocks = static_cast<unsigned>(weight_blocks(work) + bias_blocks(work));
  if (blocks == 0) return nullptr;
  return launch(mma_add_parts_kernel<Scalar>, dim3(blocks), dim3(32 * kAddWarps),
                32 * kAddWarps * sizeof(float4), stream, work, static_cast<Scalar*>(grad_weight),
                static_cast<Scalar*>(grad_bias));
}

}  // namespace

size_t mma_backward_weight_workspace(const Problem& problem, bool soft) {
  return plan_mma_backward_weight(problem, soft, this_machine()).workspace_bytes;
}

const char* mma_backward_weight(const Problem& problem, bool soft, const void* grad_output, const void* input,
                                void* grad_weight, void* grad_bias, ScalarType gradient_type, void* workspace,
                                void* stream) {
  const MmaWeightPlan plan = plan_mma_backward_weight(problem, soft, this_machine());
  if (const char* reason = report_plan(plan.rejection, plan.describe())) return reason;
  if (plan.units * plan.channel_blocks == 0) return nullptr;
  float* sums = static_cast<float*>(workspace);
  const MmaWeightWork work{problem,
                           soft,
                           grad_weight != nullptr,
                           grad_bias != nullptr,
                           kMmaWeightShapes[plan.shape],
                           plan.units,
                           plan.channel_blocks,
                           plan.parts,
                           sums,
                           sums + plan.parts * plan.weight_sums};
  const bool copies = can_copy(problem, grad_output, input);
  const auto multiply = problem.type == ScalarType::Float16
                            ? (copies ? launch_shape<Float16, true> : launch_shape<Float16, false>)
                            : (copies ? launch_shape<BFloat16, true> : launch_shape<BFloat16, false>);
  if (const char* error = multiply(plan.shape, work, grad_output, input, stream)) return error;
  const auto add = gradient_type == ScalarType::Float32   ? add_weight_parts<float>
                   : gradient_type == ScalarType::Float16 ? add_weight_parts<Float16>
                                                          : add_weight_parts<BFloat16>;
  return add(work, grad_weight, grad_bias, stream);
}

}  // namespace acsconv
