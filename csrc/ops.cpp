// Implementations of torch.ops.acsconv.fused_* for CPU and CUDA: takes a call's operands (operands.h), and
// launches. With operands.h the only C++ that knows torch, through its stable ABI (2.10). The schemas are
// defined in acsconv_cuda/ops.py; acsconv_cuda/passes.py and shortcuts.py call them.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "operands.h"

#ifdef ACSCONV_WITH_CPU
#include "cpu/passes.h"
#endif

#ifdef ACSCONV_WITH_CUDA
#include <dlfcn.h>

#include "kernels/dispatch.h"
#endif

namespace acsconv {
namespace {

#ifdef ACSCONV_WITH_CPU

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
                         Numbers split, Numbers stride, Numbers origin, Numbers dilation, Numbers output_size,
                         int64_t groups, bool) {
  const Layer layer{split, stride, origin, dilation, groups};
  check_companion("weight", weight, "input", input, layer.soft() ? 5 : 4);
  Forward call = prepare_forward(input, weight, bias, output_size, layer);
  if (call.output.numel() > 0) {
    cpu_forward(call.problem, layer.soft(), input.const_data_ptr(), call.weight.const_data_ptr(),
                call.bias_data(), call.output.mutable_data_ptr(), torch_threads());
  }
  return call.output;
}

// fused_forward with its numbers as one tensor: handing over six lists takes a tenth of a call with cold
// caches.
Tensor fused_forward_packed_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                const Tensor& numbers) {
  check(numbers.dim() == 1 && numbers.size(0) == 28 && numbers.is_contiguous() && numbers.is_cpu() &&
            numbers.scalar_type() == TorchScalar::Long,
        "numbers must be 28 contiguous ones of int64");
  const auto* next = static_cast<const int64_t*>(numbers.const_data_ptr());
  const auto take = [&](int64_t count) {
    next += count;
    return Numbers(next - count, next);
  };
  const Numbers split = take(3), stride = take(3), origin = take(9), dilation = take(9), size = take(3);
  return fused_forward_cpu(input, weight, bias, split, stride, origin, dilation, size, *next, false);
}

Tensor fused_backward_input_cpu(const Tensor& grad_output, const Tensor& weight, Numbers input_size,
                                bool channels_last, Numbers split, Numbers stride, Numbers origin,
                                Numbers dilation, int64_t groups, bool) {
  const Layer layer{split, stride, origin, dilation, groups};
  check_companion("weight", weight, "grad_output", grad_output, layer.soft() ? 5 : 4);
  BackwardInput call = prepare_backward_input(grad_output, weight, input_size, channels_last, layer);
  if (call.grad_input.numel() > 0) {
    cpu_backward_input(call.problem, layer.soft(), grad_output.const_data_ptr(), call.weight.const_data_ptr(),
                       call.grad_input.mutable_data_ptr(), torch_threads());
  }
  return call.grad_input;
}

std::tuple<Tensor, Tensor> fused_backward_weight_cpu(const Tensor& grad_output, const Tensor& input,
                                                     Numbers kernel, bool needs_bias, Numbers split,
                                                     Numbers stride, Numbers origin, Numbers dilation,
                                                     int64_t groups, bool, bool float32) {
  const Layer layer{split, stride, origin, dilation, groups};
  BackwardWeight call = prepare_backward_weight(grad_output, input, kernel, needs_bias, layer, float32);
  if (call.problem.out_channels > 0) {
    cpu_backward_weight(call.problem, layer.soft(), grad_output.const_data_ptr(), input.const_data_ptr(),
                        call.grad_weight.mutable_data_ptr(), call.bias_data(needs_bias), call.gradient_type,
                        torch_threads());
  }
  return {call.grad_weight, call.grad_bias};
}

#endif

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

// Makes a tensor's device current, and finds PyTorch's stream there. In the emulator's build tensors are on
// the CPU, and there is neither.
class Launch {
 public:
  explicit Launch(const Tensor& tensor) {
    if (!tensor.is_cuda()) return;
    guard_.emplace(tensor.get_device_index());
    stream_ = current_stream(tensor.get_device_index());
  }

  void* stream() const { return stream_; }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  void* stream_ = nullptr;
};

// Device memory for one launch; the stream orders what reuses it.
Tensor new_workspace(const Tensor& like, size_t bytes) {
  return torch::stable::empty({static_cast<int64_t>(bytes)}, TorchScalar::Byte, std::nullopt, like.device(),
                              std::nullopt, std::nullopt);
}

void check_launch(const char* refusal) { check(refusal == nullptr, refusal == nullptr ? "" : refusal); }

// Gives float32 weights of 16-bit volumes to the kernels as they are, or rounded where these do not round.
void round_weight(Convolution& convolution, const Tensor& volume, Tensor* weight,
                  std::optional<Tensor>* bias) {
  if (weight->scalar_type() == volume.scalar_type()) return;
  if (takes_float32_weight(convolution)) {
    convolution.weight_type = ScalarType::Float32;
    return;
  }
  *weight = torch::stable::to(*weight, volume.scalar_type());
  if (*bias) *bias = torch::stable::to(**bias, volume.scalar_type());
}

