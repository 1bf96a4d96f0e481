// Launches the gradients of weight and bias on tensor cores (mma_backward_weight.cuh) as
// csrc/mma_weight_plan.h decides, and adds their parts.
#include "mma_backward_weight.h"

#include "mma_weight_parts.cuh"

namespace acsconv {
namespace {

bool are_multiples(const VolumeStrides& s, int64_t of) {
  return s.batch % of == 0 && s.axis[0] % of == 0 && s.axis[1] % of == 0 && s.axis[2] % of == 0;
}

// Whether cp.async can copy 16 bytes of input channels and 4 output channels at once.
bool can_copy(const Problem& p, const void* grad_output, const void* input) {
  const auto is_aligned = [](const void* pointer, int64_t to) {
    return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(to) == 0;
  };
  const int64_t bytes = p.type == ScalarType::Float32 ? 4 : 2, channels = 16 / bytes;
  return p.input.channel == 1 && p.output.channel == 1 && p.in_channels % channels == 0 &&
         p.out_channels % kColumnAlignment == 0 && are_multiples(p.input, channels) &&
         are_multiples(p.output, kColumnAlignment) && is_aligned(input, 16) &&
         is_aligned(grad_output, kColumnAlignment * bytes);
}

template <class Scalar>
const char* add_weight_parts(const MmaWeightWork& work, void* grad_weight, void* grad_bias, void* stream) {
  const auto blocks = static_cast<unsigned>(weight_blocks(work) + bias_blocks(work));
  const auto groups = static_cast<unsigned>(work.groups);
  if (blocks == 0) return nullptr;
  return launch(mma_add_parts_kernel<Scalar>, dim3(blocks, groups), dim3(32 * kAddWarps),
                32 * kAddWarps * sizeof(float4), stream, work, static_cast<Scalar*>(grad_weight),
                static_cast<Scalar*>(grad_bias));
}

}  // namespace

const char* mma_backward_weight(const Problem& problem, const MmaWeightPlan& plan, bool soft,
                                const void* grad_output, const void* input, void* grad_weight,
                                void* grad_bias, ScalarType gradient_type, void* workspace, void* stream) {
  if (plan.units * plan.channel_blocks == 0) return nullptr;
  float* sums = static_cast<float*>(workspace);
  const Problem group = one_group(problem);
  MmaWeightWork work{group,
                     plan.groups,
                     soft,
                     grad_weight != nullptr,
                     grad_bias != nullptr,
                     kMmaWeightShapes[plan.shape],
                     /*first_unit=*/0,
                     plan.units_at_once,
                     plan.channel_blocks,
                     plan.parts,
                     sums,
                     sums + plan.parts * plan.weight_sums};
  const bool copies = can_copy(group, grad_output, input);
  const auto multiply = [&](auto scalar) {
    return launch_mma_backward_weight<decltype(scalar)>(plan.shape, copies,
                                                        {work, grad_output, input, stream});
  };
  const auto add = [&](auto scalar) {
    return add_weight_parts<decltype(scalar)>(work, grad_weight, grad_bias, stream);
  };
  for (; work.first_unit < plan.units; work.first_unit += work.units) {
    work.units = std::min(plan.units_at_once, plan.units - work.first_unit);
    if (const char* error = with_mma_scalar(problem.type, multiply)) return error;
    if (const char* error = with_mma_scalar(gradient_type, add)) return error;
  }
  return nullptr;
}

}  // namespace acsconv
