// Folds the kernels of Soft ACS (fold_soft.h), one pair of channels per thread.
#include "fold_soft.h"

#include "../common/scalar.cuh"
#include "channel_tiles.h"
#include "fold_soft.cuh"
#include "report.h"

namespace acsconv {
namespace {

constexpr int kThreads = 128;

// Kernels as [view][pair][row][column].
template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    fold_soft_kernel(int64_t pairs, const Scalar* kernels, Accumulator<Scalar>* folded) {
  for (int64_t pair = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; pair < pairs;
       pair += int64_t{gridDim.x} * blockDim.x) {
    const auto at = [&](int view, int row, int column) {
      return widen(kernels[(view * pairs + pair) * 9 + row * 3 + column]);
    };
    for (int tap = 0; tap < kViews * 9; ++tap) {
      const int view = tap / 9, row = tap % 9 / 3, column = tap % 3;
      folded[(view * pairs + pair) * 9 + tap % 9] = folded_kernel(at, view, row, column, 1);
    }
  }
}

}  // namespace

const char* fold_soft_kernels(const Problem& p, const void* kernels, void* folded, void* stream) {
  const int64_t pairs = p.out_channels * (p.in_channels / p.groups);
  return with_scalar(p.type, [&](auto scalar) {
    using Scalar = decltype(scalar);
    return launch(fold_soft_kernel<Scalar>, dim3(grid_size(ceil_div(pairs, kThreads))), dim3(kThreads), 0,
                  stream, pairs, static_cast<const Scalar*>(kernels),
                  static_cast<Accumulator<Scalar>*>(folded));
  });
}

}  // namespace acsconv
