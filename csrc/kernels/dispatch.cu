// Chooses between the kernels on tensor cores and those on CUDA cores (dispatch.h).
#include "dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <vector>

#include "../mma_tma_plan.h"
#include "machine.cuh"
#include "mma_backward_weight.h"
#include "mma_convolve.h"
#include "mma_resident_views.h"
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
  const auto read = [&s](const char* variable, const std::vector<std::string>& allowed) {
    const char* const set = std::getenv(variable);
    const std::string value = set == nullptr ? "" : set;
    if (s.mistake.empty() && !value.empty() && std::count(allowed.begin(), allowed.end(), value) == 0) {
      s.mistake = std::string(variable) + ": expected ";
      for (size_t i = 0; i < allowed.size(); ++i) {
        s.mistake += (i == 0 ? "'" : i + 1 < allowed.size() ? ", '" : " or '") + allowed[i] + "'";
      }
      s.mistake += ", got '" + value + "'";
    }
    return value;
  };
  const std::string walk = read("ACSCONV_FORWARD_WALK", {"shared", "view", "resident"});
  if (walk == "shared") s.walk = ForwardWalk::Shared;
  if (walk == "view") s.walk = ForwardWalk::PerView;
  if (walk == "resident") s.walk = ForwardWalk::Resident;
  s.tma = read("ACSCONV_TMA", {"0", "1"}) == "1";
  return s;
}
const Settings& settings() {
  static const Settings once = read_settings();
  return once;
}

bool takes(const TensorCorePlan& plan) { return plan.plan.rejection.empty(); }
bool takes(const MmaWeightPlan& plan) { return plan.rejection.empty(); }
size_t workspace_of(const TensorCorePlan& plan) { return plan.workspace_bytes(); }
size_t workspace_of(const MmaWeightPlan& plan) { return plan.workspace_bytes; }

// A launch for every run of groups. Tensor cores take all of them or none: then the refused one stands alone.
template <class Plan>
struct Runs {
  std::vector<GroupRun> runs;
  std::vector<Plan> plans;

  bool taken() const { return takes(plans.front()); }
  size_t workspace_bytes() const {  // which the runs use one after the other
    size_t most = 0;
    for (const Plan& plan : plans) most = std::max(most, workspace_of(plan));
    return most;
  }
};
template <class MakePlan>
auto plan_runs(const Problem& p, bool soft, const MakePlan& make_plan) {
  using Plan = decltype(make_plan(p));
  Runs<Plan> all{group_runs(p, soft), {}};
  for (const GroupRun& run : all.runs) {
    Plan plan = make_plan(run.problem);
    if (!takes(plan)) return Runs<Plan>{{run}, {plan}};
    all.plans.push_back(plan);
  }
  return all;
}

Runs<TensorCorePlan> plan_on_tensor_cores(const Convolution& c) {
  return plan_runs(c.problem, c.soft, [&](const Problem& run) {
    return plan_on_tensor_cores(run, c.pass, c.soft, c.allow_tf32, this_machine(), settings().walk);
  });
}
Runs<MmaWeightPlan> plan_on_tensor_cores(const WeightGradient& g) {
  return plan_runs(g.problem, g.soft, [&](const Problem& run) {
    return plan_mma_backward_weight(run, g.soft, g.allow_tf32, this_machine());
  });
}

// `elements` further on in a tensor, if there is one.
template <class Pointer>
Pointer* ahead(Pointer* tensor, int64_t elements, ScalarType type) {
  const int64_t bytes = type == ScalarType::Float64 ? 8 : type == ScalarType::Float32 ? 4 : 2;
  using Byte = std::conditional_t<std::is_const_v<Pointer>, const unsigned char, unsigned char>;
  return tensor == nullptr ? nullptr : static_cast<Byte*>(tensor) + elements * bytes;
}
// Elements of the weight up to a run.
int64_t weights_before(const GroupRun& run) {
  const Problem& p = run.problem;
  return run.first_output * (p.in_channels / p.groups) * p.kernel_h * p.kernel_w;
}

