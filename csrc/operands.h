// What a call of torch.ops.acsconv.fused_* is given, checked: its Problem, its operands as the kernels take
// them, its output allocated. Called by ops.cpp. acsconv_cuda/ops.py has checked the arguments in the user's
// terms; the checks here keep any direct call of an operator within the tensors' memory.
//
// A weight is [C_out, C_in / groups, K_h, K_w]; with an empty `split`, which means Soft ACS, it is the
// kernels of the three views, [3, C_out, C_in / groups, K_h, K_w].
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "problem.h"

namespace acsconv {

using torch::headeronly::MemoryFormat;
using torch::stable::Tensor;
using Numbers = std::vector<int64_t>;
using TorchScalar = torch::headeronly::ScalarType;

template <class... Parts>
inline void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  message << "acsconv: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// No product of two geometry numbers, nor a sum of a few, leaves 64 bits.
inline constexpr int64_t kLargestNumber = int64_t{1} << 30;

inline void check_numbers(const char* name, const Numbers& numbers, size_t count, int64_t least) {
  check(numbers.size() == count, name, " needs ", count, " numbers, got ", numbers.size());
  for (int64_t number : numbers) {
    check(number >= least && number <= kLargestNumber, name, " must lie in [", least, ", 2^30], got ",
          number);
  }
}

inline ScalarType scalar_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case TorchScalar::Double:
      return ScalarType::Float64;
    case TorchScalar::Float:
      return ScalarType::Float32;
    case TorchScalar::Half:
      return ScalarType::Float16;
    case TorchScalar::BFloat16:
      return ScalarType::BFloat16;
    default:
      check(false, "the dtype must be float64, float32, float16 or bfloat16");
      return ScalarType::Float32;
  }
}

// As torch's is_contiguous(memory_format=channels_last_3d): axes of size 1 may have any stride.
inline bool is_channels_last(const Tensor& volume) {
  int64_t expected = 1;
  for (int axis : {1, 4, 3, 2, 0}) {
    if (volume.size(axis) == 1) continue;
    if (volume.stride(axis) != expected) return false;
    expected *= volume.size(axis);
  }
  return true;
}

inline VolumeStrides strides(const Tensor& volume) {
  const auto s = volume.strides();
  return {s[0], s[1], {s[2], s[3], s[4]}};
}

inline void check_volume(const char* name, const Tensor& volume) {
  check(volume.dim() == 5, name, " must have 5 dimensions, got ", volume.dim());
}

inline void check_companion(const char* name, const Tensor& tensor, const char* volume_name,
                            const Tensor& volume, int64_t rank) {
  check(tensor.dim() == rank, name, " must have ", rank, " dimensions, got ", tensor.dim());
  check(tensor.scalar_type() == volume.scalar_type(), name, " must have the dtype of ", volume_name);
  check(tensor.device() == volume.device(), name, " must be on the device of ", volume_name);
}

// A weight or bias: of the volume's dtype, or float32 beside 16 bits, as autocast leaves parameters.
inline void check_weight(const char* name, const Tensor& tensor, const char* volume_name,
                         const Tensor& volume, int64_t rank) {
  const TorchScalar type = volume.scalar_type();
  const bool wide = tensor.scalar_type() == TorchScalar::Float &&
                    (type == TorchScalar::Half || type == TorchScalar::BFloat16);
  if (!wide) return check_companion(name, tensor, volume_name, volume, rank);
  check(tensor.dim() == rank, name, " must have ", rank, " dimensions, got ", tensor.dim());
  check(tensor.device() == volume.device(), name, " must be on the device of ", volume_name);
}

// The numbers that all operators take behind their tensors.
struct Layer {
  Numbers split, stride, origin, dilation;
  int64_t groups;

  bool soft() const { return split.empty(); }
};

struct Sizes {
  int64_t batch, in_channels, out_channels;
  Numbers in_size, out_size, kernel;
};

