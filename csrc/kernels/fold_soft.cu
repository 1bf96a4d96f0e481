// Folds the kernels of Soft ACS (fold_soft.h), one pair of channels per thread.
#include "fold_soft.h"

#include "../common/scalar.cuh"
#include "channel_tiles.h"
#include "report.h"

namespace acsconv {
namespace {

constexpr int kThreads = 128;

// Kernels as [view][pair][row][column]; rows of views 1 and 2 are along D, columns of 2 and rows of 0 along
// H.
template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    fold_soft_kernel(int64_t pairs, const Scalar* kernels, Accumulator<Scalar>* folded) {
  for (int64_t pair = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; pair < pairs;
       pair += int64_t{gridDim.x} * blockDim.x) {
    const Scalar *axial = kernels + pair * 9, *coronal = axial + pairs * 9, *sagittal = coronal + pairs * 9;
    Accumulator<Scalar>* to = folded + pair * 9;
    for (int row = 0; row < 3; ++row) {
      for (int column = 0; column < 3; ++column) {
        const int tap = row * 3 + column;
        Accumulator<Scalar> in_axial = widen(axial[tap]), in_coronal = widen(coronal[tap]);
        if (row == 1) in_axial += widen(coronal[3 + column]);
        if (column == 1) {
          in_axial += widen(sagittal[3 + row]);
          in_coronal += widen(sagittal[tap]);
        }
        to[tap] = in_axial;
        to[pairs * 9 + tap] = in_coronal;
        to[pairs * 18 + tap] = widen(sagittal[tap]);
      }
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
