// Implementations of torch.ops.acsconv.* for CPU and CUDA: checks, fills a Problem, allocates the output,
// launches. The only C++ file that knows torch, through its stable ABI (2.10). The schemas are defined in
// acsconv_cuda/ops.py, which is also the only caller; it has checked the arguments in the user's terms. The
// checks here keep any direct call of the operator within the tensors' memory.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "cpu/forward.h"
#include "problem.h"

#ifdef ACSCONV_WITH_CUDA
#include <dlfcn.h>

#include "kernels/simt_forward.h"
#endif

namespace acsconv {
namespace {

using torch::headeronly::MemoryFormat;
using torch::stable::Tensor;
using TorchScalar = torch::headeronly::ScalarType;

template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  message << "acsconv::fused_forward: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// No product of two geometry numbers, nor a sum of a few, leaves 64 bits.
constexpr int64_t kLargestNumber = int64_t{1} << 30;

void check_numbers(const char* name, const std::vector<int64_t>& numbers, size_t count, int64_t least) {
  check(numbers.size() == count, name, " needs ", count, " numbers, got ", numbers.size());
  for (int64_t number : numbers) {
    check(number >= least && number <= kLargestNumber, name, " must lie in [", least, ", 2^30], got ",
          number);
  }
}

ScalarType scalar_type(const Tensor& input, bool cuda) {
  switch (input.scalar_type()) {
    case TorchScalar::Double:
      return ScalarType::Float64;
    case TorchScalar::Float:
      return ScalarType::Float32;
    case TorchScalar::Half:
      check(cuda, "float16 is not supported on the CPU");
      return ScalarType::Float16;
    case TorchScalar::BFloat16:
      check(cuda, "bfloat16 is not supported on the CPU");
      return ScalarType::BFloat16;
    default:
      check(false, "input must be float64, float32, float16 or bfloat16");
      return ScalarType::Float32;
  }
}

// As torch's is_contiguous(memory_format=channels_last_3d): axes of size 1 may have any stride.
bool is_channels_last(const Tensor& volume) {
  int64_t expected = 1;
  for (int axis : {1, 4, 3, 2, 0}) {
    if (volume.size(axis) == 1) continue;
    if (volume.stride(axis) != expected) return false;
    expected *= volume.size(axis);
  }
  return true;
}

VolumeStrides strides(const Tensor& volume) {
  const auto s = volume.strides();
  return {s[0], s[1], {s[2], s[3], s[4]}};
}

void check_companion(const char* name, const Tensor& tensor, const Tensor& input, int64_t rank) {
  check(tensor.dim() == rank, name, " must have ", rank, " dimensions, got ", tensor.dim());
  check(tensor.scalar_type() == input.scalar_type(), name, " must have the dtype of input");
  check(tensor.device() == input.device(), name, " must be on the device of input");
}

// What an operator works on: the tensors, contiguous where Problem asks for it, and their Problem.
struct Call {
  Problem problem;
  Tensor input, weight;
  std::optional<Tensor> bias;
  Tensor output;