// Everything of a Problem but the strides of its volumes.
inline Problem describe(const Tensor& volume, const Sizes& sizes, const Layer& layer) {
  Numbers split = layer.split;
  if (layer.soft()) split = {sizes.out_channels, 0, 0};
  check_numbers("split", split, kViews, 0);
  check_numbers("stride", layer.stride, 3, 1);
  check_numbers("origin", layer.origin, 3 * kViews, -kLargestNumber);
  check_numbers("dilation", layer.dilation, 3 * kViews, 1);
  check_numbers("input_size", sizes.in_size, 3, 0);
  check_numbers("output_size", sizes.out_size, 3, 0);
  check_numbers("kernel", sizes.kernel, 2, 1);

  Problem p{};
  p.type = scalar_type(volume);
  p.batch = sizes.batch;
  p.in_channels = sizes.in_channels;
  p.out_channels = sizes.out_channels;
  p.groups = layer.groups;
  p.kernel_h = sizes.kernel[0];
  p.kernel_w = sizes.kernel[1];
  check(p.groups >= 1 && p.in_channels % p.groups == 0 && p.out_channels % p.groups == 0,
        "groups = ", p.groups, " must divide the ", p.in_channels, " input and ", p.out_channels,
        " output channels");
  check(split[0] + split[1] + split[2] == p.out_channels, "split must sum to the ", p.out_channels,
        " output channels");
  for (int axis = 0; axis < 3; ++axis) {
    p.in_size[axis] = sizes.in_size[axis];
    p.out_size[axis] = sizes.out_size[axis];
    p.split[axis] = split[axis];
    p.stride[axis] = layer.stride[axis];
    for (int view = 0; view < kViews; ++view) {
      p.origin[view][axis] = layer.origin[view * 3 + axis];
      p.dilation[view][axis] = layer.dilation[view * 3 + axis];
    }
  }
  return p;
}

inline Numbers volume_size(const Tensor& volume) { return {volume.size(2), volume.size(3), volume.size(4)}; }

// Uninitialised, on the device of `like`. PyTorch would look for torch.empty by its name, which costs a call
// with cold caches a tenth of its time.
inline Tensor new_tensor(const Tensor& like, int32_t type, size_t rank, const int64_t* shape,
                         const int64_t* strides) {
  int32_t device_type = 0, device_index = 0;
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(rank), shape, strides, type,
                                                         device_type, device_index, &made));
  return Tensor(made);
}

inline int32_t type_of(const Tensor& tensor) {
  int32_t type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &type));
  return type;
}

// Strides are torch.empty's, also of volumes that are empty.
inline Tensor new_volume(const Tensor& like, int64_t batch, int64_t channels, const int64_t* size,
                         bool channels_last) {
  const int64_t shape[5] = {batch, channels, size[0], size[1], size[2]};
  int64_t strides[5], next = 1;
  for (int axis : channels_last ? std::array{1, 4, 3, 2, 0} : std::array{4, 3, 2, 1, 0}) {
    strides[axis] = next;
    next *= channels_last ? shape[axis] : std::max<int64_t>(shape[axis], 1);
  }
  return new_tensor(like, type_of(like), 5, shape, strides);
}

// PyTorch looks for the operator by its name, which a weight that is contiguous need not wait for.
inline Tensor make_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A forward pass: the tensors, contiguous where Problem asks for it, and their Problem.
struct Forward {
  Problem problem;
  Tensor weight, output;
  std::optional<Tensor> bias;

  const void* bias_data() const { return bias ? bias->const_data_ptr() : nullptr; }
};

