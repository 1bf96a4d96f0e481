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

// What the environment says. Read once, so that a workspace and the kernel that is given it follow the same
// plan.
struct Settings {
  ForwardWalk walk = ForwardWalk::Cheaper;
  bool tma = false;
  std::string mistake;  // the first wrong variable; empty: none
};
Settings read_settings() {
  Settings s;
  const auto read = [&s](const char* variable, const std::string& one, const std::string& other) {
    const char* const set = std::getenv(variable);
    const std::string value = set == nullptr ? "" : set;
    if (s.mistake.empty() && !value.empty() && value != one && value != other) {
      s.mistake = std::string(variable) + ": expected '" + one + "' or '" + other + "', got '" + value + "'";
    }
    return value;
  };
  const std::string walk = read("ACSCONV_FORWARD_WALK", "shared", "view");
  if (walk == "shared") s.walk = ForwardWalk::Shared;
  if (walk == "view") s.walk = ForwardWalk::PerView;
  s.tma = read("ACSCONV_TMA", "0", "1") == "1";
  return s;
}
const Settings& settings() {
  static const Settings once = read_settings();
  return once;
}

TensorCorePlan plan_on_tensor_cores(const Convolution& c) {
  return plan_on_tensor_cores(c.problem, c.pass, c.soft, c.allow_tf32, this_machine(), settings().walk);
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
  if (!settings().mistake.empty()) return settings().mistake.c_str();

  TensorCorePlan both = plan_on_tensor_cores(c);
  if (settings().tma && !both.takes_shared()) {
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
  if (!settings().mistake.empty()) return settings().mistake.c_str();

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
