// Chooses between the kernels on tensor cores and those on CUDA cores (dispatch.h).
#include "dispatch.h"

#include "../mma_weight_plan.h"
#include "machine.cuh"
#include "mma_backward_weight.h"
#include "mma_convolve.h"
#include "report.h"
#include "simt_backward_input.h"
#include "simt_backward_weight.h"
#include "simt_forward.h"

namespace acsconv {
namespace {

MmaPlan plan_on_tensor_cores(const Convolution& c) {
  return plan_mma(c.problem, c.pass, c.soft, c.allow_tf32, this_machine());
}

}  // namespace

bool takes_float32_weight(const Convolution& c) { return plan_on_tensor_cores(c).rejection.empty(); }

size_t convolve_workspace(const Convolution& c) {
  const MmaPlan plan = plan_on_tensor_cores(c);
  if (plan.rejection.empty()) return plan.workspace_bytes();
  return c.soft ? simt_soft_workspace(c.problem, c.pass) : 0;
}

const char* convolve(const Convolution& c, const void* source, const void* weight, const void* bias,
                     void* result, void* workspace, void* stream) {
  const MmaPlan plan = plan_on_tensor_cores(c);
  report_plan("", plan.describe());
  if (plan.rejection.empty()) {
    return mma_convolve(c.problem, plan, c.pass, c.soft, source, weight, bias, c.weight_type, result,
                        workspace, stream);
  }
  if (c.pass == Pass::Forward) {
    return c.soft ? simt_soft_forward(c.problem, source, weight, bias, result, workspace, stream)
                  : simt_forward(c.problem, source, weight, bias, result, stream);
  }
  return c.soft ? simt_soft_backward_input(c.problem, source, weight, result, workspace, stream)
                : simt_backward_input(c.problem, source, weight, result, stream);
}

size_t backward_weight_workspace(const Problem& problem, bool soft) {
  const MmaWeightPlan plan = plan_mma_backward_weight(problem, soft, this_machine());
  return plan.rejection.empty() ? plan.workspace_bytes : simt_backward_weight_workspace(problem, soft);
}

const char* backward_weight(const Problem& problem, bool soft, const void* grad_output, const void* input,
                            void* grad_weight, void* grad_bias, void* workspace, void* stream) {
  const MmaWeightPlan plan = plan_mma_backward_weight(problem, soft, this_machine());
  if (plan.rejection.empty()) {
    return mma_backward_weight(problem, soft, grad_output, input, grad_weight, grad_bias, problem.type,
                               workspace, stream);
  }
  report_plan("", plan.describe());
  return simt_backward_weight(problem, soft, grad_output, input, grad_weight, grad_bias, workspace, stream);
}

}  // namespace acsconv
