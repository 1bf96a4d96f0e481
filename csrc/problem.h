// One ACS convolution as plain numbers: what every kernel, on every device, is given. Knows nothing of torch.
//
// The geometry is one formula for all axes of all views:
//
//   read position on `axis` = o * stride[axis] + origin[view][axis] + tap * dilation[view][axis]
//
// with `o` the output position and `tap` in [0, kernel_extent(view, axis)). On a plane axis `origin` is minus
// the padding; on the thin axis, which has the single tap 0, it is the offset of the thin position. A
// position outside [0, in_size[axis]) reads zero. acsconv_cuda/geometry.py derives these numbers from a
// layer's parameters.
#pragma once

#include <cstdint>

#include "view.h"

namespace acsconv {

enum class ScalarType : int32_t { Float64, Float32, Float16, BFloat16 };

// Strides in elements, 64-bit: tensors may pass 2^31 elements and be views of larger ones.
struct VolumeStrides {
  int64_t batch, channel, axis[3];  // axis: D, H, W
};

struct Problem {
  ScalarType type;
  int64_t batch;         // N
  int64_t in_channels;   // C_in
  int64_t out_channels;  // C_out
  int64_t groups;        // divides both; output channel o reads the inputs of group o / (C_out / groups)
  int64_t in_size[3];    // D, H, W of the input
  int64_t out_size[3];   // D, H, W of the output
  int64_t kernel_h, kernel_w;
  int64_t split[3];        // output channels per view, axial first; the sum is C_out
  int64_t stride[3];       // per volume axis
  int64_t origin[3][3];    // [view][axis], signed
  int64_t dilation[3][3];  // [view][axis]; 1 on the thin axis
  VolumeStrides input;     // x[N, C_in, D, H, W]
  VolumeStrides output;    // out[N, C_out, D', H', W']
  // weight[C_out, C_in / groups, K_h, K_w] and bias[C_out] are contiguous.
};

// The view that computes output channel `channel`.
ACSCONV_HD inline int view_of_channel(const Problem& p, int64_t channel) {
  return channel < p.split[0] ? 0 : channel < p.split[0] + p.split[1] ? 1 : 2;
}

}  // namespace acsconv
