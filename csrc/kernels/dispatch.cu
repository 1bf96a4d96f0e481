// Chooses between the kernels on tensor cores and those on CUDA cores (dispatch.h).
#include "dispatch.h"

#include <cstdlib>
#include <string>

#include "../mma_tma_plan.h"
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

// An environment variable, empty where it is not set. Read in every call: tests compare values in one
// process.
std::string setting(const char* variable) {
  const char* const value = std::getenv(variable);
  return value == nullptr ? "" : value;
}
// Why a variable that is set is neither `one` nor `other`, or nothing.
std::string wrong_setting(const std::string& variable, const std::string& one, const std::string& other) {
  const std::string value = setting(variable.c_str());
  if (value.empty() || value == one || value == other) return {};
  return variable + ": expected '" + one + "' or '" + other + "', got '" + value + "'";
}

TensorCorePlan plan_on_tensor_cores(const Convolution& c) {
  const std::string wanted = setting("ACSCONV_FORWARD_WALK");
  const ForwardWalk walk = wanted == "shared" ? ForwardWalk::Shared
                           : wanted == "view" ? ForwardWalk::PerView
                                              : ForwardWalk::Cheaper;
  return plan_on_tensor_cores(c.problem, c.pass, c.soft, c.allow_tf32, this_machine(), walk);
}

MmaWeightPlan plan_on_tensor_cores(const WeightGradient& g) {
  return plan_mma_backward_weight(g.problem, g.soft, g.allow_tf32, this_machine());
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
  static thread_local std::string error;  // lives until the thread's next call
  error = wrong_setting("ACSCONV_FORWARD_WALK", "shared", "view");
  if (error.empty()) error = wrong_setting("ACSCONV_TMA", "0", "1");
  if (!error.empty()) return error.c_str();

  TensorCorePlan both = plan_on_tensor_cores(c);
  if (setting("ACSCONV_TMA") == "1" && !both.takes_shared()) {
    const std::string rejection = tma_rejection(c.problem, both.plan, source, this_machine());
    both.plan.tma = rejection.empty();
    if (!both.plan.tma) print_line("not by TMA: " + rejection);
  }
  print_plan(both);
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

bool writes_float32_gradient(const WeightGradient& g) { return plan_on_tensor_cores(g).rejection.empty(); }

size_t backward_weight_workspace(const WeightGradient& g) {
  const MmaWeightPlan plan = plan_on_tensor_cores(g);
  return plan.rejection.empty() ? plan.workspace_bytes : simt_backward_weight_workspace(g.problem, g.soft);
}

const char* backward_weight(const WeightGradient& g, const void* grad_output, const void* input,
                            void* grad_weight, void* grad_bias, void* workspace, void* stream) {
  const MmaWeightPlan plan = plan_on_tensor_cores(g);
  print_plan(plan);
  if (plan.rejection.empty()) {
    return mma_backward_weight(g.problem, plan, g.soft, grad_output, input, grad_weight, grad_bias,
                               g.gradient_type, workspace, stream);
  }
  return simt_backward_weight(g.problem, g.soft, grad_output, input, grad_weight, grad_bias, workspace,
                              stream);
}

}  // namespace acsconv
