// Python module `acsconv_emulator`: runs the project's launchers on numpy arrays through the emulator.
//
// run(launcher, problem, tensors) copies the arrays into device buffers of exactly the bytes they span, calls
// the launcher of csrc/kernels, and copies every writable array back. A Problem is a dict with the field
// names of csrc/problem.h; strides are given in elements. bfloat16 travels as uint16.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>

#include "../kernels/dispatch.h"
#include "../kernels/machine.cuh"
#include "../kernels/mma_backward_weight.h"
#include "../kernels/mma_convolve.h"
#include "../kernels/mma_resident_views.h"
#include "../kernels/mma_shared_walk.h"
#include "../kernels/simt_backward_input.h"
#include "../kernels/simt_backward_weight.h"
#include "../kernels/simt_forward.h"
#include "../mma_tma_plan.h"
#include "../plan.h"
#include "banks.h"
#include "cuda.h"

namespace py = pybind11;

namespace {

using acsconv::Problem;
using acsconv::VolumeStrides;
using Triple = std::array<int64_t, 3>;

acsconv::ScalarType scalar_type(const std::string& name) {
  static const std::map<std::string, acsconv::ScalarType> types = {
      {"float64", acsconv::ScalarType::Float64},
      {"float32", acsconv::ScalarType::Float32},
      {"float16", acsconv::ScalarType::Float16},
      {"bfloat16", acsconv::ScalarType::BFloat16}};
  return types.at(name);
}

void read_triple(const py::dict& fields, const char* name, int64_t (&to)[3]) {
  const auto values = fields[name].cast<Triple>();
  std::copy(values.begin(), values.end(), to);
}

VolumeStrides read_strides(const py::dict& fields, const char* name) {
  const auto values = fields[name].cast<std::array<int64_t, 5>>();
  return {values[0], values[1], {values[2], values[3], values[4]}};
}

Problem read_problem(const py::dict& fields) {
  Problem p{};
  p.type = scalar_type(fields["type"].cast<std::string>());
  p.batch = fields["batch"].cast<int64_t>();
  p.in_channels = fields["in_channels"].cast<int64_t>();
  p.out_channels = fields["out_channels"].cast<int64_t>();
  p.groups = fields["groups"].cast<int64_t>();
  p.kernel_h = fields["kernel_h"].cast<int64_t>();
  p.kernel_w = fields["kernel_w"].cast<int64_t>();
  read_triple(fields, "in_size", p.in_size);
  read_triple(fields, "out_size", p.out_size);
  read_triple(fields, "split", p.split);
  read_triple(fields, "stride", p.stride);
  const auto origin = fields["origin"].cast<std::array<Triple, 3>>();
  const auto dilation = fields["dilation"].cast<std::array<Triple, 3>>();
  for (int view = 0; view < 3; ++view) {
    std::copy(origin[view].begin(), origin[view].end(), p.origin[view]);
    std::copy(dilation[view].begin(), dilation[view].end(), p.dilation[view]);
  }
  p.input = read_strides(fields, "input_strides");
  p.output = read_strides(fields, "output_strides");
  return p;
}

// A device buffer that holds the bytes an array spans, gaps of a strided view included, as far from a
// multiple of 16 bytes as the array. Null for None.
class DeviceTensor {
 public:
  explicit DeviceTensor(const py::object& object) {
    if (object.is_none()) return;
    array_ = object.cast<py::array>();
    bytes_ = array_.size() == 0 ? 0 : static_cast<size_t>(array_.itemsize());
    for (py::ssize_t axis = 0; axis < array_.ndim() && bytes_ > 0; ++axis) {
      if (array_.strides(axis) < 0) throw std::invalid_argument("negative strides are not supported");
      bytes_ += static_cast<size_t>((array_.shape(axis) - 1) * array_.strides(axis));
    }
    const size_t offset = reinterpret_cast<uintptr_t>(array_.data()) % 16;
    buffer_ = emulator::allocate_device(offset + bytes_);
    data_ = static_cast<unsigned char*>(buffer_) + offset;
    if (bytes_ > 0) std::memcpy(data_, array_.data(), bytes_);
  }
  DeviceTensor(const DeviceTensor&) = delete;
  ~DeviceTensor() { emulator::release_device(buffer_); }

