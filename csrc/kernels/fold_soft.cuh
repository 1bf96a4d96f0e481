// How the kernels of Soft ACS are folded (fold_soft.h), for fold_soft.cu and mma_pack.cu.
#pragma once

#include "../common/launch.cuh"

namespace acsconv {

// Element [row][column] of a view's folded kernel: what two views read of one voxel is added up in the first
// one's kernel. `at(view, row, column)` is an element of a view's own kernel, as a number to sum in; `middle`
// is half the kernel's size. Rows of views 1 and 2 are along D, columns of 2 and rows of 0 along H.
template <class At>
__device__ __forceinline__ auto folded_kernel(const At& at, int view, int row, int column, int middle) {
  auto sum = at(view, row, column);
  if (view == 0 && row == middle) sum += at(1, middle, column);
  if (view == 0 && column == middle) sum += at(2, middle, row);
  if (view == 1 && column == middle) sum += at(2, row, middle);
  return sum;
}

}  // namespace acsconv
