// Chooses between the kernels on tensor cores and those on CUDA cores (dispatch.h).
#include "dispatch.h"

#include <cstdlib>
#include <cstring>

#include "../mma_tma_plan.h"
#include "../mma_weight_plan.h"
#include "machine.cuh"
#include "mma_backward_weight.h"
#include "mma_convolve.h"
#include "mma_shared_walk.h"
#include "report.h"
#include "simt_backward_input.h"
#include "simt_backward_weight.h"
#include "simt_forward.h"

namespace acsconv {
namespace {

TensorCorePlan plan_on_tensor_cores(const Convolution& c) {
  static const char* const wanted = std::getenv("ACSCONV_FORWARD_WALK");
  static const ForwardWalk walk = wanted == nullptr                    ? ForwardWalk::Cheaper
                                  : std::strcmp(wanted, "shared") == 0 ? ForwardWalk::Shared
                                  : std::strcmp(wanted, "view") == 0   ? ForwardWalk::PerView
                                                                       : ForwardWalk::Cheaper;
  return plan_on_tensor_cores(c.problem, c.pass, c.soft, c.allow_tf32, this_machine(), walk);
}

// Read in every call: tests compare both ways in one process.
bool tma_is_wanted() {
  const char* const wanted = std::getenv("ACSCONV_TMA");
  return wanted != nullptr && std::strcmp(wanted, "1") == 0;
}

}  // namespace

bool takes_float32_weight(const Convolution& c) { return plan_on_tensor_cores(c).plan.rejection.empty(); }

size_t convolve_workspace(const Convolution& c) {
  const TensorCorePlan both = plan_on_tensor_cores(c);
  if (both.plan.rejection.empty()) return both.workspace_bytes();
  return c.soft ? simt_soft_workspace(c.problem, c.pass) : 0;
}

const char* convolve(const Convolution& c, const void* source, const void* weight, const void* bias,
                     void* result, void* workspace, void* stream) {
  TensorCorePlan both = plan_on_tensor_cores(c);
  if (tma_is_wanted() && !both.takes_shared()) {
    const std::string rejection = tma_rejection(c.problem, both.plan, source, this_machine());
    both.plan.tma = rejection.empty();
    if (!both.plan.tma) report_plan("", "not by TMA: " + rejection);
  }
  report_plan("", both.describe());
  if (both.takes_shared()) {
    return mma_shared_walk(c.problem, both.shared, source, weight, bias, c.weight_type, result, workspace,
                           stream);
  }
  if (both.plan.rejection.empty()) {
    return mma_convolve(c.problem, both.plan, c.pass, c.soft, source, weight, bias, c.weight_type, result,
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