  const void* bias_data() const { return bias ? bias->const_data_ptr() : nullptr; }
};

Call prepare(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
             const std::vector<int64_t>& split, const std::vector<int64_t>& stride,
             const std::vector<int64_t>& origin, const std::vector<int64_t>& dilation,
             const std::vector<int64_t>& output_size, int64_t groups) {
  check(input.dim() == 5, "input must have 5 dimensions, got ", input.dim());
  check_companion("weight", weight, input, 4);
  if (bias) check_companion("bias", *bias, input, 1);
  check_numbers("split", split, kViews, 0);
  check_numbers("stride", stride, 3, 1);
  check_numbers("origin", origin, 3 * kViews, -kLargestNumber);
  check_numbers("dilation", dilation, 3 * kViews, 1);
  check_numbers("output_size", output_size, 3, 0);

  Problem p{};
  p.type = scalar_type(input, input.is_cuda());
  p.batch = input.size(0);
  p.in_channels = input.size(1);
  p.out_channels = weight.size(0);
  p.groups = groups;
  p.kernel_h = weight.size(2);
  p.kernel_w = weight.size(3);
  check(groups >= 1 && p.in_channels % groups == 0 && p.out_channels % groups == 0, "groups = ", groups,
        " must divide the ", p.in_channels, " input and ", p.out_channels, " output channels");
  check(weight.size(1) == p.in_channels / groups, "weight must have ", p.in_channels / groups,
        " input channels per group, got ", weight.size(1));
  check(split[0] + split[1] + split[2] == p.out_channels, "split must sum to the ", p.out_channels,
        " output channels");
  check(!bias || bias->size(0) == p.out_channels, "bias must have ", p.out_channels, " elements");
  check(p.kernel_h <= kLargestNumber && p.kernel_w <= kLargestNumber, "weight is too large");
  for (int axis = 0; axis < 3; ++axis) {
    p.in_size[axis] = input.size(2 + axis);
    p.out_size[axis] = output_size[axis];
    p.split[axis] = split[axis];
    p.stride[axis] = stride[axis];
    for (int view = 0; view < kViews; ++view) {
      p.origin[view][axis] = origin[view * 3 + axis];
      p.dilation[view][axis] = dilation[view * 3 + axis];
    }
  }

  const std::array<int64_t, 5> size{p.batch, p.out_channels, output_size[0], output_size[1], output_size[2]};
  const bool channels_last = is_channels_last(input) && !input.is_contiguous();
  Tensor output =
      torch::stable::empty(size, input.scalar_type(), std::nullopt, input.device(), std::nullopt,
                           channels_last ? MemoryFormat::ChannelsLast3d : MemoryFormat::Contiguous);
  p.input = strides(input);
  p.output = strides(output);
  Call call{p, input, torch::stable::contiguous(weight), std::nullopt, output};
  if (bias) call.bias = torch::stable::contiguous(*bias);
  return call;
}

Threads torch_threads() {
  Threads threads;
  threads.count = static_cast<int>(torch::stable::get_num_threads());
  threads.run = [](int count, void (*body)(int, void*), void* context) {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) body(static_cast<int>(index), context);
    });
  };
  return threads;
}

Tensor fused_forward_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                         std::vector<int64_t> split, std::vector<int64_t> stride, std::vector<int64_t> origin,
                         std::vector<int64_t> dilation, std::vector<int64_t> output_size, int64_t groups) {
  Call call = prepare(input, weight, bias, split, stride, origin, dilation, output_size, groups);
  if (call.output.numel() > 0) {
    cpu_forward(call.problem, call.input.const_data_ptr(), call.weight.const_data_ptr(), call.bias_data(),
                call.output.mutable_data_ptr(), torch_threads());
  }
  return call.output;
}

#ifdef ACSCONV_WITH_CUDA

// Only CUDA builds of torch have this function, and this object must also load in the others.
void* current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function get_stream = [] {
    void* symbol = dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream");
    if (symbol == nullptr) {
      // Python loads torch's libraries out of the global scope on some platforms.
      if (void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY)) {
        symbol = dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream");
      }
    }
    return reinterpret_cast<Function>(symbol);
  }();
  check(get_stream != nullptr, "this PyTorch was built without CUDA");
  void* stream = nullptr;
  check(get_stream(device, &stream) == 0, "PyTorch gave no CUDA stream for device ", device);
  return stream;
}

Tensor fused_forward_cuda(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                          std::vector<int64_t> split, std::vector<int64_t> stride,
                          std::vector<int64_t> origin, std::vector<int64_t> dilation,
                          std::vector<int64_t> output_size, int64_t groups) {
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Call call = prepare(input, weight, bias, split, stride, origin, dilation, output_size, groups);
  if (call.output.numel() > 0) {
    const char* refusal = simt_forward(
        call.problem, call.input.const_data_ptr(), call.weight.const_data_ptr(), call.bias_data(),
        call.output.mutable_data_ptr(), current_stream(input.get_device_index()));
    check(refusal == nullptr, refusal);
  }
  return call.output;
}

#endif

}  // namespace
}  // namespace acsconv

STABLE_TORCH_LIBRARY_IMPL(acsconv, CPU, m) {
  m.impl("fused_forward", TORCH_BOX(&acsconv::fused_forward_cpu));
}

#ifdef ACSCONV_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(acsconv, CUDA, m) {
  m.impl("fused_forward", TORCH_BOX(&acsconv::fused_forward_cuda));
}
#endif
