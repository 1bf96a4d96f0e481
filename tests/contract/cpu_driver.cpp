// Runs the CPU passes without torch, for builds with sanitizers and for other compilers and processors:
// test_cpu_driver.py compiles this file together with csrc/cpu, and gives one problem per line on standard
// input. Every tensor is a block of memory of exactly its size, filled with small integers; results are
// compared with loops.
//
// A line: type soft channels_last groups batch C_in C_out, D H W of input and output, K_h K_w, split (3),
// stride (3), origin (9), dilation (9); type is the index of acsconv::ScalarType.
//
// Argument: "" or a fault that the sanitizers have to find: "short" (the input ends too early), "twice" (two
// threads compute everything).
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "cpu/passes.h"

using namespace acsconv;

namespace {

int64_t size_of(ScalarType type) {
  return type == ScalarType::Float64 ? 8 : type == ScalarType::Float32 ? 4 : 2;
}

// A tensor in memory of its own, so that a sanitizer sees every access beside it.
class Tensor {
 public:
  Tensor(ScalarType type, int64_t count, int64_t missing = 0)
      : type_(type),
        data_(static_cast<char*>(std::malloc((count - missing) * size_of(type) + (count == 0)))) {}
  Tensor(const Tensor&) = delete;
  ~Tensor() { std::free(data_); }

  void* data() { return data_; }

  double get(int64_t i) const {
    const char* at = data_ + i * size_of(type_);
    if (type_ == ScalarType::Float64) return read<double>(at);
    if (type_ == ScalarType::Float32) return read<float>(at);
    const uint32_t bits = read<uint16_t>(at);
    if (type_ == ScalarType::BFloat16) {
      const uint32_t wide = bits << 16;
      return read<float>(reinterpret_cast<const char*>(&wide));
    }
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return NAN;
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    return bits >> 15 ? -magnitude : magnitude;
  }

  void set(int64_t i, int small) {  // an integer below 4
    static const uint16_t halves[] = {0, 0x3c00, 0x4000, 0x4200}, bfloats[] = {0, 0x3f80, 0x4000, 0x4040};
    char* at = data_ + i * size_of(type_);
    if (type_ == ScalarType::Float64) return write<double>(at, small);
    if (type_ == ScalarType::Float32) return write<float>(at, small);
    const uint16_t* table = type_ == ScalarType::Float16 ? halves : bfloats;
    write<uint16_t>(at, table[std::abs(small)] | (small < 0 ? 0x8000 : 0));
  }

 private:
  template <class T>
  static T read(const char* at) {
    T value;
    std::memcpy(&value, at, sizeof(T));
    return value;
  }
  template <class T>
  static void write(char* at, T value) {
    std::memcpy(at, &value, sizeof(T));
  }

  ScalarType type_;
  char* data_;
};

int64_t volume(const int64_t (&size)[3]) { return size[0] * size[1] * size[2]; }

VolumeStrides strides_of(int64_t channels, const int64_t (&size)[3], bool channels_last) {
  const int64_t plane = size[1] * size[2];
  if (channels_last) return {channels * volume(size), 1, {channels * plane, channels * size[2], channels}};
  return {channels * volume(size), volume(size), {plane, size[2], 1}};
}

int64_t at(const VolumeStrides& s, int64_t n, int64_t c, const int64_t (&position)[3]) {
  return n * s.batch + c * s.channel + position[0] * s.axis[0] + position[1] * s.axis[1] +
         position[2] * s.axis[2];
}

// Calls product(out, in, weight, o) with the indices of every product of the convolution.
template <class Product>
void for_each_product(const Problem& p, bool soft, const Product& product) {
  const int64_t in_group = p.in_channels / p.groups, out_group = p.out_channels / p.groups;
  for (int64_t n = 0; n < p.batch; ++n) {
    for (int64_t o = 0; o < p.out_channels; ++o) {
      for (int view = 0; view < kViews; ++view) {
        if (!soft && view != view_of_channel(p, o)) continue;
        for (int64_t d = 0; d < p.out_size[0]; ++d) {
          for (int64_t h = 0; h < p.out_size[1]; ++h) {
            for (int64_t w = 0; w < p.out_size[2]; ++w) {
              const int64_t out[3] = {d, h, w};
              for (int64_t k = 0; k < p.kernel_h * p.kernel_w; ++k) {
                int64_t position[3];
                bool inside = true;
                for (int axis = 0; axis < 3; ++axis) {
                  const int64_t tap = axis == row_axis(view)      ? k / p.kernel_w
                                      : axis == column_axis(view) ? k % p.kernel_w
                                                                  : 0;
                  position[axis] =
                      out[axis] * p.stride[axis] + p.origin[view][axis] + tap * p.dilation[view][axis];
                  inside &= position[axis] >= 0 && position[axis] < p.in_size[axis];
                }
                for (int64_t c = 0; inside && c < in_group; ++c) {
                  const int64_t row = (soft ? view * p.out_channels : 0) + o;
                  product(at(p.output, n, o, out), at(p.input, n, o / out_group * in_group + c, position),
                          (row * in_group + c) * p.kernel_h * p.kernel_w + k, o);
                }
              }
            }
          }
        }
      }
    }
  }
}

bool twice = false;

Threads some_threads() {
  return {3, [](int count, void (*body)(int, void*), void* context) {
            std::vector<std::thread> threads;
            for (int i = 0; i < count; ++i) threads.emplace_back(body, i, context);
            for (std::thread& thread : threads) thread.join();
          }};
}

// Sums are exact but for the rounding of a 16-bit result.
void compare(const char* what, ScalarType type, const Tensor& found, const std::vector<double>& expected) {
  const double rounding = type == ScalarType::BFloat16 ? 0.004 : type == ScalarType::Float16 ? 0.0005 : 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double value = found.get(static_cast<int64_t>(i));
    if (!(std::abs(value - expected[i]) <= rounding * std::abs(expected[i]))) {
      std::printf("%s: number %zu is %g, not %g\n", what, i, value, expected[i]);
      std::exit(1);
    }
  }
}