const char* convolve_run(const Convolution& c, const GroupRun& run, TensorCorePlan both, const void* source,
                         const void* weight, const void* bias, void* result, void* workspace, void* stream) {
  const Problem& p = run.problem;
  const int64_t input = run.first_input * p.input.channel, output = run.first_output * p.output.channel;
  const bool forward = c.pass == Pass::Forward;
  source = ahead(source, forward ? input : output, p.type);
  result = ahead(result, forward ? output : input, p.type);
  weight = ahead(weight, weights_before(run), c.weight_type);
  bias = ahead(bias, run.first_output, c.weight_type);
  if (settings().tma && !both.takes_shared() && !both.takes_resident()) {
    const std::string rejection = tma_rejection(p, both.plan, c.pass, source, this_machine());
    both.plan.tma = rejection.empty();
    if (!both.plan.tma) print_line("not by TMA: " + rejection);
  }
  print_plan(both);
  if (both.takes_resident()) {
    return mma_resident_views(p, both.resident, source, weight, bias, c.weight_type, result, workspace,
                              stream);
  }
  if (both.takes_shared()) {
    return mma_shared_walk(p, both.shared, source, weight, bias, c.weight_type, result, workspace, stream);
  }
  return mma_convolve(p, both.plan, c.pass, c.soft, source, weight, bias, c.weight_type, result, workspace,
                      stream);
}

}  // namespace

bool takes_float32_weight(const Convolution& c) { return plan_on_tensor_cores(c).taken(); }

size_t convolve_workspace(const Convolution& c) {
  const Runs<TensorCorePlan> all = plan_on_tensor_cores(c);
  if (all.taken()) return all.workspace_bytes();
  return c.soft ? simt_soft_workspace(c.problem, c.pass) : 0;
}

const char* convolve(const Convolution& c, const void* source, const void* weight, const void* bias,
                     void* result, void* workspace, void* stream) {
  if (!settings().mistake.empty()) return settings().mistake.c_str();

  const Runs<TensorCorePlan> all = plan_on_tensor_cores(c);
  if (all.taken()) {
    const char* error = nullptr;
    for (size_t i = 0; i < all.runs.size() && error == nullptr; ++i) {
      error = convolve_run(c, all.runs[i], all.plans[i], source, weight, bias, result, workspace, stream);
    }
    return error;
  }
  print_plan(all.plans.front());
  if (c.pass == Pass::Forward) {
    return c.soft ? simt_soft_forward(c.problem, source, weight, bias, result, workspace, stream)
                  : simt_forward(c.problem, source, weight, bias, result, stream);
  }
  return c.soft ? simt_soft_backward_input(c.problem, source, weight, result, workspace, stream)
                : simt_backward_input(c.problem, source, weight, result, stream);
}

bool writes_float32_gradient(const WeightGradient& g) { return plan_on_tensor_cores(g).taken(); }

size_t backward_weight_workspace(const WeightGradient& g) {
  const Runs<MmaWeightPlan> all = plan_on_tensor_cores(g);
  return all.taken() ? all.workspace_bytes() : simt_backward_weight_workspace(g.problem, g.soft);
}

const char* backward_weight(const WeightGradient& g, const void* grad_output, const void* input,
                            void* grad_weight, void* grad_bias, void* workspace, void* stream) {
  if (!settings().mistake.empty()) return settings().mistake.c_str();

  const Runs<MmaWeightPlan> all = plan_on_tensor_cores(g);
  if (!all.taken()) {
    print_plan(all.plans.front());
    return simt_backward_weight(g.problem, g.soft, grad_output, input, grad_weight, grad_bias, workspace,
                                stream);
  }
  for (size_t i = 0; i < all.runs.size(); ++i) {
    const GroupRun& run = all.runs[i];
    const Problem& p = run.problem;
    print_plan(all.plans[i]);
    const char* error = mma_backward_weight(
        p, all.plans[i], g.soft, ahead(grad_output, run.first_output * p.output.channel, p.type),
        ahead(input, run.first_input * p.input.channel, p.type),
        ahead(grad_weight, weights_before(run), g.gradient_type),
        ahead(grad_bias, run.first_output, g.gradient_type), g.gradient_type, workspace, stream);
    if (error != nullptr) return error;
  }
  return nullptr;
}

}  // namespace acsconv
