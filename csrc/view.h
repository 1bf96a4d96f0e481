// THE definition of a view: which kernel axis runs along which axis of the volume.
//
// Axes of a volume are numbered 0 = D, 1 = H, 2 = W. A view convolves one plane of the volume and leaves the
// third, "thin", axis alone:
//
//   view          thin  row (K_h)  column (K_w)   kernel as 3D
//   0 axial        D       H          W           (1, K_h, K_w)
//   1 coronal      H       D          W           (K_h, 1, K_w)
//   2 sagittal     W       D          H           (K_h, K_w, 1)
//
// Its Python twin is acsconv_cuda/geometry.py (VIEWS); tests/contract compares the two.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ACSCONV_HD __host__ __device__
#else
#define ACSCONV_HD
#endif

namespace acsconv {

inline constexpr int kViews = 3;

ACSCONV_HD constexpr int thin_axis(int view) { return view; }
ACSCONV_HD constexpr int row_axis(int view) { return view == 0 ? 1 : 0; }
ACSCONV_HD constexpr int column_axis(int view) { return view == 2 ? 1 : 2; }

// Extent of a view's kernel along one axis of the volume: K_h, K_w, or 1 on the thin axis.
ACSCONV_HD constexpr int64_t kernel_extent(int view, int axis, int64_t kernel_h, int64_t kernel_w) {
  return axis == row_axis(view) ? kernel_h : axis == column_axis(view) ? kernel_w : 1;
}

// First output channel of a view.
template <class Channels>
ACSCONV_HD constexpr Channels view_channels_begin(const Channels (&split)[kViews], int view) {
  return view == 0 ? 0 : view == 1 ? split[0] : split[0] + split[1];
}

}  // namespace acsconv