void fill(Tensor& tensor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) tensor.set(i, std::rand() % 7 - 3);
}

void check(const Problem& p, bool soft, int64_t missing) {
  const int64_t ins = p.batch * p.in_channels * volume(p.in_size);
  const int64_t outs = p.batch * p.out_channels * volume(p.out_size);
  const int64_t weights =
      (soft ? kViews : 1) * p.out_channels * (p.in_channels / p.groups) * p.kernel_h * p.kernel_w;
  Tensor input(p.type, ins, missing), weight(p.type, weights), bias(p.type, p.out_channels);
  Tensor grad_output(p.type, outs), output(p.type, outs), grad_input(p.type, ins);
  Tensor grad_weight(p.type, weights), grad_bias(p.type, p.out_channels);
  fill(input, ins - missing);
  fill(weight, weights);
  fill(bias, p.out_channels);
  fill(grad_output, outs);

  auto all = [&] {
    const Threads threads = some_threads();
    cpu_forward(p, soft, input.data(), weight.data(), bias.data(), output.data(), threads);
    cpu_backward_input(p, soft, grad_output.data(), weight.data(), grad_input.data(), threads);
    cpu_backward_weight(p, soft, grad_output.data(), input.data(), grad_weight.data(), grad_bias.data(),
                        p.type, threads);
  };
  if (twice) {
    std::thread other(all);
    all();
    other.join();
  } else {
    all();
  }
  if (missing > 0) return;

  std::vector<double> y(outs), dx(ins), dw(weights), db(p.out_channels);
  for (int64_t n = 0; n < p.batch; ++n) {
    for (int64_t o = 0; o < p.out_channels; ++o) {
      for (int64_t v = 0; v < volume(p.out_size); ++v) {
        const int64_t hw = p.out_size[1] * p.out_size[2];
        const int64_t position[3] = {v / hw, v % hw / p.out_size[2], v % p.out_size[2]};
        y[at(p.output, n, o, position)] = bias.get(o);
        db[o] += grad_output.get(at(p.output, n, o, position));
      }
    }
  }
  for_each_product(p, soft, [&](int64_t out, int64_t in, int64_t w, int64_t) {
    y[out] += input.get(in) * weight.get(w);
    dx[in] += grad_output.get(out) * weight.get(w);
    dw[w] += grad_output.get(out) * input.get(in);
  });
  compare("output", p.type, output, y);
  compare("grad_input", p.type, grad_input, dx);
  compare("grad_weight", p.type, grad_weight, dw);
  compare("grad_bias", p.type, grad_bias, db);
}

bool read(int64_t& number) {
  long long value;
  if (std::scanf("%lld", &value) != 1) return false;
  number = value;
  return true;
}

template <size_t Count>
void read(int64_t (&numbers)[Count]) {
  for (int64_t& number : numbers) read(number);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string fault = argc > 1 ? argv[1] : "";
  twice = fault == "twice";
  int problems = 0;
  for (int64_t type = 0, soft = 0, last = 0; read(type); ++problems) {
    Problem p{};
    p.type = static_cast<ScalarType>(type);
    read(soft), read(last), read(p.groups), read(p.batch), read(p.in_channels), read(p.out_channels);
    read(p.in_size), read(p.out_size), read(p.kernel_h), read(p.kernel_w);
    read(p.split), read(p.stride);
    for (auto& view : p.origin) read(view);
    for (auto& view : p.dilation) read(view);
    p.input = strides_of(p.in_channels, p.in_size, last != 0);
    p.output = strides_of(p.out_channels, p.out_size, last != 0);
    check(p, soft != 0, fault == "short" ? 1 : 0);
  }
  std::printf("%d problems\n", problems);
  return 0;
}
