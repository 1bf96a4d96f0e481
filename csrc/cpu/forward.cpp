// Forward ACS convolution on the CPU by its definition, one output element at a time.
#include "forward.h"

namespace acsconv {
namespace {

template <class T>
struct Job {
  const Problem& p;
  const T* input;
  const T* weight;
  const T* bias;
  T* output;
  int count;
};

template <class T>
void channel(const Job<T>& job, int64_t n, int64_t o) {
  const Problem& p = job.p;
  const int view = view_of_channel(p, o), row = row_axis(view), column = column_axis(view);
  const int64_t per_group = p.in_channels / p.groups, group = o / (p.out_channels / p.groups);
  const T* x = job.input + n * p.input.batch + group * per_group * p.input.channel;
  const T* w = job.weight + o * per_group * p.kernel_h * p.kernel_w;
  T* y = job.output + n * p.output.batch + o * p.output.channel;
  for (int64_t d = 0; d < p.out_size[0]; ++d) {
    for (int64_t h = 0; h < p.out_size[1]; ++h) {
      for (int64_t c = 0; c < p.out_size[2]; ++c) {
        const int64_t at[3] = {d, h, c};
        T sum = job.bias ? job.bias[o] : T(0);
        for (int64_t i = 0; i < p.kernel_h; ++i) {
          for (int64_t j = 0; j < p.kernel_w; ++j) {
            int64_t offset = 0;
            bool inside = true;
            for (int axis = 0; axis < 3; ++axis) {
              const int64_t tap = axis == row ? i : axis == column ? j : 0;
              const int64_t position =
                  at[axis] * p.stride[axis] + p.origin[view][axis] + tap * p.dilation[view][axis];
              inside &= position >= 0 && position < p.in_size[axis];
              offset += position * p.input.axis[axis];
            }
            if (!inside) continue;
            for (int64_t k = 0; k < per_group; ++k) {
              sum += w[(k * p.kernel_h + i) * p.kernel_w + j] * x[offset + k * p.input.channel];
            }
          }
        }
        y[d * p.output.axis[0] + h * p.output.axis[1] + c * p.output.axis[2]] = sum;
      }
    }
  }
}

template <class T>
void forward(const Problem& p, const void* input, const void* weight, const void* bias, void* output,
             const Threads& threads) {
  Job<T> job{p,
             static_cast<const T*>(input),
             static_cast<const T*>(weight),
             static_cast<const T*>(bias),
             static_cast<T*>(output),
             threads.count};
  threads.run(
      job.count,
      [](int index, void* context) {
        const auto& job = *static_cast<const Job<T>*>(context);
        const int64_t all = job.p.batch * job.p.out_channels;
        for (int64_t i = all * index / job.count; i < all * (index + 1) / job.count; ++i) {
          channel(job, i / job.p.out_channels, i % job.p.out_channels);
        }
      },
      &job);
}

}  // namespace

void cpu_forward(const Problem& p, const void* input, const void* weight, const void* bias, void* output,
                 const Threads& threads) {
  (p.type == ScalarType::Float64 ? forward<double> : forward<float>)(p, input, weight, bias, output, threads);
}

}  // namespace acsconv