  void copy_back() {
    if (bytes_ > 0 && array_.writeable()) std::memcpy(array_.mutable_data(), data_, bytes_);
  }
  void* data() const { return data_; }

 private:
  py::array array_;
  size_t bytes_ = 0;
  void *buffer_ = nullptr, *data_ = nullptr;
};

// Text that lives until the next refusal.
const char* refusal(const std::string& rejection) {
  static std::string reason;
  reason = rejection;
  return reason.c_str();
}

// The gradient of the weight on tensor cores, float32 as TF32.
const char* mma_backward_weight(const Problem& p, bool soft, acsconv::ScalarType gradient_type,
                                const std::vector<void*>& t) {
  const acsconv::MmaWeightPlan plan =
      acsconv::plan_mma_backward_weight(p, soft, /*allow_tf32=*/true, acsconv::this_machine());
  if (!plan.rejection.empty()) return refusal(plan.rejection);
  void* workspace = emulator::allocate_device(plan.workspace_bytes);
  const char* error = acsconv::mma_backward_weight(p, plan, soft, t.at(0), t.at(1), t.at(2), t.at(3),
                                                   gradient_type, workspace, nullptr);
  emulator::release_device(workspace);
  return error;
}

const char* backward_weight(const Problem& p, bool soft, const std::vector<void*>& t) {
  const size_t bytes = acsconv::simt_backward_weight_workspace(p, soft);
  void* workspace = bytes > 0 ? emulator::allocate_device(bytes) : nullptr;
  const char* error =
      acsconv::simt_backward_weight(p, soft, t.at(0), t.at(1), t.at(2), t.at(3), workspace, nullptr);
  emulator::release_device(workspace);
  return error;
}

// Calls function(workspace) for a pass of Soft ACS.
template <class Function>
const char* with_soft_workspace(const Problem& p, acsconv::Pass pass, Function&& function) {
  const size_t bytes = acsconv::simt_soft_workspace(p, pass);
  void* workspace = bytes > 0 ? emulator::allocate_device(bytes) : nullptr;
  const char* error = function(workspace);
  emulator::release_device(workspace);
  return error;
}

// The tensor-core kernels, float32 as TF32; tensors as those of the simt launchers, but for a weight and bias
// in float32 with `kWide`.
template <acsconv::Pass kPass, bool kSoft, bool kWide, bool kTma = false>
const char* mma(const Problem& p, const std::vector<void*>& t) {
  const acsconv::Machine machine = acsconv::this_machine();
  acsconv::MmaPlan plan = acsconv::plan_mma(p, kPass, kSoft, /*allow_tf32=*/true, machine);
  plan.tma = kTma;
  const std::string rejection =
      kTma ? acsconv::tma_rejection(p, plan, kPass, t.at(0), machine) : plan.rejection;
  if (!rejection.empty()) return refusal(rejection);
  void* workspace = emulator::allocate_device(plan.workspace_bytes());
  const bool forward = kPass == acsconv::Pass::Forward;
  const char* error = acsconv::mma_convolve(
      p, plan, kPass, kSoft, t.at(0), t.at(1), forward ? t.at(2) : nullptr,
      kWide ? acsconv::ScalarType::Float32 : p.type, t.at(forward ? 3 : 2), workspace, nullptr);
  emulator::release_device(workspace);
  return error;
}

// The forward pass on tensor cores with resident weights: the walk shared by the views, or one view per warp.
template <acsconv::ForwardWalk kWalk, bool kWide>
const char* resident_weights(const Problem& p, const std::vector<void*>& t) {
  constexpr bool kShared = kWalk == acsconv::ForwardWalk::Shared;
  const acsconv::TensorCorePlan both = acsconv::plan_on_tensor_cores(
      p, acsconv::Pass::Forward, /*soft=*/false, /*allow_tf32=*/true, acsconv::this_machine(), kWalk);
  if (kShared && !both.takes_shared()) return refusal(both.shared.rejection);
  if (!kShared && !both.takes_resident()) return refusal(both.resident.rejection);
  void* workspace = emulator::allocate_device(both.workspace_bytes());
  const acsconv::ScalarType type = kWide ? acsconv::ScalarType::Float32 : p.type;
  const char* error = kShared ? acsconv::mma_shared_walk(p, both.shared, t.at(0), t.at(1), t.at(2), type,
                                                         t.at(3), workspace, nullptr)
                              : acsconv::mma_resident_views(p, both.resident, t.at(0), t.at(1), t.at(2), type,
                                                            t.at(3), workspace, nullptr);
  emulator::release_device(workspace);
  return error;
}

// A pass by the kernel that the dispatcher chooses, float32 as TF32; kWide: weight and bias, or their
// gradients, in float32.
template <acsconv::Pass kPass, bool kSoft, bool kWide = false>
const char* dispatched(const Problem& p, const std::vector<void*>& t) {
  const acsconv::Convolution c{p, kPass, kSoft, /*allow_tf32=*/true,
                               kWide ? acsconv::ScalarType::Float32 : p.type};
  const size_t bytes = acsconv::convolve_workspace(c);
  void* workspace = bytes > 0 ? emulator::allocate_device(bytes) : nullptr;
  const bool forward = kPass == acsconv::Pass::Forward;
  const char* error = acsconv::convolve(c, t.at(0), t.at(1), forward ? t.at(2) : nullptr,
                                        t.at(forward ? 3 : 2), workspace, nullptr);
  emulator::release_device(workspace);
  return error;
}
template <bool kSoft, bool kWide = false>
const char* dispatched_weight(const Problem& p, const std::vector<void*>& t) {
  const acsconv::WeightGradient g{p, kSoft, /*allow_tf32=*/true,
                                  kWide ? acsconv::ScalarType::Float32 : p.type};
  const size_t bytes = acsconv::backward_weight_workspace(g);
  void* workspace = bytes > 0 ? emulator::allocate_device(bytes) : nullptr;
  const char* error = acsconv::backward_weight(g, t.at(0), t.at(1), t.at(2), t.at(3), workspace, nullptr);
  emulator::release_device(workspace);
  return error;
}

using Launcher = const char* (*)(const Problem&, const std::vector<void*>&);

const std::map<std::string, Launcher>& launchers() {
  static const std::map<std::string, Launcher> table = {
      {"forward", dispatched<acsconv::Pass::Forward, false>},  // input, weight, bias, output
      {"forward_float32_weight", dispatched<acsconv::Pass::Forward, false, true>},
      {"soft_forward", dispatched<acsconv::Pass::Forward, true>},
      {"backward_input", dispatched<acsconv::Pass::BackwardInput, false>},  // grad_output, weight, grad_input
      {"soft_backward_input", dispatched<acsconv::Pass::BackwardInput, true>},
      {"backward_weight", dispatched_weight<false>},  // as simt_backward_weight
      {"backward_weight_float32", dispatched_weight<false, true>},
      {"soft_backward_weight", dispatched_weight<true>},
      {"simt_forward",  // as forward
       [](const Problem& p, const std::vector<void*>& t) {
         return acsconv::simt_forward(p, t.at(0), t.at(1), t.at(2), t.at(3), nullptr);
       }},
      {"simt_soft_forward",  // input, kernels, bias, output
       [](const Problem& p, const std::vector<void*>& t) {
         return with_soft_workspace(p, acsconv::Pass::Forward, [&](void* workspace) {
           return acsconv::simt_soft_forward(p, t.at(0), t.at(1), t.at(2), t.at(3), workspace, nullptr);
         });
       }},
      {"simt_backward_input",  // grad_output, weight, grad_input
       [](const Problem& p, const std::vector<void*>& t) {
         return acsconv::simt_backward_input(p, t.at(0), t.at(1), t.at(2), nullptr);
       }},
      {"simt_soft_backward_input",  // grad_output, kernels, grad_input
       [](const Problem& p, const std::vector<void*>& t) {
         return with_soft_workspace(p, acsconv::Pass::BackwardInput, [&](void* workspace) {
           return acsconv::simt_soft_backward_input(p, t.at(0), t.at(1), t.at(2), workspace, nullptr);
         });
       }},
      {"mma_forward", mma<acsconv::Pass::Forward, false, false>},
      {"mma_tma_forward", mma<acsconv::Pass::Forward, false, false, /*kTma=*/true>},
      {"mma_forward_float32_weight", mma<acsconv::Pass::Forward, false, true>},
      {"mma_shared_walk", resident_weights<acsconv::ForwardWalk::Shared, false>},
      {"mma_shared_walk_float32_weight", resident_weights<acsconv::ForwardWalk::Shared, true>},
      {"mma_resident_views", resident_weights<acsconv::ForwardWalk::Resident, false>},
      {"mma_resident_views_float32_weight", resident_weights<acsconv::ForwardWalk::Resident, true>},
      {"mma_soft_forward", mma<acsconv::Pass::Forward, true, false>},
      {"mma_tma_soft_forward", mma<acsconv::Pass::Forward, true, false, /*kTma=*/true>},
      {"mma_backward_input", mma<acsconv::Pass::BackwardInput, false, false>},
      {"mma_tma_backward_input", mma<acsconv::Pass::BackwardInput, false, false, /*kTma=*/true>},
      {"mma_backward_input_float32_weight", mma<acsconv::Pass::BackwardInput, false, true>},
      {"mma_soft_backward_input", mma<acsconv::Pass::BackwardInput, true, false>},
      {"mma_tma_soft_backward_input", mma<acsconv::Pass::BackwardInput, true, false, /*kTma=*/true>},
      {"simt_backward_weight",  // grad_output, input, grad_weight, grad_bias
       [](const Problem& p, const std::vector<void*>& t) { return backward_weight(p, false, t); }},
      {"simt_soft_backward_weight",  // grad_output, input, gradient of the kernels, grad_bias
       [](const Problem& p, const std::vector<void*>& t) { return backward_weight(p, true, t); }},
      {"mma_backward_weight",  // as simt_backward_weight
       [](const Problem& p, const std::vector<void*>& t) {
         return mma_backward_weight(p, false, p.type, t);
       }},
      {"mma_backward_weight_float32",  // float32 gradients of 16-bit tensors
       [](const Problem& p, const std::vector<void*>& t) {
         return mma_backward_weight(p, false, acsconv::ScalarType::Float32, t);
       }},
      {"mma_soft_backward_weight",
       [](const Problem& p, const std::vector<void*>& t) { return mma_backward_weight(p, true, p.type, t); }},
  };
  return table;
}

void run(const std::string& launcher, const py::dict& problem, const std::vector<py::object>& tensors) {
  const Problem p = read_problem(problem);
  std::vector<std::unique_ptr<DeviceTensor>> buffers;
  std::vector<void*> pointers;
  for (const py::object& tensor : tensors) {
    buffers.push_back(std::make_unique<DeviceTensor>(tensor));
    pointers.push_back(buffers.back()->data());
  }
  if (const char* error = launchers().at(launcher)(p, pointers)) throw std::runtime_error(error);
  for (const auto& buffer : buffers) buffer->copy_back();
}

// The plan for a pass on a machine with this many multiprocessors, otherwise as configured: its description,
// and its workspace in bytes; of kernels on tensor cores a line for every run of groups.
std::pair<std::string, size_t> plan(const std::string& pass, const py::dict& problem, bool soft,
                                    int multiprocessors, bool allow_tf32) {
  const Problem p = read_problem(problem);
  const acsconv::Machine machine{multiprocessors, emulator::options.compute_capability,
                                 emulator::options.block_shared_bytes};
  std::pair<std::string, size_t> all;
  const auto add = [&all](const auto& plan, size_t workspace_bytes) {
    all.first += (all.first.empty() ? "" : "\n") + plan.describe();
    all.second = std::max(all.second, plan.rejection.empty() ? workspace_bytes : 0);
  };
  if (pass == "mma_forward" || pass == "mma_backward_input") {
    const auto which = pass == "mma_forward" ? acsconv::Pass::Forward : acsconv::Pass::BackwardInput;
    for (const acsconv::GroupRun& run : acsconv::group_runs(p, soft)) {
      const acsconv::MmaPlan plan = acsconv::plan_mma(run.problem, which, soft, allow_tf32, machine);
      add(plan, plan.workspace_bytes());
    }
    return all;
  }
  if (pass == "mma_shared_walk" || pass == "mma_resident_views" || pass == "tensor_cores") {
    const auto wanted = pass == "tensor_cores"      ? acsconv::ForwardWalk::Cheaper
                        : pass == "mma_shared_walk" ? acsconv::ForwardWalk::Shared
                                                    : acsconv::ForwardWalk::Resident;
    const acsconv::TensorCorePlan both =
        acsconv::plan_on_tensor_cores(p, acsconv::Pass::Forward, soft, allow_tf32, machine, wanted);
    return {both.describe(), both.workspace_bytes()};
  }
  if (pass == "mma_backward_weight") {
    for (const acsconv::GroupRun& run : acsconv::group_runs(p, soft)) {
      const acsconv::MmaWeightPlan plan =
          acsconv::plan_mma_backward_weight(run.problem, soft, allow_tf32, machine);
      add(plan, plan.workspace_bytes);
    }
    return all;
  }
  if (pass == "backward_weight") {
    const acsconv::WeightPlan plan = acsconv::plan_backward_weight(p, soft, machine);
    return {plan.describe(), plan.workspace_bytes};
  }
  const auto which = pass == "forward" ? acsconv::Pass::Forward : acsconv::Pass::BackwardInput;
  const acsconv::GatherPlan plan = acsconv::plan_gather(p, which, soft, machine);
  return {plan.describe(), plan.workspace_bytes};
}

void configure(const std::string& schedule, uint64_t seed, bool detect_races, const std::string& async_copies,
               int multiprocessors, int compute_capability, size_t block_shared_bytes, bool count_banks) {
  static const std::map<std::string, emulator::Schedule> schedules = {
      {"warp-first", emulator::Schedule::WarpFirst},
      {"round-robin", emulator::Schedule::RoundRobin},
      {"reverse", emulator::Schedule::Reverse},
      {"random", emulator::Schedule::Random}};
  static const std::map<std::string, emulator::AsyncCopies> moments = {
      {"late", emulator::AsyncCopies::Late},
      {"early", emulator::AsyncCopies::Early},
      {"random", emulator::AsyncCopies::Random}};
  emulator::options = {schedules.at(schedule),
                       seed,
                       detect_races,
                       moments.at(async_copies),
                       count_banks,
                       multiprocessors,
                       compute_capability,
                       block_shared_bytes};
}

}  // namespace

