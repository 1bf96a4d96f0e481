// A pass of ACS convolution as a gather: every target voxel is a weighted sum of source voxels.
//
//   target[o][class + index * out_stride] = sum over parts, taps, c of
//                                           source[c][index * in_stride + displacement] * weight(tap, c, o)
//
//   forward             source x, target out; target channels of one view and one group have one part, the
//                       input channels of the group. Classes are only needed in the gradient.
//   gradient of input   source grad_out, target grad_x; the channels of a group have a part for each view,
//   whose
//                       source channels are the view's output channels. Taps are mirrored. Input positions of
//                       one residue modulo the stride (a class) are reached by the same taps.
//   Soft ACS            the same with all three views' taps in one part; where the taps of several views meet
//   in
//                       one displacement (19 are left of 27 in a 3x3 layer) their weights are added first.
//
// Host code of gather_pass.cpp and weight_pass.cpp; the kernels see a Walk made of it, see plan.h.
#pragma once

#include <array>
#include <vector>

#include "../problem.h"

namespace acsconv {

struct GatherTap {
  int set;  // in ACS the view, in Soft ACS 0
  std::array<int64_t, 3> displacement;
  std::array<int64_t, 3> residue;  // of the class of targets that it reaches; smaller than out_stride
  int weight_count;                // weights that are added
  std::array<int64_t, 3> weights;  // their place among the numbers of one pair of channels
};

// What a target channel sums through the taps of one set.
struct GatherPart {
  int set;
  int64_t in_begin, in_count;  // source channels
  int64_t weight;              // where the weights of the first source and the first target channel begin
};

// Target channels that sum the same parts.
struct GatherRange {
  int64_t group, out_begin, out_end;
  std::vector<GatherPart> parts;
};

struct Gather {
  int64_t batch, in_channels, groups;
  std::array<int64_t, 3> in_size, out_size, in_stride, out_stride;
  VolumeStrides source, target;  // in elements
  // Where a source channel stands for two neighbouring ones (pairs.h): how far their numbers lie apart, 0 if
  // side by side; strides are then those of pairs.
  int64_t pair_distance;
  int64_t weight_in, weight_out;  // from one source or target channel to the next among the weights
  // Only those that any target reads inside the volume, ordered by class (W fastest), then set.
  std::vector<GatherTap> taps;
  std::vector<GatherRange> ranges;  // ordered by out_begin

  // Classes along an axis, and the targets of the largest one.
  int64_t classes(int axis) const;
  int64_t class_size(int axis) const;
};

// With `soft` every output channel is computed in all three views, and problem.split is not looked at.
Gather forward_gather(const Problem& problem, bool soft);
Gather backward_input_gather(const Problem& problem, bool soft);

// From the first number of a tensor to behind its last.
int64_t tensor_numbers(const VolumeStrides& strides, int64_t batch, int64_t channels,
                       const std::array<int64_t, 3>& size);

// Numbers of the whole weight.
int64_t weight_numbers(const Problem& problem, bool soft);

}  // namespace acsconv