inline Forward prepare_forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                               const Numbers& output_size, const Layer& layer) {
  check_volume("input", input);
  check_weight("weight", weight, "input", input, layer.soft() ? 5 : 4);
  check(!layer.soft() || weight.size(0) == kViews, "the kernels of three views are needed");
  const int first = layer.soft() ? 1 : 0;
  const Sizes sizes{input.size(0),      input.size(1), weight.size(first),
                    volume_size(input), output_size,   {weight.size(first + 2), weight.size(first + 3)}};
  Problem p = describe(input, sizes, layer);
  check(weight.size(first + 1) == p.in_channels / p.groups, "weight must have ", p.in_channels / p.groups,
        " input channels per group, got ", weight.size(first + 1));
  if (bias) {
    check_weight("bias", *bias, "input", input, 1);
    check(bias->scalar_type() == weight.scalar_type(), "bias must have the dtype of weight");
    check(bias->size(0) == p.out_channels, "bias must have ", p.out_channels, " elements");
  }
  const bool channels_last = is_channels_last(input) && !input.is_contiguous();
  Tensor output = new_volume(input, p.batch, p.out_channels, p.out_size, channels_last);
  p.input = strides(input);
  p.output = strides(output);
  Forward call{p, make_contiguous(weight), output, std::nullopt};
  if (bias) call.bias = make_contiguous(*bias);
  return call;
}

// A gradient of the input, as Forward.
struct BackwardInput {
  Problem problem;
  Tensor weight, grad_input;
};

inline BackwardInput prepare_backward_input(const Tensor& grad_output, const Tensor& weight,
                                            const Numbers& input_size, bool channels_last,
                                            const Layer& layer) {
  check_volume("grad_output", grad_output);
  check_weight("weight", weight, "grad_output", grad_output, layer.soft() ? 5 : 4);
  check(!layer.soft() || weight.size(0) == kViews, "the kernels of three views are needed");
  const int first = layer.soft() ? 1 : 0;
  const Sizes sizes{grad_output.size(0),      weight.size(first + 1) * layer.groups,
                    weight.size(first),       input_size,
                    volume_size(grad_output), {weight.size(first + 2), weight.size(first + 3)}};
  Problem p = describe(grad_output, sizes, layer);
  check(grad_output.size(1) == p.out_channels, "grad_output must have ", p.out_channels, " channels, got ",
        grad_output.size(1));
  Tensor grad_input = new_volume(grad_output, p.batch, p.in_channels, p.in_size, channels_last);
  p.input = strides(grad_input);
  p.output = strides(grad_output);
  return {p, make_contiguous(weight), grad_input};
}

// Gradients of weight and bias, as Forward: grad_weight is shaped as the weight, grad_bias is empty unless
// asked for. Both are of gradient_type: the problem's, or float32 beside 16 bits.
struct BackwardWeight {
  Problem problem;
  ScalarType gradient_type;
  Tensor grad_weight, grad_bias;

  void* bias_data(bool needed) { return needed ? grad_bias.mutable_data_ptr() : nullptr; }
};

inline BackwardWeight prepare_backward_weight(const Tensor& grad_output, const Tensor& input,
                                              const Numbers& kernel, bool needs_bias, const Layer& layer,
                                              bool float32) {
  check_volume("input", input);
  check_companion("grad_output", grad_output, "input", input, 5);
  check(grad_output.size(0) == input.size(0), "grad_output must have the batch size of input");
  const Sizes sizes{
      input.size(0), input.size(1), grad_output.size(1), volume_size(input), volume_size(grad_output),
      kernel};
  Problem p = describe(input, sizes, layer);
  p.input = strides(input);
  p.output = strides(grad_output);
  const int64_t in_group = p.in_channels / p.groups;
  Numbers shape{p.out_channels, in_group, p.kernel_h, p.kernel_w};
  if (layer.soft()) shape.insert(shape.begin(), kViews);
  const bool wide = float32 && p.type != ScalarType::Float64;
  const auto allocate = [&](const Numbers& of) {
    Numbers strides(of.size(), 1);
    for (size_t i = of.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * std::max<int64_t>(of[i], 1);
    return new_tensor(input, wide ? aoti_torch_dtype_float32() : type_of(input), of.size(), of.data(),
                      strides.data());
  };
  return {p, wide ? ScalarType::Float32 : p.type, allocate(shape),
          allocate({needs_bias ? p.out_channels : 0})};
}

}  // namespace acsconv