PYBIND11_MODULE(acsconv_emulator, module) {
  module.doc() = "Runs the CUDA kernels of csrc/kernels on the CPU.";
  module.def("run", &run, py::arg("launcher"), py::arg("problem"), py::arg("tensors"),
             "Runs a launcher on numpy arrays; RuntimeError with the emulator's report if the launch fails.");
  module.def("plan", &plan, py::arg("pass"), py::arg("problem"), py::arg("soft") = false,
             py::arg("multiprocessors") = 132, py::arg("allow_tf32") = true,
             "The plan of csrc/plan.h: its description and its workspace in bytes.");
  module.def("configure", &configure, py::arg("schedule") = "warp-first", py::arg("seed") = 1,
             py::arg("detect_races") = true, py::arg("async_copies") = "late", py::arg("multiprocessors") = 1,
             py::arg("compute_capability") = 90, py::arg("block_shared_bytes") = size_t{227} << 10,
             py::arg("count_banks") = false, "Settings of the launches that follow.");
  module.def("release_memory", &emulator::release_memory,
             "Gives back stacks and device addresses; what runs next takes new ones.");
  module.def(
      "take_bank_report",
      [](bool plain) {
        std::map<std::string, std::array<uint64_t, 3>> report;
        for (const auto& [instruction, use] : emulator::take_bank_report(plain)) {
          report[instruction] = {use.instructions, use.wavefronts, use.least};
        }
        return report;
      },
      py::arg("plain") = false,
      "Of the launches with count_banks since the last call: instruction (or with `plain` the loads and "
      "stores\n"
      "of a source file) -> (executions by a warp, "
      "wavefronts,\n"
      "wavefronts without any bank conflict).");
}