Tensor fused_forward_cuda(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                          Numbers split, Numbers stride, Numbers origin, Numbers dilation,
                          Numbers output_size, int64_t groups, bool allow_tf32) {
  const Launch launch(input);
  const Layer layer{split, stride, origin, dilation, groups};
  Forward call = prepare_forward(input, weight, bias, output_size, layer);
  if (call.output.numel() > 0) {
    Convolution convolution{call.problem, Pass::Forward, layer.soft(), allow_tf32, call.problem.type};
    round_weight(convolution, input, &call.weight, &call.bias);
    Tensor workspace = new_workspace(input, convolve_workspace(convolution));
    check_launch(convolve(convolution, input.const_data_ptr(), call.weight.const_data_ptr(), call.bias_data(),
                          call.output.mutable_data_ptr(), workspace.mutable_data_ptr(), launch.stream()));
  }
  return call.output;
}

// grad_output [N, C_out, D', H', W'] -> grad_input [N, C_in, *input_size].
Tensor fused_backward_input_cuda(const Tensor& grad_output, const Tensor& weight, Numbers input_size,
                                 bool channels_last, Numbers split, Numbers stride, Numbers origin,
                                 Numbers dilation, int64_t groups, bool allow_tf32) {
  const Launch launch(grad_output);
  const Layer layer{split, stride, origin, dilation, groups};
  BackwardInput call = prepare_backward_input(grad_output, weight, input_size, channels_last, layer);
  if (call.grad_input.numel() == 0) return call.grad_input;
  Convolution convolution{call.problem, Pass::BackwardInput, layer.soft(), allow_tf32, call.problem.type};
  std::optional<Tensor> no_bias;
  round_weight(convolution, grad_output, &call.weight, &no_bias);
  Tensor workspace = new_workspace(grad_output, convolve_workspace(convolution));
  check_launch(convolve(convolution, grad_output.const_data_ptr(), call.weight.const_data_ptr(), nullptr,
                        call.grad_input.mutable_data_ptr(), workspace.mutable_data_ptr(), launch.stream()));
  return call.grad_input;
}

std::tuple<Tensor, Tensor> fused_backward_weight_cuda(const Tensor& grad_output, const Tensor& input,
                                                      Numbers kernel, bool needs_bias, Numbers split,
                                                      Numbers stride, Numbers origin, Numbers dilation,
                                                      int64_t groups, bool allow_tf32, bool float32) {
  const Launch launch(input);
  const Layer layer{split, stride, origin, dilation, groups};
  BackwardWeight call = prepare_backward_weight(grad_output, input, kernel, needs_bias, layer, float32);
  WeightGradient gradient{call.problem, layer.soft(), allow_tf32, call.gradient_type};
  const bool is_rounded = call.gradient_type != call.problem.type && !writes_float32_gradient(gradient);
  if (is_rounded) {
    call = prepare_backward_weight(grad_output, input, kernel, needs_bias, layer, /*float32=*/false);
    gradient.gradient_type = call.gradient_type;
  }
  Tensor workspace = new_workspace(input, backward_weight_workspace(gradient));
  check_launch(backward_weight(gradient, grad_output.const_data_ptr(), input.const_data_ptr(),
                               call.grad_weight.mutable_data_ptr(), call.bias_data(needs_bias),
                               workspace.mutable_data_ptr(), launch.stream()));
  if (is_rounded) {
    call.grad_weight = torch::stable::to(call.grad_weight, TorchScalar::Float);
    call.grad_bias = torch::stable::to(call.grad_bias, TorchScalar::Float);
  }
  return {call.grad_weight, call.grad_bias};
}

#endif

}  // namespace
}  // namespace acsconv

#ifdef ACSCONV_WITH_CPU
STABLE_TORCH_LIBRARY_IMPL(acsconv, CPU, m) {
  m.impl("fused_forward", TORCH_BOX(&acsconv::fused_forward_cpu));
  m.impl("fused_forward_packed", TORCH_BOX(&acsconv::fused_forward_packed_cpu));
  m.impl("fused_backward_input", TORCH_BOX(&acsconv::fused_backward_input_cpu));
  m.impl("fused_backward_weight", TORCH_BOX(&acsconv::fused_backward_weight_cpu));
}
#endif

#ifdef ACSCONV_WITH_CUDA
// The emulator's build (csrc/emulator/build.py) registers the same functions for CPU tensors.
#ifndef ACSCONV_CUDA_KEY
#define ACSCONV_CUDA_KEY CUDA
#endif
STABLE_TORCH_LIBRARY_IMPL(acsconv, ACSCONV_CUDA_KEY, m) {
  m.impl("fused_forward", TORCH_BOX(&acsconv::fused_forward_cuda));
  m.impl("fused_backward_input", TORCH_BOX(&acsconv::fused_backward_input_cuda));
  m.impl("fused_backward_weight", TORCH_BOX(&acsconv::fused_backward_weight_cuda));
}
#endif
