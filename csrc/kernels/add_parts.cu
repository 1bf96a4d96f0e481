// Adds the parts of a gradient's workspace (add_parts.h), one element of the gradients per thread.
#include "add_parts.h"

#include "../common/scalar.cuh"
#include "channel_tiles.h"
#include "report.h"

namespace acsconv {
namespace {

constexpr int kThreads = 256;

template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(const Accumulator<Scalar>* sums, int64_t parts, int64_t rows, int64_t columns,
                     int64_t weights, int64_t out_channels, Scalar* grad_weight, Scalar* grad_bias) {
  const int64_t elements = rows * columns;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < elements;
       i += int64_t{gridDim.x} * blockDim.x) {
    Accumulator<Scalar> sum(0);
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * elements + i];
    const int64_t row = i / columns, column = i % columns;
    if (column < weights) {
      narrow(sum, grad_weight[row * weights + column]);
    } else if (row < out_channels) {
      narrow(sum, grad_bias[row]);
    }
  }
}

}  // namespace

const char* add_parts(ScalarType type, const PartSums& from, int64_t out_channels, void* grad_weight,
                      void* grad_bias, void* stream) {
  return with_scalar(type, [&](auto scalar) {
    using Scalar = decltype(scalar);
    const int64_t columns = from.weights + from.bias;
    return launch(add_parts_kernel<Scalar>, dim3(grid_size(ceil_div(from.rows * columns, kThreads))),
                  dim3(kThreads), 0, stream, static_cast<const Accumulator<Scalar>*>(from.sums), from.parts,
                  from.rows, columns, from.weights, out_channels, static_cast<Scalar*>(grad_weight),
                  static_cast<Scalar*>(grad_bias));
  });
}

}  // namespace acsconv
